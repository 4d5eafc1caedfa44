"""Whether a module is still what it was: its parts, its settings and its values, told in microseconds."""

from __future__ import annotations

import ctypes
from operator import is_

from torch import Tensor, nn

_BYTES = 64  # of every tensor that are compared, at its start and in its middle


class Fingerprint:
    """Remembers a module; ``holds()`` says whether nothing in it has changed since.

    Seen are: another sub-module, parameter, buffer or attribute, any in-place change that PyTorch counts
    (optimisers, ``load_state_dict``, ``copy_``), memory that moved, and an edit of ``.data``, which PyTorch
    does not count, where it reaches the sampled bytes. An edit of ``.data`` elsewhere is not seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self._attributes = [tuple(part.__dict__.values()) for part in self._modules]
        self._children = [tuple(part._modules.values()) for part in self._modules]
        self._own = [(*part._parameters.values(), *part._buffers.values()) for part in self._modules]
        self._tensors = [tensor for own in self._own for tensor in own if tensor is not None]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._versions = [_version(tensor) for tensor in self._tensors]
        self._samples = [sample for tensor in self._tensors for sample in _samples(tensor)]
        self._values = [sample.raw for sample in self._samples]

    def holds(self) -> bool:
        parts = zip(self._modules, self._attributes, self._children, self._own, strict=True)
        for module, attributes, children, own in parts:
            now = (*module._parameters.values(), *module._buffers.values())
            if not (
                _same(tuple(module.__dict__.values()), attributes)
                and _same(tuple(module._modules.values()), children)
                and _same(now, own)
            ):
                return False
        return (
            [tensor.data_ptr() for tensor in self._tensors] == self._addresses
            and [_version(tensor) for tensor in self._tensors] == self._versions
            and [sample.raw for sample in self._samples] == self._values  # only where memory did not move
        )


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _samples(tensor: Tensor) -> list[ctypes.Array[ctypes.c_char]]:
    """Windows onto the memory of a tensor, at its start and in its middle; none onto that of a GPU."""
    size = min(tensor.nbytes, _BYTES)
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not size:
        return []
    starts = {0, (tensor.nbytes - size) // 2}
    window = ctypes.c_char * size
    return [window.from_address(tensor.data_ptr() + start) for start in starts]
