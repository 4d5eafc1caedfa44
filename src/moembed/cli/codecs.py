"""`moembed index compress, bridge`: vectors of an index as codes, and another model that searches them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moembed.cli.options import ENCODER, AllowPickle, Json, load_encoder
from moembed.console import print_json, progress_bar, say
from moembed.types import UserError

CODEC = "int8, binary, float16, or with --bits-per-dim bebr, pq, opq, lsh (or bebr:2)."
BitsPerDim = Annotated[
    int | None, typer.Option(min=1, max=8, help="Of a codec that takes them, such as bebr.")
]


def codec_name(codec: str, bits_per_dim: int | None) -> str:
    """The full name of a codec, ``bebr:2``, of its two options.

    Raises:
        UserError: bits that are said twice, a codec that does not exist.
    """
    from moembed.search.codecs import codec_kind

    if bits_per_dim is not None and ":" in codec:
        raise UserError(f"--codec {codec} says its bits already: leave --bits-per-dim out")
    name = codec if bits_per_dim is None else f"{codec}:{bits_per_dim}"
    codec_kind(name)
    return name


def compress(
    path: Annotated[Path, typer.Argument(help="Folder of the index.", metavar="INDEX")],
    codec: Annotated[str, typer.Option(help=CODEC)],
    bits_per_dim: BitsPerDim = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is learned.")] = 0,
    json_: Json = False,
) -> None:
    """Store the vectors of an index as codes, learned from these vectors alone; the floats are gone then.

    Later rows get the same codes. Copy the folder before if you want to keep the floats.

    Example: `moembed index compress corpus.index --codec bebr --bits-per-dim 2`
    """
    from moembed.search.index_compress import compress_index
    from moembed.search.index_manifest import index_folder

    name = codec_name(codec, bits_per_dim)
    if name.startswith("bebr"):
        say("learning the codes …")
    found = compress_index(index_folder(path), name, seed=seed)
    print_json({**asdict(found), "path": str(found.path), "message": str(found)}) if json_ else print(found)


def bridge(
    path: Annotated[Path, typer.Argument(help="Folder of an index of bebr codes.", metavar="INDEX")],
    model: Annotated[str, typer.Option(help=f"That is to search it, too. {ENCODER}")],
    seed: Annotated[int, typer.Option(min=0, help="Of the rows, and of what is learned.")] = 0,
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Let a new model search the codes of an old one: up to 20,000 texts are embedded, all rows stay.

    Then `moembed search INDEX … --model NEW`.

    Example: `moembed index bridge corpus.index --model runs/better`
    """
    from moembed.search.index_bridge import bridge_index
    from moembed.search.index_manifest import index_folder

    encoder = load_encoder(model, None, allow_pickle)
    name = str(Path(model).absolute()) if Path(model).exists() else model
    found = bridge_index(index_folder(path), encoder, model_path=name, seed=seed, progress=progress_bar)
    print_json({**asdict(found), "path": str(found.path), "message": str(found)}) if json_ else print(found)
