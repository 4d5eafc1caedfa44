"""Whether two models were made from one, so that their weights, and their experts, mean the same.

The weights of two models that were trained apart from the start have nothing to do with one another, and
expert 3 of the one is not expert 3 of the other: their mean is no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moembed.model.encoder import skeleton
from moembed.model.spec import EncoderSpec
from moembed.model.tags import Tags
from moembed.moe.router import Router, Routing
from moembed.packing import pack

SAME_WEIGHTS = 0.5  # smallest cosine of all matrices of two models with a common ancestor
SAME_EXPERTS = 0.3  # smallest mean correlation of the use of an expert with that of its namesake
_ROWS, _LENGTH = 64, 24  # of random tokens that both models read


@dataclass(frozen=True, slots=True)
class Kinship:
    """How alike two models are: the cosine of their matrices, and by layer the correlation of expert use."""

    cosine: float
    usage: dict[int, float]

    def objection(self) -> str | None:
        """Why these are no relatives, as the end of a sentence; None: they are."""
        if not self.cosine >= SAME_WEIGHTS:
            return f"the cosine of their weights is {self.cosine:.2f}, below {SAME_WEIGHTS}"
        layer = min(self.usage, key=lambda number: self.usage[number], default=None)
        if layer is not None and not self.usage[layer] >= SAME_EXPERTS:
            return (
                f"in layer {layer} the same tokens go to other experts (correlation of their use "
                f"{self.usage[layer]:.2f}, below {SAME_EXPERTS})"
            )
        return None


def kinship(spec: EncoderSpec, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Kinship:
    """Compare two models of one form."""
    dot, first, second = torch.zeros(3, dtype=torch.float64)
    for name, tensor in one.items():
        if tensor.ndim > 1:
            x, y = tensor.double(), other[name].double()
            dot, first, second = dot + (x * y).sum(), first + x.square().sum(), second + y.square().sum()
    cosine = float(dot / (first * second).sqrt().clamp(min=1e-30))
    return Kinship(cosine, usage_correlation(spec, one, other) if spec.moe_layers else {})


@torch.no_grad()
def usage_correlation(
    spec: EncoderSpec, one: Mapping[str, Tensor], other: Mapping[str, Tensor], seed: int = 0
) -> dict[int, float]:
    """By layer, the mean over experts of the correlation of ``token goes to expert e`` in the two models.

    Both read the same random tokens. Where all tokens go to all experts, the probabilities of the router take
    the place of ``goes to``. An expert that all tokens or none go to, in either model, says nothing; where
    both models use all experts alike, the correlation is 1. Texts have the tags of the model in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(_LENGTH, spec.max_length)
    rows = torch.randint(spec.vocab_size, (_ROWS, length), generator=generator).tolist()
    first, second = (_usage(spec, state, rows) for state in (one, other))
    return {number: _correlation(use_TE, second[number]) for number, use_TE in first.items()}


def _usage(
    spec: EncoderSpec, state: Mapping[str, Tensor], rows: Sequence[Sequence[int]]
) -> dict[int, Tensor]:
    """By layer, 1 where a token goes to an expert: ``(T, E)``."""
    encoder = skeleton(spec)
    encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    encoder.eval()
    tags = Tags.of(spec)
    in_turn = None if tags is None else [number % len(tags.names) for number in range(len(rows))]
    batch = pack(rows, tags=in_turn)
    found: dict[int, Tensor] = {}

    def note(router: nn.Module, _: Any, routing: Routing) -> None:
        assert isinstance(router, Router)
        use_TE = torch.zeros(len(batch.token_T), router.num_experts, dtype=torch.float64)
        everywhere = len(routing.expert_P) == use_TE.numel()
        use_TE[routing.token_P, routing.expert_P] = routing.prob_P.double() if everywhere else 1.0
        found[router.layer] = use_TE

    for module in encoder.modules():
        if isinstance(module, Router):
            module.register_forward_hook(note)
    encoder(batch.token_T, batch.length_B, tag_B=batch.tag_B)
    return found


def _correlation(one_TE: Tensor, other_TE: Tensor) -> float:
    if torch.equal(one_TE, other_TE):
        return 1.0
    one, other = one_TE - one_TE.mean(0), other_TE - other_TE.mean(0)
    spread = (one.square().sum(0) * other.square().sum(0)).sqrt()
    told = spread > 0
    return float(((one * other).sum(0)[told] / spread[told]).mean()) if told.any() else float("nan")
