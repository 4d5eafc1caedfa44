"""Which of the two limits a block, the memory or the arithmetic?

Speed of a dense block and of eight experts in the form that serves, against FLOPs per byte: the weights of
the matrices that were read and the states in and out. The two roofs are measured in the same run: the peak of
a large matrix product, and the bytes per second that reading a matrix larger than the caches reaches.

As a program it draws the points: ``python -m benchmarks.roofline docs/roofline.svg``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from moembed.moe.layer import MoE
from moembed.runs.bench import Options, Row, interleave

from . import layers

TOKENS = (1, 8, 64, 256, 1024, 8192)
LARGE = 1024  # rows of the product that shows the peak
READ = 1 << 28  # bytes of the matrix that is read to show the bandwidth


@dataclass(frozen=True, slots=True)
class Point:
    """``intensity`` in FLOPs per byte, ``speed`` in FLOPs per second."""

    contender: str
    tokens: int
    intensity: float
    speed: float


@dataclass(frozen=True, slots=True)
class Roofs:
    """Most FLOPs per second, and most bytes per second."""

    flops: float
    bytes: float

    def at(self, intensity: float) -> float:
        return min(self.flops, intensity * self.bytes)


def rows(options: Options) -> Iterator[Row]:
    roofs, points = measure(options)
    yield Row("roof of the arithmetic", f"matrix product of {LARGE:,} rows", roofs.flops / 1e9, "GFLOP/s")
    yield Row("roof of the memory", f"reading {READ >> 20} MiB", roofs.bytes / 1e9, "GB/s")
    for point in points:
        reached = f"{point.speed / roofs.at(point.intensity):.0%} of the roof"
        question = f"{point.tokens:,} tokens, {point.intensity:,.1f} FLOPs per byte"
        yield Row(question, point.contender, point.speed / 1e9, "GFLOP/s", note=reached)


@torch.inference_mode()
def measure(options: Options) -> tuple[Roofs, list[Point]]:
    dtype = layers.native("cpu")
    blocks = {
        "dense": layers.one_layer(dtype, "cpu", served=True, ffn_width=layers.TOP_K * layers.HIDDEN),
        "8 experts": layers.experts(8, dtype, served=True),
    }
    return roofs(options, dtype), [
        point
        for tokens in TOKENS
        for point in measured(blocks, torch.randn(tokens, layers.WIDTH, dtype=dtype), options)
    ]


def roofs(options: Options, dtype: torch.dtype) -> Roofs:
    up_FD, _ = layers.dense(dtype)
    big = torch.ones(READ // 4)
    product = partial(layers.packed_linear(up_FD, LARGE), torch.randn(LARGE, layers.WIDTH, dtype=dtype))
    timings = interleave({"product": product, "read": big.sum}, 3 * options.repeats)
    flops = 2 * LARGE * up_FD.numel() / min(timings["product"].seconds)
    return Roofs(flops, READ / min(timings["read"].seconds))


def measured(blocks: dict[str, torch.nn.Module], hidden_TD: Tensor, options: Options) -> Iterator[Point]:
    tokens = len(hidden_TD)
    runs = {
        name: partial(layers.run(block), hidden_TD) if isinstance(block, MoE) else partial(block, hidden_TD)
        for name, block in blocks.items()
    }
    timings = interleave(runs, options.repeats * min(16, TOKENS[-1] // tokens))
    matrix = 2 * layers.WIDTH * layers.HIDDEN  # weights of one expert
    for name, block in blocks.items():
        read = layers.TOP_K  # the dense block is as wide as the experts one token visits
        if isinstance(block, MoE):
            read = len(block.router(hidden_TD, [tokens]).expert_P.unique())
        flops = 2 * layers.TOP_K * matrix * tokens
        size = hidden_TD.element_size() * (read * matrix + 2 * hidden_TD.numel())
        yield Point(name, tokens, flops / size, flops / timings[name].median)


def draw(roofs: Roofs, points: list[Point], path: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    line = [0.5, roofs.flops / roofs.bytes, 4000]
    axes.plot(line, [roofs.at(x) / 1e9 for x in line], color="#888", label="roofs")
    for name, colour in (("dense", "#4477aa"), ("8 experts", "#cc6677")):
        mine = [point for point in points if point.contender == name]
        speeds = [point.speed / 1e9 for point in mine]
        axes.plot([point.intensity for point in mine], speeds, "o-", color=colour, label=name)
        for point, speed in zip(mine, speeds, strict=True):
            axes.annotate(f"{point.tokens:,}", (point.intensity, speed), (4, -11), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s")
    axes.set_title("One block, by tokens in the batch", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    draw(*measure(Options.here(repeats=5, quick=False, threads=None)), sys.argv[1])
