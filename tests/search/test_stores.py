"""Vector databases that hold an index find what the index finds; pushing again changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from toys import ToyModel

from conftest import Run
from moembed.search.embed import embed_file
from moembed.search.index import Index
from moembed.search.index_file import delete_rows, index_file
from moembed.search.index_writer import write_index
from moembed.search.stores.push import PushSummary, as_json, default_name, open_store, push_index, stored_rows
from moembed.search.stores.store import StoredRow
from moembed.search.where import read_where
from moembed.types import UserError
from postgres_server import MISSING, postgres, programs

KINDS = ("qdrant", "postgresql", "lance")
ROWS = [
    {"_id": f"d{n}", "text": f"text {n}", "lang": "de" if n % 2 else "en", "year": 2000 + n}
    for n in range(30)
]


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    if programs() is None:
        pytest.skip(MISSING)
    with postgres() as url:
        yield url


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
        return f"qdrant://{tmp_path}/qdrant"
    if request.param == "lance":
        pytest.importorskip("lancedb")
        return f"lance://{tmp_path}/lance"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A collection of its own for every test: the server of PostgreSQL is one for all."""
    return "".join(letter if letter.isalnum() else "_" for letter in request.node.name).lower()


def make_index(folder: Path, rows: list[dict], model: ToyModel | None = None) -> Index:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Index.open(embed_file(model or ToyModel(), source, folder / "index").path)


def push(index: Index, url: str, name: str, prune: bool = False) -> PushSummary:
    store = open_store(url, name)
    try:
        return push_index(index, store, prune=prune)
    finally:
        store.close()


def stored(url: str, name: str, index: Index, k: int = 5) -> tuple[list[str], list[list[tuple[str, float]]]]:
    """The ids there, and the nearest rows of some vectors."""
    store = open_store(url, name)
    try:
        query_QM = np.concatenate(list(index.vectors()))[:4] + np.float32(0.1)
        return sorted(store.ids()), [store.nearest(query_M, k) for query_M in query_QM]
    finally:
        store.close()


def test_a_database_finds_what_the_index_finds(url: str, name: str, tmp_path: Path) -> None:
    index = make_index(tmp_path, ROWS)
    summary = push(index, url, name)
    assert (summary.rows, summary.written, summary.removed, summary.extra) == (30, 30, 0, 0)
    assert summary.checked == 10
    ids, found = stored(url, name, index)
    assert ids == sorted(row["_id"] for row in ROWS)
    query_QM = np.concatenate(list(index.vectors()))[:4] + np.float32(0.1)
    hits = index.search(query_QM, 5)
    for there, number_K, score_K in zip(found, hits.index, hits.score, strict=True):
        assert [id_ for id_, _ in there] == [ROWS[number]["_id"] for number in number_K]
        np.testing.assert_allclose([cosine for _, cosine in there], score_K, atol=1e-5)


def test_pushing_again_changes_nothing_and_a_changed_row_alone_is_written(
    url: str, name: str, tmp_path: Path
) -> None:
    index = make_index(tmp_path, ROWS)
    push(index, url, name)
    before = stored(url, name, index)
    assert push(index, url, name).written == 0
    assert stored(url, name, index) == before
    changed = [*ROWS[:3], ROWS[3] | {"year": 1999}, ROWS[4] | {"text": "another"}, *ROWS[5:]]
    (tmp_path / "second").mkdir()
    assert push(make_index(tmp_path / "second", changed), url, name).written == 2


def test_rows_that_the_index_lost_are_told_and_removed_on_request(
    url: str, name: str, tmp_path: Path
) -> None:
    push(make_index(tmp_path, ROWS), url, name)
    (tmp_path / "second").mkdir()
    fewer = make_index(tmp_path / "second", ROWS[:20])
    kept = push(fewer, url, name)
    assert (kept.extra, kept.checked, kept.removed) == (10, 0, 0)
    assert "--prune" in str(kept)
    pruned = push(fewer, url, name, prune=True)
    assert (pruned.extra, pruned.checked, pruned.removed) == (0, 10, 10)
    assert stored(url, name, fewer)[0] == sorted(row["_id"] for row in ROWS[:20])


