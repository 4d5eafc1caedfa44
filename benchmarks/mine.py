"""Does the exact search keep up with FAISS at mining scale, and in how little memory?

Both find the 50 nearest of stored 384-d vectors by a slice of the queries; what all of them would take is
extrapolated and says so. The documents are a memory-mapped file; each run is a process of its own, timed from
opening that file to the last result.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from moembed.runs.bench import Options, Row, Timing, alone, missing, speed_row
from moembed.search.exact import search_parts
from moembed.search.vectors import parts
from moembed.types import Hits

DIM, K, CLUSTERS = 384, 50, 1000
MEMORY_GIB = 4
PEER = "FAISS IndexFlatIP"
_CHUNK = 50_000


def rows(options: Options) -> Iterator[Row]:
    documents, queries = (100_000, 4_000) if options.quick else (1_000_000, 20_000)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the BLAS of every process started below
    contenders: dict[str, Callable[..., tuple[float, np.ndarray]]] = {"exact": exact, PEER: flat}
    if note := missing("faiss-cpu"):
        yield Row("search", PEER, note=note)
        del contenders[PEER]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "documents.npy"
        store(file, documents)
        runs = [
            {name: alone(find, file, queries) for name, find in contenders.items()}
            for _ in range(options.repeats)
        ]
    timings = {name: Timing(tuple(run[name].result[0] for run in runs)) for name in contenders}
    question = f"top {K} of {documents:,} × {DIM}, {queries:,} queries"
    for name in contenders:
        peer = PEER if name == "exact" and PEER in contenders else None
        yield speed_row(question, timings, name, queries, "queries/s", peer)
        hours = timings[name].median / queries * documents / 3600
        note = f"extrapolated from {queries:,} queries, not run"
        yield Row(f"all {documents:,} queries", name, hours, "h", note=note)
        peak = max(run[name].peak_bytes for run in runs) / 2**30
        target = f"<= {MEMORY_GIB}" if name == "exact" else None
        yield Row("peak resident memory, mapped file included", name, peak, "GiB", target=target)
    if PEER in contenders:
        found = [run.result[1] for run in runs[0].values()]
        agree = np.mean([len(np.intersect1d(*pair)) / K for pair in zip(*found, strict=True)])
        yield Row(f"same {K} documents", "exact", float(agree), "of FAISS's", note="float32 ties may differ")


def store(file: Path, documents: int) -> None:
    """Unit vectors around random centres: neighbours differ in score as those of texts do."""
    generator = np.random.default_rng(0)
    center_CM = generator.standard_normal((CLUSTERS, DIM), dtype=np.float32)
    stored = np.lib.format.open_memmap(file, "w+", np.float32, (documents, DIM))
    for start in range(0, documents, _CHUNK):
        vector_NM = stored[start : start + _CHUNK]
        vector_NM[:] = generator.standard_normal(vector_NM.shape, dtype=np.float32)
        vector_NM += center_CM[generator.integers(0, CLUSTERS, len(vector_NM))]
        vector_NM /= np.linalg.norm(vector_NM, axis=1, keepdims=True)
    stored.flush()


def exact(file: Path, queries: int) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    stored = np.load(file, mmap_mode="r")
    hits: Hits = search_parts(stored[:queries], parts(lambda row: stored[row], len(stored)), len(stored), K)
    return time.perf_counter() - start, hits.index


def flat(file: Path, queries: int) -> tuple[float, np.ndarray]:
    import faiss

    start = time.perf_counter()
    stored = np.load(file, mmap_mode="r")
    index = faiss.IndexFlatIP(DIM)
    for first in range(0, len(stored), _CHUNK):
        index.add(np.ascontiguousarray(stored[first : first + _CHUNK]))
    row_QK = index.search(np.ascontiguousarray(stored[:queries]), K)[1]
    return time.perf_counter() - start, row_QK
