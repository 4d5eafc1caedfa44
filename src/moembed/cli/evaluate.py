"""`moembed evaluate`: quality with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.cli.options import AllowPickle, Dtype, Json, Page, ResultFile, leave, require_page
from moembed.console import interval, print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.evaluation.files import Task
    from moembed.runs.evaluate import Options, Outcome


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(help="Folders, hub ids (owner/name@revision), minilm, or bm25, static, base."),
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
    metrics: Annotated[
        str | None, typer.Option(help="Comma-separated; default: those of each kind of task.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Queries per retrieval task, with hard and relevant documents.")
    ] = None,
    dims: Annotated[str, typer.Option(help="Also with so many coordinates, for instance 64,128,256.")] = "",
    codecs: Annotated[
        str, typer.Option(help="Also stored as float16, int8, binary or binary-symmetric; comma-separated.")
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
    if (tasks is None) == (mteb is None):
        raise UserError(
            "give what to evaluate on: either --tasks with folders and files, or --mteb with names"
        )
    if mteb is not None:
        from moembed.cli.mteb import run_mteb

        dim = next(iter(_dims(dims)), None)
        run_mteb(
            models, mteb, dim=dim, dtype=dtype, allow_pickle=allow_pickle, cache=cache, out=out, json_=json_
        )
        return
    from moembed.runs import evaluate as evaluation

    options = evaluation.Options(
        metrics=_listed(metrics or "") or None, dtype=dtype, allow_pickle=allow_pickle, processes=processes,
        cache=cache, dims=_dims(dims), codecs=_listed(codecs),
    )  # fmt: skip
    if html:
        require_page(html)
    loaded = _load(tasks or [], options)
    folders = evaluation.name_systems(models, baselines, allow_pickle)
    if sample:
        loaded = _sample(loaded, sample, folders.get("static"))
    outcomes = {}
    for name, folder in folders.items():
        outcomes[name] = evaluation.evaluate_system(name, folder, loaded, options, progress_bar)
        _tell_truncated(name, outcomes[name])
        if keep:
            _keep(keep, name, outcomes[name])
    result = evaluation.summarise(outcomes, loaded)
    leave(result, out, html)
    if json_:
        print_json(result)
    else:
        _print(result)


def _listed(option: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in option.split(",") if part.strip())


def _dims(option: str) -> tuple[int, ...]:
    parts = _listed(option)
    if wrong := [part for part in parts if not (part.isdecimal() and int(part))]:
        raise UserError(f"--dims takes whole numbers above zero, such as 64,128, not {wrong[0]!r}")
    return tuple(map(int, parts))


def _load(paths: Sequence[Path], options: Options) -> list[Task]:
    """The tasks, and everything about them and the options that can be refused before a model is loaded."""
    from moembed.evaluation.files import load_any
    from moembed.evaluation.tasks import metrics_of
    from moembed.search.codecs import CODECS

    loaded = [load_any(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    if len({task.name for task in loaded}) < len(loaded):
        raise UserError("two tasks have the same name, which results go by: rename one of them")
    for task in loaded:
        metrics_of(task.kind, options.metrics)
        say(f"{task.name}: read as {task.kind.replace('_', ' ')}, {len(task):,} items")
    for codec in options.codecs:
        if codec not in CODECS:
            raise UserError(f"unknown codec {codec!r}; known are {', '.join(CODECS)}")
    return loaded


def _sample(tasks: Sequence[Task], queries: int, folder: Path | None) -> list[Task]:
    from moembed.embedder import Embedder
    from moembed.evaluation.static import StaticEncoder
    from moembed.runs.evaluate import sample_tasks

    static = StaticEncoder(Embedder.from_pretrained(folder)) if folder else None
    sampled, agreements = sample_tasks(tasks, queries, static)
    for name, agreement in agreements.items():
        say(f"sample of {name}: {agreement}")
    return sampled


def _tell_truncated(name: str, outcome: Outcome) -> None:
    for task, truncated in outcome.truncated.items():
        if truncated:
            say(f"note: {name} cut {truncated:,} texts of {task}: they are longer than it reads")


def _keep(folder: Path, name: str, outcome: Outcome) -> None:
    from moembed.compare.scores import save_scores

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'model'}.parquet"
    save_scores(file, list(outcome.scores.values()), {"system": name, **outcome.about})


# ---- what is printed ---------------------------------------------------------------------------------------


def _print(result: Mapping[str, Any]) -> None:
    from moembed.compare.verdict import sentences
    from moembed.report.words import metric_name

    for name, task in result["tasks"].items():
        for note in task["notes"]:
            say(f"note: {name}: {note}")
    if len(result["tasks"]) == 1:
        _print_task(*next(iter(result["tasks"].items())))
    else:
        systems = result["systems"]
        rows = [
            [name, metric_name(task["main"]), *_cells(task, task["main"], systems)]
            for name, task in result["tasks"].items()
        ]
        if len(result["kinds"]) > 1:
            rows += [
                [f"mean of {kind}", metric_name(row["main"]), *_cells(row, row["main"], systems)]
                for kind, row in result["kinds"].items()
                if row["tasks"] > 1
            ]
        rows.append(["mean of all", "score", *_cells(result["overall"], "score", systems)])
        print_table(f"{len(result['tasks'])} tasks, 95 % intervals", ["", "metric", *systems], rows)
    for name, curve in result["curves"].items():
        points = [[f"{p['dim']}", p["codec"], f"{p['bytes']:,}", interval(p["score"])] for p in curve]
        print_table(f"\n{name}: smaller vectors", ["dim", "codec", "bytes", "score"], points)
    if len(result["systems"]) > 1:
        print()
        for sentence in sentences(result):
            print(sentence)


def _print_task(name: str, task: Mapping[str, Any]) -> None:
    from moembed.report.words import metric_name

    metrics = list(next(iter(task["metrics"].values())))
    rows = [[system, *(interval(cells[m]) for m in metrics)] for system, cells in task["metrics"].items()]
    documents = f", {task['documents']:,} documents" if "documents" in task else ""
    title = f"{name}: {task['items']:,} {'queries' if documents else 'items'}{documents}, 95 % intervals"
    print_table(title, ["", *map(metric_name, metrics)], rows)


def _cells(row: Mapping[str, Any], label: str, systems: Sequence[str]) -> list[str]:
    return [interval(row["metrics"][name][label]) if name in row["metrics"] else "" for name in systems]
