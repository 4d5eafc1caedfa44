"""The approximate part of an index: nearly what the exact search finds, never a wrong row or a stale one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ToyModel, write_jsonl

from conftest import Run
from moembed.search import ann_build, qdrant_edge
from moembed.search import plan as planning
from moembed.search.ann import AnnPart
from moembed.search.columns import Columns
from moembed.search.embed import EmbedConfig
from moembed.search.index import Index
from moembed.search.index_compress import compress_index
from moembed.search.index_file import delete_rows, index_file
from moembed.search.index_manifest import commit
from moembed.search.where import And, Compare, Not, Or, Where
from moembed.types import UserError

pytest.importorskip("qdrant_edge")
ROWS = 700
UNKNOWN = {
    "engine": "warp", "version": "1", "folder": "ann-00000", "parts": [0], "fields": {}, "stamps": {},
    "recall": 1.0, "sample": 1, "rows": 30,
}  # fmt: skip


def rows(numbers: range | list[int] = range(ROWS)) -> list[dict]:
    return [
        {
            "_id": f"d{n}",
            "text": f"text {n}",
            "page": n,
            "share": None if n % 11 == 0 else n / 7,
            "lang": ("de", "en", "", None)[n % 4],
            "good": None if n % 5 == 0 else n % 3 == 0,
            "huge": 2**53 + n,
        }
        for n in numbers
    ]


def make(folder: Path, numbers: range | list[int] = range(ROWS), **options) -> Index:
    source = write_jsonl(folder.parent / "docs.jsonl", rows(numbers))
    index_file(ToyModel(), source, folder, EmbedConfig(block_rows=128), **options)
    return Index.open(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a graph, which the engine makes of so few rows only when told to."""
    path = tmp_path_factory.mktemp("ann") / "index"
    real = ann_build.refresh
    with patch("moembed.search.index_file.refresh", lambda path, engine: real(path, engine, 1)):
        make(path, engine="qdrant-edge")
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are worth the engine."""
    monkeypatch.setattr(planning, "SMALL", 0)
    monkeypatch.setattr(planning, "FEW", 5)
    monkeypatch.setattr(planning, "FEW_NUMBERS", 0)


def queries(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


def recall(index: Index, where: str | None = None, k: int = 10, count: int = 30) -> float:
    query_QM = queries(count)
    here, there = index.search(query_QM, k, where=where), index.search(query_QM, k, where=where, exact=True)
    assert here.plan.engine == "qdrant-edge"
    assert there.plan.engine == "exact"
    for found_K, score_K, all_K, exact_K in zip(
        here.index, here.score, there.index, there.score, strict=True
    ):
        assert len(set(found_K.tolist())) == k
        known = dict(zip(all_K.tolist(), exact_K.tolist(), strict=True))
        assert all(
            score == known[row] for row, score in zip(found_K.tolist(), score_K, strict=True) if row in known
        )
        assert (np.diff(score_K) <= 0).all()
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(here.index, there.index, strict=True)]))


def test_the_graph_finds_nearly_all_and_scores_as_the_exact_search(folder: Path, small: None) -> None:
    index = Index.open(folder)
    assert recall(index) >= 0.95
    assert recall(index, "page >= 350") >= 0.95
    record = AnnPart.of(index.manifest)
    assert record is not None
    assert record.recall >= 0.95
    assert (record.sample, record.rows, set(record.fields)) == (
        100,
        ROWS,
        {"page", "share", "lang", "good", "text", "_id"},
    )
    info = index.info()
    assert (info["engine"], info["engine_recall"]) == ("qdrant-edge", record.recall)
    assert info["engine_bytes"] > 0


def test_a_column_of_long_texts_is_not_read_for_the_engine(tmp_path: Path, monkeypatch) -> None:
    real, read = Columns.pieces, []
    monkeypatch.setattr(Columns, "pieces", lambda self, name: read.append(name) or real(self, name))
    source = write_jsonl(
        tmp_path / "docs.jsonl", [{"text": f"{n} {'long ' * 40}", "page": n} for n in range(40)]
    )
    index_file(ToyModel(), source, tmp_path / "index", EmbedConfig(block_rows=16), engine="qdrant-edge")
    record = AnnPart.of(Index.open(tmp_path / "index").manifest)
    assert record is not None
    assert set(record.fields) == set(read) == {"page"}


_VALUES = {
    "page": st.integers(-5, ROWS + 5) | st.floats(-5, ROWS, allow_nan=False),
    "share": st.sampled_from([n / 7 for n in range(0, ROWS, 9)]) | st.floats(-1, 101, allow_nan=False),
    "lang": st.sampled_from(["de", "en", "", "fr"]),
    "good": st.booleans(),
}


@st.composite
def comparisons(draw: st.DrawFn) -> Compare:
    column = draw(st.sampled_from(sorted(_VALUES)))
    values = _VALUES[column]
    kind = draw(st.sampled_from(["=", "!=", "in", "order"]))
    if kind == "in":
        return Compare(column, "in", tuple(draw(st.lists(values | st.none(), min_size=1, max_size=4))))
    if kind == "order" and column in ("page", "share"):
        return Compare(column, draw(st.sampled_from(["<", "<=", ">", ">="])), draw(values))
    return Compare(column, "!=" if kind == "!=" else "=", draw(values | st.none()))


conditions = st.recursive(
    comparisons(),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(lambda items: And(tuple(items)), st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda items: Or(tuple(items)), st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(conditions)
def test_the_engine_understands_a_condition_as_we_do(folder: Path, where: Where) -> None:
    """Every row that meets it, and no other: the engine is asked for all of them."""
    index = Index.open(folder)
    ann = _engine(index)
    condition = ann.condition(where)
    assert condition is not None
    edge = qdrant_edge.library()
    found, _ = ann._edge._shard.scroll(edge.ScrollRequest(limit=ROWS, filter=condition))
    wanted = index.search(queries(1), ROWS, where=where, exact=True).index[0]
    assert sorted(ann._rows(np.array([point.id for point in found], np.int64)).tolist()) == sorted(
        wanted.tolist()
    )


_ENGINES: dict[Path, object] = {}


def _engine(index: Index):
    if index.path not in _ENGINES:
        _ENGINES[index.path] = index._engine()
    return _ENGINES[index.path]


@pytest.mark.parametrize(
    ("where", "kind", "engine"),
    [
        ("page >= 100", "in", "qdrant-edge"),
        ("page < 3", "pre", "exact"),
        ('lang > "d"', "in", "exact"),
        ('lang >= ""', "post", "qdrant-edge"),
        (f"huge > {2**53 + 10}", "post", "qdrant-edge"),
        ("page < -1", "pre", "exact"),
    ],
)
def test_what_the_engine_cannot_compare_is_not_asked_of_it(folder, small, where, kind, engine) -> None:
    index = Index.open(folder)
    hits = index.search(queries(), 7, where=where)
    exact = index.search(queries(), 7, where=where, exact=True)
    assert (hits.plan.kind, hits.plan.engine) == (kind, engine)
    assert hits.index.shape == exact.index.shape
    if engine == "exact":
        np.testing.assert_array_equal(hits.index, exact.index)
    for found in hits:
        meant = {"page < 3": lambda row: row["page"] < 3, "page >= 100": lambda row: row["page"] >= 100}.get(
            where
        )
        assert meant is None or all(meant(hit.row) for hit in found)


def test_fewer_than_k_fall_back_to_the_exact_search(folder: Path, small: None) -> None:
    index = Index.open(folder)
    hits = index.search(queries(), 600, where="page >= 200")
    assert (hits.plan.fell_back, hits.plan.engine, hits.plan.matched) == (True, "exact", 500)
    np.testing.assert_array_equal(
        hits.index, index.search(queries(), 600, where="page >= 200", exact=True).index
    )


def test_an_engine_that_lies_never_breaks_a_filter(folder: Path, small: None) -> None:
    index = Index.open(folder)
    ann = index._engine()
    with patch.object(type(ann), "condition", lambda self, where: qdrant_edge.library().Filter()):
        hits = index.search(queries(), 10, where="page < 300")
    assert hits.plan.fell_back
    np.testing.assert_array_equal(
        hits.index, index.search(queries(), 10, where="page < 300", exact=True).index
    )


def test_new_rows_are_found_and_deleted_ones_are_not_before_it_is_made_anew(
    tmp_path: Path, small: None
) -> None:
    index = make(tmp_path / "index", range(600), engine="qdrant-edge")
    first = AnnPart.of(index.manifest)
    index = make(tmp_path / "index", [n for n in range(640) if n not in (3, 600)], delete_missing=True)
    assert AnnPart.of(index.manifest) == first, "a few rows are not worth a new graph"
    delete_rows(tmp_path / "index", ["d5"])
    index = Index.open(tmp_path / "index")
    assert AnnPart.of(index.manifest) == first
    query_QM = ToyModel().vectors([f"text {n}" for n in (3, 5, 620, 17)]).array
    hits = index.search(query_QM, 1)
    assert hits.plan.engine == "qdrant-edge"
    best = [found[0] for found in hits]
    assert best[2].id == "d620"
    assert best[3].id == "d17"
    assert not {best[0].id, best[1].id} & {"d3", "d5"}
    assert recall(index) >= 0.95
    assert recall(index, "page >= 50") >= 0.95


def test_many_changes_make_it_anew_and_the_old_folder_goes_when_nobody_reads_it(tmp_path: Path) -> None:
    reader = make(tmp_path / "index", range(300), engine="qdrant-edge")
    before = reader.search(queries(), 5).index
    first = AnnPart.of(reader.manifest)
    index = make(tmp_path / "index", range(400))
    second = AnnPart.of(index.manifest)
    assert first is not None
    assert second is not None
    assert (second.rows, second.folder != first.folder) == (400, True)
    assert (tmp_path / "index" / first.folder).is_dir(), "somebody reads it"
    np.testing.assert_array_equal(Index.search(reader, queries(), 5).index, before)
    del reader
    make(tmp_path / "index", range(401))
    assert not (tmp_path / "index" / first.folder).exists()
    index = make(tmp_path / "index", range(401), engine="exact")
    assert AnnPart.of(index.manifest) is None
    assert index.search(queries(), 5).plan.engine == "exact"
    make(tmp_path / "index", range(402))
    assert not list((tmp_path / "index").glob("ann-*"))


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_one_is_told_not_served_and_made_anew(tmp_path: Path, harm: str) -> None:
    index = make(tmp_path / "index", range(100), engine="qdrant-edge")
    wanted = index.search(queries(), 5, exact=True).index
    record = AnnPart.of(index.manifest)
    assert record is not None
    name = max(record.stamps, key=lambda name: int(record.stamps[name].partition("-")[0]))
    file = tmp_path / "index" / record.folder / name
    if harm == "remove":
        file.unlink()
    elif harm == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
    index = Index.open(tmp_path / "index")
    with pytest.warns(UserWarning, match=f"searched exactly.*{file.name} is damaged"):
        hits = index.search(queries(), 5)
    assert hits.plan.engine == "exact"
    np.testing.assert_array_equal(hits.index, wanted)
    index = make(tmp_path / "index", range(100))
    assert index.search(queries(), 5).plan.engine == "qdrant-edge"


def test_another_version_of_the_engine_makes_it_anew(tmp_path: Path, monkeypatch) -> None:
    first = AnnPart.of(make(tmp_path / "index", range(60), engine="qdrant-edge").manifest)
    assert AnnPart.of(make(tmp_path / "index", range(60)).manifest) == first
    monkeypatch.setattr(ann_build, "installed", lambda name: "99.1")
    second = AnnPart.of(make(tmp_path / "index", range(60)).manifest)
    assert first is not None
    assert second is not None
    assert (second.version, second.folder != first.folder) == ("99.1", True)
    assert Index.open(tmp_path / "index").search(queries(), 5).plan.engine == "qdrant-edge"


def test_without_the_library_an_index_is_searched_exactly_and_said_so(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path / "index", range(50), engine="qdrant-edge")
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    index = Index.open(tmp_path / "index")
    with pytest.warns(UserWarning, match=r"searched exactly.*moembed\[ann\]"):
        assert index.search(queries(), 5).plan.engine == "exact"
    with pytest.raises(UserError, match=r"pip install 'moembed\[ann\]'"):
        make(tmp_path / "index", range(51))
    assert len(Index.open(tmp_path / "index")) == 50


def test_an_engine_of_a_newer_version_is_told_and_not_taken_away(tmp_path: Path) -> None:
    index = make(tmp_path / "index", range(30))
    commit(tmp_path / "index", {**index.manifest, "ann": UNKNOWN}, "")
    with pytest.warns(UserWarning, match="searched exactly, not with warp: this moembed does not know it"):
        assert Index.open(tmp_path / "index").search(queries(), 3).plan.engine == "exact"
    with pytest.raises(UserError, match="unknown engine 'warp'"):
        make(tmp_path / "index", range(31))
    assert AnnPart.of(Index.open(tmp_path / "index").manifest).engine == "warp"


def test_a_full_disk_leaves_the_rows_and_an_exact_search(tmp_path: Path, monkeypatch) -> None:
    def full(folder: Path, *rest: object) -> None:
        (folder / "segments").mkdir(parents=True)
        raise RuntimeError("OutOfDisk: No space left on device")

    monkeypatch.setattr(qdrant_edge, "build", full)
    with pytest.raises(UserError, match=r"qdrant-edge cannot write .*No space left.*searched exactly"):
        make(tmp_path / "index", range(50), engine="qdrant-edge")
    monkeypatch.undo()
    index = Index.open(tmp_path / "index")
    assert (len(index), index.search(queries(), 3).plan.engine) == (50, "exact")
    assert not list((tmp_path / "index").glob("ann-*"))


def test_many_threads_and_processes_read_one_index(folder: Path, small: None) -> None:
    index = Index.open(folder)
    query_QM = queries(20)
    wanted = [index.search(query_QM[q : q + 1], 5).index.tolist() for q in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda q: index.search(query_QM[q : q + 1], 5).index.tolist(), range(20)))
    assert found == wanted
    code = (
        "import sys, numpy as np; from moembed.search.index import Index; i = Index.open(sys.argv[1]); "
        "h = i.search(np.ones((1, 8), np.float32), 5); print(h.plan.engine, h.index.tolist())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    mine = index.search(np.ones((1, 8), np.float32), 5).index.tolist()
    assert [run.communicate()[0].strip() for run in runs] == [f"qdrant-edge {mine}"] * 2


def test_the_command_line_builds_and_says_its_recall(run: Run, tmp_path: Path, make_model) -> None:
    make_model().save_pretrained(tmp_path / "model")
    source = write_jsonl(tmp_path / "docs.jsonl", rows(range(40)))
    command = ("index", source, "--out", tmp_path / "index")
    code, out, _ = run(*command, "--model", tmp_path / "model", "--engine", "qdrant-edge")
    assert code == 0
    assert "qdrant-edge finds 100.0% of the 10 nearest rows" in out
    code, out, _ = run(*command, "--json")
    assert (json.loads(out)["engine"], json.loads(out)["recall"]) == ("qdrant-edge", 1.0)
    told = json.loads(run("search", tmp_path / "index", "text", "--json", "--explain")[1])["plan"]
    assert (told["filter"], told["engine"]) == ("none", "qdrant-edge")
    told = json.loads(run("search", tmp_path / "index", "text", "--json", "--explain", "--exact")[1])["plan"]
    assert told["engine"] == "exact"


def test_a_codec_for_an_index_with_a_graph_is_refused_before_texts_are_embedded(
    run: Run, tmp_path: Path, make_model
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    source = write_jsonl(tmp_path / "docs.jsonl", rows(range(40)))
    made = ("index", source, "--model", tmp_path / "model", "--out", tmp_path / "index")
    assert run(*made, "--engine", "qdrant-edge")[0] == 0
    write_jsonl(tmp_path / "docs.jsonl", rows(range(50)))
    code, _, err = run(*made, "--codec", "int8")
    assert (code, "which takes floats, not codes" in err) == (2, True), err
    assert len(Index.open(tmp_path / "index")) == 40
    code, out, err = run(*made, "--codec", "int8", "--engine", "exact")
    assert (code, "int8 codes of" in out) == (0, True), err


def test_codes_and_an_approximate_engine_exclude_each_other(tmp_path: Path) -> None:
    make(tmp_path / "graph", range(60), engine="qdrant-edge")
    with pytest.raises(UserError, match="searched by qdrant-edge, which takes floats, not codes"):
        compress_index(tmp_path / "graph", "int8")
    make(tmp_path / "graph", range(60), engine="exact")
    compress_index(tmp_path / "graph", "int8")
    with pytest.raises(UserError, match="holds codes, which are searched exactly"):
        make(tmp_path / "graph", range(60), engine="qdrant-edge")
    assert len(Index.open(tmp_path / "graph")) == 60


@pytest.mark.parametrize(
    ("shape", "told"),
    [((1, 1, 8), "must be a matrix"), ((1, 7), "7 dimensions and documents 8"), ((1, 8), "NaN")],
)
def test_vectors_that_are_no_queries_are_one_sentence(
    folder: Path, shape: tuple[int, ...], told: str
) -> None:
    index = Index.open(folder)
    with pytest.raises(UserError, match=told):
        index.search(np.full(shape, np.nan if told == "NaN" else 1.0, np.float32), 3)
