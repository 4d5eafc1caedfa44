"""Random specs for property tests: of one kind of layer, or with anything a spec can say."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from moembed.families.flat import FlatConfig, FlatMoE
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec, PositionTable
from moembed.model.norm import NormSpec
from moembed.model.relative_bias import RelativeBias
from moembed.model.rope import RopeSpec, TurnBands, YarnBands
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router import RouterConfig

WIDTH = 16
activations = st.sampled_from(["gelu", "gelu_tanh", "relu", "silu"])
norm_eps = st.sampled_from([1e-12, 1e-5])
norms = st.one_of(
    st.builds(NormSpec, eps=norm_eps, bias=st.booleans()),
    st.builds(NormSpec, kind=st.just("rms"), eps=norm_eps, plus_one=st.booleans()),
)
routers = st.builds(
    RouterConfig,
    kind=st.sampled_from(["token_choice", "expert_choice"]),
    top_k=st.integers(1, 3),
    normalize=st.sampled_from([None, 1.0, 2.0]),
    jitter=st.sampled_from([0.0, 0.1]),
)
moe_values: dict[str, Any] = {
    "num_experts": st.integers(3, 5),
    "num_shared_experts": st.integers(0, 2),
    "shared_weight": st.sampled_from(["sum", "mean"]),
    "bias": st.sampled_from(["each", "shared", "none"]),
    "router": routers,
}
flats = st.builds(
    FlatConfig,
    vocab_size=st.just(60),
    width=st.just(WIDTH),
    num_layers=st.integers(1, 3),
    num_heads=st.sampled_from([1, 2, 4]),
    ffn_width=st.sampled_from([8, 24]),
    activation=activations,
    gated=st.booleans(),
    attention_bias=st.booleans(),
    ffn_bias=st.booleans(),
    norm=st.sampled_from(["post", "pre"]),
    norm_eps=st.sampled_from([1e-12, 1e-5]),
    position=st.sampled_from(["absolute", "rope"]),
    max_positions=st.integers(30, 40),
    position_offset=st.sampled_from([0, 2]),
    rope_base=st.sampled_from([10000.0, 77.0]),
    num_token_types=st.integers(0, 2),
    dropout=st.sampled_from([0.0, 0.0, 0.1]),
    moe=st.none() | st.builds(FlatMoE, layers=st.just((0,)), **moe_values),
)


bands = st.sampled_from(
    [
        None,
        TurnBands(factor=8.0, low=1.0, high=4.0, original_length=16),
        YarnBands(factor=4.0, original_length=16, magnitude=1.1),
    ]
)
ropes = st.builds(RopeSpec, base=st.just(50.0), scaling=st.sampled_from([1.0, 4.0]), bands=bands)


@st.composite
def attentions(draw: st.DrawFn) -> AttentionSpec:
    heads = draw(st.sampled_from([2, 4]))
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([1, 2, heads])),
        head_size=draw(st.sampled_from([4, 8])),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        qk_norm=draw(st.none() | norms),
        scale=draw(st.sampled_from([None, None, 1.0])),
        window=draw(st.sampled_from([None, 0, 2, 5])),
        causal=draw(st.booleans()),
        rope=draw(st.none() | ropes),
    )


@st.composite
def specs(draw: st.DrawFn) -> EncoderSpec:
    """Layers of different kinds, some of which share the weights of the first."""
    layer = st.builds(
        LayerSpec,
        attention=attentions(),
        ffn=st.builds(
            FeedForwardSpec,
            width=st.just(24),
            activation=activations,
            gated=st.booleans(),
            bias=st.booleans(),
            out_bias=st.booleans(),
        ),
        moe=st.none() | st.builds(MoESpec, **moe_values),
        norm=norms,
        place=st.sampled_from(["post", "pre", "sandwich"]),
    )
    layers = draw(st.lists(layer, min_size=1, max_size=3))
    if layers[0].place == "pre":
        layers[0] = layers[0].model_copy(update={"attention_norm": draw(st.booleans())})
    if layers[0].moe is None and draw(st.booleans()):
        layers.append(layers[0].model_copy(update={"shares": 0}))
    one_size = len({layer.attention.num_heads for layer in layers}) == 1
    pre = all(layer.place == "pre" for layer in layers)
    return EncoderSpec(
        width=WIDTH,
        max_length=draw(st.sampled_from([20, 28])),
        embeddings=EmbeddingSpec(
            vocabulary=60,
            scale=draw(st.sampled_from([1.0, 1.0, 4.0])),
            positions=draw(st.none() | st.builds(PositionTable, rows=st.just(30), offset=st.integers(0, 2))),
            token_types=draw(st.integers(0, 2)),
            norm=draw(st.none() | norms),
        ),
        layers=tuple(layers),
        relative_bias=draw(st.sampled_from([None, RelativeBias(buckets=8, max_distance=6)]))
        if one_size
        else None,
        final_norm=draw(st.none() | norms),
        last_state=draw(st.sampled_from(["full", "without_residual"])) if pre else "full",
        dropout=draw(st.sampled_from([0.0, 0.1])),
    )
