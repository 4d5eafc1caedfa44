"""`moembed demo`: real pairs -> upcycle -> train -> prove -> index, on what is installed beside moembed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from moembed.compare import formatting
from moembed.compare.results import as_json
from moembed.compare.verdict import is_real
from moembed.config import config_hash
from moembed.console import print_table, progress_bar, say
from moembed.data.docstrings import CodePair, Docstrings, collect
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, save_task
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.result import EvaluatedTask, EvaluationResult
from moembed.evaluation.systems import KeepsDocuments
from moembed.files import locked, write_json
from moembed.folder.bases import base_name, locate_base
from moembed.folder.read import read_config, read_folder
from moembed.machine import best_dtype, has_amx, machine
from moembed.model.encoder import num_parameters
from moembed.report.card import write_card
from moembed.report.training.page import write_report
from moembed.runs.evaluate import summarise
from moembed.runs.system import EvaluationOptions, evaluate_encoder, evaluate_system
from moembed.runs.train import TrainConfig, build
from moembed.runs.train_sources import TrainSource
from moembed.runs.training_run import make_run_folder
from moembed.search.index_writer import write_index
from moembed.training.contrastive.settings import LossConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.training.loop import Trained
from moembed.training.optim import OptimConfig
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


def recipe(base: str, out: Path, minutes: float, seed: int, max_length: int) -> TrainConfig:
    """What the demo trains, on a base that reads ``max_length`` tokens; also the ``recipe.yaml`` there."""
    return TrainConfig(
        base=base,
        out=str(out),
        data=(TrainSource(path="docstrings"),),
        upcycle=UpcycleConfig(num_experts=8, every=2),
        minutes=minutes,
        batch_size=128,
        chunk_tokens=16384 if has_amx() else 4096,  # docs/performance.md
        graph_tokens=16384,  # a batch, so that it is embedded once
        query_length=min(32, max_length),
        document_length=min(96, max_length),
        loss=LossConfig(temperature=0.05, balance=0.01),
        optim=OptimConfig(learning_rate=5e-5, schedule="linear", warmup_steps=0.1),
        save_every=100_000,  # the budget is short: one checkpoint, at the end
        seed=seed,
    )


def run_demo(minutes: float, base: str, out: Path, twin: bool, seed: int, overwrite: bool) -> dict[str, Any]:
    """Run all six parts and return the content of ``report.json``."""
    with locked(out):
        return _run(minutes, base, out, twin, seed, overwrite)


def _run(minutes: float, base: str, out: Path, twin: bool, seed: int, overwrite: bool) -> dict[str, Any]:
    for library in ("bm25s", "matplotlib"):  # needed after the training, when it would be too late to say so
        if find_spec(library) is None:
            raise UserError(f"the demo needs {library}; run: pip install 'moembed[demo]'")
    folder = locate_base(base)
    parts = read_folder(folder)
    plan = recipe(base, out, minutes, seed, parts.tokenizer.max_length)
    make_run_folder(out, plan, str(folder.resolve()), ["the installed Python packages"], overwrite)

    say("1/6  reading docstrings and code of the installed packages (nothing is imported or run)")
    pairs = collect()
    _say_pairs(pairs)
    source = Source.from_pairs("docstrings", [Pair(p.query, p.document) for p in pairs.train])

    model = build(parts, plan)
    dense_parameters = num_parameters(read_config(folder))
    say(
        f"2/6  upcycled {base}: {model.num_parameters():,} parameters, {model.num_parameters(active=True):,} "
        f"active per token (dense: {dense_parameters:,})"
    )
    say(f"3/6  training for {minutes:g} minutes; Ctrl-C ends it early and goes on")
    trained = train_contrastive(plan, model, Mixture([source]), out, record=plan)
    say(f"     {trained.steps} steps, {trained.pairs:,} pairs in {trained.seconds:.0f} s")

    say("4/6  evaluating on packages the model never saw")
    task = _task(pairs.unseen, seed)
    save_task(task, out / "task")
    folders = {"base": folder, "moe": out / "model"}
    if twin:
        folders = {"base": folder, "twin": _train_twin(plan, trained, source, out), "moe": out / "model"}
    result, document_NM = _evaluate(folders, task)

    say("5/6  writing the report")
    notes = _notes(pairs, result.tasks[task.name], trained, minutes)
    report = _report(result, plan, trained) | {
        "train_packages": len(pairs.train_packages),
        "unseen_packages": pairs.unseen_packages,
        "model": {
            "total_parameters": model.num_parameters(),
            "active_parameters": model.num_parameters(active=True),
            "base_parameters": dense_parameters,
        },
        "notes": notes,
    }
    write_json(out / "report.json", report)
    data = ["docstrings and code of installed Python packages"]
    noted = replace(result, tasks={task.name: replace(result.tasks[task.name], notes=notes)})
    write_card(out / "model", str(out / "model"), base_name(base), data, noted)
    write_report(out, "moembed demo: docstrings to code")

    say("6/6  indexing the unseen packages' functions")
    _index(pairs.unseen, document_NM, model, out)
    _show(result, out)
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


def _evaluate(folders: Mapping[str, Path], task: RetrievalTask) -> tuple[EvaluationResult, np.ndarray]:
    """Every model as it would be served here, read from its folder, against the base; and the vectors of
    the documents by the last model, so that the index need not make them again."""
    options = EvaluationOptions(metrics=METRICS)
    outcomes = {"bm25": evaluate_system("bm25", None, [task], options, progress_bar)}
    documents: dict[str, np.ndarray] = {}

    for name, folder in folders.items():
        model = Embedder.from_pretrained(folder, dtype=best_dtype())
        encoder = KeepsDocuments(model)
        outcomes[name] = evaluate_encoder(encoder, f"     {NAMES[name]}", [task], options, progress_bar)
        documents[name] = encoder.documents
        say(f"     {NAMES[name]}: {outcomes[name].seconds[task.name]:.0f} s")
    return summarise(outcomes, [task], reference="base"), documents[name]


def _train_twin(plan: TrainConfig, trained: Trained, source: Source, out: Path) -> Path:
    """The dense base on the same batches in the same order, for as many steps as the MoE had time for."""
    say(f"     training the dense twin for the same {trained.steps} steps")
    alike = plan.model_copy(update={"upcycle": None, "minutes": None, "steps": max(trained.steps, 1)})
    twin = build(read_folder(locate_base(plan.base)), alike)
    train_contrastive(alike, twin, Mixture([source]), out / "twin", record=alike)
    return out / "twin" / "model"


def _report(result: EvaluationResult, plan: TrainConfig, trained: Trained) -> dict[str, Any]:
    """What ``report.json`` tells of the evaluation and the training."""
    (task,) = result.tasks.values()
    cells = as_json(task)
    about = machine()
    versions = {name: about["versions"][name] for name in ("torch", "python")}
    return {
        "metrics": cells["metrics"],
        "differences": {f"{name}-base": gaps for name, gaps in cells["differences"].items()},
        "train_seconds": round(trained.seconds, 1),
        "steps": trained.steps,
        "pairs": trained.pairs,
        "queries": task.items,
        "documents": task.documents,
        "recipe": config_hash(plan),
        "settings": _flat(plan.model_dump(mode="json", exclude={"data"}, exclude_none=True)),
        "machine": {key: about[key] for key in ("cpu", "cores", "isa", "precision", "system")} | versions,
    }


def _index(unseen: Sequence[CodePair], document_NM: np.ndarray, model: Embedder, out: Path) -> None:
    rows = [
        {"package": p.package, "name": p.qualname, "file": f"{p.file}:{p.line}", "code": p.document}
        for p in unseen
    ]
    prompt = model.role_prompt("document")
    write_index(
        out / "index", document_NM, rows, space_id=model.space(role="document"), prompt_name=prompt,
        column="code", model_path="../model", role="document",
    )  # fmt: skip


def _notes(pairs: Docstrings, task: EvaluatedTask, trained: Trained, minutes: float) -> list[str]:
    notes = [
        f"{task.items:,} docstring summaries look for their function among {task.documents:,} "
        f"functions of {len(pairs.unseen_packages)} packages that were not trained on.",
        f"{task.truncated['moe']:,} of {task.items + (task.documents or 0):,} texts were longer than "
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


def _show(result: EvaluationResult, out: Path) -> None:
    (task,) = result.tasks.values()
    rows = [
        [NAMES[system], *map(formatting.estimate, cells.values())] for system, cells in task.metrics.items()
    ]
    title = f"{task.items:,} queries, {task.documents:,} functions of unseen packages, 95 % intervals"
    print_table(title, ["", *METRICS], rows)
    gain = task.differences["moe"]["ndcg@10"]
    doubt = "" if is_real(gain) else f", no clear difference ({formatting.p_value(gain.p_holm)})"
    print(f"\nMoE against base: {formatting.difference(gain)} nDCG@10{doubt}")
    print(f"report:  {out / 'report.html'}")
    print(f'try:     moembed search {out} "read a parquet file lazily"')
