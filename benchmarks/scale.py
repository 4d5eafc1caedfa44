"""How do making an index, its size and a search grow, and what would 100 million rows take?

Vectors of 256 coordinates around 1,000 centres, the same for the same row: they cost what others cost, and
say nothing about quality. The index holds ids, a column to filter by and int8 codes, 256 bytes a vector,
which are searched in full. A straight line through all sizes is carried on to 100 million; how far that may
be off shows in what the line through the smaller sizes says of the largest one, which was measured too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.numbered import Numbered
from moembed.runs.bench import Options, Row, alone, clock

DIM, CENTRES, K = 256, 1000, 10
SIZES, QUICK = (125_000, 250_000, 500_000, 1_000_000, 2_000_000), (5_000, 10_000, 20_000)
FAR = 100_000_000
CODES, FILTERED = "int8, all rows", "int8, 1 % of the rows"
_BLOCK = 65_536


def drawn() -> Numbered:
    """A centre and noise, by the number alone."""
    centre_CM = np.random.default_rng(0).standard_normal((CENTRES, DIM), dtype=np.float32)
    noise_CM = np.random.default_rng(1).standard_normal((CENTRES - 1, DIM), dtype=np.float32)

    def vectors_of(number_N: np.ndarray) -> np.ndarray:
        # 1,000 and 999 have no common divisor: the first 999,000 pairs of centre and noise are all different
        vector_NM = centre_CM[number_N % CENTRES] + 0.5 * noise_CM[number_N % (CENTRES - 1)]
        vector_NM[:, 0] += number_N / 4e6  # and those behind them lie beside
        return np.asarray(vector_NM / np.linalg.norm(vector_NM, axis=1, keepdims=True))

    return Numbered("bench-scale", DIM, vectors_of)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of an index of one size."""

    rows: int
    seconds: float  # to write the rows
    coding: float  # seconds, to make codes of them
    disk: int
    build_memory: int
    search_memory: int
    search: Mapping[str, float]  # seconds of one query


def rows(options: Options) -> Iterator[Row]:
    measured = []
    for size in QUICK if options.quick else SIZES:
        measured.append(measure(size, options.repeats))
        yield from told(measured[-1])
    yield from carried_on(measured)


def measure(size: int, repeats: int) -> Figures:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_source(folder / "rows.parquet", size)
        made = alone(make, str(folder))
        asked = alone(ask, str(folder / "index"), size, repeats)
        disk = sum(file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file())
    seconds, coding = made.result
    return Figures(size, seconds, coding, disk, made.peak_bytes, asked.peak_bytes, asked.result)


def write_source(file: Path, size: int) -> None:
    """Rows of an id, a text and a column, block by block."""
    schema = pa.schema({"_id": pa.string(), "text": pa.string(), "group": pa.int64()})
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, size, _BLOCK):
            number_N = range(start, min(size, start + _BLOCK))
            names = [str(number) for number in number_N]
            groups = [number // CENTRES % 100 for number in number_N]
            writer.write_table(pa.table([names, names, groups], schema=schema))


def make(folder: str) -> tuple[float, float]:
    """Seconds of ``moembed index`` less those of the model, and of making codes."""
    from moembed.search.index_compress import compress_index
    from moembed.search.index_file import index_file

    model, place = drawn(), Path(folder)
    whole = clock(lambda: index_file(model, place / "rows.parquet", place / "index"))
    return whole, clock(lambda: compress_index(place / "index", "int8"))


def ask(index: str, size: int, repeats: int) -> dict[str, float]:
    """Seconds of one query, the median; the first round opens files and does not count."""
    from moembed.search.index import Index

    opened = Index.open(index)
    query_QM = drawn().vectors(map(str, range(7, 7 + 3))).array
    found: dict[str, float] = {}
    for name, where in {CODES: None, FILTERED: "group = 7"}.items():
        took = [
            clock(partial(opened.search, query_M[None], K, where=where))
            for query_M in np.tile(query_QM, (repeats + 1, 1))
        ]
        found[name] = float(np.median(took[len(query_QM) :]))
    return found


# ---- figures -----------------------------------------------------------------------------------------------


def told(found: Figures) -> Iterator[Row]:
    question = f"{found.rows:,} x {DIM}"
    yield Row(question, "rows written", found.rows / found.seconds, "rows/s")
    yield Row(question, "codes made", found.rows / found.coding, "rows/s")
    yield Row(question, "on disk", found.disk / found.rows, "bytes a row")
    yield Row(question, "memory, making it", found.build_memory / 2**20, "MiB")
    yield Row(question, "memory, searching it", found.search_memory / 2**20, "MiB")
    for name, seconds in found.search.items():
        yield Row(question, f"one query, {name}", 1e3 * seconds, "ms")


def carried_on(measured: list[Figures]) -> Iterator[Row]:
    """Every figure at ``FAR`` rows, with the error of the same line where the truth is known."""
    question = f"{FAR:,} x {DIM}, carried on"
    size_S = np.array([found.rows for found in measured], dtype=np.float64)
    figures: dict[str, tuple[str, float, list[float]]] = {
        "making it": ("h", 3600, [found.seconds + found.coding for found in measured]),
        "on disk": ("GB", 1e9, [found.disk for found in measured]),
        "memory, making it": ("GB", 1e9, [found.build_memory for found in measured]),
        "memory, searching it": ("GB", 1e9, [found.search_memory for found in measured]),
    }
    for name in measured[0].search:
        figures[f"one query, {name}"] = ("s", 1, [found.search[name] for found in measured])
    for name, (unit, scale, value_S) in figures.items():
        known = line(size_S[:-1], np.array(value_S[:-1]), size_S[-1])
        error = known / value_S[-1] - 1
        value = line(size_S, np.array(value_S), FAR) / scale
        note = f"the line through the smaller sizes is {error:+.0%} off at {measured[-1].rows:,}"
        yield Row(question, name, value, unit, note=note)


def line(size_S: np.ndarray, value_S: np.ndarray, at: float) -> float:
    """Of the straight line with the least squared relative errors, the value at a size."""
    design_S2 = np.stack([1 / value_S, size_S / value_S], axis=1)
    (start, slope), *_ = np.linalg.lstsq(design_S2, np.ones(len(size_S)), rcond=None)
    return float(start + slope * at)
