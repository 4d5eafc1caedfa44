"""Train, prove and serve sparse Mixture-of-Experts text embedding models.

The names below are loaded when first used: ``import moembed`` itself imports nothing heavy, torch least. It
makes our folders known to transformers' auto classes and to sentence-transformers, whenever those come, and
lets PyTorch, which is not loaded yet, start no more threads than a container's quota of cores.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moembed.interop.hook import install
from moembed.threads import limit_threads

if TYPE_CHECKING:
    from moembed.client.model import Client
    from moembed.embedder import Embedder
    from moembed.evaluation.result import EvaluationResult
    from moembed.inference.static import StaticEmbedder
    from moembed.reranker import Reranker
    from moembed.runs.evaluate import evaluate
    from moembed.runs.pretrain import PretrainConfig, PretrainResult, pretrain
    from moembed.runs.system import EvaluationOptions
    from moembed.runs.train import TrainConfig, TrainResult, train
    from moembed.runs.train_reranker import RerankerConfig, train_reranker
    from moembed.runs.train_stages import StagesResult, train_stages
    from moembed.search.index import Index
    from moembed.types import TruncationWarning, UserError

__version__ = "0.2.0"

_HOME = {
    "Client": "moembed.client.model",
    "Embedder": "moembed.embedder",
    "EvaluationOptions": "moembed.runs.system",
    "EvaluationResult": "moembed.evaluation.result",
    "Index": "moembed.search.index",
    "PretrainConfig": "moembed.runs.pretrain",
    "PretrainResult": "moembed.runs.pretrain",
    "Reranker": "moembed.reranker",
    "RerankerConfig": "moembed.runs.train_reranker",
    "StagesResult": "moembed.runs.train_stages",
    "StaticEmbedder": "moembed.inference.static",
    "TrainConfig": "moembed.runs.train",
    "TrainResult": "moembed.runs.train",
    "TruncationWarning": "moembed.types",
    "UserError": "moembed.types",
    "evaluate": "moembed.runs.evaluate",
    "pretrain": "moembed.runs.pretrain",
    "train": "moembed.runs.train",
    "train_reranker": "moembed.runs.train_reranker",
    "train_stages": "moembed.runs.train_stages",
}
__all__ = [
    "Client", "Embedder", "EvaluationOptions", "EvaluationResult", "Index", "PretrainConfig",
    "PretrainResult", "Reranker", "RerankerConfig", "StagesResult", "StaticEmbedder", "TrainConfig",
    "TrainResult", "TruncationWarning", "UserError", "__version__", "evaluate", "pretrain", "train",
    "train_reranker", "train_stages",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moembed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__


limit_threads()
install()
