"""What is kept of conditions changes no result, is never stale, and stays within its bounds."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toys import ToyModel, write_jsonl

from moembed.search import matches, qdrant_edge
from moembed.search import plan as planning
from moembed.search.embed import EmbedConfig
from moembed.search.index import Index
from moembed.search.index_compress import compress_index
from moembed.search.index_file import delete_rows, index_file
from moembed.search.matches import KeptMatches, Matches

CONDITIONS = ("page = 3", "page < 40", 'lang = "de"', "page >= 60", "page >= 0", "page < 0", "share < 9")


def write(folder: Path, first: int, last: int, sign: int = 1, **options: str) -> None:
    rows = [
        {"_id": f"d{n}", "text": f"text {n * sign}", "page": n, "lang": ("de", "en", None)[n % 3]}
        | {"share": None if n % 5 == 0 else n / 7}
        for n in range(first, last)
    ]
    source = write_jsonl(folder.parent / f"{first}-{sign}.jsonl", rows)
    index_file(ToyModel(), source, folder, EmbedConfig(block_rows=32), **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(planning, "SMALL", 0)
    monkeypatch.setattr(planning, "FEW", 5)
    monkeypatch.setattr(planning, "FEW_NUMBERS", 0)
    write(tmp_path / "index", 0, 300)
    return tmp_path / "index"


def queries(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)


def answers(index: Index, exact: bool = False) -> dict[str, tuple[list, list]]:
    found = {where: index.search(queries(), 7, where=where, exact=exact) for where in CONDITIONS}
    return {where: (hits.index.tolist(), hits.score.tolist()) for where, hits in found.items()}


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch, exact: bool = False) -> dict[str, tuple[list, list]]:
    """What is found where nothing is kept."""
    with monkeypatch.context() as patched:
        patched.setattr(matches, "KEPT_BYTES", -1)
        index = Index.open(folder)
        found = answers(index, exact)
        assert answers(index, exact) == found
        assert not index._reader.kept._found
    return found


def change(folder: Path, step: int) -> None:
    if step == 1:
        delete_rows(folder, [f"d{n}" for n in range(0, 90, 9)])
    elif step == 2:
        write(folder, 20, 28, -1)  # other texts, so other vectors, for rows that are there
        write(folder, 300, 308)  # fewer than make a graph anew


@pytest.mark.parametrize("engine", ["exact", qdrant_edge.NAME])
def test_kept_rows_are_those_that_are_found_anew_after_every_change(folder, monkeypatch, engine) -> None:
    if engine != "exact":
        pytest.importorskip("qdrant_edge")
        write(folder, 0, 300, engine=engine)
    before: list[tuple[Index, dict]] = []
    for step in range(3):
        change(folder, step)
        index, wanted = Index.open(folder), fresh(folder, monkeypatch)
        for _ in range(3):  # kept from the second or third on
            assert answers(index) == wanted
        assert index._reader.kept.get(index._condition("page < 40")) is not None
        for older, known in before:
            assert answers(older) == known, "an open index keeps its version"
        before.append((index, wanted))
        # of so few rows the engine makes no graph: it compares all
        assert answers(index, exact=True) == fresh(folder, monkeypatch, exact=True) == wanted
        used = {index.search(queries(), 7, where=where).plan.engine for where in CONDITIONS}
        assert engine in used


def test_rows_of_codes_are_kept_too(folder: Path, monkeypatch) -> None:
    compress_index(folder, "int8")
    index, wanted = Index.open(folder), fresh(folder, monkeypatch)
    assert answers(index) == answers(index) == wanted


def test_what_another_process_writes_is_seen_by_those_who_open_then(folder: Path, monkeypatch) -> None:
    index = Index.open(folder)
    old = answers(index)
    code = (
        "import sys; from moembed.search.index_file import delete_rows; "
        "delete_rows(sys.argv[1], [f'd{n}' for n in range(0, 300, 2)])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert answers(index) == old
    new = Index.open(folder)
    assert answers(new) == answers(new) == fresh(folder, monkeypatch) != old


def test_a_row_that_was_kept_still_meets_the_condition(folder: Path) -> None:
    index = Index.open(folder)
    for _ in range(3):
        for hits in index.search(queries(), 300, where='lang = "de" and page < 50'):
            assert [hit for hit in hits if hit.row["lang"] != "de" or hit.row["page"] >= 50] == []
            assert len(hits) == 17, "all of them"


def test_many_threads_keep_the_same(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(matches, "KEPT_BYTES", 8000)  # few fit: some are put while others go
    wanted, index = fresh(folder, monkeypatch), Index.open(folder)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: answers(index), range(24)):
            assert found == wanted
    kept = index._reader.kept
    assert kept._bytes == sum(one.bytes for one in kept._found.values()) <= 8000


def test_the_memory_is_bounded_and_the_oldest_goes_first(monkeypatch) -> None:
    monkeypatch.setattr(matches, "KEPT_BYTES", 8000)
    kept = KeptMatches()
    kept.put("large", Matches(np.arange(251)))
    assert kept.get("large") is None, "more than a quarter"
    for key in "abcd":
        kept.put(key, Matches(np.arange(250)))
    kept.get("a")
    kept.put("e", Matches(np.arange(10)))
    assert [key for key in "abcde" if kept.get(key)] == ["a", "c", "d", "e"]
    kept.put("e", Matches(np.arange(20)))
    assert kept._bytes == 3 * 2000 + 160
    for number in range(3 * matches.KEPT):
        kept.put(number, Matches(np.arange(1)))
    assert len(kept._found) == matches.KEPT
    assert kept._bytes == 8 * matches.KEPT
    assert not kept.room(100, 8)
    assert kept.room(40, 8)


def test_only_what_is_asked_again_is_kept_for_the_engine() -> None:
    kept = KeptMatches()
    assert [kept.again(key) for key in "abab"] == [False, False, True, True]
    for number in range(5 * matches.KEPT):
        kept.again(number)
    assert len(kept._asked) <= matches.KEPT


def test_which_rows_are_among_the_matches() -> None:
    found = Matches(np.array([2, 5, 9]))
    assert found.hold(np.array([9, 0, 5, 10, 2, 2])).tolist() == [True, False, True, False, True, True]
    assert found.flags(11).nonzero()[0].tolist() == [2, 5, 9]
    assert Matches(np.zeros(0, np.int64)).hold(np.array([1])).tolist() == [False]
