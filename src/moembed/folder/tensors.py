"""The tensors of a model folder, each checked on the way in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moembed.families.mapping import by_their_names
from moembed.families.registry import Family
from moembed.files import read_json
from moembed.model.encoder import code_dtypes, tensor_shapes
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

# Heads and buffers that come with a pretrained checkpoint and play no part in an embedding.
_IGNORED = re.compile(r"^(cls|lm_head|pooler|classifier|qa_outputs)\.|position_ids$|token_type_ids$")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def weight_files(path: Path, allow_pickle: bool = False) -> list[Path]:
    """The weight files of a model folder: one, the shards its index names, or none.

    Safetensors; pickles only where there are none and ``allow_pickle`` says so.

    Raises:
        UserError: an index that names anything but such files beside it.
    """
    for name in (_SAFE, _PICKLED) if allow_pickle else (_SAFE,):
        whole, index = path / name, path / f"{name}.index.json"
        if whole.is_file():  # it wins over an index beside it, as in transformers
            return [whole]
        if index.is_file():
            return [path / shard for shard in _shards(index, whole.suffix)]
    return []


def _shards(index: Path, suffix: str) -> list[str]:
    table = read_json(index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or any(Path(name).name != name or Path(name).suffix != suffix for name in names):
        raise UserError(f"{index}: weight_map must name {suffix} files of the same folder, and nothing else")
    return names


def stored_dtypes(path: Path, allow_pickle: bool = False) -> list[str]:
    """The dtypes of the stored tensors, most tensors first; of safetensors from the headers alone."""
    counts: Counter[str] = Counter()
    for file in weight_files(path, allow_pickle):
        if file.suffix == ".bin":
            counts.update(str(tensor.dtype).removeprefix("torch.") for tensor in _unpickle(file).values())
            continue
        with _opened(file) as tensors:
            codes = (tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118
            counts.update(_DTYPES.get(code, code) for code in codes)
    return [dtype for dtype, _ in counts.most_common()]


def read_state(
    path: Path, spec: EncoderSpec, family: Family, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """The tensors of a model folder by our names.

    Raises:
        UserError: no weights, a pickle that is not allowed, a damaged file, a missing, extra, misshapen or
            non-finite tensor, or one of integers.
    """
    return by_our_names(read_all(path, allow_pickle), path, spec, family)


def by_our_names(
    theirs: dict[str, Tensor], path: Path, spec: EncoderSpec, family: Family
) -> dict[str, Tensor]:
    """Tensors by the names of a family -> the same by ours, each checked; ``theirs`` is used up.

    Raises:
        UserError: as in ``read_state``.
    """
    shapes = tensor_shapes(spec)
    table = {ours: stored for ours, stored in family.names(spec).items() if ours in shapes}
    if missing := sorted(set(shapes) - set(table)):
        raise UserError(f"{path}: this layout has no place for {missing[0]!r}")
    words = next(name for name in table if name.startswith("word."))
    anchor = table[words].names[0]
    codes = code_dtypes(spec)
    prefix = next((p for p in family.prefixes if p + anchor in theirs), family.prefixes[0])
    state: dict[str, Tensor] = {}
    parted: dict[str, Tensor] = {}  # those that several of ours are parts of
    for ours, stored in table.items():
        wanted = zip(stored.names, stored.shapes(shapes[ours]), strict=True)
        pieces = [
            parted[name] if name in parted else take(theirs, prefix + name, expected, path, codes.get(ours))
            for name, expected in wanted
        ]
        parted |= dict(zip(stored.names, pieces, strict=True)) if stored.part[1] > 1 else {}
        state[ours] = stored.read(pieces, shapes[ours])
    bare = {name: name.removeprefix(prefix) for name in theirs}
    extra = sorted(
        name for name, x in bare.items() if not (_IGNORED.search(x) or x.startswith(family.left_out))
    )
    if extra:
        shown = ", ".join(map(repr, extra[:3])) + (" …" if len(extra) > 3 else "")
        raise UserError(f"{path}: {len(extra)} tensors belong to no part of this model: {shown}")
    return state


def layout_tensors(spec: EncoderSpec, state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The tensors of an encoder by the names of a layout, on the CPU.

    Raises:
        UserError: a tensor that the layout has no place for.
    """
    found = by_their_names(state, family.names(spec), family.name)
    return {family.prefixes[0] + name: tensor.contiguous() for name, tensor in found.items()}


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], allow_pickle: bool = False
) -> dict[str, Tensor]:
    """The tensors of these names and shapes, which are all that a folder holds.

    Raises:
        UserError: as in ``read_state``.
    """
    theirs = read_all(path, allow_pickle)
    found = {name: take(theirs, name, shape, path) for name, shape in shapes.items()}
    if theirs:
        raise UserError(f"{path}: the tensor {next(iter(theirs))!r} belongs to no part of this module")
    return found


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file that ``read_tensors`` reads."""
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def read_all(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a model folder, by the names they have there.

    Raises:
        UserError: no weights, a pickle that is not allowed, a damaged file.
    """
    files = weight_files(path, allow_pickle)
    if not files:
        raise UserError(_no_weights(path, allow_pickle))
    found: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".bin":
            _add(found, _unpickle(file), file)
            continue
        _add(found, read_file(file), file)
    return found


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by the names it has.

    Raises:
        UserError: it is missing, truncated or damaged.
    """
    with _opened(file) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def _add(found: dict[str, Tensor], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Add the tensors of one file, by the names that are in use today."""
    for stored, tensor in tensors.items():
        name = _modern(stored)
        if name in found:
            raise UserError(f"{file}: there are two tensors {name!r}, and nothing says which one counts")
        found[name] = tensor


