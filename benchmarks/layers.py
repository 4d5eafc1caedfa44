"""Single layers to time: ours with experts, and the fastest dense block of the same active size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moembed.families.flat import FlatConfig, FlatMoE
from moembed.inference.engine import freeze
from moembed.machine import choose_precision
from moembed.model.encoder import Encoder, initialise
from moembed.moe.layer import MoE
from moembed.moe.router import RouterConfig
from moembed.runs.bench import Timings

WIDTH, HIDDEN, TOP_K = 768, 3072, 2  # of the published model
Layer = Callable[[Tensor], Tensor]


def native(device: str) -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32."""
    return choose_precision("auto", device)


def label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- ours --------------------------------------------------------------------------------------------------


def experts(count: int, dtype: torch.dtype, device: str = "cpu", served: bool = False) -> MoE:
    """The feed-forward block of ``one_layer`` with experts."""
    moe = FlatMoE(
        layers=(0,), num_experts=count, bias="shared", router=RouterConfig(top_k=TOP_K, normalize=None)
    )
    layer = one_layer(dtype, device, served, ffn_width=HIDDEN, moe=moe)
    assert isinstance(layer, MoE)
    return layer


def one_layer(dtype: torch.dtype, device: str, served: bool, **changes: Any) -> nn.Module:
    """The feed-forward block of a random encoder, with fp32 routers as in a loaded model.

    ``served``: in the form in which `Embedder.encode` runs it.
    """
    flat = FlatConfig(vocab_size=1, width=WIDTH, num_layers=1, num_heads=12, ffn_bias=False, **changes)
    encoder = Encoder(flat.spec()).eval()
    initialise(encoder)
    for name, parameter in encoder.named_parameters():
        parameter.data = parameter.to(device, torch.float32 if ".router." in name else dtype)
    if served:
        encoder = freeze(encoder)
    return encoder.layers[0].get_submodule("ffn")


def run(layer: MoE, backend: str = Encoder.moe_backend) -> Layer:
    return lambda hidden_TD: layer(hidden_TD, [len(hidden_TD)], backend)[0]


# ---- the peers ---------------------------------------------------------------------------------------------


def dense(dtype: torch.dtype, device: str = "cpu") -> nn.ParameterList:
    """The two matrices, up and down, of a block as wide as the experts that one token visits."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((TOP_K * HIDDEN, WIDTH), (WIDTH, TOP_K * HIDDEN))
    return nn.ParameterList(
        torch.empty(shape).normal_(0, 0.02, generator=generator).to(device, dtype) for shape in shapes
    )


def plain(up_FD: Tensor, down_DF: Tensor, hidden_TD: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(hidden_TD, up_FD)), down_DF)


def prepacked(up_FD: Tensor, down_DF: Tensor, tokens: int) -> Layer:
    """The same as ``plain``, with an exact GELU inside the first product."""
    up, down = packed_linear(up_FD, tokens, "gelu"), packed_linear(down_DF, tokens)
    return lambda hidden_TD: down(up(hidden_TD))


def packed_linear(weight: Tensor, rows: int, activation: str = "none") -> Layer:
    """``activation(x W')`` with the weight in oneDNN's own blocked layout, as a compiler for CPUs does it."""
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.detach(), rows)
    return lambda hidden_TD: ops._linear_pointwise(hidden_TD, packed, None, activation, [], "none")


def product(rows: int, into: int, out: int) -> Callable[[], object]:
    """One large product in the precision that trains and serves, in the layout that is fastest here."""
    dtype = native("cpu")
    run = packed_linear(torch.randn(out, into, dtype=dtype), rows)
    return partial(run, torch.randn(rows, into, dtype=dtype))


PRODUCTS = {  # whose best is the peak: name, and rows, columns into and out of it
    f"matrix product {shape}": shape for shape in ((4096, 768, 3072), (4096, 3072, 768), (2048, 2048, 2048))
}


def peak(timings: Timings) -> tuple[str, float]:
    """The fastest of ``PRODUCTS`` that were timed, and its floating-point operations."""
    work = {name: 2.0 * math.prod(shape) for name, shape in PRODUCTS.items()}
    best = max(work, key=lambda name: work[name] / timings[name].median)
    return best, work[best]


def slices(layer: MoE, tokens: int, pack: bool) -> Layer:
    """The experts alone: each multiplies an equal share of the routed pairs, which lie ready side by side."""
    share = TOP_K * tokens // len(layer.up_EFD)
    weights = zip(layer.up_EFD.detach().unbind(), layer.down_EDF.detach().unbind(), strict=True)
    each = [prepacked(*pair, share) if pack else partial(plain, *pair) for pair in weights]
    return lambda hidden_PD: torch.cat(
        [expert(part) for expert, part in zip(each, hidden_PD.split(share), strict=True)]
    )


# ---- what is timed -----------------------------------------------------------------------------------------


def batches(tokens: int, dtype: torch.dtype, repeats: int, device: str = "cpu") -> list[Tensor]:
    """Random tokens: one batch for every round that counts, one to warm up."""
    return [torch.randn(tokens, WIDTH, dtype=dtype).to(device) for _ in range(repeats + 1)]


def forward(layer: Layer, fed: Sequence[Tensor]) -> Callable[[], object]:
    """Another batch at every call, so that experts meet numbers of tokens they have not met, as in use."""
    stream = cycle(fed)
    return lambda: layer(next(stream))


def backward(layer: Layer, parameters: nn.Module, fed: Sequence[Tensor]) -> Callable[[], object]:
    """One forward and backward pass, with gradients of the weights and of the input."""
    stream = cycle(fed)

    def step() -> None:
        parameters.zero_grad(set_to_none=True)
        layer(next(stream).detach().requires_grad_()).sum().backward()

    return step
