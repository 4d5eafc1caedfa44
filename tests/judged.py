"""A task of five documents, of which two are judged for each of three queries."""

from __future__ import annotations

import numpy as np

from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels

DOCUMENTS = ["moles dig tunnels", "voles eat roots at night", "owls hunt voles", "worms", "the night is long"]
QUERIES = ["what do owls hunt?", "who eats worms at night?", "moles"]


def task_of(kind: str) -> RetrievalTask:
    query_R, document_R = np.array([0, 0, 1, 1, 2, 2]), np.array([2, 1, 3, 4, 0, 3])
    qrels = Qrels.from_judgements(query_R, document_R, np.array([1.0, 0, 1, 0, 1, 0]), 3)
    ids = [f"q{i}" for i in range(3)], [f"d{i}" for i in range(5)]
    return RetrievalTask("some", QUERIES, DOCUMENTS, qrels, *ids, [], {}, kind)
