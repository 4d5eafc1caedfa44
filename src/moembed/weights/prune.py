"""Fewer experts: those that texts use least are taken out, and with each its row of the router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from moembed.folder.parts import Parts
from moembed.model.block import LayerSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router_config import RouterConfig
from moembed.moe.router_kinds import ROUTERS, Learned
from moembed.types import RouterStats, UserError


def require_prunable(moe: MoESpec | None, drop: int) -> None:
    """Raise UserError unless ``drop`` of these experts can be taken out."""
    if moe is None:
        raise UserError("this model has no experts to take out")
    if drop < 1:
        raise UserError(f"{drop} experts to take out are none: ask for at least 1")
    if not isinstance(ROUTERS[moe.router.kind], Learned):
        raise UserError(
            f"the router {moe.router.kind} sends every token to an expert by name, so none can be taken out"
        )
    left, least = moe.num_experts - drop, moe.experts_per_token if not moe.router.merges else 1
    if left < least:
        raise UserError(
            f"a token visits {least} of the {moe.num_experts} experts, so no more than "
            f"{moe.num_experts - least} can be taken out, and {drop} were asked for"
        )


def shares(stats: RouterStats, router: RouterConfig) -> list[float]:
    """What each expert of a layer has of all visits.

    Where all have as many by rule (they choose as many tokens each, or are averaged for every text), what it
    has of the probability of the router.
    """
    by_rule = router.merges or router.kind == "expert_choice"
    sum_E = (stats.prob_E if by_rule else stats.count_E).double()
    found: list[float] = (sum_E / sum_E.sum()).tolist()
    return found


def least_used(load_E: Sequence[float], drop: int) -> list[int]:
    """The ``drop`` experts with the smallest share, of equal ones the last, in order."""
    ranked = sorted(range(len(load_E)), key=lambda expert: (load_E[expert], -expert))
    return sorted(ranked[:drop])


def prune(parts: Parts, dropped: Mapping[int, Sequence[int]]) -> Parts:
    """The model without some experts of its layers, as many in each.

    The router chooses among the others as it did before. A token that visits none of the dropped experts has
    the same output where its weights are normalised over the chosen (``normalize``); where they are not, the
    softmax is over fewer experts, so all weights grow.

    Args:
        dropped: by the number of the layer.

    Raises:
        UserError: see `require_prunable`.
    """
    counts = {len(set(experts)) for experts in dropped.values()}
    if set(dropped) != set(parts.spec.moe_layers) or len(counts) != 1:
        raise ValueError("as many experts are taken out of every layer that has any")
    (drop,) = counts
    require_prunable(parts.spec.moe, drop)

    def fewer(_: int, layer: LayerSpec) -> LayerSpec:
        if layer.moe is None:
            return layer
        small = dict(layer.moe) | {"num_experts": layer.moe.num_experts - drop}
        return layer.model_copy(update={"moe": MoESpec.model_validate(small)})

    state = {name: _without(name, tensor, dropped) for name, tensor in parts.state.items()}
    return replace(parts, spec=parts.spec.with_layers(fewer), state=state)


def _without(name: str, tensor: Tensor, dropped: Mapping[int, Sequence[int]]) -> Tensor:
    """Names end in the letters of their shape, and E comes first: up_EFD, router.weight_ED."""
    kind, _, rest = name.partition(".")
    layer = int(rest.partition(".")[0]) if kind == "layers" else -1
    letters = name.rpartition("_")[2]
    if layer not in dropped or not letters.isupper() or not letters.startswith("E"):
        return tensor
    kept = [expert for expert in range(len(tensor)) if expert not in set(dropped[layer])]
    return tensor[kept].contiguous()
