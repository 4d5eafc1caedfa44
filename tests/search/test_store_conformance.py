"""What every store that holds an index must do: the same questions to each, answered by a plain scan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from toys import ToyModel, write_jsonl

from moembed.search import plan as planning
from moembed.search.embed import EmbedConfig
from moembed.search.index import Index
from moembed.search.index_file import delete_rows, index_file
from moembed.search.stores.push import open_store, push_index
from moembed.search.where import read_where
from moembed.types import UserError
from postgres_server import MISSING, postgres, programs

DIM, ROWS = 8, 240
STORES = ("exact", "qdrant-edge", "qdrant", "postgresql", "lance")


class Held(Protocol):
    """A store with rows in it."""

    def write(self, rows: list[dict]) -> None:
        """From now on it holds these rows and no others."""

    def delete(self, ids: list[str]) -> None: ...

    def nearest(self, vector_M: np.ndarray, k: int, where: str | None = None) -> list[tuple[str, float]]: ...

    def ids(self) -> set[str]: ...

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class OurIndex:
    """An index folder, searched exactly or with the engine."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder, self.engine = folder, engine

    def write(self, rows: list[dict]) -> None:
        source = write_jsonl(self.folder.parent / f"{self.folder.name}.jsonl", rows)
        config = EmbedConfig(block_rows=64)
        index_file(ToyModel(), source, self.folder, config, delete_missing=True, engine=self.engine)
        self.reopen()

    def delete(self, ids: list[str]) -> None:
        delete_rows(self.folder, ids)
        self.reopen()

    def nearest(self, vector_M: np.ndarray, k: int, where: str | None = None) -> list[tuple[str, float]]:
        hits = self.index.search(vector_M[None], k, where=where)
        return [(hit.id, hit.score) for hit in hits[0]]

    def ids(self) -> set[str]:
        return set(self.index.ids())

    def reopen(self) -> None:
        self.index = Index.open(self.folder)

    def close(self) -> None:
        pass


class Database:
    """A vector database that an index is pushed to."""

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self.source, self.url, self.name = OurIndex(folder, "exact"), url, name
        self.store: Any = None

    def write(self, rows: list[dict]) -> None:
        self.source.write(rows)
        self._push()

    def delete(self, ids: list[str]) -> None:
        self.source.delete(ids)
        self._push()

    def _push(self) -> None:
        self.reopen()
        push_index(self.source.index, self.store, prune=True)

    def nearest(self, vector_M: np.ndarray, k: int, where: str | None = None) -> list[tuple[str, float]]:
        condition = None if where is None else read_where(where)
        return self.store.nearest(vector_M, k, condition, self.source.index.columns)

    def ids(self) -> set[str]:
        return set(self.store.ids())

    def reopen(self) -> None:
        self.close()
        self.store = open_store(self.url, self.name)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    if programs() is None:
        pytest.skip(MISSING)
    with postgres() as url:
        yield url


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Iterator[Callable[[], Held]]:
    """Opens the store of this test."""
    monkeypatch.setattr(planning, "SMALL", 0)
    monkeypatch.setattr(planning, "FEW", 5)
    monkeypatch.setattr(planning, "FEW_NUMBERS", 0)
    opened: list[Held] = []
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name).lower()

    def open_() -> Held:
        if request.param in ("exact", "qdrant-edge"):
            if request.param == "qdrant-edge":
                pytest.importorskip("qdrant_edge")
            made: Held = OurIndex(tmp_path / "index", request.param)
        elif request.param == "qdrant":
            pytest.importorskip("qdrant_client")
            made = Database(tmp_path / "index", f"qdrant://{tmp_path}/qdrant", name)
        elif request.param == "lance":
            pytest.importorskip("lancedb")
            made = Database(tmp_path / "index", f"lance://{tmp_path}/lance", name)
        else:
            made = Database(tmp_path / "index", request.getfixturevalue("postgres_url"), name)
        opened.append(made)
        return made

    yield open_
    for held in opened:
        held.close()


def rows(numbers: Sequence[int] = range(ROWS)) -> list[dict]:
    """``near`` ranks them by their cosine to the first query, so a condition on it follows the vectors."""
    vector_NM = unit(ToyModel().vectors([f"text {n}" for n in range(ROWS)]).array)
    rank_N = np.empty(ROWS, int)
    rank_N[np.argsort(-(vector_NM @ queries()[0]))] = np.arange(ROWS)
    return [
        {
            "_id": f"d{n}",
            "text": f"text {n}",
            "near": int(rank_N[n]),
            "spread": (n * 77) % ROWS,
            "part": n / 8,
            "lang": ("de", "en", "", None)[n % 4],
            "good": None if n % 5 == 0 else n % 3 == 0,
        }
        for n in numbers
    ]


def unit(vector_NM: np.ndarray) -> np.ndarray:
    return vector_NM / np.linalg.norm(vector_NM, axis=1, keepdims=True)


def queries() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32))


def agrees(held: Held, kept: list[dict], where: str | None = None, k: int = 10) -> None:
    """Its nearest rows are those of a scan over the rows that are kept."""
    vector_NM = unit(ToyModel(dim=DIM).vectors([row["text"] for row in kept]).array.reshape(-1, DIM))
    known = {row["_id"]: n for n, row in enumerate(kept)}
    for query_M in queries():
        found = held.nearest(query_M, k, where)
        score_N = vector_NM @ query_M
        assert len({name for name, _ in found}) == len(found) == min(k, len(kept))
        assert {name for name, _ in found} <= known.keys(), "a row that is not there, or breaks the condition"
        np.testing.assert_allclose([score for _, score in found], np.sort(score_N)[::-1][:k], atol=1e-5)
        np.testing.assert_allclose(
            [score for _, score in found], score_N[[known[name] for name, _ in found]], atol=1e-5
        )


