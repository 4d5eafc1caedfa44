"""A spec for every field: each says one thing more than the plain one."""

from __future__ import annotations

from typing import Any

from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec, PositionTable
from moembed.model.norm import NormSpec
from moembed.model.relative_bias import RelativeBias
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoESpec
from random_specs import WIDTH

PLAIN = LayerSpec(
    attention=AttentionSpec(num_heads=4, num_kv_heads=4, head_size=4), ffn=FeedForwardSpec(width=24)
)
LAYER = NormSpec(eps=1e-5)


def spec_of(*layers: LayerSpec, **changes: Any) -> EncoderSpec:
    values = {
        "width": WIDTH,
        "max_length": 20,
        "embeddings": EmbeddingSpec(vocabulary=60, positions=PositionTable(rows=30), norm=LAYER),
    }
    return EncoderSpec.model_validate(values | {"layers": layers or (PLAIN, PLAIN)} | changes)


def attention(**changes: Any) -> EncoderSpec:
    layer = PLAIN.model_copy(update={"attention": PLAIN.attention.model_copy(update=changes)})
    return spec_of(layer, PLAIN)


RMS = NormSpec(kind="rms", eps=1e-3)
ROPE = RopeSpec(base=50.0)
SPECS: dict[str, EncoderSpec] = {
    "plain": spec_of(),
    "no norm of the embedding": spec_of(embeddings=EmbeddingSpec(vocabulary=60, token_types=2)),
    "offset": spec_of(embeddings=EmbeddingSpec(vocabulary=60, positions=PositionTable(rows=30, offset=3))),
    "rms": spec_of(PLAIN.model_copy(update={"norm": RMS}), PLAIN),
    "pre-norm": spec_of(PLAIN.model_copy(update={"place": "pre"})),
    "pre, then post": spec_of(PLAIN.model_copy(update={"place": "pre"}), PLAIN),
    "last part alone": spec_of(PLAIN.model_copy(update={"place": "pre"}), last_state="without_residual"),
    "final norm": spec_of(PLAIN.model_copy(update={"place": "pre"}), final_norm=RMS),
    "rope": attention(rope=ROPE),
    "rope of two kinds": spec_of(
        *(
            PLAIN.model_copy(update={"attention": PLAIN.attention.model_copy(update={"rope": rope})})
            for rope in (ROPE, RopeSpec(base=9.0, scaling=2.0))
        )
    ),
    "scaled rope": attention(rope=RopeSpec(base=50.0, scaling=4.0)),
    "two kv heads": attention(num_kv_heads=2),
    "one kv head": attention(num_kv_heads=1),
    "large heads": attention(head_size=6),
    "no bias back": attention(out_bias=False),
    "no bias": attention(bias=False),
    "normed heads": attention(qk_norm=RMS),
    "normed and turned heads": attention(qk_norm=LAYER, rope=ROPE),
    "window": attention(window=2),
    "window of itself": attention(window=0),
    "causal": attention(causal=True),
    "causal window": attention(causal=True, window=3),
    "scaled scores": attention(scale=1.0),
    "relative bias": spec_of(relative_bias=RelativeBias(buckets=8, max_distance=6)),
    "relative bias in a window": spec_of(
        PLAIN.model_copy(update={"attention": PLAIN.attention.model_copy(update={"window": 2})}),
        relative_bias=RelativeBias(buckets=12, max_distance=20),
    ),
    "scaled words": spec_of(
        embeddings=EmbeddingSpec(vocabulary=60, scale=4.0, positions=PositionTable(rows=30))
    ),
    "norms without bias": spec_of(PLAIN.model_copy(update={"norm": NormSpec(bias=False)}), PLAIN),
    "rms plus one": spec_of(
        PLAIN.model_copy(update={"norm": NormSpec(kind="rms", eps=1e-3, plus_one=True)}), PLAIN
    ),
    "sandwich": spec_of(PLAIN.model_copy(update={"place": "sandwich"})),
    "first norm skipped": spec_of(PLAIN.model_copy(update={"place": "pre", "attention_norm": False})),
    "bias of the way back alone": spec_of(
        PLAIN.model_copy(update={"ffn": FeedForwardSpec(width=24, bias=False)}), PLAIN
    ),
    "shared layers": spec_of(PLAIN, *(PLAIN.model_copy(update={"shares": 0}) for _ in range(2))),
    "experts": spec_of(PLAIN.model_copy(update={"moe": MoESpec(num_experts=3)}), PLAIN),
}
