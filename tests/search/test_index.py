"""Exact search against a full sort, and index folders that are unfinished, foreign or damaged."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from datetime import date, datetime, timezone
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toys import ToyModel

from moembed.search import exact
from moembed.search.exact import norms_of, search_parts, top_k
from moembed.search.index import Index
from moembed.search.index_parts import as_rows, as_table
from moembed.search.index_writer import IndexWriter, write_index
from moembed.types import UserError

SPACE = "space-a"


def reference(query_QM: np.ndarray, document_NM: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every cosine one by one, then a full stable sort."""
    score_QN = np.zeros((len(query_QM), len(document_NM)))
    for q, query in enumerate(query_QM.astype(np.float64)):
        for n, document in enumerate(document_NM.astype(np.float64)):
            length = np.linalg.norm(query) * np.linalg.norm(document)
            score_QN[q, n] = query @ document / length if length else 0
    score_QN = np.rint(score_QN * exact.STEPS) / exact.STEPS
    order_QK = np.argsort(-score_QN, axis=1, kind="stable")[:, :k]
    return order_QK, np.take_along_axis(score_QN, order_QK, axis=1)


def random_vectors(rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def numbered(rows: int) -> list[dict]:
    return [{"text": f"text {row}", "id": row} for row in range(rows)]


def small_integers(rows: int, dim: int) -> st.SearchStrategy[np.ndarray]:
    """Vectors of few distinct directions: ties, zero vectors and opposite vectors abound."""
    return arrays(np.float32, (rows, dim), elements=st.integers(-2, 2).map(float))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    dim = draw(st.integers(1, 4))
    query_QM = draw(small_integers(draw(st.integers(0, 7)), dim))
    document_NM = draw(small_integers(draw(st.integers(0, 13)), dim))
    return query_QM, document_NM, draw(st.integers(1, 15))


@given(problems())
def test_top_k_is_the_full_sort_across_block_boundaries(problem):
    query_QM, document_NM, k = problem
    with patch.multiple(exact, QUERY_BLOCK=3, DOCUMENT_BLOCK=4):
        hits = top_k(query_QM, document_NM, k)
    index, score = reference(query_QM, document_NM, k)
    np.testing.assert_array_equal(hits.index, index)
    np.testing.assert_allclose(hits.score, score, atol=1e-7)


@given(problems(), st.integers(1, 5), st.sampled_from([1.0, 3.0, 1e-20, 1e20]))
def test_known_lengths_change_nothing(problem, part_rows, scale):
    query_QM, document_NM, k = problem
    document_NM = document_NM * np.float32(scale)
    parts = [document_NM[start : start + part_rows] for start in range(0, len(document_NM), part_rows)]
    with patch.multiple(exact, QUERY_BLOCK=3, DOCUMENT_BLOCK=4):
        expected = top_k(query_QM, document_NM, k)
        hits = search_parts(query_QM, parts, len(document_NM), k, map(norms_of, parts))
    np.testing.assert_array_equal(hits.index, expected.index)
    np.testing.assert_array_equal(hits.score, expected.score)


def test_known_lengths_change_nothing_among_near_ties():
    close = random_vectors(3000, 64)[:1] + 1e-6 * random_vectors(3000, 64, seed=1)
    document_NM = (close * np.linspace(0.5, 2, 3000)[:, None]).astype(np.float32)
    query_QM = random_vectors(3, 64, seed=2)
    expected = top_k(query_QM, document_NM, 40)
    hits = search_parts(query_QM, [document_NM], 3000, 40, [norms_of(document_NM)])
    np.testing.assert_array_equal(hits.index, expected.index)
    np.testing.assert_array_equal(hits.score, expected.score)


def test_top_k_is_the_full_sort_of_random_vectors():
    query_QM, document_NM = random_vectors(5, seed=1), 3 * random_vectors(exact.DOCUMENT_BLOCK + 100, seed=2)
    hits = top_k(query_QM, document_NM, 50)
    index, score = reference(query_QM, document_NM, 50)
    np.testing.assert_array_equal(hits.index, index)
    np.testing.assert_allclose(hits.score, score, atol=1e-7)
    assert hits.index.dtype == np.int64
    assert hits.score.dtype == np.float32


def test_equal_documents_tie_and_company_does_not_matter():
    document_NM = np.concatenate(
        [random_vectors(1001, 384)] * 3
    )  # an odd count shifts the copies in their tiles
    query_QM = random_vectors(17, 384, seed=1)
    together = top_k(query_QM, document_NM, 30)
    first_QT = together.index[:, ::3]
    np.testing.assert_array_equal(together.index, (first_QT[:, :, None] + [0, 1001, 2002]).reshape(17, 30))
    for query in range(17):
        alone = top_k(query_QM[query : query + 1], document_NM, 30)
        np.testing.assert_array_equal(alone.index[0], together.index[query])
        np.testing.assert_array_equal(alone.score[0], together.score[query])


def test_top_k_holds_one_block_of_scores():
    query_QM, document_NM = random_vectors(2000, 4), random_vectors(20_000, 4)
    tracemalloc.start()
    top_k(query_QM, document_NM, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(query_QM) * len(document_NM) * 4 / 2, "half of the float32 score matrix"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(bad):
    good, broken = random_vectors(6), random_vectors(6)
    broken[4, 2] = bad
    with pytest.raises(UserError, match="query 4"):
        top_k(broken, good, 1)
    with patch.object(exact, "DOCUMENT_BLOCK", 3), pytest.raises(UserError, match="document 4"):
        top_k(good, broken, 1)


def test_shapes_and_k_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="8 dimensions and documents 4"):
        top_k(random_vectors(2), random_vectors(3, 4), 1)
    with pytest.raises(UserError, match="matrix"):
        top_k(random_vectors(2)[0], random_vectors(3), 1)
    with pytest.raises(UserError, match="at least 1"):
        top_k(random_vectors(2), random_vectors(3), 0)


@pytest.mark.parametrize("part_rows", [1, 4, 100])
def test_an_index_finds_what_top_k_finds(tmp_path, part_rows):
    query_QM, document_NM = random_vectors(3, seed=1), random_vectors(10)
    write_index(tmp_path / "i", document_NM, numbered(10), space_id=SPACE, part_rows=part_rows, column="text")
    index = Index.open(tmp_path / "i", SPACE)
    hits, expected = index.search(query_QM, 7), top_k(query_QM, document_NM, 7)
    np.testing.assert_array_equal(hits.index, expected.index)
    np.testing.assert_array_equal(hits.score, expected.score)
    np.testing.assert_array_equal(np.concatenate(list(index.vectors())), document_NM)
    assert (len(index), index.dim, index.space_id, index.manifest["column"]) == (10, 8, SPACE, "text")
    assert [row["id"] for row in index.rows(hits.index[0])] == hits.index[0].tolist()
    assert index.rows([9, 0, 9]) == [numbered(10)[row] for row in (9, 0, 9)]
    assert index.rows([]) == []


@pytest.mark.parametrize("row", [-1, 10])
def test_rows_outside_the_index_are_refused(tmp_path, row):
    index = write_index(tmp_path / "i", random_vectors(10), numbered(10), space_id=SPACE)
    with pytest.raises(IndexError, match=r"0\.\.9"):
        index.rows([0, row])


def test_rows_come_back_as_they_went_in(tmp_path):
    rows = [
        {"text": "", "mixed": 1, "nested": {}, "when": datetime(2024, 1, 2), "wide": 2**70, "n": 1},
        {"text": "ü", "mixed": "one", "nested": {"a": [1, None]}, "when": None, "wide": 0, "n": None},
        {"text": "x", "mixed": None, "nested": None, "when": None, "wide": None, "n": 3, "late": "\ud800"},
    ]
    index = write_index(tmp_path / "i", random_vectors(3), rows, space_id=SPACE)
    assert index.rows([0, 1, 2]) == [{"late": None, **row} for row in rows]


@pytest.mark.parametrize(
    "values",
    [
        [date(2024, 1, 1), datetime(2024, 1, 1, 5)],
        [datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=timezone.utc)],
        ["a", b"b"],
    ],
)
def test_values_that_one_column_would_change_are_kept_as_texts(values):
    table = as_table([{"v": value} for value in values])
    assert [row["v"] for row in as_rows(table)] == [str(value) for value in values]


