"""An experiment as files: a Markdown record with plots, and the same as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from moembed.compare import formatting
from moembed.compare.results import SCORE, Comparison
from moembed.compare.verdict import cautions, sentences
from moembed.experiment import table
from moembed.experiment.table import Result
from moembed.files import write_json, write_text
from moembed.report.plots import LOOKS, Point, dots, standalone, tradeoff

_TEXTS = ("question=", "conclusion=")  # overrides that change no cell, and are printed above already


def write_record(path: Path, file: Path, overrides: Sequence[str], result: Result) -> list[Path]:
    """Write ``path`` (Markdown), ``.json`` and the plots beside it; returns what was written.

    Args:
        file: the experiment file, and ``overrides`` of it: the record prints the commands that make it again.

    Raises:
        UserError: the place is not writable, or matplotlib is not installed.
    """
    plots = {path.with_name(f"{path.stem}-{name}.svg"): drawing for name, drawing in _plots(result)}
    for place, drawing in plots.items():
        write_text(place, drawing)
    write_json(path.with_suffix(".json"), result.to_json())
    write_text(path, "\n\n".join(_parts(file, overrides, result, list(plots))) + "\n")
    return [path, path.with_suffix(".json"), *plots]


def _parts(file: Path, overrides: Sequence[str], result: Result, plots: Sequence[Path]) -> Iterator[str]:
    plan, config = result.plan, result.plan.config
    # ---- what was asked, and what the answer is
    yield f"# {config.name}"
    if config.question:
        yield config.question
    if not result.whole:
        yield f"**{result.count} of {len(plan.jobs)} runs are finished**: what stands here may change."
    for name, why in result.failed.items():
        yield f"**{name} failed:** {why}"
    if result.comparison is None:
        yield f"Nothing to compare yet: the control ({config.control}) and another cell must be finished."
        return
    said = [*sentences(result.comparison), *cautions(result.comparison)]
    yield "\n".join(f"- {sentence}" for sentence in said)
    if config.conclusion:
        yield config.conclusion

    # ---- tables and plots
    yield "## Scores"
    yield _about(result.comparison)
    yield markdown(table.HEAD, table.score_rows(result))
    if config.tune:
        yield (
            f"Every cell stands here at the {next(iter(config.tune))} that is best for it by these scores, "
            "which flatters all cells alike. Mean at every value, ± the standard deviation over seeds:"
        )
        yield markdown(*table.tuned_rows(result))
        if edges := table.at_the_edge(result):
            yield edges
    yield from (f"![{place.stem}]({place.name})" for place in plots)
    yield markdown(*table.task_rows(result))
    for dim, compared in result.dims.items():
        yield f"### Cut to {dim} coordinates"
        yield markdown(table.HEAD, table.score_rows(result, compared))
    if routing := table.routing_rows(result):
        yield "## Routers and experts"
        yield (
            "First tenth of the steps → last tenth, means over layers and seeds. Entropy in nats per token; "
            "the share is the probability that the chosen experts hold, beside what it would be by chance. "
            "Distance of two experts at the end: 0 are copies, 1.4 unrelated."
        )
        yield markdown(table.ROUTING, routing)
    yield "## Costs"
    yield (
        "The machine may have done other things beside: speed and time are no benchmark. Memory is the most "
        "that the process held."
    )
    yield markdown(table.COSTS, table.cost_rows(result))

    # ---- how to make it again
    yield "## Again"
    yield "Every line trains and evaluates one cell; a cell that is finished is not done again."
    given = shlex.join([str(file), *(told for told in overrides if not told.startswith(_TEXTS))])
    lines = [
        f"moembed experiment {given} --seeds {plan.seeds} --only {shlex.quote(cell)}" for cell in config.cells
    ]
    yield "```sh\n" + "\n".join(lines) + "\n```"
    yield _made(result)
    # as it was written: with the variables, and without the paths of this machine
    yield f"```yaml\n{file.read_text(encoding='utf-8').strip()}\n```"


def _about(comparison: Comparison) -> str:
    tasks = formatting.plural(len(comparison.tasks), "task")
    return (
        f"Mean over {tasks} of the main metric, with a 95 % interval over items and, where a cell has "
        f"several seeds, over seeds; ± is the standard deviation over seeds. The difference to "
        f"{comparison.reference} is paired item by item and, where both have the same seeds, seed by seed; "
        "p after Holm's correction over the cells."
    )


def _made(result: Result) -> str:
    """Where the runs were made, and by which recipe and pairs."""
    jobs = [job for jobs in result.finished.values() for job in jobs]
    about = jobs[-1].made or {}
    told = ", ".join(
        f"{key} {value}" for key, value in about.items() if key in ("date", "cpu", "cores", "torch")
    )
    batches = {job.seed: job.batches for job in jobs}
    recipes = {cell: jobs[0].recipe for cell, jobs in result.finished.items()}
    return (
        f"{told}. Hash of the pairs of all steps, the same in every cell: "
        + ", ".join(f"seed {seed} `{batches[seed]}`" for seed in sorted(batches))
        + ". Recipes of the first seed: "
        + ", ".join(f"{cell} `{recipe}`" for cell, recipe in recipes.items())
        + "."
    )


def _plots(result: Result) -> Iterator[tuple[str, str]]:
    comparison = result.comparison
    if comparison is None:
        return
    gaps = {cell: comparison.overall.differences[cell][SCORE] for cell in comparison.overall.differences}
    if gaps:
        label = f"{result.plan.config.name}: score less that of {comparison.reference}"
        rows = [(gap.mean, gap.low, gap.high) for gap in gaps.values()]
        yield "differences", standalone(dots(label, list(gaps), [rows], LOOKS[:1], zero=True))
    points = []
    for cell, jobs in result.finished.items():
        if cell in comparison.overall.metrics:
            score = comparison.overall.metrics[cell][SCORE]
            points.append(Point(jobs[0].active_parameters, score.value, score.low, score.high, cell))
    if points:
        label = f"{result.plan.config.name}: score and active parameters"
        drawn = tradeoff(label, [points], LOOKS[:1], "active parameters", formatting.count)
        yield "cost", standalone(drawn)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; ``|`` inside a cell is escaped."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
