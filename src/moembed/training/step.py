"""One step's texts and its loss: pairs -> token rows -> chunks and masks; vectors -> the objective."""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moembed.data.sampler import Sampler
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.losses.contrastive import LOSSES
from moembed.losses.negatives import Duplicates
from moembed.losses.nested import by_depth, matryoshka
from moembed.packing import pack, token_budget
from moembed.tokenizer import Tokenizer
from moembed.training.distributed import ALONE, World
from moembed.training.gradcache import Chunks
from moembed.training.routing import Group
from moembed.training.settings import LARGEST_SCALE, LossConfig, SourceOptions, TrainConfig
from moembed.types import Pair, UserError

_SLICE = 1024  # texts tokenised at a time: the tokenizer's own records are far larger than the ids


@dataclass(frozen=True, slots=True)
class Manner:
    """How a source is read: the prompts of its two roles, and its loss."""

    query_prompt: str | None
    document_prompt: str | None
    loss: str

    @classmethod
    def of(cls, model: Embedder, options: SourceOptions, config: LossConfig) -> Manner:
        """The options of a source, completed; a prompt the model does not have is refused."""
        given = {"query": options.query_prompt, "document": options.document_prompt}
        names = [model.role_prompt(role) if name is None else name or None for role, name in given.items()]
        for name in names:
            model.tokenizer.prompt(name)
        return cls(names[0], names[1], options.loss or config.kind)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's batch, ready to embed. Its vectors lie queries first, then documents, then hard negatives.

    ``chunks`` hold the texts of this process alone; everything else is about the whole batch, except
    ``tokens`` and ``truncated``, which count what this process embeds.
    """

    pairs: Sequence[Pair]
    source: int
    loss: str
    chunks: Chunks
    known: Duplicates
    weight_Q: Tensor | None  # 1 for the queries whose loss this process computes; None: all of them
    tokens: int
    truncated: int
    same: int  # hard negatives that are their own positive
    groups: list[Group]
    group_CB: list[Tensor]  # of every text of every chunk, its place in ``groups``


class Feed:
    """``feed(step)``: the batch of a step, a function of the step alone; several threads may ask at once."""

    def __init__(
        self, sampler: Sampler, sources: Sequence[Source], manners: Sequence[Manner], tokenizer: Tokenizer,
        config: TrainConfig, world: World,
    ) -> None:  # fmt: skip
        self.sampler, self.sources, self.manners = sampler, sources, manners
        self.tokenizer, self.config, self.world = tokenizer, config, world
        self.drawing, self.thread = threading.Lock(), threading.local()

    def __call__(self, step: int) -> Prepared:
        with self.drawing:
            source, rows = self.sampler.batch(step)
            pairs = self.sources[source].pairs(rows.tolist())
            languages = [language or "" for language in self.sources[source].languages(rows.tolist())]
        if not hasattr(
            self.thread, "tokenizer"
        ):  # the length limit is set on it: no two threads may share one
            self.thread.tokenizer = copy.deepcopy(self.tokenizer)
        return prepare(
            pairs, self.manners[source], self.thread.tokenizer, self.config, self.world, source, languages
        )


def prepare(
    pairs: Sequence[Pair], manner: Manner, tokenizer: Tokenizer, config: TrainConfig,
    world: World = ALONE, source: int = 0, languages: Sequence[str] | None = None,
) -> Prepared:  # fmt: skip
    """Tokenise this process's pairs, pack them into chunks of at most ``chunk_tokens``, mask duplicates."""
    queries = [pair.query for pair in pairs]
    negatives = [(i, text) for i, pair in enumerate(pairs) for text in pair.negatives[: config.negatives]]
    documents = [pair.document for pair in pairs] + [text for _, text in negatives]
    owner_B = [*range(len(pairs)), *range(len(pairs)), *(i for i, _ in negatives)]
    mine = set(world.share(len(pairs)))
    place_B = [place for place, owner in enumerate(owner_B) if owner in mine]
    asked = sum(place < len(queries) for place in place_B)

    texts = [(queries + documents)[place] for place in place_B]
    rows, truncated = _tokens(tokenizer, texts[:asked], manner.query_prompt, config.query_length)
    more, cut = _tokens(tokenizer, texts[asked:], manner.document_prompt, config.document_length)
    rows, truncated = rows + more, truncated + cut

    spoken = languages or [""] * len(pairs)
    group_B = [("query" if place < len(queries) else "document", spoken[owner_B[place]]) for place in place_B]
    groups = [(role, language) for role in ("document", "query") for language in sorted(set(spoken))]
    number = {group: i for i, group in enumerate(groups)}
    chunks = token_budget([len(row) for row in rows], config.chunk_tokens)
    own_Q, hash_N = torch.arange(len(pairs)), _hashes(documents)
    return Prepared(
        pairs=pairs,
        source=source,
        loss=manner.loss,
        chunks=Chunks(
            batches=[pack([rows[i] for i in chunk]) for chunk in chunks],
            row_CB=[torch.tensor([place_B[i] for i in chunk]) for chunk in chunks],
            rows=len(owner_B),
        ),
        known=Duplicates.of(_hashes(queries), hash_N, own_Q),
        weight_Q=None if world.size == 1 else (own_Q % world.size == world.rank).float(),
        tokens=sum(map(len, rows)),
        truncated=truncated,
        same=sum(text == pairs[i].document for i, text in negatives),
        groups=groups,
        group_CB=[torch.tensor([number[group_B[i]] for i in chunk]) for chunk in chunks],
    )


