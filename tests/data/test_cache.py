"""Large sources are drawn from a memory-mapped file that is written once."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from moembed.data import cache, sources
from moembed.data.sources import Source, SourceConfig, load_source
from moembed.types import Pair, UserError

PAIRS = [Pair(f"query {i}", f"document {i}", ("wrong",) * (i % 3)) for i in range(50)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, for sources of any size; blocks of seven rows."""
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(sources, "BLOCK", 7)
    return tmp_path / "cache" / "sources"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", PAIRS)


def write(path: Path, pairs, tail: str = "") -> Path:
    rows = [{"query": p.query, "document": p.document, "negatives": list(p.negatives)} for p in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def load(path: Path, **options) -> Source:
    return load_source(SourceConfig(path=str(path), **options))


def tables(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.arrow"))


def test_a_mapped_source_gives_what_one_in_memory_gives(folder, path, monkeypatch):
    mapped = load(path)
    assert len(tables(folder)) == 1
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 2**20)
    (folder / tables(folder)[0]).unlink()
    held = load(path)
    assert not tables(folder)
    rows = np.random.default_rng(0).permutation(50)
    assert mapped.pairs(rows) == held.pairs(rows) == [PAIRS[row] for row in rows]


def test_the_second_opening_reads_the_cache_alone(folder, path, monkeypatch):
    text = '{"query": "only half'
    first = load(write(path, PAIRS, text), bad_rows="skip")
    monkeypatch.setattr(sources, "_good_records", None)
    again = load(path, bad_rows="skip", name="other", weight=3)
    assert list(again) == list(first) == PAIRS
    assert (again.name, again.skipped, first.skipped) == ("other", 1, 1)


def test_another_content_or_option_is_another_file(folder, path):
    load(path)
    assert list(load(path, limit=20)) == PAIRS[:20]
    load(path, negative="none")
    assert len(tables(folder)) == 3
    write(path, PAIRS[::-1])  # as many bytes as before
    os.utime(path, ns=(0, 0))
    assert list(load(path)) == PAIRS[::-1]
    assert len(tables(folder)) == 4


def test_rows_are_not_loaded_before_they_are_drawn(folder, path):
    import pyarrow as pa

    load(path)
    before = pa.total_allocated_bytes()
    source = load(path)
    assert pa.total_allocated_bytes() - before < 2000
    assert source.pairs([49]) == [PAIRS[49]]


def test_a_reading_that_stops_leaves_no_table(folder, path):
    write(path, PAIRS, "{")
    with pytest.raises(UserError, match="line 51: not JSON"):
        load(path)
    assert not [file.name for file in folder.iterdir() if file.suffix != ".lock"]
    write(path, PAIRS)
    assert list(load(path)) == PAIRS


def test_what_a_killed_process_left_is_written_over(folder, path):
    load(path)
    table = folder / tables(folder)[0]
    whole = table.read_bytes()
    table.unlink()
    table.with_suffix(".part").write_bytes(whole[:100])
    assert list(load(path)) == PAIRS
    table.write_bytes(whole[:-200])
    assert list(load(path)) == PAIRS
    assert table.read_bytes() == whole


def test_several_readers_at_once_share_one_file(folder, path):
    with ThreadPoolExecutor(4) as pool:
        for source in pool.map(load, [path] * 4):
            assert list(source) == PAIRS
    assert len(tables(folder)) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, folder, path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write the cache .*MOEMBED_CACHE may name another folder"):
        load(path)


def test_small_sources_leave_nothing_behind(folder, path, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 64 * 2**20)
    load(path)
    assert not folder.exists()


def test_progress_is_told_in_rows(path):
    told: list[int] = []
    load_source(SourceConfig(path=str(path)), told.append)
    assert sum(told) == 50
