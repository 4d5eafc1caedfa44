"""`moembed evaluate`: quality with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moembed.cli.options import AllowPickle, Dtype, Json, environment_tag
from moembed.cli.results import Page, ResultFile, borda_cells, require_outputs, write_result
from moembed.cli.suites import show_suites, suite_options
from moembed.compare.formatting import estimate, kind_name, metric_name
from moembed.compare.results import SCORE, Cells
from moembed.compare.verdict import cautions, sentences
from moembed.console import print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.evaluation.result import EvaluatedTask, EvaluationResult


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Folders, hub ids (owner/name@revision), minilm, http://host:port, or bm25, static, base."
        ),
    ],
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            help="BEIR-layout folders, or files whose columns say what they are: docs/evaluating.md."
        ),
    ] = None,
    mteb: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks or benchmarks of mteb instead, such as NanoBEIR; results are kept in --cache."
        ),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="A YAML file that names tasks instead: docs/evaluating.md.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="A general suite that the suite of a domain is compared to.")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(help="Of complexity, for --against: readability, entropy, dependency, error."),
    ] = None,
    parser: Annotated[
        str | None, typer.Option(help="The model of spaCy for dependency; default: en_core_web_sm.")
    ] = None,
    error_of: Annotated[
        str | None, typer.Option(help="The system whose errors are the measure error.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Comma-separated; default: those of each kind of task.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Queries per retrieval task, with hard and relevant documents.")
    ] = None,
    dims: Annotated[str, typer.Option(help="Also with so many coordinates, for instance 64,128,256.")] = "",
    codecs: Annotated[
        str,
        typer.Option(help="Also stored as float16, int8, binary, bebr:2 (bits per dimension), pq:2, …."),
    ] = "",
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="bm25, static word vectors, the model's base.")
    ] = True,
    dtype: Dtype = "auto",
    processes: Annotated[int, typer.Option(min=1, help="Embed in so many processes, one per GPU.")] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps all vectors for the next evaluation.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the scores of every item, for `moembed compare`.")
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="A cross-encoder that orders what each model finds, as a system of its own."),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="With --rerank: how many it is given.")] = 50,
    wrong_tags: Annotated[
        float, typer.Option(min=0, max=1, help="Share of texts that experts by language are told wrongly.")
    ] = 0.0,
    allow_pickle: AllowPickle = False,
    out: ResultFile = None,
    html: Page = None,
    json_: Json = False,
) -> None:
    """Quality with 95 % bootstrap intervals: retrieval, similarity, bitext, classification, clustering.

    Every system is compared to the last one, item by item. BM25, static word vectors and the base of a run
    are evaluated beside. `moembed compare` puts the scores of several evaluations together.

    Example: `moembed evaluate runs/demo minilm --tasks data/scifact sts-de.csv --html report.html`
    """
    if sum(given is not None for given in (tasks, mteb, suite)) != 1:
        raise UserError(
            "give what to evaluate on: either --tasks with folders and files, or --suite with a file, or "
            "--mteb with names"
        )
    _require_suites(suite, against, measures=measures, parser=parser, error_of=error_of)
    if mteb is not None:
        from moembed.cli.mteb import run_mteb

        _refuse_with_mteb(
            metrics=metrics,
            sample=sample,
            codecs=codecs,
            processes=processes > 1,
            keep=keep,
            html=html,
            wrong_tags=wrong_tags,
            rerank=rerank,
        )
        require_outputs(out, None)
        dim, *rest = _dims(dims) or (None,)
        if rest:
            say(f"note: mteb evaluates one size of vectors at a time: of --dims the first, {dim}")
        run_mteb(
            models, mteb, dim=dim, dtype=dtype, allow_pickle=allow_pickle, cache=cache, out=out, json_=json_
        )
        return
    from moembed.evaluation.suite import load_suite
    from moembed.runs.evaluate import evaluate
    from moembed.runs.suites import evaluate_suites
    from moembed.runs.system import EvaluationOptions

    require_outputs(out, html)
    options = EvaluationOptions(
        metrics=_listed(metrics or "") or None, sample=sample, dims=_dims(dims), codecs=_listed(codecs),
        baselines=baselines, dtype=dtype, processes=processes, cache=cache, keep=keep,
        allow_pickle=allow_pickle, tag=environment_tag(), wrong_tags=wrong_tags, rerank=rerank,
        candidates=candidates,
    )  # fmt: skip
    compared = None
    if suite and against:
        wishes = suite_options(measures, parser, error_of)
        result, compared = evaluate_suites(models, suite, against, options, wishes, progress_bar)
    else:
        listed = load_suite(suite)[1] if suite else tasks or []
        result = evaluate(models, listed, options, progress_bar)
    for name, task in result.tasks.items():
        say(f"{name}: read as {task.kind.replace('_', ' ')}, {task.items:,} items")
    for note in _notes(result):
        say(f"note: {note}")
    figures = result.to_json() | ({"suites": compared.to_json()} if compared else {})
    if json_:
        print_json(figures)
    else:
        _print(result)
        if compared:
            show_suites(compared)
    write_result(result, out, html, figures)
    if result.unkept:
        raise UserError(f"the scores of {', '.join(result.unkept)} could not be written into {keep}")


def _require_suites(suite: Path | None, against: Path | None, **options: object) -> None:
    """What belongs to two suites needs both."""
    if against is not None and suite is None:
        raise UserError("--against is the general suite: name that of the domain with --suite")
    if against is None and (asked := [name for name, value in options.items() if value]):
        name = asked[0].replace("_", "-")
        raise UserError(f"--{name} is for comparing two suites: name the general one with --against")


def _refuse_with_mteb(**options: object) -> None:
    """What mteb's own runner has no answer to."""
    if asked := [f"--{name}" for name, value in options.items() if value]:
        raise UserError(f"mteb runs its tasks itself: leave out {' and '.join(asked)}, or use --tasks")


