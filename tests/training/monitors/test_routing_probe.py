"""Router losses over a window, biases instead of a loss, dying experts, and routing by role and language."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.losses.balance import balance_loss, z_loss
from moembed.moe.router import RouterConfig
from moembed.training.contrastive.balance import Balance
from moembed.training.contrastive.batch import SourceFormat, prepare
from moembed.training.contrastive.settings import ContrastiveConfig, LossConfig
from moembed.training.monitors.dead_experts import STARVED_STEPS, DeadExpertAlarm
from moembed.training.monitors.routing import RoutingProbe, routers
from moembed.training.parallel import ALONE
from moembed.training.task import Moment, Terms
from moembed.types import Pair, RouterStats, UserError
from moembed.weights.selection_bias import add_selection_bias
from training_runs import metrics, run, settings

EXPERTS = 4


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return make_model(moe=FlatMoE(layers=(1, 3), num_experts=EXPERTS, router=RouterConfig()))


def stats(*loads: list[float], prob_E: Tensor | None = None) -> list[RouterStats]:
    """One per layer; a load is given as counts."""
    zero = torch.zeros(())
    prob_E = torch.full((EXPERTS,), 2.5) if prob_E is None else prob_E
    return [
        RouterStats(layer, 10, torch.tensor(load), prob_E, zero + 5, zero, zero)
        for layer, load in zip((1, 3), loads, strict=False)
    ]


# ---- losses --------------------------------------------------------------------------------------


def test_a_window_of_one_step_is_the_plain_loss(model: Embedder) -> None:
    balance = Balance(LossConfig(balance=0.5, z=0.2), model)
    for counts in ([4, 3, 2, 1], [1, 1, 1, 7]):
        total = stats(counts, counts, prob_E=torch.tensor([4.0, 3, 2, 1]))
        expected = 0.5 * balance_loss(total, total) + 0.2 * z_loss(total, total)
        torch.testing.assert_close(balance.loss(total, total), expected)
        balance.update(total)


def test_running_counts_are_a_mean_at_first_and_then_forget(model: Embedder) -> None:
    """Loads (1, 0), (0, 1), (0, 1) of two experts; a window of two steps."""
    balance = Balance(LossConfig(balance=1.0, balance_window=2), model)
    shares = []
    for counts in ([10, 0, 0, 0], [0, 10, 0, 0], [0, 10, 0, 0]):
        total = stats(counts, prob_E=torch.tensor([10.0, 0, 0, 0]))  # the loss is then E times f_0
        shares.append(float(balance.loss(total, total)) / EXPERTS)
        balance.update(total)
    assert shares == pytest.approx([1.0, 0.5, 0.25])


def test_running_counts_and_hunger_continue_from_a_state(model: Embedder) -> None:
    config = LossConfig(balance_window=3)
    one, other = Balance(config, model), Balance(config, model)
    for counts in ([4, 3, 2, 1], [1, 1, 1, 7]):
        one.update(stats(counts, counts))
    other.load_state_dict(one.state_dict())
    total = stats([2, 2, 2, 4], [0, 5, 5, 0])
    assert torch.equal(one.loss(total, total), other.loss(total, total))

    first, second = DeadExpertAlarm(""), DeadExpertAlarm("")
    said(first, stats([0, 5, 5, 5]))
    second.load_state_dict(first.state_dict())
    assert second.steps == {(1, 0): 1, (1, 1): 0, (1, 2): 0, (1, 3): 0}


# ---- balance without a loss ----------------------------------------------------------------------


def biased(model: Embedder) -> Embedder:
    parts = model.parts()
    parts.spec, parts.state = add_selection_bias(parts.spec, parts.state)
    return Embedder(parts)


def test_biases_move_towards_an_even_load(model: Embedder) -> None:
    model = biased(model)
    balance = Balance(LossConfig(bias_rate=0.1), model)
    balance.update(stats([7, 1, 1, 1], [4, 4, 1, 1]))
    found = [
        bias for router in routers(model) if router.bias_E is not None for bias in router.bias_E.tolist()
    ]
    assert found == pytest.approx([-0.1, 0.1, 0.1, 0.1, -0.1, -0.1, 0.1, 0.1])


def test_training_with_a_bias_alone_balances(make_model: MakeModel, tmp_path: Path) -> None:
    """The load comes nearer to even than without it, and the biases are saved with the model."""
    spread = []
    for rate in (0.0, 0.05):
        moe = FlatMoE(layers=(1,), num_experts=EXPERTS, router=RouterConfig(top_k=1))
        model = biased(make_model(num_layers=2, moe=moe))
        config = settings(steps=30, save_every=99, loss={"balance": 0, "bias_rate": rate})
        run(config, model, tmp_path / str(rate))
        loads = torch.tensor([line["router"][0]["load"] for line in metrics(tmp_path / str(rate))[-10:]])
        spread.append(float((loads.mean(0) - 1 / EXPERTS).abs().max()))
    assert spread[1] < 0.6 * spread[0]
    saved = Embedder.from_pretrained(tmp_path / "0.05", device="cpu")
    (before,), (after,) = routers(model), routers(saved)
    assert before.bias_E is not None
    assert after.bias_E is not None
    assert before.bias_E.any()
    assert torch.equal(before.bias_E, after.bias_E)


def test_a_rate_without_biases_is_refused(model: Embedder) -> None:
    with pytest.raises(UserError, match="this model has none"):
        Balance(LossConfig(bias_rate=0.1), model)


# ---- dying experts -------------------------------------------------------------------------------


def test_an_expert_that_starves_is_told_of_once() -> None:
    alarm = DeadExpertAlarm("raise loss.balance")
    starved, fed = stats([1, 50, 50, 50]), stats([5, 50, 50, 50])
    found = [said(alarm, starved) for _ in range(STARVED_STEPS - 1)]
    assert found == [[]] * (STARVED_STEPS - 1)
    assert said(alarm, fed) == []  # a meal in time
    found = [said(alarm, starved) for _ in range(2 * STARVED_STEPS)]
    assert [len(sentences) for sentences in found].index(1) == STARVED_STEPS - 1
    assert sum(map(len, found)) == 1
    assert "expert 0 of layer 1 is dying" in found[STARVED_STEPS - 1][0]
    assert "raise loss.balance" in found[STARVED_STEPS - 1][0]


def said(alarm: DeadExpertAlarm, total: list[RouterStats]) -> list[str]:
    moment = Moment(1, 0.0, False, Terms(0.0, 8, router=total))
    assert alarm.due(moment)
    return list(alarm.look(moment).sentences)


# ---- by role and language ------------------------------------------------------------------------

PAIRS = [
    Pair("what does a mole eat?", "moles eat worms", ("worms",)),
    Pair("what do they hunt?", "an owl hunts voles at night"),
    Pair("what digs?", "the meadow is wide"),
]


@pytest.mark.parametrize("chunk_tokens", [10, 10_000])
def test_groups_are_counted_apart(chunk_tokens: int, model: Embedder) -> None:
    """The statistics of a group are those of its texts embedded alone."""
    config = ContrastiveConfig(steps=1, chunk_tokens=chunk_tokens)
    roles = SourceFormat("query", "document", "info_nce")
    batch = prepare(PAIRS, roles, model.tokenizer, config, languages=["en", "de", "en"])
    probe = RoutingProbe(model, 1, ALONE)
    observe = probe.watch(0, batch.groups, batch.chunks.batches, batch.group_CB)
    for number, chunk in enumerate(batch.chunks.batches):
        with observe(number), torch.no_grad():
            model(chunk)
    found = probe.summary()
    queries, documents = ["query"], ["document"]
    german = [(PAIRS[1].query, "query"), (PAIRS[1].document, "document")]
    english = [(PAIRS[i].query, "query") for i in (0, 2)] + [(PAIRS[i].document, "document") for i in (0, 2)]
    english.append(("worms", "document"))
    expected: dict[str, list[tuple[str, str]]] = {
        "query": [(text, role) for text, role in german + english if role in queries],
        "document": [(text, role) for text, role in german + english if role in documents],
        "de": german,
        "en": english,
    }
    assert sorted(found) == ["languages", "roles"]
    for label, layers in [*found["roles"].items(), *found["languages"].items()]:
        assert layers == alone(model, expected.pop(label))
    assert not expected
    assert not any(router._forward_hooks for router in routers(model))


def alone(model: Embedder, texts: list[tuple[str, str]]) -> list[Any]:
    total: list[RouterStats] = []
    for text, role in texts:
        with torch.no_grad():
            parts = model(model.tokenizer.batch([text], prompt=model.tokenizer.prompt(role))).router
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
    close = partial(pytest.approx, abs=2e-4)
    return [
        {
            key: close(value) if key in ("entropy", "top_mass") else value
            for key, value in part.summary().items()
        }
        for part in total
    ]


def test_the_log_tells_roles_every_few_steps(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(num_layers=2, moe=FlatMoE(layers=(1,), num_experts=EXPERTS, router=RouterConfig()))
    run(settings(steps=5, diagnose_every=2), model, tmp_path)
    apart = [line["expert_distance"] for line in metrics(tmp_path) if "expert_distance" in line]
    assert [sorted(layers) for layers in apart] == [["1"]] * 3
    assert len({layers["1"] for layers in apart}) == 3
    assert [sorted(line.get("roles", {})) for line in metrics(tmp_path)] == [
        ["document", "query"], [], ["document", "query"], [], ["document", "query"]
    ]  # fmt: skip
    assert "languages" not in metrics(tmp_path)[0]
