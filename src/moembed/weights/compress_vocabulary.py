"""The table of words in another form: made from a matrix, made a matrix again, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from moembed.config import Strict
from moembed.folder.parts import Parts
from moembed.model.embeddings import word_table
from moembed.model.spec import EncoderSpec
from moembed.model.words.codebooks import LearnedProduct, ProductConfig
from moembed.model.words.compressors import COMPRESSORS
from moembed.model.words.table import WordTable
from moembed.types import UserError

Method = Literal[
    "int8", "int4", "pruning", "low_rank", "pq", "hash", "quotient_remainder", "tensor_train", "dpq"
]
_PREFIX, _WHOLE = "word.", "word.weight"


class VocabularyConfig(Strict):
    """How the table of words is compressed: ``vocabulary`` in a recipe.

    Attributes:
        ratio: the share of the table's bytes in float32 that it may take; int8 and int4 have theirs.
        rank: in place of ratio, of ``low_rank`` and ``tensor_train``.
        seed: of k-means.
    """

    method: Method
    ratio: float | None = Field(default=None, gt=0, lt=1)
    rank: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)


@dataclass(frozen=True, slots=True)
class Compressed:
    """What became of a table of words. ``error``: ``|W − Ŵ| / |W|``, root of the sum of squares."""

    method: str
    config: dict[str, object]
    bytes: int
    float_bytes: int
    error: float


def compress_vocabulary(parts: Parts, config: VocabularyConfig) -> tuple[Parts, Compressed]:
    """The same model with its table of words in another form, which is near the old one or starts there.

    A table that learned to be product codes (``dpq``) becomes those codes by ``pq``, exactly, in the size
    that it has.

    Raises:
        UserError: a table that has another form already; a size that the method cannot have; no FAISS where
            it is needed.
    """
    spec, given = parts.spec, _table(parts.spec, parts.state)
    rows, width = spec.vocab_size, spec.width
    if isinstance(given, LearnedProduct) and config.method == "pq":
        if config.ratio is not None or config.rank is not None:
            raise UserError("what dpq learned has a size of its own: leave ratio and rank out")
        form = ProductConfig(method="pq", parts=given.config.parts, centroids=given.config.centroids)
        made: WordTable = given.fixed()
    elif isinstance(given, WordTable):
        raise UserError(f"the table of words has the form {given.method} already: start from the whole model")
    else:
        kind = COMPRESSORS[config.method]
        form = kind.sized(rows, width, config.ratio, config.rank)
        made = kind.from_matrix(given.weight.detach().cpu().float(), form, config.seed)
        made.to(given.weight.dtype)  # of one precision with the layers, which read its rows
    error = _error(given, made)
    state = {name: tensor for name, tensor in parts.state.items() if not name.startswith(_PREFIX)}
    own = {_PREFIX + name: tensor.detach() for name, tensor in made.state_dict().items()}
    embeddings = spec.embeddings.model_copy(update={"compression": form})
    facts = Compressed(config.method, form.model_dump(), made.num_bytes, 4 * rows * width, error)
    return replace(parts, spec=spec.replace(embeddings=embeddings), state=own | state), facts


def whole_vocabulary(spec: EncoderSpec, state: dict[str, Tensor]) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """The same function with a row of floats per word; a model that has them stays as it is."""
    table = _table(spec, state)
    if isinstance(table, nn.Embedding):
        return spec, state
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
    embeddings = spec.embeddings.model_copy(update={"compression": None})
    return spec.replace(embeddings=embeddings), {_WHOLE: table.weight.detach()} | rest


def with_whole_vocabulary(parts: Parts, target: str) -> Parts:
    """`whole_vocabulary` of all parts, for a format that knows no other; what is lost by that is told."""
    if form := parts.spec.embeddings.compression:
        warnings.warn(
            f"the table of words is compressed ({form.method}), which {target} cannot say: it is written as "
            "floats, with the same values",
            stacklevel=3,
        )
    spec, state = whole_vocabulary(parts.spec, parts.state)
    return replace(parts, spec=spec, state=state)


def require_whole_vocabulary(spec: EncoderSpec, what: str) -> None:
    """Raises UserError: ``what`` needs a row of floats per word, and the table has another form."""
    if form := spec.embeddings.compression:
        raise UserError(
            f"{what} needs a whole table of words, and that of this model is compressed ({form.method}): "
            "start from the model that it was made of"
        )


def _table(spec: EncoderSpec, state: Mapping[str, Tensor]) -> nn.Embedding | WordTable:
    table = word_table(spec.embeddings, spec.width)
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    table.load_state_dict(own, assign=True)
    return table.requires_grad_(False)


@torch.no_grad()
def _error(old: nn.Embedding | WordTable, new: WordTable) -> float:
    rows = torch.split(old.weight.float(), 8192) if isinstance(old, nn.Embedding) else old.blocks()
    lost = whole = 0.0
    for row_ND, other_ND in zip(rows, new.blocks(), strict=True):
        lost += float((row_ND - other_ND).double().square().sum())
        whole += float(row_ND.double().square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0