def _listed(option: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in option.split(",") if part.strip())


def _dims(option: str) -> tuple[int, ...]:
    parts = _listed(option)
    if wrong := [part for part in parts if not (part.isdecimal() and int(part))]:
        raise UserError(f"--dims takes whole numbers above zero, such as 64,128, not {wrong[0]!r}")
    return tuple(map(int, parts))


# ---- what is printed ---------------------------------------------------------------------------------------


def _notes(result: EvaluationResult) -> Iterator[str]:
    for name, task in result.tasks.items():
        yield from (f"{name}: {note}" for note in task.notes)
        for system, truncated in task.truncated.items():
            if truncated:
                yield f"{system} cut {truncated:,} texts of {name}: they are longer than it reads"
    yield from cautions(result)


def _print(result: EvaluationResult) -> None:
    if len(result.tasks) == 1:
        _print_task(*next(iter(result.tasks.items())))
    else:
        rows = [
            [name, kind_name(task.kind), metric_name(task.main), *_cells(task, task.main, result.systems)]
            for name, task in result.tasks.items()
        ]
        if len(result.kinds) > 1:
            rows += [
                ["mean", kind_name(kind), metric_name(mean.main), *_cells(mean, mean.main, result.systems)]
                for kind, mean in result.kinds.items()
                if mean.tasks > 1
            ]
        rows.append(["mean of all", "", SCORE, *_cells(result.overall, SCORE, result.systems)])
        if result.borda:
            rows.append(["rank", "", "Borda count", *borda_cells(result)])
        head = ["", "kind", "metric", *result.systems]
        print_table(f"{len(result.tasks)} tasks, 95 % intervals", head, rows)
    for name, curve in result.curves.items():
        points = [[f"{size.dim}", size.codec, f"{size.bytes:,}", estimate(size.score)] for size in curve]
        print_table(f"\n{name}: smaller vectors", ["dim", "codec", "bytes", "score"], points)
    if len(result.systems) > 1:
        print()
        for sentence in sentences(result):
            print(sentence)


def _print_task(name: str, task: EvaluatedTask) -> None:
    metrics = list(next(iter(task.metrics.values())))
    rows = [[system, *(estimate(cells[m]) for m in metrics)] for system, cells in task.metrics.items()]
    amount = f"{task.items:,} items"
    if task.documents is not None:
        amount = f"{task.items:,} queries, {task.documents:,} documents"
    print_table(
        f"{name} ({kind_name(task.kind)}): {amount}, 95 % intervals", ["", *map(metric_name, metrics)], rows
    )


def _cells(cells: Cells, label: str, systems: Sequence[str]) -> list[str]:
    return [estimate(cells.metrics[name][label]) if name in cells.metrics else "" for name in systems]
