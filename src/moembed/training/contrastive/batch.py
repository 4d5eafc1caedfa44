"""One step's texts: pairs -> token rows -> chunks, a mask of known answers, and the group of every text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from moembed.data.text_key import text_number
from moembed.embedder import Embedder
from moembed.losses.guided import Guided
from moembed.losses.negatives import Duplicates
from moembed.losses.pairs import TEMPERATURE, SameLabel
from moembed.model.pooling import PoolingConfig
from moembed.packing import even_budget, offsets, pack
from moembed.tokenizer import Tokenizer
from moembed.training.contrastive.gradcache import Chunks
from moembed.training.contrastive.guide import Guide
from moembed.training.contrastive.item_pairs import Items, ItemSpace
from moembed.training.contrastive.settings import (
    ContrastiveConfig,
    LossConfig,
    ScoreDistillConfig,
    SourceOptions,
)
from moembed.training.contrastive.tags import PairTags
from moembed.training.contrastive.teachers import Distilled, Teachers, judged_by_data
from moembed.training.monitors.routing import Group
from moembed.training.parallel import ALONE, World
from moembed.types import Batch, Pair, UserError

_SLICE = 1024  # texts tokenised at a time: the tokenizer's own records are far larger than the ids


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """How the pairs of a source are used: the prompts of its two roles, its loss, and what they teach."""

    query_prompt: str | None
    document_prompt: str | None
    loss: str
    task_type: str = "retrieval"
    temperature: float = TEMPERATURE  # of the loss of scores
    pooling: PoolingConfig = field(default_factory=PoolingConfig)

    @classmethod
    def of(cls, model: Embedder, options: SourceOptions, config: LossConfig) -> SourceFormat:
        """The options of a source, completed; a prompt the model does not have is refused."""
        task = options.task_type
        roles = ("query", "document") if task == "retrieval" else (task, task)
        given = zip(roles, (options.query_prompt, options.document_prompt), strict=True)
        names = [model.role_prompt(role) if name is None else name or None for role, name in given]
        for name in names:
            model.tokenizer.prompt(name)
        return cls(
            names[0], names[1], options.loss or config.kind, task, options.temperature or TEMPERATURE,
            model.pooling.config,
        )  # fmt: skip

    @property
    def scored(self) -> bool:
        """Whether the loss looks at scores, and at nothing but the two texts of each pair."""
        return self.task_type == "sts"

    @property
    def labelled(self) -> bool:
        """Whether texts of one label are no negatives of each other."""
        return self.task_type in ("classification", "clustering")


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A step's batch, ready to embed. Its vectors lie queries first, then documents, then hard negatives.

    ``chunks`` hold the texts of this process alone; everything else is about the whole batch, except
    ``tokens`` and ``truncated``, which count what this process embeds.
    """

    pairs: Sequence[Pair]
    source: int
    loss: str
    chunks: Chunks
    known: Duplicates | Guided | SameLabel
    owner_N: Tensor  # the pair of every candidate
    query_key_Q: Tensor  # equal texts, equal numbers
    key_N: Tensor
    weight_Q: Tensor | None  # 1 for the queries whose loss this process computes; None: all of them
    tokens: int
    truncated: int
    same: int  # hard negatives that are their own positive
    guided: float | None  # share of all negatives that the guide masks; None: there is none
    groups: list[Group]
    group_CB: list[Tensor]  # of every text of every chunk, its place in ``groups``
    seed: int = 0  # of what the loss leaves to chance
    score_Q: Tensor | None = None  # of pairs whose loss looks at scores
    temperature: float = TEMPERATURE  # of that loss
    distilled: Distilled | None = None  # what teachers say of the candidates
    items: Items | None = None  # candidates that another space knows
    vectors_B: tuple[int, ...] | None = None  # of every text, with a model that makes one of every token

    @property
    def query_rows(self) -> int:
        """How many of the vectors are those of queries."""
        return len(self.pairs) if self.vectors_B is None else sum(self.vectors_B[: len(self.pairs)])


