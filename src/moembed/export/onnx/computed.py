"""Which models the ONNX graph computes: those whose spec says no more than the graph reads."""

from __future__ import annotations

from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec, PositionTable
from moembed.model.expert_head import ExpertHead
from moembed.model.head import HeadConfig
from moembed.model.norm import NormSpec
from moembed.model.relative_bias import RelativeBias
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec, differences
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router_config import RouterConfig
from moembed.types import UserError


def require_computed(spec: EncoderSpec) -> None:
    """Refuse a model of which the graph would compute another.

    The spec is written once more out of the fields that `moembed.export.onnx.encoder` reads: a field that is
    not among them has its default there, and is found by that.

    Raises:
        UserError: one sentence that names every such field.
    """
    spec, table, bias = spec.without_noise(), spec.embeddings.positions, spec.relative_bias
    computed = EncoderSpec(
        width=spec.width,
        max_length=spec.max_length,
        embeddings=EmbeddingSpec(
            vocabulary=spec.vocab_size,
            positions=PositionTable(rows=table.rows, offset=table.offset) if table else None,
            scale=spec.embeddings.scale,
            token_types=spec.embeddings.token_types,
            norm=_norm(spec.embeddings.norm) if spec.embeddings.norm else None,
        ),
        layers=tuple(map(_computed, spec.layers)),
        relative_bias=RelativeBias(buckets=bias.buckets, max_distance=bias.max_distance) if bias else None,
        final_norm=_norm(spec.final_norm) if spec.final_norm else None,
        last_state=spec.last_state,
    )
    if found := differences(spec, computed):
        raise UserError(f"the ONNX graph cannot run this model: it has {'; '.join(found)}")


def require_head(head: HeadConfig) -> None:
    """Refuse what stands behind pooling and is no part of the graph.

    Raises:
        UserError: experts behind pooling.
    """
    if any(isinstance(step, ExpertHead) for step in head.steps):
        raise UserError("the ONNX graph cannot run this model: it has experts behind pooling")


def _computed(layer: LayerSpec) -> LayerSpec:
    attention, rope, moe = layer.attention, layer.attention.rope, layer.moe
    router = RouterConfig(top_k=moe.router.top_k, normalize=moe.router.normalize) if moe else None
    return LayerSpec(
        attention=AttentionSpec(
            num_heads=attention.num_heads,
            num_kv_heads=attention.num_kv_heads,
            head_size=attention.head_size,
            bias=attention.bias,
            out_bias=attention.out_bias,
            qk_norm=_norm(attention.qk_norm) if attention.qk_norm else None,
            scale=attention.scale,
            window=attention.window,
            causal=attention.causal,
            rope=RopeSpec(base=rope.base, scaling=rope.scaling, bands=rope.bands) if rope else None,
        ),
        ffn=FeedForwardSpec(
            width=layer.ffn.width,
            activation=layer.ffn.activation,
            gated=layer.ffn.gated,
            bias=layer.ffn.bias,
            out_bias=layer.ffn.out_bias,
        ),
        moe=MoESpec(
            num_experts=moe.num_experts,
            num_shared_experts=moe.num_shared_experts,
            shared_weight=moe.shared_weight,
            bias=moe.bias,
            router=router,
        )
        if moe and router
        else None,
        norm=_norm(layer.norm),
        place=layer.place,
        attention_norm=layer.attention_norm,
    )


def _norm(norm: NormSpec) -> NormSpec:
    return NormSpec(kind=norm.kind, eps=norm.eps, bias=norm.bias, plus_one=norm.plus_one)
