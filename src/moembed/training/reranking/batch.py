"""One step's lists: pairs -> query with each of its candidates -> token rows -> chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from moembed.data.text_key import text_number
from moembed.inference.pairs import pair_rows
from moembed.packing import even_budget, pack
from moembed.reranker import Reranker
from moembed.training.contrastive.gradcache import Chunks
from moembed.training.parallel import ALONE, World
from moembed.training.reranking.settings import RerankingConfig
from moembed.types import Pair

_STREAM = 21  # of random numbers, drawn from the seed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text in the list of a query, by the query's place in the batch."""

    query: int
    text: str
    positive: bool


@dataclass(frozen=True, slots=True)
class ListBatch:
    """A step's batch, ready to score. ``chunks`` hold the pairs of this process alone, all else is of all.

    Attributes:
        query_P, positive_P: the query of every candidate, and whether it is the right one.
        weight_Q: 1 for the queries of this process; None: all of them.
        same: hard negatives that are known to answer their query, and are left out.
        alone: queries whose list is the right document alone.
    """

    pairs: Sequence[Pair]
    source: int
    chunks: Chunks
    query_P: Tensor
    positive_P: Tensor
    weight_Q: Tensor | None
    tokens: int
    truncated: int
    same: int
    alone: int


def candidates(
    pairs: Sequence[Pair], negatives: int | None, random_negatives: int, key: Sequence[int]
) -> tuple[list[Candidate], int]:
    """The lists of a batch, one after the other, and how many hard negatives were left out.

    Texts count as equal by `moembed.data.text_key`. No list holds a text twice, nor the document of another
    pair of the same query as a wrong one. The random ones are a function of ``key`` and the batch.
    """
    answers: dict[int, set[int]] = {}
    for pair in pairs:
        answers.setdefault(text_number(pair.query), set()).add(text_number(pair.document))
    found: list[Candidate] = []
    left_out = 0
    for place, pair in enumerate(pairs):
        known = set(answers[text_number(pair.query)])
        found.append(Candidate(place, pair.document, True))
        for text in pair.negatives[:negatives]:
            left_out += text_number(text) in answers[text_number(pair.query)]
            if text_number(text) not in known:
                known.add(text_number(text))
                found.append(Candidate(place, text, False))
        drawn = 0
        for other in np.random.default_rng([*key, place]).permutation(len(pairs)) if random_negatives else ():
            if drawn == random_negatives:
                break
            number = text_number(pairs[other].document)
            if number not in known:
                known.add(number)
                drawn += 1
                found.append(Candidate(place, pairs[other].document, False))
    return found, left_out


def prepare(
    pairs: Sequence[Pair], model: Reranker, config: RerankingConfig, key: Sequence[int],
    world: World = ALONE, source: int = 0,
) -> ListBatch:  # fmt: skip
    """Make the lists, tokenise those of this process, pack them into chunks of at most ``chunk_tokens``."""
    found, same = candidates(pairs, config.negatives, config.random_negatives, [*key, _STREAM])
    own = set(world.share(len(pairs)))
    row_B = [row for row, candidate in enumerate(found) if candidate.query in own]
    texts = [(model.prompt + pairs[found[row].query].query, found[row].text) for row in row_B]
    rows = pair_rows(model.tokenizer, texts, model.types, config.max_length)

    lengths = [len(row) for row in rows.ids]
    groups = even_budget(lengths, config.chunk_tokens)
    batches = [
        pack(
            [rows.ids[i] for i in group],
            types=None if rows.types is None else [rows.types[i] for i in group],
        )
        for group in groups
    ]
    room = max(config.chunk_tokens, config.graph_tokens or 0)
    sums = accumulate(sum(batch.length_B) for batch in reversed(batches))
    size_Q = torch.bincount(torch.tensor([candidate.query for candidate in found]), minlength=len(pairs))
    own_Q = torch.arange(len(pairs))
    return ListBatch(
        pairs=pairs,
        source=source,
        chunks=Chunks(
            batches=batches,
            row_CB=[torch.tensor([row_B[i] for i in group]) for group in groups],
            rows=len(found),
            kept=max(1, sum(tokens <= room for tokens in sums)),
        ),
        query_P=torch.tensor([candidate.query for candidate in found]),
        positive_P=torch.tensor([candidate.positive for candidate in found]),
        weight_Q=None if world.size == 1 else (own_Q % world.size == world.rank).float(),
        tokens=sum(lengths),
        truncated=sum(cut > 0 for cut in rows.cut),
        same=same,
        alone=int((size_Q == 1).sum()),
    )
