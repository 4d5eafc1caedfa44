"""The Reranker: a query and texts in, one score per text out. It reads both together, as a cross-encoder."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from moembed.encoding import Progress, as_texts
from moembed.folder.bases import locate_base
from moembed.folder.reranker import read_reranker, write_reranker
from moembed.folder.reranker_parts import Activation, RerankerParts
from moembed.inference.engine import Engine
from moembed.inference.options import DTYPES, check_device, check_dtype, check_limits
from moembed.inference.pairs import PairRows, pair_rows
from moembed.inference.residency import release_pages
from moembed.model.adapters import plain
from moembed.model.encoder import Encoder, num_parameters, skeleton
from moembed.model.score_head import ScoreHead
from moembed.packing import pack, token_budget
from moembed.tokenizer import require_unicode
from moembed.types import Batch, Encoded, TruncationWarning, UserError, is_count

_WINDOW = 4096  # pairs that are tokens at one time


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of texts, in their order.

    Attributes:
        array: float32 ``(N,)``; higher is better.
        cut: int64 ``(N,)``, tokens of query and text that did not fit, 0 for most.
        tokens: that were read, query and special tokens of every pair included.
    """

    array: np.ndarray
    cut: np.ndarray
    tokens: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text by its place among those given, and its score."""

    index: int
    score: float


class Reranker(nn.Module):
    """Encoder + score head, with the tokenizer the model was made with.

    Scoring changes nothing in it, so any number of threads may share one. Made from ``RerankerParts``, it
    takes their tensors over without copying.

    >>> model = Reranker.from_pretrained("runs/reranker/model")                  # doctest: +SKIP
    >>> model.rank("how are moles born?", ["blind and bare", "in May"], k=1)    # doctest: +SKIP
    [Ranked(index=0, score=0.93)]
    """

    def __init__(self, source: RerankerParts | str | Path, **options: Any) -> None:
        super().__init__()
        if not isinstance(source, RerankerParts):
            self.__dict__.update(type(self).from_pretrained(source, **options).__dict__)
            return
        self.encoder = skeleton(source.spec)
        self.encoder.load_state_dict(source.state, assign=True)
        self.encoder.requires_grad_(True)
        with torch.device("meta"):
            self.head = ScoreHead(source.head, source.spec.width)
        self.head.load_state_dict(source.head_state, assign=True)
        self.head.requires_grad_(True)
        self.tokenizer, self.prompt, self.types = source.tokenizer, source.prompt, source.types
        self.activation = source.activation
        self.files, self.source = source.files, source.source
        self.engine = Engine()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
    ) -> Reranker:
        """Load a folder, a run, or a hub id such as ``org/name``.

        Args: as those of `moembed.embedder.Embedder.from_pretrained`; the head stays in float32.

        Raises:
            UserError: no reranker, damaged, or of a family whose scores are not known here.
        """

        def load() -> Reranker:
            target = device or ("cuda" if torch.cuda.is_available() and dtype != "int8" else "cpu")
            check_dtype(dtype, target)
            check_device(target)
            parts = read_reranker(locate_base(str(path_or_hub_id), revision, allow_pickle), allow_pickle)
            model = cls(parts).eval()
            model.engine = Engine(int8=dtype == "int8")
            for name, parameter in model.named_parameters():
                whole = name.startswith("head.") or ".router." in name
                kept = torch.float32 if whole else DTYPES.get(dtype, torch.float32)
                parameter.data = parameter.data.to(target, kept)
            if target == "cpu":
                model.engine.encoder(model.encoder)
                release_pages(model.encoder.parameters())
            return model

        # in a thread of its own, as the Embedder: a process forked afterwards must not wait for its threads
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(load).result()

    def save_pretrained(self, path: str | Path) -> None:
        """Write a CrossEncoder folder of sentence-transformers; it appears whole or not at all."""
        write_reranker(Path(path), self.parts())

    def parts(self) -> RerankerParts:
        """Config, weights and tokenizer as plain data."""
        encoder = plain(self.encoder)
        tensors = chain(encoder.named_parameters(), encoder.named_buffers())
        return RerankerParts(
            self.encoder.spec,
            {name: tensor.detach() for name, tensor in tensors},
            self.tokenizer,
            self.head.config,
            {name: tensor.detach() for name, tensor in self.head.named_parameters()},
            self.activation,
            self.types,
            self.prompt,
            self.files,
            self.source,
        )

    @property
    def max_length(self) -> int:
        """Tokens read of a pair, special ones included."""
        return self.tokenizer.max_length

    @property
    def device(self) -> str:
        return str(self.encoder.device)

    @property
    def dtype(self) -> str:
        """What the values that serve are rounded to: ``float32``, ``bfloat16``, ``float16`` or ``int8``."""
        if self.engine.rounds(self.encoder):
            return "int8"
        return str(self.encoder.dtype).removeprefix("torch.")

    def num_parameters(self, active: bool = False) -> int:
        """All parameters, or those one token can touch (the whole vocabulary table counted)."""
        behind = sum(parameter.numel() for parameter in self.head.parameters())
        return num_parameters(self.encoder.spec, active) + behind

    def __repr__(self) -> str:
        spec = self.encoder.spec
        moe = f", {spec.moe.num_experts} experts in {len(spec.moe_layers)}" if spec.moe else ""
        return (
            f"Reranker({spec.num_layers} layers{moe}, max_length {self.max_length}, "
            f"{self.activation} scores, {self.dtype} on {self.device})"
        )

    def train(self, mode: bool = True) -> Reranker:
        if mode:
            self.engine.drop()
        return super().train(mode)

    def forward(self, batch: Batch, depths: Sequence[int] | None = None) -> Encoded:
        """A packed batch of pairs -> logits ``(B, 1)`` fp32 in the caller's order, as its only depth.

        Raises:
            UserError: a pair without a single token; ``depths`` other than all layers.
        """
        last = self.encoder.spec.num_layers
        if depths is not None and list(depths) != [last]:
            raise UserError(f"a reranker scores after its {last} layers, not after {list(depths)}")
        return self._logits(self.encoder, batch)

    def _logits(self, encoder: Encoder, batch: Batch) -> Encoded:
        if 0 in batch.length_B:
            raise UserError("a pair has no token: its query and its text are empty")
        last = encoder.spec.num_layers
        hidden, router = encoder(batch.token_T, batch.length_B, [last], batch.type_T)
        return Encoded({last: self.head(hidden[last], batch.length_B)[batch.restore_B]}, router)

    # ---- texts -------------------------------------------------------------------------------------------

    def scores(self, query: str, texts: Iterable[str], **options: Any) -> np.ndarray:
        """How well each text answers the query: float32 ``(N,)``, higher is better.

        They are what the checkpoint's config says, see ``activation``: ``sigmoid`` of the logit, between 0
        and 1, or the logit itself (``identity``). A score depends on its own pair alone.

        Args:
            options: those of ``scored``.

        Warns:
            TruncationWarning: with the number of pairs that were longer than the model reads.

        Raises:
            UserError: a query or a text that is no string, or no valid Unicode.
        """
        found = self.scored(query, texts, **options)
        if cut := int((found.cut > 0).sum()):
            warnings.warn(
                f"{cut} of {len(found.cut)} pairs of query and text were cut at {self.max_length} tokens",
                TruncationWarning,
                stacklevel=2,
            )
        return found.array

    def rank(self, query: str, texts: Iterable[str], k: int | None = None, **options: Any) -> list[Ranked]:
        """The best ``k`` texts, best first; equal scores keep their order. None: all of them."""
        if k is not None and not is_count(k):
            raise UserError(f"k must be a whole number of at least 1, not {k!r}")
        score_N = self.scores(query, texts, **options)
        order_N = np.argsort(-score_N, kind="stable")
        return [Ranked(int(i), float(score_N[i])) for i in order_N[:k]]

    def scored(
        self,
        query: str,
        texts: Iterable[str],
        *,
        activation: str | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """The scores, with what was cut and how much was read, and without a warning: for servers.

        Args:
            activation: ``sigmoid`` or ``identity``; default: the model's own.
            batch_tokens: most tokens computed at a time; bounds the memory. Default: by device.
            progress: called with the number of pairs finished since the last call.
        """
        if not isinstance(query, str):
            raise UserError(f"the query is a {type(query).__name__}, not a string")
        require_unicode(query, "the query")  # which is no prompt: {} has no meaning in it
        check_limits(batch_tokens, None)
        known = get_args(Activation)
        if activation not in (None, *known):
            raise UserError(f"the activation {activation!r} is not known (known: {', '.join(known)})")
        pairs = [(self.prompt + query, text) for text in as_texts(texts)]
        array, cut = np.zeros(len(pairs), dtype=np.float32), np.zeros(len(pairs), dtype=np.int64)
        tokens = 0
        for start in range(0, len(pairs), _WINDOW):
            rows = pair_rows(self.tokenizer, pairs[start : start + _WINDOW], self.types)
            stop = start + len(rows.ids)
            logit_N = self._logits_of(rows, batch_tokens, progress)
            is_logit = (activation or self.activation) == "identity"
            array[start:stop] = (logit_N if is_logit else logit_N.sigmoid()).numpy()
            cut[start:stop] = rows.cut
            tokens += sum(map(len, rows.ids))
        return Scores(array, cut, tokens)

    @torch.inference_mode()
    def _logits_of(self, rows: PairRows, batch_tokens: int | None, progress: Progress | None) -> torch.Tensor:
        encoder, device = self.engine.encoder(self.encoder), self.device
        budget = batch_tokens or (4096 if device == "cpu" else 65536)
        logit_N = torch.zeros(len(rows.ids))
        for group in token_budget([len(row) for row in rows.ids], budget):
            types = None if rows.types is None else [rows.types[i] for i in group]
            batch = pack([rows.ids[i] for i in group], types=types).to(device)
            logit_N[group] = self._logits(encoder, batch).vector_BM[:, 0].cpu()
            if progress:
                progress(len(group))
        return logit_N
