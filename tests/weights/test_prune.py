"""Without the experts that texts use least: where no token visits them, nothing changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.encoding import role_prompt
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.moe.router import RouterConfig
from moembed.runs.inspect import expert_load
from moembed.types import RouterStats, UserError
from moembed.weights.prune import least_used, prune, require_prunable, shares
from moembed.weights.upcycle import UpcycleConfig, upcycle

SAME: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # sums of equal values in another order


def upcycled(dense: Embedder, options: UpcycleConfig) -> Parts:
    parts = dense.parts()
    spec, state = upcycle(parts.spec, parts.state, options)
    return replace(parts, spec=spec, state=state)


def vectors(parts: Parts, texts: list[str]) -> np.ndarray:
    return Embedder(parts).eval().encode(texts)


def test_experts_that_are_never_chosen_leave_no_trace(make_model: MakeModel, texts: list[str]) -> None:
    """A selection bias keeps tokens away from two experts of each layer, other ones in each."""
    router = RouterConfig(top_k=2, normalize=1.0, selection_bias=True)
    options = UpcycleConfig(num_experts=6, every=2, init="drop", router=router)
    parts = upcycled(make_model(num_layers=4), options)
    dropped = {layer: [number, number + 3] for number, layer in enumerate(parts.spec.moe_layers)}
    assert len(dropped) == 2
    for layer, experts in dropped.items():
        bias_E = torch.zeros(6)
        bias_E[experts] = -10.0
        parts.state[f"layers.{layer}.ffn.router.bias_E"] = bias_E
    small = prune(parts, dropped)
    assert small.spec.moe is not None
    assert small.spec.moe.num_experts == 4
    np.testing.assert_allclose(vectors(small, texts), vectors(parts, texts), **SAME)
    wrong = prune(parts, {layer: [experts[0] + 1, experts[1] + 1] for layer, experts in dropped.items()})
    assert np.abs(vectors(wrong, texts) - vectors(parts, texts)).max() > 1e-3


@pytest.mark.parametrize("options", [{"init": "copy"}, {"init": "copy", "lora": {"rank": 2}}])
def test_copies_are_all_the_same_to_lose(
    options: dict[str, Any], make_model: MakeModel, texts: list[str]
) -> None:
    router = RouterConfig(top_k=1, normalize=1.0)
    dense = make_model(num_layers=2)
    parts = upcycled(dense, UpcycleConfig.model_validate({"num_experts": 4, "router": router} | options))
    small = prune(parts, {layer: [0, 2] for layer in parts.spec.moe_layers})
    np.testing.assert_allclose(vectors(small, texts), dense.encode(texts), **SAME)
    before, after = (sum(t.numel() for t in one.state.values()) for one in (parts, small))
    assert after < before


def test_the_least_used_are_found() -> None:
    assert least_used([0.4, 0.1, 0.3, 0.1, 0.1], 2) == [3, 4]
    assert least_used([0.0, 0.5, 0.5], 1) == [0]


def test_the_command_takes_out_what_the_texts_do_not_use(
    run: Run, make_model: MakeModel, tmp_path: Path, texts: list[str]
) -> None:
    router = RouterConfig(top_k=2, normalize=1.0)
    parts = upcycled(make_model(num_layers=2), UpcycleConfig(num_experts=6, init="noise", router=router))
    Embedder(parts).save_pretrained(tmp_path / "model")
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "worms " * 50]))
    command = ("prune", tmp_path / "model", "--texts", file, "--drop", "3", "--out", tmp_path / "small")
    code, out, err = run(*command)
    assert code == 0, err
    assert "9 texts, 1 of them cut: longer than the model reads" in " ".join(out.split())
    code, out, err = run(*command, "--overwrite", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert (made["texts"], made["truncated"]) == (9, 1)
    model = Embedder(parts).eval()
    prompt = role_prompt("document", model.tokenizer.prompts, model.tokenizer.default_prompt)
    layers = expert_load(model, file, prompt_name=prompt, words=0)["layers"]
    for one, layer in zip(made["layers"], layers, strict=True):
        rest = set(range(6)) - set(one["dropped"])
        assert max(layer["load"][e] for e in one["dropped"]) <= min(layer["load"][e] for e in rest)
        assert one["share"] == pytest.approx(sum(layer["load"][e] for e in one["dropped"]), abs=1e-4)
    small = read_folder(tmp_path / "small")
    assert made["experts"] == 3 == len(small.state["layers.1.ffn.up_EFD"])
    assert made["parameters"] == sum(tensor.numel() for tensor in small.state.values())
    expected = prune(parts, {one["layer"]: one["dropped"] for one in made["layers"]})
    assert all(torch.equal(small.state[name], tensor) for name, tensor in expected.state.items())


@pytest.mark.parametrize("kind", ["soft_merging", "expert_choice"])
def test_where_all_experts_have_as_many_tokens_the_probability_decides(
    kind: str, run: Run, make_model: MakeModel, tmp_path: Path, texts: list[str]
) -> None:
    """So the expert that goes is the same one, wherever it stands."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    router = RouterConfig.model_validate({"kind": kind})
    parts = upcycled(make_model(num_layers=2), UpcycleConfig(num_experts=4, router=router, router_std=1.0))
    found = []
    for order in (torch.tensor([0, 1, 2, 3]), torch.tensor([3, 0, 1, 2])):
        name = "layers.1.ffn.router.weight_ED"
        Embedder(replace(parts, state=parts.state | {name: parts.state[name][order]})).save_pretrained(
            tmp_path / "model"
        )
        command = ("prune", tmp_path / "model", "--texts", file, "--out", tmp_path / "small", "--overwrite")
        code, out, err = run(*command, "--json")
        assert code == 0, err
        (layer,) = json.loads(out)["layers"]
        assert layer["share"] < 0.25
        found.append(int(order[layer["dropped"][0]]))
    assert found[0] == found[1]


def test_a_single_visit_is_more_than_none() -> None:
    """In a file of a million tokens too, where its share is nothing to four digits."""
    router, count_E = RouterConfig(top_k=1), torch.tensor([10**6, 10**6, 0, 1])
    nothing = torch.zeros(())
    stats = RouterStats(0, 2 * 10**6 + 1, count_E, count_E.float(), nothing, nothing, nothing)
    assert least_used(shares(stats, router), 1) == [2]
    assert stats.summary()["load"] == [0.5, 0.5, 0.0, 0.0]


def test_what_cannot_be_taken_out_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match="has no experts"):
        require_prunable(make_model().encoder.spec.moe, 1)
    router = RouterConfig(top_k=2)
    parts = upcycled(make_model(num_layers=2), UpcycleConfig(num_experts=4, router=router))
    with pytest.raises(UserError, match="-1 experts to take out are none"):
        require_prunable(parts.spec.moe, -1)
    with pytest.raises(UserError, match="no more than 2 can be taken out, and 3 were asked for"):
        prune(parts, {layer: [0, 1, 2] for layer in parts.spec.moe_layers})
    by_hash = upcycled(
        make_model(num_layers=2), UpcycleConfig(num_experts=4, router=RouterConfig(kind="hash", top_k=1))
    )
    with pytest.raises(UserError, match="the router hash sends every token to an expert by name"):
        require_prunable(by_hash.spec.moe, 1)
