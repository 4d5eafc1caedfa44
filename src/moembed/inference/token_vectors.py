"""Texts in, a vector of every token out: for models with pooling ``tokens`` (late interaction)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from moembed.encoding import FULL, Progress, Tag, TextEncoder, TokenVectors, View, as_texts, truncate
from moembed.inference.engine import Engine
from moembed.inference.options import check_limits
from moembed.inference.tagging import TaggedSentences
from moembed.inference.windows import windows
from moembed.model.encoder import Encoder
from moembed.model.head import Head
from moembed.model.pooling import Pooling, PoolingConfig
from moembed.model.vectors import unit_vectors
from moembed.packing import pack, token_budget
from moembed.prompts import in_front_alone
from moembed.tokenizer import check_prompt
from moembed.types import UserError


def require_one_vector(pooling: PoolingConfig, what: str = "this") -> None:
    """
    Raises:
        UserError: the model makes a vector of every token, and ``what`` asks for one of a text.
    """
    if pooling.per_token:
        raise UserError(
            f"the model makes a vector of every token (pooling 'tokens'), and {what} needs one vector of a "
            "text: take Embedder.encode_tokens, `moembed index` and `moembed search`, or another model"
        )


def require_vector_of_text(encoder: TextEncoder, what: str) -> None:
    """``require_one_vector`` of any encoder."""
    if isinstance(encoder, TokenSentences):
        require_one_vector(encoder.pooling.config, what)


class TokenSentences(TaggedSentences):
    """``encode_tokens`` for the Embedder."""

    encoder: Encoder
    pooling: Pooling
    head: Head
    engine: Engine

    @property
    def per_token(self) -> bool:
        """Whether a text has a vector of each of its tokens, and not one of its own."""
        return self.pooling.config.per_token

    @abstractmethod
    def space(
        self,
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        tag: Tag | None = None,
    ) -> str:
        """As of the Embedder."""

    def encode_tokens(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        tag: Tag | None = None,
        progress: Progress | None = None,
        batch_tokens: int | None = None,
    ) -> TokenVectors:
        """A vector of every token of each text: float32 rows of length 1, of a model with pooling ``tokens``.

        The tokens are those the model reads: special ones, and those of the prompt unless the pooling says
        ``include_prompt: false``, which also leaves out the special ones before the prompt. There is no
        padding. A text whose every token is left out has no row.

        Args:
            role: ``query`` or ``document``: the model's prompt of that role is put in front.
            prompt: this text in front, whatever the role.
            tag, progress, batch_tokens: as of ``Embedder.encode``.

        Raises:
            UserError: the model makes one vector of a text; no texts; a tag that is not known; a prompt with
                text behind the text, where prompts are left out.
        """
        if not self.pooling.config.per_token:
            raise UserError(
                f"this model makes one vector of a text (pooling {self.pooling.name!r}): use encode, or "
                "train one with `pooling: tokens`"
            )
        check_limits(batch_tokens, None)
        listed, prefix = as_texts(texts), self.prefix(role, prompt)
        check_prompt(prefix)
        tags = self.tag_numbers(listed, role=role, prompt=prompt, tag=tag)
        leaves_out = not self.pooling.config.include_prompt
        known = self.tokenizer.prompt_tokens(in_front_alone(prefix)) if leaves_out else None
        found: list[np.ndarray] = []
        truncated = 0
        for rows, cut in windows(self.tokenizer, listed, prefix):
            own = None if tags is None else tags[len(found) : len(found) + len(rows)]
            found += self._token_rows(rows, known, own, progress, batch_tokens)
            truncated += cut
        length_N = np.array([len(vector_TM) for vector_TM in found], np.int64)
        vector_TM = np.concatenate([np.zeros((0, self.dim), np.float32), *found])
        return TokenVectors(vector_TM, length_N, truncated, self.space(role=role, prompt=prompt, tag=tag))

    @torch.inference_mode()
    def _token_rows(
        self, rows: Sequence[Sequence[int]], prompt: int | None, tags: Sequence[int] | None,
        progress: Progress | None, batch_tokens: int | None,
    ) -> list[np.ndarray]:  # fmt: skip
        encoder, device = self.engine.encoder(self.encoder), self.device
        found = [np.zeros((0, self.dim), np.float32)] * len(rows)
        budget = batch_tokens or (4096 if device == "cpu" else 65536)
        for group in token_budget([len(row) for row in rows], budget, None):
            prompts = None if prompt is None else [prompt] * len(group)
            own = None if tags is None else [tags[i] for i in group]
            batch = pack([rows[i] for i in group], prompt_tokens=prompts, tags=own).to(device)
            vector_TM = unit_vectors(encoder, self.pooling, self.head, batch).vector_BM.cpu().numpy()
            vector_TM = truncate(vector_TM, self.dim if self.dim < vector_TM.shape[1] else None)
            kept = [self.pooling.config.vectors_of(len(rows[i]), prompt) for i in group]
            for i, some in zip(group, np.split(vector_TM, np.cumsum(kept)[:-1]), strict=True):
                found[i] = some
            if progress:
                progress(len(group))
        return found
