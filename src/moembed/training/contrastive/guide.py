"""A model that says which candidates are no negatives, see `moembed.losses.guided`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moembed.embedder import Embedder
from moembed.encoding import TextEncoder
from moembed.losses.guided import Guided, guided
from moembed.losses.negatives import Duplicates
from moembed.machine import best_dtype
from moembed.search.vectors import VectorCache
from moembed.training.contrastive.settings import GuideConfig


class Guide:
    """Any text encoder, with its own tokenizer, prompts and width, and the settings of the mask.

    With ``cache`` a text is embedded once, in this run and in later ones.
    """

    def __init__(self, encoder: TextEncoder, config: GuideConfig) -> None:
        self.encoder, self.config = encoder, config
        self._caches = {
            role: VectorCache(config.cache, encoder.space(role=role), encoder.dim)
            for role in ("query", "document")
            if config.cache
        }

    @classmethod
    def open(cls, config: GuideConfig | None) -> Guide | None:
        """Load the model that a recipe names."""
        if config is None:
            return None
        return cls(Embedder.from_pretrained(config.model, dtype=best_dtype()), config)

    def mask(
        self, known: Duplicates, queries: Sequence[str], documents: Sequence[str], mirrored: bool
    ) -> Guided:
        """What of a batch is masked: ``known``, and what the guide holds nearer than the positive."""
        query_QM, document_NM = self._vectors(queries, "query"), self._vectors(documents, "document")
        config = self.config
        return guided(known, query_QM, document_NM, config.margin, config.relative, mirrored)

    def _vectors(self, texts: Sequence[str], role: str) -> Tensor:
        def encode(some: Sequence[str]) -> np.ndarray:
            return self.encoder.vectors(some, role=role).array

        cache = self._caches.get(role)
        array = encode(texts) if cache is None else cache.get_or_encode(texts, encode)
        return torch.from_numpy(np.ascontiguousarray(array))
