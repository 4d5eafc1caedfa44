"""Sparse upcycling: a dense encoder -> one with experts (Komatsuzaki et al., arXiv 2212.05055)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict, validate
from moembed.machine import memory_bytes
from moembed.model.encoder import EncoderConfig, num_parameters
from moembed.moe.layer import MoEConfig
from moembed.moe.router import RouterConfig
from moembed.types import UserError


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
    config: EncoderConfig, state: dict[str, Tensor], options: UpcycleConfig
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Replace the dense blocks of every ``options.every``-th layer by experts that are copies of them.

    Shared experts, if asked for, start with a zero output so that they too keep the function.

    Raises:
        UserError: the model has experts already, too few layers, or fewer experts than ``top_k``.
    """
    if config.moe:
        raise UserError("this model has experts already; upcycling starts from a dense one")
    layers = tuple(range(1 % options.every, config.num_layers, options.every))
    if not layers:
        raise UserError(f"every = {options.every} upcycles no layer of a model of {config.num_layers} layers")
    each = options.bias == "each" and config.ffn_bias
    values = {
        "layers": layers,
        "num_experts": options.num_experts,
        "num_shared_experts": options.num_shared_experts,
        "bias": "none" if options.bias == "each" and not each else options.bias,
        "router": options.router,
    }
    moe = validate(MoEConfig, values, where="upcycle")
    made = config.model_copy(update={"moe": moe, "family": "moembed"})
    parameters = num_parameters(made)
    if parameters * 4 > memory_bytes():
        raise UserError(
            f"{moe.num_experts:,} experts make {parameters:,} parameters, which need "
            f"{parameters * 4 / 2**30:,.0f} GiB; this machine has {memory_bytes() / 2**30:,.0f} GiB: "
            "lower num_experts, or raise every"
        )
    generator = torch.Generator().manual_seed(options.seed)
    result = dict(state)
    for layer in layers:
        prefix = f"layers.{layer}.ffn"
        dense = {name: result.pop(name) for name in list(result) if name.startswith(prefix + ".")}
        for part, shape in (("up", "EFD"), ("gate", "EFD"), ("down", "EDF")):
            weight, bias = (dense.get(f"{prefix}.{part}.{x}") for x in ("weight", "bias"))
            if weight is None:
                continue
            result[f"{prefix}.{part}_{shape}"] = weight.repeat(moe.num_experts, 1, 1)
            if each and bias is not None:
                result[f"{prefix}.{part}_bias_{shape[:2]}"] = bias.repeat(moe.num_experts, 1)
            if moe.num_shared_experts:
                copies = moe.num_shared_experts
                silent = part == "down"
                wide = weight.repeat(1, copies) * 0 if silent else weight.repeat(copies, 1)
                result[f"{prefix}.shared.{part}.weight"] = wide
                if moe.bias != "none":
                    start = torch.zeros(len(weight)) if bias is None or silent or not each else bias
                    result[f"{prefix}.shared.{part}.bias"] = start if silent else start.repeat(copies)
        if moe.bias == "shared":
            result[f"{prefix}.bias_D"] = torch.zeros(config.width)
        router_ED = torch.empty(moe.num_experts, config.width)
        result[f"{prefix}.router.weight_ED"] = router_ED.normal_(0, options.router_std, generator=generator)
    return made, result
