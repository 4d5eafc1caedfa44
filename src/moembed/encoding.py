"""One seam from text to vector: whatever makes vectors of texts is a ``TextEncoder``.

The Embedder is one, and so are static word vectors, replicas in other processes, a model of another library
and a cache before any of them. Evaluation, mining, stress tests, indexing and training ask no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moembed.types import UserError

Progress = Callable[[int], object]  # called with the number of texts finished since the last call
Tag = str | Sequence[str | None]  # by which experts are chosen: one for all texts, or one of each or None
Bar = Callable[[str, int | None], AbstractContextManager[Progress]]  # what is done, and how much


@contextmanager
def no_bar(what: str, total: int | None) -> Iterator[Progress]:
    """Progress that nobody sees."""
    yield lambda count: None


@dataclass(frozen=True, slots=True)
class View:
    """A part of a model that is a model itself: its first ``layers``, ``dim`` coordinates, ``experts``.

    None keeps all there are. Equal views are equal keys.
    """

    layers: int | None = None
    dim: int | None = None
    experts: int | None = None


FULL = View()

# What texts are embedded for, and what models call the prompt of it: their own words, then those of MTEB.
ROLES = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "sts": ("sts", "STS"),
    "pair_classification": ("pair_classification", "PairClassification"),
    "bitext": ("bitext", "BitextMining"),
    "classification": ("classification", "Classification"),
    "clustering": ("clustering", "Clustering"),
}


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of texts, in their order.

    Attributes:
        array: float32 ``(N, M)``, rows of length 1; a text without a single token is a row of zeros.
        truncated: texts that were longer than the model reads.
        space: name of the space they live in: equal names, comparable vectors.
    """

    array: np.ndarray
    truncated: int
    space: str


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """Vectors of the tokens of texts: ``tokens[i]`` are those of text i, ``(its tokens, M)``.

    Attributes:
        vector_TM: float32, rows of length 1, those of one text after the other.
        length_N: how many each text has.
        truncated, space: as of ``Vectors``.
    """

    vector_TM: np.ndarray
    length_N: np.ndarray
    truncated: int = 0
    space: str = ""

    def __len__(self) -> int:
        return len(self.length_N)

    def __getitem__(self, text: int) -> np.ndarray:
        end = int(self.length_N[: text + 1].sum())
        return self.vector_TM[end - int(self.length_N[text]) : end]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.split(self.vector_TM, np.cumsum(self.length_N)[:-1]) if len(self) else ())


class TextEncoder(Protocol):
    """Texts -> vectors. Safe to call from several threads at once."""

    @property
    def dim(self) -> int:
        """Width of the full vector."""

    @property
    def max_length(self) -> int | None:
        """Tokens read of a text, special ones and prompt included; None: there is no limit."""

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """The ``Vectors.space`` that ``vectors`` would give."""

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """Embed texts.

        Args:
            role: what they are embedded for: ``query``, ``document``, … The model's prompt of that role is
                put in front, if it has one.
            prompt: this text in front, whatever the role; ``""`` means none.

        Raises:
            UserError: what is given is no collection of texts; a ``view`` beyond the model.
        """


@runtime_checkable
class TokenEncoder(Protocol):
    """Texts -> a vector of every token."""

    def encode_tokens(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        progress: Progress | None = None,
    ) -> TokenVectors:
        """The arguments are those of ``TextEncoder.vectors``."""


def role_prompt(role: str, prompts: Mapping[str, str], default: str | None) -> str | None:
    """The name of the prompt for a role, such as ``query``, else ``default``."""
    return next((name for name in ROLES.get(role, (role,)) if name in prompts), default)


def tag_of_role(role: str | None, tags: Collection[str]) -> str | None:
    """The one of ``tags`` that is this role, by any of its names; None: no tag is, or some are no roles."""
    if role is None or not set(tags) <= set(ROLES):
        return None
    return next((tag for tag in tags if role in (tag, *ROLES[tag])), None)


def as_texts(texts: Any) -> list[str]:
    """The texts as a list, checked one by one: nothing is sized, or returned, before it is there.

    Lists, tuples, generators, columns of pandas, numpy, polars, pyarrow or datasets: whatever has an order.

    Raises:
        UserError: a table, a set, one text alone, or anything else that does not hold strings alone.
    """
    kind = type(texts).__name__
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):  # pandas, polars, pyarrow, datasets
        raise UserError(f"a {kind} is a table, not a list of texts: pass one column, as in table['text']")
    if isinstance(texts, (set, frozenset)):
        raise UserError(f"a {kind} has no order, so no vector could be told whose it is: pass a list")
    if isinstance(texts, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(texts, Iterable):
        raise UserError(f"texts must be a list of strings, not a {kind}")
    if getattr(texts, "ndim", 1) == 0:  # numpy's arrays of one value say that they can be iterated over
        raise UserError(f"texts must be a list of strings, not a {kind} without a dimension")
    listed = texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise UserError(f"text {position} is a {type(text).__name__}, not a string")
    return [text if type(text) is str else str(text) for text in listed]


def truncate(vector_NM: np.ndarray, dim: int | None) -> np.ndarray:
    """The first ``dim`` coordinates, made unit vectors again (zeros stay); None: the vectors themselves.

    Source: Kusupati et al., *Matryoshka Representation Learning* (2022). The same of tensors is
    `moembed.losses.nested.shorten`.

    Raises:
        UserError: ``dim`` is not within the vectors.
    """
    if dim is None:
        return vector_NM
    if not 1 <= dim <= vector_NM.shape[1]:
        raise UserError(f"dim {dim} is not within 1..{vector_NM.shape[1]}")
    cut_NM = vector_NM[:, :dim].astype(np.float32)
    norm_N1 = np.linalg.norm(cut_NM, axis=1, keepdims=True)
    return cut_NM / np.where(norm_N1 > 0, norm_N1, 1)


def cut_texts(count: int) -> str:
    """The sentence on texts that were cut."""
    return f"{count:,} texts longer than the model reads were cut"


@dataclass(frozen=True, slots=True)
class SpaceRelation:
    """A model was trained to give the vectors of another one: its queries may search the other's documents.

    Attributes:
        queries: the space of its own whole query vectors when this was declared. A model that makes others
            by now, because it was trained on, has no such relation any more.
        documents: name of a space that may be searched -> coordinates of its vectors.
        model: what the other model was called.
    """

    queries: str
    documents: Mapping[str, int]
    model: str

    def allows(self, model: TextEncoder, space: str, dim: int) -> bool:
        """Whether vectors of ``dim`` coordinates of this model's queries may be compared with ``space``."""
        return self.documents.get(space) == dim and model.space(role="query") == self.queries
