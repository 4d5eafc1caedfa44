"""Embedding a file: killed anywhere and run again it makes the same folder; other settings are refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moembed.encoding import FULL, Progress, Vectors, View
from moembed.files import locked
from moembed.search.embed import EmbedConfig, embed_file
from moembed.search.index import Index
from moembed.types import UserError

ROWS = [{"text": f"text number {row}" + " and on" * (row % 3), "id": row, "meta": {}} for row in range(10)]
BLOCK = 3  # four parts, the last one short


class HashModel:
    """Vectors from the hash of seed, prompt and text; reads 20 characters."""

    def __init__(self, seed: int = 0, dim: int = 6) -> None:
        self.seed, self.dim = seed, dim
        self.encoded: list[str] = []

    max_length = 20

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return f"{self.seed}-{prompt}-{view.dim or self.dim}"

    def vectors(
        self,
        texts: list[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        self.encoded += texts
        dim = view.dim or self.dim
        keys = [f"{self.seed} {prompt} {text[:20]}".encode() for text in texts]
        seeds = [int.from_bytes(hashlib.sha256(key).digest()[:8], "little") for key in keys]
        vector_NM = np.stack([np.random.default_rng(seed).standard_normal(dim) for seed in seeds])
        truncated = sum(len(text) > 20 for text in texts)
        return Vectors(vector_NM.astype(np.float32), truncated, self.space(prompt=prompt, view=view))


class Killed(BaseException):
    """Unlike an OSError, nothing cleans up after it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "texts.jsonl", ROWS)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_text_finds_its_own_row(source, tmp_path):
    model = HashModel()
    done = []
    summary = embed_file(
        model, source, tmp_path / "i", EmbedConfig(prompt="p", block_rows=BLOCK), done.append
    )
    index = Index.open(tmp_path / "i", model.space(prompt="p"))
    vector_NM = HashModel().vectors([ROWS[7]["text"]], prompt="p").array
    assert index.rows(index.search(vector_NM, 1).index[0]) == [ROWS[7]]
    assert done == [3, 6, 9, 10]
    assert (summary.rows, summary.new_rows, summary.dim) == (10, 10, 6)
    assert summary.truncated == index.manifest["truncated"] == sum(len(row["text"]) > 20 for row in ROWS) > 0
    assert f"{summary.truncated} texts" in str(summary)


def test_dim_may_be_smaller_than_the_model(source, tmp_path):
    summary = embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(dim=4))
    assert Index.open(tmp_path / "i", HashModel().space(prompt="", view=View(dim=4))).dim == summary.dim == 4


# The manifest; rows, vectors and the manifest of four parts; the manifest again.
@pytest.mark.parametrize("replaced", range(14))
def test_a_crash_at_any_write_and_a_second_run_make_the_same_folder(source, tmp_path, monkeypatch, replaced):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    embed_file(HashModel(), source, whole, EmbedConfig(block_rows=BLOCK))
    real, calls = os.replace, []

    def crash(temporary: Path, path: Path) -> None:
        calls.append(path)
        if len(calls) > replaced:
            raise Killed
        real(temporary, path)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(Killed):
        embed_file(HashModel(), source, broken, EmbedConfig(block_rows=BLOCK))
    monkeypatch.undo()
    model = HashModel()
    summary = embed_file(model, source, broken, EmbedConfig(block_rows=BLOCK))
    assert contents(broken) == contents(whole)
    kept = min(BLOCK * sum(path.suffix == ".npy" for path in calls[:replaced]), len(ROWS))
    assert model.encoded == [row["text"] for row in ROWS[kept:]], "whole parts are not embedded again"
    assert summary.new_rows == len(ROWS) - kept


def test_a_killed_process_leaves_nothing_that_stays(source, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    embed_file(HashModel(), source, whole, EmbedConfig(block_rows=BLOCK))
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_embed import BLOCK, EmbedConfig, HashModel, embed_file
real = os.replace
def killed(temporary, path):
    if path.name == "part-00001.npy":
        os.kill(os.getpid(), signal.SIGKILL)
    real(temporary, path)
os.replace = killed
embed_file(HashModel(), {str(source)!r}, {str(broken)!r}, EmbedConfig(block_rows=BLOCK))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert list(broken.glob(".part-00001.npy.*.tmp"))
    assert embed_file(HashModel(), source, broken, EmbedConfig(block_rows=BLOCK)).new_rows == 7
    assert contents(broken) == contents(whole)


def test_a_finished_folder_is_left_alone(source, tmp_path):
    embed_file(HashModel(), source, tmp_path / "i")
    before, model = contents(tmp_path / "i"), HashModel()
    summary = embed_file(model, source, tmp_path / "i")
    assert "finished already" in str(summary)
    assert (summary.new_rows, model.encoded) == (0, [])
    assert contents(tmp_path / "i") == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-9])])
