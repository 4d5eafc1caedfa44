"""What a model can be loaded as on this machine: devices and precisions."""

from __future__ import annotations

import torch

from moembed.inference.engine import can_round
from moembed.types import UserError, is_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(device: str) -> None:
    """Raise UserError unless tensors can be made on ``device``."""
    try:
        if torch.empty(0, device=device).is_meta:
            raise UserError(f"the device {device!r} computes no values; choose cpu")
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"there is no device {device!r} here; choose cpu" + (" or cuda" * torch.cuda.is_available())
        ) from None


def check_dtype(dtype: str, device: str) -> None:
    """Raise UserError unless a model can serve in ``dtype`` on ``device``."""
    if dtype not in (*DTYPES, "int8"):
        raise UserError(f"dtype {dtype!r} is not available (known: {', '.join(DTYPES)}, int8)")
    if dtype == "float16" and device == "cpu":
        raise UserError("float16 needs a GPU; on a CPU choose float32, bfloat16 or int8")
    if dtype == "int8" and not (device == "cpu" and can_round()):
        raise UserError("int8 needs a CPU whose PyTorch was built with oneDNN; choose float32 or bfloat16")


def check_limits(batch_tokens: int | None, batch_size: int | None) -> None:
    """Raise UserError unless the limits of one batch are counts, or None."""
    for name, most in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if most is not None and not is_count(most):
            raise UserError(f"{name} must be a whole number of at least 1, not {most!r}")
