"""`moembed export`: a model in the form another runtime reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moembed.cli.options import MODEL, AllowPickle, Json, Overwrite
from moembed.console import print_json, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.folder.parts import Parts


def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Argument(help="Folder to write; for gguf, the file.")],
    format: Annotated[Literal["nomic", "onnx", "gguf"], typer.Option(help="Who shall read it.")],
    int8: Annotated[bool, typer.Option("--int8", help="onnx: matrices of 8-bit integers.")] = False,
    type_: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--type", help="gguf: type of the matrices.")
    ] = "f16",
    fold_expert_bias: Annotated[
        bool,
        typer.Option(
            "--fold-expert-bias/--drop-expert-bias",
            help="gguf: llama.cpp reads no expert bias; fold it, exactly, into what it reads.",
        ),
    ] = True,
    allow_pickle: AllowPickle = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write a model for another runtime: the layout of Nomic Embed v2 (TEI, vLLM), ONNX, or GGUF (llama.cpp).

    What was written is compared with the model, and the difference is printed.

    Example: `moembed export runs/demo demo.onnx --format onnx`
    """
    from moembed.files import require_replaceable
    from moembed.folder.bases import locate_base
    from moembed.folder.modules import encoder_folder
    from moembed.folder.quantized import stored_bits
    from moembed.folder.read import read_folder

    if int8 and format != "onnx":
        raise UserError(f"--int8 does nothing for --format {format}")
    folder = locate_base(model, None, allow_pickle)
    parts, bits = read_folder(folder, allow_pickle), stored_bits(encoder_folder(folder))
    if bits and (format != "onnx" or int8):
        what = "--int8 rounds again" if int8 else f"{format} gets as floats"
        say(f"note: {model} is in few bits, which {what}")
    if format == "gguf":
        if out.exists() and not overwrite:
            raise UserError(f"{out} already exists: choose another name, or replace it with --overwrite")
    else:
        require_replaceable(out, overwrite)
    if format == "onnx":
        from moembed.export.onnx.export import export_onnx

        facts = export_onnx(parts, out, int8, None if int8 else bits)
    else:
        facts = _write(parts, out, format, type_, fold_expert_bias)
    if json_:
        print_json(facts)
    else:
        print("  ".join(f"{key} {_shown(value)}" for key, value in facts.items()))


def _write(parts: Parts, out: Path, format: str, type_: Any, fold: bool) -> dict[str, Any]:
    if format == "gguf":
        from moembed.export.gguf.export import export_gguf

        return export_gguf(parts, out, type_, fold)
    from moembed.export.nomic import to_nomic
    from moembed.folder.write import write_folder

    nomic = to_nomic(parts)
    write_folder(out, nomic)
    return {"out": str(out), "format": format, "tensors": len(nomic.state)}


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
