"""A model with another pooling, or with attention to one side or to both."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from moembed.config import Strict
from moembed.folder.parts import Parts
from moembed.model.attention_pooling import HEADS, LATENTS, AttentionSize, fresh
from moembed.model.block import LayerSpec
from moembed.model.pooling import POOLING, PoolingConfig
from moembed.prompts import PROMPT_EOL, stands_behind
from moembed.types import UserError
from moembed.weights.projection import add_projection

EOL = "prompt_eol"
_ROLES = ("query", "document")
Direction = Literal["causal", "bidirectional"]


class PoolingOptions(Strict):
    """``name``: a way of pooling, or several joined by ``+``. ``include_prompt`` null leaves what the model
    has. ``prompt_eol`` is ``lasttoken`` behind a prompt that ends in one word, `moembed.prompts.PROMPT_EOL`
    for queries and documents of a model that has no prompts.

    ``latents`` and ``heads`` are for ``latent_attention`` and ``multi_layer`` alone, ``dim`` is for
    ``tokens``: a fresh linear layer to so many coordinates behind every token; null leaves the layers there
    are. ``seed`` is for all three.
    """

    name: str
    include_prompt: bool | None = None
    latents: int = Field(default=LATENTS, ge=1)
    heads: int = Field(default=HEADS, ge=1)
    dim: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _known(self) -> PoolingOptions:
        try:
            config = PoolingConfig(self.mode)
        except UserError as error:
            raise ValueError(str(error)) from None
        if self.dim is not None and not config.per_token:
            raise ValueError(f"pooling {self.name!r} has no dim: it is that of pooling tokens")
        learning = {"latents", "heads"} if self.dim is not None else {"latents", "heads", "seed"}
        given = self.changed_keys & learning
        if given and not config.learns:
            raise ValueError(f"pooling {self.name!r} learns nothing, so it has no {sorted(given)[0]}")
        if self.name == EOL and self.include_prompt is False:
            raise ValueError("pooling prompt_eol reads the end of the prompt: leave include_prompt out")
        return self

    @property
    def mode(self) -> str:
        """The pooling itself."""
        return "lasttoken" if self.name == EOL else self.name


def change_pooling(parts: Parts, options: PoolingOptions) -> Parts:
    """The model with this pooling; one that learns starts fresh, unless the model has the very same already.

    With ``dim``, a fresh `moembed.weights.projection` stands behind it, unless the model has pooling tokens
    of that many coordinates already.

    Raises:
        UserError: the layers behind pooling take vectors of another width.
    """
    old, width = parts.pooling, parts.spec.width
    include = old.include_prompt if options.include_prompt is None else options.include_prompt
    config = PoolingConfig(options.mode, include or options.name == EOL)
    if options.name == EOL:
        parts = _with_templates(parts)
    if config.learns:
        layers = max(old.size.layers if old.learns else 0, parts.spec.num_layers)
        config = replace(config, size=AttentionSize(options.latents, options.heads, layers))
    if parts.head.layers and config.dim(width) != old.dim(width):
        raise UserError(
            f"pooling {options.name!r} gives {config.dim(width)} coordinates, and the layers behind it take "
            f"{old.dim(width)}"
        )
    if (config.modes, config.size) == (old.modes, old.size):
        return _projected(replace(parts, pooling=config), options)
    state: dict[str, Tensor] = {}
    for i, mode in enumerate(config.modes):
        shapes = POOLING[mode].shapes(width, config.size)
        tensors = fresh(mode, shapes, options.seed + i) if shapes else {}
        state |= {f"{i}.{name}": tensor for name, tensor in tensors.items()}
    return _projected(replace(parts, pooling=config, pooling_state=state), options)


def _projected(parts: Parts, options: PoolingOptions) -> Parts:
    dim = options.dim
    if dim is None or (parts.head.layers and parts.head.dim(parts.pooling.dim(parts.spec.width)) == dim):
        return parts
    return add_projection(parts, dim, options.seed)


def _with_templates(parts: Parts) -> Parts:
    """The model with the prompt that ends in one word, unless its own prompts stand around texts."""
    prompts = parts.tokenizer.prompts
    if in_front := [name for name, prompt in prompts.items() if not stands_behind(prompt)]:
        raise UserError(
            f"pooling prompt_eol reads the last token of the prompt, and the prompt {in_front[0]!r} of this "
            f"model has nothing behind {{}}: give prompts such as {PROMPT_EOL!r}, or none (prompts: {{}})"
        )
    if prompts:
        return parts
    return replace(parts, tokenizer=parts.tokenizer.replaced(prompts=dict.fromkeys(_ROLES, PROMPT_EOL)))


def look(parts: Parts, direction: Direction) -> Parts:
    """The model whose tokens see only those before them (``causal``), or those behind them too.

    The weights stay. Windows stay as they are, and count to both sides where attention is bidirectional.
    """

    def turned(_: int, layer: LayerSpec) -> LayerSpec:
        attention = layer.attention.model_copy(update={"causal": direction == "causal"})
        return layer.model_copy(update={"attention": attention})

    spec = parts.spec.with_layers(turned)
    if spec == parts.spec:
        return parts
    # a layout that says so only where it is not its own way would keep the old word
    source = {key: value for key, value in parts.source.items() if key != "is_causal"}
    return replace(parts, spec=spec, source=source)
