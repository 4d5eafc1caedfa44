"""Small training runs and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, save_task
from moembed.evaluation.metrics import Qrels
from moembed.folder.read import read_folder
from moembed.training.contrastive import gradcache
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.training.loop import Trained
from moembed.training.optim import OptimConfig
from moembed.types import Pair

WORDS = ["mole", "owl", "worms", "voles", "night", "long", "wide", "where"]
PAIRS = [Pair(f"what {a} {b}", f"the {b} and the {a}") for a in WORDS for b in WORDS if a < b]
OPTIM = OptimConfig(learning_rate=5e-3, warmup_steps=2.0)
# of a metrics line: all that may differ between two equal runs
TIMES = ("elapsed", "pairs_per_second", "evaluation_seconds")


def settings(**changes: Any) -> ContrastiveConfig:
    values = {"steps": 6, "batch_size": 8, "chunk_tokens": 60, "precision": "float32", "save_every": 2}
    return ContrastiveConfig.model_validate(values | {"optim": OPTIM} | changes)


def run(config: ContrastiveConfig, model: Embedder, folder: Path, resume: bool = False) -> Trained:
    return train_contrastive(config, model, Mixture([Source.from_pairs("tiny", PAIRS)]), folder, resume)


def save_animals(folder: Path) -> str:
    """A retrieval task of 24 queries and 56 documents, of which each query has two right ones."""
    documents = [text for pair in PAIRS for text in (pair.document, f"{pair.query} {pair.document}")]
    queries = [f"{pair.query} at night" for pair in PAIRS[:24]]
    query_R, document_R = np.repeat(np.arange(24), 2), np.arange(48)
    query_ids, document_ids = [f"q{i}" for i in range(24)], [f"d{i}" for i in range(56)]
    qrels = Qrels.from_judgements(query_R, document_R, np.tile([1.0, 2.0], 24), 24)
    save_task(RetrievalTask(folder.name, queries, documents, qrels, query_ids, document_ids, []), folder)
    return str(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = read_folder(one).state, read_folder(other).state
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do ``action`` in the middle of the given step."""
    backward, calls = gradcache.backward, iter(range(1, 1000))

    def wrapped(*arguments: Any) -> Any:
        if next(calls) == call:
            action()
        return backward(*arguments)

    monkeypatch.setattr(gradcache, "backward", wrapped)
