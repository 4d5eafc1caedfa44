"""The contrastive loss of a model on a file of pairs, as a function of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moembed.data.sampler import Sampler
from moembed.data.sources import SourceConfig, load_source
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.inference.token_vectors import require_one_vector
from moembed.losses.contrastive import info_nce
from moembed.training.contrastive.batch import SourceFormat, prepare
from moembed.training.contrastive.settings import ContrastiveConfig, LossConfig, SourceOptions
from moembed.training.contrastive.tags import SourceTags
from moembed.types import UserError
from moembed.weights.merge import State

HELD_OUT = 0.25  # share of the pairs, the last ones, that choose and are not learned from
BATCH = 32
LENGTH = 128  # tokens of a text


class PairProbe:
    """InfoNCE over batches of pairs with their hard negatives, at temperature 0.05.

    Raises:
        UserError: pairs that cannot be read, or fewer than 8; experts by tags that the pairs do not have.
    """

    def __init__(self, file: str, parts: Parts, seed: int = 0) -> None:
        source = load_source(SourceConfig(path=file))
        if len(source) < 8:
            raise UserError(f"{file} holds {len(source)} pairs, and a probe takes at least 8: add some")
        held = max(2, round(HELD_OUT * len(source)))
        train = len(source) - held
        require_one_vector(parts.pooling, "a probe of merging")
        self._source, self._parts = source, parts
        self._tags = SourceTags.of(parts.spec, source, SourceOptions())
        self._sampler = Sampler([train], [1.0], min(BATCH, train), seed, [source.name])
        self._held_out = range(train, len(source))

    def __call__(self, state: State, step: int | None) -> tuple[float, State]:
        """See `moembed.weights.self_positioning.Probe`; names of tensors begin with their part."""
        made = Embedder(_with(self._parts, state)).eval()
        if step is None:
            rows = list(self._held_out)
            some = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
            with torch.no_grad():
                losses = [float(self._loss(made, part)) * len(part) for part in some]
            return sum(losses) / len(rows), {}
        loss = self._loss(made, self._sampler.batch(step)[1].tolist())
        tensors = _tensors(made)
        slopes = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        found = {name: slope for name, slope in zip(tensors, slopes, strict=True) if slope is not None}
        return float(loss.detach()), found

    def _loss(self, model: Embedder, rows: Sequence[int]) -> Tensor:
        config = ContrastiveConfig(steps=1, query_length=LENGTH, document_length=LENGTH)
        form = SourceFormat.of(model, SourceOptions(), LossConfig())
        tags = None if self._tags is None else self._tags.numbers(self._source, rows)
        batch = prepare(self._source.pairs(rows), form, model.tokenizer, config, tags=tags)
        vector_BM = torch.zeros(batch.chunks.rows, model.dim)
        for chunk, row_B in zip(batch.chunks.batches, batch.chunks.row_CB, strict=True):
            vector_BM = vector_BM.index_copy(0, row_B, model(chunk).vector_BM)
        query_QM, document_NM = vector_BM[: len(rows)], vector_BM[len(rows) :]
        return info_nce(query_QM, document_NM, batch.known.positive_Q, batch.known, temperature=0.05)


def _with(parts: Parts, state: State) -> Parts:
    """The model with these tensors, as they are named in `moembed.runs.merge`."""

    def of(kind: str) -> dict[str, Tensor]:
        start = f"{kind} "
        return {name.removeprefix(start): x for name, x in state.items() if name.startswith(start)}

    return replace(parts, state=of("encoder"), pooling_state=of("pooling"), head_state=of("head"))


def _tensors(model: Embedder) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {f"encoder {name}": p for name, p in model.encoder.named_parameters()}
    for kind, part in (("pooling", model.pooling), ("head", model.head)):
        found |= {f"{kind} {name}": part.tensor(name) for name in part.names}
    return found
