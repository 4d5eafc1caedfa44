"""What a finished job leaves: its scores, what it cost, and whether its experts and routers moved."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from moembed.compare.results import read_as
from moembed.compare.scores import Scores, load_scores
from moembed.experiment.settings import Job
from moembed.files import read_json
from moembed.folder.read import read_folder
from moembed.model.spec import EncoderSpec
from moembed.report.training.reading import Log, read_log
from moembed.types import UserError
from moembed.weights.lora_experts import full_experts

RESULT, SCORES, FAILED = "result.json", "scores.parquet", "failed.json"
_PARTS = ("up_EFD", "gate_EFD", "down_EDF")


@dataclass(frozen=True, slots=True)
class Routing:
    """Means over the layers with experts, in the first and the last tenth of the steps.

    Attributes:
        entropy: of the routers, nats per token; ``highest`` is that of a router that never decides, ln E.
        share: probability that the chosen experts hold; ``chance`` is k / E.
        distance: between two experts, see `expert_distance`, when the run ended.
    """

    entropy: tuple[float, float]
    highest: float
    share: tuple[float, float]
    chance: float
    distance: float


@dataclass(frozen=True, slots=True)
class Finished:
    """What ``result.json`` of a job holds.

    Attributes:
        recipe, evaluation: `Job.recipe`, and what it was scored on.
        batches: hash of the pairs of every step.
        train_tokens: that its steps embedded, prompts and special tokens included.
        train_bytes, encode_bytes: the most memory the process had while it trained, and while it embedded.
        encode_rate: texts of the tasks embedded per second.
    """

    cell: str
    seed: int
    recipe: str
    evaluation: str
    batches: str
    steps: int
    train_seconds: float
    evaluate_seconds: float
    parameters: int
    active_parameters: int
    encode_rate: float | None
    train_bytes: int
    encode_bytes: int | None
    routing: Routing | None = None
    train_tokens: int | None = None
    made: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def finished(job: Job) -> Finished | None:
    """The result of a job; None: it has none yet.

    Raises:
        UserError: the job was done with another recipe, or evaluated on other tasks, than the file gives
            now; its result is damaged.
    """
    file = job.folder / RESULT
    if not file.exists():
        return None
    found = read_as(Finished, read_json(file), f"the result of a run ({file})")
    if found.recipe != job.recipe:
        raise UserError(
            f"{job.folder} was made by another recipe ({found.recipe}) than the file gives now "
            f"({job.recipe}): give the experiment another name or out, or delete that folder"
        )
    if found.evaluation != job.evaluation:
        raise UserError(
            f"{job.folder} was evaluated on other tasks, or with another sample or dims, than the file gives "
            "now: give the experiment another name or out, or delete that folder"
        )
    return found


def scores(job: Job, dim: int | None = None) -> dict[str, Scores]:
    """The scores of a finished job by task; ``dim``: those of its vectors cut to so many coordinates."""
    return {task.task: task for task in load_scores(job.folder / scores_file(dim))[0]}


def scores_file(dim: int | None) -> str:
    return SCORES if dim is None else f"scores-{dim}.parquet"


def read_routing(run: Path) -> Routing | None:
    """What the log of a run tells of its routers, and its weights of its experts; None: it has none."""
    spec_and_state = read_folder(run / "model")
    moe = spec_and_state.spec.moe
    if moe is None:
        return None
    log, _ = read_log(run / "metrics.jsonl")
    tenth = max(1, len(log) // 10)
    first, last = log[:tenth], log[-tenth:]
    return Routing(
        entropy=(_mean(first, "entropy"), _mean(last, "entropy")),
        highest=math.log(moe.num_experts),
        share=(_mean(first, "top_mass"), _mean(last, "top_mass")),
        chance=moe.experts_per_token / moe.num_experts,
        distance=expert_distance(spec_and_state.spec, spec_and_state.state),
    )


def expert_distance(spec: EncoderSpec, state: dict[str, torch.Tensor]) -> float:
    """How far two experts of a layer lie apart: mean of ``|W_i - W_j| / sqrt(|W_i| |W_j|)`` over all pairs.

    ``W_i`` are all matrices of an expert as one vector. 0: they are copies; about 1.4: unrelated. The mean
    over the layers with experts.
    """
    found: list[float] = []
    spec, state = full_experts(spec, state)
    for layer in spec.moe_layers:
        parts = [state[name] for part in _PARTS if (name := f"layers.{layer}.ffn.{part}") in state]
        gram_EE = torch.zeros(())
        for part in parts:
            flat_EX = part.flatten(1).double()
            gram_EE = gram_EE + flat_EX @ flat_EX.T
        square_E = gram_EE.diagonal()
        square_EE = (square_E[:, None] + square_E - 2 * gram_EE).clamp(min=0)
        relative_EE = (square_EE / (square_E[:, None] * square_E).sqrt().clamp(min=1e-30)).sqrt()
        above_EE = torch.ones_like(relative_EE).triu(1).bool()
        if above_EE.any():
            found.append(float(relative_EE[above_EE].mean()))
    return sum(found) / max(1, len(found))


def _mean(log: Log, key: str) -> float:
    values = [float(layer[key]) for record in log for layer in record.get("router") or []]
    return sum(values) / len(values) if values else math.nan
