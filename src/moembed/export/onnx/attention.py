"""Self-attention in an ONNX graph, on a padded batch: padding is on either side and is never seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from moembed.export.onnx.graph import Graph, numpy
from moembed.model.attention import AttentionSpec
from moembed.model.relative_bias import by_distance
from moembed.model.rope import RopeSpec, cos_sin
from moembed.model.spec import EncoderSpec

BOOL = 9  # onnx.TensorProto.BOOL
LOWEST = float(np.finfo(np.float32).min)  # finite, so that a text without tokens gives no NaN


@dataclass(frozen=True)
class Layout:
    """Where the real tokens are: names of values in the graph."""

    real_BS: str  # bool
    position_BS: str  # of a token in its text, from 0
    token_T: str  # place of every real token among the B * S
    slot_BS: str  # row of every place among the T tokens; that of another token where there is none
    hidden_by_attention_B11S: str  # added to scores: 0, or very low where there is no token


@dataclass(frozen=True)
class Distances:
    """What is added to scores, by how far apart two tokens are.

    ``bias_BHSS``: for all layers, or nothing; ``masks``: those made so far, by causal and window.
    """

    layout: Layout
    bias_BHSS: str | None
    masks: dict[tuple[bool, int | None], str] = field(default_factory=dict)

    def mask(self, graph: Graph, causal: bool, window: int | None) -> str:
        """0 where a token is seen, else very low; ``(B, 1, 1, S)`` or ``(B, 1, S, S)``."""
        if not causal and window is None:
            return self.layout.hidden_by_attention_B11S
        if (causal, window) not in self.masks:
            distance_BSS = key_minus_query(graph, self.layout)
            seen_BSS = graph.op("Unsqueeze", self.layout.real_BS, graph.ints(1))
            if causal:
                seen_BSS = graph.op("And", seen_BSS, graph.op("LessOrEqual", distance_BSS, graph.scalar(0)))
            if window is not None:
                near = graph.op("LessOrEqual", graph.op("Abs", distance_BSS), graph.scalar(window))
                seen_BSS = graph.op("And", seen_BSS, near)
            added_BSS = graph.op("Where", seen_BSS, graph.scalar(0.0), graph.scalar(LOWEST))
            self.masks[causal, window] = graph.op("Unsqueeze", added_BSS, graph.ints(1))
        return self.masks[causal, window]


def key_minus_query(graph: Graph, layout: Layout) -> str:
    """``(B, S, S)`` int64: how far the token of a column stands behind that of a row; padding counts as 0."""
    place_BS = graph.op("Max", layout.position_BS, graph.scalar(0))
    keys, queries = (graph.op("Unsqueeze", place_BS, graph.ints(axis)) for axis in (1, 2))
    return graph.op("Sub", keys, queries)


def distances(graph: Graph, spec: EncoderSpec, layout: Layout) -> Distances:
    if spec.relative_bias is None:
        return Distances(layout, None)
    bias_HN = by_distance(graph.state["relative_bias.weight"].float(), spec.max_length, spec.relative_bias)
    row_BSS = graph.op("Add", key_minus_query(graph, layout), graph.scalar(spec.max_length - 1))
    bias_NH = graph.constant("relative_bias", numpy(bias_HN.t()))
    bias_BSSH = graph.op("Gather", bias_NH, row_BSS)
    return Distances(layout, graph.op("Transpose", bias_BSSH, perm=(0, 3, 1, 2)))


def attention(
    graph: Graph,
    spec: AttentionSpec,
    name: str,
    hidden_TD: str,
    distance: Distances,
    angles: tuple[str, str] | None,
) -> str:
    """softmax(QK' * scale + mask) V over each text; padded here, and here alone."""
    layout, heads, head_size = distance.layout, spec.num_heads, spec.head_size
    counts = (heads, spec.num_kv_heads, spec.num_kv_heads)
    split = graph.ints(*(count * head_size for count in counts))
    states = graph.ops("Split", graph.linear(hidden_TD, f"{name}.qkv"), split, results=3, axis=1)
    query, key, value = (
        graph.op("Reshape", states_TD, graph.ints(-1, count, head_size))
        for states_TD, count in zip(states, counts, strict=True)
    )
    # what is done to each head alone
    if spec.qk_norm:
        query, key = (
            graph.norm(states_THC, f"{name}.{which}_norm", spec.qk_norm)
            for states_THC, which in ((query, "query"), (key, "key"))
        )
    if angles:
        query, key = rotated(graph, query, *angles), rotated(graph, key, *angles)
    if (shared := heads // spec.num_kv_heads) > 1:
        served = graph.ints(*(number // shared for number in range(heads)))
        key, value = (graph.op("Gather", states_THC, served, axis=1) for states_THC in (key, value))
    query = graph.op("Mul", query, graph.scalar(float(spec.scale or head_size**-0.5)))

    # attention proper
    def padded(states_THC: str, order: tuple[int, ...]) -> str:
        return graph.op("Transpose", graph.op("Gather", states_THC, layout.slot_BS), perm=order)

    score_BHSS = graph.op("MatMul", padded(query, (0, 2, 1, 3)), padded(key, (0, 2, 3, 1)))
    if distance.bias_BHSS:
        score_BHSS = graph.op("Add", score_BHSS, distance.bias_BHSS)
    score_BHSS = graph.op("Add", score_BHSS, distance.mask(graph, spec.causal, spec.window))
    mixed_BHSC = graph.op("MatMul", graph.op("Softmax", score_BHSS, axis=-1), padded(value, (0, 2, 1, 3)))
    mixed_BSHC = graph.op("Transpose", mixed_BHSC, perm=(0, 2, 1, 3))
    flat = graph.op("Reshape", mixed_BSHC, graph.ints(-1, heads * head_size))
    return graph.linear(graph.op("Gather", flat, layout.token_T), f"{name}.out")


def looked_up(
    graph: Graph, name: str, kind: tuple[RopeSpec, int], length: int, position_T: str
) -> tuple[str, str]:
    """Cosine and sine for every token, ``(T, 1, C / 2)``, out of the encoder's own tables."""
    rope, head_size = kind
    tables = cos_sin(torch.arange(length), head_size, rope)
    cosine, sine = (
        graph.op("Gather", graph.constant(f"{name}.{part}", numpy(values)), position_T)
        for part, values in zip(("cosine", "sine"), tables, strict=True)
    )
    return cosine, sine


def rotated(graph: Graph, states_THC: str, cosine: str, sine: str) -> str:
    first, second = graph.ops("Split", states_THC, results=2, axis=2, num_outputs=2)
    turned = (
        graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)),
        graph.op("Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine)),
    )
    return graph.op("Concat", *turned, axis=2)
