"""The terms of a loss in words, a line each, for what is told before a training begins."""

from __future__ import annotations

from typing import Any

import torch

from moembed.training.contrastive.schedules import Points
from moembed.training.contrastive.settings import ScoreDistillConfig, TripletConfig
from moembed.training.contrastive.shaping import OPTIONS
from moembed.training.contrastive.task import ContrastiveTask


def loss_terms(task: ContrastiveTask) -> list[str]:
    """The terms of the loss and its masks, a line each."""
    config, objective = task.config.loss, task.objective
    learned = {False: "", True: ", learned", "per_dim": ", learned for each of the prefixes"}
    found = torch.as_tensor(objective.temperature).reshape(-1).tolist()
    temperature = ", ".join(dict.fromkeys(f"{value:.4g}" for value in found))
    kinds = sorted({form.loss for form in task.forms if not form.scored})
    told = f"at temperature {temperature}{learned[config.learn_temperature]}"
    lines = [f"{kind} {told}" for kind in kinds if kind != "triplet"]
    if "triplet" in kinds:
        lines.append(f"triplet: {_plain((config.triplet or TripletConfig()).model_dump())}")
    lines += sorted({f"cosent at temperature {form.temperature:g}" for form in task.forms if form.scored})
    hard = hard_negatives(task.config.negatives)
    if config.in_batch:
        lines.append(f"candidates: every document of the batch and {hard} of every pair")
    else:
        lines.append(f"candidates of a query: its document and {hard} (in_batch is false)")
    if config.queue:
        lines.append(f"negatives too: the last {config.queue:,} documents and hard negatives, as they were")
    lines.append("masked: texts that are known to answer the query")
    if any(form.labelled for form in task.forms):
        lines.append("masked: texts of the query's label, where the source has labels")
    if task.guide:
        guide = task.guide.config
        share = "times its score" if guide.relative else "of cosine"
        lines.append(
            f"masked: what {guide.model} holds nearer than the positive less {guide.margin:g} {share}"
        )
    if task.items:
        about = task.items.config
        space = about.teacher or about.vectors
        lines.append(f"{about.weight:g} x squared distance to the cosines of item pairs in {space}")
    for weight in config.weight:
        options = ", ".join(f"{name} {getattr(weight, name)}" for name in sorted(OPTIONS[weight.kind]))
        lines.append(f"weight: {weight.kind}, {options}")
    shaped = config.model_dump(mode="json", include={"mask", "directions", "mixing"})
    lines += [f"{key}: {_plain(value)}" for key, value in shaped.items() if value]
    if nested := objective.nested:
        weights = nested.weights or [1.0] * len(nested.dims)
        prefixes = ", ".join(
            f"{dim} (x {weight:g})" for dim, weight in zip(nested.dims, weights, strict=True)
        )
        lines.append(f"summed over prefixes of {prefixes} coordinates")
    if config.depths:
        depths = ", ".join(f"{depth} (x {weight:g})" for depth, weight in objective.depths.items())
        lines.append(f"summed over vectors after {depths} layers")
    lines += _ranking_terms(task.config.distill)
    lines += [_schedule(key, points, task.steps) for key, points in task.config.schedules.items()]
    return lines + router_terms(config, bool(task.balance.routers))


def hard_negatives(negatives: int | None) -> str:
    """How many of them a pair brings."""
    return "all its hard negatives" if negatives is None else f"at most {negatives} of its hard negatives"


def router_terms(config: Any, experts: bool) -> list[str]:
    """What the routers have part in the loss, a line each; ``experts``: whether there are any."""
    if not experts:
        return ["no experts, so no terms of routers"]
    window = f", counts over {config.balance_window} steps" if config.balance_window > 1 else ""
    terms = [f"{config.balance:g} x balance of the experts{window}", f"{config.z:g} x z-loss of the routers"]
    return terms + ([f"biases of the routers move by {config.bias_rate:g}"] if config.bias_rate else [])


def _ranking_terms(config: ScoreDistillConfig | None) -> list[str]:
    """The term of `moembed.losses.score_distillation`, where there is one."""
    if config is None:
        return []
    who = f"of {', '.join(config.teachers)}" if config.teachers else "by the scores of the data"
    among = "the query's own candidates" if config.candidates == "own" else "the candidates of the batch"
    sharp = f"temperature {config.temperature:g}, scores brought to one scale by {config.normalize}"
    return [f"{config.weight:g} x KL to the ranking {who} over {among} ({sharp})"]


def _schedule(key: str, points: Points, steps: int | None) -> str:
    """What a key is at the points of its schedule, which is told by the step where the steps are known."""
    places = [
        (f"step {round(share * steps) + (share < 1)}" if steps else f"{share:.0%} of the run", value)
        for share, value in sorted(points.items())
    ]
    return f"{key}: " + ", ".join(f"{value:g} at {place}" for place, value in places)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return "; ".join(map(_plain, value)) if isinstance(value, list) else str(value)
