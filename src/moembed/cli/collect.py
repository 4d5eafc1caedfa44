"""`moembed data collect`: pairs from what is installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moembed.cli.options import Json
from moembed.console import print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.evaluation.files import Task


def collect(
    source: Annotated[
        list[str],
        typer.Option(help="docstrings, mo, libreoffice-help, man or package-descriptions; several times."),
    ],
    out: Annotated[Path, typer.Option(help="The file of pairs: .jsonl, .jsonl.gz or .jsonl.zst.")],
    root: Annotated[
        Path | None, typer.Option(help="Look below this folder, laid out like the root of a machine.")
    ] = None,
    min_letters: Annotated[int, typer.Option(min=1, help="Queries with fewer letters are left out.")] = 10,
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--tasks", help="Tasks, as of evaluate: pairs that hold their texts are left out."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    json_: Json = False,
) -> None:
    """Pairs from what is installed here: message catalogues, manual pages, help, package descriptions.

    Nothing is downloaded. Every row has its language, its package and the licence that this names.

    Example: `moembed data collect --source mo --source man --out installed.jsonl`
    """
    from moembed.data.collect.run import collect_pairs
    from moembed.data.overlap import TaskTexts

    if out.exists() and not overwrite:
        raise UserError(f"{out} already exists: choose another name, or pass --overwrite")
    loaded = open_tasks(tasks or ())
    texts = {task.name: list(chain(*task_texts(task))) for task in loaded}
    known = TaskTexts(texts) if loaded else None
    with progress_bar("collecting", None) as advance:
        done = collect_pairs(source, out, root, min_letters, known, advance)
    if not loaded:
        say("note: the pairs were not compared with evaluation tasks: pass --tasks to leave such pairs out")
    if unknown := sum(count["unknown"] for count in done.licences.values()):
        say(f"note: {unknown:,} pairs have the licence unknown: their packages name none that programs read")
    if json_:
        print_json({"out": str(out), "pairs": done.pairs} | done.to_json())
        return
    languages = sorted({language for count in done.counts.values() for language in count})
    print_table(
        f"{out}: pairs by source and language of the document",
        ["", *done.counts],
        [[one, *(f"{count[one]:,}" for count in done.counts.values())] for one in languages]
        + [["all", *(f"{sum(count.values()):,}" for count in done.counts.values())]],
    )
    for name in done.counts:
        for what, some in (("licences", done.licences[name]), ("left out", done.skipped[name])):
            if some:
                print(f"{name}, {what}: {', '.join(f'{key} {n:,}' for key, n in some.most_common(12))}")


def open_tasks(paths: Sequence[Path]) -> list[Task]:
    """The tasks of these folders and files; the same one twice counts once.

    Raises:
        UserError: as `moembed.evaluation.files.load_any`; two tasks have the same name.
    """
    from moembed.evaluation.files import load_any

    loaded = [load_any(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    if len({task.name for task in loaded}) < len(loaded):
        raise UserError("two tasks have the same name, which counts go by: rename one of them")
    return loaded


def task_texts(task: Task) -> tuple[list[str], list[str]]:
    """What training queries and training documents are compared with: the queries and the documents that
    answer one; of other tasks, whose texts are neither, all that are scored, for both."""
    from moembed.evaluation.beir import RetrievalTask
    from moembed.evaluation.files import PairTask

    if isinstance(task, RetrievalTask):
        relevant = task.qrels.document[task.qrels.grade > 0]
        return task.queries, [task.documents[row] for row in sorted(set(relevant.tolist()))]
    if isinstance(task, PairTask):
        texts = [*task.sentence1, *task.sentence2]
    else:
        texts = [text for text, teaches in zip(task.texts, task.train_N, strict=True) if not teaches]
    distinct = list(dict.fromkeys(texts))
    return distinct, distinct
