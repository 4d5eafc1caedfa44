"""What does a vector score in so few bytes?

Retrieval with vectors of one encode, stored in every codec: nDCG@10, and the difference to float32 with its
95 % paired interval over the queries. Codecs are compared at equal bytes: 1, 2 and 4 bits for every dimension
of the model. Of fewer dimensions ("cut", as of Matryoshka models; this model was not trained so) as many are
kept as fit. "sign + rescore" finds 100 documents by the Hamming distance of signs and orders them again: by
the float query and the same signs, by int8 of the dimensions that the bytes have room for, or by all floats,
which a disk has to hold beside. XQuAD and SciFact, English, where MOEMBED_DATA holds them, else functions of
installed packages asked for by their summaries. all-MiniLM-L6-v2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moembed.compare.significance import paired_difference
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.metrics import evaluate_ranking
from moembed.runs.bench import Options, Row
from moembed.search.binariser import BebrSymmetric, unit
from moembed.search.codecs import Codec, Searched, as_searched, fit_codec
from moembed.search.exact import top_k
from moembed.types import UserError

from . import models, texts
from .precision import some_task
from .texts import reduced

METRIC, SHORTLIST = "ndcg@10", 100
BITS = (1, 2, 4)
LEARNED = ("lsh", "pq", "opq", "bebr")
SHARE = 0.97  # of what floats score, that two bits per dimension are to keep


def rows(options: Options) -> Iterator[Row]:
    size = 300 if options.quick else 1000
    tasks = [some_task(size)]
    xquad = texts.DATA / "eval" / "xquad-en"
    if xquad.is_dir():
        tasks.insert(0, reduced(load_task(xquad), size))
    model = Embedder.from_pretrained(models.minilm(), dtype="float32")
    for task in tasks:
        query_QM = model.vectors(task.queries, role="query").array
        document_NM = model.vectors(task.documents, role="document").array
        yield from compared(task, query_QM, document_NM)


def compared(task: RetrievalTask, query_QM: np.ndarray, document_NM: np.ndarray) -> Iterator[Row]:
    """A row for every codec, by bytes."""
    about = f"{task.name}, {len(task.queries):,} queries, {len(task.documents):,} documents"
    exact_Q = scores(task, top_k(query_QM, document_NM, SHORTLIST).index)
    dim = document_NM.shape[1]
    yield Row(f"{about}, {4 * dim} bytes", "float32", float(exact_Q.mean()), METRIC)

    def row(size: int | str, name: str, ranked_QK: np.ndarray) -> Row:
        score_Q = scores(task, ranked_QK)
        gap = paired_difference(score_Q, exact_Q)
        note = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] against float32"
        target = f">= {SHARE * exact_Q.mean():.4f}" if name == "bebr:2" else None
        return Row(f"{about}, {size} bytes", name, float(score_Q.mean()), METRIC, target=target, note=note)

    for codec, size in (("float16", 2 * dim), ("int8", dim)):
        yield row(size, codec, ranked(as_searched(query_QM, document_NM, codec)))
    signs = as_searched(query_QM, document_NM, "binary-symmetric")
    plain = as_searched(query_QM, document_NM, "binary")
    for bits in BITS:
        size = bits * dim // 8
        for codec, kept in (("float32", size // 4), ("int8", size)):
            cut = as_searched(query_QM, document_NM, codec, kept)
            yield row(size, f"cut to {kept}, {codec}", ranked(cut))
        if bits == 1:
            yield row(size, "sign, Hamming distance", ranked(signs))
            yield row(size, "sign, float query", ranked(plain))
            yield row(size, "sign + rescore by the signs", rescored(signs, plain))
        else:
            rest = as_searched(query_QM, document_NM, "int8", size - dim // 8)
            yield row(size, f"sign + rescore by int8 cut to {size - dim // 8}", rescored(signs, rest))
        for codec in LEARNED:
            name = f"{codec}:{bits}"
            try:
                fitted = fit_codec(name, document_NM)
            except UserError as error:
                yield Row(f"{about}, {size} bytes", name, note=str(error))
                continue
            yield row(size, name, ranked(seen(fitted, query_QM, document_NM)))
            if codec == "bebr":  # the same codes, searched with codes
                both = BebrSymmetric.from_state(fitted.state())
                yield row(size, f"bebr-symmetric:{bits}", ranked(seen(both, query_QM, document_NM)))
    floats = as_searched(query_QM, document_NM)
    yield row(f"{dim // 8} + {4 * dim}", "sign + rescore by floats", rescored(signs, floats))


def seen(codec: Codec, query_QM: np.ndarray, document_NM: np.ndarray) -> Searched:
    stored_NM = codec.decode(codec.encode(document_NM))
    return Searched(codec.query(query_QM), stored_NM, codec.bytes_per_vector)


def ranked(searched: Searched) -> np.ndarray:
    return top_k(searched.query_QM, searched.document_NM, SHORTLIST).index


def rescored(first: Searched, then: Searched) -> np.ndarray:
    """The shortlist of one search in the order of another one."""
    found_QK = ranked(first)
    score_QK = np.einsum("qm,qkm->qk", unit(then.query_QM), unit(then.document_NM)[found_QK])
    order_QK = np.argsort(-score_QK, axis=1, kind="stable")
    return np.take_along_axis(found_QK, order_QK, axis=1)


def scores(task: RetrievalTask, ranked_QK: np.ndarray) -> np.ndarray:
    return evaluate_ranking(ranked_QK, task.qrels, [METRIC])[METRIC]
