"""Weights that lie in a mapped file, and how to give the memory back that reading them took."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_DONTNEED = 4  # of madvise


def release_pages(tensors: Iterable[Tensor]) -> None:
    """Take the pages of tensors that are views of a safetensors file out of memory.

    The next access reads them again from the file. Only for tensors that nobody has changed since they were
    mapped: a change would be lost. Elsewhere than on Linux nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mapped = _mapped_files()
    wanted = set()
    for tensor in tensors:
        if tensor.device.type == "cpu":
            address = tensor.data_ptr()
            wanted |= {(start, end) for start, end in mapped if start <= address < end}
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    for start, end in wanted:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Where the safetensors files lie that this process has mapped."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = (line.split(maxsplit=1)[0].split("-") for line in lines if line.endswith(".safetensors"))
    return [(int(start, 16), int(end, 16)) for start, end in found]
