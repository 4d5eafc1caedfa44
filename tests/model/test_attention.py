"""Which kernel attention is given, and that all of a batch is told to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model import attention, sliding
from moembed.model.attention import Attention, AttentionMask, AttentionSpec, States, packed, padded, varlen
from moembed.types import UserError

LENGTHS = [1, 3, 3, 7]
SPEC = AttentionSpec(num_heads=2, num_kv_heads=2, head_size=8)


def states() -> States:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(sum(LENGTHS), 2, 8, generator=generator) for _ in range(3))
    return query, key, value


def slow_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start_q: Tensor,
    start_k: Tensor,
    longest_q: int,
    longest_k: int,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes on a GPU."""
    assert start_q.dtype == start_k.dtype == torch.int32
    assert longest_q == longest_k == int(start_q.diff().max())
    parts = []
    for first, end in zip(start_q.tolist(), start_q.tolist()[1:], strict=False):
        text = (x[first:end].transpose(0, 1) for x in (query, key, value))
        parts.append(F.scaled_dot_product_attention(*text).transpose(0, 1))
    return torch.cat(parts)


def test_varlen_gives_the_kernel_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_varlen_attn", lambda: slow_varlen)
    torch.testing.assert_close(
        varlen(states(), LENGTHS, AttentionMask(), 0.0), padded(states(), LENGTHS, AttentionMask(), 0.0)
    )


def test_a_backend_that_cannot_run_gives_way_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    block, hidden_TD = Attention(16, SPEC), torch.randn(4, 16)
    expected = block(hidden_TD, [1, 3])
    with pytest.warns(
        UserWarning, match="attention_backend 'varlen' needs .* CUDA device; 'packed' runs instead"
    ):
        found = block(hidden_TD, [1, 3], backend="varlen")
    assert torch.equal(found, expected)
    monkeypatch.setenv("MOEMBED_ATTENTION_BACKEND", "varlen")
    with pytest.warns(UserWarning, match="'packed' runs instead"):
        block(hidden_TD, [1, 3])


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"attention_backend 'flash' is not known \(known: auto, packed, varlen,"
    ):
        Attention(16, SPEC)(torch.randn(4, 16), [4], backend="flash")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize("length", [1, 24, 25, 26, 41])
def test_a_window_in_blocks_equals_the_whole_mask(causal: bool, window: int, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    some = [torch.randn(2 * length, 2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    mask, lengths = AttentionMask(causal, window), [length, length]
    found, expected = (run(tuple(some), lengths, mask, 0.0) for run in (packed, padded))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    slopes = torch.linspace(-1, 1, found.numel()).view_as(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * slopes).sum(), some),
        torch.autograd.grad((expected * slopes).sum(), some),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)
    assert sliding.pays(length, window) == (window > 0 and length > 8 * window)
