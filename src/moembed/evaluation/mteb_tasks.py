"""Our tasks from disk as tasks of mteb, so that its own runner works on them without a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClusteringLegacy,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import LabelTask, PairTask, Task
from moembed.types import UserError

Subsets = dict[str, Any]  # subset -> split -> what mteb's class of the kind reads

_UNTOLD = "und-Zyyy"  # undetermined language in an undetermined script


def local_task(task: Task) -> Any:
    """The same texts and judgements as a task of mteb, loaded; its scores are those of ``tasks.evaluate``.

    Bitext has a subset for every pair of languages, classification for every language: mteb's main score is
    the mean over subsets, ours the mean over items. The revision of the data is a hash of them, so that no
    cached result outlives a change of the files.

    Raises:
        UserError: grades that are not whole numbers, which mteb cannot count.
    """
    base, kind, main, subsets_of = _KINDS[task.kind]
    subsets = subsets_of(task)
    metadata = TaskMetadata(
        dataset={"path": f"local/{task.name}", "revision": _digest(task)},
        name=task.name,
        description=f"{len(task)} items from disk",
        type=kind,
        eval_splits=["test"],
        eval_langs={subset: [_UNTOLD] for subset in subsets},
        main_score=main,
    )
    made = type(task.name, (base,), {"metadata": metadata})()
    made.dataset, made.data_loaded = subsets, True
    if isinstance(task, RetrievalTask):
        made.ignore_identical_ids = task.same_ids
    return made


def _retrieval(task: Task) -> Subsets:
    assert isinstance(task, RetrievalTask)
    qrels = task.qrels
    if len(broken := qrels.grade[qrels.grade % 1 > 0]):
        raise UserError(f"mteb counts whole grades only, and {task.name} has the grade {broken[0]:g}")
    relevant: dict[str, dict[str, int]] = {query: {} for query in task.query_ids}
    for query, document, grade in zip(qrels.query_R, qrels.document, qrels.grade, strict=True):
        relevant[task.query_ids[query]][task.document_ids[document]] = int(grade)
    candidates = {query: list(judged) for query, judged in relevant.items()}
    data = {
        "corpus": Dataset.from_dict({"id": task.document_ids, "text": task.documents}),
        "queries": Dataset.from_dict({"id": task.query_ids, "text": task.queries}),
        "relevant_docs": relevant,
        "top_ranked": candidates if task.kind == "reranking" else None,
    }
    return {"default": {"test": data}}


def _sts(task: Task) -> Subsets:
    assert isinstance(task, PairTask)
    columns = {"sentence1": task.sentence1, "sentence2": task.sentence2, "score": task.gold_Q}
    return {"default": {"test": Dataset.from_dict(columns)}}


def _pair_classification(task: Task) -> Subsets:
    assert isinstance(task, PairTask)
    labels = task.gold_Q.astype(int)
    columns = {"sentence1": task.sentence1, "sentence2": task.sentence2, "labels": labels}
    return {"default": {"test": Dataset.from_dict(columns)}}


def _bitext(task: Task) -> Subsets:
    assert isinstance(task, PairTask)
    whole = Dataset.from_dict({"sentence1": task.sentence1, "sentence2": task.sentence2})
    return {name: {"test": whole.select(row_P)} for name, row_P in _subsets(task.language)}


def _classification(task: Task) -> Subsets:
    assert isinstance(task, LabelTask)
    whole = Dataset.from_dict({"text": task.texts, "label": _numbers(task.labels)})
    return {
        name: DatasetDict(
            train=whole.select(row_P[task.train_N[row_P]]), test=whole.select(row_P[~task.train_N[row_P]])
        )
        for name, row_P in _subsets(task.language)
    }


def _clustering(task: Task) -> Subsets:
    """mteb clusters sets of texts: here there is one."""
    assert isinstance(task, LabelTask)
    columns = {"sentences": [task.texts], "labels": [_numbers(task.labels)]}
    return {"default": {"test": Dataset.from_dict(columns)}}


_KINDS: dict[str, tuple[Any, Any, str, Callable[[Task], Subsets]]] = {
    "retrieval": (AbsTaskRetrieval, "Retrieval", "ndcg_at_10", _retrieval),
    "reranking": (AbsTaskRetrieval, "Reranking", "map_at_1000", _retrieval),
    "sts": (AbsTaskSTS, "STS", "cosine_spearman", _sts),
    "pair_classification": (
        AbsTaskPairClassification,
        "PairClassification",
        "cosine_ap",
        _pair_classification,
    ),
    "bitext": (AbsTaskBitextMining, "BitextMining", "f1", _bitext),
    "classification": (AbsTaskClassification, "Classification", "accuracy", _classification),
    "clustering": (AbsTaskClusteringLegacy, "Clustering", "v_measure", _clustering),
}


def _subsets(language: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Every language, or pair of languages, and its rows."""
    language_N = np.array(language)
    for name in dict.fromkeys(language):
        yield name or "default", np.flatnonzero(language_N == name)


def _numbers(labels: list[str]) -> np.ndarray:
    """Labels as numbers in their order, for of two labels that are words mteb cannot score the precision."""
    return np.unique(labels, return_inverse=True)[1]


def _digest(task: Task) -> str:
    digest = hashlib.sha256()
    for value in asdict(task).values():
        for item in value if isinstance(value, list) else [value]:
            digest.update(json.dumps(item, default=np.ndarray.tolist).encode())
    return digest.hexdigest()[:40]
