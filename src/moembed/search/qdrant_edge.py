"""The approximate engine: Qdrant Edge, a graph of neighbours (HNSW) with filters, in a folder of the index.

The folder is written once and never changed: it is opened through links in a temporary folder, because the
engine writes its configuration anew whenever it opens one, and several processes may read an index at once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from moembed.search.where_qdrant import NUMBER, TEXT, WHOLE
from moembed.types import UserError

NAME, DISTRIBUTION = "qdrant-edge", "qdrant-edge-py"
_CONFIG = "edge_config.json"


def library() -> Any:
    """The module of the engine.

    Raises:
        UserError: it is not installed.
    """
    try:
        import qdrant_edge
    except ImportError:
        raise UserError("the engine qdrant-edge needs its library: pip install 'moembed[ann]'") from None
    return qdrant_edge


def build(
    folder: Path,
    dim: int,
    batches: Iterable[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]],
    fields: Mapping[str, str],
    graph_from: int | None = None,
) -> None:
    """Write the points of all batches, their numbers, vectors and values, and make the graph.

    Args:
        fields: the kind of every value of a point by its name.
        graph_from: kilobytes of vectors from which there is a graph; None: as many as the engine says.
    """
    edge = library()
    optimizers = None if graph_from is None else edge.EdgeOptimizersConfig(indexing_threshold=graph_from)
    vectors = edge.EdgeVectorParams(size=dim, distance=edge.Distance.Cosine)
    # without a log of writes: the folder counts only once it is whole
    config = edge.EdgeConfig(vectors=vectors, optimizers=optimizers, wal_enabled=False)
    folder.mkdir(parents=True)
    shard = edge.EdgeShard.create(str(folder), config)
    try:
        for number_B, vector_BM, values in batches:
            points = [
                edge.Point(number, vector_M, payload)
                for number, vector_M, payload in zip(
                    number_B.tolist(), vector_BM.tolist(), values, strict=True
                )
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
        kinds = edge.PayloadSchemaType
        schema = {TEXT: kinds.Keyword, WHOLE: kinds.Integer, NUMBER: kinds.Float}
        for name, kind in fields.items():
            shard.update(edge.UpdateOperation.create_field_index(name, schema[kind]))
        shard.optimize()
        shard.flush()
    finally:
        shard.close()
    # what was written last stands in journals, which the first to open the folder puts in their place
    edge.EdgeShard.load(str(folder)).close()


class EdgeSearcher:
    """The points of a folder that ``build`` wrote; safe to use from several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._edge = library()
        self._links = tempfile.TemporaryDirectory(prefix="moembed-ann-")
        for entry in folder.absolute().iterdir():
            if entry.name == _CONFIG:
                shutil.copyfile(entry, Path(self._links.name) / entry.name)
            else:
                os.symlink(entry, Path(self._links.name) / entry.name)
        self._shard = self._edge.EdgeShard.load(self._links.name)

    def nearest(self, query_QM: np.ndarray, k: int, condition: Any | None = None) -> list[np.ndarray]:
        """For every query, the numbers of at most ``k`` points near it that meet a condition, best first."""
        edge = self._edge
        requests = [
            edge.QueryRequest(limit=k, query=edge.Query.Nearest(vector_M), filter=condition)
            for vector_M in query_QM.tolist()
        ]
        if len(requests) == 1:
            found = [self._shard.query(requests[0])]
        else:
            found = self._shard.query_batch(edge.QueryBatchRequest(requests)) if requests else []
        return [np.array([point.id for point in points], np.int64) for points in found]

    def close(self) -> None:
        self._shard.close()
        with suppress(OSError):
            self._links.cleanup()
