"""What typos in the queries, and documents that break off, take from a system.

The same queries every time, so each variant is a paired difference to the untouched task. The misspelt words
of a low rate are misspelt alike at the higher ones: rates differ by what is added, not by luck.
"""

from __future__ import annotations

import math
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moembed.compare.estimates import Difference, Estimate
from moembed.compare.significance import paired_difference
from moembed.data.docstrings import collect
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels
from moembed.stress.subject import Subject, mean_of
from moembed.types import UserError

METRIC = "ndcg@10"
RATES = (0.05, 0.1, 0.2)  # share of the words of a query
KEPT = (0.75, 0.5, 0.25)  # share of the characters of a document
_WORD = re.compile(r"[^\W\d_]{2,}")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True, slots=True)
class NoisyScore(Estimate):
    """The score of a variant of the task, and its paired difference to that of the clean one."""

    difference: Difference


@dataclass(frozen=True, slots=True)
class NoiseScores:
    """nDCG@10 of the clean task, by the rate of typos, and by the share of each document that is kept.

    ``truncated`` texts of the clean task were cut at ``limit`` tokens.
    """

    clean: Estimate
    typos: dict[str, NoisyScore]
    kept: dict[str, NoisyScore]
    limit: int | None
    truncated: int


def _neighbours() -> dict[str, str]:
    """Key -> the keys that touch it; each row stands half a key to the right of the one above."""
    at = {(row, 2 * place + row): key for row, keys in enumerate(_ROWS) for place, key in enumerate(keys)}
    around = ((0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1))
    return {key: "".join(at.get((r + dr, x + dx), "") for dr, dx in around) for (r, x), key in at.items()}


_NEIGHBOURS = _neighbours()


def _swap(word: str, i: int, pick: float) -> str:
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _drop(word: str, i: int, pick: float) -> str:
    return word[:i] + word[i + 1 :]


def _double(word: str, i: int, pick: float) -> str:
    return word[: i + 1] + word[i:]


def _neighbour(word: str, i: int, pick: float) -> str:
    """A letter that is not on the keyboard is doubled."""
    keys = _NEIGHBOURS.get(word[i].lower())
    if keys is None:
        return _double(word, i, pick)
    key = keys[int(pick * len(keys))]
    return word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :]


TYPOS: dict[str, Callable[[str, int, float], str]] = {
    "swap": _swap,
    "drop": _drop,
    "double": _double,
    "neighbour": _neighbour,
}


def misspell(text: str, rate: float, seed: int | list[int] = 0) -> str:
    """Each word (of two letters or more) has one typo with probability ``rate``, of a random kind and place.

    A typo swaps a letter with the next, drops it, doubles it, or hits a neighbouring key (QWERTY), so a word
    grows or shrinks by one letter at most; swapping equal letters leaves it as it was.
    """
    rng = np.random.default_rng(seed)
    kinds = list(TYPOS.values())

    def perhaps(match: re.Match[str]) -> str:
        word = match[0]
        chance, kind, place, pick = rng.random(4)  # drawn for every word: the same at every rate
        if chance >= rate:
            return word
        return kinds[int(kind * len(kinds))](word, int(place * (len(word) - 1)), pick)

    return _WORD.sub(perhaps, text)


def with_typos(task: RetrievalTask, rate: float, seed: int = 0) -> RetrievalTask:
    queries = [misspell(query, rate, [seed, row]) for row, query in enumerate(task.queries)]
    return replace(task, queries=queries)


def cut_short(task: RetrievalTask, kept: float) -> RetrievalTask:
    """Only the first ``kept`` of the characters of every document, rounded up."""
    return replace(task, documents=[text[: math.ceil(kept * len(text))] for text in task.documents])


def docstring_task(documents: int = 400, seed: int = 0) -> RetrievalTask:
    """Docstring summaries looking for their functions: ``documents`` of those in Python's standard library.

    Raises:
        UserError: the library's source is not there.
    """
    found = collect([Path(sysconfig.get_path("stdlib"))], unseen_documents=0).train
    if len(found) < documents:
        raise UserError(
            f"Python's library shows {len(found)} functions with a docstring, too few for a test: pass --task"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(found))[:documents])
    row_N = np.arange(documents)
    ids = [f"{found[i].file}:{found[i].line}" for i in chosen]
    return RetrievalTask(
        name="standard-library-docstrings",
        queries=[found[i].query for i in chosen],
        documents=[found[i].document for i in chosen],
        qrels=Qrels.from_judgements(row_N, row_N, np.ones(documents), documents),
        query_ids=ids,
        document_ids=ids,
        notes=[],
    )


def measure(subject: Subject, task: RetrievalTask, seed: int = 0) -> NoiseScores:
    """nDCG@10 of the clean task, and of every variant with its paired difference to the clean one."""
    cut = subject.truncated
    clean_Q = _score(subject, task)
    truncated = subject.truncated - cut

    def variant(changed: RetrievalTask) -> NoisyScore:
        value_Q = _score(subject, changed)
        score = mean_of(value_Q)
        return NoisyScore(score.value, score.low, score.high, paired_difference(value_Q, clean_Q))

    return NoiseScores(
        clean=mean_of(clean_Q),
        typos={str(rate): variant(with_typos(task, rate, seed)) for rate in RATES},
        kept={str(kept): variant(cut_short(task, kept)) for kept in KEPT},
        limit=subject.limit,
        truncated=truncated,
    )


def _score(subject: Subject, task: RetrievalTask) -> np.ndarray:
    return subject.score(task, [METRIC])[METRIC]
