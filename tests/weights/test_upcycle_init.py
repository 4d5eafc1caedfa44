"""How experts start: which values change, which do not, and what clusters promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.model.encoder import tensor_shapes
from moembed.packing import pack
from moembed.types import Batch, UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle
from moembed.weights.upcycle_clusters import collect_states, spherical_kmeans, truncated
from moembed.weights.upcycle_init import INITS

EQUAL = 1e-4
HIDDEN = {"up_EFD": 1, "gate_EFD": 1, "up_bias_EF": 1, "gate_bias_EF": 1, "down_EDF": 2}


def start(model: Embedder, **options: Any) -> tuple[Embedder, dict[str, Tensor]]:
    parts, values = model.parts(), {"num_experts": 4, "every": 4} | options
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig.model_validate(values), sample_of(model))
    made = {name.removeprefix("layers.1.ffn."): tensor for name, tensor in state.items()}
    return Embedder(replace(parts, spec=spec, state=state)).eval(), made


def sample_of(model: Embedder) -> Batch:
    texts = ["an owl hunts voles at night", "moles eat worms", "what does a mole eat?", "the wide meadow"]
    return pack(model.tokenizer.rows(texts)[0])


def test_every_way_has_an_entry() -> None:
    assert set(INITS) == set(get_args(UpcycleConfig.model_fields["init"].annotation))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("init", ["noise", "drop"])
def test_a_share_of_the_hidden_units_is_new_in_each_expert(
    init: str, gated: bool, make_model: MakeModel
) -> None:
    dense = make_model(gated=gated)
    _, copied = start(dense)
    _, made = start(dense, init=init, share=0.25)
    for name, axis in HIDDEN.items():
        if name not in made:
            assert not gated
            continue
        changed = (made[name] != copied[name]).movedim(axis, 1).reshape(4, 24, -1)
        assert torch.equal(changed.any(2), changed.all(2))  # a unit is new as a whole, or as it was
        assert changed.any(2).sum(1).tolist() == [6] * 4  # of 24
    units = [(made["up_EFD"] != copied["up_EFD"]).any(2), (made["down_EDF"] != copied["down_EDF"]).any(1)]
    assert torch.equal(units[0], units[1])
    assert len({tuple(row) for row in units[0].tolist()}) > 1
    assert torch.equal(made["down_bias_ED"], copied["down_bias_ED"])


@pytest.mark.parametrize(
    "options",
    [
        {"init": "copy"},
        {"init": "noise", "noise_std": 0.0},
        {"init": "noise", "share": 0.0},
        {"init": "drop", "share": 0.0},
        {"init": "cluster", "rank": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("more", [{}, {"num_shared_experts": 1}, {"granularity": 3}], ids=str)
def test_what_changes_nothing_keeps_the_function(
    options: dict[str, Any], gated: bool, more: dict[str, Any], make_model: MakeModel, texts: list[str]
) -> None:
    dense = make_model(gated=gated)
    model, made = start(dense, **options, **more)
    assert np.abs(model.encode(texts) - dense.encode(texts)).max() < EQUAL
    if options["init"] != "cluster":
        copied = start(dense, **more)[1]
        assert made.keys() == copied.keys()
        assert all(torch.equal(tensor, copied[name]) for name, tensor in made.items())


@pytest.mark.parametrize("init", sorted(INITS))
@pytest.mark.parametrize("gated", [True, False])
def test_whatever_the_start_the_tensors_are_those_of_the_spec(
    init: str, gated: bool, make_model: MakeModel, tmp_path: Path, texts: list[str]
) -> None:
    model, _ = start(make_model(gated=gated), init=init)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.parts().state.items()}
    assert shapes == tensor_shapes(model.encoder.spec)
    assert all(tensor.isfinite().all() for tensor in model.parts().state.values())
    model.save_pretrained(tmp_path / "moe")
    again = Embedder.from_pretrained(tmp_path / "moe", device="cpu")
    assert (again.encode(texts) == model.encode(texts)).all()


def test_noise_and_new_values_have_the_size_they_should(make_model: MakeModel) -> None:
    dense = make_model(ffn_width=2000)
    _, copied = start(dense)
    _, noisy = start(dense, init="noise", share=1.0, noise_std=0.05)
    assert float((noisy["up_EFD"] - copied["up_EFD"]).std()) == pytest.approx(0.05, rel=0.05)
    _, dropped = start(dense, init="drop", share=1.0)
    for name in ("up_EFD", "down_EDF", "up_bias_EF"):
        for expert in range(4):
            new, old = dropped[name][expert], copied[name][expert]
            assert float(new.std()) == pytest.approx(float(old.std()), rel=0.1)
            assert float(new.mean()) == pytest.approx(float(old.mean()), abs=0.02)
            assert abs(float(torch.corrcoef(torch.stack([new.flatten(), old.flatten()]))[0, 1])) < 0.1


@pytest.mark.parametrize("init", sorted(INITS))
def test_the_seed_decides_and_the_dense_weights_stay(init: str, make_model: MakeModel) -> None:
    dense = make_model()
    before = {name: tensor.clone() for name, tensor in dense.parts().state.items()}
    first, again = start(dense, init=init)[1], start(dense, init=init)[1]
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    other = start(dense, init=init, seed=1)[1]
    assert torch.equal(first["up_EFD"], other["up_EFD"]) == (init == "copy")
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.parts().state.items())


@pytest.mark.parametrize("kind", ["token_choice", "centroid"])
@pytest.mark.parametrize("gated", [True, False])
def test_clusters_of_full_rank_keep_the_function(
    kind: str, gated: bool, make_model: MakeModel, texts: list[str]
) -> None:
    dense = make_model(gated=gated)
    options = {"router": {"kind": kind}, "init": "cluster"}
    model, made = start(dense, rank=1.0, **options)
    assert np.abs(model.encode(texts) - dense.encode(texts)).max() < EQUAL
    assert made["router.weight_ED"].norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    model, _ = start(dense, rank=0.5, **options)
    assert np.abs(model.encode(texts) - dense.encode(texts)).max() > EQUAL


def test_the_rows_of_the_router_are_the_centroids_of_what_the_block_meets(make_model: MakeModel) -> None:
    dense = make_model()
    batch, parts = sample_of(dense), dense.parts()
    states_ND = collect_states(parts.spec, parts.state, batch, [1, 3])[1]
    seen: list[Tensor] = []
    handle = dense.encoder.layers[1].ffn.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    with torch.no_grad():
        dense(batch)
    handle.remove()
    torch.testing.assert_close(states_ND, seen[0])
    centroid_ED = start(dense, init="cluster")[1]["router.weight_ED"]
    unit_ND = torch.nn.functional.normalize(states_ND)
    nearest_N = (unit_ND @ centroid_ED.T).argmax(1)
    for expert in range(4):
        mean_D = unit_ND[nearest_N == expert].mean(0)
        torch.testing.assert_close(mean_D / mean_D.norm(), centroid_ED[expert], rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(6, 40))
def test_kmeans_ends_where_every_state_is_at_its_nearest_centroid(
    seed: int, clusters: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states_ND = torch.randn(count, 4, generator=generator)
    centroid_ED, cluster_N = spherical_kmeans(states_ND, clusters, generator)
    unit_ND = torch.nn.functional.normalize(states_ND)
    assert sorted(set(cluster_N.tolist())) == list(range(clusters))
    assert torch.equal((unit_ND @ centroid_ED.T).argmax(1), cluster_N)


def test_kmeans_finds_groups_that_stand_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    group_N = torch.randint(4, (200,), generator=generator)
    states_ND = 5 * torch.eye(4)[group_N] + 0.1 * torch.randn(200, 4, generator=generator)
    _, cluster_N = spherical_kmeans(states_ND, 4, generator)
    pairs = {(int(g), int(c)) for g, c in zip(group_N, cluster_N, strict=True)}
    assert len(pairs) == 4


@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 0.75]))
def test_a_truncated_matrix_is_the_nearest_of_its_rank_on_the_states(seed: int, rank: float) -> None:
    """Its error over the states is what the discarded singular values of ``W X^T`` say."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(6, 4, generator=generator).double()
    states_NI = (torch.randn(50, 4, generator=generator) * torch.tensor([5.0, 1.0, 0.3, 2.0])).double()
    made_OI = truncated(weight_OI, states_NI, rank)
    kept = round(rank * 4)
    assert int(torch.linalg.matrix_rank(made_OI, rtol=1e-6)) == kept
    error = float(((made_OI - weight_OI) @ states_NI.T).square().sum())
    best = float(torch.linalg.svdvals(weight_OI @ states_NI.T)[kept:].square().sum())
    assert error == pytest.approx(best, rel=0.01, abs=1e-6)


def test_what_clusters_cannot_be_made_of_is_refused(make_model: MakeModel) -> None:
    dense = make_model()
    parts = dense.parts()
    options = UpcycleConfig(init="cluster")
    with pytest.raises(UserError, match="init cluster looks at the states of texts"):
        upcycle(parts.spec, parts.state, options)
    with pytest.raises(UserError, match="too few for 8 experts"):
        upcycle(parts.spec, parts.state, options, pack([[5]]))
    with pytest.raises(UserError, match="has no use for them"):
        validate(UpcycleConfig, {"init": "cluster", "router": {"kind": "hash"}})
