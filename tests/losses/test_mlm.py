"""The loss of guessing words equals its definition, in one piece and in slices."""

from __future__ import annotations

import pytest
import torch

from moembed.losses.mlm import masked_lm_loss


def case(tokens: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state_TD = torch.randn(tokens, 6, generator=generator, requires_grad=True)
    target_T = torch.randint(0, 11, (tokens,), generator=generator)
    weight_VD = torch.randn(11, 6, generator=generator, requires_grad=True)
    bias_V = torch.randn(11, generator=generator, requires_grad=True)
    return [state_TD, target_T, weight_VD, bias_V]


def test_it_is_the_sum_of_the_negative_log_probabilities() -> None:
    state_TD, target_T, weight_VD, bias_V = case(5)
    loss, right = masked_lm_loss(state_TD, target_T, weight_VD, bias_V)
    expected, hits = 0.0, 0
    for state_D, target in zip(state_TD, target_T, strict=True):
        score_V = weight_VD @ state_D + bias_V
        expected -= (score_V[target] - score_V.exp().sum().log()).item()
        hits += int(score_V.argmax() == target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert int(right) == hits


@pytest.mark.parametrize("largest", [1, 22, 33, 54, 55])
def test_slices_give_the_same_loss_and_gradients(largest: int) -> None:
    whole, sliced = case(5), case(5)
    loss, right = masked_lm_loss(*whole)  # type: ignore[arg-type]
    other, other_right = masked_lm_loss(*sliced, largest=largest)  # type: ignore[arg-type]
    loss.backward()
    other.backward()
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    assert other_right == right
    for one, two in zip(whole, sliced, strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)


def test_no_guess_costs_nothing() -> None:
    state_TD, target_T, weight_VD, bias_V = case(0)
    loss, right = masked_lm_loss(state_TD, target_T, weight_VD, bias_V)
    loss.backward()
    assert (loss.item(), right.item()) == (0.0, 0)
