"""Merging: what each method promises, and that models without a common ancestor are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.moe.router import RouterConfig
from moembed.runs.merge import MergePlan, merge
from moembed.types import UserError
from moembed.weights.ancestry import kinship
from moembed.weights.merge import arithmetic, average, slerp, ties
from moembed.weights.upcycle import UpcycleConfig, upcycle

MOE = FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2))


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(4, 5, generator=generator),
        "vector": torch.randn(5, generator=generator),
        "zero": torch.zeros(3),
    }


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(tensor, other[name], atol=atol, rtol=0) for name, tensor in one.items()
    )


@given(st.integers(0, 99), st.integers(0, 99), st.floats(0, 1), st.floats(0.1, 3))
def test_the_laws_of_merging(seed: int, other: int, t: float, weight: float) -> None:
    a, b, base = state(seed), state(other + 100), state(seed + 300)
    # a model merged with itself
    assert equal(average([a, a], [1, weight]), a)
    assert equal(slerp(a, a, t), a)
    assert equal(arithmetic([a, a], [0.5, 0.5], base), a, 1e-6)
    assert equal(ties([a, a], [1, weight], base, density=1.0), a, 1e-6)
    # the ends of an arc, and its middle: as far from either, as long for vectors of one length
    assert equal(slerp(a, b, 0.0), a, 1e-6)
    assert equal(slerp(a, b, 1.0), b, 1e-6)
    x, y = (s["matrix"] / s["matrix"].norm() for s in (a, b))
    between = slerp({"m": x}, {"m": y}, t)["m"]
    assert between.norm().item() == pytest.approx(1, abs=1e-6)
    angle, part = (torch.arccos((x * z).sum().clamp(-1, 1)).item() for z in (y, between))
    assert part == pytest.approx(t * angle, abs=2e-3)
    # weights are shares, whatever they sum to; nothing of a base is left at scale 0
    assert equal(average([a, b], [weight, weight]), average([a, b], [0.5, 0.5]), 1e-6)
    assert equal(average([a, b], [1.0, 0.0]), a)
    assert equal(arithmetic([a, b], [0.5, 0.5], base, scale=0.0), base)
    assert equal(arithmetic([a, b], [0.3, 0.7], base), average([a, b], [0.3, 0.7]), 1e-5)


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    """The example of algorithm 1, by hand."""
    base = {"x": torch.zeros(5)}
    one = {"x": torch.tensor([4.0, -3.0, 0.1, 2.0, 0.0])}
    other = {"x": torch.tensor([2.0, 1.0, 3.0, -2.5, 0.2])}
    # 3 of 5 entries stay: [4, -3, 0, 2, 0] and [2, 0, 3, -2.5, 0]
    found = ties([one, other], [1.0, 1.0], base, density=0.6)["x"]
    assert found.tolist() == [3.0, -3.0, 3.0, -2.5, 0.0]
    assert ties([one, other], [1.0, 1.0], base, 0.5, 0.6)["x"].tolist() == [1.5, -1.5, 1.5, -1.25, 0.0]


def nudged(model: Embedder, seed: int, size: float = 0.02) -> Embedder:
    """As if it had been trained on: every tensor moved a little."""
    generator = torch.Generator().manual_seed(seed)
    parts = model.parts()
    parts.state = {
        name: tensor + size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in parts.state.items()
    }
    return Embedder(parts).eval()


def test_folders_are_merged_and_their_mean_lies_between(
    make_model: MakeModel, tmp_path: Path, texts: list[str], run: Run
) -> None:
    base = make_model(moe=MOE)
    models = {"base": base, "a": nudged(base, 1), "b": nudged(base, 2)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    for method, more in (("average", {}), ("slerp", {}), ("arithmetic", {"base": str(tmp_path / "base")}),
                         ("ties", {"base": str(tmp_path / "base"), "density": 1.0})):  # fmt: skip
        merge([a, a], tmp_path / "same", MergePlan(method=method, **more), overwrite=True)  # type: ignore[arg-type]
        same = Embedder.from_pretrained(tmp_path / "same").encode(texts)
        assert np.allclose(same, models["a"].encode(texts), atol=1e-5), method

    code, out, err = run("merge", a, b, "--out", tmp_path / "m", "--weights", "3,1", "--json")
    assert code == 0, err
    merged = Embedder.from_pretrained(tmp_path / "m")
    for name, tensor in merged.parts().state.items():
        wanted = 0.75 * models["a"].parts().state[name] + 0.25 * models["b"].parts().state[name]
        assert torch.allclose(tensor, wanted, atol=1e-6), name
    assert '"usage"' in out


def test_experts_without_a_common_ancestor_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    """Also those of one dense model that was upcycled twice: there the weights agree, and experts do not."""
    one = make_model(moe=MOE)
    parts = one.parts()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {
        name: tensor[order] if ".ffn." in name and tensor.ndim > 1 and len(tensor) == 4 else tensor
        for name, tensor in parts.state.items()
    }
    permuted = one.parts()
    permuted.state = shuffled
    other = Embedder(permuted).eval()
    # the same function, in another order
    assert np.allclose(other.encode(["moles eat worms"]), one.encode(["moles eat worms"]), atol=1e-5)
    relation = kinship(parts.spec, parts.state, shuffled)
    assert "tokens go to other experts" in str(relation.objection()) or relation.cosine < 0.5

    routers = {name: x[order] if "router" in name else x for name, x in parts.state.items()}
    assert "the same tokens go to other experts" in str(kinship(parts.spec, parts.state, routers).objection())
    assert kinship(parts.spec, parts.state, nudged(one, 1).parts().state).objection() is None

    for name, model in (("one", one), ("other", make_model(seed=9, moe=MOE)), ("dense", make_model())):
        model.save_pretrained(tmp_path / name)
    one_, other_, dense = (str(tmp_path / name) for name in ("one", "other", "dense"))
    with pytest.raises(UserError, match="no common ancestor: the cosine of their weights is"):
        merge([one_, other_], tmp_path / "m")
    with pytest.raises(UserError, match=r"is of another form than .*, which has moe"):
        merge([one_, dense], tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"num_experts": 4, "router": {"kind": "soft_merging"}},
        {"num_experts": 4, "router": {"top_k": 4}},
        {"num_experts": 1, "router": {"top_k": 1}},
        {"num_experts": 4, "router": {"kind": "hash"}},
        {"router": {"kind": "tag", "tags": ["de", "en"]}},
    ],
)
def test_relatives_are_known_whatever_chooses_their_experts(
    options: dict[str, Any], make_model: MakeModel
) -> None:
    parts = make_model(num_layers=2).parts()
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig.model_validate({"init": "drop"} | options))
    generator = torch.Generator().manual_seed(1)
    moved = {name: x + 1e-3 * torch.randn(x.shape, generator=generator) for name, x in state.items()}
    assert kinship(spec, state, state).objection() is None
    assert kinship(spec, state, moved).objection() is None
    if "layers.1.ffn.router.weight_ED" in state and spec.moe and spec.moe.num_experts > 1:
        name = "layers.1.ffn.router.weight_ED"
        permuted = state | {name: state[name][torch.tensor([2, 0, 3, 1])]}
        assert "the same tokens go to other experts" in str(kinship(spec, state, permuted).objection())


def test_a_tokenizer_that_reads_otherwise_is_refused_and_other_lengths_are_said(
    make_model: MakeModel, tmp_path: Path, run: Run
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "a")
    shorter = model.parts()
    shorter.dims = (8,)
    Embedder(shorter).save_pretrained(tmp_path / "b")
    _, _, err = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "m")
    assert "b was trained at other lengths of the vector than" in err

    file = tmp_path / "b" / "tokenizer.json"
    values = json.loads(file.read_text())
    assert values["normalizer"] is not None
    file.write_text(json.dumps(values | {"normalizer": None}))  # upper case is another word now
    code, _, err = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "n")
    assert code == 2
    assert "takes texts apart in another way" in err


def test_plans_that_do_not_fit_are_one_sentence(make_model: MakeModel, tmp_path: Path, run: Run) -> None:
    make_model().save_pretrained(tmp_path / "a")
    a = str(tmp_path / "a")
    for models, plan, sentence in (
        ([a], MergePlan(), "at least two models"),
        ([a, a, a], MergePlan(method="slerp"), "and 3 were given"),
        ([a, a], MergePlan(method="ties"), "name it with --base"),
        ([a, a], MergePlan(base=a), "average knows no base"),
        ([a, a], MergePlan(weights=(1.0,)), "1 weights were given for 2 models"),
        ([a, a], MergePlan(weights=(1.0, -1.0)), "sum to 0"),
        ([a, a], MergePlan(method="ties", base=a, density=0.0), "density 0.0 is not within"),
        ([a, a], MergePlan(scale=0.3), "average has no scale to give; it is for arithmetic and ties"),
        ([a, a], MergePlan(method="arithmetic", base=a, density=0.5), "arithmetic knows no density"),
        ([a, a], MergePlan(weights=(float("inf"), 1.0)), "weights and scale are finite numbers"),
        ([a, a], MergePlan(method="arithmetic", base=a, weights=(float("nan"), 1.0)), "are finite numbers"),
        ([a, a], MergePlan(method="ties", base=a, weights=(1.0, -1.0)), "weights of ties are at least 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            merge(models, tmp_path / "m", plan)
    Embedder(nudged(make_model(), 1).parts()).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="holds infinite values"):
        merge([a, str(tmp_path / "b")], tmp_path / "m", MergePlan("arithmetic", (1e38, 1e38), a, 1e38))
    assert not (tmp_path / "m").exists()
    code, _, err = run("merge", a, a, "--out", tmp_path / "m", "--weights", "much,little")
    assert (code, err) == (2, "error: --weights 'much,little' is not a list of numbers such as 0.5,0.5\n")
