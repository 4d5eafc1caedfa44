"""An index of codes: calibrated once on what it holds, searched as its codec decodes, whole at any moment."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import ToyModel, contents, killed_after, write_jsonl

from conftest import MakeModel, Run
from moembed.encoding import Vectors
from moembed.search import index_bridge
from moembed.search.codecs import as_searched, fit_codec
from moembed.search.embed import EmbedConfig, embed_file
from moembed.search.exact import top_k
from moembed.search.index import Index
from moembed.search.index_bridge import bridge_index, bridge_of
from moembed.search.index_codec import read_codec
from moembed.search.index_compress import compress_index
from moembed.search.index_file import IndexSummary, delete_rows, index_file
from moembed.search.index_manifest import CODED, UPDATED, read_manifest
from moembed.search.stores.push import push_index
from moembed.types import TruncationWarning, UserError

CODECS = ["float16", "int8", "binary", "binary-symmetric", "lsh:2", "bebr:2", "bebr-symmetric:2", "pq:2"]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moembed.search.binariser_training.STEPS", 2)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"d{number}", "text": f"text number {number}", "year": 2000 + number, **more}


def put(
    folder: Path, rows: list[dict[str, Any]], block_rows: int = 3, prompt: str | None = ""
) -> IndexSummary:
    write_jsonl(folder / "docs.jsonl", rows)
    config = EmbedConfig(block_rows=block_rows, model_path="toy", prompt=prompt)  # type: ignore[arg-type]
    return index_file(ToyModel(), folder / "docs.jsonl", folder / "i", config)


def embedded(texts: list[str]) -> np.ndarray:
    return ToyModel().vectors(texts, prompt="").array


def require_coded(path: Path, expected: list[dict[str, Any]]) -> None:
    """These rows in any order, and every code is what the stored calibration makes of its text."""
    index = Index.open(path)
    rows = index.rows(range(len(index)))
    assert sorted(rows, key=str) == sorted(expected, key=str)
    codec = read_codec(path, index.manifest)
    assert codec is not None
    decoded_NM = codec.decode(codec.encode(embedded([one["text"] for one in rows])))
    np.testing.assert_allclose(np.concatenate(list(index.vectors())), decoded_NM, atol=1e-6)


@pytest.mark.parametrize("name", CODECS)
def test_an_index_of_codes_finds_what_the_codec_finds(tmp_path: Path, name: str) -> None:
    rows = [row(number) for number in range(300)]
    put(tmp_path, rows, block_rows=100)
    before = Index.open(tmp_path / "i")
    summary = compress_index(tmp_path / "i", name)
    index = Index.open(tmp_path / "i")
    document_NM, query_QM = (
        embedded([one["text"] for one in rows]),
        embedded(["moles", "owls", "text number 7"]),
    )
    seen = as_searched(query_QM, document_NM, name)
    expected = top_k(seen.query_QM, seen.document_NM, 9)
    hits = index.search(query_QM, 9)
    np.testing.assert_array_equal(hits.index, expected.index)
    np.testing.assert_array_equal(hits.score, expected.score)
    assert (summary.bytes_before, summary.bytes_after) == (32, seen.bytes_per_vector)
    size = sum(file.stat().st_size for file in index._reader.files() if file.suffix == ".npy")
    floats = [part for part in before._reader.files() if part.suffix == ".npy"]
    assert size == 3 * 128 + 300 * seen.bytes_per_vector, "codes and the heads of three files"
    assert all(file.exists() for file in floats), "a reader of the version before still has its files"
    assert before.search(query_QM[2:], 1)[0][0].id == "d7"
    assert index.info()["codec"] == index.codec == name
    assert index.search(query_QM, 3, where="year < 2005").index.max() < 5
    assert index.find(query_QM[2:], texts=["text number 7"], k=1, hybrid=True, weight=0.3)[0][0].id == "d7"


def test_the_calibration_is_of_what_is_stored_and_no_query_changes_it(tmp_path: Path) -> None:
    rows = [row(number) for number in range(9)]
    put(tmp_path, rows)
    delete_rows(tmp_path / "i", ["d3"])
    compress_index(tmp_path / "i", "int8")
    left = [one for one in rows if one["id"] != "d3"]
    state = read_codec(tmp_path / "i", read_manifest(tmp_path / "i") or {}).state()  # type: ignore[union-attr]
    expected = fit_codec("int8", embedded([one["text"] for one in left])).state()
    assert all(np.array_equal(state[key], expected[key]) for key in expected)
    require_coded(tmp_path / "i", left)
    before = contents(tmp_path / "i")
    Index.open(tmp_path / "i").search(100 * embedded(["moles", "owls"]), 3)
    assert contents(tmp_path / "i") == before


@pytest.mark.parametrize("name", ["int8", "bebr:2"])
def test_an_update_moves_codes_and_codes_new_rows_alike(tmp_path: Path, name: str) -> None:
    rows = [row(number) for number in range(8)]
    put(tmp_path, rows)
    compress_index(tmp_path / "i", name)
    calibration = (tmp_path / "i" / (read_manifest(tmp_path / "i") or {})["codec"]["file"]).read_bytes()
    for step in range(6):  # more parts than are left beside one another: some are merged
        rows = [*rows[1:3], {**rows[3], "year": 1}, *rows[4:], row(10 + step), row(20 + step, text=f"{step}")]
        put(tmp_path, rows)
        delete_rows(tmp_path / "i", [name for name in Index.open(tmp_path / "i").ids() if name not in {
            str(one["id"]) for one in rows
        }])  # fmt: skip
        require_coded(tmp_path / "i", rows)
    found = read_manifest(tmp_path / "i") or {}
    assert found["format_version"] == CODED
    assert (tmp_path / "i" / found["codec"]["file"]).read_bytes() == calibration


def test_a_damaged_file_of_codes_is_made_again(tmp_path: Path) -> None:
    rows = [row(number) for number in range(5)]
    put(tmp_path, rows)
    compress_index(tmp_path / "i", "bebr:2")
    file = sorted((tmp_path / "i").glob("part-*.npy"))[0]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="its texts are embedded again"):
        put(tmp_path, rows)
    require_coded(tmp_path / "i", rows)


def test_a_kill_at_any_file_leaves_the_floats_or_the_codes(tmp_path: Path) -> None:
    rows = [row(number) for number in range(7)]
    put(tmp_path, rows)
    before, moment, seen = {one["id"]: one for one in rows}, 0, set()
    while True:
        try:
            with killed_after(moment):
                compress_index(tmp_path / "i", "bebr:2")
        except AssertionError:
            break  # it lived
        index = Index.open(tmp_path / "i")
        assert dict(zip(index.ids(), index.rows(range(7)), strict=True)) == before
        seen.add(index.codec)
        del index  # a reader would keep the files of its version
        moment += 1
    assert moment > 9
    assert seen == {"float32"}
    require_coded(tmp_path / "i", rows)
    numbers = {part["number"] for part in (read_manifest(tmp_path / "i") or {})["parts"]}
    assert len(list((tmp_path / "i").glob("part-*.npy"))) == len(numbers), "no debris"


def test_a_full_disk_leaves_the_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, [row(number) for number in range(4)])
    before = Index.open(tmp_path / "i").search(embedded(["owls"]), 2).score

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"the disk is full.*the index is as it was"):
            compress_index(tmp_path / "i", "int8")
    index = Index.open(tmp_path / "i")
    assert index.codec == "float32"
    np.testing.assert_array_equal(index.search(embedded(["owls"]), 2).score, before)
    assert compress_index(tmp_path / "i", "int8").done


def test_codes_without_their_calibration_are_refused(tmp_path: Path) -> None:
    put(tmp_path, [row(number) for number in range(4)])
    compress_index(tmp_path / "i", "int8")
    (file,) = (tmp_path / "i").glob("codec-*.safetensors")
    whole = file.read_bytes()
    for damaged in (None, whole[:-3], whole[:-1] + b"?"):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        for use in (lambda: Index.open(tmp_path / "i"), lambda: put(tmp_path, [row(9)])):
            with pytest.raises(UserError, match=r"codec-.*say nothing without their calibration; put a copy"):
                use()
    file.write_bytes(whole)
    assert len(Index.open(tmp_path / "i")) == 4


def test_what_cannot_be_compressed_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an index: it has no manifest"):
        compress_index(tmp_path / "none", "int8")
    put(tmp_path, [row(number) for number in range(4)])
    with pytest.raises(UserError, match="256 centroids from as many vectors at least, and there are 4"):
        compress_index(tmp_path / "i", "pq:2")
    assert (read_manifest(tmp_path / "i") or {})["format_version"] == UPDATED
    compress_index(tmp_path / "i", "binary")
    before = contents(tmp_path / "i")
    assert "already: nothing to do" in str(compress_index(tmp_path / "i", "binary"))
    with pytest.raises(UserError, match="holds codes of binary, from which no int8 can be made"):
        compress_index(tmp_path / "i", "int8")
    index = Index.open(tmp_path / "i")
    with pytest.raises(UserError, match="queries have 7 dimensions and documents 8"):
        index.search(np.zeros((1, 7), np.float32), 1)
    symmetric = tmp_path / "symmetric"
    symmetric.mkdir()
    put(symmetric, [row(number) for number in range(4)])
    compress_index(symmetric / "i", "binary-symmetric")
    with pytest.raises(UserError, match=r"query 0 .* NaN"):
        Index.open(symmetric / "i").search(np.full((1, 8), np.nan, np.float32), 1)
    with pytest.raises(UserError, match="holds codes of binary, and a database needs vectors"):
        push_index(index, None)  # type: ignore[arg-type]
    assert contents(tmp_path / "i") == before


class Silent(ToyModel):
    """A text of blanks has no token, and a vector of zeros."""

    def _drawn(self, text: str) -> list[float]:
        return super()._drawn(text) if text.strip() else [0.0] * self.dim


def test_a_text_without_a_token_gets_no_code(tmp_path: Path) -> None:
    rows = [row(number) for number in range(4)]
    config = EmbedConfig(block_rows=3, model_path="toy", prompt="")  # type: ignore[arg-type]
    source = tmp_path / "docs.jsonl"
    write_jsonl(source, [*rows, row(4, text=" ")])
    index_file(Silent(), source, tmp_path / "i", config)
    for name in ("int8", "binary", "lsh:2", "bebr:2"):
        with pytest.raises(
            UserError, match=r"the row 'd4' has no token, and a code would give it a direction"
        ):
            compress_index(tmp_path / "i", name)
    assert Index.open(tmp_path / "i").codec == "float32"
    delete_rows(tmp_path / "i", ["d4"])
    compress_index(tmp_path / "i", "int8")
    with pytest.raises(UserError, match=r"the row 'd4' has no token"):
        index_file(Silent(), source, tmp_path / "i", config)
    require_coded(tmp_path / "i", rows)
    write_jsonl(source, [*rows, row(4, text=" ")])
    index_file(Silent(), source, tmp_path / "j", config)
    compress_index(tmp_path / "j", "float16")
    assert Index.open(tmp_path / "j").search(embedded(["moles"]), 5).score[0].tolist().count(0) == 1


def test_an_update_that_was_killed_is_finished_first(tmp_path: Path) -> None:
    put(tmp_path, [row(number) for number in range(4)])
    with killed_after(5):
        put(tmp_path, [row(number) for number in range(30)])
    assert json.loads((tmp_path / "i" / "manifest.json").read_text())["pending"]
    with pytest.raises(UserError, match="is under way: finish it with the command that started it"):
        compress_index(tmp_path / "i", "int8")
    put(tmp_path, [row(number) for number in range(30)])
    assert compress_index(tmp_path / "i", "int8").rows == 30


def test_a_folder_of_vectors_can_be_compressed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [row(number) for number in range(5)])
    embed_file(ToyModel(), tmp_path / "docs.jsonl", tmp_path / "i", EmbedConfig(block_rows=2))
    compress_index(tmp_path / "i", "binary")
    require_coded(tmp_path / "i", [row(number) for number in range(5)])


def test_a_codec_that_cannot_be_is_refused_before_texts_are_embedded(
    run: Run, make_model: MakeModel, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    source = write_jsonl(tmp_path / "docs.jsonl", [row(number) for number in range(4)])
    made = ("index", source, "--model", tmp_path / "model", "--out", tmp_path / "i")
    code, _, err = run(*made, "--codec", "pq", "--bits-per-dim", "8")
    assert code == 2
    assert "there are 4; the index" in err
    assert "was built, and its vectors stay float32" in err
    assert (len(Index.open(tmp_path / "i")), Index.open(tmp_path / "i").codec) == (4, "float32")
    code, out, err = run(*made, "--codec", "binary")
    assert (code, "binary codes of" in out) == (0, True), err
    write_jsonl(tmp_path / "docs.jsonl", [row(number) for number in range(6)])
    before = contents(tmp_path / "i")
    code, _, err = run(*made, "--codec", "int8")
    assert (code, "from which no int8 can be made" in err) == (2, True), err
    assert contents(tmp_path / "i") == before
    assert run(*made, "--codec", "binary")[0] == 0
    assert len(Index.open(tmp_path / "i")) == 6


# ---- another model searches ------------------------------------------------------------------------------


class Better(ToyModel):
    """Vectors of the toy model, seen through a matrix, with 12 coordinates and some noise."""

    def __init__(self, name: str = "better") -> None:
        super().__init__(dim=12, name=name)

    def vectors(self, texts: Any, **options: Any) -> Vectors:
        old = ToyModel().vectors(texts, prompt="")
        if progress := options.get("progress"):
            progress(len(list(texts)))
        across_KM = np.random.default_rng(5).standard_normal((12, 8))
        array = old.array @ across_KM.T + 0.02 * super().vectors(texts).array
        return Vectors(array.astype(np.float32), 0, self.space(role=options.get("role")))


@pytest.fixture
def bridged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [row(number) for number in range(200)]
    put(tmp_path, rows, block_rows=100, prompt=None)
    compress_index(tmp_path / "i", "bebr:4")
    monkeypatch.setattr("moembed.search.binariser_training.STEPS", 10)
    seen: list[object] = []

    @contextmanager
    def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        seen.extend([what, total])
        yield seen.append

    summary = bridge_index(tmp_path / "i", Better(), model_path="better", progress=bar)
    assert (summary.rows, summary.looked_at) == (200, 20)
    assert seen == ["embedding texts", 200, 200]
    assert summary.found_first > 0.8
    return tmp_path / "i"


def test_a_new_model_searches_the_codes_of_the_old_one_over_a_bridge(bridged: Path) -> None:
    index, asked = Index.open(bridged), [f"text number {number}" for number in range(0, 200, 9)]
    own = index.search(asked, 1, model=ToyModel()).index[:, 0]
    over = index.search(asked, 1, model=Better()).index[:, 0]
    assert np.mean(own == np.arange(0, 200, 9)) > 0.9
    assert np.mean(own == over) > 0.8
    with pytest.raises(UserError, match="holds vectors of space toy-None-8, this model makes third"):
        index.search(asked, 1, model=Better("third"))
    put(bridged.parent, [row(number) for number in range(210)], prompt=None)  # later versions keep the bridge
    assert index.search(asked[:1], 1, model=Better())[0][0].id == "d0"
    assert Index.open(bridged).search(["text number 205"], 1, model=Better())[0][0].id == "d205"


def test_a_bridge_is_read_once(bridged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, read = index_bridge.read_arrays, []
    monkeypatch.setattr(
        index_bridge, "read_arrays", lambda file, stamp: read.append(file) or real(file, stamp)
    )
    index = Index.open(bridged)
    found = [index.search(["text number 9"], 3, model=Better()).index.tolist() for _ in range(4)]
    assert found == [found[0]] * 4
    assert len(read) == 1


class Cutting(Better):
    """It reads texts of 14 letters."""

    def vectors(self, texts: Any, **options: Any) -> Vectors:
        return replace(super().vectors(texts, **options), truncated=sum(len(text) > 14 for text in texts))


def test_texts_that_a_new_model_cuts_are_told(bridged: Path) -> None:
    summary = bridge_index(bridged, Cutting("short"))
    assert summary.truncated == 100  # from text number 100 on
    assert "; 100 texts longer than the model reads were cut" in str(summary)
    with pytest.warns(TruncationWarning, match="1 of 2 questions were longer than the model reads"):
        Index.open(bridged).search(["moles", "a long question"], 1, model=Cutting("short"))


def test_new_codes_are_comparable_with_old_ones(bridged: Path) -> None:
    index, model = Index.open(bridged), Better()
    codec, bridge = read_codec(bridged, index.manifest), bridge_of(bridged, index.manifest, model)
    assert codec is not None
    assert bridge is not None
    texts = [f"text number {number}" for number in range(50)]
    over_NM = bridge.vectors(model.vectors(texts).array)
    np.testing.assert_allclose(np.linalg.norm(over_NM, axis=1), 1, atol=1e-5)
    old, new = (
        np.unpackbits(codec.encode(vector_NM), axis=1)[:, :8] for vector_NM in (embedded(texts), over_NM)
    )
    assert np.mean(old == new) > 0.9, "of the signs"


def test_bridges_that_lead_nowhere_are_refused(bridged: Path, tmp_path: Path) -> None:
    before = contents(bridged)
    with pytest.raises(UserError, match=r"the model made .* itself: it needs no bridge"):
        bridge_index(bridged, ToyModel())
    assert contents(bridged) == before
    (file,) = bridged.glob("bridge-*")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="make the bridge again with `moembed index bridge`"):
        Index.open(bridged).search("moles", 1, model=Better())
    bridge_index(bridged, Better())
    assert [file.name for file in bridged.glob("bridge-*")] != [file.name], "the old file is tidied away"
    for path, complaint in ((tmp_path / "none", "is not an index"), (tmp_path / "few" / "i", "has 4 rows")):
        if path.parent.name == "few":
            path.parent.mkdir()
            put(path.parent, [row(number) for number in range(4)], prompt=None)
            with pytest.raises(UserError, match="holds float32, and a bridge leads to codes of bebr"):
                bridge_index(path, Better())
            compress_index(path, "bebr:2")
        with pytest.raises(UserError, match=complaint):
            bridge_index(path, Better())
