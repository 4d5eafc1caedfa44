"""How tensors of other people's checkpoints become ours, and back.

A table ``{our tensor: Stored}`` serves reading, writing and checking alike. Several of their tensors may be
stacked along the first axis to make one of ours (q, k, v), or several of ours to make one of theirs (the two
matrices of a gated block); Nomic's experts lie in two dimensions where ours have three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moembed.model.spec import EncoderSpec, differences
from moembed.moe.ffn import Activation
from moembed.types import UserError

Shape = tuple[int, ...]

_ACTIVATION: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Stored:
    """Names of the tensors that make one of ours, and their form.

    - ``stacked``: ours is theirs, one below the other; of equally many rows each, or of ``rows``.
    - ``part`` (i, n): ours is the i-th, from 0, of n equal parts of theirs.
    - ``experts``: theirs is ``(E * F, D)``, ours ``(E, F, D)``.
    - ``experts_transposed``: theirs is ``(E * F, D)``, ours ``(E, D, F)``.
    """

    names: tuple[str, ...]
    form: Literal["stacked", "experts", "experts_transposed"]
    rows: tuple[int, ...] | None
    part: tuple[int, int]

    def __init__(
        self,
        *names: str,
        form: Literal["stacked", "experts", "experts_transposed"] = "stacked",
        rows: tuple[int, ...] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "part", part)

    def shapes(self, ours: Shape) -> list[Shape]:
        """The shapes of their tensors, given that of ours."""
        if self.form == "stacked":
            return [(count * self.part[1], *ours[1:]) for count in self._rows(ours[0])]
        experts, first, second = ours
        return [(experts * first, second) if self.form == "experts" else (experts * second, first)]

    def read(self, theirs: Sequence[Tensor], ours: Shape) -> Tensor:
        number, parts = self.part
        if parts > 1:
            return theirs[0].chunk(parts)[number].clone()
        if self.form == "stacked":
            return torch.cat(list(theirs)) if len(theirs) > 1 else theirs[0]
        experts, first, second = ours
        if self.form == "experts":
            return theirs[0].view(ours)
        return theirs[0].view(experts, second, first).transpose(1, 2).contiguous()

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        """Their tensors; of one that several of ours make, its part alone."""
        if self.form == "stacked":
            return torch.split(ours, self._rows(len(ours)))
        return [(ours if self.form == "experts" else ours.transpose(1, 2)).flatten(0, 1)]

    def _rows(self, count: int) -> list[int]:
        """Rows of each of their tensors, of ``count`` in ours."""
        return list(self.rows or (count // len(self.names),) * len(self.names))


Names = dict[str, Stored]


def by_their_names(state: Mapping[str, Tensor], table: Names, layout: str) -> dict[str, Tensor]:
    """All tensors of a model by their names.

    Raises:
        UserError: ``layout`` has no place for one.
    """
    theirs: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for ours, tensor in state.items():
        if ours not in table:
            raise UserError(f"the {layout} layout has no place for {ours!r}")
        stored = table[ours]
        pieces = stored.write(tensor.detach().cpu())
        if stored.part[1] > 1:
            parts.setdefault(stored.names[0], {})[stored.part[0]] = pieces[0]
        else:
            theirs |= zip(stored.names, pieces, strict=True)
    return theirs | {name: torch.cat([found[i] for i in sorted(found)]) for name, found in parts.items()}


def activation(name: str) -> Activation:
    """Our name of an activation that transformers calls ``name``."""
    if name not in _ACTIVATION:
        raise UserError(f"activation {name!r} is not supported (known: {', '.join(_ACTIVATION)})")
    return _ACTIVATION[name]


def activation_name(ours: Activation) -> str:
    """What transformers calls our activation."""
    return next(theirs for theirs, name in _ACTIVATION.items() if name == ours)


def require_reads_as(
    wanted: EncoderSpec, read: Callable[[dict[str, Any]], EncoderSpec], values: dict[str, Any], target: str
) -> None:
    """`require_same` of a config that is still to be read.

    Raises:
        UserError: as there; or that the config says what ``read`` refuses.
    """
    try:
        written = read(values)
    except UserError as error:
        raise UserError(f"{target} cannot hold this model: {error}") from None
    require_same(wanted, written, target)


def require_same(wanted: EncoderSpec, written: EncoderSpec, target: str) -> None:
    """Refuse a config that would be read as another model than the one it was written for.

    So a field of the spec that a family does not know is refused, and never dropped.

    Raises:
        UserError: every field that ``target`` cannot hold, in one sentence.
    """
    if found := differences(wanted, written):
        raise UserError(f"{target} cannot hold this model: it has {'; '.join(found)}")
