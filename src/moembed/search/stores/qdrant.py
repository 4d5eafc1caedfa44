"""A collection of Qdrant, on a server or in a folder (qdrant-client's local mode).

A point has the vector, and as payload ``id``, ``text``, ``metadata`` and ``digest``; its own id is a UUID
made of the row's id, because Qdrant takes no other strings.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from moembed.search import where_qdrant
from moembed.search.stores.store import StoredRow, require_condition, require_space
from moembed.search.where import Where
from moembed.search.where_mask import FLAG, NUMBER, TEXT
from moembed.search.where_qdrant import ClientDialect, as_filter
from moembed.types import UserError

KEY_VARIABLE = "QDRANT_API_KEY"
_NAMESPACE = uuid.UUID("6d6f656d-6265-4d64-8000-000000000001")
_PAGE = 1000  # points asked for at a time
_KINDS = {TEXT: where_qdrant.TEXT, NUMBER: where_qdrant.NUMBER, FLAG: where_qdrant.FLAG}


class QdrantStore:
    """A `moembed.search.stores.store.VectorStore`.

    Args:
        url: ``qdrant://host:6333`` (``qdrant+https://`` with TLS), or ``qdrant:///a/folder`` for local mode.
            A key is read from the environment variable QDRANT_API_KEY.
        name: of the collection.
    """

    def __init__(self, url: str, name: str) -> None:
        try:
            from qdrant_client import QdrantClient
        except ImportError:
            raise UserError("Qdrant needs its client: pip install 'moembed[qdrant]'") from None
        self.name, self.where = name, f"{url}, collection {name}"
        with self._one_sentence():
            parts = urlsplit(url)
        if parts.query or parts.fragment or (parts.netloc and parts.path.strip("/")):
            raise UserError(f"{url} is no address of Qdrant: give qdrant://host:6333 or qdrant:///a/folder")
        self._is_local = not parts.netloc
        with self._one_sentence():
            if self._is_local:
                self._client: Any = QdrantClient(path=parts.path)
            else:
                scheme = "https" if parts.scheme.endswith("+https") else "http"
                key = os.environ.get(KEY_VARIABLE)
                address = f"{scheme}://{parts.netloc}"
                port = parts.port or 6333
                self._client = QdrantClient(
                    url=address, port=port, api_key=key, timeout=60, check_compatibility=False
                )

    def prepare(self, dim: int, space: str) -> None:
        """See `VectorStore`."""
        from qdrant_client import models

        with self._one_sentence():
            made = not self._client.collection_exists(self.name)
            if made:
                size = models.VectorParams(size=dim, distance=models.Distance.COSINE)
                facts = {"space": space, "made_by": "moembed"}
                self._client.create_collection(self.name, vectors_config=size, metadata=facts)
            config = self._client.get_collection(self.name).config
            found = (config.metadata or {}).get("space")
            if made and found is None:
                self._client.delete_collection(self.name)
                raise UserError(
                    f"{self.where}: this server keeps no metadata of a collection, so nothing would tell "
                    "whose vectors these are: update it to Qdrant 1.16 or later"
                )
        require_space(self.where, found, space)

    def upsert(self, rows: Sequence[StoredRow]) -> int:
        """See `VectorStore`."""
        from qdrant_client import models

        point_ids = [_point_id(row.id) for row in rows]
        with self._one_sentence():
            there = self._client.retrieve(self.name, point_ids, with_payload=["digest"])
            digests = {str(point.id): (point.payload or {}).get("digest") for point in there}
            points = [
                models.PointStruct(
                    id=point_id,
                    vector=row.vector_M.tolist(),
                    payload={
                        "id": row.id,
                        "text": row.text,
                        "metadata": dict(row.metadata),
                        "digest": row.digest,
                    },
                )
                for row, point_id in zip(rows, point_ids, strict=True)
                if digests.get(point_id) != row.digest
            ]
            if points:
                self._client.upsert(self.name, points, wait=True)
        return len(points)

    def ids(self) -> Iterator[str]:
        """See `VectorStore`."""
        offset = None
        while True:
            with self._one_sentence():
                points, offset = self._client.scroll(
                    self.name, limit=_PAGE, offset=offset, with_payload=["id"]
                )
            yield from (str((point.payload or {}).get("id")) for point in points)
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        from qdrant_client import models

        with self._one_sentence():
            for start in range(0, len(ids), _PAGE):
                points: list[Any] = [_point_id(name) for name in ids[start : start + _PAGE]]
                self._client.delete(self.name, models.PointIdsList(points=points), wait=True)

    def nearest(
        self, vector_M: np.ndarray, k: int, where: Where | None = None, kinds: Mapping[str, str] | None = None
    ) -> list[tuple[str, float]]:
        """See `VectorStore`."""
        from qdrant_client import models

        condition = None
        if where is not None:
            known = require_condition(where, kinds)
            # a column with marks in its name stands between quotes in the path of a field
            fields = {
                name: (f'metadata."{name}"', _KINDS[kind]) for name, kind in known.items() if kind in _KINDS
            }
            condition = as_filter(where, fields, ClientDialect)
            if condition is None:
                raise UserError(f"{self.where}: Qdrant cannot be asked this condition: {where}")
        with self._one_sentence():
            found = self._client.query_points(
                self.name,
                query=vector_M.tolist(),
                limit=k,
                query_filter=condition,
                with_payload=["id"],
                search_params=None if self._is_local else models.SearchParams(exact=True),
            )
        return [(str(point.payload["id"]), float(point.score)) for point in found.points]

    def commit(self) -> None:
        """Every write is seen at once: Qdrant has no transactions."""

    def close(self) -> None:
        """See `VectorStore`."""
        self._client.close()

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except UserError:
            raise
        except (ApiException, QdrantException, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"Qdrant, {self.where}: {' '.join(str(error).split())[:300]}") from None


def _point_id(name: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, name))
