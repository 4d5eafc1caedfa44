"""Systems by rank over many tasks, and the few tasks whose mean ranks them as all tasks do.

Sources: the Borda count as the leaderboard of MTEB has it (Enevoldsen et al., *MMTEB*, arXiv 2502.13595).
That paper drops tasks which a regression predicts from the others; here tasks are added greedily, a form of
ours, and the error is that of systems which had no say in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moembed.compare.results import BordaRank, ChosenTasks, Comparison, TaskCells
from moembed.types import UserError

_LEAST_SYSTEMS = 3


def score_table(result: Comparison) -> tuple[list[str], list[str], np.ndarray]:
    """The systems that have all tasks, the tasks, and the main metric of each: ``(S, T)``."""
    tasks = list(result.tasks)
    systems = [name for name in result.systems if all(_has(task, name) for task in result.tasks.values())]
    table = [[task.metrics[name][task.main].value for task in result.tasks.values()] for name in systems]
    return systems, tasks, np.array(table, dtype=np.float64).reshape(len(systems), len(tasks))


def _has(task: TaskCells, system: str) -> bool:
    """Whether a system has a score on a task, and one that is a number."""
    own = task.metrics.get(system, {})
    return task.main in own and math.isfinite(own[task.main].value)


def borda_ranks(result: Comparison) -> dict[str, BordaRank]:
    """Of the systems that have all tasks, best first; none where there are not two of both."""
    systems, tasks, score_ST = score_table(result)
    if min(len(systems), len(tasks)) < 2:
        return {}
    ranked = zip(systems, borda(score_ST), strict=True)
    return dict(sorted(ranked, key=lambda pair: (pair[1].rank, -pair[1].points)))


def borda(score_ST: np.ndarray) -> list[BordaRank]:
    """``points_s = sum_t (S - rank_st)``, rank 1 for the best of a task; equal scores share their mean rank.

    Systems of equal points have the same rank, the best of those that they share.
    """
    points_S = (len(score_ST) - _ranks(score_ST)).sum(axis=1)
    rank_S = 1 + (points_S[None] > points_S[:, None] + 1e-9).sum(axis=1)
    return [BordaRank(float(p), int(r)) for p, r in zip(points_S, rank_S, strict=True)]


def spearman(one_S: np.ndarray, other_S: np.ndarray) -> float:
    """The correlation of two rankings, 0 where one of them has ties alone."""
    ranks = [_ranks(values[:, None])[:, 0] for values in (one_S, other_S)]
    centred = [rank_S - rank_S.mean() for rank_S in ranks]
    length = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / length) if length else 0.0


def choose_tasks(score_ST: np.ndarray, names: Sequence[str], count: int) -> ChosenTasks:
    """Add, ``count`` times, the task with which the mean of those chosen ranks the systems most as all do.

    Of tasks that rank alike, the one that brings the differences between systems nearest to those over all
    tasks is taken, then the first.

    Raises:
        UserError: fewer than three systems, or as many tasks asked for as there are.
    """
    systems, tasks = score_ST.shape
    if systems < _LEAST_SYSTEMS:
        raise UserError(f"{systems} systems have all tasks: a choice of tasks needs {_LEAST_SYSTEMS} or more")
    if not 0 < count < tasks:
        raise UserError(f"there are {tasks} tasks: choose fewer than that, and one at least")
    errors = []
    for left_out in range(systems):
        others_ST = np.delete(score_ST, left_out, axis=0)
        few = _greedy(others_ST, count)
        shift = others_ST.mean() - others_ST[:, few].mean()  # the few may be easier than the rest
        errors.append(abs(score_ST[left_out, few].mean() + shift - score_ST[left_out].mean()))
    few = _greedy(score_ST, count)
    alike = spearman(score_ST[:, few].mean(axis=1), score_ST.mean(axis=1))
    return ChosenTasks([names[t] for t in few], alike, float(np.mean(errors)), systems, tasks)


def _greedy(score_ST: np.ndarray, count: int) -> list[int]:
    whole_S = score_ST.mean(axis=1)
    chosen: list[int] = []
    for _ in range(count):
        best: tuple[float, float, int] | None = None
        for task in range(score_ST.shape[1]):
            if task in chosen:
                continue
            mean_S = score_ST[:, [*chosen, task]].mean(axis=1)
            gap_S = mean_S - mean_S.mean() - (whole_S - whole_S.mean())
            found = (-round(spearman(mean_S, whole_S), 9), round(float(np.square(gap_S).mean()), 12), task)
            best = found if best is None else min(best, found)
        assert best is not None
        chosen.append(best[2])
    return chosen


def _ranks(score_SX: np.ndarray) -> np.ndarray:
    """Within each column, 1 for the highest; equal ones share the mean of their ranks."""
    above_SX = (score_SX[None] > score_SX[:, None]).sum(axis=1)
    equal_SX = (score_SX[None] == score_SX[:, None]).sum(axis=1)
    return 1 + above_SX + (equal_SX - 1) / 2
