"""The files a model folder is made of: JSON, and tensors that are each checked on the way in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moembed.model.encoder import Encoder, EncoderConfig
from moembed.model.families import Family
from moembed.types import UserError

# Heads and buffers that come with a pretrained checkpoint and play no part in an embedding.
_IGNORED = re.compile(r"^(cls|lm_head|pooler|classifier|qa_outputs)\.|position_ids$|token_type_ids$")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_json(path: Path, kind: type = dict) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(values, kind):
        raise UserError(f"{path} holds a {type(values).__name__} where a {kind.__name__} is expected")
    return values


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder: one, the shards its index names, or none."""
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        return sorted({path / name for name in read_json(index)["weight_map"].values()})
    return [whole] if whole.is_file() else []


def stored_dtypes(path: Path) -> list[str]:
    """The dtypes of the stored tensors, most tensors first, from the headers alone."""
    counts: Counter[str] = Counter()
    for file in weight_files(path):
        with _opened(file) as tensors:
            counts.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118
    return [_DTYPES.get(code, code) for code, _ in counts.most_common()]


def read_state(path: Path, config: EncoderConfig, family: Family) -> dict[str, Tensor]:
    """The tensors of a model folder by our names.

    Raises:
        UserError: no weights, a damaged file, a missing, extra, misshapen or non-finite tensor.
    """
    theirs = _read_tensors(path)
    shapes = tensor_shapes(config)
    table = {ours: stored for ours, stored in family.names(config).items() if ours in shapes}
    if missing := sorted(set(shapes) - set(table)):
        raise UserError(f"{path}: this layout has no place for {missing[0]!r}")
    anchor = table["word.weight"].names[0]
    prefix = next((p for p in family.prefixes if p + anchor in theirs), family.prefixes[0])
    state: dict[str, Tensor] = {}
    for ours, stored in table.items():
        expected = stored.shape(shapes[ours])
        pieces = [_take(theirs, prefix + name, expected, path) for name in stored.names]
        state[ours] = stored.read(pieces, shapes[ours])
    extra = sorted(name for name in theirs if not _IGNORED.search(name.removeprefix(prefix)))
    if extra:
        shown = ", ".join(map(repr, extra[:3])) + (" …" if len(extra) > 3 else "")
        raise UserError(f"{path}: {len(extra)} tensors belong to no part of this model: {shown}")
    return state


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Encoder(config).state_dict().items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    files = weight_files(path)
    if not files and (path / "pytorch_model.bin").is_file():
        raise UserError(f"{path} holds only a pickled checkpoint; convert it to model.safetensors first")
    if not files:
        raise UserError(f"{path} has no model.safetensors")
    found: dict[str, Tensor] = {}
    for file in files:
        with _opened(file) as tensors:
            found |= {_modern(name): tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{file} is missing, truncated or damaged ({error})") from None


def _take(theirs: dict[str, Tensor], name: str, expected: tuple[int, ...], path: Path) -> Tensor:
    if name not in theirs:
        raise UserError(f"{path}: tensor {name!r} is missing")
    tensor = theirs.pop(name)
    if tuple(tensor.shape) != expected:
        raise UserError(f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {expected}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{path}: tensor {name!r} holds NaN or infinite values")
    return tensor


def _modern(name: str) -> str:
    """The first BERT checkpoints name the weight and bias of a norm gamma and beta."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        name = name.replace(old, new)
    return name
