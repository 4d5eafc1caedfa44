"""An index folder opened for reading: search by vectors, filters, and both together with BM25.

Cosines are exact. All rows that a filter leaves are scored, unless the index was made with an approximate
engine, see ``ann``. ``index_update`` makes and changes such folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from moembed.encoding import FULL, TextEncoder, TokenEncoder, TokenVectors, View, as_texts
from moembed.search.ann import AnnPart, AnnSearcher
from moembed.search.exact import require_rows
from moembed.search.fde import Fde, FdeConfig
from moembed.search.hybrid import require_weight
from moembed.search.index_bridge import Bridge, bridge_of
from moembed.search.index_codec import read_codec
from moembed.search.index_manifest import open_version, parts_of
from moembed.search.index_model import load_model, searched_space, told_if_cut
from moembed.search.index_reader import PartReader
from moembed.search.index_search import Search, find
from moembed.search.late_search import ENGINE as MUVERA
from moembed.search.plan import Plan
from moembed.search.where import Where, read_where
from moembed.search.where_mask import require_columns
from moembed.types import Hits, UserError, is_count

Condition = str | Mapping[str, Any] | Where


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found: its id, its score and its columns."""

    id: str
    score: float
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IndexHits(Hits):
    """The best rows of every query, as numbers and, one query after the other, as lists of ``Hit``.

    ``hits[0]`` and iteration read the rows; ``hits.index`` and ``hits.score`` are there at once.
    ``plan`` says when the condition was looked at, see `moembed.search.plan`.
    """

    source: Index
    plan: Plan

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, query: int) -> list[Hit]:
        return self.source.hits(self.index[query], self.score[query])

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[query] for query in range(len(self)))


