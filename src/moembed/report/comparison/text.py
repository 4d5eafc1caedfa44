"""What the page says beside the verdict, as plain text: a summary, what to know, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moembed.compare import formatting
from moembed.compare.estimates import Difference
from moembed.compare.results import Comparison
from moembed.compare.verdict import REAL, cautions, is_real, named
from moembed.evaluation.result import EvaluatedTask
from moembed.report.comparison.rows import Rows, heading, sort


def summary(result: Comparison) -> str:
    """How the reference does, and which other systems it really beats, over all tasks.

    A system that has no score on some tasks, as BM25 on sentence similarity, is compared on the kinds of
    tasks that it has.
    """
    return " ".join(_sentences(sort(result)))


def _sentences(rows: Rows) -> Iterator[str]:
    overall, reference, tasks = rows.overall, rows.reference, rows.single
    if score := overall.scores.get(reference):
        where = f"on {tasks[0].name} with" if len(tasks) == 1 else f"over {len(tasks)} tasks with"
        mean = "mean " if overall.mean else ""
        metric = formatting.metric_name(overall.metric)
        amount = f"{rows.items:,} {rows.noun}"
        yield f"The {mean}{metric} of {reference} {where} {amount} is {formatting.estimate(score)}."
    told: set[str] = set()
    kinds = ((f"On {heading(kind).lower()}, ", row) for kind, row in rows.kinds.items())
    for where, row in (("", overall), *kinds):
        gaps = {other: gap for other, gap in row.gaps.items() if other not in told}
        if gaps:
            yield f"{where}{reference} {_verdict(gaps)}."
        told |= gaps.keys()
    if len(tasks) > 1 and (single := [gap for row in tasks for gap in row.gaps.values()]):
        real = sum(is_real(gap) for gap in single)
        every = formatting.plural(len(single), "difference")
        yield f"Of the {every} on single tasks, {real} {_are(real)} real."


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _verdict(gaps: Mapping[str, Difference]) -> str:
    """What the reference does to the others; a difference that is not real is neither a gain nor a loss."""
    beaten, better, alike = [], [], []
    for other, gap in gaps.items():
        turned = gap.turned()
        if not is_real(gap):
            p_value = formatting.p_value(gap.p_holm)
            figures = formatting.difference(turned) + (f", {p_value}" if p_value else "")
            alike.append(f"{other} ({figures})")
        elif turned.mean > 0:
            beaten.append(f"{other} by {formatting.difference(turned, '')}")
        else:
            better.append(f"{other} by {formatting.difference(gap, '')}")
    clauses = {"beats ": beaten, "is worse than ": better, "shows no clear difference from ": alike}
    return "; it ".join(
        verb + formatting.listing(names, len(names)) for verb, names in clauses.items() if names
    )


def notes(result: Comparison) -> Iterator[str]:
    """What a reader must know: remarks on the tasks, texts that were cut, tasks that a system lacks."""
    tasks = {name: task for name, task in result.tasks.items() if isinstance(task, EvaluatedTask)}
    for name, task in tasks.items():
        yield from (f"{name}: {note}" for note in task.notes)
    for system in result.systems:
        cut = {name: texts for name, task in tasks.items() if (texts := task.truncated.get(system))}
        if cut:
            total = formatting.plural(sum(cut.values()), "text")
            yield f"{system} cut {total} of {named(list(cut))} at its greatest length."
    yield from cautions(result)


def method(rows: Rows) -> str:
    """How the intervals and p-values came about."""
    intervals = "In brackets: 95 % bootstrap intervals over the items of each task."
    if not rows.others:
        return intervals
    return (
        f"{intervals} Differences are to {rows.reference} on the same items; p is of a randomisation "
        "test (for V-measures and for several seeds: of the bootstrap) after Holm's correction, and below "
        f"{REAL} a difference is called real. The effect is Cohen's d of the paired differences."
    )
