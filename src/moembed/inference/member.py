"""The model that a view sees, as a model of its own."""

from __future__ import annotations

from dataclasses import replace

from moembed.encoding import FULL, View
from moembed.folder.parts import Parts
from moembed.model.spec import EncoderSpec
from moembed.types import UserError, is_count


def check_view(spec: EncoderSpec, view: View, dim: int) -> None:
    """Raise UserError unless a model of ``spec``, with vectors of ``dim`` coordinates, has this view."""
    for name, value, most in (("dim", view.dim, dim), ("layers", view.layers, spec.num_layers)):
        if value is not None and not (is_count(value) and value <= most):
            raise UserError(f"{name} {value!r} is not within 1..{most}")
    if view.experts is not None:
        if spec.moe is None:
            raise UserError(f"experts {view.experts}: this model has no experts")
        if view.experts != spec.moe.num_experts:
            raise UserError(
                f"experts {view.experts}: this model has {spec.moe.num_experts} experts, and a part "
                "of them is not a model; leave experts out"
            )


def first_layers(spec: EncoderSpec, view: View) -> EncoderSpec:
    """The spec of the layers that ``view`` sees."""
    return spec if view.layers is None else spec.first_layers(view.layers)


def belongs(name: str, layers: int | None) -> bool:
    """Whether the tensor of this name is one of the embeddings or of the first ``layers`` layers."""
    kind, _, rest = name.partition(".")
    return layers is None or kind != "layers" or int(rest.partition(".")[0]) < layers


def member(parts: Parts, view: View = FULL) -> Parts:
    """The parts of the model that ``view`` sees: its first layers. ``dim`` cuts vectors, not weights.

    Raises:
        UserError: the view goes beyond the model.
    """
    check_view(parts.spec, view, parts.head.dim(parts.pooling.dim(parts.spec.width)))
    if view.layers in (None, parts.spec.num_layers):
        return parts
    spec = first_layers(parts.spec, view)
    state = {name: tensor for name, tensor in parts.state.items() if belongs(name, view.layers)}
    return replace(parts, spec=spec, state=state)