def test_another_space_and_another_size_are_refused_and_nothing_is_lost(
    url: str, name: str, tmp_path: Path
) -> None:
    index = make_index(tmp_path, ROWS)
    push(index, url, name)
    before = stored(url, name, index)
    for number, model in enumerate((ToyModel(name="other"), ToyModel(dim=4))):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UserError, match="choose another --name"):
            push(make_index(tmp_path / str(number), ROWS, model), url, name)
    assert stored(url, name, index) == before


def test_a_database_that_finds_other_rows_is_told(tmp_path: Path) -> None:
    """One that forgot a row, as an approximate index may."""
    pytest.importorskip("qdrant_client")
    index = make_index(tmp_path, ROWS)
    store = open_store(f"qdrant://{tmp_path}/qdrant", "forgetful")
    nearest = store.nearest
    store.nearest = lambda vector_M, k: nearest(vector_M, k + 1)[1:]  # type: ignore[method-assign]
    with pytest.raises(UserError, match="finds other rows than"):
        push_index(index, store)
    store.close()


def test_columns_become_metadata_of_json(tmp_path: Path) -> None:
    index = make_index(tmp_path, [{"id": 7, "text": "t", "at": "x", "none": None, "list": [1, 2]}])
    (row,) = stored_rows(index)
    assert (row.id, row.text) == ("7", "t")
    assert row.metadata == {"at": "x", "none": None, "list": [1, 2]}
    values = {"at": datetime(2026, 1, 2), "nan": float("nan"), "deep": [{"inf": float("-inf")}], "b": b"ab"}
    plain = {"at": "2026-01-02T00:00:00", "nan": None, "deep": [{"inf": None}], "b": "YWI="}
    assert as_json(values) == plain


def test_rows_differ_where_text_metadata_or_vector_do() -> None:
    vector_M = np.ones(2, np.float32)
    row = StoredRow("a", "t", {"x": 1}, vector_M)
    assert row.digest == StoredRow("b", "t", {"x": 1}, vector_M.copy()).digest
    others = [
        StoredRow("a", "u", {"x": 1}, vector_M),
        StoredRow("a", "t", {"x": 2}, vector_M),
        StoredRow("a", "t", {"x": 1}, -vector_M),
    ]
    assert len({row.digest, *(other.digest for other in others)}) == 4


def test_a_table_of_somebody_else_is_left_alone(postgres_url: str, name: str, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"CREATE TABLE {name} (id text, mine text)")
        connection.execute(f"INSERT INTO {name} VALUES ('1', 'precious')")
    with pytest.raises(UserError, match="was not made by"):
        push(make_index(tmp_path, ROWS), postgres_url, name)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute(f"SELECT * FROM {name}").fetchall() == [("1", "precious")]


