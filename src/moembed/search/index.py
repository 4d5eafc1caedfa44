"""Exact cosine search over float32 vectors in a memory-mapped folder; ``index_writer`` makes such folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moembed.search.exact import search_parts
from moembed.search.index_parts import (
    map_vectors,
    part_paths,
    read_manifest,
    read_rows,
    require_same,
    require_size,
)
from moembed.types import Hits, UserError


@dataclass(frozen=True)
class Index:
    """A finished index folder, opened for reading; vectors are memory-mapped one part at a time.

    A file is compared with its checksum when it is read the first time.
    """

    path: Path
    manifest: dict[str, Any]
    _sound: set[Path] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, space_id: str | None = None) -> Index:
        """Open the folder; with ``space_id``, refuse it unless its vectors live in that space.

        Raises:
            UserError: not an index, unfinished, of an unknown version or another space, or a file of a part
                is missing or cut.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise UserError(f"{path} is not an index: it has no manifest.json")
        if not manifest["complete"]:
            raise UserError(
                f"the index {path} is unfinished: run the command that started it again to finish it"
            )
        index = cls(path, manifest)
        for part in range(len(manifest["parts"])):
            for file, stamp in index._files(part):
                require_size(file, stamp)
        if space_id is not None:
            index.require_space(space_id)
        return index

    def require_space(self, space_id: str) -> None:
        """Raise UserError unless the vectors live in ``space_id``: cosines across spaces mean nothing."""
        if space_id != self.space_id:
            raise UserError(
                f"the index {self.path} holds vectors of space {self.space_id}, this model makes {space_id}: "
                "re-index the texts with this model, or search with the model that made the index"
            )

    @property
    def space_id(self) -> str:
        return self.manifest["space_id"]

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    def __len__(self) -> int:
        return self.manifest["rows"]

    def search(self, query_QM: np.ndarray, k: int) -> Hits:
        """``top_k`` over all parts; ``Hits.index`` counts rows through the whole index.

        Raises:
            UserError: as ``top_k``; a part is damaged.
        """
        return search_parts(query_QM, self.vectors(), len(self), k)

    def vectors(self) -> Iterator[np.ndarray]:
        """The memory-mapped ``(rows, dim)`` vectors of each part in turn."""
        for part, rows in enumerate(self.manifest["parts"]):
            file, stamp = self._files(part)[1]
            vector_NM = map_vectors(file, rows, self.dim)
            self._require_sound(file, stamp)
            yield vector_NM

    def rows(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The stored rows at ``indices``, in that order; a key that a row lacked reads None.

        Raises:
            IndexError: a number that is not a row of this index.
            UserError: a part is damaged.
        """
        index_K = np.fromiter(indices, dtype=np.int64)
        if index_K.size and not (index_K.min() >= 0 and index_K.max() < len(self)):
            raise IndexError(f"row numbers must lie in 0..{len(self) - 1}")
        end_P = np.cumsum(self.manifest["parts"])
        part_K = np.searchsorted(end_P, index_K, side="right")
        found: dict[int, dict[str, Any]] = {}
        for part in np.unique(part_K).tolist():
            row_K = index_K[part_K == part]
            start = end_P[part] - self.manifest["parts"][part]
            file, stamp = self._files(part)[0]
            self._require_sound(file, stamp)
            found.update(zip(row_K.tolist(), read_rows(file, row_K - start), strict=True))
        return [dict(found[row]) for row in index_K.tolist()]

    def _files(self, part: int) -> list[tuple[Path, str | None]]:
        """The rows and the vectors of a part, each with its stamp if the manifest has one."""
        stamps = self.manifest.get("stamps")
        return list(zip(part_paths(self.path, part), stamps[part] if stamps else (None, None), strict=True))

    def _require_sound(self, file: Path, stamp: str | None) -> None:
        if file not in self._sound:
            require_same(file, stamp)
            self._sound.add(file)
