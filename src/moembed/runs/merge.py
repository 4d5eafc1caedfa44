"""`moembed merge`: model folders in, one model folder out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from moembed.console import say
from moembed.embedder import Embedder
from moembed.files import require_replaceable
from moembed.folder.bases import base_name, read_base
from moembed.folder.parts import Parts
from moembed.model.spec import differences
from moembed.report.card import write_card
from moembed.runs.probe import PairProbe
from moembed.types import UserError
from moembed.weights.ancestry import kinship
from moembed.weights.compress_vocabulary import require_whole_vocabulary
from moembed.weights.lora_experts import full_experts
from moembed.weights.merge import State, arithmetic, average, normalised, slerp, ties
from moembed.weights.self_positioning import Position, place, self_position

Method = Literal["average", "arithmetic", "ties", "slerp", "self_positioning"]
NEEDS_BASE = ("arithmetic", "ties")
TAKES_BASE = (*NEEDS_BASE, "self_positioning")


@dataclass(frozen=True, slots=True)
class MergePlan:
    """How models are merged; ``moembed.weights.merge`` says what each value means.

    Attributes:
        weights: of each model; None: as much of each, and for ``arithmetic`` 1 / n.
        base: the common ancestor, for ``arithmetic`` and ``ties``, and where given for ``self_positioning``.
        scale, density: of the task vectors.
        probe: for ``self_positioning``, pairs whose loss finds weights, and with a base the scale.
    """

    method: Method = "average"
    weights: tuple[float, ...] | None = None
    base: str | None = None
    scale: float = 1.0
    density: float = 0.2
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """What was made, and how alike its parents are: for each after the first, the cosine of their matrices
    and the smallest correlation of expert use (None: no experts). ``position``: of ``self_positioning``."""

    out: str
    method: str
    parameters: int
    cosine: list[float]
    usage: list[float | None]
    position: Position | None = None


def merge(
    models: Sequence[str], out: str | Path, plan: MergePlan = MergePlan(), overwrite: bool = False
) -> Merged:
    """Merge embedding models of one form and a common ancestor, and write the result to ``out``.

    Tokenizer, prompts and whatever else is no tensor are those of the first model.

    Raises:
        UserError: fewer than two models, models of another form or vocabulary, without a common ancestor, a
            method that lacks its base or gets one, weights that do not fit.
    """
    weights = checked_weights(models, plan)
    require_replaceable(Path(out), overwrite)
    names = [*models, *([plan.base] if plan.base else [])]
    parts = [_with_full_experts(name, read_base(name)) for name in names]
    first = parts[0]
    for name, other in zip(names[1:], parts[1:], strict=True):
        _require_same_form(names[0], first, name, other)
    found = [kinship(first.spec, first.state, other.state) for other in parts[1:]]
    for name, relation in zip(names[1:], found, strict=True):
        if objection := relation.objection():
            raise UserError(f"{names[0]} and {name} have no common ancestor: {objection}")

    # encoder, pooling and head go the same way
    states = [
        {f"encoder {name}": tensor for name, tensor in part.state.items()}
        | {f"pooling {name}": tensor for name, tensor in part.pooling_state.items()}
        | {f"head {name}": tensor for name, tensor in part.head_state.items()}
        for part in parts
    ]
    position = None
    if plan.probe:
        base = states[-1] if plan.base else None
        position = self_position(states[: len(models)], base, PairProbe(plan.probe, first))
        result = place(states[: len(models)], position.weights, position.scale, base)
    else:
        result = _METHODS[plan.method](states[: len(models)], weights, states[-1], plan)
    if wrong := [name for name, tensor in result.items() if not tensor.isfinite().all()]:
        raise UserError(f"the merged {wrong[0]!r} holds infinite values: give smaller weights")

    def of(kind: str) -> dict[str, Tensor]:
        start = f"{kind} "
        return {name.removeprefix(start): x for name, x in result.items() if name.startswith(start)}

    made = Embedder(replace(first, state=of("encoder"), pooling_state=of("pooling"), head_state=of("head")))
    made.save_pretrained(out)
    write_card(Path(out), str(out), base_name(models[0]))
    usage = [min(relation.usage.values(), default=None) for relation in found]
    return Merged(
        str(out), plan.method, made.num_parameters(), [round(x.cosine, 4) for x in found],
        [None if value is None else round(value, 4) for value in usage], position,
    )  # fmt: skip


_METHODS: dict[str, Callable[[Sequence[State], Sequence[float], State, MergePlan], dict[str, Tensor]]] = {
    "average": lambda states, weights, base, plan: average(states, weights),
    "arithmetic": lambda states, weights, base, plan: arithmetic(states, weights, base, plan.scale),
    "ties": lambda states, weights, base, plan: ties(states, weights, base, plan.scale, plan.density),
    "slerp": lambda states, weights, base, plan: slerp(states[0], states[1], normalised(weights)[1]),
}


def _with_full_experts(name: str, parts: Parts) -> Parts:
    """Merged factors would give other products than merged matrices."""
    if not any(layer.moe and layer.moe.lora for layer in parts.spec.layers):
        return parts
    say(f"note: the LoRA experts of {name} are merged as full experts")
    spec, state = full_experts(parts.spec, parts.state)
    return replace(parts, spec=spec, state=state)


def checked_weights(models: Sequence[str], plan: MergePlan) -> list[float]:
    """The weights, where the plan fits the models.

    Raises:
        UserError: it does not.
    """
    if len(models) < 2:
        raise UserError("merging takes at least two models")
    if plan.method == "slerp" and len(models) != 2:
        raise UserError(f"slerp goes from one model to another, and {len(models)} were given")
    if plan.method in NEEDS_BASE and plan.base is None:
        raise UserError(f"{plan.method} needs the model that all were trained from: name it with --base")
    if plan.method not in TAKES_BASE and plan.base is not None:
        raise UserError(f"{plan.method} knows no base; --base is for {', '.join(TAKES_BASE)}")
    learned = plan.method == "self_positioning"
    if learned and (plan.probe is None or plan.weights is not None):
        raise UserError(
            "self_positioning learns the weights on pairs: name a file with --probe, and no --weights"
        )
    if not learned and plan.probe is not None:
        raise UserError(f"{plan.method} learns nothing from pairs; --probe is for self_positioning")
    if not 0 < plan.density <= 1:
        raise UserError(f"density {plan.density} is not within 0..1")
    if plan.scale != 1 and plan.method not in NEEDS_BASE:
        raise UserError(f"{plan.method} has no scale to give; it is for {' and '.join(NEEDS_BASE)}")
    if plan.density != MergePlan().density and plan.method != "ties":
        raise UserError(f"{plan.method} knows no density, which is for ties")
    weights = plan.weights or (1 / len(models),) * len(models)
    if len(weights) != len(models):
        raise UserError(f"{len(weights)} weights were given for {len(models)} models")
    if not all(map(isfinite, (*weights, plan.scale))):
        raise UserError("weights and scale are finite numbers: give others")
    if plan.method == "ties" and min(weights) < 0:
        raise UserError("the weights of ties are at least 0: they are those of a mean of what agrees in sign")
    return list(weights)


def _require_same_form(first_name: str, first: Parts, name: str, other: Parts) -> None:
    require_whole_vocabulary(first.spec, "merging")
    if found := differences(first.spec, other.spec):
        raise UserError(f"{name} is of another form than {first_name}, which has {'; '.join(found)}")
    if first.tokenizer.backend.get_vocab() != other.tokenizer.backend.get_vocab():
        raise UserError(f"{name} has another vocabulary than {first_name}: their tokens mean other words")
    if _reading(first) != _reading(other):
        raise UserError(f"{name} takes texts apart in another way than {first_name}: see tokenizer.json")
    if first.pooling != other.pooling or first.head != other.head:
        raise UserError(f"{name} makes vectors of its states in another way than {first_name}")
    if first.tokenizer.prompts != other.tokenizer.prompts:
        say(f"note: the prompts of {name} differ from those of {first_name}, which are kept")
    if first.tokenizer.max_length != other.tokenizer.max_length:
        limits = other.tokenizer.max_length, first.tokenizer.max_length
        say(f"note: {name} cuts texts at {limits[0]} tokens, the merged model at {limits[1]}")
    if first.dims != other.dims:
        say(f"note: {name} was trained at other lengths of the vector than {first_name}, whose are kept")


def _reading(parts: Parts) -> dict[str, Any]:
    """What a tokenizer does beside looking words up; cutting and padding are the encoder's."""
    values: dict[str, Any] = json.loads(parts.tokenizer.backend.to_str())
    return {key: value for key, value in values.items() if key not in ("truncation", "padding", "version")}
