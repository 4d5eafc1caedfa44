"""What a server says of the model behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moembed.client.connection import Connection, field
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class ServedModelInfo:
    """The model of a server.

    Attributes:
        name: what requests call it.
        dims: sizes that its vectors were trained to be cut to; the full one is ``dim``.
        dtype: what the values that serve are rounded to.
        tags: those by which the model chooses experts; none of most.
        default_tag: of texts that come without one.
        max_texts: texts in one request, at most.
        parameters, active_parameters: as ``Embedder.num_parameters``; None where the server does not say.
    """

    name: str
    dim: int
    dims: tuple[int, ...]
    max_length: int | None
    dtype: str
    prompts: Mapping[str, str]
    default_prompt: str | None
    tags: tuple[str, ...]
    default_tag: str | None
    max_texts: int
    parameters: int | None
    active_parameters: int | None


def read_info(connection: Connection, model: str | None) -> ServedModelInfo:
    """Ask the server; ``model`` is the name that its model must have, None: any.

    Raises:
        UserError: another model, or no moembed server.
    """
    told, url = connection.ask("GET", "/info"), connection.url
    name, sizes = field(told, "model_id", url), field(told, "dimensions", url)
    if model not in (None, name):
        raise UserError(f"{url} serves the model {name}, not {model}")
    return ServedModelInfo(
        name=name,
        dim=max(sizes),
        dims=tuple(sizes),
        max_length=field(told, "max_input_length", url),
        dtype=field(told, "model_dtype", url),
        prompts=field(told, "prompts", url),
        default_prompt=field(told, "default_prompt", url),
        tags=tuple(told.get("tags", ())),
        default_tag=told.get("default_tag"),
        max_texts=field(told, "max_client_batch_size", url),
        parameters=told.get("parameters"),
        active_parameters=told.get("active_parameters"),
    )
