"""The encoder, pooling and head as an ONNX graph.

Padding is left behind at the entrance: everything but attention and pooling works on the T real tokens of the
batch, as in the encoder itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moembed.export.onnx.experts import INT64, Experts, feed_forward, moe_block, sparse
from moembed.export.onnx.graph import Graph, numpy
from moembed.folder.parts import Parts
from moembed.model.encoder import EncoderConfig
from moembed.model.head import Dense, HeadConfig
from moembed.model.rope import rotation
from moembed.moe.ffn import Activation

if TYPE_CHECKING:
    import onnx

FLOAT, BOOL = 1, 9  # onnx.TensorProto
_ALSO_IN_BLOCKS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu", "silu": "silu"}
LOWEST = float(np.finfo(np.float32).min)  # finite, so that a text without tokens gives no NaN


@dataclass(frozen=True)
class Layout:
    """Where the real tokens are: names of values in the graph."""

    real_BS: str  # bool
    position_BS: str  # of a token in its text, from 0
    token_T: str  # place of every real token among the B * S
    slot_BS: str  # row of every place among the T tokens; that of another token where there is none
    hidden_by_attention_B11S: str  # added to scores: 0, or very low where there is no token


def build(parts: Parts, int8: bool = False, experts: Experts = sparse) -> onnx.ModelProto:
    """The model as a graph.

    Inputs ``input_ids`` and ``attention_mask``, int64 ``(batch, length)``, padded on either side. Outputs
    ``sentence_embedding``, fp32 ``(batch, M)`` of length 1, and ``last_hidden_state``, fp32
    ``(batch, length, D)``, 0 where there is no token.

    Raises:
        UserError: the router is of a kind the graph cannot hold.
    """
    from onnx import helper

    head_state = {f"head.{name}": tensor for name, tensor in parts.head_state.items()}
    config, graph = parts.config, Graph(parts.state | head_state, int8)
    layout = read_mask(graph)
    hidden_TD = encoder(graph, config, layout, experts)
    real_BS1 = graph.op("Unsqueeze", layout.real_BS, graph.ints(2))
    hidden_BSD = graph.op("Gather", hidden_TD, layout.slot_BS)
    hidden_BSD = graph.op("Where", real_BS1, hidden_BSD, graph.scalar(0.0), result="last_hidden_state")
    pooled = [pool(graph, mode, layout, hidden_BSD) for mode in parts.pooling.modes]
    vector_BM = graph.op("Concat", *pooled, axis=1) if len(pooled) > 1 else pooled[0]
    head(graph, parts.head, vector_BM, result="sentence_embedding")

    batch, length = "batch", "length"
    value = helper.make_tensor_value_info
    return graph.model(
        [value(name, INT64, [batch, length]) for name in ("input_ids", "attention_mask")],
        [
            value("sentence_embedding", FLOAT, [batch, parts.head.dim(parts.pooling.dim(config.width))]),
            value("last_hidden_state", FLOAT, [batch, length, config.width]),
        ],
    )


def read_mask(graph: Graph) -> Layout:
    real_BS = graph.op("Cast", "attention_mask", to=BOOL)
    one_BS = graph.op("Cast", real_BS, to=INT64)
    flat = graph.op("Reshape", one_BS, graph.ints(-1))
    slot = graph.op(
        "Sub", graph.op("CumSum", flat, graph.scalar(0)), graph.scalar(1)
    )  # -1, the last, is legal
    low_BS = graph.op("Where", real_BS, graph.scalar(0.0), graph.scalar(LOWEST))
    return Layout(
        real_BS=real_BS,
        position_BS=graph.op("Sub", graph.op("CumSum", one_BS, graph.scalar(1)), graph.scalar(1)),
        token_T=graph.op("Squeeze", graph.op("NonZero", flat), graph.ints(0)),
        slot_BS=graph.op("Reshape", slot, graph.op("Shape", "input_ids")),
        hidden_by_attention_B11S=graph.op("Unsqueeze", low_BS, graph.ints(1, 2)),
    )


def encoder(graph: Graph, config: EncoderConfig, layout: Layout, experts: Experts) -> str:
    """Embeddings and blocks -> hidden_TD, norms and residuals as in ``moembed.model.encoder``."""

    def real(value_BS: str) -> str:
        return graph.op("Gather", graph.op("Reshape", value_BS, graph.ints(-1)), layout.token_T)

    position_T = real(layout.position_BS)
    states_TD = graph.op("Gather", graph.parameter("word.weight"), real("input_ids"))
    if config.num_token_types:
        first_D = graph.constant("token_type.0", numpy(graph.state["token_type.weight"][0]))
        states_TD = graph.op("Add", states_TD, first_D)
    if config.position == "absolute":
        table = graph.constant("position", numpy(graph.state["position.weight"][config.position_offset :]))
        states_TD = graph.op("Add", states_TD, graph.op("Gather", table, position_T))
    states_TD = graph.layer_norm(states_TD, "norm", config.norm_eps)
    turn = turns(graph, config, position_T) if config.position == "rope" else None

    pre, output_TD = config.norm == "pre", states_TD
    for i in range(config.num_layers):
        name = f"layers.{i}"

        def norm(states_TD: str, which: str, name: str = name) -> str:
            return graph.layer_norm(states_TD, f"{name}.{which}", config.norm_eps)

        input_TD = norm(states_TD, "attention_norm") if pre else states_TD
        mixed_TD = attention(graph, config, f"{name}.attention", input_TD, layout, turn)
        states_TD = graph.op("Add", states_TD, mixed_TD)
        if not pre:
            states_TD = norm(states_TD, "attention_norm")
        input_TD = norm(states_TD, "ffn_norm") if pre else states_TD
        if config.moe and i in config.moe.layers:
            output_TD = moe_block(graph, config, f"{name}.ffn", input_TD, experts)
        else:
            output_TD = feed_forward(graph, config, f"{name}.ffn", input_TD)
        states_TD = graph.op("Add", states_TD, output_TD)
        if not pre:
            output_TD = states_TD = norm(states_TD, "ffn_norm")
    return output_TD


def attention(
    graph: Graph,
    config: EncoderConfig,
    name: str,
    hidden_TD: str,
    layout: Layout,
    turn: tuple[str, str] | None,
) -> str:
    """softmax(QK' / sqrt(C) + mask) V over each text; padded here, and here alone."""
    heads, head_width = config.num_heads, config.width // config.num_heads
    query, key, value = (
        graph.op("Reshape", states_TD, graph.ints(-1, heads, head_width))
        for states_TD in graph.ops(
            "Split", graph.linear(hidden_TD, f"{name}.qkv"), results=3, axis=1, num_outputs=3
        )
    )
    if turn:
        query, key = rotated(graph, query, *turn), rotated(graph, key, *turn)
    query = graph.op("Mul", query, graph.scalar(head_width**-0.5))

    def padded(states_THC: str, order: tuple[int, ...]) -> str:
        return graph.op("Transpose", graph.op("Gather", states_THC, layout.slot_BS), perm=order)

    score_BHSS = graph.op("MatMul", padded(query, (0, 2, 1, 3)), padded(key, (0, 2, 3, 1)))
    score_BHSS = graph.op("Add", score_BHSS, layout.hidden_by_attention_B11S)
    mixed_BHSC = graph.op("MatMul", graph.op("Softmax", score_BHSS, axis=-1), padded(value, (0, 2, 1, 3)))
    mixed_BSHC = graph.op("Transpose", mixed_BHSC, perm=(0, 2, 1, 3))
    flat = graph.op("Reshape", mixed_BSHC, graph.ints(-1, config.width))
    return graph.linear(graph.op("Gather", flat, layout.token_T), f"{name}.out")


def turns(graph: Graph, config: EncoderConfig, position_T: str) -> tuple[str, str]:
    """Cosine and sine for every token, ``(T, 1, C / 2)``, out of the encoder's own tables."""
    head_width = config.width // config.num_heads
    tables = rotation(torch.arange(config.max_positions), head_width, config.rope_base)
    cosine, sine = (
        graph.op("Gather", graph.constant(f"rope.{name}", numpy(table)), position_T)
        for name, table in zip(("cosine", "sine"), tables, strict=True)
    )
    return cosine, sine


def rotated(graph: Graph, states_THC: str, cosine: str, sine: str) -> str:
    first, second = graph.ops("Split", states_THC, results=2, axis=2, num_outputs=2)
    turned = (
        graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)),
        graph.op("Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine)),
    )
    return graph.op("Concat", *turned, axis=2)


