"""Tasks are looked at on time and within their budget, the best model is kept, training does not notice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeModel, NewModel
from conftest import Run as Command
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.metrics import evaluate_ranking
from moembed.report.training.page import write_report
from moembed.search.exact import top_k
from moembed.training import loop
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.monitors import budget
from moembed.training.monitors.budget import Deadline, Overrun, fair_shares
from moembed.training.monitors.retrieval import RetrievalMonitor, load_tasks
from moembed.training.parallel import ALONE
from moembed.training.settings import EvaluateConfig
from moembed.types import UserError
from training_runs import assert_same_weights, checkpoints, interrupt_at, metrics, run, save_animals, settings


def looks(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was logged of the evaluation there."""
    return {line["step"]: line for line in metrics(folder) if "evaluation" in line}


def by_hand(task: RetrievalTask, model: Embedder, metric: str) -> float:
    vectors = model.encode_query(task.queries), model.encode_document(task.documents)
    return float(evaluate_ranking(top_k(*vectors, 10).index, task.qrels, [metric])[metric].mean())


def at_speed(monkeypatch: pytest.MonkeyPatch, texts_per_second: float) -> None:
    monkeypatch.setattr(RetrievalMonitor, "_speed", lambda self, task: texts_per_second)


def clock(monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    """A second passes from one look at the clock to the next."""
    seconds = itertools.count()
    monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=lambda: next(seconds)))


# ---- what is looked at, and when -----------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ndcg@10", "recall@1"])
def test_the_scores_are_those_of_the_saved_model(metric: str, make_model: MakeModel, tmp_path: Path) -> None:
    tasks = [save_animals(tmp_path / "animals"), save_animals(tmp_path / "beasts")]
    config = settings(steps=4, evaluate={"tasks": tasks, "every_steps": 2, "metric": metric})
    run(config, make_model(dropout=0.1), tmp_path / "run")
    assert list(looks(tmp_path / "run")) == [2, 4]
    for step, line in looks(tmp_path / "run").items():
        model = Embedder.from_pretrained(tmp_path / "run" / "checkpoints" / f"step-{step:06d}", device="cpu")
        expected = by_hand(load_task(tasks[0]), model, metric)
        assert 0 < expected < 1
        assert line["evaluation"] == pytest.approx({"animals": expected, "beasts": expected})
        assert line["evaluation_mean"] == pytest.approx(expected)
        assert line["evaluation_metric"] == metric


