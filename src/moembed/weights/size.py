"""Whether a model fits into this machine, asked before its tensors are made."""

from __future__ import annotations

from moembed.machine import memory_bytes
from moembed.model.encoder import num_parameters
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

_FLOAT = 4  # bytes of a float32


def require_memory(spec: EncoderSpec, what: str) -> None:
    """Refuse a model whose float32 tensors alone are more than the memory of this machine.

    Raises:
        UserError: it is; the sentence names ``what`` makes it so large.
    """
    needed, there = _FLOAT * num_parameters(spec), memory_bytes()
    if needed > there:
        raise UserError(
            f"{what} make a model of {needed:,} bytes, but this machine has a memory of {there:,} "
            "bytes: ask for fewer"
        )
