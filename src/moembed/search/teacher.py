"""Who judges how near a document is to a query: a model of any kind and tokenizer, or vectors on disk.

A teacher gives vectors; the score of a query and a document is their cosine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moembed.encoding import FULL, Progress, TextEncoder, Vectors, View, as_texts, role_prompt, truncate
from moembed.prompts import fill, stands_behind
from moembed.search.texts import Column, Distinct, Role
from moembed.search.vectors import SHARD_ROWS, RowVectors, VectorCache
from moembed.types import UserError

ROLES: tuple[Role, ...] = ("query", "document")

_CHECKED_ROWS = 16384


class Teacher(Protocol):
    def identity(self) -> dict[str, Any]:
        """What its vectors depend on, as JSON."""

    def vectors(self, texts: Distinct, folder: Path, advance: Progress) -> RowVectors:
        """The vectors of distinct texts, computed now where ``folder`` does not keep them yet.

        ``advance`` is told the number of texts done since the last call.

        Raises:
            UserError: a text without a usable vector, told by its row; a full disk.
        """


class ModelTeacher:
    """A model, with its own prompts or with ``prompts``: texts put in front of queries or documents.

    Attributes:
        truncated: texts embedded so far that were longer than the model reads.
    """

    def __init__(self, model: TextEncoder, prompts: Mapping[Role, str | None] | None = None) -> None:
        self.model = model
        self.truncated = 0
        self._prompts = prompts or {}
        self._spaces = {role: model.space(role=role, prompt=self._prompts.get(role)) for role in ROLES}

    def identity(self) -> dict[str, Any]:
        return {str(role): space for role, space in self._spaces.items()}

    def encode(self, texts: list[str], role: Role) -> np.ndarray:
        found = self.model.vectors(texts, role=role, prompt=self._prompts.get(role))
        self.truncated += found.truncated
        return found.array

    def vectors(self, texts: Distinct, folder: Path, advance: Progress) -> RowVectors:
        role = texts.column.role
        cache = VectorCache(folder, self._spaces[role], self.model.dim)
        for start in range(0, len(texts), SHARD_ROWS):
            row_U = texts.row_U[start : start + SHARD_ROWS]
            known_U = cache.has(texts.key_U[start : start + SHARD_ROWS])
            self._embed(texts.column, row_U[~known_U], cache)
            advance(len(row_U))
        return lambda rows: cache.read(texts.key_U[rows])

    def _embed(self, column: Column, rows: np.ndarray, cache: VectorCache) -> None:
        cache.get_or_encode(
            column.take(rows),
            lambda texts: self.encode(texts, column.role),
            lambda number: column.where(int(rows[number])),
        )


class StoredTeacher:
    """``queries.npy`` and ``documents.npy`` of a folder: a vector for every row of the pairs (or corpus).

    Raises:
        UserError: a file is missing, is no matrix of floats, or holds NaN; the two are of different widths.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._vectors = {"query": self._load("queries"), "document": self._load("documents")}
        wide = [vector_NM.shape[1] for vector_NM in self._vectors.values()]
        if len(set(wide)) > 1:
            raise UserError(f"{folder}: queries have {wide[0]} dimensions and documents {wide[1]}")

    def identity(self) -> dict[str, Any]:
        stats = [self._file(name).stat() for name in ("queries", "documents")]
        return {"folder": str(self.folder), "files": [[stat.st_size, stat.st_mtime_ns] for stat in stats]}

    def vectors(self, texts: Distinct, folder: Path, advance: Progress) -> RowVectors:
        stored_NM = self._vectors[texts.column.role]
        file = self._file("queries" if texts.column.role == "query" else "documents")
        rows = len(texts.column.sources[0])  # of the corpus, if there is one: the pairs stand behind it
        if len(stored_NM) != rows:
            raise UserError(
                f"{file} holds {len(stored_NM)} vectors, {texts.column.sources[0].name} has {rows} rows: "
                "one for each is needed, in that order"
            )
        outside = texts.row_U[texts.row_U >= rows]
        if len(outside):
            raise UserError(
                f"{file} has no vector for {texts.column.where(int(outside[0]))}: it is not in the corpus"
            )
        advance(len(texts))
        return lambda some: stored_NM[texts.row_U[some]]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _load(self, name: str) -> np.ndarray:
        file = self._file(name)
        try:
            vector_NM = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"cannot read {file}: {error}") from None
        if vector_NM.ndim != 2 or not np.issubdtype(vector_NM.dtype, np.floating):
            raise UserError(
                f"{file} must be a matrix of floats, not {vector_NM.dtype} of shape {vector_NM.shape}"
            )
        for start in range(0, len(vector_NM), _CHECKED_ROWS):
            good = np.isfinite(vector_NM[start : start + _CHECKED_ROWS]).all(axis=1)
            if not good.all():
                row = start + int(np.argmin(good)) + 1
                raise UserError(f"{file}, row {row}, holds NaN or infinite numbers: embed that text again")
        return vector_NM


