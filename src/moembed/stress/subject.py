"""Who is put to the test: a model, or BM25."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moembed.compare.estimates import Estimate
from moembed.compare.significance import Runs, interval, resample
from moembed.compare.statistics import MEAN
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.systems import KeepsDocuments
from moembed.evaluation.tasks import evaluate, evaluate_bm25
from moembed.search.terms import tokenize

if TYPE_CHECKING:
    from moembed.client.model import Client
    from moembed.embedder import Embedder

DRAWS = 2000  # of the bootstrap


class Subject:
    """Scores tasks; without a model it is BM25.

    Attributes:
        advance: called with the number of texts finished since the last call.
    """

    def __init__(self, name: str, model: Embedder | Client | None) -> None:
        self.name, self.model = name, model
        self.advance: Callable[[int], object] = lambda count: None
        self._encoder = KeepsDocuments(model) if model else None

    @property
    def has_vectors(self) -> bool:
        """Whether a text has one vector: BM25 gives it none, a model of token vectors many."""
        return self.model is not None and not getattr(self.model, "per_token", False)

    @property
    def truncated(self) -> int:
        """Texts embedded so far that were longer than the model reads; BM25 reads everything."""
        return self._encoder.truncated if self._encoder else 0

    @property
    def limit(self) -> int | None:
        """Tokens the model reads of a text; None: there is no end."""
        return self.model.max_length if self.model else None

    def length(self, text: str) -> int:
        """Of a document: its tokens, prompt and special ones included; for BM25 its words."""
        if self.model is None:
            return len(tokenize(text))
        return self.model.num_tokens([text], role="document")[0]

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        """Vectors of a model, of length 1.

        Raises:
            ValueError: BM25 has none.
        """
        if self._encoder is None:
            raise ValueError("BM25 has no vectors")
        return self._encoder.vectors(texts, role="document", progress=self.advance).array

    def score(self, task: RetrievalTask, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        """``[metric] -> (Q,)``; documents equal to those of the last task are not embedded again."""
        if self._encoder:
            scores = evaluate(task, self._encoder, metrics, progress=self.advance)
        else:
            ranked = evaluate_bm25(task, metrics)
            assert ranked is not None, "BM25 ranks documents"
            scores = ranked
        return {name: scores.values[name] for name in metrics}


def mean_of(value_Q: np.ndarray) -> Estimate:
    """The mean over queries with its 95 % bootstrap interval."""
    drawn_RD = resample(MEAN, [value_Q], DRAWS, np.random.default_rng(0))
    return interval(Runs(np.array([value_Q.mean()]), drawn_RD))
