"""LoRA experts: one feed-forward block that all experts share, and a low-rank change of it for each.

``W_e = W + (alpha / rank) * B_e A_e`` for each matrix of the block, with A_e of ``rank`` rows and B_e of
``rank`` columns (LoRA: Hu et al., arXiv 2106.09685; as experts: MoLoRA, Zadouri et al., arXiv 2309.05444).
The biases are those of the shared block. B starts as zeros, so that every expert starts as the block.

The matrices of the experts are computed in full before they are used: every backend then does what it does
for other experts, at the same time and memory. What is small is the file and what an optimiser holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.moe.ffn import FeedForwardSpec


class LoraSpec(Strict):
    """``rank`` of what every expert adds to each matrix, and ``alpha``: it is multiplied by alpha / rank."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)


class Part(NamedTuple):
    """A matrix of a feed-forward block: the names of the shared one, its bias, the two factors; its shape."""

    name: str  # up, gate or down
    whole: str  # of the experts' matrices in full
    shared: str
    bias: str
    first: str  # A, (E, rank, in)
    second: str  # B, (E, out, rank)
    outputs: int
    inputs: int


def parts(width: int, ffn: FeedForwardSpec) -> list[Part]:
    """The matrices of a block whose states are ``width`` wide."""
    up, gate, down = (
        Part("up", "up_EFD", "up_FD", "up_bias_F", "up_A_ERD", "up_B_EFR", ffn.width, width),
        Part("gate", "gate_EFD", "gate_FD", "gate_bias_F", "gate_A_ERD", "gate_B_EFR", ffn.width, width),
        Part("down", "down_EDF", "down_DF", "down_bias_D", "down_A_ERF", "down_B_EDR", width, ffn.width),
    )
    return [up, gate, down] if ffn.gated else [up, down]


def shapes(part: Part, experts: int, lora: LoraSpec, bias: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of one matrix, by name."""
    found: dict[str, tuple[int, ...]] = {part.shared: (part.outputs, part.inputs)}
    if bias:
        found[part.bias] = (part.outputs,)
    found[part.first] = (experts, lora.rank, part.inputs)
    found[part.second] = (experts, part.outputs, lora.rank)
    return found


def whole(part: Part, lora: LoraSpec, tensor: Callable[[str], Tensor]) -> Tensor:
    """The matrices of all experts, ``(E, out, in)``, in the precision of their tensors under autocast too."""
    shared_OI, first_ERI, second_EOR = tensor(part.shared), tensor(part.first), tensor(part.second)
    with torch.autocast(shared_OI.device.type, enabled=False):
        return torch.baddbmm(
            shared_OI.expand(len(first_ERI), -1, -1), second_EOR, first_ERI, alpha=lora.alpha / lora.rank
        )
