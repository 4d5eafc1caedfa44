"""Fine-grained experts: each expert cut along its hidden units into several that are chosen one by one.

DeepSeekMoE (Dai et al., arXiv 2401.06066) has s times as many experts of 1/s of the hidden width and chooses
s times as many of them, at the same number of parameters and the same computation. A model that is cut so
keeps its function where the s parts of an expert are chosen together: they start with equal rows of the
router, hence with equal scores. He et al. (arXiv 2410.07524) start so, with their "virtual groups", and
rescale the weights too; the factors here are derived below, for every norm of the router.

With the norm q of the router (``normalize``; 1 where it is None), an expert of weight w becomes s experts of
weight ``w * s^(-1/q)`` each. So its output matrix is multiplied by ``s^(1/q)``, and its output bias, which is
added s times, by ``s^(1/q) / s``. The sum of the s parts is then the expert.

Training moves the s rows of the router apart, for each part has a gradient of its own; from then on the
parts of one expert meet different tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moembed.model.block import LayerSpec
from moembed.moe.layer import MoESpec
from moembed.types import UserError


def split_layer(layer: LayerSpec, parts: int) -> LayerSpec:
    """The layer with ``parts`` times as many experts, routed and shared, of that part of the width.

    Raises:
        UserError: the hidden width is no multiple of ``parts``.
    """
    if layer.moe is None or parts == 1:
        return layer
    if layer.ffn.width % parts:
        raise UserError(
            f"granularity {parts} does not divide the hidden width {layer.ffn.width} of a feed-forward "
            "block: take a number that does"
        )
    moe, router = layer.moe, layer.moe.router
    changes: dict[str, Any] = {
        "num_experts": parts * moe.num_experts,
        "num_shared_experts": parts * moe.num_shared_experts,
        "router": router.model_copy(update={"top_k": parts * router.top_k}),
    }
    fine = MoESpec.model_validate(dict(moe) | changes)
    return layer.model_copy(
        update={"ffn": layer.ffn.model_copy(update={"width": layer.ffn.width // parts}), "moe": fine}
    )


def split_experts(made: dict[str, Tensor], parts: int, norm: float | None) -> dict[str, Tensor]:
    """The tensors of one layer, every routed expert cut into ``parts`` s: e becomes e * s .. e * s + s - 1.

    Args:
        made: by name inside the layer, as ``up_EFD``; those of shared experts stay as they are, because a
            shared block of many narrow experts is the block of few wide ones.
        norm: ``normalize`` of the router.
    """
    if parts == 1:
        return made
    gain = parts ** (1 / (norm or 1.0))
    fine = dict(made)
    for name in ("up_EFD", "gate_EFD", "up_bias_EF", "gate_bias_EF"):
        if name in made:
            experts, hidden, *rest = made[name].shape
            fine[name] = made[name].reshape(experts * parts, hidden // parts, *rest)
    experts, width, hidden = made["down_EDF"].shape
    by_part = made["down_EDF"].reshape(experts, width, parts, hidden // parts).transpose(1, 2)
    fine["down_EDF"] = gain * by_part.reshape(experts * parts, width, hidden // parts)
    if "down_bias_ED" in made:
        fine["down_bias_ED"] = gain / parts * made["down_bias_ED"].repeat_interleave(parts, 0)
    for name in ("router.weight_ED", "router.bias_E"):
        if name in made:
            fine[name] = made[name].repeat_interleave(parts, 0)
    return fine