FILTERS: dict[str, Callable[[dict], bool]] = {
    "spread < 60": lambda row: row["spread"] < 60,
    "spread >= 24 and spread <= 200": lambda row: 24 <= row["spread"] <= 200,
    "near < 40": lambda row: row["near"] < 40,
    "near >= 120": lambda row: row["near"] >= 120,
    'lang = "de"': lambda row: row["lang"] == "de",
    'lang != "de"': lambda row: row["lang"] != "de",
    'lang in ("de", "") or good = true': lambda row: row["lang"] in ("de", "") or row["good"] is True,
    "lang = null and not good = false": lambda row: row["lang"] is None and row["good"] is not False,
    "part in (0.125, 3, 7.5) or part > 27.5": lambda row: (
        row["part"] in (0.125, 3, 7.5) or row["part"] > 27.5
    ),
    "good != null and part <= 20": lambda row: row["good"] is not None and row["part"] <= 20,
}


def test_filters_that_follow_the_vectors_and_filters_that_do_not(make: Callable[[], Held]) -> None:
    held = make()
    held.write(rows())
    agrees(held, rows())
    for where, meets in FILTERS.items():
        agrees(held, [row for row in rows() if meets(row)], where)


def test_fewer_than_k_rows_meet_a_filter(make: Callable[[], Held]) -> None:
    held = make()
    held.write(rows())
    for bound in (0, 1, 7):
        agrees(held, [row for row in rows() if row["spread"] < bound], f"spread < {bound}")
        agrees(held, [row for row in rows() if row["near"] >= ROWS - bound], f"near >= {ROWS - bound}")
    agrees(held, rows(), k=ROWS + 5)


def test_what_was_deleted_is_not_found_also_after_it_is_opened_again(make: Callable[[], Held]) -> None:
    held = make()
    held.write(rows())
    gone = [row["_id"] for row in rows() if row["near"] < 8 or row["spread"] % 3 == 0]
    held.delete(gone)
    kept = [row for row in rows() if row["_id"] not in gone]
    for _ in range(2):
        assert held.ids() == {row["_id"] for row in kept}
        agrees(held, kept)
        for where in ("near < 40", "spread < 60", 'lang != "de"'):
            agrees(held, [row for row in kept if FILTERS[where](row)], where)
        held.reopen()


def test_a_changed_row_takes_the_place_of_the_old_one(make: Callable[[], Held]) -> None:
    held = make()
    held.write(rows())
    changed = [
        row | {"text": f"text {n + 1000}", "lang": "fr"} if n % 10 == 0 else row
        for n, row in enumerate(rows())
    ]
    held.write(changed)
    agrees(held, changed)
    agrees(held, [row for row in changed if row["lang"] == "fr"], 'lang = "fr"')
    agrees(held, [row for row in changed if row["lang"] == "de"], 'lang = "de"')


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("year = 3", "there is no column 'year'"),
        ("spread = 'x'", "'spread' holds numbers"),
        ("lang < 3", "'lang' holds text"),
        ("good > true", "'good' holds true or false"),
    ],
)
def test_conditions_that_the_columns_cannot_answer(
    make: Callable[[], Held], where: str, complaint: str
) -> None:
    held = make()
    held.write(rows(range(20)))
    with pytest.raises(UserError, match=complaint):
        held.nearest(queries()[0], 3, where)
    agrees(held, rows(range(20)), k=3)


def test_ids_that_stand_there_twice_and_ids_that_do_not_change_nothing(make: Callable[[], Held]) -> None:
    held = make()
    held.write(rows(range(20)))
    with pytest.raises(UserError, match="'d3'"):
        held.write([*rows(range(30)), {"_id": "d3", "text": "again"}])
    with pytest.raises(UserError, match="'nobody'"):
        held.delete(["d1", "nobody"])
    held.reopen()
    assert held.ids() == {f"d{n}" for n in range(20)}
    agrees(held, rows(range(20)))


WRITER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from pathlib import Path
from test_store_conformance import Database, OurIndex, rows
folder, kind, url, name = Path(sys.argv[2]), *sys.argv[3:6]
held = OurIndex(folder, kind) if kind in ("exact", "qdrant-edge") else Database(folder, url, name)
for end in range(40, 240, 20):
    held.write(rows(range(end)))
    held.close()
    print(end, flush=True)
"""


def test_a_writer_that_is_killed_keeps_what_it_said_was_written(make, tmp_path: Path) -> None:
    held = make()
    if isinstance(held, Database):
        kind, url, name = "database", held.url, held.name
        if url.startswith("qdrant:///"):
            pytest.importorskip("qdrant_client")
    else:
        kind, url, name = held.engine, "", ""
    paths = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", WRITER, paths, str(tmp_path / "index"), kind, url, name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = int(process.stdout.readline())
    time.sleep(0.05)  # into the next write
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    said = int(rest[-1]) if rest else said
    if isinstance(held, Database):
        held.source.reopen()
    held.reopen()
    there = held.ids()
    assert there >= {f"d{n}" for n in range(said)}, "rows that were acknowledged are lost"
    assert there <= {f"d{n}" for n in range(said + 20)}
    if isinstance(held, OurIndex):
        assert there in ({f"d{n}" for n in range(end)} for end in (said, said + 20)), (
            "half of a write is seen"
        )
    agrees(held, rows(sorted(int(name[1:]) for name in there)))
    held.write(rows(range(said + 40)))
    agrees(held, rows(range(said + 40)))
