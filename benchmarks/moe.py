"""What does a layer of experts cost on a CPU beside a dense block of equal active size?

Width 768, eight experts of 3,072, two per token, random tokens, so the load is nearly even. The peer is the
faster of two dense blocks 768 -> 6,144 -> 768: plain torch, and oneDNN with prepacked weights and fused GELU.
``served`` is the form in which `Embedder.encode` runs a block; a dense block in it is shown too.

The share of routing, permutation and combination is one minus the time of the experts alone over that of the
layer. The experts alone are what no layer can do without: the same matrix products on equal slices that lie
ready, in the faster of the same two forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from moembed.runs.bench import Options, Row, Timings, interleave, ratio, time_row

from . import layers

TARGETS = {8192: "<= 1.10", 1024: "<= 1.20", 256: "<= 2.0", 64: "<= 3.5"}
EXPERTS, LARGEST = 8, max(TARGETS)
OURS = "experts, served"


def rows(options: Options) -> Iterator[Row]:
    dtype = layers.native("cpu")
    for tokens, target in TARGETS.items():
        repeats = options.repeats * min(8, LARGEST // tokens)  # short ones are noisy
        with torch.inference_mode():
            timings = interleave(forward(tokens, dtype, repeats), repeats)
        peer = fastest(timings, "dense, plain", "dense, prepacked")
        question = f"forward, {tokens:,} tokens, {layers.label(dtype)}"
        yield time_row(question, timings, peer)
        yield time_row(question, timings, OURS, peer, target)
        for name in ("experts, grouped", "experts, loop", "dense, served"):
            yield time_row(question, timings, name, peer)
        if tokens == LARGEST:
            alone = fastest(timings, "experts alone, plain", "experts alone, prepacked")
            share = 100 * (1 - ratio(timings, alone, OURS))
            what = f"share that is no matrix product, {tokens:,} tokens"
            yield Row(what, OURS, share, "%", target="<= 10", note=f"against {alone}")
    tokens = 2048 if options.quick else LARGEST
    question = f"forward and backward, {tokens:,} tokens, {layers.label(dtype)}"
    timings = interleave(training(tokens, dtype, options.repeats), options.repeats)
    yield time_row(question, timings, "dense, plain")
    yield time_row(question, timings, "experts, grouped", "dense, plain", "<= 1.25")


def forward(tokens: int, dtype: torch.dtype, repeats: int) -> dict[str, Callable[[], object]]:
    layer, (up_FD, down_DF) = layers.experts(EXPERTS, dtype), layers.dense(dtype)
    wide = layers.one_layer(dtype, "cpu", served=True, ffn_width=layers.TOP_K * layers.HIDDEN)
    whole: dict[str, layers.Layer] = {
        "dense, plain": partial(layers.plain, up_FD, down_DF),
        "dense, prepacked": layers.prepacked(up_FD, down_DF, tokens),
        "dense, served": wide,
        OURS: layers.run(layers.experts(EXPERTS, dtype, served=True)),
        "experts, grouped": layers.run(layer, "grouped"),
        "experts, loop": layers.run(layer, "loop"),
    }
    alone = {
        "experts alone, plain": layers.slices(layer, tokens, pack=False),
        "experts alone, prepacked": layers.slices(layer, tokens, pack=True),
    }
    token_TD = layers.batches(tokens, dtype, repeats)
    pair_PD = [hidden_TD.repeat(layers.TOP_K, 1) for hidden_TD in token_TD]
    contenders = {name: layers.forward(layer, token_TD) for name, layer in whole.items()}
    return contenders | {name: layers.forward(layer, pair_PD) for name, layer in alone.items()}


def training(tokens: int, dtype: torch.dtype, repeats: int) -> dict[str, Callable[[], object]]:
    layer, pair = layers.experts(EXPERTS, dtype).train(), layers.dense(dtype)
    fed = layers.batches(tokens, dtype, repeats)
    return {
        "dense, plain": layers.backward(partial(layers.plain, *pair), pair, fed),
        "experts, grouped": layers.backward(layers.run(layer), layer, fed),
    }


def fastest(timings: Timings, *names: str) -> str:
    return min(names, key=lambda name: timings[name].median)
