"""Adapters learn and nothing else of the encoder does; merged, they are the same model, in a plain folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import MakeModel, NewModel, Run
from moembed import TrainConfig, UserError
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.read import read_folder
from moembed.model.adapters import plain
from moembed.moe.router import RouterConfig
from moembed.runs.train import load_recipe, prepared
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.lora import Adapters, matrices
from moembed.training.optim import OptimConfig, adamw
from moembed.training.settings import LORA_TARGETS, LoraConfig
from training_runs import PAIRS, assert_same_weights, interrupt_at, metrics, run, settings

EXPERTS = FlatMoE(layers=(1,), num_experts=4, num_shared_experts=1, router=RouterConfig(top_k=2))
ALL = {"rank": 2, "targets": ["attention", "ffn", "experts", "router"]}


def adapt(model: Embedder, **options: Any) -> Adapters:
    adapters = Adapters(model.encoder, LoraConfig.model_validate(options), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.normal_(0, 0.3, generator=generator)
    return adapters


def test_merged_is_unmerged_and_a_plain_folder(
    make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    model = make_model(num_layers=2, moe=EXPERTS)
    before, names = model.encode(texts), set(model.parts().state)
    space = model.space()
    Adapters(model.encoder, LoraConfig.model_validate(ALL), seed=0)
    np.testing.assert_array_equal(model.encode(texts), before)  # B starts at zero
    other = make_model(num_layers=2, moe=EXPERTS)
    adapt(other, **ALL)
    rows = other.tokenizer.rows(texts)[0]
    from moembed.packing import pack

    with torch.no_grad():
        unmerged = other(pack(rows)).vector_BM.numpy()
    np.testing.assert_allclose(other.embed(rows), unmerged, atol=1e-5)  # what serves is merged and packed
    assert np.abs(unmerged - model.embed(rows)).max() > 1e-2
    other.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(saved.embed(rows), unmerged, atol=1e-5)
    assert set(read_folder(tmp_path / "saved").state) == set(other.parts().state) == names
    assert saved.space() == other.space() != space


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_a_delta_is_its_formula(make_model: MakeModel, alpha: float | None) -> None:
    model = make_model(num_layers=2, moe=EXPERTS)
    own = {name: tensor.clone() for name, tensor in model.parts().state.items()}
    adapters = adapt(model, **ALL, alpha=alpha)
    found = {name.split(".parametrizations.")[0] + "." + name.split(".parametrizations.")[1].split(".")[0]: {}
             for name in adapters.parameters}  # type: dict[str, dict[str, torch.Tensor]]  # fmt: skip
    for name, parameter in adapters.parameters.items():
        where, rest = name.split(".parametrizations.")
        found[f"{where}.{rest.split('.')[0]}"]["A" if "lora_A" in name else "B"] = parameter.detach()
    merged = dict(plain(model.encoder).named_parameters())
    scale = (4 if alpha is None else alpha) / 2
    assert {name for name in merged if not torch.equal(merged[name], own[name])} == set(found)
    for name, parts in found.items():
        weight = own[name]
        experts = weight if weight.ndim == 3 else weight[None]
        for e in range(len(experts)):
            a = parts["A"].reshape(len(experts), 2, -1)[e]  # (rank, in)
            b = parts["B"].reshape(parts["B"].shape[0], 2, len(experts))[:, :, e]  # (out, rank)
            expected = experts[e] + scale * b @ a
            got = merged[name] if weight.ndim == 2 else merged[name][e]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_run_moves_nothing_but_adapters(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model()
    own = {name: tensor.clone() for name, tensor in model.parts().state.items()}
    run(settings(lora={"rank": 2}, steps=3, loss={"bias_rate": 0.0}), model, tmp_path / "run")
    for name, tensor in model.encoder.named_parameters():
        if ".lora_" in name:
            assert tensor.requires_grad
            continue
        assert not tensor.requires_grad
        assert tensor.grad is None
        assert torch.equal(tensor, own[name.replace("parametrizations.", "").removesuffix(".original")]), name
    saved = read_folder(tmp_path / "run" / "model").state
    changed = {name for name in own if not torch.equal(own[name], saved[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "up_EFD", "down_EDF"}
    assert not any("router" in name or "norm" in name or "word" in name for name in changed)


def test_a_resumed_run_is_the_whole_run(
    new_model: NewModel, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(lora=ALL, steps=6, loss={"learn_temperature": True})
    run(config, new_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(4, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config, new_model(), tmp_path / "cut")
    other = make_model(seed=9, num_layers=2, dropout=0.1, moe=FlatMoE(layers=(1,), num_experts=4))
    with pytest.raises(UserError, match="the base changed since the run began"):
        run(config, other, tmp_path / "cut", resume=True)
    run(config, new_model(), tmp_path / "cut", resume=True)
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "cut" / "model")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_the_seed_makes_the_adapters_and_leaves_the_run_alone(make_model: MakeModel) -> None:
    found = []
    for chance in (1, 2):
        torch.manual_seed(chance)
        model = make_model(num_layers=1)
        state = torch.get_rng_state()
        found.append(Adapters(model.encoder, LoraConfig(), seed=5).state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0]["base"] == found[1]["base"]
    assert all(
        torch.equal(found[0]["tensors"][name], found[1]["tensors"][name]) for name in found[0]["tensors"]
    )


@pytest.mark.parametrize(
    ("changes", "target", "said"),
    [
        ({}, "experts", "names experts, and this model has none that learn: it has attention, ffn"),
        ({}, "router", "names router, and this model has none"),
        (
            {"moe": FlatMoE(layers=(0,), num_experts=2, router=RouterConfig(kind="hash", top_k=1))},
            "router",
            "router",
        ),
        (
            {"moe": FlatMoE(layers=(0,), num_experts=2)},
            "ffn",
            "names ffn, and this model has none that learn",
        ),
    ],
)
def test_a_group_without_matrices_is_named(
    changes: dict[str, Any], target: Any, said: str, make_model: MakeModel
) -> None:
    model = make_model(num_layers=1, **changes)
    with pytest.raises(UserError, match=said):
        Adapters(model.encoder, LoraConfig(targets=(target, "attention")), 0)
    assert all(parameter.requires_grad for parameter in model.encoder.parameters())


def test_groups_defaults_and_the_sentence(make_model: MakeModel) -> None:
    model = make_model(num_layers=2, moe=EXPERTS)
    groups = matrices(model.encoder)
    assert {name: len(groups[name]) for name in LORA_TARGETS} == {
        "attention": 4,
        "ffn": 4,  # of the dense layer, and of the shared expert
        "experts": 2,
        "router": 1,
    }
    total = sum(parameter.numel() for parameter in model.encoder.parameters())
    adapters = Adapters(model.encoder, LoraConfig(rank=1), 0)
    learned = sum(parameter.numel() for parameter in adapters.parameters.values())
    assert adapters.sentence == (
        "lora: rank 1 in matrices of the encoder, 4 of attention, 4 of ffn, 2 of experts: "
        f"{learned:,} parameters learn, its own {total:,} stay"
    )
    groups_of_optimiser = adamw(model, OptimConfig(expert_learning_rate=1e-3)).param_groups
    assert sum(p.numel() for group in groups_of_optimiser for p in group["params"]) == learned
    experts = sum(p.numel() for group in groups_of_optimiser if "times" in group for p in group["params"])
    assert experts == sum(p.numel() for name, p in adapters.parameters.items() if "_E" in name) > 0
    with pytest.raises(UserError, match="no routers that learn"):
        adamw(model, OptimConfig(router_learning_rate=1e-3))


def test_reranking_and_masked_words_learn_by_adapters_too(
    run: Run, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train_reranker.write_report", lambda run, title: run)
    make_model(num_layers=1).save_pretrained(tmp_path / "base")
    rows = [{"query": p.query, "document": p.document, "text": f"{p.query} {p.document}"} for p in PAIRS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [f"base={tmp_path / 'base'}", f"data={tmp_path / 'rows.jsonl'}", "steps=2", "lora.rank=2"]
    common += ["batch_size=4", "optim.learning_rate=0.01", "optim.warmup_steps=1", "precision=float32"]
    (tmp_path / "empty.yaml").write_text("{}")
    base = read_folder(tmp_path / "base").state
    commands = {
        "train": ["task=reranking", "random_negatives=2"],
        "pretrain": ["sequence_length=12", "packed=false", "small_languages=skip"],
    }
    for command, more in commands.items():
        out = tmp_path / command
        code, _, err = run(command, tmp_path / "empty.yaml", *common, *more, f"out={out}")
        assert code == 0, err
        assert "lora: rank 2 in matrices of the encoder, 2 of attention, 2 of ffn: " in err
        state = read_folder(out / "model").state if command == "pretrain" else reranker_state(out)
        changed = {name for name in base if not torch.equal(base[name], state[name])}
        assert changed == {
            f"layers.0.{name}.weight" for name in ("attention.qkv", "attention.out", "ffn.up", "ffn.down")
        }


def test_a_table_of_words_that_has_to_learn_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    make_model(num_layers=1).save_pretrained(tmp_path / "base")
    rows = [{"query": pair.query, "document": pair.document} for pair in PAIRS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "base": str(tmp_path / "base"), "data": str(tmp_path / "rows.jsonl"), "out": str(tmp_path / "run"),
        "steps": 1, "batch_size": 8, "lora": {"rank": 2},
    }  # fmt: skip
    for method in ("hash", "quotient_remainder", "dpq"):
        with pytest.raises(UserError, match=rf"vocabulary.method {method} has to be trained, and with lora"):
            validate(TrainConfig, values | {"vocabulary": {"method": method, "ratio": 0.5}})
    config = validate(TrainConfig, values | {"vocabulary": {"method": "int8"}})
    told: list[str] = []
    prepared(config, told.append)
    assert [line for line in told if "compressed (int8)" in line and line.endswith("it stays as it is")]
    told = []
    prepared(config.model_copy(update={"lora": None}), told.append)
    assert [line for line in told if "compressed (int8)" in line and "its floats learn" in line]


def reranker_state(out: Path) -> dict[str, torch.Tensor]:
    from moembed.folder.reranker import read_reranker

    return read_reranker(out / "model").state


def test_its_recipe_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", "data")
    recipe = Path(__file__).parents[2] / "recipes" / "systems" / "lora.yaml"
    config = load_recipe(recipe, [])
    assert config.lora == LoraConfig(rank=8, targets=("attention", "ffn", "experts"))
    assert ContrastiveConfig(steps=1).lora is None
