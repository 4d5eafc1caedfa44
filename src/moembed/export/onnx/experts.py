"""Experts in an ONNX graph: each computes its own tokens and no others, with standard operators alone.

The routed pairs are put in the order of their experts, cut into one slice per expert and, once computed, put
back; an expert without tokens gets an empty slice. Why so: docs/decisions/0002-how-experts-run-in-onnx.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moembed.export.onnx.graph import Graph
from moembed.model.block import LayerSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoESpec
from moembed.moe.router_config import RouterConfig

INT64 = 7  # onnx.TensorProto.INT64

# (graph, layer, name of the block, hidden_TD, logit_TE) -> the weighted sum of the routed experts, (T, D)
Experts = Callable[[Graph, LayerSpec, str, str, str], str]


def moe_block(graph: Graph, layer: LayerSpec, name: str, hidden_TD: str, experts: Experts) -> str:
    """The feed-forward block of a layer with experts: routed and shared ones and the shared bias."""
    moe = experts_of(layer)
    router = f"{name}.router.weight_ED"
    logit_TE = graph.product(hidden_TD, router, graph.state[router])  # choices are made in fp32, always
    output_TD = experts(graph, layer, name, hidden_TD, logit_TE)
    if moe.bias == "shared":
        output_TD = graph.op("Add", output_TD, graph.parameter(f"{name}.bias_D"))
    if not moe.num_shared_experts:
        return output_TD
    shared_TD = feed_forward(graph, layer.ffn, f"{name}.shared", hidden_TD)
    if moe.shared_weight == "mean":
        share = 1 / (moe.router.top_k + 1)
        output_TD = graph.op("Mul", output_TD, graph.scalar(1 - share))
        shared_TD = graph.op("Mul", shared_TD, graph.scalar(share))
    return graph.op("Add", output_TD, shared_TD)


def feed_forward(graph: Graph, ffn: FeedForwardSpec, name: str, hidden_TD: str) -> str:
    """The dense block, which shared experts are too."""
    up_TF = graph.linear(hidden_TD, f"{name}.up")
    gate_TF = graph.linear(hidden_TD, f"{name}.gate") if ffn.gated else None
    return graph.linear(_activated(graph, ffn, up_TF, gate_TF), f"{name}.down")


def sparse(graph: Graph, layer: LayerSpec, name: str, hidden_TD: str, logit_TE: str) -> str:
    """Order the pairs by expert, split, compute, restore the order, weigh, add."""
    moe = experts_of(layer)
    top_k = moe.router.top_k
    weight_TK, expert_TK = routing(graph, moe.router, logit_TE)
    expert_P = graph.op("Reshape", expert_TK, graph.ints(-1))
    mine_EP = graph.op("Equal", expert_P, graph.constant("expert_E1", np.arange(moe.num_experts)[:, None]))
    # NonZero reads row by row: all pairs of expert 0, then all of expert 1, ...
    order_P = graph.op("Gather", graph.op("NonZero", mine_EP), graph.scalar(1))
    count_E = graph.op("ReduceSum", graph.op("Cast", mine_EP, to=INT64), graph.ints(1), keepdims=0)
    hidden_PD = graph.op("Gather", hidden_TD, graph.op("Div", order_P, graph.scalar(top_k)))
    slices = graph.ops("Split", hidden_PD, count_E, results=moe.num_experts, axis=0)
    output_PD = graph.op(
        "Concat", *(expert(graph, layer.ffn, name, e, slice_ND) for e, slice_ND in enumerate(slices)), axis=0
    )
    count = graph.op("Size", order_P)
    place_P = graph.op("Range", graph.scalar(0), count, graph.scalar(1))
    restore_P = graph.op("ScatterElements", order_P, order_P, place_P)
    restored_PD = graph.op("Gather", output_PD, restore_P)
    output_TKD = graph.op(
        "Reshape", restored_PD, graph.ints(-1, top_k, len(graph.state[f"{name}.router.weight_ED"][0]))
    )
    weight_TK1 = graph.op("Unsqueeze", weight_TK, graph.ints(2))
    return graph.op("ReduceSum", graph.op("Mul", output_TKD, weight_TK1), graph.ints(1), keepdims=0)


def routing(graph: Graph, router: RouterConfig, logit_TE: str) -> tuple[str, str]:
    """Weights and numbers of the ``top_k`` most probable experts of every token, ``(T, K)`` each."""
    prob_TE = graph.op("Softmax", logit_TE, axis=-1)
    weight_TK, expert_TK = graph.ops("TopK", prob_TE, graph.ints(router.top_k), results=2)
    if (power := router.normalize) is None:
        return weight_TK, expert_TK
    norm_T1 = graph.op("ReduceSum", graph.op("Pow", weight_TK, graph.scalar(power)), graph.ints(1))
    norm_T1 = graph.op("Pow", norm_T1, graph.scalar(1 / power))
    return graph.op("Div", weight_TK, norm_T1), expert_TK


def expert(graph: Graph, ffn: FeedForwardSpec, name: str, number: int, hidden_ND: str) -> str:
    """What one expert makes of its tokens; the graph holds its slice of every 3-D parameter."""

    def part(kind: str, shape: str, input_: str) -> str:
        weight, bias = f"{name}.{kind}_{shape}", f"{name}.{kind}_bias_{shape[:2]}"
        bias_E = graph.state.get(bias)
        return graph.affine(
            input_,
            f"{weight}.{number}",
            graph.state[weight][number],
            f"{bias}.{number}",
            None if bias_E is None else bias_E[number],
        )

    up_NF = part("up", "EFD", hidden_ND)
    gate_NF = part("gate", "EFD", hidden_ND) if ffn.gated else None
    return part("down", "EDF", _activated(graph, ffn, up_NF, gate_NF))


def _activated(graph: Graph, ffn: FeedForwardSpec, up: str, gate: str | None) -> str:
    if gate is None:
        return graph.activation(up, ffn.activation)
    return graph.op("Mul", graph.activation(gate, ffn.activation), up)


def experts_of(layer: LayerSpec) -> MoESpec:
    assert layer.moe is not None
    return layer.moe
