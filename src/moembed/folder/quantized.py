"""The encoder's weights in few bits: `quantized.safetensors`, in the place of `model.safetensors`.

Other libraries find no weights in such a folder and say so, and read no codes as numbers. Names are ours:
``NAME`` is a tensor as it is, ``NAME.code`` and ``NAME.scale`` are a matrix in groups, ``NAME.e.code`` that
of expert e. The header says the bits and the shape of each matrix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moembed.model.encoder import code_dtypes, tensor_shapes
from moembed.model.group_codes import GROUP, GroupCodes
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

FILE = "quantized.safetensors"
_VERSION = 1

Stored = Tensor | GroupCodes | list[GroupCodes]


def write_quantized(folder: Path, state: Mapping[str, Stored]) -> None:
    tensors: dict[str, Tensor] = {}
    matrices: dict[str, tuple[int, tuple[int, ...]]] = {}
    for name, stored in state.items():
        if isinstance(stored, Tensor):
            tensors[name] = stored.contiguous()
            continue
        single = isinstance(stored, GroupCodes)
        for number, codes in enumerate([stored] if isinstance(stored, GroupCodes) else stored):
            key = name if single else f"{name}.{number}"
            tensors[f"{key}.code"], tensors[f"{key}.scale"] = codes.code, codes.scale
            matrices[key] = (codes.bits, codes.shape)
    header = {"version": _VERSION, "group": GROUP, "matrices": matrices}
    save_file(tensors, folder / FILE, metadata={"format": "pt", "moembed": json.dumps(header)})


def stored_bits(path: Path) -> dict[str, int]:
    """The bits of every matrix of a folder that is in groups, by name, as ``NAME.e`` of expert e; none where
    the folder holds floats.

    Raises:
        UserError: a damaged file.
    """
    file = path / FILE
    if not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get("moembed", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}; quantize the model again") from error
    return {name: bits for name, (bits, _) in header.get("matrices", {}).items()}


def read_quantized(path: Path, spec: EncoderSpec) -> dict[str, Tensor]:
    """The encoder's tensors in float32, by our names.

    Raises:
        UserError: a damaged file, one of another version, a tensor that is missing, left over or of another
            shape, or a number that is not finite.
    """
    file = path / FILE
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get("moembed", "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}; quantize the model again") from error
    if header.get("version") != _VERSION or header.get("group") != GROUP:
        raise UserError(f"{file} is of another version of moembed: quantize the model again")
    state: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for key, (bits, shape) in header["matrices"].items():
        codes = [tensors.pop(f"{key}.{kind}", None) for kind in ("code", "scale")]
        if codes[0] is None or codes[1] is None:
            raise UserError(f"{file}: the matrix {key!r} is missing; quantize the model again")
        weight = _weight(file, key, GroupCodes(codes[0], codes[1], bits, tuple(shape)))
        name, _, number = key.rpartition(".")
        if number.isdigit():
            experts.setdefault(name, {})[int(number)] = weight
        else:
            state[key] = weight
    state |= {name: torch.stack([own[e] for e in sorted(own)]) for name, own in experts.items()}
    codes_of_words = code_dtypes(spec)
    state |= {name: x if name in codes_of_words else x.float() for name, x in tensors.items()}
    for name, expected in tensor_shapes(spec).items():
        if name not in state or tuple(state[name].shape) != tuple(expected):
            raise UserError(
                f"{file}: the tensor {name!r} is missing or of another shape than the config says"
            )
        if not state[name].isfinite().all():
            raise UserError(f"{file}: the tensor {name!r} holds numbers that are not finite")
    if extra := sorted(set(state) - set(tensor_shapes(spec))):
        raise UserError(f"{file}: the tensor {extra[0]!r} belongs to no part of this model")
    return state


def _weight(file: Path, key: str, codes: GroupCodes) -> Tensor:
    try:
        return codes.weight()
    except RuntimeError as error:
        raise UserError(f"{file}: the codes of {key!r} do not fill its shape {list(codes.shape)}") from error
