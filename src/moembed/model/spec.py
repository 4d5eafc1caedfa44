"""What an encoder is, in full: embeddings, a list of layers, and what of the last state is shown.

A family file says how a published checkpoint is written as a spec and back; exporters say which specs they
can express. Every field changes what is computed: what is not implemented is not a field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from moembed.config import Strict
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec
from moembed.model.norm import NormSpec
from moembed.model.relative_bias import RelativeBias
from moembed.moe.layer import MoESpec
from moembed.types import UserError


class EncoderSpec(Strict):
    """Everything the values of an encoder depend on, beside its tensors.

    Attributes:
        max_length: longest text, in tokens.
        relative_bias: learned, of the scores of all layers, by distance; None: there is none.
        final_norm: of the states after the last layer that runs; None: there is none.
        last_state: what is shown after a layer: its ``full`` state, or only what its feed-forward part added,
            ``without_residual``: so does the published code of one pre-norm model.
        dropout: of embeddings, attention and both parts of a layer, while training.
    """

    width: int = Field(ge=1)
    max_length: int = Field(ge=1)
    embeddings: EmbeddingSpec
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    relative_bias: RelativeBias | None = None
    final_norm: NormSpec | None = None
    last_state: Literal["full", "without_residual"] = "full"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits_together(self) -> EncoderSpec:
        table = self.embeddings.positions
        if table and self.max_length > table.rows - table.offset:
            raise ValueError(
                f"max_length {self.max_length} is more than the {table.rows - table.offset} positions"
            )
        if self.last_state != "full" and any(layer.place != "pre" for layer in self.layers):
            raise ValueError("last_state 'without_residual' needs layers that are all pre-norm")
        if self.relative_bias and len({layer.attention.num_heads for layer in self.layers}) > 1:
            raise ValueError("relative_bias needs the same num_heads in all layers")
        routers = [layer.moe.router for layer in self.layers if layer.moe and layer.moe.router.tags]
        if len({(*sorted(router.tags), router.default_tag) for router in routers}) > 1:
            raise ValueError("all routers of kind tag need the same tags and the same default_tag")
        for number, layer in enumerate(self.layers):
            if layer.shares is not None:
                self._check_sharing(number, layer, layer.shares)
        return self

    def _check_sharing(self, number: int, layer: LayerSpec, owner: int) -> None:
        if owner >= number or self.layers[owner].shares is not None:
            raise ValueError(f"layer {number} shares layer {owner}, which is no earlier layer with weights")
        if layer.model_copy(update={"shares": None}) != self.layers[owner]:
            raise ValueError(f"layer {number} shares layer {owner}, but is of another form")
        if layer.moe:
            raise ValueError(f"layer {number} has experts, which layers cannot share")

    # ---- what callers ask for most -----------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        """Rows of the word table."""
        return self.embeddings.vocabulary

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts, from 0."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.moe)

    @property
    def moe(self) -> MoESpec | None:
        """The experts of the first layer that has any; None: the model is dense."""
        return next((layer.moe for layer in self.layers if layer.moe), None)

    # ---- other specs made of this one --------------------------------------------------------------------

    def first_layers(self, count: int) -> EncoderSpec:
        """The model of the first ``count`` layers.

        Raises:
            UserError: there are not so many.
        """
        if not 1 <= count <= self.num_layers:
            raise UserError(f"layers {count} is not within 1..{self.num_layers}")
        return self.replace(layers=self.layers[:count])

    def with_layers(self, change: Callable[[int, LayerSpec], LayerSpec]) -> EncoderSpec:
        """``change(number, layer)`` in the place of every layer."""
        return self.replace(layers=tuple(change(i, layer) for i, layer in enumerate(self.layers)))

    def with_experts(self, change: Callable[[MoESpec], MoESpec]) -> EncoderSpec:
        """``change(moe)`` in the place of the experts of every layer that has any."""

        def layer(_: int, layer: LayerSpec) -> LayerSpec:
            return layer.model_copy(update={"moe": change(layer.moe)}) if layer.moe else layer

        return self.with_layers(layer)

    def with_vocabulary(self, rows: int) -> EncoderSpec:
        return self.replace(embeddings=self.embeddings.model_copy(update={"vocabulary": rows}))

    def without_noise(self) -> EncoderSpec:
        """Without dropout, jitter and a capacity that only training uses: formats for serving know none."""

        def still(moe: MoESpec) -> MoESpec:
            quiet: dict[str, Any] = {"jitter": 0.0}
            if not moe.router.capacity_at_inference:
                quiet["capacity_factor"] = None
            return moe.model_copy(update={"router": moe.router.model_copy(update=quiet)})

        return self.with_experts(still).replace(dropout=0.0)

    def replace(self, **changes: Any) -> EncoderSpec:
        """A copy with other values, checked as a new one is."""
        return EncoderSpec.model_validate(dict(self) | changes)


def differences(wanted: EncoderSpec, found: EncoderSpec) -> list[str]:
    """What of ``wanted`` is otherwise in ``found``, field by field, as parts of a sentence.

    Equal findings in several layers are told once.
    """
    told: dict[str, list[int]] = {}
    plain, other = wanted.model_dump(exclude={"layers"}), found.model_dump(exclude={"layers"})
    sentences = _differences(plain, other, "")
    if wanted.num_layers != found.num_layers:
        return [*sentences, f"{wanted.num_layers} layers"]
    for number, (ours, theirs) in enumerate(zip(wanted.layers, found.layers, strict=True)):
        for sentence in _differences(ours.model_dump(), theirs.model_dump(), ""):
            told.setdefault(sentence, []).append(number)
    everywhere = list(range(wanted.num_layers))
    for sentence, layers in told.items():
        where = "" if layers == everywhere else f" in the layers {layers}"
        sentences.append(sentence + where)
    return sentences


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = ((key, ours.get(key), theirs.get(key)) for key in ours | theirs)
        return [
            sentence
            for key, mine, other in pairs
            for sentence in _differences(mine, other, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(ours, dict):
        return [path]
    return [] if ours == theirs else [f"{path} = {ours!r}"]
