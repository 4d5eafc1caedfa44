"""`moembed evaluate --mteb`: tasks and benchmarks of mteb, by its own runner and in its own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from moembed.cli.options import load_model
from moembed.console import print_json, print_table, progress_bar, say
from moembed.files import cache_folder, write_json

if TYPE_CHECKING:
    from moembed.evaluation.mteb import Asked, MtebEncoder


def run_mteb(
    models: Sequence[str],
    names: Sequence[str],
    *,
    dim: int | None = None,
    dtype: str = "auto",
    batch_tokens: int | None = None,
    allow_pickle: bool = False,
    cache: Path | None = None,
    out: Path | None = None,
    json_: bool = False,
) -> None:
    """Evaluate models on tasks of mteb and show their main scores.

    Results are kept in ``cache/results/ORG__MODEL/REVISION/TASK.json`` as mteb keeps them, and what is there
    of the same model and data is not computed again. One model is in memory at a time.

    Args:
        names: of tasks, of benchmarks, or paths of tasks on disk.
        cache: default: ``mteb`` in ``$MOEMBED_CACHE``.
        out: also write the JSON of the scores to this file.

    Raises:
        UserError: mteb is missing, a name it does not know, or data that cannot be loaded; all that was
            computed before is shown and kept.
    """
    from moembed.evaluation.mteb import evaluate_task, find_tasks

    tasks = find_tasks(names)
    folder = cache or cache_folder() / "mteb"
    scores: dict[str, dict[str, float]] = {task.metadata.name: {} for task in tasks}
    try:
        for name in models:
            encoder = _encoder(name, dim, dtype, batch_tokens, allow_pickle)
            for task in tasks:
                found = evaluate_task(encoder, task, folder)
                scores[task.metadata.name][name] = found.get_score()
                if asked := encoder.asked.get(task.metadata.name):
                    say(f"note: {name} on {task.metadata.name}: {_told(asked, encoder)}")
    finally:
        answer = _answer(models, tasks, scores, folder / "results")
        if json_:
            print_json(answer)
        else:
            _print(answer)
        if out:
            write_json(out, answer)


def _encoder(
    name: str, dim: int | None, dtype: str, batch_tokens: int | None, allow_pickle: bool
) -> MtebEncoder:
    from moembed.evaluation.mteb import MtebEncoder
    from moembed.folder.bases import base_name, locate_base
    from moembed.folder.hub import is_hub_id, split_revision

    folder = locate_base(name, allow_pickle=allow_pickle)
    label, revision = base_name(name), None
    if Path(name).exists():
        run = folder.resolve()
        label = f"local/{(run.parent if run.name == 'model' else run).name}"
    elif is_hub_id(split_revision(name)[0]):
        revision = folder.name  # a snapshot is named after its commit
    model = load_model(str(folder), dtype, allow_pickle)
    return MtebEncoder(model, label, revision, dim=dim, batch_tokens=batch_tokens, progress=progress_bar)


def _told(asked: Asked, encoder: MtebEncoder) -> str:
    """``query with the prompt 'query', document without a prompt; 3 of 120 texts cut at 256 tokens``."""
    used = ", ".join(
        f"{role} with the prompt {prompt!r}" if prompt else f"{role} without a prompt"
        for role, prompt in asked.prompts.items()
    )
    limit = encoder.model.tokenizer.max_length
    cut = f"; {asked.truncated} of {asked.texts} texts were cut at {limit} tokens"
    return used + (cut if asked.truncated else "")


def _answer(
    models: Sequence[str], tasks: Sequence[Any], scores: dict[str, dict[str, float]], folder: Path
) -> dict[str, Any]:
    """What ``--json`` prints; a model has a mean once all tasks were scored."""
    kinds = {task.metadata.name: task.metadata.type for task in tasks}
    mains = {task.metadata.name: task.metadata.main_score for task in tasks}
    whole = [name for name in models if all(name in by_model for by_model in scores.values())]

    def mean_of(kind: str, name: str) -> float:
        return mean(scores[task][name] for task in kinds if kinds[task] == kind)

    return {
        "systems": list(models),
        "tasks": {task: {"kind": kinds[task], "main": mains[task], "scores": scores[task]} for task in kinds},
        "mean": {name: mean(by_model[name] for by_model in scores.values()) for name in whole},
        "mean_of_kinds": {
            name: mean(mean_of(kind, name) for kind in dict.fromkeys(kinds.values())) for name in whole
        },
        "results": str(folder),
    }


def _print(answer: dict[str, Any]) -> None:
    systems, tasks = answer["systems"], answer["tasks"]
    rows = [
        [name, task["kind"], task["main"], *_cells(task["scores"], systems)]
        for name, task in tasks.items()
        if task["scores"]
    ]
    if len(rows) > 1 and answer["mean"]:
        rows.append(["mean of tasks", "", "", *_cells(answer["mean"], systems)])
        if 1 < len({task["kind"] for task in tasks.values()}) < len(tasks):
            rows.append(["mean of types", "", "", *_cells(answer["mean_of_kinds"], systems)])
    if rows:
        print_table("main scores of mteb", ["task", "type", "metric", *systems], rows)
        say(f"all scores are in {answer['results']}")


def _cells(scores: dict[str, float], systems: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.4f}" if name in scores else "" for name in systems]
