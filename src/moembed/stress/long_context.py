"""Can a document be found by one sentence in it, however long it is and wherever the sentence stands?

Every cell has its own task: documents of one length that differ in a single sentence at one depth, and for
each of them a question that only this sentence answers.

Source: after the passkey and needle tasks of Zhu et al., *LongEmbed: Extending Embedding Models for Long
Context Retrieval* (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moembed.compare.estimates import Estimate
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels
from moembed.stress.subject import Subject
from moembed.stress.texts import FACTS, FILLER, filler, people
from moembed.types import UserError

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DOCUMENTS = len(FACTS)
SHORTEST = 64  # a needle and something around it
_Z = 1.96  # of a 95 % interval

Length = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class LongScore(Estimate):
    """The share of questions whose document comes first, of one length and one depth."""

    length: int
    depth: float
    documents: int
    truncated: int


@dataclass(frozen=True, slots=True)
class LongScores:
    """What a system finds in long documents.

    Attributes:
        unit: what lengths count: tokens of the model, or words for BM25.
        limit: what the system reads of a text; None: all of it.
        skipped: lengths of ``LENGTHS`` that were not asked because the model does not read them whole.
        passkey, needle: every length, and within it every depth.
    """

    unit: str
    limit: int | None
    skipped: list[int]
    passkey: list[LongScore]
    needle: list[LongScore]


def passkeys(rng: np.random.Generator) -> list[tuple[str, str]]:
    """(sentence, question): a person's pass key."""
    key_N = rng.choice(np.arange(10_000, 100_000), size=DOCUMENTS, replace=False)
    return [
        (
            f"The pass key for {name} is {key}. Keep it in mind: {key} is the pass key.",
            f"What is the pass key for {name}?",
        )
        for name, key in zip(people(DOCUMENTS, rng), key_N, strict=True)
    ]


def needles(rng: np.random.Generator) -> list[tuple[str, str]]:
    """(sentence, question): an odd fact."""
    return [FACTS[i] for i in rng.permutation(len(FACTS))]


KINDS = {"passkey": passkeys, "needle": needles}


def haystack(needle: str, length: int, depth: float, measured: Length, rng: np.random.Generator) -> str:
    """``needle`` after the share ``depth`` of as many filler sentences as ``length`` leaves room for.

    The text is at most ``length`` long by ``measured``, and shorter by less than one sentence.
    """
    if measured(needle) > length:
        raise UserError(f"{length} tokens are too few for the sentence to find: {needle!r}")
    around: list[str] = []
    room = length - measured(needle)
    empty = measured("")  # prompt and special tokens, counted once per text
    for row in filler(rng):
        room -= measured(FILLER[row]) - empty
        if room < 0:
            break
        around.append(FILLER[row])
    while measured(text := _around(needle, around, depth)) > length:
        around.pop()  # sentences side by side may take a few tokens more than by themselves
    return text


def _around(needle: str, sentences: list[str], depth: float) -> str:
    place = round(depth * len(sentences))
    return " ".join([*sentences[:place], needle, *sentences[place:]])


def long_task(kind: str, length: int, depth: float, measured: Length, seed: int = 0) -> RetrievalTask:
    """``DOCUMENTS`` haystacks with a needle each; every needle's question is a query."""
    rng = np.random.default_rng([seed, length])
    pairs = KINDS[kind](rng)
    row_N = np.arange(len(pairs))
    ids = [str(row) for row in row_N]
    return RetrievalTask(
        name=f"{kind}-{length}-{depth:g}",
        queries=[question for _, question in pairs],
        documents=[haystack(sentence, length, depth, measured, rng) for sentence, _ in pairs],
        qrels=Qrels.from_judgements(row_N, row_N, np.ones(len(row_N)), len(row_N)),
        query_ids=ids,
        document_ids=ids,
        notes=[],
    )


def measure(subject: Subject, lengths: Sequence[int] | None = None, seed: int = 0) -> LongScores:
    """Share of questions whose document comes first, for both kinds and every length and depth.

    Args:
        lengths: in tokens of the model, in words for BM25; longer documents than the model reads are cut and
            counted. Default: those of ``LENGTHS`` that it reads whole.
    """
    limit = subject.limit
    whole = [n for n in LENGTHS if limit is None or n <= limit] or [max(limit or 0, SHORTEST)]
    chosen = sorted(set(lengths)) if lengths else whole
    return LongScores(
        unit="tokens" if subject.model else "words",
        limit=limit,
        skipped=[n for n in LENGTHS if not lengths and n not in whole],
        **{
            kind: [_score(subject, kind, length, depth, seed) for length in chosen for depth in DEPTHS]
            for kind in KINDS
        },
    )


def _score(subject: Subject, kind: str, length: int, depth: float, seed: int) -> LongScore:
    cut = subject.truncated
    task = long_task(kind, length, depth, subject.length, seed)
    first_Q = subject.score(task, ["recall@1"])["recall@1"]
    share = wilson(int(first_Q.sum()), len(first_Q))
    documents, truncated = len(task.documents), subject.truncated - cut
    return LongScore(share.value, share.low, share.high, length, depth, documents, truncated)


def wilson(hits: int, trials: int) -> Estimate:
    """A share and its 95 % interval, which has a width even where all or none were hit.

    Source: Wilson, *Probable inference, the law of succession, and statistical inference* (1927).
    """
    share, weight = hits / trials, _Z**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))
