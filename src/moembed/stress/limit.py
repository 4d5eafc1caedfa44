"""LIMIT: who likes what, when every pair of people is the whole answer to some query.

The texts are trivial and BM25 solves them; a vector per text has to place every document so that any two of
them can be the nearest to some query, of which there are more than dimensions can tell apart with ease.

Source: Weller, Boratko, Naim and Lee, *On the Theoretical Limitations of Embedding-Based Retrieval* (2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moembed.compare.estimates import Estimate
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels
from moembed.stress.subject import Subject, mean_of
from moembed.stress.texts import FIRST_NAMES, LAST_NAMES, THINGS, people
from moembed.types import UserError

RELEVANT = 2  # documents that answer a query
CUTS = (2, 10, 20)


@dataclass(frozen=True, slots=True)
class LimitScores:
    """Recall at each of ``CUTS``, and how many texts were cut at ``limit`` tokens."""

    metrics: dict[str, Estimate]
    limit: int | None
    truncated: int


def limit_task(documents: int = 46, queries: int = 1000, seed: int = 0) -> RetrievalTask:
    """A fresh instance: ``documents`` people, and a query for each of up to ``queries`` pairs of them.

    Each query asks for one thing, which exactly the two people of its pair like; of more pairs than
    ``queries`` it is a random sample. The published set has 46 people and 1,000 of their 1,035 pairs.

    Raises:
        UserError: fewer than three people, or more people, or more queries, than there are names or things.
    """
    names = len(FIRST_NAMES) * len(LAST_NAMES)
    if not RELEVANT < documents <= names:
        raise UserError(f"LIMIT needs {RELEVANT + 1} to {names:,} people, not {documents}")
    if not 0 < queries <= len(THINGS):
        raise UserError(f"LIMIT has things to like for 1 to {len(THINGS):,} queries, not {queries}")
    rng = np.random.default_rng(seed)
    name_N = people(documents, rng)
    pair_P2 = np.array(list(combinations(range(documents), RELEVANT)))
    pair_Q2 = rng.permutation(pair_P2)[:queries]
    thing_Q = rng.permutation(THINGS)[: len(pair_Q2)].tolist()
    liked: list[list[str]] = [[] for _ in name_N]
    for pair, thing in zip(pair_Q2, thing_Q, strict=True):
        for person in pair:
            liked[person].append(thing)
    query_R = np.repeat(np.arange(len(pair_Q2)), RELEVANT)
    return RetrievalTask(
        name=f"limit-{documents}-seed-{seed}",
        queries=[f"Who likes {thing}?" for thing in thing_Q],
        documents=[_profile(name, likes) for name, likes in zip(name_N, liked, strict=True)],
        qrels=Qrels.from_judgements(query_R, pair_Q2.ravel(), np.ones(len(query_R)), len(pair_Q2)),
        query_ids=[f"q{i}" for i in range(len(pair_Q2))],
        document_ids=list(name_N),
        notes=[],
    )


def _profile(name: str, likes: list[str]) -> str:
    *most, last = likes or ["nothing in particular"]
    return f"{name} likes {', '.join(most)} and {last}." if most else f"{name} likes {last}."


def chance(task: RetrievalTask) -> dict[str, float]:
    """What a random order of the documents scores: recall@k = min(k / N, 1)."""
    return {f"recall@{k}": min(k / len(task.documents), 1.0) for k in CUTS}


def measure(subject: Subject, task: RetrievalTask) -> LimitScores:
    """What a system scores on an instance."""
    cut = subject.truncated
    values = subject.score(task, [f"recall@{k}" for k in CUTS])
    metrics = {name: mean_of(value_Q) for name, value_Q in values.items()}
    return LimitScores(metrics, subject.limit, subject.truncated - cut)
