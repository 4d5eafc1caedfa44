"""Another space of the items of a batch, whose scores are learned, see `moembed.losses.item_pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.data.layouts import plain_rows
from moembed.data.readers import text_problem
from moembed.data.sources import Source
from moembed.data.text_key import text_number
from moembed.embedder import Embedder
from moembed.machine import best_dtype
from moembed.training.contrastive.settings import ItemPairsConfig
from moembed.training.contrastive.teachers import CachedEncoder
from moembed.types import UserError

_LOOKED_AT = 256  # documents of each source, to see whether the other space knows them


@dataclass(frozen=True, slots=True)
class Items:
    """The distinct items of a batch that the other space knows: their places among its candidates, and their
    unit vectors there."""

    place_I: Tensor
    vector_IK: Tensor
    weight: float


class Space(Protocol):
    """Vectors of some texts, in their order, and which of the texts they are of."""

    def known(self, texts: Sequence[str]) -> tuple[list[int], Tensor]: ...


class StoredSpace:
    """Row i of a .npy matrix is the vector of the text of row i of a file.

    Texts that are equal by `moembed.data.text_key` are one item; the first of them counts.

    Raises:
        UserError: a file that is missing or no matrix of finite floats, other numbers of rows, a row without
            a text, a vector of zeros.
    """

    def __init__(self, vectors: Path, items: Path, column: str) -> None:
        try:
            self._vector_RK = np.load(vectors, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"item_pairs.vectors: cannot read {vectors}: {error}") from None
        matrix = isinstance(self._vector_RK, np.ndarray) and self._vector_RK.ndim == 2  # a .npz is no array
        if not matrix or not np.issubdtype(self._vector_RK.dtype, np.floating):
            raise UserError(f"item_pairs.vectors: {vectors} is no matrix of floats, a row for each item")
        norm_R = np.linalg.norm(np.asarray(self._vector_RK, dtype=np.float32), axis=1)
        if not (np.isfinite(norm_R) & (norm_R > 0)).all():
            bad = int(np.argmin(np.isfinite(norm_R) & (norm_R > 0))) + 1
            raise UserError(f"item_pairs.vectors: row {bad} of {vectors} is zero, NaN or infinite")
        self._row: dict[int, int] = {}
        count = 0
        for number, row in enumerate(plain_rows(items)):
            text = row.get(column)
            if problem := text_problem(text):
                raise UserError(f"item_pairs.items: row {number + 1} of {items}: column {column!r} {problem}")
            self._row.setdefault(text_number(str(text)), number)
            count += 1
        if count != len(norm_R):
            raise UserError(
                f"item_pairs: {vectors} has {len(norm_R):,} vectors and {items} {count:,} rows: one for each"
            )

    def known(self, texts: Sequence[str]) -> tuple[list[int], Tensor]:
        found = [(place, self._row.get(text_number(text))) for place, text in enumerate(texts)]
        rows = [row for _, row in found if row is not None]
        vector_IK = torch.from_numpy(np.asarray(self._vector_RK[rows], dtype=np.float32))
        return [place for place, row in found if row is not None], vector_IK


class ModelSpace:
    """The documents of a model, of any width, tokenizer and prompts: it knows every text."""

    def __init__(self, encoder: CachedEncoder) -> None:
        self._encoder = encoder

    def known(self, texts: Sequence[str]) -> tuple[list[int], Tensor]:
        return list(range(len(texts))), self._encoder.vectors(texts, "document")


class ItemSpace:
    """The other space of a recipe."""

    def __init__(self, space: Space, config: ItemPairsConfig) -> None:
        self.config, self._space = config, space

    @classmethod
    def open(cls, config: ItemPairsConfig | None) -> ItemSpace | None:
        """Load the model, or the vectors, that a recipe names."""
        if config is None:
            return None
        if config.teacher:
            model = Embedder.from_pretrained(config.teacher, dtype=best_dtype())
            return cls(ModelSpace(CachedEncoder(model, config.cache)), config)
        assert config.vectors
        assert config.items
        return cls(StoredSpace(Path(config.vectors), Path(config.items), config.column), config)

    def notes(self, sources: Sequence[Source]) -> list[str]:
        """How many of some documents it knows, where it does not know all texts.

        Raises:
            UserError: none of them.
        """
        if self.config.teacher:
            return []
        texts = []
        for source in sources:
            rows = np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int))
            texts += [pair.document for pair in source.pairs(rows)]
        known = len(self._space.known(texts)[0])
        if not known:
            raise UserError(
                f"item_pairs.items {self.config.items} has none of {len(texts):,} documents of the data: the "
                f"texts of its column {self.config.column!r} must be those of the documents"
            )
        return [f"item_pairs knows {known:,} of {len(texts):,} documents that were looked up"]

    def items(self, texts: Sequence[str], key_N: Tensor) -> Items:
        """What it knows of the candidates of a batch.

        Args:
            key_N: equal texts, equal numbers.
        """
        first = list({key: place for place, key in reversed(list(enumerate(key_N.tolist())))}.values())
        places = sorted(first)
        known, vector_IK = self._space.known([texts[place] for place in places])
        place_I = torch.tensor([places[i] for i in known], dtype=torch.long)
        return Items(place_I, F.normalize(vector_IK.float(), dim=-1), self.config.weight)
