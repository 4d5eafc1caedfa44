"""Models whose ranking of the candidates a student learns, see `moembed.losses.score_distillation`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moembed.embedder import Embedder
from moembed.encoding import TextEncoder
from moembed.inference.token_vectors import require_vector_of_text
from moembed.losses.score_distillation import teacher_distribution
from moembed.machine import best_dtype
from moembed.search.vectors import VectorCache
from moembed.training.contrastive.settings import ScoreDistillConfig
from moembed.types import Pair


@dataclass(frozen=True, slots=True)
class Distilled:
    """What teachers say of a batch: their distribution over the candidates of every query, and how much it
    counts.

    ``among_QN`` is True for the candidates that are ranked; ``temperature`` None: that of the loss.
    """

    target_QN: Tensor
    among_QN: Tensor
    temperature: float | None
    weight: float


class CachedEncoder:
    """Any text encoder; with ``folder`` a text is embedded once, in this run and in later ones.

    Raises:
        UserError: it makes a vector of every token.
    """

    def __init__(self, encoder: TextEncoder, folder: str | None) -> None:
        require_vector_of_text(encoder, "a guide or a teacher")
        self.encoder = encoder
        self._caches = {
            role: VectorCache(folder, encoder.space(role=role), encoder.dim)
            for role in ("query", "document")
            if folder
        }
        # batches are made in several threads, and a cache is filled by one at a time
        self._filling = threading.Lock()

    def vectors(self, texts: Sequence[str], role: str) -> Tensor:
        """Unit vectors, float32 ``(len(texts), M)``."""

        def encode(some: Sequence[str]) -> np.ndarray:
            return self.encoder.vectors(some, role=role).array

        if (cache := self._caches.get(role)) is None:
            array = encode(texts)
        else:
            with self._filling:
                array = cache.get_or_encode(texts, encode)
        return torch.from_numpy(np.ascontiguousarray(array))


class Teachers:
    """One or several text encoders, of any width, tokenizer and prompts."""

    def __init__(self, encoders: Sequence[TextEncoder], config: ScoreDistillConfig) -> None:
        self.config = config
        self._encoders = [CachedEncoder(encoder, config.cache) for encoder in encoders]

    @classmethod
    def open(cls, config: ScoreDistillConfig | None) -> Teachers | None:
        """Load the models that a recipe names; None: it names none."""
        if config is None or config.teachers is None:
            return None
        dtype = best_dtype()
        return cls([Embedder.from_pretrained(name, dtype=dtype) for name in config.teachers], config)

    def judge(self, queries: Sequence[str], documents: Sequence[str], owner_N: Tensor) -> Distilled:
        """The teachers' distribution over ``documents`` for every query.

        Args:
            owner_N: the query that each document was given for, as a positive or as a hard negative.
        """
        config, own_Q1 = self.config, torch.arange(len(queries))[:, None]
        everyone_QN = torch.ones(len(queries), len(documents), dtype=torch.bool)
        among_QN = everyone_QN if config.candidates == "batch" else owner_N[None] == own_Q1
        scores = [
            encoder.vectors(queries, "query") @ encoder.vectors(documents, "document").T
            for encoder in self._encoders
        ]
        target_QN = teacher_distribution(scores, among_QN, config.temperature, config.normalize)
        return Distilled(target_QN, among_QN, config.student_temperature, config.weight)


def judged_by_data(
    pairs: Sequence[Pair], owner_N: Tensor, num_negatives: int | None, config: ScoreDistillConfig
) -> Distilled:
    """The distribution that the scores of the pairs give over the candidates of each query's own.

    Args:
        owner_N: the query of every candidate: the documents of all pairs, then their hard negatives.
    """
    hard = [score for pair in pairs for score in pair.scores[1:][:num_negatives]]
    score_N = torch.tensor([*(pair.scores[0] for pair in pairs), *hard], dtype=torch.float32)
    among_QN = owner_N[None] == torch.arange(len(pairs))[:, None]
    score_QN = score_N.expand(len(pairs), -1)
    target_QN = teacher_distribution([score_QN], among_QN, config.temperature, config.normalize)
    return Distilled(target_QN, among_QN, config.student_temperature, config.weight)
