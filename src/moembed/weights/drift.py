"""How far the tensors of a model moved from those of another: after training, extending, upcycling.

Of a tensor W that became W', ``||W' - W|| / ||W||`` in the Frobenius norm and the cosine of the two as
vectors. T-VEC (arXiv 2504.16460) tells how many of its layers were changed by fine-tuning; only its abstract
was within reach, and the two figures are the plain choice. Both of a group follow from sums over its tensors:
a group is one long vector.

Experts are measured one by one. Where the earlier model has a dense block and the later one experts, each is
held against the block that upcycling made it of, cut as fine-grained experts are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.model.spec import EncoderSpec
from moembed.weights.fine_grained import split_experts

_EXPERTS = re.compile(r"layers\.(\d+)\.ffn\.((?:up|gate|down)_(?:bias_)?E[FD]+)$")
_DENSE = {"EFD": "weight", "EDF": "weight", "bias_EF": "bias", "bias_ED": "bias"}
_KINDS = (  # a part of a name, and what the tensor is
    ("router.", "router"),
    ("norm", "norms"),
    ("attention.", "attention"),
    ("ffn.shared.", "shared experts"),
    ("ffn.", "feed-forward"),
    ("word.", "words"),
    ("position.", "positions"),
    ("token_type.", "token types"),
    ("relative_bias.", "positions"),
)


@dataclass(frozen=True, slots=True)
class Moved:
    """Sums over the values of one tensor or of several: ``(w' - w)^2``, ``w^2``, ``w'^2`` and ``w w'``."""

    change: float = 0.0
    before: float = 0.0
    after: float = 0.0
    product: float = 0.0
    values: int = 0

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> Moved:
        one, other = before.float(), after.float()
        pairs = ((other - one, other - one), (one, one), (other, other), (one, other))
        change, first, second, product = (float((x * y).sum(dtype=torch.float64)) for x, y in pairs)
        return cls(change, first, second, product, one.numel())

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.change + other.change, self.before + other.before, self.after + other.after,
            self.product + other.product, self.values + other.values,
        )  # fmt: skip

    @property
    def relative(self) -> float | None:
        """``||W' - W|| / ||W||``; None: W was zero, and W' is not."""
        if not self.before:
            return None if self.change else 0.0
        return float((self.change / self.before) ** 0.5)

    @property
    def cosine(self) -> float | None:
        """None: one of the two is zero."""
        square = self.before * self.after
        return max(-1.0, min(1.0, self.product / square**0.5)) if square else None


@dataclass(frozen=True, slots=True)
class TensorDrift:
    """One tensor, or its slice of one expert; ``was`` names the tensor it is held against, if not its own."""

    name: str
    layer: int | None
    kind: str
    moved: Moved
    expert: int | None = None
    was: str | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """All that two models have in common, and the names of what only one has, or has in another shape."""

    tensors: list[TensorDrift]
    added: list[str]
    removed: list[str]
    reshaped: list[str]


def drift(
    spec: EncoderSpec,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    word_rows: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Drift:
    """Compare the tensors of two models by name.

    Args:
        spec: of the later model.
        word_rows: rows of ``word.weight`` that stand for the same token, before and after; None: the tables
            are compared as they are.
    """
    tensors: list[TensorDrift] = []
    added, reshaped = [], []
    blocks = {number: _dense_block(spec, number, before) for number in spec.moe_layers}
    sources = set()  # tensors of dense blocks that experts are held against
    for name, tensor in after.items():
        layer, kind = layer_of(name), kind_of(name)
        expert_layer = _EXPERTS.match(name)
        block = blocks.get(int(expert_layer[1])) if expert_layer else None
        if name == "word.weight" and word_rows is not None and name in before:
            if before[name].shape[1:] != tensor.shape[1:]:
                reshaped.append(name)
                continue
            one, other = before[name][list(word_rows[0])], tensor[list(word_rows[1])]
            tensors.append(TensorDrift(name, layer, kind, Moved.of(one, other)))
        elif name in before and before[name].shape != tensor.shape:
            reshaped.append(name)
        elif name in before:
            old = before[name]
            if expert_layer:
                slices = enumerate(zip(old, tensor, strict=True))
                tensors += [TensorDrift(name, layer, kind, Moved.of(*pair), e) for e, pair in slices]
            else:
                tensors.append(TensorDrift(name, layer, kind, Moved.of(old, tensor)))
        elif expert_layer and block and (found := block.get(expert_layer[2])) is not None:
            was = f"layers.{layer}.ffn.{_dense_name(expert_layer[2])}"
            sources.add(was)
            if found.shape[1:] != tensor.shape[1:]:
                reshaped.append(name)
                continue
            for e, part in enumerate(tensor):
                moved = Moved.of(found[e % len(found)], part)
                tensors.append(TensorDrift(name, layer, kind, moved, e, was))
        else:
            added.append(name)
    removed = [name for name in before if name not in after and name not in sources]
    return Drift(tensors, added, removed, reshaped)


def _dense_block(spec: EncoderSpec, number: int, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the experts are made of, of a dense block of the earlier model: as many different ones as the
    block was cut into."""
    layer = spec.layers[number]
    made: dict[str, Tensor] = {}
    for part, letters in (("up", "EFD"), ("gate", "EFD"), ("down", "EDF")):
        if (weight := before.get(f"layers.{number}.ffn.{part}.weight")) is not None:
            made[f"{part}_{letters}"] = weight[None]
        if (bias := before.get(f"layers.{number}.ffn.{part}.bias")) is not None:
            made[f"{part}_bias_{letters[:2]}"] = bias[None]
    if "up_EFD" not in made or layer.moe is None:
        return {}
    parts, left = divmod(made["up_EFD"].shape[1], layer.ffn.width)
    return made if left or parts < 2 else split_experts(made, parts, layer.moe.router.normalize)


def _dense_name(expert: str) -> str:
    part, _, letters = expert.partition("_")
    return f"{part}.{_DENSE[letters]}"


def layer_of(name: str) -> int | None:
    found = re.match(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """What a tensor is, by its name."""
    if _EXPERTS.match(name):
        return "experts"
    first = name.partition(" ")[0]
    if first in ("pooling", "head"):
        return first
    return next((kind for part, kind in _KINDS if part in name), "other")


def grouped(
    tensors: Sequence[TensorDrift],
) -> dict[tuple[int | None, str], Moved]:
    """By layer and kind, the most moved first."""
    groups: dict[tuple[int | None, str], Moved] = {}
    for tensor in tensors:
        key = tensor.layer, tensor.kind
        groups[key] = groups.get(key, Moved()) + tensor.moved
    return dict(sorted(groups.items(), key=lambda item: order(item[1])))


def by_expert(tensors: Sequence[TensorDrift]) -> dict[tuple[int, int], Moved]:
    """By layer and expert, all tensors of the expert together, the most moved first."""
    experts: dict[tuple[int, int], Moved] = {}
    for tensor in tensors:
        if tensor.expert is not None and tensor.layer is not None:
            key = tensor.layer, tensor.expert
            experts[key] = experts.get(key, Moved()) + tensor.moved
    return dict(sorted(experts.items(), key=lambda item: order(item[1])))


def order(moved: Moved) -> float:
    """For sorting: the largest relative change first, what was zero before all."""
    return -float("inf") if moved.relative is None else -moved.relative