def test_a_lance_table_of_somebody_else_is_left_alone(name: str, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    theirs = lancedb.connect(tmp_path / "lance").create_table(name, [{"id": "1", "mine": "precious"}])
    with pytest.raises(UserError, match="was not made by"):
        push(make_index(tmp_path, ROWS), f"lance://{tmp_path}/lance", name)
    assert theirs.to_arrow().to_pylist() == [{"id": "1", "mine": "precious"}]


def test_a_lance_table_can_be_asked_by_columns(name: str, tmp_path: Path) -> None:
    """What programs that know LanceDB do with it: JSON by key; marks in names and values are no SQL."""
    lancedb = pytest.importorskip("lancedb")
    rows = [row | {'it\'s "odd". x': "o'clock" if n == 7 else "-"} for n, row in enumerate(ROWS)]
    index = make_index(tmp_path, rows)
    push(index, f"lance://{tmp_path}/lance", name)
    table = lancedb.connect(tmp_path / "lance").open_table(name)
    assert table.count_rows("json_get_float(metadata, 'year') >= 2020") == 10
    store = open_store(f"lance://{tmp_path}/lance", name)
    where = read_where({"column": 'it\'s "odd". x', "op": "=", "value": "o'clock"})
    vector_M = np.concatenate(list(index.vectors()))[0]
    assert [found for found, _ in store.nearest(vector_M, 5, where, index.columns)] == ["d7"]


def test_a_lance_table_may_lie_in_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    lancedb = pytest.importorskip("lancedb")
    asked = []
    monkeypatch.setattr(lancedb, "connect", asked.append)
    for url in ("lance+s3://bucket/folder", "lance+gs://bucket", "lance:///a/folder"):
        open_store(url, "notes")
    assert asked == ["s3://bucket/folder", "gs://bucket", "/a/folder"]


def test_a_push_that_fails_half_way_leaves_the_table_as_it_was(
    postgres_url: str, name: str, tmp_path: Path
) -> None:
    index = make_index(tmp_path, ROWS)
    push(index, postgres_url, name)
    before = stored(postgres_url, name, index)
    (tmp_path / "second").mkdir()
    many = [{"_id": f"e{n}", "text": f"new {n}"} for n in range(700)] + [{"_id": "f", "text": "a\0b"}]
    with pytest.raises(UserError, match="NUL"):
        push(make_index(tmp_path / "second", many), postgres_url, name)
    assert stored(postgres_url, name, index) == before


def test_an_index_that_was_updated_is_what_the_database_becomes(url: str, name: str, tmp_path: Path) -> None:
    source, folder = tmp_path / "rows.jsonl", tmp_path / "index"
    model = ToyModel()
    for rows, written, removed in ((ROWS, 30, 0), ([ROWS[0] | {"text": "new"}, *ROWS[1:25]], 1, 5)):
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        index_file(model, source, folder, delete_missing=True)
        index = Index.open(folder)
        summary = push(index, url, name, prune=True)
        assert (summary.rows, summary.written, summary.removed) == (len(rows), written, removed)
        assert summary.checked == 10
        assert stored(url, name, index)[0] == sorted(index.ids())


def test_the_command_line_pushes_and_says_where(run: Run, url: str, name: str, tmp_path: Path) -> None:
    index = make_index(tmp_path, ROWS)
    code, out, _ = run("index", "push", index.path, "--to", url, "--name", name)
    assert (code, "30 of 30 rows written" in out) == (0, True)
    code, out, _ = run("index", "push", index.path, "--to", url, "--name", name, "--json")
    assert (code, json.loads(out)["written"]) == (0, 0)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("mysql://host", "--to is the address of a database"),
        ("qdrant://[::1", "Invalid IPv6 URL"),
        ("qdrant://127.0.0.1:1", "Qdrant"),
        ("postgresql://nobody@127.0.0.1:1/x", "PostgreSQL"),
        ("qdrant://host/path", "no address of Qdrant"),
        ("lance://folder", "no address of LanceDB"),
        ("lance:///proc/nothing", "LanceDB"),
    ],
)
def test_what_cannot_be_reached_is_one_sentence(run: Run, tmp_path: Path, to: str, said: str) -> None:
    pytest.importorskip("qdrant_client")
    pytest.importorskip("psycopg")
    pytest.importorskip("lancedb")
    index = make_index(tmp_path, ROWS[:2])
    code, _, err = run("index", "push", index.path, "--to", to)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_the_name_of_a_collection_is_plain() -> None:
    assert default_name(Path("/data/My notes.index")) == "my_notes_index"


def test_a_text_without_a_token_is_pushed_and_lies_nowhere(url: str, name: str, tmp_path: Path) -> None:
    vector_NM = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    vector_NM[[0, 5]] = 0
    rows = [{"_id": f"d{n}", "text": f"text {n}"} for n in range(12)]
    index = write_index(tmp_path / "i", vector_NM, rows, space_id="s", column="text")
    assert push(index, url, name).written == 12
    assert push(index, url, name).written == 0


def test_an_index_without_rows_empties_a_collection(url: str, name: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    index_file(ToyModel(), source, tmp_path / "i")
    assert push(Index.open(tmp_path / "i"), url, name).written == 3
    delete_rows(tmp_path / "i", [row["_id"] for row in ROWS[:3]])
    summary = push(Index.open(tmp_path / "i"), url, name, prune=True)
    assert (summary.rows, summary.removed, summary.checked) == (0, 3, 0)
