"""A CUDA device gives what the CPU gives."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from moembed.model.embedder import Embedder
from moembed.train import gradcache
from moembed.train.loop import LossConfig, TrainConfig, _contrastive, _embed, _router_loss, prepare
from moembed.types import Pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FP32 = {"rtol": 1e-3, "atol": 1e-4}  # other kernels add in another order


def test_vectors_equal_those_of_the_cpu(moe_model: Embedder, texts: list[str]) -> None:
    expected = moe_model.encode(texts)
    np.testing.assert_allclose(moe_model.to("cuda").encode(texts), expected, **FP32)


def test_gradients_equal_those_of_the_cpu(moe_model: Embedder, texts: list[str]) -> None:
    pairs = [Pair(text, texts[-1 - i]) for i, text in enumerate(texts)]
    config = TrainConfig(steps=1, chunk_tokens=40, loss=LossConfig(balance=0.1, z=0.01))

    def gradients(device: str) -> dict[str, torch.Tensor]:
        moe_model.zero_grad()
        moe_model.to(device)
        batch = prepare(pairs, moe_model, config)
        assert len(batch.chunks) > 1
        gradcache.backward(
            partial(_embed, model=moe_model, precision=torch.float32),
            batch.chunks,
            partial(_contrastive, batch=batch, config=config.loss),
            partial(_router_loss, config=config.loss),
        )
        return {n: p.grad.cpu().clone() for n, p in moe_model.named_parameters() if p.grad is not None}

    expected, found = gradients("cpu"), gradients("cuda")
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **FP32)
