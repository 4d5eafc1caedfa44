"""Train, prove and serve sparse Mixture-of-Experts text embedding models.

The names below are loaded when first used: ``import moembed`` itself imports nothing heavy, torch least. It
makes our folders known to transformers' auto classes and to sentence-transformers, whenever those come.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moembed.interop.hook import install

if TYPE_CHECKING:
    from moembed.embedder import Embedder
    from moembed.evaluation.result import EvaluationResult
    from moembed.runs.evaluate import evaluate
    from moembed.runs.system import EvaluationOptions
    from moembed.types import TruncationWarning, UserError

__version__ = "0.1.0"

_HOME = {
    "Embedder": "moembed.embedder",
    "EvaluationOptions": "moembed.runs.system",
    "EvaluationResult": "moembed.evaluation.result",
    "TruncationWarning": "moembed.types",
    "UserError": "moembed.types",
    "evaluate": "moembed.runs.evaluate",
}
__all__ = [
    "Embedder",
    "EvaluationOptions",
    "EvaluationResult",
    "TruncationWarning",
    "UserError",
    "__version__",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moembed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__


install()
