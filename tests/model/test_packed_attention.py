"""Attention in float32 on a packed batch is attention by its definition, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moembed.model.attention import Attention, AttentionMask, AttentionSpec, padded
from moembed.model.packed_attention import in_float

LENGTHS = [1, 3, 3, 7, 40]
REAL = sum(LENGTHS)
HEADS, PADDING = 2, 5


def states(dtype: torch.dtype) -> Tensor:
    """Queries, keys and values side by side, as the projection makes them, and rows of padding behind."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(REAL + PADDING, 3 * HEADS, 8, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)],  # bf16 keeps 8 bits
)
def test_values_and_gradients_are_those_of_the_definition(dtype: torch.dtype, tolerance: float) -> None:
    given_THC = states(dtype)
    plain_THC = given_THC.detach()[:REAL].float().requires_grad_()
    found_THC = in_float(*given_THC.split(HEADS, dim=1), LENGTHS)
    expected_THC = padded(plain_THC.split(HEADS, dim=1), LENGTHS, AttentionMask(), 0.0)  # type: ignore[arg-type]
    assert found_THC.dtype == dtype
    assert not found_THC[REAL:].any()
    torch.testing.assert_close(found_THC[:REAL].float(), expected_THC, rtol=0, atol=tolerance)
    with torch.no_grad():  # the first pass of GradCache
        assert torch.equal(in_float(*given_THC.split(HEADS, dim=1), LENGTHS), found_THC)

    weight_THC = torch.randn(found_THC.shape, generator=torch.Generator().manual_seed(1))
    (found_THC.float() * weight_THC).sum().backward()
    (expected_THC * weight_THC[:REAL]).sum().backward()
    assert given_THC.grad is not None
    assert plain_THC.grad is not None
    assert not given_THC.grad[REAL:].any()
    torch.testing.assert_close(given_THC.grad[:REAL].float(), plain_THC.grad, rtol=0, atol=tolerance)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("training", [False, True])
def test_rows_of_padding_change_nothing(training: bool, window: int | None) -> None:
    block = Attention(16, AttentionSpec(num_heads=2, num_kv_heads=1, head_size=8, window=window))
    block.train(training)
    hidden_TD = torch.randn(REAL + PADDING, 16)
    found_TD = block(hidden_TD, LENGTHS)
    torch.testing.assert_close(found_TD[:REAL], block(hidden_TD[:REAL], LENGTHS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_TD[REAL:], block.out.bias.expand(PADDING, -1))
