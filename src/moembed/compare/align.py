"""Which scores of several systems belong together: by task, and within a task by language and by length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moembed.compare.results import LEAST_ITEMS
from moembed.compare.scores import Scores
from moembed.types import UserError

BUCKETS = (0, 32, 64, 128, 256, 512, 1024, 2048)  # characters, where a bucket of lengths begins

Systems = Mapping[str, Sequence[Mapping[str, Scores]]]  # name -> seeds -> task
Aligned = dict[str, list[Scores]]  # name -> seeds, of one task


def by_task(systems: Systems) -> dict[str, Aligned]:
    """The scores of every task, by system; the items of a task are known to be the same everywhere.

    Raises:
        UserError: no scores, seeds with different tasks, or systems that were scored on different items of a
            task or by different judgements.
    """
    tasks: dict[str, Aligned] = {}
    for name, seeds in systems.items():
        for seed in seeds:
            if odd := sorted(seed.keys() ^ seeds[0].keys()):
                raise UserError(
                    f"{name}: not every seed was evaluated on {', '.join(odd)}: evaluate all alike"
                )
        for task in seeds[0] if seeds else ():
            tasks.setdefault(task, {})[name] = [seed[task] for seed in seeds]
    if not tasks:
        raise UserError("there is nothing to compare: no system has any scores")
    for task, aligned in tasks.items():
        _require_same_items(task, aligned)
    return tasks


def require_common_tasks(systems: Systems, reference: str) -> None:
    """Refuse a system whose tasks are all others than those of the reference: there is nothing to compare.

    A system without any score is let through: BM25 has none on pairs of sentences, and stands beside.
    """
    known = {name: set().union(*seeds) for name, seeds in systems.items()}
    for name, own in known.items():
        if own and known[reference] and not own & known[reference]:
            raise UserError(
                f"{name} and {reference} have no task in common ({_few(own)} and {_few(known[reference])}): "
                "evaluate both on the same tasks"
            )


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def by_language(aligned: Aligned) -> Iterator[tuple[str, Aligned]]:
    """The items of every known language that has ``LEAST_ITEMS``."""
    yield from _grouped(aligned, np.array(any_of(aligned).language), "")


def by_length(aligned: Aligned) -> Iterator[tuple[int, Aligned]]:
    """The items of every bucket of lengths that has ``LEAST_ITEMS``, by the number of the bucket."""
    yield from _grouped(aligned, np.digitize(any_of(aligned).length, BUCKETS) - 1, -1)


def bucket_name(bucket: int) -> str:
    """The characters that a text of the bucket has: "32-63"."""
    more = BUCKETS[bucket + 1 :]
    return f"{BUCKETS[bucket]}-{more[0] - 1}" if more else f"{BUCKETS[bucket]}+"


def any_of(aligned: Aligned) -> Scores:
    """The scores of any system: all have the same items."""
    return next(iter(aligned.values()))[0]


def shared_metrics(aligned: Aligned) -> list[str]:
    """The metrics that every system has, in the order of the first."""
    everyone = [scores.values for seeds in aligned.values() for scores in seeds]
    return [metric for metric in everyone[0] if all(metric in values for values in everyone)]


def _grouped(aligned: Aligned, group_Q: np.ndarray, unknown: object) -> Iterator[tuple[Any, Aligned]]:
    for group in np.unique(group_Q).tolist():
        chosen_Q = group_Q == group
        if group != unknown and chosen_Q.sum() >= LEAST_ITEMS:
            yield group, {name: [_chosen(s, chosen_Q) for s in seeds] for name, seeds in aligned.items()}


def _chosen(scores: Scores, chosen_Q: np.ndarray) -> Scores:
    if chosen_Q.all():
        return scores
    return replace(
        scores,
        item=[item for item, chosen in zip(scores.item, chosen_Q, strict=True) if chosen],
        language=[language for language, chosen in zip(scores.language, chosen_Q, strict=True) if chosen],
        length=scores.length[chosen_Q],
        values={metric: value[chosen_Q] for metric, value in scores.values.items()},
        ranked_QK=None if scores.ranked_QK is None else scores.ranked_QK[chosen_Q],
    )


def _require_same_items(task: str, aligned: Aligned) -> None:
    name, (first, *_) = next(iter(aligned.items()))
    metrics = shared_metrics(aligned)
    if not metrics:
        raise UserError(
            f"{task}: {', '.join(aligned)} have no metric in common: evaluate all by the same metrics"
        )
    for other, seeds in aligned.items():
        for scores in seeds:
            same = (scores.kind, scores.item) == (first.kind, first.item)
            if not same or not all(_same_right(scores.values[m], first.values[m]) for m in metrics):
                who = f"{name} and {other}" if other != name else f"the seeds of {name}"
                raise UserError(
                    f"{task}: {who} were not scored on the same items, or not by the same judgements: "
                    "evaluate both on the same files"
                )


def _same_right(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two systems had the same to predict; what they predicted may differ."""
    return a.shape == b.shape and (a.ndim == 1 or np.array_equal(a[:, 1], b[:, 1]))
