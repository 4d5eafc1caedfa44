"""Contrastive losses as slow loops: what the fast ones are held against, and settings drawn at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from moembed.losses.mixing import Mixing


@dataclass(frozen=True, slots=True)
class Batch:
    """Vectors, known answers that are no negatives, and of every candidate the query that it belongs to."""

    query: Tensor
    document: Tensor
    known: Tensor
    owner: list[int]
    seed: int = 0


def slow_info_nce(batch: Batch, temperature: Any, settings: dict[str, Any]) -> tuple[Tensor, float]:
    """The formulas of the docstrings, one number at a time; and the mean effective number of negatives."""
    query, document, known = batch.query, batch.document, batch.known
    losses, numbers = [], []
    weights = settings.get("weight", [])
    for q in range(len(query)):
        positive = query[q] @ document[q]
        wrong = [n for n in range(len(document)) if n != q]
        terms = [(query[q] @ document[n], bool(known[q, n]), batch.owner[n] == q) for n in wrong]
        others = [j for j in range(len(query)) if j != q]
        if "query_to_query" in settings.get("directions", ()):
            terms += [(query[q] @ query[j], bool(known[q, j]), False) for j in others]
        if "document_to_document" in settings.get("directions", ()):
            terms += [(document[q] @ document[j], bool(known[q, j]), False) for j in others]
        if not settings.get("in_batch", True):
            terms = [term for term in terms if term[2]]
        bound = positive.item() + settings["mask"]["margin"] if "mask" in settings else math.inf
        counted = [(score, own) for score, masked, own in terms if not masked and score.item() <= bound]
        if "mixing" in settings:
            usable = [n for n in range(len(document)) if n != q and not known[q, n]]
            if not settings.get("in_batch", True):
                usable = [n for n in usable if batch.owner[n] == q]
            usable = [n for n in usable if (query[q] @ document[n]).item() <= bound]
            mixed = [query[q] @ one for one in _mixed(q, batch, usable, settings["mixing"])]
            counted += [(score, True) for score in mixed if score.item() <= bound]

        total, sizes = torch.exp(positive / temperature), []
        for score, own in counted:
            size = 1.0
            for weight in weights:
                on = weight.get("on", "all")
                if weight["kind"] == "hardness" and (on == "all" or (on == "hard") == own):
                    size *= math.exp(weight["alpha"] * score.item())
            sizes.append(size)
            total = total + size * torch.exp(score / temperature)
        loss = torch.log(total) - positive / temperature
        factor = 1.0
        for weight in weights:
            if weight["kind"] == "focal":
                factor *= (1 - (torch.exp(positive / temperature) / total).item()) ** weight["gamma"]
            elif weight["kind"] == "margin":
                hardest = max(
                    [s.item() for s, own in counted if own] or [s.item() for s, _ in counted] or [-math.inf]
                )
                gap = (hardest - positive.item()) / weight["width"]
                factor *= 1 - weight["alpha"] + weight["alpha"] * 2 / (1 + math.exp(-gap))
        losses.append(loss * factor)
        numbers.append(sum(sizes) ** 2 / sum(s**2 for s in sizes) if sizes else 0.0)
    return torch.stack(losses).mean(), sum(numbers) / len(numbers)


def _mixed(q: int, batch: Batch, negatives: list[int], settings: dict[str, Any]) -> list[Tensor]:
    """The mixed candidates of a query, made of these negatives."""
    query, document = batch.query, batch.document
    own = [n for n in negatives if batch.owner[n] == q]
    pool = own if len(own) >= 2 else negatives
    nearest = sorted(pool, key=lambda n: -float((query[q] @ document[n]).detach()))
    parents = sorted(nearest[: settings["parents"]])
    if len(parents) < 2:
        return []
    source = document.detach() if settings["stop_gradient"] else document
    if settings["kind"] == "list":
        size = [math.exp((query[q] @ document[n]).item()) for n in parents]
        rows = [sum(s / sum(size) * source[n] for s, n in zip(size, parents, strict=True))]
    else:
        rows = []
        chance = Mixing("pair", settings["columns"], seed=batch.seed).chance(len(query))[q]
        for *three, first, second in chance.tolist():
            one = int(first * len(parents))
            other = (one + 1 + int(second * (len(parents) - 1))) % len(parents)
            share = sorted(three)[1]
            rows.append(share * source[parents[one]] + (1 - share) * source[parents[other]])
    return [row / row.norm() for row in rows]  # type: ignore[union-attr]


def slow_symmetric(batch: Batch, temperature: Any, settings: dict[str, Any]) -> Tensor:
    """Both directions; documents have no hard negatives, and nothing is mixed of queries."""
    queries = len(batch.query)
    known = batch.known[:, :queries].T
    back = Batch(batch.document[:queries], batch.query, known, [-1] * queries)
    kept = {key: settings[key] for key in ("weight", "mask") if key in settings}
    backward, _ = slow_info_nce(back, temperature, kept)
    return (slow_info_nce(batch, temperature, settings)[0] + backward) / 2


def slow_triplet(
    batch: Batch, margin: float, negatives: str, settings: dict[str, Any], weight_Q: Tensor | None = None
) -> tuple[Tensor, int]:
    """The weighted mean over queries; and how many negatives those of a weight have learnt from."""
    query, document = batch.query, batch.document
    weight_Q = torch.ones(len(query)) if weight_Q is None else weight_Q
    total, used = torch.zeros(()), 0
    for q in range(len(query)):
        positive = query[q] @ document[q]
        wrong = [n for n in range(len(document)) if n != q and not batch.known[q, n]]
        scores = {n: query[q] @ document[n] for n in wrong}
        if "mask" in settings:
            scores = {n: s for n, s in scores.items() if s <= positive + settings["mask"]["margin"]}
        chosen = [s for n, s in scores.items() if batch.owner[n] == q and negatives == "own"]
        chosen = chosen or sorted(scores.values(), key=lambda score: score.item())[-1:]
        used += len(chosen) if weight_Q[q] else 0
        for score in chosen:
            total = total + weight_Q[q] * (score - positive + margin).clamp_min(0) / len(chosen)
    return total / weight_Q.sum(), used


WEIGHTS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("focal"), "gamma": st.sampled_from([0.5, 2.0])}),
    st.fixed_dictionaries(
        {"kind": st.just("hardness"), "alpha": st.sampled_from([1.0, 9.0]),
         "on": st.sampled_from(["all", "in_batch", "hard"])}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("margin"), "alpha": st.sampled_from([0.3, 1.0]), "width": st.sampled_from([0.1, 1])}
    ),
)  # fmt: skip


def _fit_together(settings: dict[str, Any]) -> bool:
    """What a recipe may say at once: without in-batch negatives nothing may speak of other queries."""
    weights = settings.get("weight", [])
    others = "directions" in settings or any(weight.get("on") == "in_batch" for weight in weights)
    return settings.get("in_batch", True) or not others


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "in_batch": st.booleans(),
        "weight": st.lists(WEIGHTS, max_size=3),
        "mask": st.fixed_dictionaries({"margin": st.sampled_from([-0.1, 0.0, 0.1, 0.5])}),
        "directions": st.sampled_from([["query_to_query"], ["document_to_document", "query_to_query"]]),
        "mixing": st.fixed_dictionaries(
            {"kind": st.sampled_from(["pair", "list"]), "parents": st.sampled_from([2, 3, 8]),
             "columns": st.just(1), "stop_gradient": st.booleans()}
        ) | st.just({"kind": "pair", "parents": 4, "columns": 3, "stop_gradient": False}),
    },
).filter(_fit_together)  # fmt: skip