def prepare(
    pairs: Sequence[Pair], form: SourceFormat, tokenizer: Tokenizer, config: ContrastiveConfig,
    world: World = ALONE, source: int = 0, languages: Sequence[str] | None = None,
    tags: PairTags | None = None,
) -> PairBatch:  # fmt: skip
    """Tokenise this process's pairs, pack them into chunks of at most ``chunk_tokens``, mask duplicates.

    Args:
        tags: of the query of every pair, and of its document and negatives; None: texts have none.
    """
    # every text of the step in its row: queries, documents, hard negatives; and which are this process's
    queries = [pair.query for pair in pairs]
    limit = 0 if form.scored else config.negatives
    documents = _documents(pairs, limit)
    negative_of = [i for i, pair in enumerate(pairs) for _ in pair.negatives[:limit]]
    owner_B = [*range(len(pairs)), *range(len(pairs)), *negative_of]
    own = set(world.share(len(pairs)))
    row_B = [row for row, owner in enumerate(owner_B) if owner in own]
    num_queries = sum(row < len(queries) for row in row_B)

    # those become tokens
    texts = [(queries + documents)[row] for row in row_B]
    rows, truncated = _tokens(tokenizer, texts[:num_queries], form.query_prompt, config.query_length)
    more, cut = _tokens(tokenizer, texts[num_queries:], form.document_prompt, config.document_length)
    rows, truncated = rows + more, truncated + cut

    # what group of texts each is counted in by the routing probe
    language_Q = languages or [""] * len(pairs)
    group_B = [("query" if row < len(queries) else "document", language_Q[owner_B[row]]) for row in row_B]
    groups = [(role, language) for role in ("document", "query") for language in sorted(set(language_Q))]
    number = {group: i for i, group in enumerate(groups)}
    # neighbours in length share a chunk
    lengths = [len(row) for row in rows]
    chunks = even_budget(lengths, config.chunk_tokens)
    names = (form.query_prompt, form.document_prompt)
    prompts = [tokenizer.prompt_tokens(tokenizer.prompt(name)) for name in names]
    prompt_B = [prompts[place >= num_queries] for place in range(len(rows))]
    tag_B = None if tags is None else [tags[row >= len(queries)][owner_B[row]] for row in row_B]
    vectors_B = _vectors_of(form.pooling, lengths, prompt_B, num_queries) if form.pooling.per_token else None
    own_Q, number_Q, number_N = torch.arange(len(pairs)), _numbers(queries), _numbers(documents)
    answers = Duplicates.of(number_Q, number_N, own_Q)
    known = SameLabel(answers, *_classes(pairs, limit)) if form.labelled else answers
    return PairBatch(
        pairs=pairs,
        source=source,
        loss=form.loss,
        chunks=Chunks(
            batches=[_packed(chunk, rows, prompt_B, tag_B) for chunk in chunks],
            row_CB=[torch.tensor([row_B[i] for i in chunk]) for chunk in chunks]
            if vectors_B is None
            else [_token_rows(chunk, vectors_B) for chunk in chunks],
            rows=len(owner_B) if vectors_B is None else sum(vectors_B),
            kept=_kept([sum(lengths[i] for i in chunk) for chunk in chunks], config),
        ),
        known=known,
        owner_N=torch.tensor(owner_B[len(pairs) :]),
        query_key_Q=number_Q,
        key_N=number_N,
        weight_Q=None if world.size == 1 else (own_Q % world.size == world.rank).float(),
        tokens=sum(map(len, rows)),
        truncated=truncated,
        same=int((number_N[len(pairs) :] == number_N[negative_of]).sum()),
        guided=None,
        groups=groups,
        group_CB=[torch.tensor([number[group_B[i]] for i in chunk]) for chunk in chunks],
        score_Q=torch.tensor([pair.score for pair in pairs], dtype=torch.float64) if form.scored else None,
        temperature=form.temperature,
        vectors_B=vectors_B,
    )


def _vectors_of(
    pooling: PoolingConfig, lengths: Sequence[int], prompt_B: Sequence[int], queries: int
) -> tuple[int, ...]:
    """How many vectors each text has, with a model that makes one of every token."""
    found = tuple(map(pooling.vectors_of, lengths, prompt_B))
    if 0 in found[queries:]:
        raise UserError(
            "a document has no token beside its prompt, which the model leaves out: no query can be compared "
            "with it; raise document_length, or leave empty documents out"
        )
    return found


