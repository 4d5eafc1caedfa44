"""Static word vectors as a `moembed.encoding.TextEncoder`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.encoding import FULL, Progress, Vectors, View, as_texts, role_prompt, truncate
from moembed.folder.bases import locate_base
from moembed.folder.static import ANY_LENGTH, StaticParts, read_static
from moembed.inference.options import check_limits
from moembed.inference.sentences import Sentences
from moembed.inference.windows import windows
from moembed.tokenizer import check_prompt
from moembed.types import UserError


class StaticEmbedder(Sentences):
    """A row per token, and the vector of a text is the mean of its rows, of length 1.

    Folders of sentence-transformers (``StaticEmbedding``) and of model2vec. There are no layers and no
    special tokens; a text without a single token has the vector of zeros. model2vec itself also leaves out
    unknown tokens and cuts long texts; sentence-transformers does neither, and this does as it does.

    >>> model = StaticEmbedder.from_pretrained("static-folder")    # doctest: +SKIP
    >>> model.encode(["read a parquet file lazily"]).shape         # doctest: +SKIP
    (1, 256)
    """

    def __init__(self, parts: StaticParts) -> None:
        self.table_VD: Tensor = parts.table_VD
        self.tokenizer = parts.tokenizer
        self.dim = min(parts.truncate_dim or self.table_VD.shape[1], self.table_VD.shape[1])

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, revision: str | None = None) -> StaticEmbedder:
        """Load a folder, or a hub id when there is no such folder.

        Raises:
            UserError: not such a folder, or a damaged one.
        """
        return cls(read_static(locate_base(str(path_or_hub_id), revision)))

    @property
    def device(self) -> str:
        """Where the table is."""
        return str(self.table_VD.device)

    @property
    def _longest(self) -> int:
        return ANY_LENGTH

    def num_parameters(self) -> int:
        return self.table_VD.numel()

    def role_prompt(self, role: str) -> str | None:
        """The name of the prompt for a role, such as ``query``, else of the default prompt, else None."""
        return role_prompt(role, self.tokenizer.prompts, self.tokenizer.default_prompt)

    def role_prefix(self, role: str | None) -> str:
        """The text that is put in front of texts of a role; None: of texts without one."""
        return self.tokenizer.prompt(self.role_prompt(role)) if role is not None else ""

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`."""
        prefix = self.role_prefix(role) if prompt is None else prompt
        array, truncated = self._embedded(as_texts(texts), prefix, view, progress)
        return Vectors(array, truncated, self.space(prompt=prefix, view=view))

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """See `moembed.encoding.TextEncoder`."""
        digest = self._weights.copy()
        prefix = self.role_prefix(role) if prompt is None else prompt
        facts = ("static", prefix, self._width(view), self.tokenizer.max_length)
        digest.update(repr((*facts, self.tokenizer.backend.to_str())).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def _weights(self) -> Any:
        """A hash of the table that goes on with whatever else the space depends on."""
        return hashlib.sha256(self.table_VD.numpy().data)

    def _width(self, view: View) -> int:
        if view.layers is not None or view.experts is not None:
            raise UserError("word vectors have no layers and no experts to view: leave them out")
        width = view.dim or self.dim
        if not 1 <= width <= self.dim:
            raise UserError(f"dim {view.dim} is not within 1..{self.dim}")
        return width

    def _embedded(
        self,
        texts: list[str],
        prefix: str,
        view: View,
        progress: Progress | None = None,
        tags: Sequence[int] | None = None,
        **limits: int | None,
    ) -> tuple[np.ndarray, int]:
        check_prompt(prefix)
        check_limits(limits.get("batch_tokens"), limits.get("batch_size"))  # no limit is needed here
        width = self._width(view)
        parts, truncated = [np.zeros((0, width), dtype=np.float32)], 0
        for rows, cut in windows(self.tokenizer, texts, prefix):
            parts.append(truncate(self._means(rows), width))
            truncated += cut
            if progress:
                progress(len(rows))
        return np.concatenate(parts), truncated

    def _means(self, rows: list[list[int]]) -> np.ndarray:
        token_T = torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=np.int64))
        start_B = torch.tensor([0, *accumulate(map(len, rows))][:-1])
        return F.embedding_bag(token_T, self.table_VD, start_B, mode="mean").numpy()