def _no_weights(path: Path, allow_pickle: bool) -> str:
    if allow_pickle:
        return f"{path} has neither {_SAFE} nor {_PICKLED}"
    way = "--allow-pickle (allow_pickle in Python and recipes)"
    pickled = (path / name for name in (_PICKLED, f"{_PICKLED}.index.json"))
    if file := next((file for file in pickled if file.is_file()), None):
        return f"{file} is a pickle: have its tensors read, and none of its code run, with {way}"
    return f"{path} has no {_SAFE}; a {_PICKLED} is looked for only with {way}"


def _unpickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle. Whatever else it names is refused by ``weights_only``, not called.

    They are copied: in a pickle tensors may overlap, and training one would then move another.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        layout = torch.contiguous_format
        return {
            str(name): tensor.detach().cpu().clone(memory_format=layout) for name, tensor in found.items()
        }
    except Exception:  # any kind, for a file of other bytes; torch's own words advise to switch the guard off
        raise UserError(
            f"{file} is missing, damaged, or holds more than tensors by name; nothing in it was run"
        ) from None


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{file} is missing, truncated or damaged ({error})") from None


def take(
    theirs: dict[str, Tensor],
    name: str,
    expected: tuple[int, ...],
    path: Path,
    code: torch.dtype | None = None,
) -> Tensor:
    """The tensor ``name``, checked and removed from ``theirs``; ``code`` is its type where it holds codes."""
    if name not in theirs:
        raise UserError(f"{path}: tensor {name!r} is missing")
    tensor = theirs.pop(name)
    if tuple(tensor.shape) != expected:
        raise UserError(f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {expected}")
    if tensor.dtype not in (_FLOATS if code is None else (code,)):
        wanted = "float32, bfloat16 or float16" if code is None else _plain(code)
        raise UserError(f"{path}: tensor {name!r} has dtype {_plain(tensor.dtype)}, expected {wanted}")
    # one pass without a copy: a sum is finite only of finite values, though not of all of them
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise UserError(f"{path}: tensor {name!r} holds NaN or infinite values")
    return tensor


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _modern(name: str) -> str:
    """The first BERT checkpoints name the weight and bias of a norm gamma and beta."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        name = name.replace(old, new)
    return name
