"""`moembed experiment`: a small grid, interrupted, resumed, shared, refused; and the table it ends in."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import MakeModel, Run
from moembed.compare.comparison import compare
from moembed.compare.results import SCORE
from moembed.compare.runs import read_runs
from moembed.compare.scores import load_scores
from moembed.experiment.batches import BatchOrder
from moembed.experiment.budget import budget
from moembed.experiment.outcome import expert_distance
from moembed.experiment.settings import read_plan, same_in_all_seeds
from moembed.files import locked
from moembed.folder.read import read_folder
from moembed.training.contrastive import gradcache
from moembed.training.interrupt import interruptible
from moembed.training.log import read_metrics
from moembed.types import UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle
from training_runs import PAIRS, save_animals

MOE = {"upcycle": {"num_experts": 4}}


@pytest.fixture
def grid(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dense cell and one with experts, of four steps; nothing draws a report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    make_model(num_layers=2).save_pretrained("base")
    rows = [{"query": pair.query, "document": pair.document} for pair in PAIRS]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"base": "base", "data": "pairs.jsonl", "steps": 4, "batch_size": 8, "precision": "float32"}
    values = {
        "name": "owls", "question": "Do experts help owls?", "control": "dense",
        "tasks": [save_animals(Path("animals"))],
        "recipe": recipe | {"save_every": 2}, "cells": {"dense": None, "moe": MOE},
    }  # fmt: skip
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps(values))
    return path


def change(grid: Path, **changes: Any) -> None:
    grid.write_text(json.dumps(json.loads(grid.read_text()) | changes))


def cells(**more: Any) -> dict[str, Any]:
    return {"cells": {"dense": None, **more}}


def start(run: Run, grid: Path, *arguments: object, seeds: int = 1) -> tuple[int, str, str]:
    return run("experiment", grid, "--seeds", seeds, "--nice", 0, *arguments)


def results(folder: str = "runs/experiments/owls") -> dict[str, dict[str, Any]]:
    files = sorted(Path(folder).rglob("result.json"))
    return {str(file.parent.relative_to(folder)): json.loads(file.read_text()) for file in files}


def test_the_record_says_what_compare_says(run: Run, grid: Path) -> None:
    code, out, err = start(run, grid, "question=Do owls need experts?", "--json", seeds=2)
    assert code == 0, err
    printed = json.loads(out)
    assert [*results()] == ["dense/seed-0", "dense/seed-1", "moe/seed-0", "moe/seed-1"]
    # the same pairs in every cell of a seed, others in the other seed
    hashes = {name: found["batches"] for name, found in results().items()}
    assert hashes["dense/seed-0"] == hashes["moe/seed-0"] != hashes["dense/seed-1"] == hashes["moe/seed-1"]
    # the figures are those of `moembed compare` on the files of scores
    folder = "runs/experiments/owls"
    patterns = [f"{cell}={folder}/{cell}/seed-*/scores.parquet" for cell in ("dense", "moe")]
    compared = compare(read_runs(patterns), "dense", paired=["moe"])
    assert printed["comparison"]["paired"] == ["moe"]
    gap = compared.overall.differences["moe"][SCORE]
    assert printed["comparison"]["overall"]["differences"]["moe"][SCORE]["p_holm"] == gap.p_holm
    scored = [
        run_[0]["animals"].values["ndcg@10"].mean()
        for run_ in [[seed] for seed in read_runs(patterns)["moe"]]
    ]
    assert printed["spread"]["moe"] == pytest.approx(np.std(scored, ddof=1))
    # the record holds them, its plots and its commands
    record = Path("records/owls.md").read_text()
    assert f"{gap.mean:+.3f}".replace("-", "−") in record
    # the question is printed, and is no part of the commands that make a cell again
    assert "Do owls need experts?" in record
    assert "moembed experiment " + str(grid) + " --seeds 2 --only moe" in record
    assert "| moe | 2 of 2 |" in record
    for plot in ("differences", "cost"):
        assert f"(owls-{plot}.svg)" in record
        drawing = Path(f"records/owls-{plot}.svg").read_text()
        assert drawing.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        assert "var(" not in drawing
    assert json.loads(Path("records/owls.json").read_text()) == printed
    moved = results()["moe/seed-0"]["routing"]
    assert 0 < moved["distance"] < 0.5  # copies that four steps have moved apart
    assert moved["highest"] == pytest.approx(np.log(4))
    assert results()["dense/seed-0"]["routing"] is None
    # every text of every pair of every step, with what the tokenizer puts around it
    tokens = {name: found["train_tokens"] for name, found in results().items()}
    rows = read_metrics(Path("runs/experiments/owls/moe/seed-0/run/metrics.jsonl"))
    assert tokens["moe/seed-0"] == tokens["dense/seed-0"] == sum(row["tokens"] for row in rows) > 4 * 8 * 2
    assert results()["moe/seed-0"]["active_parameters"] < results()["moe/seed-0"]["parameters"]


def test_killed_and_started_again_it_is_the_grid_that_was_not(
    run: Run, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(start(run, grid, "out=whole", "--json")[1])
    backward, calls = gradcache.backward, iter(range(1, 99))

    def terminated(*arguments: Any) -> Any:
        if next(calls) == 7:  # the third step of the second cell
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gradcache, "backward", terminated)
        code, _, err = start(run, grid)
    assert code == 0
    assert "stopped early; runs/experiments/owls keeps what is done, the same command goes on" in err
    assert "**1 of 2 runs are finished**" in Path("records/owls.md").read_text()
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(gradcache, "backward", lambda *given: steps.append(1) or backward(*given))
        code, out, err = start(run, grid, "--json")
    assert code == 0, err
    assert len(steps) == 1  # the fourth of four
    assert "---- 1 of 1: moe, seed 0" in err  # dense is not done again
    assert json.loads(out)["comparison"] == whole["comparison"]
    before = Path("runs/experiments/owls/moe/seed-0/result.json").stat().st_mtime_ns
    assert start(run, grid)[0] == 0
    assert Path("runs/experiments/owls/moe/seed-0/result.json").stat().st_mtime_ns == before


def test_minutes_that_are_over_stop_it(run: Run, grid: Path) -> None:
    code, _, err = start(run, grid, "recipe.steps=3000", "--minutes", 0.01)
    assert code == 0, err
    assert "stopped early" in err
    assert not results()


def test_a_training_is_asked_to_stop_when_the_minutes_are_over() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with budget(1e-4) as state, interruptible() as interrupt:
        while not interrupt.asked:
            time.sleep(0.01)
        assert state.over
    assert signal.getsignal(signal.SIGTERM) == before
    with budget(None) as state:
        assert not state.over
        os.kill(os.getpid(), signal.SIGTERM)
        assert state.over


def test_a_cell_that_fails_is_recorded_and_the_grid_goes_on(run: Run, grid: Path) -> None:
    change(
        grid,
        cells={"dense": None, "broken": {"upcycle": {"num_experts": 2, "router": {"top_k": 3}}}, "moe": MOE},
    )
    code, out, err = start(run, grid)
    assert code == 0, err
    assert "broken, seed 0 failed:" in err
    assert "the same command tries again" in err
    failed = json.loads(Path("runs/experiments/owls/broken/seed-0/failed.json").read_text())
    assert "top_k" in failed["error"]
    assert f"**broken, seed 0 failed:** {failed['error']}" in Path("records/owls.md").read_text()
    assert "moe" in out
    # a control that fails leaves nothing to compare, and that is an error
    change(grid, out="other", cells={"dense": {"layers": 7}, "moe": MOE})
    code, _, err = start(run, grid)
    assert code == 2
    assert "nothing can be compared, for dense, seed 0 failed: layers 7 is not within 1..2" in err


def test_what_another_process_works_on_is_left_to_it(run: Run, grid: Path) -> None:
    with locked(Path("runs/experiments/owls/moe/seed-0")):
        code, _, err = start(run, grid)
    assert code == 0, err
    assert "another process works on moe, seed 0" in err
    assert [*results()] == ["dense/seed-0"]
    assert start(run, grid, "--only", "moe")[0] == 0
    assert [*results()] == ["dense/seed-0", "moe/seed-0"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (cells(moe={"batch_size": 4}), "do not see the same pairs in the same order"),
        (cells(moe={"steps": 5}), "after equal steps, but they differ (dense 4, moe 5)"),
        (cells(moe={"steps": None, "minutes": 1}), "cell moe: an experiment counts in steps"),
        (cells(moe={"upcycel": 1}), "cell moe: unknown key 'upcycel'"),
        (cells(moe={"seed": 1}), "cell moe: seed is set by the experiment"),
        (cells(**{"../moe": None}), "a cell has a folder of its name, which cannot be '../moe'"),
        (cells(), "cells must have at least 2 entries"),
        ({"control": "danse"}, "control 'danse' is no cell; the cells are dense, moe"),
        ({"name": "a/b"}, "it names files and folders"),
        ({"tasks": ["nowhere"]}, "nowhere"),
        ({"recipe_file": "no.yaml"}, "no such recipe"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    changes: dict[str, Any], sentence: str, run: Run, grid: Path
) -> None:
    change(grid, **changes)
    for arguments in ((), ("--dry-run",)):
        code, _, err = start(run, grid, *arguments)
        assert code == 2
        assert sentence in err
        assert err.count("error: ") == 1
    assert not Path("runs").exists()


def test_negatives_prompts_and_losses_are_no_other_order(grid: Path) -> None:
    rows = [json.loads(line) | {"negative": "worms"} for line in Path("pairs.jsonl").read_text().splitlines()]
    Path("mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "mined.jsonl", "query_prompt": "document", "loss": "symmetric_info_nce"}
    change(grid, cells={"dense": None, "mined": {"data": [source]}})
    jobs = read_plan(grid, [], 1).jobs
    order = BatchOrder()
    order.require_equal(jobs)
    assert len(order.known) == 2  # both were read
    # the same rows in another order in the file are another order
    Path("mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    with pytest.raises(UserError, match="do not see the same pairs"):
        BatchOrder().require_equal(jobs)


def test_a_finished_run_of_another_recipe_or_other_pairs_is_not_compared(run: Run, grid: Path) -> None:
    assert start(run, grid)[0] == 0
    code, _, err = start(run, grid, "recipe.steps=5")
    assert code == 2
    assert "was made by another recipe" in err
    code, _, err = start(run, grid, "sample=5")
    assert code == 2
    assert "was evaluated on other tasks, or with another sample or dims" in err
    file = Path("runs/experiments/owls/moe/seed-0/result.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"batches": "0"}))
    code, _, err = start(run, grid)
    assert code == 2
    assert "dense and moe were trained on other pairs (seed 0)" in err


def test_a_dry_run_trains_nothing_and_says_what_is_left(run: Run, grid: Path) -> None:
    code, out, err = start(run, grid, "--dry-run", "--json", seeds=3)
    assert code == 0, err
    told = json.loads(out)
    assert [(cell["cell"], cell["done"], cell["left"]) for cell in told["cells"]] == [
        ("dense", 0, 3),
        ("moe", 0, 3),
    ]
    assert told["seconds"] == pytest.approx(sum(cell["left"] * cell["seconds"] for cell in told["cells"]))
    assert "which were timed" in told["source"]
    assert not Path("runs").exists()
    assert start(run, grid, "--only", "dense")[0] == 0
    code, out, _ = start(run, grid, "--dry-run", seeds=3)
    assert "the time is that of the runs that are finished" in out


def test_a_cell_is_the_same_whatever_stands_before_it(grid: Path) -> None:
    optim = json.loads(grid.read_text())["recipe"] | {"optim": {"learning_rate": 1e-4}}
    change(grid, recipe=optim, **cells(fast={"optim.learning_rate": 1e-2}, moe=MOE))
    found = {job.cell: job.config.optim.learning_rate for job in read_plan(grid, [], 1).jobs}
    assert found == {"dense": 1e-4, "fast": 1e-2, "moe": 1e-4}


def test_every_cell_is_compared_at_the_value_that_is_best_for_it(run: Run, grid: Path) -> None:
    change(grid, tune={"optim.learning_rate": [1e-30, 3e-2, 1e-3]}, **cells(moe=MOE))
    code, out, err = start(run, grid, "--json", seeds=2)
    assert code == 0, err
    printed = json.loads(out)
    variants = [f"{cell} at {value}" for cell in ("dense", "moe") for value in ("1e-30", "0.03", "0.001")]
    assert [*results()] == sorted(f"{name}/seed-{seed}" for name in variants for seed in range(2))
    # a rate of nothing leaves the base, so a better one is chosen, by the mean over seeds
    means = {name: np.mean(runs) for name, runs in printed["means"].items()}
    best = {
        cell: max((f"{cell} at {v}" for v in ("1e-30", "0.03", "0.001")), key=means.get)
        for cell in ("dense", "moe")
    }
    assert best["dense"] != "dense at 1e-30"
    comparison = printed["comparison"]
    assert comparison["reference"] == printed["control"] == best["dense"]
    assert [*comparison["overall"]["differences"]] == [best["moe"]]
    # the record has all values, and says when the best is at the edge
    record = Path("records/owls.md").read_text()
    for runs in printed["means"].values():
        assert f"{np.mean(runs):.3f} ± {np.std(runs, ddof=1):.3f}" in record
    edge = [name for name in best.values() if name.endswith(("at 1e-30", "at 0.03"))]
    assert ("At the edge of what was tried" in record) == bool(edge)
    assert all(name in record.split("At the edge")[-1] for name in edge)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tune": {"optim.learning_rate": [1e-4]}}, "nothing to choose from"),
        ({"tune": {"optim.learning_rate": [1e-4, 1e-4]}}, "nothing to choose from"),
        ({"tune": {"a": [1, 2], "b": [1, 2]}}, "tune"),
        (
            {
                "tune": {"optim.learning_rate": [1e-4, 2e-4]},
                "cells": {"dense": {"optim.learning_rate": 1e-3}, "moe": MOE},
            },
            "cell 'dense' sets optim.learning_rate, which tune sets",
        ),
        (
            {
                "tune": {"optim.learning_rate": [1e-4, 2e-4]},
                "cells": {"dense": {"optim": {"weight_decay": 0}}, "moe": MOE},
            },
            r"cell 'dense' sets the section optim.*dot its keys, as in optim\.key",
        ),
        ({"tune": {"optim.learning_rate": [1e-4, 1.0000001e-4]}}, "two values that both read 0.0001"),
        ({"tune": {"optim.rate": [1, 2]}}, "learning_rate"),
    ],
)
def test_what_cannot_be_tuned_is_refused(grid: Path, changes: dict[str, Any], sentence: str) -> None:
    change(grid, **changes)
    with pytest.raises(UserError, match=sentence):
        read_plan(grid, [], 1)


def test_no_section_takes_a_tuned_value_back(grid: Path) -> None:
    recipe = json.loads(grid.read_text())["recipe"]
    recipe = {"optim.learning_rate": 1e-5} | {key: recipe[key] for key in recipe if "optim" not in key}
    change(grid, tune={"optim.learning_rate": [1e-4, 2e-4]}, recipe=recipe | {"optim": {"weight_decay": 0}})
    rates = {job.cell: job.config.optim.learning_rate for job in read_plan(grid, [], 1).jobs}
    assert (rates["dense at 0.0001"], rates["dense at 0.0002"]) == (1e-4, 2e-4)


def test_a_variant_and_its_cell_name_what_to_run(grid: Path) -> None:
    change(grid, tune={"optim.learning_rate": [1e-4, 2e-4]})
    names = {job.cell for job in read_plan(grid, [], 1, only=["moe"]).chosen}
    assert names == {"moe at 0.0001", "moe at 0.0002"}
    assert {job.cell for job in read_plan(grid, [], 1, only=["moe at 0.0002"]).chosen} == {"moe at 0.0002"}


def test_without_a_base_nothing_is_tried(run: Run, grid: Path) -> None:
    recipe = json.loads(grid.read_text())["recipe"]
    change(grid, recipe=recipe | {"base": "nowhere"})
    code, _, err = start(run, grid)
    assert code == 2
    assert "nowhere" in err
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_each_seed_has_a_router_of_its_own(grid: Path) -> None:
    change(grid, cells={"dense": None, "moe": MOE, "fixed": {"upcycle": {"seed": 5}}})
    seeds = [
        (job.cell, job.config.upcycle and job.config.upcycle.seed) for job in read_plan(grid, [], 2).jobs
    ]
    assert seeds == [("dense", None), ("moe", 0), ("fixed", 5), ("dense", None), ("moe", 1), ("fixed", 5)]


def test_the_recipe_of_a_finished_run_does_not_fix_the_experts(run: Run, grid: Path) -> None:
    values = json.loads(grid.read_text())["recipe"]
    Path("recipe.yaml").write_text(json.dumps(values | {"seed": 7, "out": "there", "upcycle": {"seed": 7}}))
    change(grid, recipe_file="recipe.yaml", recipe={}, cells={"moe": None, "fixed": {"upcycle.seed": 5}},
           control="moe")  # fmt: skip
    plan = read_plan(grid, [], 2)
    seeds = [(job.cell, job.config.seed, job.config.upcycle and job.config.upcycle.seed) for job in plan.jobs]
    assert seeds == [("moe", 0, 0), ("fixed", 0, 5), ("moe", 1, 1), ("fixed", 1, 5)]
    note = (
        "note: cell fixed: upcycle.seed is 5 in every seed, so what is random in its new experts does not "
        "vary"
    )
    assert same_in_all_seeds(plan) == [note]
    assert same_in_all_seeds(read_plan(grid, [], 1)) == []
    code, _, err = run("experiment", grid, "--seeds", 2, "--dry-run")
    assert (code, note in err) == (0, True), err


def test_the_distance_of_experts(make_model: MakeModel, tmp_path: Path) -> None:
    """0 of copies; the formula pair by pair; sqrt(2) of independent matrices."""
    dense = make_model(gated=True).parts()
    spec, state = upcycle(dense.spec, dense.state, UpcycleConfig(num_experts=3))
    assert expert_distance(spec, state) == 0
    generator = torch.Generator().manual_seed(0)
    moved = {k: v + torch.randn(v.shape, generator=generator) for k, v in state.items()}
    found, parts = [], ("up_EFD", "gate_EFD", "down_EDF")
    for layer in (1, 3):
        flat = [
            torch.cat([moved[f"layers.{layer}.ffn.{part}"][e].flatten() for part in parts]) for e in range(3)
        ]
        found += [
            float((flat[i] - flat[j]).norm() / (flat[i].norm() * flat[j].norm()).sqrt())
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
    assert expert_distance(spec, moved) == pytest.approx(np.mean(found), rel=1e-5)
    apart = {k: torch.randn(v.shape, generator=generator) for k, v in state.items()}
    assert expert_distance(spec, apart) == pytest.approx(2**0.5, rel=0.1)


def test_a_recipe_may_be_a_file_and_models_may_go(run: Run, grid: Path) -> None:
    recipe = json.loads(grid.read_text())["recipe"]
    Path("recipe.yaml").write_text(json.dumps(recipe | {"steps": 900}))
    read = "Owls need no experts."
    own = {"keep_models": False, "name": "", "dims": [4], "conclusion": read}
    change(grid, recipe_file="recipe.yaml", recipe={"steps": 2}, **own)
    code, _, err = start(run, grid, "--record", "there.md")
    assert code == 0, err
    folder = Path("runs/experiments/grid/dense/seed-0")  # named by the file
    assert (folder / "scores.parquet").is_file()
    assert not (folder / "run" / "model").exists()
    # the shorter vectors are those of `moembed evaluate --dims`, in a table of their own
    model = Path("runs/experiments/grid/moe/seed-0")
    short, whole = (load_scores(model / name)[0][0] for name in ("scores-4.parquet", "scores.parquet"))
    assert not np.array_equal(short.values["ndcg@10"], whole.values["ndcg@10"])
    record = Path("there.md").read_text()
    assert f"\n\n{read}\n\n## Scores" in record
    table = record.partition("### Cut to 4 coordinates")[2].partition("##")[0]
    assert f"{short.values['ndcg@10'].mean():.3f}" in table


def test_the_log_is_what_the_routing_is_read_from(run: Run, grid: Path) -> None:
    assert start(run, grid, "--only", "moe")[0] == 0
    folder = Path("runs/experiments/owls/moe/seed-0")
    lines = [json.loads(line)["router"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    moved = results()["moe/seed-0"]["routing"]
    for key, name in (("entropy", "entropy"), ("top_mass", "share")):
        ends = [np.mean([layer[key] for layer in lines[step]]) for step in (0, -1)]
        assert moved[name] == pytest.approx(ends)
    parts = read_folder(folder / "run/model")
    assert moved["distance"] == expert_distance(parts.spec, parts.state)


def test_a_schedule_of_the_batch_size_is_other_pairs(run: Run, grid: Path) -> None:
    growing = {"schedules": {"batch_size": {0: 4, 1: 8}}}
    change(grid, **cells(growing=growing))
    code, _, err = start(run, grid, "--dry-run")
    assert (code, "the cells dense and growing do not see the same pairs" in err) == (2, True)
    change(grid, cells={"dense": growing, "temperate": growing | {"loss.temperature": 0.5}})
    code, _, err = start(run, grid, "--dry-run")
    assert code == 0, err
