"""What a system scored on a task: a number per query, pair or text, so that differences can be tested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moembed.compare.statistics import STATISTICS, Statistic, statistic
from moembed.files import unfinished
from moembed.types import UserError

__all__ = ["MAIN", "STATISTICS", "Scores", "Statistic", "load_scores", "save_scores", "statistic"]

# the metric a task is summed up by
MAIN = {
    "retrieval": "ndcg@10",
    "reranking": "map",
    "sts": "spearman",
    "pair_classification": "ap",
    "bitext": "f1",
    "classification": "accuracy",
    "clustering": "v_measure",
}

_ABOUT = b"moembed.scores"  # key of the file's metadata
_NAME = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    {
        "task": _NAME,
        "kind": _NAME,
        "metric": _NAME,
        "item": pa.string(),
        "language": _NAME,
        "length": pa.int64(),
        "value": pa.float64(),
        "right": pa.float64(),
    }
)


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one system on one task: a row for each of its ``Q`` items, which are queries, pairs or texts.

    ``values`` maps a metric to ``(Q,)`` numbers whose mean is the score, or to ``(Q, 2)`` pairs (what was
    predicted, what is right) whose ``statistic`` is. ``language`` is "" where it is not known, ``length``
    counts characters. Scores of two systems can be compared where ``item`` is equal.
    ``notes`` says, a sentence each, what of the scores needs a word. ``ranked_QK`` holds, of retrieval and
    reranking, the rows of the documents that were found, best first, -1 after the last. Both are not saved.
    """

    task: str
    kind: str
    item: list[str]
    language: list[str]
    length: np.ndarray
    values: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)
    ranked_QK: np.ndarray | None = None


def save_scores(path: str | Path, scores: Sequence[Scores], about: Mapping[str, Any]) -> None:
    """Write the scores of one system (and seed) as one Parquet file, which is whole or not there.

    A row is an item under a metric: ``task, kind, metric, item, language, length, value, right``; ``right``
    is null where the score is a mean.

    Args:
        about: what the file knows of the system, such as ``{"system", "space_id", "seed"}``; as JSON.

    Raises:
        UserError: nothing to write, or a disk that is full or not writable.
    """
    path = Path(path)
    if not any(task.values for task in scores):
        raise UserError(f"there are no scores to write to {path}")
    table = pa.concat_tables([_rows(task, metric) for task in scores for metric in task.values])
    table = table.unify_dictionaries().replace_schema_metadata({_ABOUT: json.dumps(about)})
    with unfinished(path) as part:
        pq.write_table(table, part, compression="zstd")


def load_scores(path: str | Path) -> tuple[list[Scores], dict[str, Any]]:
    """What ``save_scores`` was given: the scores and ``about``.

    Raises:
        UserError: no such file, one that is cut off, or one that is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file of scores: {path}")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the scores in {path}: {reason}; evaluate again") from None
    metadata = table.schema.metadata or {}
    if _ABOUT not in metadata or not table.schema.equals(_SCHEMA, check_metadata=False):
        raise UserError(
            f"{path} is not a file of scores: give one that `moembed evaluate … --keep FOLDER` wrote"
        )
    tasks = table["task"].unique().to_pylist()
    task_of_row = np.array(table["task"].to_pylist())
    scores = [_scores(task, table.filter(pa.array(task_of_row == task))) for task in tasks]
    return scores, json.loads(metadata[_ABOUT])


def _rows(scores: Scores, metric: str) -> pa.Table:
    value = np.asarray(scores.values[metric], dtype=np.float64)
    items = len(value)
    columns = {
        "task": [scores.task] * items,
        "kind": [scores.kind] * items,
        "metric": [metric] * items,
        "item": scores.item,
        "language": scores.language,
        "length": scores.length,
        "value": value if value.ndim == 1 else value[:, 0],
        "right": pa.nulls(items) if value.ndim == 1 else value[:, 1],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in _SCHEMA]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _scores(task: str, table: pa.Table) -> Scores:
    metric_of_row = np.array(table["metric"].to_pylist())
    values = {}
    for metric in table["metric"].unique().to_pylist():
        rows = table.filter(pa.array(metric_of_row == metric))
        value, right = (rows[column].to_numpy() for column in ("value", "right"))
        values[metric] = value if rows["right"].null_count else np.stack([value, right], axis=1)
    return Scores(
        task=task,
        kind=table["kind"][0].as_py(),
        item=rows["item"].to_pylist(),
        language=rows["language"].to_pylist(),
        length=rows["length"].to_numpy(),
        values=values,
    )
