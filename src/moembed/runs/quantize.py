"""`moembed quantize`: the weights of a model in few bits, most of them where they matter most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from moembed.data.docstrings import collect
from moembed.embedder import Embedder
from moembed.files import replacing, require_replaceable
from moembed.folder.bases import base_name, read_base
from moembed.folder.parts import Parts
from moembed.folder.quantized import FILE, write_quantized
from moembed.folder.write import write_small_files
from moembed.packing import pack
from moembed.report.card import write_card
from moembed.runs.opened import set_tag
from moembed.runs.upcycle import texts_of
from moembed.types import Batch, UserError
from moembed.weights.quantize import (
    SCORES,
    Part,
    assign,
    importance,
    look,
    mean_bits,
    ordered,
    parts_of,
    quantize,
    require_quantizable,
)

_BATCH = 32  # calibration texts computed at a time


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """How bits are given out.

    Attributes:
        avg_bits: the mean over the matrices of the layers, scales not counted.
        score: ``lim`` or ``zd`` of `moembed.weights.quantize`.
        order: ``score``; ``reverse`` and ``random`` only to compare with it.
        texts: what the model reads to find its scores; None: docstrings of numpy.
        sample: how many of these texts, the first ones.
        tag: of all texts, for models that choose experts by it.
    """

    avg_bits: float = 5.5
    score: str = "lim"
    order: str = "score"
    texts: Path | None = None
    column: str = "text"
    sample: int = 256
    seed: int = 0
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class PartBits:
    part: str
    weights: int
    score: float
    bits: int


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was written. ``file_bytes`` is the size of the encoder's file, ``float_bytes`` that in float32."""

    out: str
    avg_bits: float
    file_bytes: int
    float_bytes: int
    parts: list[PartBits]


def quantize_model(
    model: str, out: str | Path, plan: QuantizePlan = QuantizePlan(), overwrite: bool = False
) -> Quantized:
    """Write ``model`` to the folder ``out`` with its encoder in 8 and 4 bits.

    Raises:
        UserError: an unknown score or order, a mean that 8 and 4 bits cannot have, a model without layers or
            with LoRA experts, no calibration texts.
    """
    if plan.score not in SCORES:
        raise UserError(f"score {plan.score!r} is none of {', '.join(SCORES)}")
    require_replaceable(Path(out), overwrite)
    parts = read_base(model)
    require_quantizable(parts.spec)
    split = parts_of(parts.state)
    embedder = Embedder(parts).eval()
    if plan.tag is not None:
        set_tag(embedder, model, plan.tag)
    seen = look(embedder.encoder, _calibration(embedder, plan))
    scores = [importance(part, parts.state, seen, plan.score) for part in split]
    bits = assign(split, ordered(split, scores, plan.order, plan.seed), plan.avg_bits)
    _write(Path(out), parts, split, bits)
    write_card(Path(out), str(out), base_name(model))
    table = [
        PartBits(part.name, part.num_weights, round(score, 6), width)
        for part, score, width in zip(split, scores, bits, strict=True)
    ]
    size = (Path(out) / FILE).stat().st_size
    whole = sum(4 * tensor.numel() for tensor in parts.state.values())
    return Quantized(str(out), round(mean_bits(split, bits), 3), size, whole, table)


def _calibration(model: Embedder, plan: QuantizePlan) -> list[Batch]:
    """Texts as documents, in batches.

    Raises:
        UserError: there are none; experts are chosen by tags, and nothing says which these texts have.
    """
    if plan.texts is None:
        texts = [pair.document for pair in collect([Path(np.__file__).parent], 1).train[: plan.sample]]
    else:
        texts = list(islice(texts_of(plan.texts, plan.column), plan.sample))
    rows = model.rows(texts, role="document")[0]
    tags = model.tag_numbers(texts, role="document")
    some = [i for i, row in enumerate(rows) if row]  # of a text without a token there are no states
    if not some:
        raise UserError(
            f"{plan.texts or 'numpy'} holds no texts to find the scores with: name some by --texts"
        )
    parts = [some[start : start + _BATCH] for start in range(0, len(some), _BATCH)]
    return [pack([rows[i] for i in part], tags=tags and [tags[i] for i in part]) for part in parts]


def _write(path: Path, parts: Parts, split: Sequence[Part], bits: Sequence[int]) -> None:
    """The folder, whole or not at all."""
    with replacing(path) as folder:
        write_small_files(folder, parts)
        write_quantized(folder, quantize(parts.state, split, bits))
