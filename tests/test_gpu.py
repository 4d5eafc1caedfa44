"""A CUDA device gives what the CPU gives, on every backend, and is not waited for where it need not be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import MakeModel
from experts import assert_one_value, convert, make_moe, results, send_to_one, tokens
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.model.attention import padded, varlen
from moembed.moe import backends as choose
from moembed.moe.router import RouterConfig
from moembed.training.contrastive import gradcache
from moembed.training.contrastive.balance import Balance
from moembed.training.contrastive.batch import SourceFormat, prepare
from moembed.training.contrastive.objective import Objective
from moembed.training.contrastive.settings import ContrastiveConfig, LossConfig
from moembed.training.contrastive.task import embedding
from moembed.types import Pair

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FP32 = {"rtol": 1e-3, "atol": 1e-4}  # other kernels add in another order
BF16 = 0.03  # of the largest value: bf16 keeps 8 bits, and each of the products rounds
DTYPES = {torch.float32: 1e-4, torch.bfloat16: BF16}
every_backend = pytest.mark.parametrize("backend", ["grouped", "grouped_mm", "fused"])
without_waiting = pytest.mark.parametrize("backend", ["grouped_mm", "fused"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "_remembered", {})
    return tmp_path / "cache"


@pytest.fixture
def pairs(texts: list[str]) -> list[Pair]:
    return [Pair(text, texts[-1 - i]) for i, text in enumerate(texts)]


# ---- the whole model -------------------------------------------------------------------------------


def test_vectors_equal_those_of_the_cpu(moe_model: Embedder, texts: list[str]) -> None:
    expected = moe_model.encode(texts)
    np.testing.assert_allclose(moe_model.to(DEVICE).encode(texts), expected, **FP32)


def test_gradients_equal_those_of_the_cpu(moe_model: Embedder, pairs: list[Pair]) -> None:
    config = ContrastiveConfig(steps=1, chunk_tokens=40, loss=LossConfig(balance=0.1, z=0.01))

    def gradients(device: str) -> dict[str, torch.Tensor]:
        moe_model.zero_grad()
        moe_model.to(device)
        step(moe_model, pairs, config, torch.float32)
        return {n: p.grad.cpu().clone() for n, p in moe_model.named_parameters() if p.grad is not None}

    expected, found = gradients("cpu"), gradients(DEVICE)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **FP32)


def step(
    model: Embedder, pairs: list[Pair], config: ContrastiveConfig, precision: torch.dtype
) -> gradcache.BatchLoss:
    """Add the gradients of one training step."""
    batch = prepare(pairs, SourceFormat("query", "document", "info_nce"), model.tokenizer, config)
    assert len(batch.chunks.batches) > 1
    config = config.model_copy(update={"precision": str(precision).removeprefix("torch.")})
    return gradcache.backward(
        embedding(model, config, [model.encoder.spec.num_layers]),
        batch.chunks,
        partial(Objective(config.loss, model), batch=batch),
        Balance(config.loss, model).loss,
    )


@every_dtype
def test_training_lowers_the_loss(dtype: torch.dtype, moe_model: Embedder, pairs: list[Pair]) -> None:
    model, config = moe_model.to(DEVICE).train(), ContrastiveConfig(steps=1, chunk_tokens=40)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        losses.append(step(model, pairs, config, dtype).contrastive)
        optimiser.step()
        optimiser.zero_grad()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


# ---- the experts -----------------------------------------------------------------------------------


@every_backend
@every_dtype
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
@pytest.mark.parametrize("bias", ["each", "none"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_backend_equals_the_loop(
    backend: str, dtype: torch.dtype, kind: str, bias: str, gated: bool
) -> None:
    router = RouterConfig(kind=kind)
    moe = convert(make_moe(gated=gated, bias=bias, router=router, width=64, hidden=192), dtype, DEVICE)
    hidden_TD = tokens(300, width=64).to(DEVICE, dtype)
    assert_one_value(moe, hidden_TD, [20, 80, 200], backend, relative=DTYPES[dtype])


@every_backend
@every_dtype
@pytest.mark.parametrize("count", [1, 300])
def test_one_token_or_all_to_one_expert(backend: str, dtype: torch.dtype, count: int) -> None:
    moe = make_moe(router=RouterConfig(top_k=1))
    send_to_one(moe, 2)
    hidden_TD = tokens(count).abs().to(DEVICE, dtype)
    moe = convert(moe, dtype, DEVICE)
    assert_one_value(moe, hidden_TD, [count], backend, relative=DTYPES[dtype])
    gradient_EFD = results(moe, hidden_TD, [count], backend)["up_EFD"]
    assert gradient_EFD[[0, 1, 3]].eq(0).all()


@every_backend
def test_autocast(backend: str) -> None:
    moe, hidden_TD = make_moe().to(DEVICE), tokens(300).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert_one_value(moe, hidden_TD, [300], backend, relative=BF16)


def test_fused_gives_the_same_bits_at_every_run() -> None:
    moe = convert(make_moe(), torch.bfloat16, DEVICE)
    hidden_TD = tokens(300).to(DEVICE, torch.bfloat16)
    first, second = (results(moe, hidden_TD, [300], "fused") for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_choice_is_measured_and_kept(cache: Path) -> None:
    moe = convert(make_moe(), torch.bfloat16, DEVICE)
    for training in (False, True):
        moe.train(training)(tokens(9).to(DEVICE, torch.bfloat16), [9])
    found = json.loads((cache / "backends.json").read_text())
    assert len(found) == 2
    assert set(found.values()) <= {"grouped", "grouped_mm", "fused"}


# ---- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_varlen_equals_padded(dtype: torch.dtype) -> None:
    length_B = [1, 3, 3, 70, 200]
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, sum(length_B), 4, 32, generator=generator).to(DEVICE, dtype).requires_grad_()
    found, expected = (
        (
            mixed := backend(*states.unbind(), length_B, 0.0),
            *torch.autograd.grad(mixed.float().square().sum(), states),
        )
        for backend in (varlen, padded)
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= BF16 * other.abs().max()


# ---- the host does not wait ------------------------------------------------------------------------


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@without_waiting
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
@pytest.mark.parametrize("gated", [False, True])
def test_experts_forward_and_backward(backend: str, kind: str, gated: bool) -> None:
    moe = convert(make_moe(gated=gated, router=RouterConfig(kind=kind)), torch.bfloat16, DEVICE)
    hidden_TD = tokens(30).to(DEVICE, torch.bfloat16)
    results(moe, hidden_TD, [10, 20], backend)  # compiles
    with no_waiting():
        results(moe, hidden_TD, [10, 20], backend)


@without_waiting
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
def test_the_whole_model(backend: str, pooling: str, make_model: MakeModel, texts: list[str]) -> None:
    model = make_model(pooling=pooling, moe=FlatMoE(layers=(1,), num_experts=4), position="rope")
    for name, parameter in model.named_parameters():
        parameter.data = parameter.to(DEVICE, torch.float32 if ".router." in name else torch.bfloat16)
    model.encoder.moe_backend = backend
    batch = model.tokenizer.batch(texts).to(DEVICE)
    model(batch)
    with no_waiting():
        model(batch)
