"""A condition looked at before, during or after the search finds the same rows; samples are estimates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ToyModel, write_jsonl

from conftest import Run
from moembed.search import plan as planning
from moembed.search.embed import EmbedConfig
from moembed.search.index import Index
from moembed.search.index_file import delete_rows, index_file
from moembed.search.index_search import Search, find
from moembed.search.plan import Plan, candidates, choose
from moembed.search.where import read_where

ROWS = 600
CONDITIONS = (
    "page = 3",
    "page < 100",
    "page >= 0",
    'lang = "de" and page < 400',
    'lang in ("de", "fr") or not page < 590',
    "page < 0",
    "odd = 1",
    "lang != null",
)


def rows(count: int = ROWS) -> list[dict]:
    return [
        {"_id": f"d{n}", "text": f"text {n}", "page": n, "lang": ("de", "en", "fr", None)[n % 4]}
        # a column that is of whole numbers in some parts and of others in the rest
        | {"odd": n % 2 if n < count // 2 else n % 2 + (n % 3) / 2}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of 64 rows, some of them deleted."""
    path = tmp_path_factory.mktemp("plans")
    source = write_jsonl(path / "docs.jsonl", rows())
    index_file(ToyModel(), source, path / "index", EmbedConfig(block_rows=64))
    delete_rows(path / "index", [f"d{n}" for n in range(0, ROWS, 7)])
    return path / "index"


@pytest.fixture
def index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(planning, "SMALL", 0)
    return Index.open(folder)


_ROWS: dict[Path, list[dict]] = {}


def all_rows(index: Index) -> list[dict]:
    if index.path not in _ROWS:
        _ROWS[index.path] = index.rows(range(len(index)))
    return _ROWS[index.path]


def by_definition(index: Index, where: str, query_QM: np.ndarray, k: int) -> list[list[int]]:
    """A plain scan: every row looked at, then all cosines sorted."""
    kept = [n for n, row in enumerate(all_rows(index)) if meets(row, where)]
    vector_NM = np.concatenate(list(index.vectors()))[kept].astype(np.float64)
    vector_NM /= np.linalg.norm(vector_NM, axis=1, keepdims=True)
    scores = (query_QM / np.linalg.norm(query_QM, axis=1, keepdims=True)) @ vector_NM.T
    order = np.argsort(-np.rint(scores * 2**30), axis=1, kind="stable")[:, :k]
    return [[kept[n] for n in some] for some in order]


def meets(row: dict, where: str) -> bool:
    page, lang, odd = row["page"], row["lang"], row["odd"]
    return {
        "page = 3": page == 3,
        "page < 100": page < 100,
        "page >= 0": True,
        'lang = "de" and page < 400': lang == "de" and page < 400,
        'lang in ("de", "fr") or not page < 590': lang in ("de", "fr") or page >= 590,
        "page < 0": False,
        "odd = 1": odd == 1,
        "lang != null": lang is not None,
    }[where]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(CONDITIONS), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_every_plan_finds_what_a_scan_finds(folder, where, k, seed, queries):
    index = Index.open(folder)
    query_QM = np.random.default_rng(seed).standard_normal((queries, 8)).astype(np.float32)
    wanted = by_definition(index, where, query_QM, k)
    search = Search(query_QM, k, read_where(where))
    for kind in ("pre", "in", "post", None):
        with patch.object(planning, "SMALL", 0):
            hits, plan = find(index._reader, replace(search, plan=kind))
        assert hits.index.tolist() == wanted, (kind, plan)
        assert plan.kind in ((kind,) if kind in ("pre", "in") else ("pre", "in", "post"))


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(CONDITIONS), st.sampled_from([None, 0.3]), st.sampled_from(["pre", "in"]))
def test_hybrid_search_is_the_same_by_every_plan(folder, where, weight, kind):
    index, model = Index.open(folder), ToyModel()
    texts = ["text 12", "text 30 text 44"]
    search = Search(model.vectors(texts).array, 7, read_where(where), texts, weight)
    plain, _ = find(index._reader, search)
    hits, _ = find(index._reader, replace(search, plan=kind))
    np.testing.assert_array_equal(hits.index, plain.index)
    np.testing.assert_array_equal(hits.score, plain.score)


@pytest.mark.parametrize(
    ("where", "kind"),
    [("page < 30", "pre"), ("page < 260", "in"), ("page < 590", "post"), ("page < -1", "pre")],
)
def test_the_share_of_the_rows_decides(index, where, kind):
    hits = index.search(np.ones((1, 8), np.float32), 3, where=where)
    assert hits.plan.kind == kind
    assert not hits.plan.fell_back
    real = np.mean([eval(where, {}, row) for row in index.rows(range(len(index)))])
    assert hits.plan.estimate == pytest.approx(real, abs=0.08)
    assert hits.plan.matched is None if kind == "post" else hits.plan.matched == round(real * len(index))


