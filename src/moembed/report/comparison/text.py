"""What the page says beside the verdict, as plain text: a summary, what to know, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moembed.compare.verdict import REAL
from moembed.report import words
from moembed.report.comparison import data
from moembed.report.comparison.data import Evaluation, Gap, Row


def summary(result: Mapping[str, Any]) -> str:
    """How the reference does, and which other systems it really beats, over all tasks.

    A system that has no score on some tasks, as BM25 on sentence similarity, is compared on the kinds of
    tasks that it has.
    """
    return " ".join(_sentences(data.read(result)))


def _sentences(evaluation: Evaluation) -> Iterator[str]:
    overall, reference, tasks = evaluation.overall, evaluation.reference, evaluation.single
    if score := overall.scores.get(reference):
        where = f"on {tasks[0].name} with" if len(tasks) == 1 else f"over {len(tasks)} tasks with"
        mean = "mean " if overall.mean else ""
        yield (
            f"The {mean}{_metric(overall)} of {reference} {where} {evaluation.items:,} {evaluation.noun} is "
            f"{words.estimate(*score)}."
        )
    told: set[str] = set()
    kinds = ((f"On {data.heading(kind).lower()}, ", row) for kind, row in evaluation.kinds.items())
    for where, row in (("", overall), *kinds):
        gaps = {other: gap for other, gap in row.gaps.items() if other not in told}
        if gaps:
            yield f"{where}{reference} {_verdict(gaps)}."
        told |= gaps.keys()
    if len(tasks) > 1 and (single := [gap for row in tasks for gap in row.gaps.values()]):
        real = sum(gap.real for gap in single)
        yield f"Of the {words.plural(len(single), 'difference')} on single tasks, {real} {_are(real)} real."


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _metric(row: Row) -> str:
    return "score" if row.metric == "score" else words.metric_name(row.metric)


def _verdict(gaps: Mapping[str, Gap]) -> str:
    """What the reference does to the others; a difference that is not real is neither a gain nor a loss."""
    beaten, better, alike = [], [], []
    for other, gap in gaps.items():
        turned = gap.turned()
        if not gap.real:
            p_value = words.p_value(gap.p_value)
            figures = words.estimate(*turned[:3], sign="+") + (f", {p_value}" if p_value else "")
            alike.append(f"{other} ({figures})")
        elif turned.value > 0:
            beaten.append(f"{other} by {words.estimate(*turned[:3])}")
        else:
            better.append(f"{other} by {words.estimate(*gap[:3])}")
    clauses = {"beats ": beaten, "is worse than ": better, "shows no clear difference from ": alike}
    return "; it ".join(verb + words.listing(names, len(names)) for verb, names in clauses.items() if names)


def _named(tasks: list[str]) -> str:
    return words.listing(tasks, 4) if len(tasks) < 4 else f"{len(tasks)} tasks ({words.listing(tasks)})"


def notes(result: Mapping[str, Any], evaluation: Evaluation) -> Iterator[str]:
    """What a reader must know: remarks on the tasks, texts that were cut, tasks that a system lacks."""
    tasks = result["tasks"].items()
    for name, task in tasks:
        yield from (f"{name}: {note}" for note in task.get("notes") or ())
    for system in evaluation.systems:
        cut = {name: texts for name, task in tasks if (texts := (task.get("truncated") or {}).get(system))}
        if cut:
            total = words.plural(sum(cut.values()), "text")
            yield f"{system} cut {total} of {_named(list(cut))} at its greatest length."
        missing = [row.name for row in evaluation.single if system not in row.scores]
        if missing:
            yield f"{system} has no score on {_named(missing)} and no part in means over {_them(missing)}."


def _them(tasks: list[str]) -> str:
    return "it" if len(tasks) == 1 else "them"


def method(evaluation: Evaluation) -> str:
    """How the intervals and p-values came about."""
    intervals = "In brackets: 95 % bootstrap intervals over the items of each task."
    if not evaluation.others:
        return intervals
    return (
        f"{intervals} Differences are to {evaluation.reference} on the same items; p is of a randomisation "
        "test (for V-measures and for several seeds: of the bootstrap) after Holm's correction, and below "
        f"{REAL} a difference is called real. The effect is Cohen's d of the paired differences."
    )
