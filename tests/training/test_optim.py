"""Learning rates at known points of a run, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from conftest import MakeModel, NewModel
from moembed.config import validate
from moembed.training.contrastive.objective import Objective
from moembed.training.contrastive.settings import LossConfig
from moembed.training.masked_lm.settings import MaskedOptim
from moembed.training.optim import OptimConfig, adamw, learning_rate, set_learning_rate
from moembed.types import UserError


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", 0.0, [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
        ("constant", 4.0, [0.25, 0.5, 0.75, 1.0, 1.0]),
        ("linear", 2.0, [0.5, 1.0, 1.0, 0.5, 0.0]),
        ("inverse_sqrt", 2.0, [0.5, 1.0, 1.0, 1.5**-0.5, 2**-0.5]),
        ("inverse_sqrt", 0.5, [0.1, 0.5, 1.0, 1.5**-0.5, 2**-0.5]),
        ("constant", 0.5, [0.1, 0.5, 1.0, 1.0, 1.0]),
        ("linear", 0.5, [0.1, 0.5, 1.0, 0.5, 0.0]),
    ],
)
def test_learning_rates_at_every_quarter_of_a_run(
    schedule: Any, warmup: float, expected: list[float]
) -> None:
    config = OptimConfig(learning_rate=3.0, schedule=schedule, warmup_steps=warmup)
    assert [learning_rate(config, step, step / 4) / 3 for step in range(5)] == pytest.approx(expected)


def test_a_clock_that_overruns_does_not_turn_the_rate_around() -> None:
    assert learning_rate(OptimConfig(), 9, 1.5) == 0.0


def test_weight_decay_is_for_matrices_alone(new_model: NewModel) -> None:
    model = new_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in adamw(model, OptimConfig(weight_decay=0.3)).param_groups
    )
    assert decayed | plain == set(names.values())
    assert not decayed & plain
    assert all(
        name.endswith(("weight", "weight_ED", "EFD", "EDF")) and "norm" not in name for name in decayed
    )
    assert all("bias" in name or "norm" in name for name in plain)
    assert {"encoder.layers.1.ffn.up_EFD", "encoder.layers.1.ffn.router.weight_ED"} <= decayed
    assert {"encoder.layers.1.ffn.up_bias_EF", "encoder.norm.weight"} <= plain


def test_a_learned_temperature_does_not_decay(new_model: NewModel) -> None:
    model = new_model()
    objective = Objective(LossConfig(learn_temperature=True), model)
    decayed, plain = adamw(
        nn.ModuleDict({"model": model, "objective": objective}), OptimConfig()
    ).param_groups
    assert plain["params"][-1] is objective.log_scale
    assert decayed["weight_decay"] > plain["weight_decay"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": math.nan},
        {"weight_decay": -1},
        {"schedule": "step"},
        {"schedule": "inverse_sqrt", "warmup_steps": 0},
    ],
)
def test_an_optimiser_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(changes)[-1]):
        OptimConfig.model_validate(changes)


def test_routers_and_experts_may_have_rates_of_their_own(new_model: NewModel) -> None:
    model = new_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    config = OptimConfig(
        learning_rate=1e-3, router_learning_rate=4e-3, expert_learning_rate=5e-4, warmup_steps=2.0
    )
    optimiser = adamw(model, config)
    for step, share in ((0, 0.5), (1, 1.0)):
        assert set_learning_rate(optimiser, config, step, step / 10) == pytest.approx(share * 1e-3)
        rates = {
            names[id(parameter)]: group["lr"] / share
            for group in optimiser.param_groups
            for parameter in group["params"]
        }
        assert set(rates) == set(names.values())
        for name, rate in rates.items():
            own = "router" in name or name.endswith(("_EFD", "_EDF", "_EF", "_ED"))
            expected = 4e-3 if "router" in name else 5e-4 if own else 1e-3
            assert rate == pytest.approx(expected), name
    assert sum("ffn.up_bias_EF" in names[id(p)] for g in optimiser.param_groups for p in g["params"]) == 1


def test_without_them_the_groups_are_as_they_were(new_model: NewModel) -> None:
    """Checkpoints hold the state of two groups."""
    assert len(adamw(new_model(), OptimConfig()).param_groups) == 2


@pytest.mark.parametrize("part", ["router", "expert"])
def test_a_rate_for_what_is_not_there_is_refused(part: str, make_model: MakeModel) -> None:
    options = OptimConfig.model_validate({f"{part}_learning_rate": 1e-3})
    with pytest.raises(UserError, match=f"optim.{part}_learning_rate: this model has no {part}s that learn"):
        adamw(make_model(num_layers=1), options)


@pytest.mark.parametrize("kind", [OptimConfig, MaskedOptim])
@pytest.mark.parametrize("betas", [[1.0, 0.9], [0.9, 2], [-0.1, 0.9]])
def test_betas_are_shares(kind: type[OptimConfig], betas: list[float]) -> None:
    with pytest.raises(UserError, match=r"betas\.[01] must be (below 1|at least 0)"):
        validate(kind, {"betas": betas})