def test_a_condition_that_follows_the_vectors_makes_post_fall_back(tmp_path, monkeypatch):
    """Nine rows of ten meet it, but none of those near the query."""
    monkeypatch.setattr(planning, "SMALL", 0)
    texts = {f"text {n}": [1.0, n / 1000] + [0.0] * 6 for n in range(500)}
    source = write_jsonl(tmp_path / "docs.jsonl", rows(500))
    index_file(ToyModel(texts), source, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    hits = index.search(np.eye(1, 8, dtype=np.float32), 5, where="page >= 50")
    assert (hits.plan.fell_back, hits.plan.kind, hits.plan.matched) == (True, "in", 450)
    assert hits.index.tolist() == [[50, 51, 52, 53, 54]]


def test_a_sample_is_an_estimate_of_every_condition(folder):
    """Over many conditions the estimates are right on average and never far off."""
    reader = Index.open(folder)._reader
    column = np.array([row["page"] for row in Index.open(folder).rows(range(len(reader)))])
    off = []
    for bound in range(20, ROWS, 20):
        test = lambda read, rows, bound=bound: np.asarray(read("page").to_numpy() < bound)  # noqa: E731
        off.append(reader.samples.share(["page"], test) - (column < bound).mean())
    assert abs(np.mean(off)) < 0.01
    assert max(map(abs, off)) < 0.08


def test_sampled_rows_that_were_deleted_do_not_count(tmp_path):
    """Parts of 64 rows are their own samples, so the estimate is the share itself."""
    source = write_jsonl(tmp_path / "docs.jsonl", rows(400))
    index_file(ToyModel(), source, tmp_path / "index", EmbedConfig(block_rows=64))
    delete_rows(tmp_path / "index", [f"d{n}" for n in range(200)])
    samples = Index.open(tmp_path / "index")._reader.samples
    for bound, share in ((200, 0), (250, 0.25), (400, 1)):
        found = samples.share(["page"], lambda read, _, bound=bound: read("page").to_numpy() < bound)
        assert found == pytest.approx(share)


def test_columns_without_a_sample_are_not_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SMALL", 0)
    long = [
        row | {"text": f"text {n} " * 20, "mixed": n if n % 2 else "x"} for n, row in enumerate(rows(200))
    ]
    index_file(ToyModel(), write_jsonl(tmp_path / "docs.jsonl", long), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    hits = index.search(np.ones((1, 8), np.float32), 3, where='text != "x" or page = 3')
    assert (hits.plan.estimate, hits.plan.matched) == (None, 200)


def test_plans_are_chosen_by_what_they_cost():
    assert choose(planning.SMALL, 10, 0.9, False).kind == "pre"
    assert choose(100_000, 10, None, False).kind == "pre"
    assert choose(100_000, 10, 0.9, False).kind == "post"
    assert choose(100_000, 10, 0.9, True).kind == "in", "words need all rows that meet the condition"
    assert choose(100_000, 50_000, 0.9, False).kind == "in", "too many candidates for post"
    assert candidates(10, 0.5) > 10 / 0.5
    assert Plan("post", 0.9, None, True).counted(10, 100_000) == Plan("pre", 0.9, 10, True)


def test_explain_says_how_the_filter_was_met(run: Run, tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "model")
    source = write_jsonl(tmp_path / "docs.jsonl", rows(20))
    assert run("index", source, "--model", tmp_path / "model", "--out", tmp_path / "index")[0] == 0
    command = ("search", tmp_path / "index", "text", "--where", "page < 5", "-k", 3)
    code, out, _ = run(*command, "--json", "--explain")
    told = json.loads(out)
    assert (code, set(told), len(told["hits"])) == (0, {"plan", "hits"}, 3)
    assert told["plan"] == {
        "filter": "pre",
        "estimated_share": None,
        "rows_that_match": 5,
        "fell_back": False,
        "engine": "exact",
    }
    assert json.loads(run(*command, "--json")[1]) == told["hits"]
    code, _, err = run(*command, "--explain")
    assert (code, "they alone were scored; it leaves 5 rows" in err) == (0, True)


def test_texts_that_are_too_much_for_one_array_are_asked_piece_by_piece(folder: Path, monkeypatch) -> None:
    query_QM = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    wanted = {where: Index.open(folder).search(query_QM, 9, where=where).index for where in CONDITIONS}
    real = pa.concat_arrays

    def joined(arrays: list[pa.Array]) -> pa.Array:
        if any(pa.types.is_string(array.type) for array in arrays):
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        return real(arrays)

    monkeypatch.setattr(pa, "concat_arrays", joined)
    index = Index.open(folder)
    for where, found in wanted.items():
        np.testing.assert_array_equal(index.search(query_QM, 9, where=where).index, found)
    for kind in ("pre", "in", "post"):
        hits, _ = find(index._reader, Search(query_QM, 9, read_where('lang = "de"'), plan=kind))
        assert all(row["lang"] == "de" for row in index.rows(hits.index.ravel()))


def test_a_share_that_another_thread_forgets_is_still_known_here(index: Index) -> None:
    class Forgetful(dict):
        def __setitem__(self, where, share):
            """Another thread clears it at once."""

    search = Search(np.ones((1, 8), np.float32), 3, read_where("page < 100"))
    wanted = find(index._reader, search)[0].index
    reader = replace(index._reader, shares=Forgetful())
    np.testing.assert_array_equal(find(reader, search)[0].index, wanted)
