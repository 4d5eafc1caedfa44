"""An encoder of one kind of layer in a flat list of keys: what BERT, RoBERTa and NomicBERT checkpoints say.

It is also what our own ``config.json`` has held from the start, under ``encoder`` and beside ``family``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from moembed.config import Strict, validate
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec, PositionTable
from moembed.model.norm import NormSpec
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec, differences
from moembed.moe.ffn import Activation, FeedForwardSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router_config import RouterConfig
from moembed.types import UserError


class FlatMoE(Strict):
    """`MoESpec`, and the layers that have such experts."""

    layers: tuple[int, ...]
    num_experts: int = Field(default=8, ge=1)
    num_shared_experts: int = Field(default=0, ge=0)
    shared_weight: Literal["sum", "mean"] = "sum"
    bias: Literal["each", "shared", "none"] = "each"
    router: RouterConfig = RouterConfig()

    def spec(self) -> MoESpec:
        return MoESpec.model_validate({key: value for key, value in self if key != "layers"})


class FlatConfig(Strict):
    """The keys; their order is that of the files, and names that are made of them depend on it.

    ``moe`` None means every layer is dense. ``max_positions`` are the rows of the position table, or the
    length a rotary model was trained for; RoBERTa counts positions from ``position_offset``.
    """

    vocab_size: int = Field(ge=1)
    width: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_width: int = Field(ge=1)
    activation: Activation = "gelu"
    gated: bool = False
    attention_bias: bool = True
    ffn_bias: bool = True
    norm: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-12
    position: Literal["absolute", "rope"] = "absolute"
    max_positions: int = 512
    position_offset: int = Field(default=0, ge=0)
    rope_base: float = 10000.0
    num_token_types: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    moe: FlatMoE | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> FlatConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.moe and not set(self.moe.layers) <= set(range(self.num_layers)):
            raise ValueError(f"moe.layers {self.moe.layers} go beyond the {self.num_layers} layers")
        return self

    def spec(self) -> EncoderSpec:
        norm, rotary = NormSpec(eps=self.norm_eps), self.position == "rope"
        rows = PositionTable(rows=self.max_positions, offset=self.position_offset)
        dense = LayerSpec(
            attention=AttentionSpec(
                num_heads=self.num_heads,
                num_kv_heads=self.num_heads,
                head_size=self.width // self.num_heads,
                bias=self.attention_bias,
                out_bias=self.attention_bias,
                rope=RopeSpec(base=self.rope_base) if rotary else None,
            ),
            ffn=FeedForwardSpec(
                width=self.ffn_width,
                activation=self.activation,
                gated=self.gated,
                bias=self.ffn_bias,
                out_bias=self.ffn_bias,
            ),
            norm=norm,
            place=self.norm,
        )
        experts = dense.model_copy(update={"moe": self.moe.spec() if self.moe else None})
        routed = self.moe.layers if self.moe else ()
        return EncoderSpec(
            width=self.width,
            max_length=self.max_positions - self.position_offset,
            embeddings=EmbeddingSpec(
                vocabulary=self.vocab_size,
                positions=None if rotary else rows,
                token_types=self.num_token_types,
                norm=norm,
            ),
            layers=tuple(experts if i in routed else dense for i in range(self.num_layers)),
            last_state="without_residual" if self.norm == "pre" else "full",
            dropout=self.dropout,
        )


def read_flat(values: dict[str, Any]) -> EncoderSpec:
    """The spec that flat keys stand for.

    Raises:
        UserError: an unknown or missing key, a wrong value, values that do not fit together.
    """
    flat = validate(FlatConfig, values)
    try:
        return flat.spec()
    except ValidationError as error:
        told = (str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        raise UserError("; ".join(told)) from None


def _flat_moe(layers: tuple[int, ...], moe: MoESpec) -> dict[str, Any]:
    return {"layers": layers} | {key: value for key, value in moe if key in FlatMoE.model_fields}


def flatten(spec: EncoderSpec, target: str) -> FlatConfig:
    """The flat keys that ``FlatConfig.spec`` makes this spec of.

    Raises:
        UserError: there are none; one sentence names every field that ``target`` has no key for.
    """
    layer, table = spec.layers[0], spec.embeddings.positions
    rope, moe = layer.attention.rope, spec.moe
    values = {
        "vocab_size": spec.vocab_size,
        "width": spec.width,
        "num_layers": spec.num_layers,
        "num_heads": layer.attention.num_heads,
        "ffn_width": layer.ffn.width,
        "activation": layer.ffn.activation,
        "gated": layer.ffn.gated,
        "attention_bias": layer.attention.bias,
        "ffn_bias": layer.ffn.bias,
        "norm": "pre" if layer.place == "pre" else "post",
        "norm_eps": layer.norm.eps,
        "position": "absolute" if table else "rope",
        "max_positions": table.rows if table else spec.max_length,
        "position_offset": table.offset if table else 0,
        "num_token_types": spec.embeddings.token_types,
        "dropout": spec.dropout,
        "moe": _flat_moe(spec.moe_layers, moe) if moe else None,
    }
    values |= {"rope_base": rope.base} if rope else {}
    if spec.width % layer.attention.num_heads:
        found = [f"heads of size {layer.attention.head_size}"]
    else:
        flat = FlatConfig.model_validate(values)
        found = differences(spec, flat.spec())
    if found:
        raise UserError(f"{target} cannot hold this model: it has {'; '.join(found)}")
    return flat
