"""What vectors know of labels: a linear probe and a clustering, both of scikit-learn and as MTEB has them.

The settings are MTEB's (Muennighoff et al. 2023; Enevoldsen et al. 2025), and of the same rows in the same
order the probe draws the same examples, so that its figures can be compared.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from moembed.types import UserError

SAMPLES, REPEATS = 8, 10  # texts per label that teach the probe, and draws of them
_SEED = 42
_MAX_STEPS, _KMEANS_BATCH = 100, 500


def draws(labels: Sequence[str]) -> list[np.ndarray]:
    """``REPEATS`` times the rows of ``SAMPLES`` texts of every label, or of all there are."""
    order, drawn = np.arange(len(labels)), []
    for _ in range(REPEATS):
        np.random.RandomState(_SEED).shuffle(order)  # shuffles the last order on, as MTEB does
        taken: Counter[str] = Counter()
        rows = []
        for row in order.tolist():
            taken[labels[row]] += 1
            if taken[labels[row]] <= SAMPLES:
                rows.append(row)
        drawn.append(np.array(rows))
    return drawn


def predict(vector_BM: np.ndarray, label_B: np.ndarray, vector_QM: np.ndarray) -> np.ndarray:
    """The labels of ``vector_QM`` by a logistic regression on the labelled ``vector_BM``.

    Raises:
        UserError: NaN or infinite vectors, scikit-learn is not installed.
    """
    probe = _sklearn("linear_model").LogisticRegression(max_iter=_MAX_STEPS)
    _fit(probe, _finite(vector_BM), label_B)
    return probe.predict(_finite(vector_QM))


def clusters(vector_NM: np.ndarray, count: int) -> np.ndarray:
    """The cluster of every vector, of ``count``, by mini-batch k-means.

    Raises:
        UserError: as ``predict``.
    """
    kmeans = _sklearn("cluster").MiniBatchKMeans(
        count, batch_size=_KMEANS_BATCH, n_init="auto", random_state=_SEED
    )
    _fit(kmeans, _finite(vector_NM))
    return kmeans.labels_


def _sklearn(module: str) -> ModuleType:
    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise UserError(
            "classification and clustering need scikit-learn: pip install 'moembed[eval]'"
        ) from None


def _fit(model: Any, *data: np.ndarray) -> None:
    """Without warnings: that the steps were too few, or the vectors all alike, is part of the measure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(*data)


def _finite(vector_NM: np.ndarray) -> np.ndarray:
    if not np.isfinite(vector_NM).all():
        raise UserError("the encoder made vectors with NaN or infinite numbers: embed the texts again")
    return vector_NM
