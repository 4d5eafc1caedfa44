"""The encoder, pooling and head as an ONNX graph.

Padding is left behind at the entrance: everything but attention and pooling works on the T real tokens of the
batch, as in the encoder itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moembed.export.onnx.attention import BOOL, LOWEST, Distances, Layout, attention, distances, looked_up
from moembed.export.onnx.computed import require_computed, require_head
from moembed.export.onnx.experts import INT64, Experts, feed_forward, moe_block, sparse
from moembed.export.onnx.graph import FLOAT, Graph, numpy
from moembed.folder.parts import Parts
from moembed.model.block import LayerSpec
from moembed.model.head import Dense, HeadConfig
from moembed.model.pooling import PoolingConfig
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import Activation
from moembed.types import UserError

if TYPE_CHECKING:
    import onnx

_ALSO_IN_BLOCKS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu", "silu": "silu"}
_POOLING = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")


def build(
    parts: Parts, int8: bool = False, experts: Experts = sparse, bits: Mapping[str, int] | None = None
) -> onnx.ModelProto:
    """The model as a graph; ``bits`` as in ``Graph``.

    Inputs ``input_ids`` and ``attention_mask``, int64 ``(batch, length)``, padded on either side. Outputs
    ``sentence_embedding``, fp32 ``(batch, M)`` of length 1, and ``last_hidden_state``, fp32
    ``(batch, length, D)``, 0 where there is no token.

    Raises:
        UserError: the model has something that the graph does not compute; the sentence names it.
    """
    from onnx import helper

    require_computed(parts.spec)
    require_head(parts.head)
    require_pooling(parts.pooling)
    head_state = {f"head.{name}": tensor for name, tensor in parts.head_state.items()}
    graph = Graph(parts.state | head_state, int8, bits)
    layout = read_mask(graph)
    hidden_TD = encoder(graph, parts.spec, layout, experts)
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
            value("sentence_embedding", FLOAT, [batch, parts.head.dim(parts.pooling.dim(parts.spec.width))]),
            value("last_hidden_state", FLOAT, [batch, length, parts.spec.width]),
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


def encoder(graph: Graph, spec: EncoderSpec, layout: Layout, experts: Experts) -> str:
    """Embeddings and blocks -> hidden_TD, norms and residuals as in ``moembed.model.encoder``."""

    def real(value_BS: str) -> str:
        return graph.op("Gather", graph.op("Reshape", value_BS, graph.ints(-1)), layout.token_T)

    # embeddings
    position_T = real(layout.position_BS)
    states_TD = graph.rows("word.weight", real("input_ids"))
    if spec.embeddings.scale != 1:
        states_TD = graph.op("Mul", states_TD, graph.scalar(spec.embeddings.scale))
    if spec.embeddings.token_types:
        first_D = graph.constant("token_type.0", numpy(graph.state["token_type.weight"][0]))
        states_TD = graph.op("Add", states_TD, first_D)
    if rows := spec.embeddings.positions:
        table = graph.constant("position", numpy(graph.state["position.weight"][rows.offset :]))
        states_TD = graph.op("Add", states_TD, graph.op("Gather", table, position_T))
    if spec.embeddings.norm:
        states_TD = graph.norm(states_TD, "norm", spec.embeddings.norm)

    # layers
    tables: dict[tuple[RopeSpec, int], tuple[str, str]] = {}
    distance = distances(graph, spec, layout)
    for number, layer in enumerate(spec.layers):
        rope, head_size = layer.attention.rope, layer.attention.head_size
        if rope and (rope, head_size) not in tables:
            place = f"rope.{len(tables)}"
            tables[rope, head_size] = looked_up(graph, place, (rope, head_size), spec.max_length, position_T)
        angles = tables[rope, head_size] if rope else None
        states_TD, added_TD = block(graph, layer, f"layers.{number}", (states_TD, distance, angles), experts)
    shown_TD = states_TD if spec.last_state == "full" else added_TD
    return graph.norm(shown_TD, "final_norm", spec.final_norm) if spec.final_norm else shown_TD


def block(
    graph: Graph,
    layer: LayerSpec,
    name: str,
    states: tuple[str, Distances, tuple[str, str] | None],
    experts: Experts,
) -> tuple[str, str]:
    """One layer: its states, and what its feed-forward part added to them."""
    states_TD, distance, angles = states
    pre, sandwich = layer.place != "post", layer.place == "sandwich"

    def norm(states_TD: str, which: str) -> str:
        return graph.norm(states_TD, f"{name}.{which}", layer.norm)

    # attention
    input_TD = norm(states_TD, "attention_norm") if pre and layer.attention_norm else states_TD
    mixed_TD = attention(graph, layer.attention, f"{name}.attention", input_TD, distance, angles)
    mixed_TD = norm(mixed_TD, "attention_out_norm") if sandwich else mixed_TD
    states_TD = graph.op("Add", states_TD, mixed_TD)
    states_TD = states_TD if pre else norm(states_TD, "attention_norm")
    # feed-forward
    input_TD = norm(states_TD, "ffn_norm") if pre else states_TD
    if layer.moe:
        added_TD = moe_block(graph, layer, f"{name}.ffn", input_TD, experts)
    else:
        added_TD = feed_forward(graph, layer.ffn, f"{name}.ffn", input_TD)
    added_TD = norm(added_TD, "ffn_out_norm") if sandwich else added_TD
    states_TD = graph.op("Add", states_TD, added_TD)
    return (states_TD if pre else norm(states_TD, "ffn_norm")), added_TD


def require_pooling(pooling: PoolingConfig) -> None:
    """Refuse what the graph cannot say; tokens come in without a word about which of them are a prompt."""
    if unknown := [mode for mode in pooling.modes if mode not in _POOLING]:
        raise UserError(f"the ONNX graph has no pooling {unknown[0]!r} (known: {', '.join(_POOLING)})")
    if not pooling.include_prompt:
        raise UserError(
            "the ONNX graph cannot leave the prompt out of pooling (include_prompt false): it does not know "
            "which tokens are the prompt's"
        )


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