@dataclass(frozen=True)
class Index:
    """One version of an index folder, opened for reading; vectors are memory-mapped one part at a time.

    What a writer commits later is seen by those who open the folder then. A file is compared with its
    checksum when it is read the first time. Safe to use from several threads at once.
    """

    path: Path
    manifest: dict[str, Any]
    _reader: PartReader = field(repr=False, compare=False)
    _lock: BinaryIO = field(repr=False, compare=False)  # while it is open, no writer removes our files
    _ann: list[AnnSearcher | None] = field(default_factory=list, repr=False, compare=False)
    _models: list[TextEncoder] = field(default_factory=list, repr=False, compare=False)
    _bridges: dict[str, Bridge] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, space_id: str | None = None) -> Index:
        """Open the newest version; with ``space_id``, refuse it unless its vectors live in that space.

        Raises:
            UserError: not an index, unfinished, of an unknown format version or another space, damaged, or a
                file of a part is missing or cut.
        """
        path = Path(path)
        opened = open_version(path)
        if opened is None:
            raise UserError(f"{path} is not an index: it has no manifest.json")
        manifest, lock = opened
        if not manifest["complete"]:
            raise UserError(
                f"the index {path} is unfinished: run the command that started it again to finish it"
            )
        parts, codec = tuple(parts_of(manifest)), read_codec(path, manifest)
        token_dim = manifest.get("multivector", {}).get("token_dim")
        reader = PartReader(path, parts, manifest["dim"], manifest.get("column"), codec, token_dim)
        reader.require_sizes()
        index = cls(path, manifest, reader, lock)
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

    @cached_property
    def fde(self) -> Fde | None:
        """Of a multi-vector index, how the vectors of tokens are encoded."""
        config = self.manifest.get("multivector")
        return Fde(FdeConfig.from_json(config)) if config else None

    @property
    def codec(self) -> str:
        """What its vectors are stored in: float32, or codes, see `moembed.search.codecs`."""
        return self.manifest["codec"]["name"] if "codec" in self.manifest else "float32"

    @property
    def version(self) -> int:
        """How many times the index was changed; 0 for a folder that `moembed embed` made."""
        return self.manifest.get("version", 0)

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def columns(self) -> dict[str, str]:
        """The columns, and what they hold: numbers, text, true or false, times, mixed values, nothing."""
        return self._reader.columns

    def search(
        self,
        queries: str | Iterable[str] | np.ndarray | TokenVectors,
        k: int = 10,
        *,
        where: Condition | None = None,
        hybrid: bool = False,
        weight: float | None = None,
        model: TextEncoder | None = None,
        exact: bool = False,
    ) -> IndexHits:
        """The best ``min(k, N)`` of the N rows that meet ``where``, for every query; ties by lower row.

        ``IndexHits.index`` counts the rows of the index that are not deleted. In a multi-vector index scores
        are those of MaxSim, of the candidates that `moembed.search.late_search` takes, or of all rows.

        Args:
            queries: a text or texts in an order, embedded by ``model``; or their vectors ``(Q, dim)``, a
                single one ``(dim,)``, in a multi-vector index their token vectors, which needs no model.
            where: a condition on columns, see `moembed.search.where`.
            hybrid: rank by vectors and BM25 together, see `moembed.search.hybrid`; needs texts.
            weight: of hybrid search, how much the vectors count, 0 to 1; None: ranks are added.
            model: default: the model that made the index, loaded once.
            exact: compare all rows, where an approximate engine or encodings of tokens would choose some.

        Raises:
            UserError: ``k`` is no whole number of at least 1, queries that are no texts, vectors that do not
                fit, a condition that the columns cannot answer, a model of another space, a damaged part.
        """
        if isinstance(queries, TokenVectors) or _are_vectors(queries):
            if hybrid:
                raise UserError("hybrid search needs the texts of the queries: give texts, or use find")
            vectors = queries if isinstance(queries, TokenVectors) else np.atleast_2d(queries)
            return self._find(Search.of(vectors, k, self._condition(where), None, weight), exact)
        texts = [queries] if isinstance(queries, str) else as_texts(queries)
        found, listed = self.embed_queries(texts, model), texts if hybrid else None
        return self._find(Search.of(found, k, self._condition(where), listed, weight), exact)

    def find(
        self,
        query_QM: np.ndarray,
        *,
        texts: Sequence[str] | None = None,
        k: int = 10,
        where: Condition | None = None,
        hybrid: bool = False,
        weight: float | None = None,
    ) -> list[list[Hit]]:
        """``search`` for vectors that are there already; hybrid search needs the texts too."""
        if hybrid and (texts is None or len(texts) != len(query_QM)):
            raise UserError("hybrid search needs the text of every query")
        listed = texts if hybrid else None
        return list(self._find(Search(query_QM, k, self._condition(where), listed, weight), exact=False))

    def embed_queries(
        self, texts: Sequence[str], model: TextEncoder | None = None
    ) -> np.ndarray | TokenVectors:
        """Vectors of questions in the space of the index, in a multi-vector index those of their tokens.

        Raises:
            UserError: the model is not there, or makes vectors of another space, to which neither a declared
                relation nor a bridge leads.

        Warns:
            TruncationWarning: questions were longer than the model reads.
        """
        if model is None:
            if not self._models:
                self._models.append(load_model(self.path, self.manifest))
            model = self._models[0]
        if bridge := bridge_of(self.path, self.manifest, model, self._bridges):
            return bridge.vectors(told_if_cut(model.vectors(texts, role="query")).array)
        view = View(dim=self.dim) if self.fde is None else FULL
        self.require_space(searched_space(model, self.manifest.get("role"), view, self.space_id))
        if self.fde is None:
            return told_if_cut(model.vectors(texts, role="query", view=view)).array
        assert isinstance(model, TokenEncoder)  # it is in the space of this index
        return told_if_cut(model.encode_tokens(texts, role="query"))

    def _find(self, search: Search, exact: bool) -> IndexHits:
        require_weight(search.weight)
        if not is_count(search.k):
            raise UserError(f"k must be a whole number of at least 1, not {search.k!r}")
        if search.weight is not None and search.texts is None:
            raise UserError("weight is of hybrid search alone: ask for hybrid too")
        search = self._encoded(search)
        hits, plan = find(self._reader, replace(search, exact=exact), None if exact else self._engine())
        return IndexHits(hits.index, hits.score, self, plan)

    def _encoded(self, search: Search) -> Search:
        """With the vectors of queries as rows are compared with them."""
        tokens = search.tokens
        if (tokens is None) != (self.fde is None):
            kind = "token vectors" if self.fde is not None else "one vector of each query"
            raise UserError(f"the index {self.path} is searched with texts or {kind}")
        if tokens is None or self.fde is None:
            return replace(search, query_QM=self._reader.queries(search.query_QM))
        require_rows(tokens.vector_TM, "query token")
        if search.weight is not None:
            raise UserError("a multi-vector index has no cosines to weigh: leave weight out, ranks are added")
        # candidates are chosen among the rows that meet the condition, or too few of them would be left
        return replace(search, query_QM=self.fde.queries(tokens), plan="pre")

    def _engine(self) -> AnnSearcher | None:
        """The approximate engine, opened once."""
        if not self._ann:
            record = AnnPart.of(self.manifest)
            self._ann.append(AnnSearcher.open(self._reader, record, self.path) if record else None)
        return self._ann[0]

    def vectors(self) -> Iterator[np.ndarray]:
        """The ``(rows, dim)`` vectors of each part in turn, without deleted ones; codes are decoded."""
        return self._reader.vectors()

    def rows(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The stored rows at ``indices``, in that order; a key that a row lacked reads None.

        Raises:
            IndexError: a number that is not a row of this index.
            UserError: a part is damaged.
        """
        return [dict(row) for _, row in self._reader.rows(indices, with_ids=False)]

    def ids(self, indices: Iterable[int] | None = None) -> list[str]:
        """The ids of the rows at ``indices``, by default of all rows."""
        indices = range(len(self)) if indices is None else indices
        return [known for known, _ in self._reader.rows(indices, with_ids=True)]

    def hits(self, indices: Iterable[int], scores: Iterable[float]) -> list[Hit]:
        found = self._reader.rows(indices, with_ids=True)
        return [
            Hit(known, float(score), dict(row)) for (known, row), score in zip(found, scores, strict=True)
        ]

    def require_condition(self, where: Condition | None) -> None:
        """
        Raises:
            UserError: no condition, or one that the columns cannot answer.
        """
        self._condition(where)

    def info(self) -> dict[str, Any]:
        """What the index holds, for people and programs."""
        manifest, ann = self.manifest, AnnPart.of(self.manifest)
        return {
            "path": str(self.path),
            "rows": len(self),
            "version": self.version,
            "dim": self.dim,
            "codec": self.codec,
            "space_id": self.space_id,
            "model": manifest.get("model_path"),
            **({"multivector": self.fde.config.as_json()} if self.fde is not None else {}),
            "text_column": manifest.get("column"),
            "id_column": manifest.get("id_column"),
            "columns": self.columns,
            "parts": len(self._reader.parts),
            "deleted_rows": sum(part.rows - part.live for part in self._reader.parts),
            "rows_of_an_unfinished_update": sum(part.rows for part in parts_of(manifest, "pending")),
            "engine": ann.engine if ann else "exact" if self.fde is None else MUVERA,
            "engine_recall": ann.recall if ann else None,
            "engine_bytes": ann.bytes(self.path) if ann else 0,
            "bytes": sum(file.stat().st_size for file in self._reader.files()),
        }

    def _condition(self, where: Condition | None) -> Where | None:
        return None if where is None else self._read(where)

    def _read(self, where: Condition) -> Where:
        condition = read_where(where)
        if len(self):  # columns are those of rows: an index without any has none, and nothing to find
            require_columns(condition, self.columns)
        return condition


def _are_vectors(queries: object) -> TypeGuard[np.ndarray]:
    """Whether these are numbers; an array may also be a column of texts."""
    return isinstance(queries, np.ndarray) and np.issubdtype(queries.dtype, np.number)