def test_the_best_model_by_the_metric_is_kept_and_said(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = {"learning_rate": 0.05, "warmup_steps": 0, "schedule": "constant"}  # far too fast
    task = save_animals(tmp_path / "animals")
    config = settings(
        steps=8, save_every=1, keep_checkpoints=9, held_out=0.2, evaluate_every=1, optim=optim,
        evaluate={"tasks": task, "every_steps": 1},
    )  # fmt: skip
    run(config, make_model(num_layers=2), tmp_path / "run")
    means = [line["evaluation_mean"] for line in looks(tmp_path / "run").values()]
    best = means.index(max(means)) + 1
    kept = tmp_path / "run" / "checkpoints" / "best"
    assert json.loads((kept / "best.json").read_text()) == {"step": best, "ndcg@10": means[best - 1]}
    assert_same_weights(kept, kept.with_name(f"step-{best:06d}"))
    said = capsys.readouterr().err
    assert "every 1 steps, ndcg@10 on animals (24 queries, 56 documents)" in said
    assert "checkpoints/best keeps the model of the highest mean ndcg@10" in said
    assert f"step {best}: ndcg@10 {means[best - 1]:.4f}, the best so far (animals " in said


def test_looking_changes_nothing(new_model: NewModel, tmp_path: Path) -> None:
    task = save_animals(tmp_path / "animals")
    for name, evaluate in {"with": {"tasks": task, "every_steps": 1}, "without": None}.items():
        run(settings(steps=4, evaluate=evaluate), new_model(), tmp_path / name)
    assert_same_weights(tmp_path / "with" / "model", tmp_path / "without" / "model")
    assert [line["loss"] for line in metrics(tmp_path / "with")] == [
        line["loss"] for line in metrics(tmp_path / "without")
    ]
    assert "best" in checkpoints(tmp_path / "with")
    assert "best" not in checkpoints(tmp_path / "without")


def test_minutes_are_those_of_the_run(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes a second: two seconds after the last look the next one is due, and at the end."""
    evaluate = {"tasks": save_animals(tmp_path / "animals"), "every_minutes": 2 / 60}
    clock(monkeypatch, loop)
    run(settings(evaluate=evaluate), make_model(num_layers=2), tmp_path / "run")
    assert list(looks(tmp_path / "run")) == [3, 5, 6]


# ---- the budget ----------------------------------------------------------------------------------


def planned(tasks: list[str], model: Embedder, **options: Any) -> RetrievalMonitor:
    config = ContrastiveConfig(steps=1, evaluate=EvaluateConfig(tasks=tuple(tasks), every_steps=1, **options))
    assert config.evaluate
    evaluation = RetrievalMonitor(config.evaluate, config, load_tasks(config.evaluate), model.train(), ALONE)
    evaluation.plan()
    return evaluation


def test_a_task_that_takes_too_long_is_cut_and_keeps_what_matters(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = save_animals(tmp_path / "animals"), make_model(num_layers=2)
    at_speed(monkeypatch, 10)
    whole = load_task(folder)
    for seconds, texts in ((16, 80), (15.8, 79), (12, 60), (5, 25)):
        evaluation = planned([folder], model, budget_seconds=seconds)
        (task,) = evaluation.tasks
        assert len(task.queries) + len(task.documents) == min(texts, 80)
        assert (task.qrels.grade > 0).sum() == 2 * len(task.queries)
        assert set(task.documents) <= set(whole.documents)
        assert ("of 24 queries" in evaluation.describe()) == (texts < 80)
        assert ("so few queries" in evaluation.describe()) == (texts < 80)
    assert "animals (1 of 24 queries, 24 of 56 documents)" in evaluation.describe()
    assert len(planned([folder], model, budget_seconds=99, queries=3).tasks[0].queries) == 3
    with pytest.raises(UserError, match="there is time for 10 texts of animals, too few"):
        planned([folder], model, budget_seconds=2)


def test_the_speed_is_that_of_large_batches_and_costs_a_tenth_of_the_budget(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth of a second per text, and three seconds for the first batch ever."""
    now = [3.0]
    batches: list[int] = []

    def encode(self: RetrievalMonitor, texts: list[str], role: str) -> None:
        now[0] += len(texts) / 100 + (0 if batches else 3)
        batches.append(len(texts))

    monkeypatch.setattr(RetrievalMonitor, "_encode", encode)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder = save_animals(tmp_path / "animals")
    evaluation = planned([folder], make_model(num_layers=2), budget_seconds=200)
    assert batches == [8, 16, 32, 56]
    assert evaluation._speed(evaluation.full[0]) == pytest.approx(100)
    batches.clear()
    now[0] = 3.0
    planned([folder], make_model(num_layers=2), budget_seconds=80)
    assert batches == [8]
    assert now[0] < 3.0 + 0.1 * 80


def test_an_evaluation_that_overruns_is_abandoned_and_training_goes_on(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_speed(monkeypatch, 1e9)
    clock(monkeypatch, budget)
    evaluate = {"tasks": save_animals(tmp_path / "animals"), "every_steps": 3, "budget_seconds": 0.5}
    run(settings(evaluate=evaluate), make_model(num_layers=2), tmp_path / "run")
    found = looks(tmp_path / "run")
    assert [(line["evaluation"], line["evaluation_mean"]) for line in found.values()] == [(None, None)] * 2
    assert len(metrics(tmp_path / "run")) == 6
    assert "best" not in checkpoints(tmp_path / "run")
    assert "warning: step 3: the evaluation was abandoned after" in capsys.readouterr().err
    page = write_report(tmp_path / "run", "late").read_text()
    assert "ran out of their budget and were abandoned: 2, first at step 3." in page


def test_ranking_too_looks_at_the_clock(make_model: MakeModel, tmp_path: Path) -> None:
    evaluation = planned([save_animals(tmp_path / "animals")], make_model(num_layers=2))
    deadline = Deadline(1e9)
    assert sum(len(part) for part in deadline.parts(np.zeros((40_000, 2)))) == 40_000
    deadline.seconds = -1.0
    with pytest.raises(Overrun):
        next(deadline.parts(np.zeros((3, 2))))
    with pytest.raises(Overrun):
        evaluation._score(evaluation.tasks[0], deadline)
    assert evaluation.model.training


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6), st.floats(0.01, 1e6))
def test_shares_are_even_but_never_more_than_needed(needs: list[float], total: float) -> None:
    shares = fair_shares(needs, total)
    assert sum(shares) <= total * (1 + 1e-9)
    assert all(share <= need for share, need in zip(shares, needs, strict=True))
    cut = [share for share, need in zip(shares, needs, strict=True) if share < need]
    assert cut == pytest.approx([max(shares)] * len(cut))
    if cut:
        assert sum(shares) == pytest.approx(total)


# ---- resuming ------------------------------------------------------------------------------------


def test_resumed_equals_uninterrupted_on_a_cut_task(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = save_animals(tmp_path / "animals")
    config = settings(evaluate={"tasks": task, "every_steps": 1, "budget_seconds": 12})
    with monkeypatch.context() as patch:
        at_speed(patch, 10)
        run(config, new_model(), tmp_path / "whole")
        interrupt_at(6, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config, new_model(), tmp_path / "cut")
    monkeypatch.setattr(
        RetrievalMonitor, "plan", lambda self: pytest.fail("the texts are those of the checkpoint")
    )
    run(config, new_model(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    for place in ("model", "checkpoints/best"):
        assert_same_weights(tmp_path / "cut" / place, tmp_path / "whole" / place)
    best = [(tmp_path / name / "checkpoints/best/best.json").read_text() for name in ("cut", "whole")]
    assert best[0] == best[1]


@pytest.mark.parametrize("shorter", [True, False])
def test_a_task_that_changed_since_is_refused(shorter: bool, new_model: NewModel, tmp_path: Path) -> None:
    task = save_animals(tmp_path / "animals")
    config = settings(steps=2, evaluate={"tasks": task, "every_steps": 1})
    run(config, new_model(), tmp_path / "run")
    corpus = tmp_path / "animals" / "corpus.jsonl"
    lines = corpus.read_text().splitlines()
    lines[-1:] = [] if shorter else [lines[-1].replace("the", "a")]
    corpus.write_text("\n".join(lines))
    with pytest.raises(UserError, match="the task animals is not what it was when the run began"):
        run(config, new_model(), tmp_path / "run", resume=True)


# ---- the report ----------------------------------------------------------------------------------


def test_the_report_shows_the_scores(make_model: MakeModel, tmp_path: Path) -> None:
    tasks = [save_animals(tmp_path / name) for name in ("animals", "bea<sts")]
    config = settings(evaluate={"tasks": tasks, "every_steps": 2})
    run(config, make_model(num_layers=2), tmp_path / "run")
    page = write_report(tmp_path / "run", "scores").read_text()
    card = page[page.index("<h3>nDCG@10 while training</h3>") :]
    table = card[card.index("<table") : card.index("</table>")]
    assert "<th scope=col>Step 2" in table
    assert "<th scope=col>Step 6" in table
    assert ", best</th>" in table
    for name in ("animals", "bea&lt;sts", "mean"):
        assert f"<th scope=row>{name}</th>" in table
    found = looks(tmp_path / "run")
    assert f"{found[6]['evaluation']['animals']:.3f}" in table
    best = max(line["evaluation_mean"] for line in found.values())
    assert f"and the best mean nDCG@10 while it trained was {best:.3f}, at step " in page


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"every_minutes": 1}, "give exactly one of every_steps and every_minutes"),
        ({"every_steps": None}, "give exactly one of every_steps and every_minutes"),
        ({"metric": "bleu@10"}, "unknown metric 'bleu@10'"),
        ({"metric": "ndcg@0"}, "must be a whole number above zero"),
        ({"metric": "hole@10"}, "no merit of a model"),
        ({"budget_seconds": 0}, "evaluate.budget_seconds must be above 0"),
        ({"budget_seconds": -5}, "evaluate.budget_seconds must be above 0"),
        ({"budget_seconds": float("nan")}, "evaluate.budget_seconds"),
        ({"tasks": []}, "evaluate.tasks"),
        ({"queries": 0}, "evaluate.queries"),
        ({"every_step": 5}, "unknown key 'evaluate.every_step', did you mean 'evaluate.every_steps'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], complaint: str) -> None:
    evaluate = {"tasks": ["a"], "every_steps": 2} | changes
    with pytest.raises(UserError, match=complaint):
        validate(ContrastiveConfig, {"steps": 1, "evaluate": evaluate})


def test_a_missing_folder_and_two_of_one_name_are_refused(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(evaluate={"tasks": str(tmp_path / "nowhere"), "every_steps": 2})
    with pytest.raises(UserError, match=r"no such task folder: .*nowhere"):
        run(config, new_model(), tmp_path / "run")
    (tmp_path / "other").mkdir()
    folders = [save_animals(tmp_path / "animals"), save_animals(tmp_path / "other" / "animals")]
    config = settings(evaluate={"tasks": folders, "every_steps": 2})
    with pytest.raises(UserError, match="two folders are called animals"):
        run(config, new_model(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_says_so_before_it_makes_a_folder(
    make_model: MakeModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command: Command = request.getfixturevalue("run")  # its name is taken here
    make_model().save_pretrained(tmp_path / "base")
    rows = [{"query": f"where is {i}?", "document": f"{i} is here"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "base": str(tmp_path / "base"), "out": str(tmp_path / "out"), "data": str(tmp_path / "pairs.jsonl"),
        "steps": 2, "batch_size": 4, "evaluate": {"tasks": "nowhere", "every_steps": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    code, _, err = command("train", tmp_path / "recipe.yaml")
    assert code == 2
    assert "no such task folder: nowhere" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    task = save_animals(tmp_path / "animals")
    code, out, err = command("train", tmp_path / "recipe.yaml", f"evaluate.tasks={task}", "--json")
    assert (code, json.loads(out)["steps"]) == (0, 2), err
    assert list(looks(tmp_path / "out")) == [1, 2]
    assert torch.is_tensor(Embedder.from_pretrained(tmp_path / "out", device="cpu").encoder.word.weight)
