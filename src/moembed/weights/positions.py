"""Absolute positions -> rotary ones, so that a model can learn to read longer texts."""

from __future__ import annotations

from torch import Tensor

from moembed.model.block import LayerSpec
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec
from moembed.types import UserError


def to_rope(
    spec: EncoderSpec, state: dict[str, Tensor], base: float | None = None, max_positions: int = 2048
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Drop the position table and turn queries and keys by their positions instead.

    Every other tensor stays, the token-type rows too, as in the base of Nomic Embed v2 (arXiv 2502.07972).
    The function changes: the model must be pretrained further before it is of use. A model that is rotary
    already only gets the new ``base`` and ``max_positions``; how its positions are scaled stays. ``base``
    None keeps that of every layer; 10,000 where there is none.

    Raises:
        UserError: heads of odd width, which have no halves to turn.
    """
    odd = (layer.attention.head_size for layer in spec.layers if layer.attention.head_size % 2)
    if (size := next(odd, None)) is not None:
        raise UserError(f"heads of width {size} cannot be rotary: it is odd")

    def rotary(_: int, layer: LayerSpec) -> LayerSpec:
        rope = layer.attention.rope or RopeSpec()
        rope = rope if base is None else rope.model_copy(update={"base": base})
        return layer.model_copy(update={"attention": layer.attention.model_copy(update={"rope": rope})})

    embeddings = spec.embeddings.model_copy(update={"positions": None})
    changed = spec.with_layers(rotary).replace(embeddings=embeddings, max_length=max_positions)
    return changed, {k: v for k, v in state.items() if k != "position.weight"}