class SentenceTransformerEncoder:
    """A sentence-transformers model as a text encoder; cuts long texts without counting them.

    Raises:
        UserError: the library is not installed, or cannot load the model.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UserError(
                "a teacher st:NAME needs sentence-transformers: pip install 'moembed[st]'"
            ) from None
        try:
            self._model: Any = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            first = " ".join(str(error).split())
            raise UserError(f"sentence-transformers cannot load {name}: {first}") from None
        self.dim = int(self._model.encode([""], show_progress_bar=False).shape[1])

    @property
    def max_length(self) -> int | None:
        """Tokens read of a text, special ones and prompt included."""
        return self._model.max_seq_length

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """See `moembed.encoding.TextEncoder`."""
        digest = self._weights.copy()
        prefix, dim = self._prefix(role, prompt), view.dim or self.dim
        facts = [str(self._model), self._model.max_seq_length, prefix, dim]
        digest.update(repr(facts).encode())
        return digest.hexdigest()[:16]

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`; how many texts were cut is not known."""
        if view.layers is not None or view.experts is not None:
            raise UserError("a model of sentence-transformers is seen whole: leave layers and experts out")
        listed, prefix = as_texts(texts), self._prefix(role, prompt)
        vector_NM = np.zeros((0, self.dim), dtype=np.float32)
        if listed:
            if stands_behind(prefix):  # which prompts there do not know
                listed, prefix = [fill(prefix, text) for text in listed], ""
            vector_NM = self._model.encode(listed, prompt=prefix, show_progress_bar=False)
        if progress:
            progress(len(listed))
        array = truncate(np.asarray(vector_NM, dtype=np.float32), view.dim)
        return Vectors(array, 0, self.space(role=role, prompt=prompt, view=view))

    @cached_property
    def _weights(self) -> Any:
        """A hash of the weights that goes on with whatever else the space depends on."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
        return digest

    def role_prefix(self, role: str | None) -> str:
        """The text that is put in front of texts of a role."""
        return self._prefix(role, None)

    def _prefix(self, role: str | None, prompt: str | None) -> str:
        """The text put in front; None would mean the default prompt there."""
        if prompt is not None:
            return prompt
        if role is None:
            return ""
        found = role_prompt(role, self._model.prompts, self._model.default_prompt_name)
        return self._model.prompts[found] if found else ""


def open_teacher(
    name: str,
    load: Callable[[str], TextEncoder],
    prompts: Mapping[Role, str | None] | None = None,
) -> Teacher:
    """``vectors:FOLDER``, ``st:NAME`` of sentence-transformers, or what ``load`` makes of any other name.

    Raises:
        UserError: see the classes above; prompts for vectors that are there already.
    """
    kind, separator, rest = name.partition(":")
    if separator and kind == "vectors":
        if prompts and any(prompt is not None for prompt in prompts.values()):
            raise UserError(f"{name} holds finished vectors: a prompt would change nothing")
        return StoredTeacher(rest)
    model = SentenceTransformerEncoder(rest) if separator and kind == "st" else load(name)
    return ModelTeacher(model, prompts)
