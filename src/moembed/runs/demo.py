"""`moembed demo`: real pairs -> upcycle -> train -> prove -> index, on what is installed beside moembed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moembed.compare.comparison import compare
from moembed.compare.scores import Scores
from moembed.config import config_hash, dump
from moembed.console import interval, print_table, progress_bar, say
from moembed.data.docstrings import CodePair, Docstrings, collect
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, save_task
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.tasks import evaluate, evaluate_bm25
from moembed.files import require_free, write_json
from moembed.folder.bases import base_name, locate_base
from moembed.folder.read import read_config, read_folder
from moembed.machine import best_dtype
from moembed.model.encoder import num_parameters
from moembed.report.card import write_card
from moembed.report.training.page import write_report
from moembed.runs.train import Recipe, TrainSource, build
from moembed.search.index_writer import write_index
from moembed.training.loop import Trained, train
from moembed.training.optim import OptimConfig
from moembed.training.settings import LossConfig
from moembed.types import Pair, UserError
from moembed.weights.upcycle import UpcycleConfig

METRICS = ("ndcg@10", "recall@1", "recall@10", "mrr@10")
QUERIES = 2000
NAMES = {
    "bm25": "BM25",
    "base": "dense base",
    "twin": "dense twin, trained alike",
    "moe": "Mixture of Experts",
}


def recipe(base: str, out: Path, minutes: float, seed: int) -> Recipe:
    """What the demo trains; also saved as ``recipe.yaml`` in the run folder."""
    return Recipe(
        base=base,
        out=str(out),
        data=(TrainSource(path="docstrings"),),
        upcycle=UpcycleConfig(num_experts=8, every=2),
        minutes=minutes,
        batch_size=128,
        chunk_tokens=8192,
        query_length=32,
        document_length=96,
        loss=LossConfig(temperature=0.05, balance=0.01),
        optim=OptimConfig(learning_rate=5e-5, schedule="linear", warmup_steps=0.1),
        save_every=100_000,  # the budget is short: one checkpoint, at the end
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Vectors:
    """A system's vectors of the evaluation corpus, kept so that the index need not make them again."""

    scores: Scores
    document_NM: np.ndarray
    truncated: int


def run_demo(minutes: float, base: str, out: Path, twin: bool, seed: int, overwrite: bool) -> dict[str, Any]:
    """Run all six parts and return the content of ``report.json``."""
    for library in ("bm25s", "matplotlib"):  # needed after the training, when it would be too late to say so
        if find_spec(library) is None:
            raise UserError(f"the demo needs {library}; run: pip install 'moembed[demo]'")
    plan = recipe(base, out, minutes, seed)
    folder = locate_base(base)
    require_free(out, overwrite)
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(dump(plan), encoding="utf-8")

    say("1/6  reading docstrings and code of the installed packages (nothing is imported or run)")
    pairs = collect()
    _say_pairs(pairs)
    source = Source.from_pairs("docstrings", [Pair(p.query, p.document) for p in pairs.train])

    model = build(read_folder(folder), plan)
    dense_parameters = num_parameters(read_config(folder))
    say(
        f"2/6  upcycled {base}: {model.num_parameters():,} parameters, {model.num_parameters(active=True):,} "
        f"active per token (dense: {dense_parameters:,})"
    )
    say(f"3/6  training for {minutes:g} minutes; Ctrl-C ends it early and goes on")
    trained = train(plan, model, [source], [1.0], out, record=plan)
    say(f"     {trained.steps} steps, {trained.pairs:,} pairs in {trained.seconds:.0f} s")

    say("4/6  evaluating on packages the model never saw")
    task = _task(pairs.unseen, seed)
    save_task(task, out / "task")
    folders = {"base": folder, "moe": out / "model"}
    if twin:
        folders = {"base": folder, "twin": _train_twin(plan, trained, source, out), "moe": out / "model"}
    kept = {name: _evaluate(place, task, NAMES[name]) for name, place in folders.items()}
    lexical = evaluate_bm25(task, METRICS)
    assert lexical is not None
    scores = {"bm25": lexical} | {name: vectors.scores for name, vectors in kept.items()}
    compared = compare({name: [{task.name: own}] for name, own in scores.items()}, reference="base")
    against_base = compared["tasks"][task.name]

    say("5/6  writing the report")
    report = {
        "metrics": against_base["metrics"],
        "differences": {f"{name}-base": cells for name, cells in against_base["differences"].items()},
        "train_seconds": round(trained.seconds, 1),
        "steps": trained.steps,
        "pairs": trained.pairs,
        "queries": len(task.queries),
        "documents": len(task.documents),
        "train_packages": len(pairs.train_packages),
        "unseen_packages": pairs.unseen_packages,
        "recipe": config_hash(plan),
        "model": {
            "total_parameters": model.num_parameters(),
            "active_parameters": model.num_parameters(active=True),
            "base_parameters": dense_parameters,
        },
        "settings": _flat(plan.model_dump(mode="json", exclude={"data"}, exclude_none=True)),
        "machine": machine(),
        "notes": _notes(pairs, task, trained, kept, minutes),
    }
    write_json(out / "report.json", report)
    data = ["docstrings and code of installed Python packages"]
    write_card(out / "model", str(out / "model"), base_name(base), data, {"docstrings": report})
    write_report(out, "moembed demo: docstrings to code")

    say("6/6  indexing the unseen packages' functions")
    rows = [
        {"package": p.package, "name": p.qualname, "file": f"{p.file}:{p.line}", "code": p.document}
        for p in pairs.unseen
    ]
    prompt = model.role_prompt("document")
    write_index(
        out / "index", kept["moe"].document_NM, rows, space_id=model.space_id(prompt), prompt_name=prompt,
        column="code", model_path="../model", role="document",
    )  # fmt: skip
    _show(report, out)
    return report


