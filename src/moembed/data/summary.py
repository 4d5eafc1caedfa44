"""What a recipe will read: sizes, mix, lengths, duplicates and a few pairs of every source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moembed.data.permutation import permute
from moembed.data.sampler import Sampler
from moembed.data.sources import Source
from moembed.data.text_key import text_number

Lengths = Callable[[list[str]], list[int]]  # tokens of every text, uncut

_SAMPLE_SEED = 0x5A3F1E


def summarize(
    sources: Sequence[Source],
    weights: Sequence[float],
    batch_size: int,
    lengths: dict[str, tuple[Lengths, int]],
    sample: int = 2000,
    shown: int = 3,
    progress: Callable[[int], None] = lambda rows: None,
    sizes: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Facts about each source.

    Args:
        lengths: for ``query`` and ``document`` the tokenizer and the number of tokens a text is cut at.
        sample: pairs drawn at random for the lengths and the examples; everything else is counted over all.
        shown: examples per source.
        progress: told the rows that were compared.
        sizes: pairs of each source that are trained on, which batches are made of; default: all.

    Raises:
        UserError: what `moembed.data.sampler.Sampler` refuses.
    """
    names = [source.name for source in sources]
    sampler = Sampler(sizes or [len(source) for source in sources], weights, batch_size, 0, names)
    share = sampler.steps_of_sources(1)
    facts = []
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        rows = permute(np.arange(min(sample, len(source))), len(source), [_SAMPLE_SEED])
        pairs = source.pairs(rows)
        texts = {"query": [p.query for p in pairs], "document": [p.document for p in pairs]}
        facts.append(
            {
                "source": source.name,
                "rows": len(source),
                "skipped": source.skipped,
                "bad_shards": list(source.bad_shards),
                "notes": list(source.notes),
                "weight": weight,
                "batches_per_1000": int(share[number]),
                "batches_per_epoch": sampler.steps_per_epoch(number),
                "languages": {name or "": count for name, count in source.count("language").items()},
                "groups": {name or "": count for name, count in source.count("group").items()},
                "negatives": float(np.mean([len(pair.negatives) for pair in pairs])),
                "tokens": {role: _tokens(texts[role], *lengths[role]) for role in lengths},
                "duplicates": _duplicates(source, progress),
                "examples": [pair.row() for pair in pairs[:shown]],
            }
        )
    return facts


def _tokens(texts: list[str], tokenize: Lengths, limit: int) -> dict[str, float]:
    """Mean, median, 95th percentile and largest length, and the share of texts longer than ``limit``."""
    length_B = np.array(tokenize(texts))
    return {
        "mean": round(float(length_B.mean()), 1),
        "p50": int(np.percentile(length_B, 50)),
        "p95": int(np.percentile(length_B, 95)),
        "max": int(length_B.max()),
        "limit": limit,
        "truncated": round(float((length_B > limit).mean()), 4),
    }


def _duplicates(source: Source, progress: Callable[[int], None]) -> dict[str, int]:
    """Rows whose pair, query or document was there before, normalised; 16 bytes of memory per row."""
    numbers = np.empty((2, len(source)), dtype=np.int64)
    for row, pair in enumerate(source):
        numbers[:, row] = text_number(pair.query), text_number(pair.document)
        progress(1)
    query, document = numbers.view(np.uint64)
    both = query * np.uint64(0x9E3779B97F4A7C15) + document  # not a plain sum: (a, b) is not (b, a)
    kinds = {"pairs": both, "queries": query, "documents": document}
    return {kind: len(source) - len(np.unique(values)) for kind, values in kinds.items()}
