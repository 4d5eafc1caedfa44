"""Do experts help a fine-tuned encoder, and does it matter whether a token visits one or two of them?

all-MiniLM-L6-v2 is trained by `recipes/finetune.yaml` as it is, with eight experts in every second layer of
which a token visits two, and of which it visits one: the same pairs in the same order for the same number
of steps, with several seeds. Each model is evaluated on retrieval tasks it was not trained on; the
difference to the dense twin has a 95 % interval over queries and seeds, and a p-value corrected for the
number of comparisons (Holm).

English pairs and tasks of MOEMBED_DATA, else functions of installed packages and their summaries. On a GPU
it takes up to eight minutes: seeds that no time was left for are named. On a CPU a few steps rehearse it,
which says nothing about experts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import stdev
from tempfile import TemporaryDirectory

import numpy as np

from moembed.compare.significance import Runs, difference, holm, resample
from moembed.compare.statistics import MEAN
from moembed.data.docstrings import collect
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.tasks import evaluate
from moembed.folder.bases import read_base
from moembed.machine import ROOT, best_dtype
from moembed.runs.bench import Options, Row
from moembed.runs.train import TrainConfig, build, load_recipe, open_mixture
from moembed.training.contrastive.train import train_contrastive

from . import texts
from .texts import reduced

METRIC, DRAWS = "ndcg@10", 2000
TASKS = ("scifact-en", "squad-dev-en", "belebele-en")
DENSE = "dense twin"
CELLS: dict[str, tuple[str, ...]] = {
    DENSE: ("upcycle=null",),
    "8 experts, top-2": ("upcycle.num_experts=8", "upcycle.every=2", "upcycle.router.top_k=2"),
    "8 experts, top-1": ("upcycle.num_experts=8", "upcycle.every=2", "upcycle.router.top_k=1"),
}


@dataclass(frozen=True)
class Plan:
    """How much is trained and evaluated.

    Attributes:
        seconds: of all seeds; one that would end later is not begun.
        documents: of a task, at most; those that answer a query first.
        length: tokens of a text, where the recipe has too many for the base.
    """

    steps: int
    batch_size: int
    seeds: int
    seconds: float
    documents: int
    base: str = "minilm"
    length: int | None = None


FULL = Plan(steps=120, batch_size=1024, seeds=3, seconds=420, documents=100_000)
REHEARSAL = Plan(steps=2, batch_size=32, seeds=2, seconds=600, documents=200)


def rows(options: Options) -> Iterator[Row]:
    on_gpu = options.device == "cuda" and not options.quick
    yield from ablation(FULL if on_gpu else REHEARSAL, *data(), options.device)


def ablation(
    plan: Plan, sources: Sequence[str], tasks: Sequence[RetrievalTask], device: str
) -> Iterator[Row]:
    """Rows of every cell: what it scores, and how it differs from the dense twin."""
    question = f"{plan.steps} steps of {plan.batch_size:,} pairs, {METRIC} of {len(tasks)} tasks"
    tasks = [reduced(task, plan.documents) for task in tasks]
    start = time.monotonic()
    score_RQ: dict[str, list[np.ndarray]] = {cell: [] for cell in CELLS}

    # a seed of every cell after the other, so that all cells have as many
    for seed in range(plan.seeds):
        spent = time.monotonic() - start
        if seed and spent + spent / seed > plan.seconds:  # another seed takes as long as one before it
            yield Row(question, f"seeds {seed} to {plan.seeds - 1}", note="not run: no time was left")
            break
        for cell in CELLS:
            score_RQ[cell].append(trained_and_evaluated(recipe(cell, seed, plan, sources), tasks, device))

    # every system on the same resamples of the queries
    runs = resampled(score_RQ)
    gaps = {
        cell: difference(runs[cell], runs[DENSE], len(score_RQ[cell][0])) for cell in CELLS if cell != DENSE
    }
    p_values = dict(zip(gaps, holm([gap.p_value for gap in gaps.values()]), strict=True))
    for cell, one in runs.items():
        spread = f"seeds ± {stdev(one.value_R):.4f}" if len(one.value_R) > 1 else "one seed"
        note = spread
        if gap := gaps.get(cell):
            note += f"; {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] against the {DENSE}, "
            note += f"p = {p_values[cell]:.3f}"
        yield Row(question, cell, one.value, METRIC, note=note)


def trained_and_evaluated(config: TrainConfig, tasks: Sequence[RetrievalTask], device: str) -> np.ndarray:
    """The metric of every query of all tasks, each task weighing the same in their mean."""
    with TemporaryDirectory() as place:
        run = Path(place) / "run"
        model = build(read_base(config.base), config)
        train_contrastive(config, model, open_mixture(config), run, record=config)
        model = Embedder.from_pretrained(run / "model", dtype=best_dtype(), device=device)
        values = [evaluate(task, model, [METRIC]).values[METRIC] for task in tasks]
    total = sum(map(len, values))
    return np.concatenate([value_Q * total / (len(values) * len(value_Q)) for value_Q in values])


def recipe(cell: str, seed: int, plan: Plan, sources: Sequence[str]) -> TrainConfig:
    settings = (
        f"base={plan.base}", f"steps={plan.steps}", f"batch_size={plan.batch_size}", f"seed={seed}",
        *(f"{side}_length={plan.length}" for side in ("query", "document") if plan.length),
        f"data={json.dumps(list(sources))}", "small_sources=skip", "save_every=1000000", *CELLS[cell],
    )  # fmt: skip
    return load_recipe(ROOT / "recipes" / "finetune.yaml", settings)


def resampled(score_RQ: dict[str, list[np.ndarray]]) -> dict[str, Runs]:
    values = list(chain.from_iterable(score_RQ.values()))
    drawn_XD = resample(MEAN, values, DRAWS, np.random.default_rng(0))
    runs, row = {}, 0
    for cell, some in score_RQ.items():
        value_R = np.array([MEAN(value_Q) for value_Q in some])
        runs[cell] = Runs(value_R, drawn_XD[row : row + len(some)])
        row += len(some)
    return runs


# ---- data --------------------------------------------------------------------------------------------------


def data() -> tuple[list[str], list[RetrievalTask]]:
    """What is trained on, as recipes name it, and what is asked."""
    folders = [folder for name in TASKS if (folder := texts.DATA / "eval" / name).is_dir()]
    files = sorted(texts.DATA.glob("train/*-en.parquet"))
    if folders and files:
        return list(map(str, files)), [load_task(folder) for folder in folders]
    found = collect()
    queries, documents = [pair.query for pair in found.unseen], [pair.document for pair in found.unseen]
    return ["docstrings"], [texts.paired("docstrings", queries, documents)]