def _say_pairs(pairs: Docstrings) -> None:
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in pairs.skipped.items()) or "nothing"
    say(
        f"     {len(pairs.train) + len(pairs.unseen):,} pairs of {pairs.files:,} files; left out: {skipped}\n"
        f"     {len(pairs.train):,} pairs of {len(pairs.train_packages)} packages to train on, "
        f"{len(pairs.unseen):,} of {len(pairs.unseen_packages)} others to test on"
    )


def _task(unseen: Sequence[CodePair], seed: int) -> RetrievalTask:
    """Every unseen function is a document; a sample of their summaries are the queries."""
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.permutation(len(unseen))[:QUERIES])
    ones = np.ones(len(asked))
    return RetrievalTask(
        name="docstrings",
        queries=[unseen[i].query for i in asked],
        documents=[pair.document for pair in unseen],
        qrels=Qrels.from_judgements(np.arange(len(asked)), asked, ones, len(asked)),
        query_ids=[str(i) for i in asked],
        document_ids=[str(i) for i in range(len(unseen))],
        notes=[],
    )


def _evaluate(folder: Path, task: RetrievalTask, name: str) -> Vectors:
    """Score one model as it would be served here: read from its folder, in the best precision."""
    model = Embedder.from_pretrained(folder, dtype=best_dtype())
    documents: list[np.ndarray] = []
    cut = 0

    def encode(texts: list[str], role: str) -> np.ndarray:
        nonlocal cut
        vectors, truncated = model.encode_counted(texts, model.role_prompt(role), progress=advance)
        cut += truncated
        if role == "document":
            documents.append(vectors)
        return vectors

    start = time.perf_counter()
    with progress_bar(f"     {name}", len(task.queries) + len(task.documents)) as advance:
        scores = evaluate(task, encode, METRICS)
    say(f"     {name}: {time.perf_counter() - start:.0f} s")
    return Vectors(scores, documents[0], cut)


def _train_twin(plan: Recipe, trained: Trained, source: Source, out: Path) -> Path:
    """The dense base on the same batches in the same order, for as many steps as the MoE had time for."""
    say(f"     training the dense twin for the same {trained.steps} steps")
    alike = plan.model_copy(update={"upcycle": None, "minutes": None, "steps": max(trained.steps, 1)})
    twin = build(read_folder(locate_base(plan.base)), alike)
    train(alike, twin, [source], [1.0], out / "twin", record=alike)
    return out / "twin" / "model"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "precision": best_dtype(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _notes(
    pairs: Docstrings, task: RetrievalTask, trained: Trained, kept: dict[str, Vectors], minutes: float
) -> list[str]:
    notes = [
        f"{len(task.queries):,} docstring summaries look for their function among {len(task.documents):,} "
        f"functions of {len(pairs.unseen_packages)} packages that were not trained on.",
        f"{kept['moe'].truncated:,} of {len(task.queries) + len(task.documents):,} texts were longer than "
        "the model reads and were cut, for every system alike except BM25, which reads everything.",
        "A few minutes of training show that the base learned this task. They cannot show what experts add: "
        "for that, compare with a dense twin trained on the same batches (--twin), over several seeds.",
    ]
    if trained.stopped_by_user:
        notes.append(f"Training was stopped after {trained.seconds:.0f} of {60 * minutes:.0f} seconds.")
    return notes


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _show(report: dict[str, Any], out: Path) -> None:
    rows = [
        [NAMES[system], *(interval(cell) for cell in cells.values())]
        for system, cells in report["metrics"].items()
    ]
    title = (
        f"{report['queries']:,} queries, {report['documents']:,} functions of unseen packages, 95 % intervals"
    )
    print_table(title, ["", *METRICS], rows)
    gain = report["differences"]["moe-base"]["ndcg@10"]
    print(f"\nMoE against base: {gain['mean']:+.3f} nDCG@10 [{gain['low']:+.3f}, {gain['high']:+.3f}]")
    print(f"report:  {out / 'report.html'}")
    print(f'try:     moembed search {out} "read a parquet file lazily"')
