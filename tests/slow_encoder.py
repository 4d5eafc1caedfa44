"""An encoder written a second time, text by text, head by head, token by token, from the formulas alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.norm import NormSpec
from moembed.model.rope import RopeSpec, YarnBands
from moembed.model.spec import EncoderSpec

State = dict[str, Tensor]


def states(spec: EncoderSpec, state: State, tokens: list[int]) -> list[Tensor]:
    """``states[depth]`` of one text, ``(S, D)``."""
    rows, embeddings = [], spec.embeddings
    for place, token in enumerate(tokens):
        row = state["word.weight"][token] * embeddings.scale
        if embeddings.positions:
            row = row + state["position.weight"][place + embeddings.positions.offset]
        if embeddings.token_types:
            row = row + state["token_type.weight"][0]
        rows.append(_norm(row, state, "norm", embeddings.norm) if embeddings.norm else row)
    hidden_SD = torch.stack(rows)
    found = [_final(hidden_SD, spec, state)]
    for number, layer in enumerate(spec.layers):
        name = f"layers.{number if layer.shares is None else layer.shares}"
        hidden_SD, added_SD = _layer(hidden_SD, layer, state | _bias(spec, state, layer, name), name)
        shown_SD = hidden_SD if spec.last_state == "full" else added_SD
        found.append(_final(shown_SD, spec, state))
    return found


def _final(hidden_SD: Tensor, spec: EncoderSpec, state: State) -> Tensor:
    return _norm(hidden_SD, state, "final_norm", spec.final_norm) if spec.final_norm else hidden_SD


def _frequency(rope: RopeSpec, i: int, size: int) -> float:
    """Of coordinate i of a head: what a step to the next position turns it by."""
    frequency = rope.base ** (-2 * i / size)
    if (bands := rope.bands) is None:
        return frequency

    def number(turns: float) -> float:  # which coordinate makes so many turns in the original length
        return size / 2 * math.log(bands.original_length / turns / 2 / math.pi, rope.base)

    if isinstance(bands, YarnBands):
        fast, slow = max(number(bands.high), 0), min(number(bands.low), size - 1)
        if bands.whole:
            fast, slow = max(math.floor(number(bands.high)), 0), min(math.ceil(number(bands.low)), size - 1)
        kept = (slow - i) / (slow - fast) if slow != fast else float(i <= slow)
    else:
        turns = bands.original_length * frequency / 2 / math.pi
        kept = (turns - bands.low) / (bands.high - bands.low)
    kept = min(max(kept, 0), 1)
    return kept * frequency + (1 - kept) * frequency / bands.factor


def _bias(spec: EncoderSpec, state: State, layer: LayerSpec, name: str) -> State:
    """Under the name of a layer's attention: head -> bias of every distance that a test text can have."""
    if (relative := spec.relative_bias) is None:
        return {}
    half = relative.buckets // 2
    rows = []
    for distance in range(-40, 41):
        away = abs(distance)
        if away < half // 2:
            row = away
        else:
            ratio = math.log(away / (half // 2)) / math.log(relative.max_distance / (half // 2))
            row = min(half // 2 + int(ratio * (half - half // 2)), half - 1)
        rows.append(state["relative_bias.weight"][row + half * (distance > 0)])
    return {f"{name}.attention.bias_by_distance": torch.stack(rows)}


def _norm(x: Tensor, state: State, name: str, spec: NormSpec) -> Tensor:
    if spec.kind == "rms":
        weight = state[f"{name}.weight"] + 1 if spec.plus_one else state[f"{name}.weight"]
        return x / ((x**2).mean(-1, keepdim=True) + spec.eps).sqrt() * weight
    mean = x.mean(-1, keepdim=True)
    scaled = (x - mean) / (((x - mean) ** 2).mean(-1, keepdim=True) + spec.eps).sqrt()
    assert (f"{name}.bias" in state) == spec.bias
    return scaled * state[f"{name}.weight"] + state.get(f"{name}.bias", 0.0)


def _layer(hidden_SD: Tensor, layer: LayerSpec, state: State, name: str) -> tuple[Tensor, Tensor]:
    def norm(x: Tensor, which: str) -> Tensor:
        return _norm(x, state, f"{name}.{which}", layer.norm)

    pre, sandwich = layer.place != "post", layer.place == "sandwich"
    read_SD = norm(hidden_SD, "attention_norm") if pre and layer.attention_norm else hidden_SD
    mixed_SD = _attention(read_SD, layer.attention, state, f"{name}.attention")
    mixed_SD = norm(mixed_SD, "attention_out_norm") if sandwich else mixed_SD
    hidden_SD = hidden_SD + mixed_SD if pre else norm(hidden_SD + mixed_SD, "attention_norm")
    read_SD = norm(hidden_SD, "ffn_norm") if pre else hidden_SD
    added_SD = torch.stack([_feed_forward(x, layer, state, f"{name}.ffn") for x in read_SD])
    added_SD = norm(added_SD, "ffn_out_norm") if sandwich else added_SD
    return (hidden_SD + added_SD if pre else norm(hidden_SD + added_SD, "ffn_norm")), added_SD


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return state[f"{name}.weight"] @ x + state.get(f"{name}.bias", torch.zeros(()))


def _attention(hidden_SD: Tensor, spec: AttentionSpec, state: State, name: str) -> Tensor:
    size, length = spec.head_size, len(hidden_SD)
    queries, keys = spec.num_heads * size, spec.num_kv_heads * size
    outputs = torch.zeros(length, queries)
    projected = [_linear(x, state, f"{name}.qkv") for x in hidden_SD]

    def head(place: int, start: int, which: str) -> Tensor:
        x = projected[place][start : start + size]
        if spec.qk_norm:
            x = _norm(x, state, f"{name}.{which}_norm", spec.qk_norm)
        if spec.rope:
            turned = torch.empty_like(x)
            for i in range(size // 2):
                angle = place / spec.rope.scaling * _frequency(spec.rope, i, size)
                longer = spec.rope.bands.magnitude if isinstance(spec.rope.bands, YarnBands) else 1
                cosine, sine = longer * math.cos(angle), longer * math.sin(angle)
                a, b = x[i], x[i + size // 2]
                turned[i] = a * cosine - b * sine
                turned[i + size // 2] = b * cosine + a * sine
            x = turned
        return x

    for number in range(spec.num_heads):
        served = number // (spec.num_heads // spec.num_kv_heads)
        for i in range(length):
            seen = [
                j
                for j in range(length)
                if (spec.window is None or abs(i - j) <= spec.window) and not (spec.causal and j > i)
            ]
            query = head(i, number * size, "query")
            scale = 1 / math.sqrt(size) if spec.scale is None else spec.scale
            scores = [query @ head(j, queries + served * size, "key") * scale for j in seen]
            if (bias := state.get(f"{name}.bias_by_distance")) is not None:
                scores = [score + bias[j - i + 40, number] for j, score in zip(seen, scores, strict=True)]
            weights = torch.stack(scores).softmax(0)
            start = queries + keys + served * size
            values = torch.stack([projected[j][start : start + size] for j in seen])
            outputs[i, number * size : (number + 1) * size] = weights @ values
    return torch.stack([_linear(x, state, f"{name}.out") for x in outputs])


def _act(x: Tensor, kind: str) -> Tensor:
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x.clamp(min=0) if kind == "relu" else x / (1 + torch.exp(-x))


def _block(x: Tensor, layer: LayerSpec, state: State, name: str) -> Tensor:
    up = _linear(x, state, f"{name}.up")
    if layer.ffn.gated:
        inner = _act(_linear(x, state, f"{name}.gate"), layer.ffn.activation) * up
    else:
        inner = _act(up, layer.ffn.activation)
    return _linear(inner, state, f"{name}.down")


def _feed_forward(x: Tensor, layer: LayerSpec, state: State, name: str) -> Tensor:
    moe = layer.moe
    if moe is None:
        return _block(x, layer, state, name)
    assert moe.router.kind == "token_choice"
    best = (state[f"{name}.router.weight_ED"] @ x).softmax(0).topk(moe.router.top_k)
    weights = best.values
    if moe.router.normalize:
        weights = weights / (weights**moe.router.normalize).sum() ** (1 / moe.router.normalize)
    routed = torch.zeros_like(x)
    for weight, expert in zip(weights, best.indices.tolist(), strict=True):
        own = {
            f"{part}.{kind}": state[key][expert]
            for part, shape in (("up", "EFD"), ("gate", "EFD"), ("down", "EDF"))
            for kind, key in (
                ("weight", f"{name}.{part}_{shape}"),
                ("bias", f"{name}.{part}_bias_{shape[:2]}"),
            )
            if key in state
        }
        routed = routed + weight * _block(x, layer, {f"e.{k}": v for k, v in own.items()}, "e")
    routed = routed + state.get(f"{name}.bias_D", torch.zeros(()))
    if not moe.num_shared_experts:
        return routed
    shared, top_k = _block(x, layer, state, f"{name}.shared"), moe.router.top_k
    return routed + shared if moe.shared_weight == "sum" else (top_k * routed + shared) / (top_k + 1)
