"""Self Positioning: weights learned on pairs, no worse on held-out ones than the mean and every parent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.moe.router import RouterConfig
from moembed.runs.probe import PairProbe
from moembed.weights.merge import State
from moembed.weights.self_positioning import place, self_position
from tagged_models import tagged_model
from training_runs import PAIRS, assert_same_weights

MOE = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(top_k=2))


def bowl(target: Sequence[float]) -> object:
    """Half the squared distance to a point."""

    def probe(state: State, step: int | None) -> tuple[float, State]:
        slope = state["x"] - torch.tensor(target)
        return float(slope.square().sum() / 2), {} if step is None else {"x": slope}

    return probe


def test_descent_finds_the_point_of_the_plane() -> None:
    """Weights where the target lies between the models; weights and scale where it lies beyond them."""
    states = [{"x": torch.tensor(x)} for x in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]
    found = self_position(states, None, bowl([0.6, 0.3, 0.1]), steps=200)  # type: ignore[arg-type]
    assert found.learned
    assert found.weights == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
    assert found.scale == 1
    base = {"x": torch.tensor([0.0, 0.0, 0.0])}
    found = self_position(states, base, bowl([1.2, 0.6, 0.2]), steps=300)  # type: ignore[arg-type]
    assert found.weights == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert found.scale == pytest.approx(2, abs=0.05)


def test_the_best_of_all_places_is_kept() -> None:
    """A probe whose held-out pairs want another place than those that are learned from."""
    states = [{"x": torch.tensor([1.0, 0.0])}, {"x": torch.tensor([0.0, 1.0])}]

    def probe(state: State, step: int | None) -> tuple[float, State]:
        return bowl([0.0, 1.0] if step is None else [1.0, 0.0])(state, step)  # type: ignore[operator]

    found = self_position(states, None, probe)
    assert (found.weights, found.learned, found.loss) == ([0.0, 1.0], False, 0.0)


@pytest.fixture
def folders(make_model: MakeModel, tmp_path: Path) -> list[Path]:
    """A base and two models that were trained from it."""
    base = make_model(num_layers=2, moe=MOE)
    base.save_pretrained(tmp_path / "base")
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        moved = Embedder.from_pretrained(tmp_path / "base")
        with torch.no_grad():
            for p in moved.parameters():
                p += 0.03 * torch.randn(p.shape, generator=generator)
        moved.save_pretrained(tmp_path / f"m{seed}")
    rows = (json.dumps({"query": pair.query, "document": pair.document}) for pair in PAIRS)
    (tmp_path / "pairs.jsonl").write_text("".join(row + "\n" for row in rows))
    return [tmp_path / "m1", tmp_path / "m2", tmp_path / "base"]


def test_the_gradient_at_the_weights_is_that_of_the_loss(
    folders: list[Path], make_model: MakeModel, tmp_path: Path
) -> None:
    """Against a difference quotient on the line between two dense models: experts would make it jump."""
    models = [make_model(seed=seed, num_layers=2).parts() for seed in (1, 2)]
    parts = models[0]
    probe = PairProbe(str(tmp_path / "pairs.jsonl"), parts)
    states = [{f"encoder {name}": x for name, x in model.state.items()} for model in models]
    _, gradient = probe(place(states, [0.5, 0.5], 1.0, None), 0)
    along = sum(float((g * (states[1][name] - states[0][name])).sum()) for name, g in gradient.items())
    step = 5e-3
    ends = [probe(place(states, [0.5 - t, 0.5 + t], 1.0, None), 0)[0] for t in (-step, step)]
    assert along == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=0.05, abs=2e-3)


def test_the_command(run: Run, folders: list[Path], tmp_path: Path) -> None:
    one, other, base = folders
    options = ("--method", "self_positioning", "--probe", tmp_path / "pairs.jsonl", "--json")
    code, out, err = run("merge", one, other, *options, "--out", tmp_path / "made", "--base", base)
    assert code == 0, err
    position = json.loads(out)["position"]
    assert position["loss"] <= min(position["others"].values())
    assert set(position["others"]) == {"mean", "model 1", "model 2"}
    code, _, err = run("merge", one, one, *options, "--out", tmp_path / "same")
    assert code == 0, err
    assert_same_weights(one, tmp_path / "same")
    code, _, err = run("merge", one, other, *options, "--out", tmp_path / "no", "--weights", "0.5,0.5")
    assert (code, "and no --weights" in err) == (2, True)


def test_roles_are_the_tags_of_the_pairs(make_model: MakeModel, tmp_path: Path, run: Run) -> None:
    """As in training: a query goes to the experts of queries, a document to those of documents."""
    model = tagged_model(make_model(num_layers=2).parts(), tags=["query", "document"])
    model.save_pretrained(tmp_path / "one")
    file = tmp_path / "pairs.jsonl"
    rows = [{"query": f"owl {n}", "document": f"mole {n}"} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss, slopes = PairProbe(str(file), model.parts())(
        {f"encoder {name}": tensor for name, tensor in model.parts().state.items()}, 0
    )
    assert loss > 0
    assert "encoder layers.1.ffn.up_EFD" in slopes
    assert all(slope.any() for slope in slopes["encoder layers.1.ffn.up_EFD"])  # both experts were visited
    one = tmp_path / "one"
    options = ("--method", "self_positioning", "--probe", file, "--out", tmp_path / "merged")
    code, _, err = run("merge", one, one, *options)
    assert code == 0, err
    by_language = tagged_model(make_model(num_layers=2).parts(), tags=["de", "en"])
    by_language.save_pretrained(one)
    code, _, err = run("merge", one, one, *options, "--overwrite")
    assert code == 2
    assert err.count("\n") == 1
