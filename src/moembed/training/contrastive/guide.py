"""A model that says which candidates are no negatives, see `moembed.losses.guided`."""

from __future__ import annotations

from collections.abc import Sequence

from moembed.embedder import Embedder
from moembed.encoding import TextEncoder
from moembed.losses.guided import Guided, guided
from moembed.losses.negatives import Duplicates
from moembed.machine import best_dtype
from moembed.training.contrastive.settings import GuideConfig
from moembed.training.contrastive.teachers import CachedEncoder


class Guide:
    """Any text encoder, with its own tokenizer, prompts and width, and the settings of the mask.

    With ``cache`` a text is embedded once, in this run and in later ones.
    """

    def __init__(self, encoder: TextEncoder, config: GuideConfig) -> None:
        self.encoder, self.config = encoder, config
        self._cached = CachedEncoder(encoder, config.cache)

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
        vectors, config = self._cached.vectors, self.config
        query_QM, document_NM = vectors(queries, "query"), vectors(documents, "document")
        return guided(known, query_QM, document_NM, config.margin, config.relative, mirrored)
