"""A model upcycled to LoRA experts is the dense one; stored, served, exported and merged it stays itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import MakeModel, randomise
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.experiment.outcome import expert_distance
from moembed.export.gguf.graph import as_graph
from moembed.export.nomic import to_nomic
from moembed.export.onnx.export import export_onnx
from moembed.inference.member import member
from moembed.model.encoder import Encoder, initialise, num_parameters
from moembed.runs.merge import MergePlan, merge
from moembed.training.optim import OptimConfig, adamw
from moembed.types import UserError
from moembed.weights.lora_experts import full_experts
from moembed.weights.upcycle import UpcycleConfig, upcycle

LORA = {"rank": 3, "alpha": 6.0}


def upcycled(model: Embedder, **options: Any) -> Embedder:
    parts = model.parts()
    values = {"num_experts": 4, "lora": LORA} | options
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig.model_validate(values))
    return Embedder(replace(parts, spec=spec, state=state)).eval()


def trained(make_model: MakeModel, seed: int = 1, dense: dict[str, Any] | None = None, **options: Any) -> Any:
    """One whose factors are no longer zeros."""
    model = upcycled(make_model(**(dense or {})), **options)
    randomise(model.encoder, seed)
    return Embedder(model.parts()).eval()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ffn_bias", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_it_starts_as_the_dense_model(
    gated: bool, ffn_bias: bool, every: int, make_model: MakeModel, texts: list[str]
) -> None:
    dense = make_model(gated=gated, ffn_bias=ffn_bias)
    model = upcycled(dense, every=every, num_shared_experts=1)
    assert np.abs(model.encode(texts) - dense.encode(texts)).max() <= 1e-5
    firsts = [p for name, p in model.encoder.named_parameters() if "_A_E" in name]
    assert all((first[0] != first[1]).any() for first in firsts)
    seconds = [p for name, p in model.encoder.named_parameters() if "_B_E" in name]
    assert len(firsts) == len(seconds) == (3 if gated else 2) * len(model.encoder.spec.moe_layers)
    assert not any(second.any() for second in seconds)


def test_a_fresh_encoder_starts_with_equal_experts(make_model: MakeModel) -> None:
    encoder = Encoder(upcycled(make_model()).encoder.spec)
    initialise(encoder)
    assert encoder.layers[1].ffn.experts.distance() == 0
    assert encoder.layers[1].ffn.up_A_ERD.any()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", ["each", "none"])
def test_full_experts_are_the_same_model(
    gated: bool, bias: str, make_model: MakeModel, texts: list[str]
) -> None:
    model = trained(make_model, dense={"gated": gated}, bias=bias)
    parts = model.parts()
    spec, state = full_experts(parts.spec, parts.state)
    full = Embedder(replace(parts, spec=spec, state=state)).eval()
    assert spec.moe is not None
    assert spec.moe.lora is None
    assert np.abs(full.encode(texts) - model.encode(texts)).max() <= 1e-5
    assert set(parts.state) == set(model.encoder.state_dict())  # the input is left alone
    again, same = full_experts(spec, state)
    assert again == spec
    assert all(same[name] is state[name] for name in state)
    distance = expert_distance(parts.spec, parts.state)
    assert distance > 0
    assert distance == pytest.approx(expert_distance(spec, state))


def test_stored_and_served_it_stays_itself(make_model: MakeModel, texts: list[str], tmp_path: Path) -> None:
    model = trained(make_model)
    vectors = model.encode(texts)
    with torch.no_grad():  # the encoder as it trains, and the packed engine that served
        batch = model.tokenizer.rows(texts[:1])[0]
        states, _ = model.encoder(torch.tensor(batch[0]), [len(batch[0])])
    pooled_D = states[4].mean(0)
    assert np.abs(vectors[0] - (pooled_D / pooled_D.norm()).numpy()).max() < 1e-5
    model.save_pretrained(tmp_path / "lora")
    again = Embedder.from_pretrained(tmp_path / "lora", device="cpu")
    assert again.encoder.spec == model.encoder.spec
    assert (again.encode(texts) == vectors).all()
    part = Embedder(member(model.parts(), View(layers=2))).eval()
    assert np.abs(part.encode(texts) - model.vectors(texts, view=View(layers=2)).array).max() < 1e-5
    assert part.num_parameters() < num_parameters(model.encoder.spec)


def test_exports_write_full_experts_or_name_what_they_cannot(make_model: MakeModel, tmp_path: Path) -> None:
    parts = trained(make_model).parts()
    assert export_onnx(parts, tmp_path / "onnx")["max_error"] < 1e-4
    published = {"bias": "shared", "router": {"normalize": None}}
    parts = trained(make_model, dense={"position": "rope"}, **published).parts()
    nomic = to_nomic(parts)
    before, after = (Embedder(x).eval().encode(["moles eat worms"]) for x in (parts, nomic))
    assert np.abs(before - after).max() < 1e-5
    assert as_graph(parts, False)[1].spec.moe.lora is None
    with pytest.raises(UserError, match="biases inside its experts"):
        to_nomic(trained(make_model, dense={"position": "rope"}).parts())


def test_merged_with_itself_it_is_itself(make_model: MakeModel, texts: list[str], tmp_path: Path) -> None:
    model = trained(make_model)
    model.save_pretrained(tmp_path / "a")
    merge([str(tmp_path / "a")] * 2, tmp_path / "both", MergePlan())
    both = Embedder.from_pretrained(tmp_path / "both", device="cpu")
    assert both.encoder.spec.moe.lora is None
    assert np.abs(both.encode(texts) - model.encode(texts)).max() < 1e-5


def test_the_rate_of_experts_is_that_of_the_factors(make_model: MakeModel) -> None:
    encoder = upcycled(make_model()).encoder
    groups = adamw(encoder, OptimConfig(expert_learning_rate=1e-3)).param_groups
    own = {id(parameter) for group in groups if "times" in group for parameter in group["params"]}
    names = {
        name.rpartition(".")[2] for name, parameter in encoder.named_parameters() if id(parameter) in own
    }
    assert names == {"up_A_ERD", "up_B_EFR", "down_A_ERF", "down_B_EDR"}


@pytest.mark.parametrize("change", [{"init": "noise"}, {"init": "cluster"}, {"granularity": 2}])
def test_what_changes_full_experts_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="lora experts share one block: leave one out"):
        validate(UpcycleConfig, {"lora": LORA} | change)
