"""`moembed fuse`: the vectors of several models, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from moembed.encoding import Bar, no_bar
from moembed.files import require_replaceable
from moembed.runs.opened import open_model, require_apart, stored_name
from moembed.runs.upcycle import texts_of
from moembed.search.composed import ComposedEncoder, write_composed
from moembed.search.fusion import reduction
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class FusePlan:
    """How vectors are put together, see `moembed.search.fusion`.

    Attributes:
        weights: of each model's cosine; None: as much of each.
        dim: coordinates that are kept; None: all, and no texts are needed.
        texts, column: training texts that say which directions those are.
        sample: how many of them, the first ones.
        tag: of all texts, for models that choose experts by it.
    """

    weights: tuple[float, ...] | None = None
    dim: int | None = None
    texts: Path | None = None
    column: str = "text"
    role: str = "document"
    sample: int = 20_000
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Fused:
    """What was written. ``kept``: the share of the squared length of training vectors that is left.
    ``truncated``: training texts that were longer than the models read."""

    out: str
    models: list[str]
    weights: list[float]
    dim: int
    kept: float
    parameters: int
    truncated: int


def fuse(
    models: Sequence[str], out: str | Path, plan: FusePlan, overwrite: bool = False, bar: Bar = no_bar
) -> Fused:
    """Put the vectors of several models side by side, in fewer coordinates where asked, and write to ``out``
    a folder that names the models.

    Raises:
        UserError: fewer than two models, texts without a dim or a dim without texts, weights that do not fit.
    """
    if len(models) < 2:
        raise UserError("putting vectors together takes at least two models")
    if (plan.dim is None) != (plan.texts is None):
        raise UserError("fewer coordinates are fitted to texts: give both dim and texts, or neither")
    require_replaceable(Path(out), overwrite)
    encoders = [open_model(name, plan.role, plan.tag) for name in models]
    require_apart(models, out)
    together = ComposedEncoder(encoders, plan.weights)
    kept, truncated = 1.0, 0
    if plan.texts is not None and plan.dim is not None:
        texts = list(islice(texts_of(plan.texts, plan.column), plan.sample))
        with bar("texts", len(texts)) as advance:
            found = together.vectors(texts, role=plan.role, progress=advance)
        truncated = found.truncated
        linear, kept = reduction(found.array, plan.dim)
        together = ComposedEncoder(encoders, plan.weights, linear=linear)
    write_composed(Path(out), [stored_name(name) for name in models], together)
    weights = [round(weight, 6) for weight in together.weights]
    parameters = together.num_parameters()
    return Fused(str(out), list(models), weights, together.dim, kept, parameters, truncated)
