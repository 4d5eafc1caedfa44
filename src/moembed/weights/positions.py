"""Absolute positions -> rotary ones, so that a model can learn to read longer texts."""

from __future__ import annotations

from torch import Tensor

from moembed.model.encoder import EncoderConfig
from moembed.types import UserError


def to_rope(
    config: EncoderConfig, state: dict[str, Tensor], base: float = 10_000.0, max_positions: int = 2048
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Drop the position table and turn queries and keys by their positions instead.

    Every other tensor stays, the token-type rows too, as in the base of Nomic Embed v2 (arXiv 2502.07972).
    The function changes: the model must be pretrained further before it is of use. A model that is rotary
    already only gets the new ``base`` and ``max_positions``.

    Raises:
        UserError: heads of odd width, which have no halves to turn.
    """
    if config.width // config.num_heads % 2:
        raise UserError(f"heads of width {config.width // config.num_heads} cannot be rotary: it is odd")
    changes = {
        "family": config.family if config.position == "rope" else "moembed",
        "position": "rope",
        "position_offset": 0,
        "rope_base": base,
        "max_positions": max_positions,
    }
    return config.model_copy(update=changes), {k: v for k, v in state.items() if k != "position.weight"}
