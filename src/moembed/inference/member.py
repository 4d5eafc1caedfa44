"""The model that a view sees, as a model of its own."""

from __future__ import annotations

from dataclasses import replace

from moembed.encoding import FULL, View
from moembed.folder.parts import Parts
from moembed.model.encoder import EncoderConfig
from moembed.types import UserError


def check_view(config: EncoderConfig, view: View, dim: int | None = None) -> None:
    """Raise UserError unless a model of ``config``, with vectors of ``dim`` coordinates, has this view."""
    widest = dim or config.width
    if view.dim is not None and not 1 <= view.dim <= widest:
        raise UserError(f"dim {view.dim} is not within 1..{widest}")
    if view.layers is not None and not 1 <= view.layers <= config.num_layers:
        raise UserError(f"layers {view.layers} is not within 1..{config.num_layers}")
    if view.experts is not None:
        if config.moe is None:
            raise UserError(f"experts {view.experts}: this model has no experts")
        if view.experts != config.moe.num_experts:
            raise UserError(
                f"experts {view.experts}: this model has {config.moe.num_experts} experts, and a part "
                "of them is not a model; leave experts out"
            )


def shallow_config(config: EncoderConfig, layers: int | None) -> EncoderConfig:
    """The architecture of the first ``layers`` layers; None: of all."""
    if layers is None or layers == config.num_layers:
        return config
    moe = config.moe
    if moe is not None:
        kept = tuple(layer for layer in moe.layers if layer < layers)
        moe = moe.model_copy(update={"layers": kept}) if kept else None
    return config.model_copy(update={"num_layers": layers, "moe": moe})


def belongs(name: str, layers: int | None) -> bool:
    """Whether the tensor of this name is one of the embeddings or of the first ``layers`` layers."""
    kind, _, rest = name.partition(".")
    return layers is None or kind != "layers" or int(rest.partition(".")[0]) < layers


def member(parts: Parts, view: View = FULL) -> Parts:
    """The parts of the model that ``view`` sees: its first layers. ``dim`` cuts vectors, not weights.

    Raises:
        UserError: the view goes beyond the model.
    """
    check_view(parts.config, view)
    config = shallow_config(parts.config, view.layers)
    if config is parts.config:
        return parts
    state = {name: tensor for name, tensor in parts.state.items() if belongs(name, view.layers)}
    return replace(parts, config=config, state=state)
