"""What a comparison says, in sentences: which differences are real, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moembed.compare import formatting
from moembed.compare.estimates import Difference
from moembed.compare.results import LEAST_ITEMS, SCORE, Comparison

REAL = 0.05


def is_real(difference: Difference) -> bool:
    """Whether a difference counts as one: its p-value is below ``REAL`` after Holm's correction.

    The only rule in the package: pages, sentences and reports all ask here. One that is not known (NaN) is
    not real.
    """
    return difference.p_holm < REAL


def sentences(result: Comparison) -> list[str]:
    """Of every system: whether it differs from the reference, and on which tasks, languages and lengths."""
    return [sentence for other in result.others for sentence in _about(result, other)] + list(_seeds(result))


def cautions(result: Comparison) -> list[str]:
    """What a reader must know: tasks of few items, and systems that have no score on some tasks."""
    few = [name for name, task in result.tasks.items() if task.items < LEAST_ITEMS]
    told = []
    if few:
        told = [f"Fewer than {LEAST_ITEMS} items, of which intervals and p-values say little: {named(few)}."]
    for system in result.systems:
        missing = [name for name, task in result.tasks.items() if system not in task.metrics]
        if missing:
            them = "it" if len(missing) == 1 else "them"
            told.append(f"{system} has no score on {named(missing)} and no part in means over {them}.")
    return told


def named(tasks: list[str]) -> str:
    """The tasks as a sentence names them: many are counted."""
    listed = formatting.listing(tasks)
    return listed if len(tasks) < 4 else f"{len(tasks)} tasks ({listed})"


def _about(result: Comparison, other: str) -> Iterator[str]:
    reference = result.reference
    for scope, unit, difference in _broadest(result, other):
        yield _verdict(other, reference, difference, unit, scope)
    sections = {
        "task": [(name, task.main, task.differences) for name, task in result.tasks.items()],
        "language": [(name, SCORE, cells.differences) for name, cells in result.languages.items()],
        "length": [(name, SCORE, cells.differences) for name, cells in result.lengths.items()],
    }
    for section, rows in sections.items():
        found = {name: differences[other][label] for name, label, differences in rows if other in differences}
        if len(found) > 1:
            yield f"{other} against {reference}, by {section}: {_where(found)}."


def _broadest(result: Comparison, other: str) -> Iterator[tuple[str, str, Difference]]:
    """Over all tasks, or else over every kind of them that both systems have: scope, unit and difference."""
    tasks, overall = result.tasks, result.overall
    if other in overall.differences:
        mains = {task.main for task in tasks.values()}
        unit = formatting.metric_name(*mains) if len(mains) == 1 else "mean score"
        scope = f"over {len(tasks)} tasks" if len(tasks) > 1 else f"on {next(iter(tasks))}"
        yield scope, unit, overall.differences[other][SCORE]
        return
    for kind, cells in result.kinds.items():
        for metric, difference in cells.differences.get(other, {}).items():
            scope = f"over {formatting.plural(cells.tasks, f'{formatting.kind_name(kind)} task')}"
            yield scope, formatting.metric_name(metric), difference


def _verdict(a: str, b: str, gap: Difference, unit: str, scope: str) -> str:
    p_value = f"({formatting.p_value(gap.p_holm)} after Holm)"
    if not is_real(gap):
        figures = f"{formatting.decimal(gap.mean, '+')} {unit} {formatting.interval(gap.low, gap.high)}"
        return f"No clear difference between {a} and {b} {scope}: {figures} {p_value}."
    if gap.mean < 0:
        a, b, gap = b, a, gap.turned()
    figures = f"{formatting.decimal(gap.mean)} {unit} {formatting.interval(gap.low, gap.high)}"
    return f"{a} beats {b} by {figures} {scope} {p_value}."


def _where(differences: Mapping[str, Difference]) -> str:
    real = {name: gap.mean for name, gap in differences.items() if is_real(gap)}
    found = {
        "better on": [name for name, mean in real.items() if mean > 0],
        "worse on": [name for name, mean in real.items() if mean < 0],
        "no clear difference on": [name for name in differences if name not in real],
    }
    return "; ".join(f"{what} {formatting.listing(names)}" for what, names in found.items() if names)


def _seeds(result: Comparison) -> Iterator[str]:
    repeated = {name: runs for name, runs in result.seeds.items() if runs > 1}
    single = [name for name in result.seeds if name not in repeated]
    if repeated:
        told = formatting.listing([f"{runs} runs of {name}" for name, runs in repeated.items()])
        rest = ""
        if single:
            rest = f"; not that of single runs: {formatting.listing(single)}"
        yield f"The intervals count the variation between seeds, from {told}{rest}."
    if result.paired:
        yield f"Compared run by run, with the same batches in both: {formatting.listing(result.paired)}."
