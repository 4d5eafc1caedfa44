"""From the fields of a request to vectors: role, prompt, truncation and size, each checked, none guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from moembed.embedder import Embedder
from moembed.encoding import FULL, Tag, View
from moembed.serve.bodies import INPUT_TYPES, Inputs, InputType
from moembed.serve.errors import RequestError
from moembed.serve.records import record_of
from moembed.serve.refusals import long_texts, refused
from moembed.serve.state import EmbeddedTexts, State, Truncate, state_of
from moembed.types import UserError

_CHARACTERS = 2  # of one text, for every token that a request may have


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a request says its texts are.

    Attributes:
        input_type: what they are embedded for; the model's prompt for it goes in front.
        prompt_name: the model's prompt of this name goes in front.
        prompt: this goes in front.
        tag: by which the model chooses experts, one of all texts or one of each; a role is one by itself.
    """

    input_type: InputType | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    tag: Tag | None = None


async def embed(
    request: Request,
    inputs: Inputs,
    purpose: Purpose,
    *,
    param: str,
    remedy: str,
    truncate: Truncate | None = None,
    dimensions: int | None = None,
) -> EmbeddedTexts:
    """The vectors of texts or token ids.

    Args:
        param: what the route calls its inputs, for errors.
        remedy: what a request of the route can say of a text that is too long.
        truncate: None: what the server was started with.

    Raises:
        RequestError: more texts than one request may have; what the model lacks.
    """
    state = state_of(request)
    require_few(state, inputs, param)
    role, prompt = chosen_prompt(state, purpose)
    if not isinstance(inputs[0], str) and (role, prompt) != (None, None):
        raise RequestError(
            400,
            "token ids are read as they are: put the prompt in front as tokens, or send texts",
            param=param,
        )
    texts = [text for text in inputs if isinstance(text, str)]
    require_short(state, _front(state, role, prompt), texts, param)
    record = record_of(request.scope)
    record.texts = len(inputs)
    with long_texts(param, remedy):
        found = await state.model.embed(
            inputs,
            role=role,
            prompt=prompt,
            tag=purpose.tag,
            truncate=truncate or state.settings.truncate,
            view=chosen_view(state, dimensions),
            client=record.client,
        )
    record.tokens, record.truncated_tokens = found.tokens, sum(found.truncated)
    return found


def _front(state: State, role: str | None, prompt: str | None) -> str:
    with refused("prompt"):
        return state.model.embedder.prefix(role, prompt)


def require_few(state: State, inputs: Sequence[object], param: str) -> None:
    """Raise RequestError where a request has more texts than it may."""
    most = state.settings.max_texts
    if len(inputs) > most:
        raise RequestError(
            413, f"{param} has {len(inputs)} entries; send at most {most} in a request", param=param
        )


def require_short(state: State, front: str, texts: Sequence[str], param: str) -> None:
    """Raise RequestError where texts, each with what is read in front of it, are too much to tokenize.

    A body of a few kilobytes would else keep the tokenizer busy for hours: one long prompt, many short texts.
    And a tokenizer takes hundreds of bytes of memory for each character of one text.
    """
    longest = _CHARACTERS * state.settings.request_tokens
    for place, text in enumerate(texts):
        if len(text) > longest:
            message = (
                f"text {place} has {len(text)} characters; one text may have {longest}: send it in pieces"
            )
            raise RequestError(413, message, param=param)
    most = state.settings.max_body_bytes
    size = len(front) * len(texts) + sum(map(len, texts))
    if size > most:
        message = f"{len(texts)} texts, and {len(front)} characters in front of each, are {size} characters"
        raise RequestError(413, f"{message}: send at most {most} in a request", param=param)


def chosen_prompt(state: State, purpose: Purpose) -> tuple[str | None, str | None]:
    """The role and the prompt that a request asks for, as ``Embedder.vectors`` takes them.

    The name of a prompt is a role too, where it is one of a model whose tags are roles.
    """
    name, kind = purpose.prompt_name, purpose.input_type
    if sum(given is not None for given in (kind, name, purpose.prompt)) > 1:
        raise RequestError(400, "send one of input_type, prompt_name and prompt", param="prompt_name")
    if name is None:
        return (None if kind is None else INPUT_TYPES[kind]), purpose.prompt
    try:
        return name, state.model.embedder.tokenizer.prompt(name)
    except UserError as error:
        raise RequestError(400, str(error), param="prompt_name", code="unknown_prompt") from None


def chosen_view(state: State, dimensions: int | None) -> View:
    """The part of the vectors that a request asks for.

    Raises:
        RequestError: the model was not trained for this size, and the server was not told to give any.
    """
    model = state.model
    if dimensions is None or dimensions == model.dim:
        return FULL
    if dimensions > model.dim:
        raise RequestError(
            400, f"dimensions {dimensions} is more than the {model.dim} of this model", param="dimensions"
        )
    if dimensions not in model.dims and not state.settings.allow_any_dim:
        sizes = ", ".join(map(str, model.dims))
        raise RequestError(
            400,
            f"dimensions {dimensions} is not a size this model was trained for: choose of {sizes} (a server "
            "started with --allow-any-dim gives others too)",
            param="dimensions",
        )
    return View(dim=dimensions)


def tag_names(model: Embedder) -> list[str]:
    """The tags by which a model chooses experts; none of most."""
    return [] if model.tags is None else list(model.tags.names)


def default_tag(model: Embedder) -> str | None:
    """The tag of texts that come without one and whose role is none; None: they are refused, or looked at."""
    if model.tags is None or model.finds_tags or callable(model.tag):
        return None
    return model.tag or model.tags.default
