"""The tasks of stages, and which keys above the list of stages are for which of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from moembed.config import Strict
from moembed.runs.distill import DistillConfig
from moembed.runs.merge import Method
from moembed.runs.pretrain import PretrainConfig
from moembed.runs.train import TrainConfig
from moembed.runs.train_reranker import RerankerConfig
from moembed.types import UserError

# of the form of the model: done once, by the first stage that has them
ONCE = {"revision", "allow_pickle", "layers", "widen", "upcycle", "head", "pooling", "attention", "rope"}
ONCE |= {"pad_vocabulary", "vocabulary"}
FIRST = ONCE | {"base"}
SAME = {"steps", "optim"}  # mean the same, whatever their types


class MergeConfig(Strict):
    """``models`` are names of stages before this one, or models by folder or hub id; so is ``base``.

    The other keys are those of `moembed.runs.merge.MergePlan`.
    """

    out: str
    models: tuple[str, ...] = Field(min_length=2)
    method: Method = "average"
    weights: tuple[float, ...] | None = None
    base: str | None = None
    scale: float = Field(default=1.0, ge=0)
    density: float = Field(default=0.2, gt=0, le=1)
    probe: str | None = None


StageConfig = TrainConfig | PretrainConfig | DistillConfig | RerankerConfig | MergeConfig
TASKS: dict[str, type[StageConfig]] = {
    "contrastive": TrainConfig,
    "pretraining": PretrainConfig,
    "distillation": DistillConfig,
    "reranking": RerankerConfig,
    "merge": MergeConfig,
}

PAIRS = {TrainConfig, RerankerConfig}  # read the same pairs


def root_of(key: object) -> str:
    """Of a dotted key the first name."""
    return str(key).partition(".")[0]


def takes(kind: type[StageConfig], reference: type[StageConfig], key: str) -> bool:
    """Whether a key above the list is for stages of a kind: they have it, and mean the same by it."""
    if kind is MergeConfig or key not in kind.model_fields or key in ("out", "task"):
        return False
    asked = reference.model_fields.get(key)
    if asked is None or key in SAME or (key == "data" and {kind, reference} == PAIRS):
        return True
    return bool(asked.annotation == kind.model_fields[key].annotation)


def require_known(
    given: Mapping[str, Any], kinds: Sequence[type[StageConfig]], reference: type[StageConfig]
) -> None:
    """Raises UserError: a key above the stages that is for none of them."""
    for key in given:
        root = root_of(key)
        if not any(takes(kind, reference, root) for kind in kinds):
            known = sorted({name for kind in kinds for name in kind.model_fields if name != "out"})
            close = difflib.get_close_matches(root, known, n=1)
            hint = f"; did you mean {close[0]}?" if close and close[0] != root else ""
            raise UserError(f"{root} is a key above the stages, and no stage takes it from there{hint}")
