"""A model -> a folder for onnxruntime: the graph from token ids to unit vectors, and all it needs beside.

The files::

    onnx/model.onnx                      the graph; see `moembed.export.onnx.encoder.build`
    onnx/model.onnx_data                 the weights, when they are too large for one file
    tokenizer.json, config.json, ...     as in a sentence-transformers folder without model.safetensors

It is the layout that sentence-transformers (``backend="onnx"``), fastembed and transformers.js look for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.export.onnx.encoder import build
from moembed.export.onnx.tokenizer import read_rows, write_tokenizer
from moembed.files import replacing
from moembed.folder.parts import Parts
from moembed.folder.write import write_small_files
from moembed.model.spec import EncoderSpec
from moembed.packing import pack
from moembed.types import UserError
from moembed.weights.compress_vocabulary import with_whole_vocabulary
from moembed.weights.lora_experts import full_experts
from moembed.weights.selection_bias import remove_selection_bias

ONE_FILE = 2**31 - 2**24  # bytes of weights; a protobuf message ends at 2 GiB, and the graph needs a little
_LONGEST = 1024  # tokens of a row that the check runs
TOLERANCE = 1e-3  # ten times what is promised: a close call between two experts may fall the other way


def export_onnx(
    parts: Parts, out: Path, int8: bool = False, bits: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Write the folder and run what was written: nothing stands at ``out`` that was not compared.

    Args:
        int8: matrix products of 8-bit integers, with a scale per output of the weights and per token of the
            states. Router, attention, norms and embedding tables stay in fp32.
        bits: of the matrices that `moembed quantize` made (`moembed.folder.quantized.stored_bits`): they keep
            them, by an operator of onnxruntime's own.

    Returns:
        ``bytes`` of the weights file(s), and how close onnxruntime came to this package on random token rows
        and on the rows that the written tokenizer makes of short texts and a long one: ``max_error``, the
        largest difference of a coordinate, and ``cosine``, the lowest of a row.

    Raises:
        UserError: onnx or onnxruntime is not installed, an expert-choice router, the disk is full.
        RuntimeError: the written tokenizer gives other tokens than the model's, or the fp32 graph other
            vectors.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs onnx and onnxruntime: pip install 'moembed[onnx]'") from None

    parts = with_whole_vocabulary(parts, "ONNX")
    spec, state = full_experts(parts.spec.without_noise(), parts.state)
    spec, state = remove_selection_bias(spec, state, "ONNX")
    state = {name: tensor.cpu().float() for name, tensor in state.items()}
    head_state = {name: tensor.cpu().float() for name, tensor in parts.head_state.items()}
    parts = replace(parts, spec=spec, state=state, head_state=head_state)
    model = build(parts, int8, bits=bits)
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > ONE_FILE
    with replacing(out) as folder:
        write_small_files(folder, parts)
        write_tokenizer(folder, parts.tokenizer)
        file = folder / "onnx" / "model.onnx"
        file.parent.mkdir()
        onnx.save_model(model, file, save_as_external_data=external, location=f"{file.name}_data")
        del model
        rows = [*_random_rows(parts.spec), *(_shortened(row) for row in read_rows(folder, parts.tokenizer))]
        _require_runs(file, bits)
        error, cosine = compare(file, Embedder(parts).eval(), [row for row in rows if row])
        if not int8 and error > TOLERANCE:
            raise RuntimeError(f"the exported graph is off by {error:.2g}; nothing was written to {out}")
        size = sum(f.stat().st_size for f in file.parent.iterdir())
    return {
        "out": str(out),
        "format": "onnx",
        "int8": int8,
        **({"matrices_in_few_bits": len(bits)} if bits else {}),
        "bytes": size,
        "max_error": error,
        "cosine": cosine,
    }


# ---- running what was written ------------------------------------------------------------------------------


def compare(file: Path, model: Embedder, rows: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Largest difference of a coordinate and lowest cosine between the vectors of file and model."""
    by_length = sorted(rows, key=len)  # the long ones apart: one batch is padded to its longest row
    rows = [list(row) for row in by_length]
    split = len(rows) - 1
    found_BD = np.concatenate([run_rows(file, some) for some in (rows[:split], rows[split:]) if some])
    with torch.inference_mode():
        expected_BD = model(pack(rows)).vector_BM.numpy()
    return float(np.abs(found_BD - expected_BD).max()), float((found_BD * expected_BD).sum(-1).min())


def run_rows(file: Path, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Sentence embeddings of token rows by onnxruntime on the CPU, as one padded batch."""
    from onnxruntime import InferenceSession

    mask_BS = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    token_BS = np.zeros(mask_BS.shape, dtype=np.int64)
    token_BS[mask_BS] = np.concatenate(rows)
    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {"input_ids": token_BS, "attention_mask": mask_BS.astype(np.int64)}
    return np.asarray(session.run(["sentence_embedding"], inputs)[0])


def _require_runs(file: Path, bits: Mapping[str, int] | None) -> None:
    """
    Raises:
        UserError: an onnxruntime that lacks the operator for matrices of so few bits.
    """
    import onnxruntime

    if not bits:
        return
    try:
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are of no public module
        widths = " and ".join(map(str, sorted(set(bits.values()))))
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} does not run matrices of {widths} bits "
            f"({' '.join(str(error).split())}): install a newer one, or export the model that was quantized"
        ) from None


def _shortened(row: list[int]) -> list[int]:
    """A row the check can afford: attention of thousands of tokens takes gigabytes."""
    return row if len(row) <= _LONGEST else [*row[: _LONGEST - 1], row[-1]]


def _random_rows(spec: EncoderSpec, count: int = 32) -> list[list[int]]:
    """Of one token up to 64: enough of them that every expert has work, and some have none in the short."""
    random = np.random.default_rng(0)
    longest = min(64, spec.max_length)
    lengths = [1, *random.integers(1, longest, count, endpoint=True)]
    return [random.integers(spec.vocab_size, size=length).tolist() for length in lengths]
