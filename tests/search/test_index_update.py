"""An index that is updated: it holds what a dictionary of rows would hold, and readers see whole versions."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ToyModel, contents, killed_after, write_jsonl

from conftest import MakeModel
from moembed.files import locked
from moembed.search.embed import EmbedConfig, embed_file
from moembed.search.index import Index
from moembed.search.index_file import IndexSummary, delete_rows, index_file
from moembed.search.index_manifest import MULTI_VECTOR, UPDATED, read_manifest
from moembed.search.index_writer import write_index
from moembed.types import UserError
from tagged_models import tagged_model

SMALL = EmbedConfig(block_rows=3, model_path="toy")


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"d{number}", "text": f"text number {number}", "year": 2000 + number, **more}


def put(folder: Path, rows: list[dict], name: str = "docs.jsonl", **options: Any) -> IndexSummary:
    """Index these rows into ``folder/i``."""
    write_jsonl(folder / name, rows)
    model = options.pop("model", None) or ToyModel()
    return index_file(model, folder / name, folder / "i", options.pop("config", SMALL), **options)


def held(path: Path) -> dict[str, dict[str, Any]]:
    """All rows by id, after a look that every vector is that of its text."""
    index = Index.open(path)
    rows = index.rows(range(len(index)))
    ids = index.ids()
    assert len(set(ids)) == len(ids) == len(index)
    if rows:
        expected = ToyModel().vectors([row["text"] for row in rows], prompt="").array
        np.testing.assert_array_equal(np.concatenate(list(index.vectors())), expected)
    return dict(zip(ids, rows, strict=True))


def by_id(rows: list[dict]) -> dict[str, dict]:
    return {str(row["id"]): row for row in rows}


def test_a_grown_and_changed_file_embeds_new_and_changed_texts_alone(tmp_path):
    first = [row(number) for number in range(8)]
    assert str(put(tmp_path, first[:1])).startswith(f"1 row in {tmp_path / 'i'}: 1 added")
    summary = put(tmp_path, first)
    assert (summary.added, summary.new_rows, summary.rows) == (7, 7, 8)
    assert held(tmp_path / "i") == by_id(first)
    second = [*first[:6], row(6, year=1), {**row(7), "text": "another text"}, row(8)]
    model = ToyModel()
    summary = put(tmp_path, second, model=model)
    assert model.encoded == ["another text", "text number 8"], "a changed year embeds nothing"
    assert (summary.added, summary.changed, summary.unchanged, summary.new_rows) == (1, 2, 6, 2)
    assert held(tmp_path / "i") == by_id(second)
    before, model = contents(tmp_path / "i"), ToyModel()
    assert "up to date" in str(put(tmp_path, second, model=model))
    assert model.calls == []
    assert contents(tmp_path / "i") == before


def test_rows_of_other_files_stay_and_are_told(tmp_path):
    put(tmp_path, [row(0), row(1)])
    summary = put(tmp_path, [row(1), row(2)], "more.jsonl")
    assert summary.others == 1
    assert "1 rows that the source does not hold stay" in str(summary)
    assert held(tmp_path / "i").keys() == {"d0", "d1", "d2"}
    assert put(tmp_path, [row(2)], "more.jsonl", delete_missing=True).deleted == 2
    assert held(tmp_path / "i").keys() == {"d2"}


def test_without_ids_a_text_is_its_own_id_and_may_stand_there_twice(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a"}]
    put(tmp_path, rows)
    index = Index.open(tmp_path / "i")
    assert [row["text"] for row in index.rows(range(3))] == ["a", "b", "a"]
    assert index.ids()[2] == f"{index.ids()[0]}-2"
    assert put(tmp_path, [*rows, {"text": "c"}]).added == 1
    delete_rows(tmp_path / "i", [index.ids()[0]])
    texts = [row["text"] for row in Index.open(tmp_path / "i").rows(range(3))]
    assert sorted(texts) == ["a", "b", "c"]


def test_delete_takes_all_ids_or_none(tmp_path):
    put(tmp_path, [row(number) for number in range(5)])
    with pytest.raises(UserError, match=r"no row with the id 'x' and 1 more: nothing was deleted"):
        delete_rows(tmp_path / "i", ["d1", "x", "y"])
    assert len(held(tmp_path / "i")) == 5
    assert delete_rows(tmp_path / "i", ["d1", "d1", "d3"]) == (2, 3)
    assert held(tmp_path / "i").keys() == {"d0", "d2", "d4"}
    hits = Index.open(tmp_path / "i").search(ToyModel().vectors(["text number 3"], prompt="").array, 5)
    assert hits.index.shape == (1, 3), "a deleted row is not found"
    delete_rows(tmp_path / "i", ["d0", "d2", "d4"])
    empty = Index.open(tmp_path / "i")
    assert len(empty) == 0
    assert list(empty.search(np.ones((1, 8), np.float32), 3)) == [[]]
    put(tmp_path, [row(1)])
    assert held(tmp_path / "i").keys() == {"d1"}


def test_an_index_without_rows_has_nothing_that_meets_a_condition(tmp_path):
    put(tmp_path, [row(0)])
    delete_rows(tmp_path / "i", ["d0"])
    index = Index.open(tmp_path / "i")
    index.require_condition("year = 2000")
    assert list(index.search(np.ones((2, 8), np.float32), 3, where="year = 2000")) == [[], []]
    with pytest.raises(UserError, match="a value is expected"):
        index.search(np.ones((2, 8), np.float32), 3, where="year = ")


@pytest.mark.parametrize("other", ["n/a", [2001], True])
def test_a_column_of_several_kinds_is_one_of_numbers_when_the_others_are_gone(tmp_path, other):
    query_QM = np.ones((1, 8), np.float32)
    put(tmp_path, [row(0), row(1, year=other), row(2)])
    put(tmp_path, [row(3, year=other), {"id": "d4", "text": "no year"}], "more.jsonl")
    before = Index.open(tmp_path / "i")
    with pytest.raises(UserError, match="'year' holds lists, objects or values of several kinds"):
        before.search(query_QM, where="year > 1999")
    put(tmp_path, [row(1)], "mended.jsonl")
    with pytest.raises(UserError, match="several kinds"):
        Index.open(tmp_path / "i").search(query_QM, where="year > 1999")
    delete_rows(tmp_path / "i", ["d3"])
    index = Index.open(tmp_path / "i")
    assert index.columns["year"] == "numbers"
    found = index.search(query_QM, where="year in (2000, 2001)")[0]
    assert {hit.id for hit in found} == {"d0", "d1"}
    assert [hit.id for hit in index.search(query_QM, where="year = null")[0]] == ["d4"]


changes = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=9, unique_by=lambda pair: pair[0]
        ),
        st.lists(st.integers(0, 12), max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=8, deadline=None)
@given(changes)
def test_any_updates_and_deletes_leave_what_a_dictionary_would_hold(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("updates")
    expected: dict[str, dict] = {}
    for rows, deleted in steps:
        if rows:
            new = [row(number, year=kind, text=f"t {number} {kind // 2}") for number, kind in rows]
            put(folder, new)
            expected |= by_id(new)
        known = [f"d{number}" for number in dict.fromkeys(deleted) if f"d{number}" in expected]
        if known:
            delete_rows(folder / "i", known)
            expected = {name: value for name, value in expected.items() if name not in known}
        if (folder / "i").exists():
            assert held(folder / "i") == expected
    if (folder / "i").exists():
        assert len(list((folder / "i").glob("*.npy"))) <= 9 + len(expected) // 2, "small parts are merged"
        assert not list((folder / "i").glob(".*")), "nothing is left that no version names"


def test_a_reader_keeps_its_version_while_writers_go_on(tmp_path):
    first = [row(number) for number in range(6)]
    put(tmp_path, first)
    reader, second = Index.open(tmp_path / "i"), Index.open(tmp_path / "i")
    for number in range(12):  # many small parts, so that some are merged
        put(tmp_path, [row(number, year=0)], "more.jsonl")
    delete_rows(tmp_path / "i", ["d0", "d1"])
    assert reader.version < Index.open(tmp_path / "i").version
    assert by_id(reader.rows(range(6))) == by_id(first), "no file of its version was read before"
    assert second.search(ToyModel().vectors(["text number 0"], prompt="").array, 1)[0][0].row == first[0]
    assert {hit.id for hit in second.search(np.ones((1, 8), np.float32), 6)[0]} == by_id(first).keys()
    assert held(tmp_path / "i").keys() == {f"d{number}" for number in range(2, 12)}
    del reader, second
    before = len(list((tmp_path / "i").iterdir()))
    delete_rows(tmp_path / "i", ["d2"])
    assert len(list((tmp_path / "i").iterdir())) < before, "the next writer removes what nobody reads"
    assert not list((tmp_path / "i").glob(".manifest-*"))


def update_twice(folder: Path) -> None:
    """What is killed below: an update of several blocks, then a deletion that merges parts."""
    index_file(ToyModel(), folder / "new.jsonl", folder / "i", SMALL)
    delete_rows(folder / "i", ["d1", "d2", "d3"])


OLD = [row(number) for number in [*range(7), *range(20, 27)]]
NEW = [row(number, text=f"new {number}") for number in range(2, 11)]
UPDATED_ROWS = by_id(OLD) | by_id(NEW)
STATES = [by_id(OLD), UPDATED_ROWS, {k: v for k, v in UPDATED_ROWS.items() if k not in ("d1", "d2", "d3")}]


@pytest.fixture(scope="module")
def index_of_parts(tmp_path_factory) -> Path:
    """An index of several small parts, and a file to update it with."""
    folder = tmp_path_factory.mktemp("started")
    put(folder, OLD[:7])
    for old in OLD[7:]:
        put(folder, [old], "more.jsonl")
    write_jsonl(folder / "new.jsonl", NEW)
    return folder


@pytest.fixture
def started(tmp_path: Path, index_of_parts: Path) -> Path:
    shutil.copytree(index_of_parts, tmp_path, dirs_exist_ok=True)
    return tmp_path


LATE = 10**6  # ``update_twice`` is over by then


@pytest.mark.parametrize("moment", [*range(0, 120, 3), LATE])
def test_a_process_killed_at_any_moment_leaves_the_last_committed_state(started, moment):
    """The process is killed with signal 9 at its n-th step to the disk: a sync, rename, link or unlink."""
    child = os.fork()
    if child == 0:
        steps = iter(range(10_000))

        def dying(real: Any) -> Any:
            def step(*arguments: Any, **more: Any) -> Any:
                if next(steps) == moment:
                    os.kill(os.getpid(), 9)
                return real(*arguments, **more)

            return step

        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            update_twice(started)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (moment < LATE)
    found = held(started / "i")
    assert found in STATES
    assert found == STATES[2] or moment < LATE
    index_file(ToyModel(), started / "new.jsonl", started / "i", SMALL)
    assert held(started / "i") == found | {name: STATES[1][name] for name in map("d{}".format, range(2, 11))}
    assert not [file for file in (started / "i").glob(".*") if file.name.endswith(".tmp")]


def test_a_killed_update_goes_on_after_its_blocks(started):
    with killed_after(12):  # three blocks of four files
        index_file(ToyModel(), started / "new.jsonl", started / "i", SMALL)
    assert held(started / "i") == STATES[0]
    assert Index.open(started / "i").info()["rows_of_an_unfinished_update"] == 9
    model = ToyModel()
    summary = index_file(model, started / "new.jsonl", started / "i", SMALL)
    assert (model.calls, summary.new_rows, summary.added, summary.changed) == ([], 0, 4, 5)
    assert held(started / "i") == STATES[1]


def test_blocks_of_a_killed_update_are_not_published_by_another(started):
    with killed_after(9):
        index_file(ToyModel(), started / "new.jsonl", started / "i", SMALL)
    put(started, [row(50)], "others.jsonl")
    assert held(started / "i") == STATES[0] | by_id([row(50)])


def test_a_first_index_is_unfinished_until_its_commit(tmp_path):
    write_jsonl(tmp_path / "docs.jsonl", [row(number) for number in range(7)])
    with killed_after(5):
        index_file(ToyModel(), tmp_path / "docs.jsonl", tmp_path / "i", SMALL)
    with pytest.raises(UserError, match=r"unfinished.*again"):
        Index.open(tmp_path / "i")
    with pytest.raises(UserError, match="unfinished"):
        delete_rows(tmp_path / "i", ["d0"])
    model = ToyModel()
    index_file(model, tmp_path / "docs.jsonl", tmp_path / "i", SMALL)
    assert model.encoded == [f"text number {number}" for number in range(3, 7)]
    assert held(tmp_path / "i") == by_id([row(number) for number in range(7)])


def test_ids_of_a_first_index_that_failed_may_be_chosen_anew(tmp_path):
    rows = [row(number) for number in range(7)]
    with pytest.raises(UserError, match=r"the same id 'd0'.*choose another column with --id"):
        put(tmp_path, [*rows, row(0, text="again")])
    model = ToyModel()
    summary = put(tmp_path, [*rows, row(0, text="again")], model=model, id_column="none")
    assert model.encoded == ["text number 6", "again"], "blocks that were embedded are used"
    assert (summary.rows, summary.others) == (8, 0)
    assert len(held(tmp_path / "i")) == 8
    assert len(list((tmp_path / "i").glob("*.npy"))) == 3


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4])
def test_a_full_disk_leaves_the_version_before(started, monkeypatch, calls):
    real, seen = os.fsync, []

    def full(descriptor: int) -> None:
        seen.append(descriptor)
        if len(seen) > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full.*the index is as it was"):
        index_file(ToyModel(), started / "new.jsonl", started / "i", SMALL)
    monkeypatch.undo()
    assert held(started / "i") == STATES[0]
    index_file(ToyModel(), started / "new.jsonl", started / "i", SMALL)
    assert held(started / "i") == STATES[1]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("ending", ["npy", "terms.npz", "parquet"])
def test_a_damaged_file_is_named_never_served_and_made_again(tmp_path, ending):
    rows = [row(number) for number in range(7)]
    put(tmp_path, rows)
    delete_rows(tmp_path / "i", ["d4"])
    flip(tmp_path / "i" / f"part-00001.{ending}")
    query_QM = np.ones((1, 8), np.float32)
    with pytest.raises(UserError, match=rf"part-00001\.{ending} is damaged"):
        list(Index.open(tmp_path / "i").find(query_QM, texts=["text"], k=7, hybrid=True))
    model = ToyModel()
    with pytest.warns(UserWarning, match=rf"part-00001\.{ending} is damaged"):
        put(tmp_path, rows[:4] + rows[5:], model=model)
    assert held(tmp_path / "i") == by_id(rows[:4] + rows[5:])
    expected = {"npy": {3, 4, 5}, "terms.npz": set(), "parquet": {3, 5}}[ending]
    assert set(model.encoded) == {f"text number {number}" for number in expected}
    assert len(Index.open(tmp_path / "i").find(query_QM, texts=["text"], k=7, hybrid=True)[0]) == 6


def test_damaged_rows_of_another_file_are_left_alone(tmp_path):
    put(tmp_path, [row(0)])
    put(tmp_path, [row(1)], "more.jsonl")
    flip(tmp_path / "i/part-00000.parquet")
    before = contents(tmp_path / "i")
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged.*rows of docs\.jsonl"):
        put(tmp_path, [row(2)], "more.jsonl")
    assert contents(tmp_path / "i") == before


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_manifest_is_never_served(tmp_path, place):
    put(tmp_path, [row(number) for number in range(7)])
    delete_rows(tmp_path / "i", ["d4"])
    file = tmp_path / "i/manifest.json"
    content = file.read_text()
    at = next(at for at in range(int(len(content) * place), len(content)) if content[at].isalnum())
    file.write_text(content[:at] + ("1" if content[at] != "1" else "2") + content[at + 1 :])
    for use in (Index.open, lambda path: delete_rows(path, ["d1"])):
        with pytest.raises(UserError, match=r"manifest\.json|is not an index|format version"):
            use(tmp_path / "i")


def test_an_index_of_a_newer_version_is_refused(tmp_path):
    put(tmp_path, [row(0)])
    file = tmp_path / "i/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": MULTI_VECTOR + 1}))
    with pytest.raises(
        UserError, match=f"format version {MULTI_VECTOR + 1}, this moembed reads up to {MULTI_VECTOR}"
    ):
        put(tmp_path, [row(0)])


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([row(0), row(1), row(0)], {}, r"rows 1 and 3 have the same id 'd0' in column 'id'"),
        ([{**row(0), "id": 1}, {**row(1), "id": "1"}], {}, "rows 1 and 2 have the same id '1'"),
        ([row(0), {"text": "x"}], {}, "row 2: the id in column 'id' is missing"),
        ([row(0), row(1, id=2.5)], {}, "row 2: the id in column 'id' is of type float"),
        ([row(0)], {"id_column": "url"}, "row 1: the id in column 'url' is missing"),
        ([row(0), {"id": "d1"}], {}, "row 2: no column 'text'"),
        ([row(0), row(1, id="\ud800")], {}, "row 2: the id in column 'id' is not UTF-8"),
        ([row(0, **{"\ud800": 1})], {}, r"the name of the column '\\ud800' is not UTF-8"),
        ([{**row(0), "moembed:id": 1}], {}, "column 'moembed:id' has a name that moembed uses itself"),
        ([row(0)], {"config": EmbedConfig(dim=9)}, "dim 9 is not possible"),
    ],
)
def test_files_that_cannot_be_indexed(tmp_path, rows, options, complaint):
    with pytest.raises(UserError, match=complaint):
        put(tmp_path, rows, **options)
    assert not (tmp_path / "i/manifest.json").exists()


def test_an_update_with_other_settings_is_refused(tmp_path):
    put(tmp_path, [row(0)])
    for options, complaint in [
        ({"model": ToyModel(name="other")}, "space_id is 'toy--8' there and 'other--8' here"),
        ({"config": EmbedConfig(column="id")}, "column is 'text' there and 'id' here"),
        ({"id_column": "none"}, "the ids of .* are those of column 'id', not of 'none'"),
    ]:
        with pytest.raises(UserError, match=complaint):
            put(tmp_path, [row(1)], **options)
    with locked(tmp_path / "i"), pytest.raises(UserError, match="in use by another process"):
        delete_rows(tmp_path / "i", ["d0"])
    assert held(tmp_path / "i") == by_id([row(0)])


@pytest.mark.parametrize("old", ["embed", "write_index", "first version"])
def test_folders_of_format_version_1_open_and_are_updated(tmp_path, old):
    rows = [row(number) for number in range(5)]
    if old == "write_index":
        vector_NM = ToyModel().vectors([row["text"] for row in rows], prompt="").array
        write_index(
            tmp_path / "i", vector_NM, rows, space_id="toy--8", column="text", role="document",
            prompt_name=None, part_rows=2,
        )  # fmt: skip
    else:
        embed_file(ToyModel(), write_jsonl(tmp_path / "docs.jsonl", rows), tmp_path / "i", SMALL)
    if old == "first version":  # which had no checksums
        file = tmp_path / "i/manifest.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "stamps"}))
    reader = Index.open(tmp_path / "i")
    assert reader.ids() == [f"d{number}" for number in range(5)]
    assert [hit.id for hit in reader.find(np.ones((1, 8)), texts=["number 3"], k=1, hybrid=True)[0]] == ["d3"]
    assert [hit.id for hit in reader.search(np.ones((1, 8)), 5, where="year = 2003")[0]] == ["d3"]
    model = ToyModel()
    put(tmp_path, [*rows[1:], row(5)], model=model)
    assert model.encoded == ["text number 5"]
    assert held(tmp_path / "i") == by_id([*rows, row(5)])
    assert read_manifest(tmp_path / "i")["format_version"] == UPDATED
    assert by_id(reader.rows(range(5))) == by_id(rows)
    with pytest.raises(UserError, match="choose another folder"):
        embed_file(ToyModel(), tmp_path / "docs.jsonl", tmp_path / "i", SMALL)


def test_an_unfinished_folder_of_embed_is_left_alone(tmp_path):
    source = write_jsonl(tmp_path / "docs.jsonl", [row(number) for number in range(5)])
    with killed_after(4):
        embed_file(ToyModel(), source, tmp_path / "i", SMALL)
    with pytest.raises(UserError, match=r"unfinished, and `moembed embed` or an earlier moembed started it"):
        put(tmp_path, [row(0)], "more.jsonl")
    assert embed_file(ToyModel(), source, tmp_path / "i", SMALL).rows == 5


def test_a_copy_of_the_folder_is_the_index(tmp_path):
    put(tmp_path, [row(number) for number in range(5)])
    reader = Index.open(tmp_path / "i")
    delete_rows(tmp_path / "i", ["d0"])
    shutil.copytree(tmp_path / "i", tmp_path / "copy" / "i")
    assert len(reader) == 5
    assert held(tmp_path / "copy/i").keys() == {"d1", "d2", "d3", "d4"}
    delete_rows(tmp_path / "copy/i", ["d1"])
    assert not list((tmp_path / "copy/i").glob(".*"))


def test_experts_by_role_embed_documents_where_there_are_no_prompts(
    tmp_path: Path, make_model: MakeModel
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [{"id": "a", "text": "owls hunt"}, {"id": "b", "text": "moles dig"}])
    for router in ({}, {"default_tag": "query"}):
        model = tagged_model(make_model(prompts={}).parts(), tags=["query", "document"], **router)
        assert not np.allclose(model.encode_query(["owls hunt"]), model.encode_document(["owls hunt"]))
        path = tmp_path / f"i{len(router)}"
        index_file(model, tmp_path / "docs.jsonl", path)
        index = Index.open(path)
        (vector_NM,) = index.vectors()
        np.testing.assert_allclose(vector_NM, model.encode_document(["owls hunt", "moles dig"]), atol=1e-6)
        assert len(index.search("owls", model=model)[0]) == 2


def test_a_part_that_changed_on_disk_is_named_and_not_merged(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.search.part_writer._LIGHT_PARTS", 1)
    folder = started / "i"
    manifest, parts = (folder / "manifest.json").read_bytes(), sorted(folder.glob("part-*.npy"))
    file = parts[-1]
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(UserError, match=f"^{file} is damaged \\(its content changed since it was written\\)"):
        merged_by(folder)
    assert (folder / "manifest.json").read_bytes() == manifest
    file.write_bytes(sound)
    assert held(folder) == by_id(OLD)
    merged_by(folder)
    assert len(list(folder.glob("part-*.npy"))) < len(parts)


@pytest.mark.parametrize("writes", [0, 1, 2], ids=["rows", "vectors", "terms"])
def test_a_disk_that_is_full_while_parts_are_merged_costs_nothing(
    writes: int, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.search.part_writer._LIGHT_PARTS", 1)
    folder, calls, real = started / "i", iter(range(99)), os.fsync

    def full(number: int) -> None:
        if next(calls) == writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    manifest = (folder / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device.*as it was"):
            merged_by(folder)
    assert (folder / "manifest.json").read_bytes() == manifest
    assert held(folder) == by_id(OLD)
    merged_by(folder)
    assert held(folder) == {name: row for name, row in by_id(OLD).items() if name != "d0"}
    assert not list(folder.glob(".part*"))


def merged_by(folder: Path) -> None:
    """A deletion that finds too many small parts and merges them."""
    delete_rows(folder, ["d0"])