def _tokens(
    tokenizer: Tokenizer, texts: Sequence[str], prompt: str | None, length: int
) -> tuple[list[array[int]], int]:
    """Token rows of four bytes per token, and how many texts were cut."""
    rows: list[array[int]] = []
    truncated = 0
    for start in range(0, len(texts), _SLICE):
        some, cut = tokenizer.rows(texts[start : start + _SLICE], prompt, length)
        rows += [array("i", row) for row in some]
        truncated += cut
    return rows, truncated


def _hashes(texts: Sequence[str]) -> Tensor:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


class Objective(nn.Module):
    """The contrastive loss over Matryoshka prefixes and depths, at a fixed or a learned temperature."""

    def __init__(self, config: LossConfig, model: Embedder) -> None:
        super().__init__()
        last = model.encoder.spec.num_layers
        self.depths = config.depths or {last: 1.0}
        if max(self.depths) != last or min(self.depths) < 0:
            raise UserError(
                f"loss.depths {list(self.depths)} must end with the last of the model's {last} layers"
            )
        self.nested = config.matryoshka
        if self.nested and max(self.nested.dims) > model.dim:
            raise UserError(
                f"loss.matryoshka.dims {list(self.nested.dims)} go beyond the model's {model.dim}"
            )
        if self.nested:
            model.dims = tuple(sorted(self.nested.dims, reverse=True))
        self.fixed = config.temperature
        start = torch.tensor(-math.log(config.temperature), device=model.device)
        self.log_scale = nn.Parameter(start) if config.learn_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        return self.fixed if self.log_scale is None else (-self.log_scale).exp()

    def forward(self, vectors: dict[int, Tensor], batch: Prepared) -> Tensor:
        """This process's share of the batch's loss; ``vectors[l]``, ``(B, M)``, are those after l layers."""
        loss = LOSSES[batch.loss]
        if self.nested:
            loss = matryoshka(loss, self.nested.dims, self.nested.weights)
        device = next(iter(vectors.values())).device
        queries, known, weight_Q = len(batch.pairs), batch.known.to(device), batch.weight_Q
        mine_Q = None if weight_Q is None else weight_Q.to(device)
        parts = {depth: torch.split(v, [queries, len(v) - queries]) for depth, v in vectors.items()}
        total = by_depth(loss, self.depths)(
            {depth: query_QM for depth, (query_QM, _) in parts.items()},
            {depth: document_NM for depth, (_, document_NM) in parts.items()},
            known.positive_Q, known, mine_Q, temperature=self.temperature,
        )  # fmt: skip
        return total if mine_Q is None else total * (mine_Q.sum() / queries)

    @torch.no_grad()
    def clamp(self) -> None:
        """After the optimiser's step: a learned temperature stays in its bounds."""
        if self.log_scale is not None:
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