def test_an_index_of_longer_vectors_is_refused_in_words(tmp_path):
    index = write_index(tmp_path / "i", random_vectors(2), numbered(2), space_id=SPACE)
    with pytest.raises(UserError, match="holds vectors of 8 coordinates, and this model makes 4: re-index"):
        index.search("owl", model=ToyModel(dim=4))


def test_an_index_of_another_space_is_refused(tmp_path):
    write_index(tmp_path / "i", random_vectors(2), numbered(2), space_id=SPACE)
    with pytest.raises(UserError, match=r"space-a.*space-b.*re-index"):
        Index.open(tmp_path / "i", "space-b")


def test_queries_of_another_width_are_refused(tmp_path):
    index = write_index(tmp_path / "i", random_vectors(2), numbered(2), space_id=SPACE)
    with pytest.raises(UserError, match="4 dimensions and documents 8"):
        index.search(random_vectors(1, 4), 1)


def unfinished(path: Path) -> IndexWriter:
    writer = IndexWriter(path, space_id=SPACE, dim=8)
    writer.append(random_vectors(3), numbered(3), truncated=2)
    return writer


def test_an_unfinished_index_is_refused_until_it_is_finished(tmp_path):
    writer = unfinished(tmp_path / "i")
    with pytest.raises(UserError, match=r"unfinished.*again"):
        Index.open(tmp_path / "i")
    writer.finish()
    assert Index.open(tmp_path / "i").manifest["truncated"] == 2


