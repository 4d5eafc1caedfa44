"""How fast and how complete is a filtered search, at every selectivity?

Texts of MOEMBED_DATA (else docstrings) as the mean of their MiniLM word vectors, the first 128 coordinates:
real vectors, made in a minute. Column `spread` holds random numbers, so its filter knows nothing of the
vectors; `near` ranks the rows by their cosine to one of them, so its filter leaves one region, and most of
the queries lie elsewhere, which is hard for a graph. Queries are other texts, asked one at a time. Vectors
and index are kept in MOEMBED_CACHE.

The filtered scan takes the rows that meet the condition by pyarrow and multiplies them, or all rows where
that is faster, in memory, and asks the condition anew for every query. So does "new conditions": an open
index keeps the rows of the last conditions, and there every query has one that was never asked before. The
engine's own filter is asked of the same graph, without us.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.numbered import Numbered
from benchmarks.texts import DATA, mixed
from moembed.encoding import View
from moembed.files import cache_folder, read_json, write_json
from moembed.runs.bench import Options, Row, clock, interleave, missing, speed_row
from moembed.search import qdrant_edge
from moembed.search.index import Index
from moembed.search.where_qdrant import WHOLE

K, DIM = 10, 128
SHARES = (0.001, 0.01, 0.1, 0.5, 1.0)
ASKED, TIMED = 100, 20  # queries that recall is taken over, and of them those that are timed
SCAN, EXACT, OURS, ENGINE = "filtered scan", "index, exact", "index, qdrant-edge", "qdrant-edge alone"
NEW = f"{OURS}, new conditions"
_MADE = 1  # raise it when the vectors or the columns change


def rows(options: Options) -> Iterator[Row]:
    if note := missing("qdrant-edge-py"):
        yield Row("filtered search", OURS, note=note)
        return
    size = 20_000 if options.quick else 200_000
    folder = cache_folder() / "bench" / f"filter-{_MADE}-{size}-{DATA.is_dir()}"
    stored = Stored.of(folder, size)
    yield from building(stored)
    index = Index.open(stored.index)
    for column in ("spread", "near"):
        for share in SHARES:
            yield from asked(stored, index, column, share, options.repeats)


class Stored:
    """The vectors, the queries and the index of them, made once.

    Attributes:
        built: how long it took to make the index, by step.
    """

    def __init__(self, folder: Path) -> None:
        self.index = folder / "index"
        self.vector_NM: np.ndarray = np.load(folder / "vectors.npy")
        self.query_QM: np.ndarray = np.load(folder / "queries.npy")
        self.columns = pq.read_table(folder / "columns.parquet").combine_chunks()
        self.built: dict[str, float] = read_json(folder / "built.json")

    @classmethod
    def of(cls, folder: Path, size: int) -> Stored:
        """The one of a folder, or a new one."""
        if not (folder / "vectors.npy").exists():
            embed(folder, size)
        build(folder)
        return cls(folder)


def texts(most: int) -> Iterator[str]:
    """Documents and queries of the training files and plain text, each once and at most so many of a file and
    kind, evenly spaced; else docstrings."""
    files = [*sorted(DATA.glob("train/*.parquet")), *DATA.glob("text.parquet")]
    if not files:
        yield from mixed()
        return
    seen: set[str] = set()
    for name in ("document", "query", "text"):
        for file in files:
            if name in pq.read_schema(file).names:
                column = pq.read_table(file, columns=[name])[name]
                row_K = np.unique(np.linspace(0, len(column) - 1, min(most, len(column))).astype(np.int64))
                for text in column.take(pa.array(row_K)).to_pylist():
                    if text and text not in seen:
                        seen.add(text)
                        yield text[:300]


def embed(folder: Path, size: int) -> None:
    """Vectors of random texts, the last of them queries."""
    from moembed.embedder import Embedder
    from moembed.evaluation.static import StaticEncoder
    from moembed.folder.bases import locate_base

    known = sorted(set(texts(size // 5)))
    drawn = np.random.default_rng(0).permutation(len(known))[: size + ASKED]
    encoder = StaticEncoder(Embedder.from_pretrained(locate_base("minilm"), dtype="float32"))
    keep(folder, encoder.vectors([known[n] for n in drawn.tolist()], view=View(dim=DIM)).array)


def keep(folder: Path, vector_NM: np.ndarray) -> None:
    """The vectors, the last of them as queries, and the columns."""
    document_NM = vector_NM[:-ASKED]
    near_N = np.empty(len(document_NM), np.int64)
    near_N[np.argsort(-(document_NM @ document_NM[0]), kind="stable")] = np.arange(len(document_NM))
    spread_N = np.random.default_rng(1).permutation(len(document_NM))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "queries.npy", vector_NM[-ASKED:])
    pq.write_table(pa.table({"spread": spread_N, "near": near_N}), folder / "columns.parquet")
    np.save(folder / "unfinished.npy", document_NM)
    (folder / "unfinished.npy").rename(folder / "vectors.npy")


def build(folder: Path) -> None:
    """The index, then the graph, each timed; what is there already is left as it is."""
    from moembed.search.ann_build import refresh
    from moembed.search.index_file import index_file

    file = folder / "built.json"
    took: dict[str, float] = read_json(file) if file.exists() else {}
    if "rows" not in took:
        shutil.rmtree(folder / "index", ignore_errors=True)
        vector_NM = np.load(folder / "vectors.npy")
        model = Numbered("bench-filter", vector_NM.shape[1], vector_NM.__getitem__)
        ids = [str(n) for n in range(len(vector_NM))]
        table = pq.read_table(folder / "columns.parquet").append_column("_id", pa.array(ids))
        table = table.append_column("text", pa.array([f"{known} moles" for known in ids]))
        pq.write_table(table, folder / "rows.parquet")
        took["rows"] = clock(lambda: index_file(model, folder / "rows.parquet", folder / "index"))
        write_json(file, took)
    if "graph" not in took:
        took["graph"] = clock(lambda: refresh(folder / "index", "qdrant-edge"))
        write_json(file, took)
    if "graph alone" not in took:
        shutil.rmtree(folder / "alone", ignore_errors=True)
        took["graph alone"] = clock(lambda: graph_alone(folder))
        shutil.rmtree(folder / "alone")
        write_json(file, took)


def graph_alone(folder: Path) -> None:
    """The same points and fields, given to the engine from memory: what making the graph takes without us."""
    vector_NM, columns = np.load(folder / "vectors.npy"), pq.read_table(folder / "columns.parquet")
    starts = range(0, len(vector_NM), 1000)
    batches = (
        (np.arange(start, start + len(some)), some, columns.slice(start, len(some)).to_pylist())
        for start, some in ((start, vector_NM[start : start + 1000]) for start in starts)
    )
    qdrant_edge.build(
        folder / "alone", vector_NM.shape[1], batches, dict.fromkeys(columns.column_names, WHOLE)
    )


def building(stored: Stored) -> Iterator[Row]:
    count_, ann = len(stored.vector_NM), Index.open(stored.index).info()
    question = f"making the index of {count_:,} × {DIM}"
    note = "measured once, when it was made"
    yield Row(question, "index, exact", count_ / stored.built["rows"], "rows/s", note=note)
    alone, ours = (count_ / stored.built[step] for step in ("graph alone", "graph"))
    yield Row(question, ENGINE, alone, "rows/s", note=f"{note}, from memory")
    note += ", beside the rows; counts what is found by a sample"
    yield Row(question, OURS, ours, "rows/s", None, ours / alone, ENGINE, ">= 0.9", note)
    yield Row("on disk", "index, exact", ann["bytes"] / 2**20, "MiB")
    yield Row("on disk", OURS, ann["engine_bytes"] / 2**20, "MiB", note="beside the rows")


def asked(stored: Stored, index: Index, column: str, share: float, repeats: int) -> Iterator[Row]:
    """One filter: how fast the contenders are and how much of the truth they find."""
    size = len(stored.vector_NM)
    bound = max(K, round(share * size))
    where = f"{column} < {bound}"
    truth = np.array([scan(stored, column, bound, query_M) for query_M in stored.query_QM])
    contenders: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        SCAN: partial(scan, stored, column, bound),
        EXACT: lambda query_M: index.search(query_M[None], K, where=where, exact=True).index[0],
        OURS: lambda query_M: index.search(query_M[None], K, where=where).index[0],
        ENGINE: partial(engine_alone, index, column, bound),
        NEW: never_asked_before(index, where),
    }
    recalls = {name: recall(map(find, stored.query_QM), truth) for name, find in contenders.items()}
    plans = {
        EXACT: index.search(stored.query_QM[:1], K, where=where, exact=True).plan,
        OURS: index.search(stored.query_QM[:1], K, where=where).plan,
    }
    timings = interleave(
        {name: partial(all_of, find, stored.query_QM[:TIMED]) for name, find in contenders.items()}, repeats
    )
    question = f"{column}, {share:.1%}"
    yield speed_row(question, timings, SCAN, TIMED, "queries/s")
    for name in (EXACT, ENGINE, OURS, NEW):
        plan = f", {plans[name].kind} by {plans[name].engine}" if name in plans else ""
        target = ">= 5" if name == OURS and share >= 0.01 else None
        note = f"recall@{K} {recalls[name]:.3f}{plan}"
        yield speed_row(question, timings, name, TIMED, "queries/s", SCAN, target, note)
    yield Row(question, OURS, recalls[OURS], f"recall@{K}", target=">= 0.95")


def never_asked_before(index: Index, where: str) -> Callable[[np.ndarray], np.ndarray]:
    """A search with another condition for every query, which the same rows meet."""
    number = count(1)

    def find(query_M: np.ndarray) -> np.ndarray:
        again = f"{where} and {where.split()[0]} > -{next(number)}"
        return np.asarray(index.search(query_M[None], K, where=again).index[0])

    return find


def recall(found: Iterable[np.ndarray], truth_QK: np.ndarray) -> float:
    """The share of the true neighbours that were found."""
    return float(np.mean([len(np.intersect1d(*both)) / K for both in zip(found, truth_QK, strict=True)]))


def all_of(find: Any, query_QM: np.ndarray) -> None:
    for query_M in query_QM:
        find(query_M)


def scan(stored: Stored, column: str, bound: int, query_M: np.ndarray) -> np.ndarray:
    """The condition over the whole column, then the rows that meet it; all rows where they are many."""
    meets_N = pc.less(stored.columns[column], bound).to_numpy()
    row_K = np.flatnonzero(meets_N)
    if 3 * len(row_K) < len(meets_N):
        score_K = stored.vector_NM[row_K] @ query_M
        best_K = np.argpartition(-score_K, K - 1)[:K]
        return row_K[best_K]
    score_N = np.where(meets_N, stored.vector_NM @ query_M, -np.inf)
    return np.argpartition(-score_N, K - 1)[:K]


def engine_alone(index: Index, column: str, bound: int, query_M: np.ndarray) -> np.ndarray:
    """The engine's graph and the engine's filter, without a plan or a second look."""
    ann = index._engine()
    assert ann is not None
    edge = ann._edge._edge
    name = ann.record.fields[column][0]
    condition = edge.Filter(must=[edge.FieldCondition(name, range=edge.RangeFloat(lt=bound))])
    request = edge.QueryRequest(limit=K, query=edge.Query.Nearest(query_M.tolist()), filter=condition)
    return ann._rows(np.array([point.id for point in ann._edge._shard.query(request)], np.int64))
