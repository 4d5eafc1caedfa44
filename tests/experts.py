"""A small block of experts, and what two backends of it must have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoE, MoESpec

WIDTH, HIDDEN = 8, 16  # rows of whole 16 bytes in bf16 too, which some backends ask for
SAME = {"rtol": 1e-5, "atol": 1e-5}  # fp32 sums over the pairs of a token or the tokens of an expert


def make_moe(
    seed: int = 0,
    gated: bool = False,
    activation: Any = "gelu",
    width: int = WIDTH,
    hidden: int = HIDDEN,
    **options: Any,
) -> MoE:
    ffn = FeedForwardSpec(width=hidden, activation=activation, gated=gated)
    moe = MoE(width, ffn, MoESpec.model_validate({"num_experts": 4} | options), layer=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return moe.eval()


def convert(moe: MoE, dtype: torch.dtype, device: str = "cpu") -> MoE:
    """Move a block as a loaded model is: its router stays in fp32."""
    for name, parameter in moe.named_parameters():
        parameter.data = parameter.data.to(device, torch.float32 if "router" in name else dtype)
    return moe


def send_to_one(moe: MoE, expert: int) -> None:
    """Route every token of positive states to one expert first."""
    with torch.no_grad():
        moe.router.weight_ED.fill_(-1.0)
        moe.router.weight_ED[expert] = 1.0


def tokens(count: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed + 1000))


def results(moe: MoE, hidden_TD: Tensor, length_B: list[int], backend: str) -> dict[str, Tensor]:
    """The output and the gradient of a weighted sum of it, for the input and for every parameter."""
    hidden_TD = hidden_TD.clone().requires_grad_()
    output_TD, stats = moe(hidden_TD, length_B, backend)
    weight_TD = torch.linspace(-1, 1, output_TD.numel(), device=output_TD.device).view_as(output_TD)
    named = {"input": hidden_TD, **dict(moe.named_parameters())}
    gradients = torch.autograd.grad((output_TD * weight_TD).sum() + stats.z, list(named.values()))
    return {"output": output_TD, **dict(zip(named, gradients, strict=True))}


def assert_one_value(
    moe: MoE, hidden_TD: Tensor, length_B: list[int], backend: str, relative: float = 0.0
) -> None:
    """The backend gives the output and the gradients of ``loop``.

    ``relative``: difference allowed beyond ``SAME``, as a share of the largest value of each tensor.
    """
    expected, found = (results(moe, hidden_TD, length_B, name) for name in ("loop", backend))
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        bound = SAME["atol"] + relative * float(tensor.detach().abs().max())
        assert torch.allclose(found[name], tensor, rtol=SAME["rtol"], atol=bound), name
