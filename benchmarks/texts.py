"""Real texts: the English files of the folder MOEMBED_DATA, or else the docstrings of installed packages."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from moembed.data.docstrings import collect
from moembed.data.sources import SourceConfig, load_source
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.sample import subset
from moembed.types import Pair

DATA = Path(os.environ.get("MOEMBED_DATA", Path(__file__).parents[2] / "shared" / "data"))
QUERY = "how do moles find worms in the dark?"


def sample(count: int) -> list[str]:
    """Texts whose lengths are spread as those of all, in random order."""
    texts = sorted(mixed(), key=len)
    chosen = [texts[(2 * i + 1) * len(texts) // (2 * count)] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


@cache
def mixed() -> tuple[str, ...]:
    """Documents and queries of the retrieval tasks, each text once; else summaries and functions."""
    files = sorted(DATA.glob("eval/*-en/corpus.parquet")) + sorted(DATA.glob("eval/*-en/queries.parquet"))
    if not files:
        return tuple(text for pair in collect().train for text in (pair.query, pair.document))
    return tuple(dict.fromkeys(text for file in files for text in pq.read_table(file)["text"].to_pylist()))


def queries_and_documents() -> tuple[list[str], list[str]]:
    """Those of the retrieval tasks; else summaries and functions."""
    found = []
    for kind in ("queries", "corpus"):
        files = sorted(DATA.glob(f"eval/*-en/{kind}.parquet"))
        texts = (text for file in files for text in pq.read_table(file)["text"].to_pylist())
        found.append(list(dict.fromkeys(texts)))
    if not all(found):
        pairs = collect().train
        return [pair.query for pair in pairs], [pair.document for pair in pairs]
    return found[0], found[1]


def pairs(count: int) -> list[Pair]:
    """As many from every file of English training pairs; else summaries and their functions."""
    files = sorted(DATA.glob("train/*-en.parquet"))
    if not files:
        found = [Pair(pair.query, pair.document) for pair in collect().train]
        return random.Random(0).sample(found, count)
    sources = [load_source(SourceConfig(path=str(file))) for file in files]
    drawn: list[Pair] = []
    for number, source in enumerate(sources):
        share = count * (number + 1) // len(sources) - count * number // len(sources)
        drawn += source.pairs(random.Random(number).sample(range(len(source)), share))
    return drawn


def paired(name: str, queries: list[str], documents: list[str]) -> RetrievalTask:
    """Each query is answered by the document in its row, and by no other."""
    row_R, ids = np.arange(len(queries)), [str(number) for number in range(len(queries))]
    qrels = Qrels.from_judgements(row_R, row_R, np.ones(len(queries)), len(queries))
    return RetrievalTask(name, queries, documents, qrels, ids, ids, [])


def reduced(task: RetrievalTask, size: int) -> RetrievalTask:
    """At most ``size`` documents, those that answer a query first, and the queries that they answer."""
    qrels = task.qrels
    document_N = np.sort(list(dict.fromkeys([*qrels.document.tolist(), *range(len(task.documents))]))[:size])
    kept_R = (qrels.grade > 0) & np.isin(qrels.document, document_N)
    return subset(task, np.unique(qrels.query_R[kept_R]), document_N)
