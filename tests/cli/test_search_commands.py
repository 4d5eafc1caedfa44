"""`moembed embed, index, search` from the outside: the cosine stays the cosine, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import warnings
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Run
from moembed.embedder import Embedder
from moembed.files import locked
from moembed.folder.reranker import fresh_reranker
from moembed.reranker import Reranker
from moembed.search import embed as embed_module
from moembed.search.index_writer import write_index

TEXTS = ["owls hunt", "moles dig"]


@pytest.fixture
def saved_model(moe_model: Embedder, tmp_path: Path) -> Path:
    moe_model.save_pretrained(tmp_path / "mymodel")
    return tmp_path / "mymodel"


def rows_file(path: Path, *columns: dict[str, Any]) -> Path:
    rows = [{"text": text, **more} for text, more in zip(TEXTS, columns or ({}, {}), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("values", [(99, 1), ("high", "low"), (None, [1])])
def test_a_column_named_score_never_takes_the_place_of_the_cosine(
    run: Run, saved_model: Path, tmp_path: Path, values: tuple[Any, Any]
) -> None:
    first, second = ({"score": value, "row": 7, "page": 3} for value in values)
    source = rows_file(tmp_path / "a.jsonl", first, second)
    code, _, err = run("index", source, "--model", saved_model, "--out", tmp_path / "i", "--dtype", "float32")
    assert code == 0, err
    model = Embedder.from_pretrained(saved_model)
    cosine = (model.encode_query(["moles"]) @ model.encode_document(TEXTS).T)[0]

    code, out, err = run("search", tmp_path / "i", "moles", "--json")
    assert code == 0, err
    hits = json.loads(out)
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(cosine, reverse=True), abs=1e-4)
    for hit in hits:
        value = values[TEXTS.index(hit["text"])]
        assert hit == {
            "score": hit["score"],
            "text": hit["text"],
            "page": 3,
            "row": {"score": value, "row": 7},
        }

    code, out, err = run("search", tmp_path / "i", "moles")
    assert code == 0, err
    assert out.startswith(f"{cosine.max():.3f}  score: {values[int(cosine.argmax())]}")


def test_without_a_clash_a_hit_is_the_score_and_the_columns(
    run: Run, saved_model: Path, tmp_path: Path
) -> None:
    source = rows_file(tmp_path / "a.jsonl", {"row": 1, "rank": 2}, {"row": 3, "rank": 4})
    assert run("index", source, "--model", saved_model, "--out", tmp_path / "i")[0] == 0
    for hit in json.loads(run("search", tmp_path / "i", "owls", "--json")[1]):
        assert set(hit) == {"score", "text", "row", "rank"}
        assert isinstance(hit["row"], int)


def test_an_index_finds_its_model_from_any_folder(
    run: Run, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_file(tmp_path / "a.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("index", "a.jsonl", "--model", "mymodel", "--out", "elsewhere/i")[0] == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = run("search", "i", "owls", "--json")
    assert code == 0, err
    assert len(json.loads(out)) == 2

    saved_model.rename(tmp_path / "moved")
    code, out, err = run("search", "i", "owls")
    assert (code, out) == (2, "")
    assert err == (
        f"error: the index i was made with the model {saved_model}, which is not there any more: "
        "name the model with --model\n"
    )
    assert run("search", "i", "owls", "--model", "../moved")[0] == 0


def test_a_damaged_part_is_named_and_mended_by_the_same_command(
    run: Run, saved_model: Path, tmp_path: Path
) -> None:
    index = ("index", rows_file(tmp_path / "a.jsonl"), "--model", saved_model, "--out", tmp_path / "i")
    assert run(*index)[0] == 0
    (file,) = (tmp_path / "i").glob("*.npy")
    whole = file.read_bytes()
    for damaged in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1])):
        (file,) = (tmp_path / "i").glob("*.npy")
        file.write_bytes(damaged)
        code, out, err = run("search", tmp_path / "i", "owls")
        assert (code, out) == (2, "")
        assert f"{file.name} is damaged" in err
        assert "run the command that made the index again" in err
        with warnings.catch_warnings():  # pytest would count the note as a warning of its own
            warnings.simplefilter("always")
            code, out, err = run(*index)
        assert code == 0, err
        assert "(2 embedded now)" in out
        assert [made.read_bytes() for made in (tmp_path / "i").glob("*.npy")] == [whole]
    assert "nothing to do" in run(*index)[1]
    assert run("search", tmp_path / "i", "owls")[0] == 0


def test_two_processes_on_one_folder(run: Run, saved_model: Path, tmp_path: Path) -> None:
    source = rows_file(tmp_path / "a.jsonl")
    with locked(tmp_path / "i"):
        code, out, err = run("embed", source, "--model", saved_model, "--out", tmp_path / "i")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'i'} is in use by another process" in err
    assert run("embed", source, "--model", saved_model, "--out", tmp_path / "i")[0] == 0


def test_an_interruption_says_what_is_kept(
    run: Run, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rows_file(tmp_path / "a.jsonl")
    command = ("embed", source, "--model", saved_model, "--out", tmp_path / "v")
    real = embed_module.IndexWriter.append

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def write_then_stop(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        monkeypatch.setattr(embed_module.IndexWriter, "finish", stop)

    monkeypatch.setattr(embed_module.IndexWriter, "append", stop)
    assert run(*command) == (
        130, "", "stopped: nothing new was written; run the same command again to go on\n",
    )  # fmt: skip
    monkeypatch.setattr(embed_module.IndexWriter, "append", write_then_stop)
    code, out, err = run(*command)
    assert (code, out) == (130, "")
    assert err == f"stopped: 2 rows are kept in {tmp_path / 'v'}; run the same command again to go on\n"
    monkeypatch.undo()
    code, out, err = run(*command, "--json")
    assert code == 0, err
    assert (json.loads(out)["rows"], json.loads(out)["new_rows"]) == (2, 0)


def test_a_finished_index_survives_a_move(run: Run, saved_model: Path, tmp_path: Path) -> None:
    source = rows_file(tmp_path / "a.jsonl")
    assert run("index", source, "--model", saved_model, "--out", tmp_path / "i")[0] == 0
    shutil.move(tmp_path / "i", tmp_path / "j")
    hits = json.loads(run("search", tmp_path / "j", "owls", "--json")[1])
    assert np.isfinite([hit["score"] for hit in hits]).all()


def test_the_index_of_a_run_is_updated_by_the_name_of_the_run(
    run: Run, moe_model: Embedder, tmp_path: Path
) -> None:
    here = tmp_path / "run"
    moe_model.save_pretrained(here / "model")
    model = Embedder.from_pretrained(here / "model")
    rows = [{"text": text, "id": text[0]} for text in TEXTS]
    write_index(
        here / "index", model.encode_document(TEXTS), rows, space_id=model.space(role="document"),
        prompt_name=model.role_prompt("document"), column="text", model_path="../model", role="document",
    )  # fmt: skip
    source = tmp_path / "more.jsonl"
    source.write_text('{"text": "bats fly", "id": "b"}\n')
    code, _, err = run("index", source, "--out", here, "--dtype", "float32")
    assert code == 0, err
    code, out, err = run("index", "delete", here, "m", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 2), err
    here.rename(tmp_path / "moved")
    told = json.loads(run("index", "info", tmp_path / "moved", "--json")[1])
    assert (told["rows"], told["version"], told["model"]) == (2, 2, "../model")
    code, out, err = run("search", tmp_path / "moved", "bats", "--hybrid", "--json")
    assert code == 0, err
    assert {hit["id"] for hit in json.loads(out)} == {"o", "b"}


def test_index_filter_update_delete_and_hybrid_search(run: Run, saved_model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": n, "text": f"{animal} number {n}", "year": 2000 + n, "archived": n == 4}
        for n, animal in enumerate(["owl", "mole", "owl", "mole", "owl"])
    ]
    source = tmp_path / "docs.jsonl"

    def write() -> None:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def found(*options: object) -> list[int]:
        code, out, err = run("search", tmp_path / "i", "owl number 2", "--json", "-k", 9, *options)
        assert code == 0, err
        return [hit["id"] for hit in json.loads(out)]

    write()
    exactly = ("--out", tmp_path / "i", "--dtype", "float32")
    code, out, err = run("index", source, "--model", saved_model, *exactly)
    assert code == 0, err
    assert sorted(found()) == [0, 1, 2, 3, 4]
    where = "year >= 2001 and not archived = true and id in (2, 3, 4)"
    assert sorted(found("--where", where)) == [2, 3]
    assert found("--where", '{"column": "year", "op": "=", "value": 2003}') == [3]
    code, out, err = run("search", tmp_path / "i", "owl", "--where", "year = 1")
    assert (code, out) == (0, "")
    assert "no row of the index meets the condition" in err
    assert found("--hybrid", "--weight", "0")[0] == 2

    rows[1]["text"], rows[3]["year"] = "a mole that is new", 1
    rows.append({"id": 5, "text": "one more", "year": 2005, "archived": False})
    write()
    code, out, err = run("index", source, *exactly, "--json")
    assert code == 0, err
    told = {"added": 1, "changed": 2, "unchanged": 3, "new_rows": 2, "rows": 6, "others": 0}
    assert json.loads(out).items() >= told.items()
    code, out, _ = run("index", "delete", tmp_path / "i", "0", "4", "--json")
    assert (code, json.loads(out)["deleted"], json.loads(out)["rows"]) == (0, 2, 4)
    assert sorted(found()) == [1, 2, 3, 5]
    assert found("--where", "year = 1", "--hybrid") == [3]
    code, out, err = run("index", "delete", tmp_path / "i", "0")
    assert (code, out) == (2, "")
    assert "has no row with the id '0': nothing was deleted" in err
    assert run("index", "delete", tmp_path / "i", "1")[1] == f"{tmp_path / 'i'}: 1 deleted, 3 left\n"
    info = json.loads(run("index", "info", tmp_path / "i", "--json")[1])
    assert (info["rows"], info["version"], info["id_column"]) == (3, 4, "id")
    assert info["columns"] == {
        "id": "numbers",
        "text": "text",
        "year": "numbers",
        "archived": "true or false",
    }
    assert "archived (true or false)" in run("index", "info", tmp_path / "i")[1]


def test_columns_that_json_has_no_word_for_are_printed(run: Run, saved_model: Path, tmp_path: Path) -> None:
    columns = {
        "text": TEXTS,
        "when": [datetime(2024, 1, 31, 18, 30, tzinfo=timezone.utc), None],
        "day": [date(2024, 1, 31)] * 2,
        "price": [Decimal("1.50")] * 2,
        "raw": [b"owl"] * 2,
    }
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), source)
    assert run("index", source, "--model", saved_model, "--out", tmp_path / "i")[0] == 0
    code, out, err = run("search", tmp_path / "i", "owls", "--json", "--where", 'when >= "2024-01-01"')
    assert code == 0, err
    (hit,) = json.loads(out)
    told = {"when": "2024-01-31T18:30:00+00:00", "day": "2024-01-31", "price": "1.50", "raw": "b3ds"}
    assert {name: hit[name] for name in told} == told
    Reranker(fresh_reranker(saved_model)).save_pretrained(tmp_path / "reranker")
    code, out, err = run("rerank", tmp_path / "reranker", source, "--query", "owls", "--json")
    assert code == 0, err
    assert [row["row"]["day"] for row in json.loads(out)] == ["2024-01-31"] * 2