def test_write_index_starts_an_unfinished_folder_anew_and_spares_a_finished_one(tmp_path):
    unfinished(tmp_path / "i")
    index = write_index(tmp_path / "i", random_vectors(4, seed=5), numbered(4), space_id=SPACE)
    np.testing.assert_array_equal(next(index.vectors()), random_vectors(4, seed=5))
    assert index.manifest["truncated"] == 0
    with pytest.raises(UserError, match="already holds a finished index"):
        write_index(tmp_path / "i", random_vectors(4), numbered(4), space_id=SPACE)


def test_folders_that_are_no_index_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not an index"):
        Index.open(tmp_path / "nowhere")
    manifest = tmp_path / "manifest.json"
    for text, complaint in [
        ("{", "not valid JSON"),
        ("[]", "another kind"),
        ('{"name": "an app"}', "another kind"),
        ('{"format": "moembed-index", "format_version": 99}', "format version 99"),
    ]:
        manifest.write_text(text)
        with pytest.raises(UserError, match=complaint):
            Index.open(tmp_path)


def test_a_damaged_manifest_without_checksum_is_named_or_changes_no_hit(tmp_path):
    write_index(tmp_path / "i", random_vectors(7), numbered(7), space_id=SPACE, part_rows=3)
    file, query_QM = tmp_path / "i/manifest.json", random_vectors(1, seed=3)
    sound = file.read_bytes()
    expected = Index.open(tmp_path / "i").search(query_QM, 7)
    for place in range(len(sound)):
        for bit in (1, 4):
            file.write_bytes(sound[:place] + bytes([sound[place] ^ bit]) + sound[place + 1 :])
            try:
                found = Index.open(tmp_path / "i").search(query_QM, 7)
            except UserError:
                continue
            np.testing.assert_array_equal(found.index, expected.index)
            np.testing.assert_array_equal(found.score, expected.score)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def forget_the_stamps(folder: Path) -> None:
    """As an index of an earlier version is."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["stamps"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["part-00001.npy", "part-00002.parquet"])
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda file: file.write_bytes(b"")])
def test_lost_and_cut_files_are_found_when_the_index_is_opened(tmp_path, name, damage):
    write_index(tmp_path / "i", random_vectors(9), numbered(9), space_id=SPACE, part_rows=3)
    damage(tmp_path / "i" / name)
    with pytest.raises(UserError, match=rf"{name} is damaged .*: run the command that made the index again"):
        Index.open(tmp_path / "i")


def test_a_flipped_bit_is_found_when_the_part_is_read(tmp_path):
    write_index(tmp_path / "i", random_vectors(9), numbered(9), space_id=SPACE, part_rows=3)
    flip_a_bit(tmp_path / "i/part-00001.npy")
    flip_a_bit(tmp_path / "i/part-00002.parquet")
    index = Index.open(tmp_path / "i")
    with pytest.raises(UserError, match=r"part-00001\.npy is damaged \(its content changed"):
        index.search(random_vectors(1), 1)
    assert index.rows([0, 5]) == [numbered(9)[row] for row in (0, 5)]
    with pytest.raises(UserError, match=r"part-00002\.parquet is damaged \(its content changed"):
        index.rows([8])


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["part-00001.npy", "part-00001.parquet"])
def test_a_writer_drops_the_damaged_parts_alone(tmp_path, damage, name):
    write_index(tmp_path / "i", random_vectors(9), numbered(9), space_id=SPACE, part_rows=3)
    before = {file.name: file.read_bytes() for file in (tmp_path / "i").iterdir()}
    damage(tmp_path / "i" / name)
    with pytest.warns(UserWarning, match=rf"{name} is damaged .*: its texts are embedded again"):
        writer = IndexWriter(tmp_path / "i", space_id=SPACE, dim=8)
    assert not writer.complete
    assert [writer.has(part) for part in range(4)] == [True, False, True, False]
    writer.append(random_vectors(9)[3:6], numbered(9)[3:6])
    writer.finish()
    assert {file.name: file.read_bytes() for file in (tmp_path / "i").iterdir()} == before


def test_an_index_without_checksums_still_opens_and_cut_parts_are_found(tmp_path):
    write_index(tmp_path / "i", random_vectors(9), numbered(9), space_id=SPACE, part_rows=3)
    forget_the_stamps(tmp_path / "i")
    index = Index.open(tmp_path / "i")
    assert index.search(random_vectors(1), 9).index.shape == (1, 9)
    assert IndexWriter(tmp_path / "i", space_id=SPACE, dim=8).complete
    cut(tmp_path / "i/part-00001.npy")
    cut(tmp_path / "i/part-00002.parquet")
    with pytest.raises(UserError, match=r"part-00001\.npy is damaged"):
        index.search(random_vectors(1), 1)
    with pytest.raises(UserError, match=r"part-00002\.parquet is damaged"):
        index.rows([8])
    with pytest.warns(UserWarning, match=r"part-00001\.npy is damaged .*, and 1 more"):
        writer = IndexWriter(tmp_path / "i", space_id=SPACE, dim=8)
    assert [writer.has(part) for part in range(3)] == [True, False, False]


def test_vectors_of_another_shape_than_the_manifest_says_are_refused(tmp_path):
    write_index(tmp_path / "i", random_vectors(3), numbered(3), space_id=SPACE)
    np.save(tmp_path / "i/part-00000.npy", random_vectors(2))
    forget_the_stamps(tmp_path / "i")
    index = Index.open(tmp_path / "i")
    with pytest.raises(UserError, match=r"\(2, 8\) numbers, not \(3, 8\)"):
        index.search(random_vectors(1), 1)


def test_a_writer_spares_what_is_not_an_index(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an index"):
        IndexWriter(tmp_path, space_id=SPACE, dim=8)
    with pytest.raises(UserError, match="is a file"):
        IndexWriter(tmp_path / "notes.txt", space_id=SPACE, dim=8)
    with pytest.raises(UserError, match="cannot write"):
        write_index(tmp_path / "notes.txt/i", random_vectors(1), numbered(1), space_id=SPACE)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_writer_takes_an_empty_folder_and_a_left_over_temporary_file(tmp_path):
    (tmp_path / ".manifest.json.1.tmp").write_text("{")
    assert len(write_index(tmp_path, random_vectors(2), numbered(2), space_id=SPACE)) == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("vectors", "rows", "complaint"),
    [
        (random_vectors(2), numbered(3), r"\(3, 8\)"),
        (random_vectors(3, 4), numbered(3), r"\(3, 8\)"),
        (np.full((3, 8), np.nan, np.float32), numbered(3), "vector 0"),
        (random_vectors(0), [], "at least one column"),
        (random_vectors(2), [{}, {}], "at least one column"),
    ],
)
def test_a_writer_refuses_parts_that_do_not_fit(tmp_path, vectors, rows, complaint):
    with pytest.raises(UserError, match=complaint):
        IndexWriter(tmp_path / "i", space_id=SPACE, dim=8).append(vectors, rows)
    assert not (tmp_path / "i").exists()


def test_write_index_refuses_vectors_without_rows(tmp_path):
    with pytest.raises(UserError, match="3 rows"):
        write_index(tmp_path / "i", random_vectors(2), numbered(3), space_id=SPACE)
    with pytest.raises(UserError, match="no rows"):
        write_index(tmp_path / "i", random_vectors(0), [], space_id=SPACE)


def test_a_full_disk_leaves_the_earlier_parts_and_no_debris(tmp_path, monkeypatch):
    writer = unfinished(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left.*earlier parts are kept"):
        writer.append(random_vectors(2), numbered(2))
    with pytest.raises(UserError, match="No space left"):
        writer.finish()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert not json.loads(before["manifest.json"])["complete"]
    monkeypatch.undo()
    writer.append(random_vectors(2), numbered(2))
    writer.finish()
    assert Index.open(tmp_path).manifest["parts"] == [3, 2]
