"""Every command from the outside: what it prints, what it leaves on disk, and how it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run
from moembed.embedder import Embedder
from moembed.search.index import Index


@pytest.fixture
def model(moe_model: Embedder, tmp_path: Path) -> Path:
    moe_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def dense(make_model: Any, tmp_path: Path) -> Path:
    make_model(prompts={}).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"query": f"where is mole {i}?", "document": f"mole {i} is in tunnel {i * 7 % 40}"} for i in range(40)
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "moles"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(
        folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": f"mole {i}"} for i in range(9)]
    )
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"where is mole {i}?"} for i in range(9)])
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(9))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(tmp_path: Path, base: Path, data: Path, **more: Any) -> Path:
    values = {"base": str(base), "data": str(data), "out": str(tmp_path / "run"), "steps": 4, "batch_size": 8}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values | {"save_every": 2, "precision": "float32"} | more))
    return path


# ---- what works ----


def test_inspect_tells_the_facts(run: Run, model: Path, moe_model: Embedder) -> None:
    code, out, _ = run("inspect", model, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] == moe_model.num_parameters()
    assert facts["active_parameters"] == moe_model.num_parameters(active=True)
    assert facts["moe_layers"] == [1, 3]
    assert facts["prompts"] == {"query": "query: ", "document": "document: "}
    assert facts["bytes_on_disk"] == (model / "model.safetensors").stat().st_size
    code, out, _ = run("inspect", model)
    assert code == 0
    assert f"{facts['parameters']:,}" in out


def test_inspect_needs_no_weights(run: Run, model: Path) -> None:
    (model / "model.safetensors").unlink()
    code, out, _ = run("inspect", model, "--json")
    assert code == 0
    assert json.loads(out)["bytes_on_disk"] == 0


def test_upcycle_by_tags_and_by_clusters(
    run: Run, dense: Path, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = run(
        "upcycle", dense, tmp_path / "tags", "--router", "tag", "--tag", "de,nl", "--tag", "fr"
    )
    assert (code, error) == (0, "")
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    where = ("--texts", rows)
    refused(run("inspect", tmp_path / "tags", *where), "known: de, fr, nl", "MOEMBED_TAG")
    monkeypatch.setenv("MOEMBED_TAG", "nl")
    code, out, _ = run("inspect", tmp_path / "tags", *where, "--json")
    assert all(layer["load"] == [1.0, 0.0] for layer in json.loads(out)["expert_load"]["layers"])
    refused(run("inspect", dense, *where), "does not choose experts by tags: unset it")
    monkeypatch.delenv("MOEMBED_TAG")
    two = ("--router", "tag", "--tag", "de,nl", "--tag", "fr")
    refused(run("upcycle", dense, tmp_path / "no", *two, "--experts", 3), "num_experts is 3")
    clusters = ("--init", "cluster", "--experts", 3)
    refused(run("upcycle", dense, tmp_path / "no", *clusters), "looks at the states of texts")
    refused(run("upcycle", dense, tmp_path / "no", *where), "--texts are for --init cluster")
    code, out, _ = run("upcycle", dense, tmp_path / "c", *clusters, "--router", "centroid", *where, "--json")
    made = Embedder.from_pretrained(tmp_path / "c", device="cpu").encoder.spec.moe
    assert (code, made.router.kind, made.num_experts) == (0, "centroid", 3)


def test_upcycle_keeps_the_vectors(run: Run, dense: Path, tmp_path: Path, texts: list[str]) -> None:
    code, out, _ = run("upcycle", dense, tmp_path / "moe", "--experts", 4, "--json")
    assert code == 0
    assert json.loads(out)["parameters"] > json.loads(out)["active"]
    made = Embedder.from_pretrained(tmp_path / "moe")
    np.testing.assert_allclose(made.encode(texts), Embedder.from_pretrained(dense).encode(texts), atol=1e-5)


def test_train_then_resume_continues(run: Run, dense: Path, pairs: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, dense, pairs, upcycle={"num_experts": 4})
    code, out, err = run("train", file, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 4
    assert (tmp_path / "run" / "recipe.yaml").exists()
    assert Embedder.from_pretrained(tmp_path / "run").encode(["mole"]).shape == (1, 16)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert len(lines.splitlines()) == 4

    code, _, err = run("train", file)
    assert code == 2
    assert "already exists" in err
    code, out, _ = run("train", file, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["steps"] == 4
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines


def test_an_end_on_the_command_line_takes_the_place_of_the_recipes(
    run: Run, dense: Path, pairs: Path, tmp_path: Path
) -> None:
    code, out, err = run("train", recipe(tmp_path, dense, pairs), "epochs=2", "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 2 * (40 // 8)
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


def test_a_saved_recipe_runs_again(run: Run, dense: Path, pairs: Path, tmp_path: Path) -> None:
    assert run("train", recipe(tmp_path, dense, pairs))[0] == 0
    code, _, err = run("train", tmp_path / "run" / "recipe.yaml", f"out={tmp_path / 'again'}", "--json")
    assert code == 0, err
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("run", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_index_then_search_finds_the_text(run: Run, model: Path, tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "notes.jsonl", [{"text": t, "page": i} for i, t in enumerate(["owls", "moles"])]
    )
    code, out, err = run("index", source, "--model", model, "--out", tmp_path / "notes", "--dtype", "float32")
    assert code == 0, err
    assert "moembed search" in out
    code, out, _ = run("search", tmp_path / "notes", "moles", "-k", 1, "--json")
    assert code == 0
    hit = json.loads(out)[0]
    assert set(hit) == {"score", "text", "page"}
    expected = Embedder.from_pretrained(model)
    score = expected.encode_query(["moles"]) @ expected.encode_document(["owls", "moles"]).T
    assert hit["score"] == pytest.approx(score.max(), abs=1e-4)
    assert hit["page"] == int(score.argmax())
    assert run("search", tmp_path / "notes", "moles")[1].count("\n") >= 2


def test_embed_twice_does_the_work_once(run: Run, model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", [{"body": ""}, {"body": "an owl"}])
    arguments = (
        "embed",
        source,
        "--model",
        model,
        "--out",
        tmp_path / "v",
        "--column",
        "body",
        "--role",
        "query",
    )
    code, out, _ = run(*arguments, "--dim", 8, "--dtype", "float32", "--json")
    assert code == 0
    assert json.loads(out)["new_rows"] == 2
    vectors = next(Index.open(tmp_path / "v").vectors())
    expected = Embedder.from_pretrained(model).encode(["", "an owl"], prompt_name="query", dim=8)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    code, out, _ = run(*arguments, "--dim", 8, "--dtype", "float32", "--json")
    assert json.loads(out)["new_rows"] == 0


def test_evaluate_compares_models_on_tasks(
    run: Run, model: Path, dense: Path, task: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        "evaluate", model, dense, "bm25", "--tasks", task, task, "--metrics", "ndcg@10,mrr@10", "--json",
        "--out", tmp_path / "scores.json",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert answer == json.loads((tmp_path / "scores.json").read_text())
    assert answer["systems"] == ["static", str(model), str(dense), "bm25"]
    assert answer["reference"] == "bm25"
    moles = answer["tasks"]["moles"]
    assert moles["metrics"]["bm25"]["ndcg@10"]["value"] == pytest.approx(1.0)
    assert moles["metrics"]["bm25"]["ndcg@10"]["low"] <= moles["metrics"]["bm25"]["ndcg@10"]["high"]
    assert moles["differences"][str(model)]["mrr@10"]["mean"] <= 0
    cost = answer["cost"]
    assert cost[str(model)]["active_parameters"] < cost[str(model)]["parameters"]
    assert answer["routers"].keys() == {str(model)}  # the only one that has experts
    code, out, _ = run("evaluate", "bm25", "--tasks", task)
    assert code == 0
    assert "1.000" in out


def test_evaluate_several_kinds_of_tasks_then_compare(
    run: Run, model: Path, dense: Path, task: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "sts-en.csv"
    pairs.write_text(
        "sentence1,sentence2,score\nmoles dig,a mole digs,5\nan owl,worms,1\nowls,an owl hunts,4\n"
    )
    code, out, err = run(
        "evaluate", model, dense, "--tasks", task, pairs, "--keep", tmp_path / "kept", "--no-baselines",
        "--dims", 8, "--codecs", "float32,binary", "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert code == 0, err
    for word in ("nDCG@10", "Spearman", "mean of all", "smaller vectors", "binary"):
        assert word in out
    names = [re.sub("[^A-Za-z0-9._-]+", "-", str(name)).strip("-.") for name in (model, dense)]
    files = [tmp_path / "kept" / f"{name}.parquet" for name in names]
    code, again, err = run("compare", *files, "--json")
    assert code == 0, err
    assert json.loads(again)["tasks"].keys() == {"moles", "sts-en"}

    code, cached, err = run("evaluate", model, "--tasks", pairs, "--cache", tmp_path / "cache", "--json")
    assert code == 0, err
    assert "texts_per_second" not in json.loads(cached)["cost"][str(model)]  # nothing had to be embedded


def test_evaluate_finds_the_base_of_a_run(
    run: Run, model: Path, dense: Path, task: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text(f"base: {dense}\n")
    code, out, err = run("evaluate", tmp_path / "run", "--tasks", task, "--json")
    assert code == 0, err
    assert json.loads(out)["systems"] == ["bm25", "static", "base", str(tmp_path / "run")]
    code, out, err = run("evaluate", tmp_path / "run", "base", "--tasks", task, "--no-baselines", "--json")
    assert code == 0, err
    assert json.loads(out)["reference"] == "base"
    refused(run("evaluate", dense, "base", "--tasks", task), "'base'", "tells")


def test_evaluate_on_a_sample_tells_how_well_it_ranks(
    run: Run, model: Path, task: Path, tmp_path: Path
) -> None:
    code, out, err = run("evaluate", model, "--tasks", task, "--sample", 2, "--json")
    assert code == 0, err
    assert "rank correlation" in err
    assert json.loads(out)["tasks"]["moles"]["items"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--tasks", "--mteb")),
        (("--tasks", "{task}", "--codecs", "float64"), ("float64", "int8")),
        (("--tasks", "{task}", "--dims", "none"), ("--dims", "none")),
        (("--tasks", "{task}", "--dims", "100000"), ("dim 100000",)),
        (("--tasks", "{task}", "--metrics", "ndgc"), ("ndgc", "ndcg")),
    ],
)
def test_what_evaluate_refuses(
    run: Run, model: Path, task: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(run("evaluate", model, *(a.format(task=task) for a in arguments)), *words)


def test_export_onnx_then_run_it(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run("export", model, tmp_path / "onnx", "--format", "onnx", "--json")
    assert code == 0, err
    assert json.loads(out)["max_error"] < 1e-4
    assert (tmp_path / "onnx" / "onnx" / "model.onnx").exists()
    code, out, _ = run("export", model, tmp_path / "onnx", "--format", "onnx", "--int8", "--overwrite")
    assert code == 0
    assert "cosine 0.9" in out


def test_export_gguf_of_a_dense_model(run: Run, dense: Path, tmp_path: Path) -> None:
    arguments = ("export", dense, tmp_path / "dense.gguf", "--format", "gguf", "--type", "f32")
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    assert json.loads(out)["architecture"] == "bert"
    assert (tmp_path / "dense.gguf").read_bytes()[:4] == b"GGUF"
    refused(run(*arguments), "already exists")


# ---- what is refused: one sentence, exit code 2 ----


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in last


def test_a_folder_that_is_no_model(run: Run, tmp_path: Path) -> None:
    refused(run("inspect", tmp_path), "config.json", str(tmp_path))
    refused(run("inspect", tmp_path / "nothing"), "does not exist")


def test_unknown_config_keys_name_the_nearest(run: Run, dense: Path, pairs: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, dense, pairs)
    refused(run("train", file, "optim.learning_rat=1"), "optim.learning_rat", "'optim.learning_rate'")
    refused(run("train", file, "upcycle.router.topk=1"), "'upcycle.router.top_k'")
    refused(run("train", file, "nonsense"), "key=value")
    refused(run("train", tmp_path / "no.yaml"), "no such recipe")
    refused(run("train", file, "minutes=1", "epochs=1"), "exactly one of steps, epochs and minutes")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"query": "a"}', ("document", "line 2")),
        ('{"query": "", "document": "b"}', ("query", "line 2", "empty")),
        ('{"query": 3, "document": "b"}', ("query", "line 2", "not a string")),
        ("{", ("line 2",)),
    ],
)
def test_bad_rows(run: Run, dense: Path, tmp_path: Path, line: str, words: tuple[str, ...]) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"query": "a", "document": "b"}\n' + line + "\n")
    refused(run("train", recipe(tmp_path, dense, data)), "bad.jsonl", *words)
    assert not (tmp_path / "run").exists()


def test_bad_data_files(run: Run, dense: Path, tmp_path: Path) -> None:
    refused(run("train", recipe(tmp_path, dense, tmp_path / "missing.jsonl")), "missing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(run("train", recipe(tmp_path, dense, empty)), "empty.jsonl")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"query": "é", "document": "b"}\n'.encode("latin-1"))
    refused(run("train", recipe(tmp_path, dense, latin)), "latin.jsonl", "UTF-8")


def test_fewer_pairs_than_a_batch(run: Run, dense: Path, pairs: Path, tmp_path: Path) -> None:
    refused(run("train", recipe(tmp_path, dense, pairs, batch_size=64)), "40 rows", "64")


def test_resume_without_a_run(run: Run, dense: Path, pairs: Path, tmp_path: Path) -> None:
    refused(run("train", recipe(tmp_path, dense, pairs), "--resume"), "nothing to resume")


def test_an_index_of_another_space(run: Run, model: Path, dense: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "notes.jsonl", [{"text": "owls"}])
    run("index", source, "--model", model, "--out", tmp_path / "notes", "--dtype", "float32")
    refused(run("search", tmp_path / "notes", "owls", "--model", dense), "space", "re-index")
    refused(run("search", tmp_path / "no-index", "owls"), "no-index")


def test_a_missing_text_column(run: Run, model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "notes.jsonl", [{"body": "owls"}])
    refused(run("index", source, "--model", model, "--out", tmp_path / "notes"), "'text'", "'body'")
    assert not (tmp_path / "notes").exists()


def test_overwrite_touches_only_what_moembed_made(run: Run, dense: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    refused(run("upcycle", dense, precious), "already exists")
    refused(run("upcycle", dense, precious, "--overwrite"), "leaves it alone")
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert run("upcycle", dense, tmp_path / "moe")[0] == 0
    assert run("upcycle", dense, tmp_path / "moe", "--overwrite")[0] == 0


def test_a_model_with_experts_is_not_upcycled_again(run: Run, model: Path, tmp_path: Path) -> None:
    refused(run("upcycle", model, tmp_path / "more"), "experts already")


def test_a_base_whose_weights_are_not_the_published_ones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moembed.folder.bases.MINILM_SHA256", "0" * 64)
    refused(run("inspect", "minilm"), "SHA-256", "not used")


def test_a_base_that_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moembed.folder.bases.MINILM_PACKAGE", "no-such-package")
    refused(run("inspect", "minilm"), "moembed[demo]")


def test_two_tasks_of_one_name(run: Run, task: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copytree(task, tmp_path / "other" / task.name)
    refused(run("evaluate", "bm25", "--tasks", task, tmp_path / "other" / task.name), "same name")


def test_exports_that_cannot_be(run: Run, model: Path, tmp_path: Path) -> None:
    refused(run("export", model, tmp_path / "x", "--format", "nomic"), "absolute positions")
    refused(run("export", model, tmp_path / "x.gguf", "--format", "gguf"), "absolute positions")
    refused(run("export", model, tmp_path / "x", "--format", "nomic", "--int8"), "--int8")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.gguf").exists()