def test_a_lost_or_cut_part_is_made_again_and_no_other(source, tmp_path, damage):
    embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(block_rows=BLOCK))
    before, model = contents(tmp_path / "i"), HashModel()
    damage(tmp_path / "i/part-00001.npy")
    with pytest.warns(UserWarning, match=r"part-00001\.npy is damaged"):
        summary = embed_file(model, source, tmp_path / "i", EmbedConfig(block_rows=BLOCK))
    assert contents(tmp_path / "i") == before
    assert model.encoded == [row["text"] for row in ROWS[3:6]]
    assert summary.new_rows == 3


def test_a_second_process_is_refused(source, tmp_path):
    with locked(tmp_path / "i"), pytest.raises(UserError, match="in use by another process"):
        embed_file(HashModel(), source, tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_a_name_for_a_file_is_refused_as_a_folder(source, tmp_path):
    with pytest.raises(UserError, match=r"vectors are a folder, .*: name it .*/v$"):
        embed_file(HashModel(), source, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize("dim", [0, -1, 7])
def test_a_dim_that_the_model_lacks_is_refused(source, tmp_path, dim):
    with pytest.raises(UserError, match=f"dim {dim} is not possible: vectors of this model have 1 to 6"):
        embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(dim=dim))
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("model", "change", "complaint"),
    [
        (HashModel(seed=1), {}, "space_id is '0--6' there and '1--6' here"),
        (HashModel(), {"dim": 3}, "dim is 6 there and 3 here"),
        (HashModel(), {"prompt_name": "query"}, "prompt_name is None there and 'query' here"),
        (HashModel(), {"column": "id"}, "column is 'text' there and 'id' here"),
        (HashModel(), {"role": "query"}, "role is 'document' there and 'query' here"),
        (HashModel(), {"block_rows": 5}, "block_rows is 4096 there and 5 here"),
    ],
)
def test_other_settings_are_refused_by_name(source, tmp_path, model, change, complaint):
    embed_file(HashModel(), source, tmp_path / "i")
    with pytest.raises(UserError, match=complaint):
        embed_file(model, source, tmp_path / "i", EmbedConfig(**change))


def test_a_changed_source_is_refused(source, tmp_path):
    embed_file(HashModel(), source, tmp_path / "i")
    with source.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="source_bytes is"):
        embed_file(HashModel(), source, tmp_path / "i")


def test_a_folder_of_files_is_watched_file_by_file(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": [name, name * 2]}), folder / f"{name}.parquet")
    assert embed_file(HashModel(), folder, tmp_path / "i").rows == 4
    pq.write_table(pa.table({"text": ["another", "text"]}), folder / "a.parquet")
    with pytest.raises(UserError, match="source_mtime_ns is"):
        embed_file(HashModel(), folder, tmp_path / "i")


def test_a_model_that_moved_is_the_same_model(source, tmp_path):
    embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(model_path="here"))
    assert not embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(model_path="there")).new_rows


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"body": "x", "title": "y"}, r"row 5: no column 'text', it has 'body', 'title'"),
        ({"text": None}, "row 5: column 'text' is missing"),
        ({"text": 3}, "row 5: column 'text' is of type int"),
        ({"text": "\ud800"}, "row 5: column 'text' is not UTF-8"),
    ],
)
def test_a_bad_row_is_told_by_number_and_keeps_earlier_parts(tmp_path, row, complaint):
    source = write_jsonl(tmp_path / "bad.jsonl", [*ROWS[:4], row])
    with pytest.raises(UserError, match=complaint):
        embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(block_rows=BLOCK))
    assert (tmp_path / "i/part-00000.npy").exists()
    with pytest.raises(UserError, match="row 5"):
        embed_file(HashModel(), source, tmp_path / "j", EmbedConfig(block_rows=100))
    assert not (tmp_path / "j").exists()


def test_the_empty_string_is_a_text(tmp_path):
    source = write_jsonl(tmp_path / "empty.jsonl", [{"text": ""}])
    assert embed_file(HashModel(), source, tmp_path / "i").rows == 1


def test_a_source_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        embed_file(HashModel(), tmp_path / "nowhere.jsonl", tmp_path / "i")
    (tmp_path / "void.jsonl").touch()
    with pytest.raises(UserError, match=r"void\.jsonl"):
        embed_file(HashModel(), tmp_path / "void.jsonl", tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_blocks_must_hold_a_row(source, tmp_path):
    with pytest.raises(UserError, match="block_rows"):
        embed_file(HashModel(), source, tmp_path / "i", EmbedConfig(block_rows=0))


def test_parquet_and_csv_give_the_same_vectors(source, tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS).select(["text", "id"]), tmp_path / "texts.parquet")
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "id"])
        writer.writerows((row["text"], row["id"]) for row in ROWS)
    vectors = []
    for name in ("texts.jsonl", "texts.parquet", "texts.csv"):
        embed_file(HashModel(), tmp_path / name, tmp_path / f"{name}.index", EmbedConfig(block_rows=BLOCK))
        vectors.append(np.concatenate(list(Index.open(tmp_path / f"{name}.index").vectors())))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])
