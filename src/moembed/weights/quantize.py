"""Matrices in groups of 8 or 4 bits, and which part of a model gets how many.

A part is the matrices of one layer, or one routed expert of it. Parts are ordered by a score; the first
get the higher number of bits, while the mean over all weights is at most the one asked for.

Source: *Layer-Wise Quantization* (arXiv 2406.17415) for both scores, from its abstract and our notes; the
form per expert, weighted by how often a router chooses it, is ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model.encoder import Encoder
from moembed.model.group_codes import GroupCodes
from moembed.model.spec import EncoderSpec
from moembed.types import Batch, UserError

VOCABULARY_BITS = 8  # of the table of words, which is no part of the mean
HIGH, LOW = 8, 4
_EXPERTS = re.compile(r"^layers\.(\d+)\.ffn\.\w+_E(FD|DF)$")
_MATRIX = re.compile(r"^layers\.(\d+)\.(?!.*router)(?!.*norm).*weight$")


# ---- parts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """The matrices of a layer, or those of one of its routed experts."""

    layer: int
    expert: int | None
    names: tuple[str, ...]
    num_weights: int

    @property
    def name(self) -> str:
        return f"layer {self.layer}" + ("" if self.expert is None else f", expert {self.expert}")

    def tensors(self, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for name in self.names:
            yield state[name] if self.expert is None else state[name][self.expert]


def parts_of(state: Mapping[str, Tensor]) -> list[Part]:
    """Every part of an encoder, in the order of its layers. Routers, norms and biases are in none."""
    names: dict[tuple[int, int], list[str]] = {}
    for name, tensor in state.items():
        if found := _EXPERTS.match(name):
            for expert in range(len(tensor)):
                names.setdefault((int(found[1]), expert), []).append(name)
        elif (found := _MATRIX.match(name)) and tensor.ndim == 2:
            names.setdefault((int(found[1]), -1), []).append(name)
    made = []
    for (layer, expert), own in sorted(names.items()):
        part = Part(layer, None if expert < 0 else expert, tuple(own), 0)
        size = sum(tensor.numel() for tensor in part.tensors(state))
        made.append(Part(layer, part.expert, part.names, size))
    return made


# ---- scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a calibration set shows: of every layer the mean cosine of a token's states before and after it,
    and, where it has experts, the share of its choices that each expert gets."""

    cosine_L: list[float]
    share_E: dict[int, list[float]]


@torch.no_grad()
def look(encoder: Encoder, batches: Sequence[Batch]) -> Seen:
    """Means over all tokens of the batches. States are those that a model cut there would give, so both sides
    of a comparison are normalised alike."""
    layers, spec = encoder.spec.num_layers, encoder.spec
    cosine_L, tokens = torch.zeros(layers, dtype=torch.float64), 0
    chosen: dict[int, Tensor] = {}
    for batch in batches:
        hidden, stats = encoder(batch.token_T, batch.length_B, range(layers + 1), tag_B=batch.tag_B)
        for layer in range(layers):
            cosine_T = F.cosine_similarity(hidden[layer].float(), hidden[layer + 1].float(), dim=-1)
            cosine_L[layer] += cosine_T.double().sum()
        tokens += len(batch.token_T)
        for layer, routing in zip(spec.moe_layers, stats, strict=True):
            chosen[layer] = chosen.get(layer, torch.zeros(())) + routing.count_E.double()
    shares = {layer: (count_E / count_E.sum()).tolist() for layer, count_E in chosen.items()}
    return Seen((cosine_L / tokens).tolist(), shares)


def lim(part: Part, state: Mapping[str, Tensor], seen: Seen) -> float:
    """``1 - cos(h_in, h_out)``: how far a layer moves the states; LIM but for the constant."""
    return 1 - seen.cosine_L[part.layer]


def zd(part: Part, state: Mapping[str, Tensor], seen: Seen) -> float:
    """``1 - |{w : (w - mean) / sd > 1}| / N``, mean and sd over the weights of the part: few large weights
    make it important."""
    weight = torch.cat([tensor.flatten().float() for tensor in part.tensors(state)])
    return 1 - float((weight > weight.mean() + weight.std()).float().mean())


SCORES: dict[str, Callable[[Part, Mapping[str, Tensor], Seen], float]] = {"lim": lim, "zd": zd}


def importance(part: Part, state: Mapping[str, Tensor], seen: Seen, score: str) -> float:
    """The score of a part; that of an expert times its share of the choices over an equal share."""
    found = SCORES[score](part, state, seen)
    if part.expert is not None:
        share_E = seen.share_E[part.layer]
        found *= share_E[part.expert] * len(share_E)
    return found


# ---- bits --------------------------------------------------------------------------------------------------

ORDERS = ("score", "reverse", "random")


def ordered(parts: Sequence[Part], score: Sequence[float], order: str = "score", seed: int = 0) -> list[int]:
    """Row numbers of the parts, those that get more bits first; the other orders are for comparing."""
    rows = sorted(range(len(parts)), key=lambda row: -score[row])
    if order == "reverse":
        rows.reverse()
    elif order == "random":
        random.Random(seed).shuffle(rows)
    elif order != "score":
        raise UserError(f"order {order!r} is none of {', '.join(ORDERS)}")
    return rows


def assign(parts: Sequence[Part], rows: Sequence[int], avg_bits: float) -> list[int]:
    """Bits of every part: ``HIGH`` in the order of ``rows`` wherever the mean stays at most ``avg_bits``.

    Raises:
        UserError: a mean that these two widths cannot have.
    """
    if not LOW <= avg_bits <= HIGH:
        raise UserError(f"avg_bits {avg_bits} is not between {LOW} and {HIGH}, the widths there are")
    total = sum(part.num_weights for part in parts)
    room = (avg_bits - LOW) * total / (HIGH - LOW)
    bits = [LOW] * len(parts)
    for row in rows:
        if parts[row].num_weights <= room + 1e-9:
            bits[row] = HIGH
            room -= parts[row].num_weights
    return bits


def mean_bits(parts: Sequence[Part], bits: Sequence[int]) -> float:
    """Bits of a weight on average, scales not counted."""
    total = sum(part.num_weights for part in parts)
    return sum(part.num_weights * width for part, width in zip(parts, bits, strict=True)) / total


def quantize(
    state: Mapping[str, Tensor], parts: Sequence[Part], bits: Sequence[int]
) -> dict[str, Tensor | GroupCodes | list[GroupCodes]]:
    """Every tensor of an encoder: codes, those of every expert, or itself where it is in no part."""
    found: dict[str, Tensor | GroupCodes | list[GroupCodes]] = dict(state)
    if "word.weight" in state:  # else it is compressed already, and stays so
        found["word.weight"] = GroupCodes.of(state["word.weight"], VOCABULARY_BITS)
    for part, width in zip(parts, bits, strict=True):
        for name, tensor in zip(part.names, part.tensors(state), strict=True):
            codes = GroupCodes.of(tensor, width)
            if part.expert is None:
                found[name] = codes
            else:
                own = found[name]
                found[name] = [*(own if isinstance(own, list) else []), codes]
    return found


def require_quantizable(spec: EncoderSpec) -> None:
    """Raises UserError: experts that are one block and low-rank changes, whose sum is what computes."""
    if any(layer.moe and layer.moe.lora for layer in spec.layers):
        raise UserError("LoRA experts share one block, so none of them has bits of its own: merge them first")