def _token_rows(chunk: Sequence[int], vectors_B: Sequence[int]) -> Tensor:
    """Rows of the vectors of all tokens of a chunk among those of the step."""
    start_B = offsets(vectors_B)
    return torch.cat([torch.arange(start_B[i], start_B[i + 1]) for i in chunk])


def _packed(
    chunk: Sequence[int], rows: Sequence[Sequence[int]], prompt_B: Sequence[int], tag_B: Sequence[int] | None
) -> Batch:
    tags = None if tag_B is None else [tag_B[i] for i in chunk]
    return pack([rows[i] for i in chunk], prompt_tokens=[prompt_B[i] for i in chunk], tags=tags)


def with_guide(batch: PairBatch, guide: Guide, num_negatives: int | None) -> PairBatch:
    """The batch with the mask of a guide, and the share of its negatives that the guide masks."""
    assert isinstance(batch.known, Duplicates)
    queries = [pair.query for pair in batch.pairs]
    documents = _documents(batch.pairs, num_negatives)
    mask = guide.mask(batch.known, queries, documents, batch.loss == "symmetric_info_nce")
    share = len(mask.query_P) / max(1, len(queries) * (len(documents) - 1))
    return replace(batch, known=mask, guided=share)


def with_teachers(batch: PairBatch, teachers: Teachers, num_negatives: int | None) -> PairBatch:
    """The batch with the ranking of its candidates by teachers."""
    queries = [pair.query for pair in batch.pairs]
    documents = _documents(batch.pairs, num_negatives)
    return replace(batch, distilled=teachers.judge(queries, documents, batch.owner_N))


def with_scores(batch: PairBatch, config: ScoreDistillConfig, num_negatives: int | None) -> PairBatch:
    """The batch with the ranking of each query's own candidates by the scores of the data."""
    distilled = judged_by_data(batch.pairs, batch.owner_N, num_negatives, config)
    return replace(batch, distilled=distilled)


def with_items(batch: PairBatch, space: ItemSpace, num_negatives: int | None) -> PairBatch:
    """The batch with the vectors that another space has of its documents and hard negatives."""
    limit = num_negatives if batch.score_Q is None else 0
    return replace(batch, items=space.items(_documents(batch.pairs, limit), batch.key_N))


def _documents(pairs: Sequence[Pair], num_negatives: int | None) -> list[str]:
    """The documents of all pairs, then their hard negatives."""
    hard = [text for pair in pairs for text in pair.negatives[:num_negatives]]
    return [pair.document for pair in pairs] + hard


def _classes(pairs: Sequence[Pair], num_negatives: int | None) -> tuple[Tensor, Tensor]:
    """Numbers of the classes of all queries, and of all documents and their hard negatives."""
    own = [str(pair.label) for pair in pairs]
    wrong = [label for pair in pairs for label in pair.negative_labels[:num_negatives]]
    number = {label: i for i, label in enumerate(dict.fromkeys(own + wrong))}
    class_N = torch.tensor([number[label] for label in own + wrong])
    return class_N[: len(pairs)], class_N


def _kept(tokens_C: Sequence[int], config: ContrastiveConfig) -> int:
    """How many of the last chunks, of so many tokens each, keep their graph."""
    room = max(config.chunk_tokens, config.graph_tokens or 0)
    return max(1, sum(tokens <= room for tokens in accumulate(reversed(tokens_C))))


def _tokens(
    tokenizer: Tokenizer, texts: Sequence[str], prompt: str | None, length: int
) -> tuple[list[array[int]], int]:
    """Token rows of four bytes per token, and how many texts were cut."""
    rows: list[array[int]] = []
    truncated = 0
    for start in range(0, len(texts), _SLICE):
        window = texts[start : start + _SLICE]
        some, cut = tokenizer.rows(window, prompt=tokenizer.prompt(prompt), max_length=length)
        rows += [array("i", row) for row in some]
        truncated += cut
    return rows, truncated


def _numbers(texts: Sequence[str]) -> Tensor:
    """A number for every text, the same for texts that are equal by `moembed.data.text_key`."""
    return torch.tensor(list(map(text_number, texts)))
