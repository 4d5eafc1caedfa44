"""`moembed inspect`: the facts of a model, from its small files alone, and the load of its experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.runs.inspect import describe, expert_load
from moembed.types import RouterStats, UserError
from published import CONFIG, V2_SIZE
from tagged_models import tagged_model


@pytest.fixture
def folder(moe_model: Embedder, tmp_path: Path) -> Path:
    moe_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_texts(path: Path, texts: list[Any], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


# ---- facts ---------------------------------------------------------------------------------------


def test_the_published_config_alone_is_enough(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | V2_SIZE))
    code, out, err = run("inspect", tmp_path, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] == 475_292_928
    assert facts["active_parameters"] == 305_423_616
    assert facts["embedding_parameters"] == 250_048 * 768
    assert facts["expert_parameters"] == 6 * 8 * 2 * 3072 * 768
    assert facts["moe_layers"] == [1, 3, 5, 7, 9, 11]
    assert facts["router"] == {"kind": "token_choice", "top_k": 2, "normalize": None, "jitter": 0.0}
    assert facts["bytes_in_memory"]["float32"] == 4 * 475_292_928
    assert (facts["dtype_on_disk"], facts["bytes_on_disk"]) == (None, 0)
    assert "mean pooling is assumed" in err
    code, out, _ = run("inspect", tmp_path)
    assert code == 0
    assert "475,292,928" in out
    assert "305,423,616" in out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_of_the_loaded_model_and_of_the_file(
    dtype: str, folder: Path, tmp_path: Path
) -> None:
    model = Embedder.from_pretrained(folder, dtype=dtype, device="cpu")
    model.save_pretrained(tmp_path / "saved")
    facts = describe(tmp_path / "saved")
    loaded = sum(p.numel() * p.element_size() for p in model.encoder.parameters())
    assert facts["bytes_in_memory"][dtype] == loaded
    assert facts["dtype_on_disk"] == {"float32": "float32", "bfloat16": "bfloat16, float32"}[dtype]
    assert facts["bytes_on_disk"] == (tmp_path / "saved" / "model.safetensors").stat().st_size


def test_experts_are_counted_without_router_and_shared_parts(moe_model: Embedder, folder: Path) -> None:
    ends = ("_EFD", "_EDF", "_EF", "down_bias_ED")
    routed = sum(p.numel() for name, p in moe_model.encoder.named_parameters() if name.endswith(ends))
    assert describe(folder)["expert_parameters"] == routed > 0


def test_a_damaged_weight_file_is_named(run: Run, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")
    code, _, err = run("inspect", folder)
    assert code == 2
    assert "model.safetensors is missing, truncated or damaged" in err


# ---- load ----------------------------------------------------------------------------------------


def test_the_load_is_what_the_routers_did(
    run: Run, moe_model: Embedder, folder: Path, texts: list[str], tmp_path: Path
) -> None:
    source = write_texts(tmp_path / "texts.jsonl", texts)
    load = expert_load(moe_model, source, prompt_name="document")
    with torch.no_grad():
        batch = moe_model.tokenizer.batch(texts, prompt="document: ")
        router: list[RouterStats] = moe_model(batch).router
    assert (load["texts"], load["tokens"]) == (len(texts), len(batch.token_T))
    assert [layer["layer"] for layer in load["layers"]] == [1, 3]
    for found, stats in zip(load["layers"], router, strict=True):
        expected = stats.summary()
        assert found["dead_experts"] == expected["dead_experts"]
        block = moe_model.encoder.layers[found["layer"]].ffn
        assert found["expert_distance"] == pytest.approx(block.experts.distance(), abs=1e-6)
        assert found["load"] == pytest.approx(expected["load"], abs=1e-3)
        assert sum(found["load"]) == pytest.approx(1, abs=1e-3)
        assert found["entropy"] == pytest.approx(expected["entropy"], abs=1e-3)
        assert found["top_mass"] == pytest.approx(expected["top_mass"], abs=1e-3)
    code, out, _ = run("inspect", folder, "--texts", source)
    assert code == 0
    assert f"{len(texts)} texts, {load['tokens']} tokens" in out


def test_texts_that_are_cut_are_counted(run: Run, folder: Path, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.jsonl", ["worms", "worms " * 50, "owls " * 31])
    code, out, _ = run("inspect", folder, "--texts", source, "--role", "none", "--json")
    load = json.loads(out)["expert_load"]
    assert (code, load["texts"], load["truncated"], load["tokens"]) == (0, 3, 2, 3 + 32 + 32)
    code, out, _ = run("inspect", folder, "--texts", source, "--role", "none")
    assert "3 texts (2 cut: longer than the model reads), 67 tokens" in " ".join(out.split())


def test_column_and_role_choose_what_is_read(run: Run, folder: Path, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.jsonl", ["worms"], column="body")
    tokens = {}
    for role in ("none", "query"):
        code, out, _ = run("inspect", folder, "--texts", source, "--column", "body", "--role", role, "--json")
        assert code == 0
        tokens[role] = json.loads(out)["expert_load"]["tokens"]
    assert tokens == {"none": 3, "query": 5}


def test_the_blocks_of_a_file_add_up(
    moe_model: Embedder, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_texts(tmp_path / "texts.jsonl", texts)
    whole = expert_load(moe_model, source)
    monkeypatch.setattr("moembed.runs.inspect.BLOCK_ROWS", 3)
    monkeypatch.setattr("moembed.runs.inspect.BATCH_TOKENS", 10)
    for found, expected in zip(expert_load(moe_model, source)["layers"], whole["layers"], strict=True):
        assert found.keys() == expected.keys()
        assert all(found.pop(key) == expected.pop(key) for key in ("experts", "kinds"))
        assert all(found[key] == pytest.approx(expected[key], abs=1e-3) for key in expected)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no rows"),
        ([3], "row 1: column 'text' is of type int"),
        ([None], "row 1: column 'text' is missing"),
    ],
)
def test_texts_that_are_none_are_refused(
    rows: list[Any], complaint: str, moe_model: Embedder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        expert_load(moe_model, write_texts(tmp_path / "texts.jsonl", rows))


def test_a_dense_model_has_no_load(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no experts"):
        expert_load(make_model(), write_texts(tmp_path / "texts.jsonl", ["worms"]))


def test_roles_are_tags_without_a_prompt(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    model = tagged_model(make_model(num_layers=2, prompts={}).parts(), tags=["query", "document"])
    model.save_pretrained(tmp_path / "tagged")
    source = write_texts(tmp_path / "texts.jsonl", ["worms"])
    loads = {}
    for role in ("query", "document"):
        code, out, err = run("inspect", tmp_path / "tagged", "--texts", source, "--role", role, "--json")
        assert code == 0, err
        loads[role] = json.loads(out)["expert_load"]["layers"][0]["load"]
    assert loads == {"query": [1.0, 0.0], "document": [0.0, 1.0]}
