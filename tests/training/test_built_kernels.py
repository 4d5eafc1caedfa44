"""After the first steps no kernel is built any more: batches of new sizes meet products of known sizes."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch
from torch.backends import mkldnn

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.packing import pack


def step(model: Embedder, seed: int) -> None:
    """Forward and backward in bf16 on texts whose lengths no other step has."""
    drawn = random.Random(seed)
    rows = [[drawn.randrange(5, 80)] * drawn.randint(15, 25) for _ in range(20)]
    with torch.autocast("cpu", torch.bfloat16):
        vector_BM = model(pack(rows)).vector_BM
    vector_BM.square().mul(torch.arange(vector_BM.shape[1])).sum().backward()


def built(model: Embedder, seeds: range, capfd: pytest.CaptureFixture[str]) -> int:
    """How many kernels oneDNN builds in these steps."""
    capfd.readouterr()
    with mkldnn.verbose(mkldnn.VERBOSE_ON_CREATION):
        for seed in seeds:
            step(model, seed)
    ctypes.CDLL(None).fflush(None)  # what C has printed
    return capfd.readouterr().out.count("create:cache_miss")


@pytest.mark.parametrize("experts", [0, 4])
def test_no_kernel_is_built_after_the_first_steps(
    experts: int, make_model: MakeModel, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = {"width": 64, "ffn_width": 128, "num_heads": 4, "max_positions": 40}
    moe = {"moe": FlatMoE(layers=(1,), num_experts=experts)} if experts else {}
    model = make_model(**sizes, **moe).train()
    if not built(model, range(12), capfd):
        pytest.skip("oneDNN computes no bf16 product on this CPU, so it builds nothing")
    assert built(model, range(12, 20), capfd) == 0
