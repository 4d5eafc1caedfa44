"""Sparse upcycling: a dense encoder -> one with experts (Komatsuzaki et al., arXiv 2212.05055)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict, validate
from moembed.model.block import LayerSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from moembed.weights.size import require_memory


class UpcycleConfig(Strict):
    """Layers ``i`` with ``i % every == 1`` get ``num_experts`` copies of their dense block; 1 means all.

    The defaults keep the function: ``each`` expert carries the dense biases and the chosen weights sum to 1,
    so the upcycled model gives the dense model's vectors. ``bias`` ``shared`` and ``none`` drop the dense
    biases; ``shared`` adds one of zeros per layer. ``published()`` is what Nomic Embed v2 did: a shared bias
    and raw router probabilities.
    """

    num_experts: int = Field(default=8, ge=1)
    every: int = Field(default=2, ge=1)
    bias: Literal["each", "shared", "none"] = "each"
    num_shared_experts: int = Field(default=0, ge=0)
    router: RouterConfig = RouterConfig()
    router_std: float = Field(default=0.02, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @classmethod
    def published(cls) -> UpcycleConfig:
        return cls(bias="shared", router=RouterConfig(normalize=None))


def upcycle(
    spec: EncoderSpec, state: dict[str, Tensor], options: UpcycleConfig
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Replace the dense blocks of every ``options.every``-th layer by experts that are copies of them.

    Shared experts, if asked for, start with a zero output so that they too keep the function.

    Raises:
        UserError: the model has experts already, shares layers, has too few of them, fewer experts than
            ``top_k``, or more than fit into the memory of this machine.
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

    sparse = spec.with_layers(with_experts)
    require_memory(sparse, f"{options.num_experts:,} experts in {len(layers)} layers")
    generator = torch.Generator().manual_seed(options.seed)
    result = dict(state)
    for number in layers:
        prefix, layer = f"layers.{number}.ffn", sparse.layers[number]
        dense = {name: result.pop(name) for name in list(result) if name.startswith(prefix + ".")}
        blocks = {name.removeprefix(prefix + "."): tensor for name, tensor in dense.items()}
        made = _copies(blocks, layer)
        router_ED = torch.empty(options.num_experts, spec.width)
        made["router.weight_ED"] = router_ED.normal_(0, options.router_std, generator=generator)
        result |= {f"{prefix}.{name}": tensor for name, tensor in made.items()}
    return sparse, result


def _experts(layer: LayerSpec, options: UpcycleConfig) -> MoESpec:
    without = options.bias == "each" and not (layer.ffn.bias or layer.ffn.out_bias)
    values = {
        "num_experts": options.num_experts,
        "num_shared_experts": options.num_shared_experts,
        "bias": "none" if without else options.bias,
        "router": options.router,
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
        made[f"{part}_{shape}"] = weight.repeat(moe.num_experts, 1, 1)
        if each:  # a part of the block that has none gets zeros
            own = torch.zeros(len(weight)) if bias is None else bias
            made[f"{part}_bias_{shape[:2]}"] = own.repeat(moe.num_experts, 1)
        if copies := moe.num_shared_experts:
            silent = part == "down"
            made[f"shared.{part}.weight"] = (
                weight.repeat(1, copies) * 0 if silent else weight.repeat(copies, 1)
            )
            if moe.bias != "none":
                start = torch.zeros(len(weight)) if bias is None or silent or not each else bias
                made[f"shared.{part}.bias"] = start if silent else start.repeat(copies)
    if moe.bias == "shared":
        made["bias_D"] = torch.zeros(width)
    return made
