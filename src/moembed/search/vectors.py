"""RowVectors that were computed once: a folder where they are found again by the hash of their text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from moembed.files import write_whole
from moembed.types import UserError

Encode = Callable[[list[str]], np.ndarray]
RowVectors = Callable[[np.ndarray], np.ndarray]  # row numbers -> the vectors of these rows

SHARD_ROWS = 2048  # texts embedded, and vectors written, at a time: what a killed run loses at most
_PART_ROWS = 16384
_KEY = np.dtype("S16")
_KEYS = ".keys.npy"


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """128 bits of BLAKE2b for every text, equal for equal texts: ``(N,)`` of 16 bytes."""
    digests = (blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype=_KEY)


def parts(vectors: RowVectors, rows: int) -> Iterator[np.ndarray]:
    """The vectors of the first ``rows`` rows, a part at a time, as ``exact.search_parts`` takes them."""
    for start in range(0, rows, _PART_ROWS):
        yield vectors(np.arange(start, min(start + _PART_ROWS, rows)))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file that is whole or not there."""
    write_whole(path, lambda file: np.save(file, array))


class VectorCache:
    """The float32 vectors of one space, found by text; ``len`` tells how many.

    ``folder/space_id`` holds shards that are written once: ``NAME.npy`` has the vectors, memory-mapped when
    read, ``NAME.keys.npy`` the hashes of their texts. Both appear whole, the hashes last, so a killed run
    leaves whole shards only; a shard that was damaged otherwise is dropped with a warning. Several processes
    may write into one folder. The space covers the prompt: one model makes two spaces for two prompts.

    Raises:
        UserError: the folder holds vectors of another width.
    """

    def __init__(self, folder: str | Path, space_id: str, dim: int) -> None:
        assert re.fullmatch(r"[\w-][\w.-]*", space_id), "a space names a folder"
        self.folder = Path(folder) / space_id
        self.dim = dim
        self._shards: list[np.ndarray] = []
        self._end = np.zeros(0, dtype=np.int64)  # rows up to and with each shard
        shards = [self._open(file) for file in sorted(self.folder.glob(f"*{_KEYS}"))]
        self._key, self._row = np.zeros(0, dtype=_KEY), np.zeros(0, dtype=np.int64)  # sorted by key
        keys = [self._adopt(*shard) for shard in shards if shard]
        if keys:
            key = np.concatenate(keys)
            self._row = np.argsort(key, kind="stable")
            self._key = key[self._row]

    def __len__(self) -> int:
        return len(self._key)

    def get_or_encode(
        self, texts: Sequence[str], encode: Encode, where: Callable[[int], str] = "text {}".format
    ) -> np.ndarray:
        """The vectors ``(len(texts), dim)`` of ``texts``; those not known yet are encoded and kept.

        Args:
            encode: texts -> their vectors; asked once for each new text.
            where: how a complaint calls the text of this number.

        Raises:
            UserError: the encoder makes NaN, infinite numbers or another shape; the disk is full.
        """
        key_N = text_keys(texts)
        first = np.unique(key_N, return_index=True)[1]
        new = np.sort(first[~self.has(key_N[first])])
        for start in range(0, len(new), SHARD_ROWS):
            rows = new[start : start + SHARD_ROWS]
            vector_NM = np.asarray(encode([texts[row] for row in rows]), dtype=np.float32)
            if vector_NM.shape != (len(rows), self.dim):
                raise UserError(
                    f"the encoder made vectors of shape {vector_NM.shape} of {len(rows)} texts, "
                    f"not {(len(rows), self.dim)}"
                )
            bad = ~np.isfinite(vector_NM).all(axis=1)
            if bad.any():
                raise UserError(f"the encoder made NaN or infinite numbers of {where(int(rows[bad][0]))}")
            self._append(key_N[rows], vector_NM)
        return self.read(key_N)

    def has(self, key_N: np.ndarray) -> np.ndarray:
        """Whether the vector of each text is known."""
        if not len(self):
            return np.zeros(len(key_N), dtype=bool)
        return self._key[self._place(key_N)] == key_N

    def read(self, key_N: np.ndarray) -> np.ndarray:
        """The vectors of texts that are known, by their ``text_keys``: float32 ``(N, dim)``."""
        assert self.has(key_N).all()
        vector_NM = np.empty((len(key_N), self.dim), dtype=np.float32)
        if not len(key_N):
            return vector_NM
        row_N = self._row[self._place(key_N)]
        shard_N = np.searchsorted(self._end, row_N, side="right")
        for number in np.unique(shard_N):
            mine = shard_N == number
            shard = self._shards[number]
            vector_NM[mine] = shard[row_N[mine] - (self._end[number] - len(shard))]
        return vector_NM

    def _place(self, key_N: np.ndarray) -> np.ndarray:
        return np.minimum(np.searchsorted(self._key, key_N), len(self) - 1)

    def _append(self, key_N: np.ndarray, vector_NM: np.ndarray) -> None:
        name = self.folder / blake2b(key_N.tobytes(), digest_size=16).hexdigest()
        vectors = name.with_name(name.name + ".npy")
        save_array(vectors, vector_NM)
        save_array(name.with_name(name.name + _KEYS), key_N)
        first = len(self)
        self._adopt(key_N, np.load(vectors, mmap_mode="r"))
        order = np.argsort(key_N)
        place = np.searchsorted(self._key, key_N[order])
        self._key = np.insert(self._key, place, key_N[order])
        self._row = np.insert(self._row, place, first + order)

    def _adopt(self, key_N: np.ndarray, vector_NM: np.ndarray) -> np.ndarray:
        self._shards.append(vector_NM)
        self._end = np.append(self._end, len(vector_NM) + (self._end[-1] if len(self._end) else 0))
        return key_N

    def _open(self, keys: Path) -> tuple[np.ndarray, np.ndarray] | None:
        """Hashes and mapped vectors of a shard; a damaged one is deleted."""
        vectors = keys.with_name(keys.name.removesuffix(_KEYS) + ".npy")
        try:
            key_N, vector_NM = np.load(keys), np.load(vectors, mmap_mode="r")
            whole = key_N.dtype == _KEY and vector_NM.dtype == np.float32 and len(key_N) == len(vector_NM)
        except (OSError, ValueError, EOFError):
            whole = False
        if not whole:
            warnings.warn(
                f"the cache shard {vectors} was damaged and is dropped: its texts are embedded again",
                stacklevel=3,
            )
            keys.unlink()
            vectors.unlink(missing_ok=True)
            return None
        if vector_NM.shape[1] != self.dim:
            raise UserError(
                f"the cache {self.folder} holds vectors of {vector_NM.shape[1]} dimensions, not {self.dim}: "
                "choose another folder"
            )
        return key_N, vector_NM