def pool(graph: Graph, pooling: str, layout: Layout, hidden_BSD: str) -> str:
    """One way of pooling: all but ``max`` are sums with weights, divided. A text without tokens: zeros."""
    if pooling == "max":
        real_BS1 = graph.op("Unsqueeze", layout.real_BS, graph.ints(2))
        low_BSD = graph.op("Where", real_BS1, hidden_BSD, graph.scalar(LOWEST))
        return graph.op("ReduceMax", low_BSD, graph.ints(1), keepdims=0)
    position_BS, one_BS = layout.position_BS, graph.op("Cast", layout.real_BS, to=INT64)
    if pooling in ("mean", "mean_sqrt_len_tokens"):
        weight_BS = one_BS
    elif pooling == "weightedmean":
        weight_BS = graph.op("Mul", one_BS, graph.op("Add", position_BS, graph.scalar(1)))
    else:
        ends = {"cls": graph.scalar(0), "lasttoken": graph.op("ReduceMax", position_BS, graph.ints(1))}
        chosen_BS = graph.op("Equal", position_BS, ends[pooling])
        weight_BS = graph.op("And", chosen_BS, layout.real_BS)
    weight_B1S = graph.op("Unsqueeze", graph.op("Cast", weight_BS, to=FLOAT), graph.ints(1))
    sum_BD = graph.op("Squeeze", graph.op("MatMul", weight_B1S, hidden_BSD), graph.ints(1))
    if pooling in ("cls", "lasttoken"):
        return sum_BD
    total_B1 = graph.op("ReduceSum", weight_B1S, graph.ints(2), keepdims=0)
    total_B1 = graph.op("Max", total_B1, graph.scalar(1.0))
    return graph.op(
        "Div", sum_BD, graph.op("Sqrt", total_B1) if pooling == "mean_sqrt_len_tokens" else total_B1
    )


def head(graph: Graph, config: HeadConfig, vector_BM: str, result: str) -> str:
    """The steps behind pooling; ``result`` names the last value."""
    for i, step in enumerate(config.steps):
        name = result if i == len(config.steps) - 1 else None
        if isinstance(step, Dense):
            vector_BM = dense(graph, step, f"head.{i}", vector_BM)
        else:
            vector_BM = graph.op("LpNormalization", vector_BM, axis=-1, p=2, result=name)
    return vector_BM


def dense(graph: Graph, step: Dense, name: str, input_BM: str) -> str:
    output_BM = graph.linear(input_BM, f"{name}.linear")
    if step.activation in ("tanh", "sigmoid"):
        output_BM = graph.op(step.activation.capitalize(), output_BM)
    elif step.activation != "identity":
        output_BM = graph.activation(output_BM, _ALSO_IN_BLOCKS[step.activation])
    if not step.residual:
        return output_BM
    across = f"{name}.residual"
    residual_BM = graph.linear(input_BM, across) if f"{across}.weight" in graph.state else input_BM
    return graph.op("Add", output_BM, residual_BM)
