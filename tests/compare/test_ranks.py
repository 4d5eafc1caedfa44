"""Ranks by Borda count, against mteb's own; the choice of a few tasks, against every choice there is."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from conftest import Run
from moembed.compare.comparison import compare
from moembed.compare.ranks import borda, choose_tasks, spearman
from moembed.compare.scores import Scores, save_scores
from moembed.types import UserError

TABLES = st.integers(1, 6).flatmap(
    lambda tasks: st.lists(
        st.lists(st.integers(0, 4).map(float), min_size=tasks, max_size=tasks), min_size=1, max_size=6
    )
)


@given(TABLES)
def test_ranks_are_those_of_mteb(table: list[list[float]]) -> None:
    """Ties within a task and between systems included."""
    import polars as pl
    from mteb.benchmarks._create_table import _get_borda_rank

    names = [f"task {number}" for number in range(len(table[0]))]
    theirs = pl.DataFrame(table, schema=names, orient="row").select(_get_borda_rank(names)).to_series()
    found = borda(np.array(table))
    assert [one.rank for one in found] == theirs.to_list()
    systems = len(table)
    assert sum(one.points for one in found) == pytest.approx(len(names) * systems * (systems - 1) / 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
def test_the_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs, dtype=float).T
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    else:
        assert spearman(one, other) == 0


def test_a_task_that_says_all_is_chosen_first() -> None:
    """Five tasks of noise and one that is the mean of all; one task is the best of all choices of one."""
    rng = np.random.default_rng(0)
    noise_ST = rng.random((8, 5))
    score_ST = np.concatenate([noise_ST, noise_ST.mean(axis=1, keepdims=True)], axis=1)
    names = [*"abcde", "all"]
    one = choose_tasks(score_ST, names, 1)
    assert (one.tasks, one.spearman, one.systems, one.of) == (["all"], 1.0, 8, 6)
    assert one.error == pytest.approx(0, abs=1e-12)
    rest = choose_tasks(noise_ST, names[:5], 1)
    best = max(spearman(noise_ST[:, t], noise_ST.mean(axis=1)) for t in range(5))
    assert rest.spearman == pytest.approx(best)
    three = choose_tasks(noise_ST, names[:5], 3)
    every = [spearman(noise_ST[:, list(few)].mean(1), noise_ST.mean(1)) for few in combinations(range(5), 3)]
    assert rest.spearman <= three.spearman <= max(every) + 1e-12
    assert 0 < three.error < rest.error


def test_the_error_is_that_of_systems_without_a_say() -> None:
    """By hand: the first task is easier than both by as much for all systems but one."""
    all_S = np.array([0.1, 0.2, 0.3, 0.9])
    score_ST = np.stack([all_S + 0.05, all_S - 0.05], axis=1)
    score_ST[3] = [0.95, 0.75]
    found = choose_tasks(score_ST, ["a", "b"], 1)
    errors = []
    for s in range(4):
        others = np.delete(score_ST, s, axis=0)
        errors.append(abs(score_ST[s, 0] + others.mean() - others[:, 0].mean() - score_ST[s].mean()))
    assert found.tasks == ["a"]
    assert found.error == pytest.approx(np.mean(errors))


def test_too_few_systems_or_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="2 systems have all tasks: a choice of tasks needs 3"):
        choose_tasks(np.ones((2, 4)), list("abcd"), 1)
    with pytest.raises(UserError, match="there are 2 tasks: choose fewer"):
        choose_tasks(np.ones((3, 2)), ["a", "b"], 2)


def task(name: str, value: float) -> Scores:
    items = 40
    value_Q = np.clip(value + 0.1 * np.random.default_rng(len(name)).normal(size=items), 0, 1)
    ids = [f"q{i}" for i in range(items)]
    return Scores(name, "retrieval", ids, ["en"] * items, np.full(items, 20), {"ndcg@10": value_Q})


def test_the_commands_rank_systems_that_have_all_tasks(tmp_path: Path, run: Run) -> None:
    scores = {"a": [0.2, 0.5, 0.4], "b": [0.3, 0.4, 0.3], "c": [0.4, 0.6, 0.5], "d": [0.9]}
    for name, values in scores.items():
        tasks = [task(f"task {'i' * number}", value) for number, value in enumerate(values)]
        save_scores(tmp_path / f"{name}.parquet", tasks, {"system": name})
    files = [tmp_path / f"{name}.parquet" for name in scores]
    code, out, err = run("compare", *files, "--reference", "a", "--choose", 1)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("rank")]
    ranks = line.split("Borda count")[1].replace(" points)", "").split()
    assert ranks == ["2", "(2", "3", "(1", "1", "(6"]
    assert "Of 3 tasks, task" in out
    code, out, err = run("compare", *files[:2], "--choose", 1)
    assert (code, "2 systems have all tasks" in err) == (2, True)
    systems = {name: [{t.task: t for t in [task("one", v[0])]}] for name, v in scores.items()}
    assert compare(systems).borda == {}  # of one task the scores say it
