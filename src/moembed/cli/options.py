"""Options that several commands share, how they load a model, and what they say on Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from moembed.console import Interrupted
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.client.model import Client
    from moembed.embedder import Embedder
    from moembed.inference.static import StaticEmbedder
    from moembed.search.composed import ComposedEncoder

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows without usable texts.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, dotted for nested keys.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what the recipe will do, and stop before its first step.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the hardware has it.")]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Where a model has no safetensors, read pytorch_model.bin: its tensors, never its code.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed, other random choices.")]
MODEL = "A folder, a run folder, a hub id (owner/name or owner/name@revision), minilm or me5-small."
ENCODER = f"{MODEL} Or the address of `moembed serve`, http://host:port."


@contextmanager
def when_interrupted(kept: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(kept()) from None


def environment_tag() -> str | None:
    """The tag of all texts that the environment names, for models that choose experts by it."""
    return os.environ.get("MOEMBED_TAG") or None


def load_model(name: str, dtype: str, allow_pickle: bool = False) -> Embedder:
    """``MOEMBED_TAG`` in the environment is the tag of all texts, for models that choose experts by it."""
    from moembed.embedder import Embedder
    from moembed.folder.bases import locate_base
    from moembed.machine import best_dtype

    folder = locate_base(name, allow_pickle=allow_pickle)
    chosen = best_dtype() if dtype == "auto" else dtype
    model = Embedder.from_pretrained(folder, dtype=chosen, allow_pickle=allow_pickle)
    if tag := environment_tag():
        if model.tags is None:
            raise UserError(f"MOEMBED_TAG is set, and {name} does not choose experts by tags: unset it")
        model.tag = tag
    return model


def connect(url: str, dtype: str | None) -> Client:
    """The model of a server; a ``dtype`` that it does not serve is refused."""
    from moembed.client.model import Client

    served = Client(url)
    if dtype not in (None, "auto", served.dtype):
        raise UserError(f"{url} serves {served.dtype}: leave out --dtype, or start it with --dtype {dtype}")
    if tag := environment_tag():
        if not served.info.tags:
            raise UserError(f"MOEMBED_TAG is set, and {url} does not choose experts by tags: unset it")
        served.tag = tag
    return served


def load_encoder(
    name: str, dtype: str | None, allow_pickle: bool = False
) -> Embedder | StaticEmbedder | Client | ComposedEncoder:
    """``load_model`` for what needs vectors alone, which static word vectors, composed folders and servers
    give too.

    Args:
        dtype: None: float32, or what a server has.
    """
    from moembed.client.connection import is_url

    if is_url(name):
        return connect(name, dtype)
    from moembed.folder.bases import locate_base
    from moembed.folder.modules import is_composed, is_static

    folder = locate_base(name, allow_pickle=allow_pickle)
    if is_static(folder):
        from moembed.inference.static import StaticEmbedder

        return StaticEmbedder.from_pretrained(name)
    if is_composed(folder):
        from moembed.search.composed import read_composed

        return read_composed(folder, lambda part: load_encoder(part, dtype, allow_pickle))
    return load_model(name, dtype or "float32", allow_pickle)
