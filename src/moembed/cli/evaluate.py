"""`moembed evaluate`: quality with intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.cli.options import AllowPickle, Dtype, Json, load_model
from moembed.console import interval, print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.evaluate.beir import RetrievalTask
    from moembed.evaluate.compare import Comparison
    from moembed.model.embedder import Embedder


def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Folders, hub ids (owner/name@revision), minilm, bm25.")
    ],
    tasks: Annotated[list[Path], typer.Option("--tasks", help="BEIR-layout folders (JSONL/TSV or Parquet).")],
    metrics: Annotated[str, typer.Option(help="Comma-separated.")] = "ndcg@10,recall@10,mrr@10",
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON result to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page (and its figures beside it, as .json).")
    ] = None,
    json_: Json = False,
) -> None:
    """Retrieval quality with 95 % bootstrap intervals over queries.

    With `--json` also the paired difference of every model to the last one, with its p-value. The page of
    `--html` says whether the last model beats the first, on every task and on the mean of all.

    Example: `moembed evaluate runs/demo minilm bm25 --tasks data/scifact data/nfcorpus`
    """
    from moembed.evaluate.beir import load_task
    from moembed.evaluate.compare import compare

    if html:
        _require_page(html)
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    loaded = [load_task(task) for task in dict.fromkeys(task.resolve() for task in tasks)]
    if len({task.name for task in loaded}) < len(loaded):
        raise UserError("two tasks have folders of the same name, which results go by: rename one of them")
    scores = _scores(models, loaded, names, dtype, allow_pickle)
    compared = {task: compare(by_model) for task, by_model in scores.items()}
    answer = {
        task.name: {
            "queries": len(task.queries),
            "documents": len(task.documents),
            "notes": task.notes,
            "metrics": compared[task.name].metrics,
            "differences": compared[task.name].differences,
        }
        for task in loaded
    }
    if out:
        out.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    overall = compare(*scores.values())
    if html:
        _write_page(html, {"overall": asdict(overall), "tasks": answer})
    if json_:
        print_json(answer)
        return
    for task in loaded:
        for note in task.notes:
            say(f"note: {task.name}: {note}")
        title = f"{task.name}: {len(task.queries):,} queries, {len(task.documents):,} documents"
        _print_metrics(title, compared[task.name], names)
    if len(loaded) > 1:
        _print_metrics(f"mean over {len(loaded)} tasks", overall, names)


def _scores(
    models: list[str], tasks: list[RetrievalTask], metrics: list[str], dtype: str, allow_pickle: bool
) -> dict[str, dict[str, Any]]:
    """``[task][model][metric] -> (Q,)``; one model is in memory at a time."""
    from moembed.evaluate.tasks import evaluate_bm25, evaluate_retrieval

    scores: dict[str, dict[str, Any]] = {task.name: {} for task in tasks}
    for name in models:
        model = None if name == "bm25" else load_model(name, dtype, allow_pickle)
        for task in tasks:
            if model is None:
                scores[task.name][name] = evaluate_bm25(task, metrics).per_query
                continue
            encode = _Counted(model, f"{name} on {task.name}", len(task.queries) + len(task.documents))
            with encode:
                result = evaluate_retrieval(task, encode.query, encode.document, metrics)
            scores[task.name][name] = result.per_query
            if encode.truncated:
                say(
                    f"note: {name} cut {encode.truncated} texts of {task.name} "
                    f"at {model.tokenizer.max_length} tokens"
                )
    return scores


def _require_page(path: Path) -> None:
    """Refuse now what would fail after the models have been evaluated."""
    from moembed.page.plots import require_matplotlib

    if path.suffix != ".html":
        raise UserError(f"--html {path} does not end in .html: the figures go beside the page as .json")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    require_matplotlib()


def _write_page(path: Path, result: dict[str, Any]) -> None:
    from moembed.evaluate.page import summary, write_page

    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_page(path, result)
    say(f"{summary(result)} The page is {path}")


def _print_metrics(title: str, compared: Comparison, names: list[str]) -> None:
    rows = [
        [model, *(interval(cell) for cell in cells.values())] for model, cells in compared.metrics.items()
    ]
    print_table(title, ["model", *names], rows)


class _Counted:
    """Both roles of a model behind one progress bar, counting the texts that were cut."""

    def __init__(self, model: Embedder, what: str, total: int) -> None:
        self.model, self.truncated = model, 0
        self.bar = progress_bar(what, total)

    def __enter__(self) -> None:
        self.advance = self.bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def query(self, texts: list[str]) -> Any:
        return self._encode(texts, "query")

    def document(self, texts: list[str]) -> Any:
        return self._encode(texts, "document")

    def _encode(self, texts: list[str], role: str) -> Any:
        vectors, truncated = self.model.encode_counted(
            texts, self.model.role_prompt(role), progress=self.advance
        )
        self.truncated += truncated
        return vectors
