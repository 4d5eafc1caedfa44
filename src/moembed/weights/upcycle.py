"""Sparse upcycling: a dense encoder -> one with experts (Komatsuzaki et al., arXiv 2212.05055)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moembed.config import validate
from moembed.model.block import LayerSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router_kinds import ROUTERS, Learned
from moembed.types import Batch, UserError
from moembed.weights.fine_grained import split_experts, split_layer
from moembed.weights.lora_experts import lora_start
from moembed.weights.size import require_memory
from moembed.weights.upcycle_clusters import collect_states
from moembed.weights.upcycle_config import UpcycleConfig
from moembed.weights.upcycle_init import INITS, Start

__all__ = ["UpcycleConfig", "upcycle"]


def upcycle(
    spec: EncoderSpec, state: dict[str, Tensor], options: UpcycleConfig, sample: Batch | None = None
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Replace the dense blocks of every ``options.every``-th layer by experts that start as copies of them.

    Shared experts, if asked for, start with a zero output so that they too keep the function. With a
    ``granularity`` above 1 the experts are made whole and then cut into so many parts. ``lora`` experts share
    the dense block, and each starts with a change of zero.

    Args:
        sample: texts whose states are clustered, for ``init`` ``cluster``.

    Raises:
        UserError: the model has experts already, shares layers, has too few of them, fewer experts than
            ``top_k``, or more than fit into the memory of this machine; clusters without a sample, or of one
            with too few different states; a granularity that does not divide the hidden width.
    """
    if spec.moe_layers:
        raise UserError("this model has experts already; upcycling starts from a dense one")
    layers = tuple(range(1 % options.every, spec.num_layers, options.every))
    if not layers:
        raise UserError(f"every = {options.every} upcycles no layer of a model of {spec.num_layers} layers")
    if any(layer.shares is not None for layer in spec.layers):
        raise UserError("this model shares weights between layers, which layers with experts cannot")

    def with_experts(number: int, layer: LayerSpec) -> LayerSpec:
        moe = _experts(layer, options) if number in layers else None
        return layer.model_copy(update={"moe": moe})

    whole = spec.with_layers(with_experts)
    sparse = whole.with_layers(lambda _, layer: split_layer(layer, options.granularity))
    require_memory(sparse, f"{options.num_experts:,} experts in {len(layers)} layers")
    generator, own = (torch.Generator().manual_seed(options.seed) for _ in range(2))
    states = _states(spec, state, options, layers, sample)
    result = dict(state)
    for number in layers:
        prefix, layer = f"layers.{number}.ffn", whole.layers[number]
        dense = {name: result.pop(name) for name in list(result) if name.startswith(prefix + ".")}
        blocks = {name.removeprefix(prefix + "."): tensor for name, tensor in dense.items()}
        made = _copies(blocks, layer)
        if layer.moe is not None and layer.moe.lora is not None:
            made |= lora_start(blocks, spec.width, layer.ffn, layer.moe, own)
        if isinstance(ROUTERS[options.router.kind], Learned):
            router_ED = torch.empty(options.num_experts, spec.width)
            made["router.weight_ED"] = router_ED.normal_(0, options.router_std, generator=generator)
        if options.router.selection_bias:
            made["router.bias_E"] = torch.zeros(options.num_experts)
        INITS[options.init](Start(options, layer.ffn, made, own, states[number]))
        made = split_experts(made, options.granularity, options.router.normalize)
        result |= {f"{prefix}.{name}": tensor for name, tensor in made.items()}
    return sparse, result


def _states(
    spec: EncoderSpec,
    state: dict[str, Tensor],
    options: UpcycleConfig,
    layers: Sequence[int],
    sample: Batch | None,
) -> dict[int, Tensor]:
    """What the dense blocks of these layers meet, where that is looked at."""
    if options.init != "cluster":
        return dict.fromkeys(layers, torch.zeros(0, spec.width))
    if sample is None or not len(sample.token_T):
        raise UserError("init cluster looks at the states of texts: give some, as the pairs of a recipe are")
    return collect_states(spec, state, sample, layers)


def _experts(layer: LayerSpec, options: UpcycleConfig) -> MoESpec:
    without = options.bias == "each" and not (layer.ffn.bias or layer.ffn.out_bias)
    values = {
        "num_experts": options.num_experts,
        "num_shared_experts": options.num_shared_experts,
        "bias": "none" if without else options.bias,
        "router": options.router,
        "lora": options.lora,
    }
    return validate(MoESpec, values, where="upcycle")


def _copies(dense: dict[str, Tensor], layer: LayerSpec) -> dict[str, Tensor]:
    """The tensors of the experts, routed and shared, made of those of a dense block."""
    moe = layer.moe
    assert moe is not None
    each, width = moe.bias == "each", len(dense["down.weight"])
    made: dict[str, Tensor] = {}
    for part, shape in (("up", "EFD"), ("gate", "EFD"), ("down", "EDF")):
        weight, bias = (dense.get(f"{part}.{x}") for x in ("weight", "bias"))
        if weight is None:
            continue
        if moe.lora is None:
            made[f"{part}_{shape}"] = weight.repeat(moe.num_experts, 1, 1)
        if each and moe.lora is None:  # a part of the block that has none gets zeros
            own = weight.new_zeros(len(weight)) if bias is None else bias
            made[f"{part}_bias_{shape[:2]}"] = own.repeat(moe.num_experts, 1)
        if copies := moe.num_shared_experts:
            silent = part == "down"
            made[f"shared.{part}.weight"] = (
                weight.repeat(1, copies) * 0 if silent else weight.repeat(copies, 1)
            )
            if moe.bias != "none":
                start = weight.new_zeros(len(weight)) if bias is None or silent or not each else bias
                made[f"shared.{part}.bias"] = start if silent else start.repeat(copies)
    if moe.bias == "shared":
        made["bias_D"] = dense["down.weight"].new_zeros(width)
    return made
