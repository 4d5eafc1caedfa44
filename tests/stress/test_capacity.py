from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from moembed.stress import capacity
from moembed.stress.capacity import CapacityGuess, Point, extrapolate, fit, place, probe, solves
from moembed.types import UserError


def cubic(dims: Sequence[int], coefficients: Sequence[float]) -> list[Point]:
    return [Point(d, round(sum(c * d**power for power, c in enumerate(coefficients)))) for d in dims]


def test_four_dimensions_hold_any_number_in_exact_arithmetic() -> None:
    """In cos and sin of t and 2t, -(1 - cos(t - a)) (1 - cos(t - b)) is linear, and largest at a and b."""
    angle_N = torch.arange(30, dtype=torch.float64) * (2 * torch.pi / 30)
    document_NM = torch.stack([f(k * angle_N) for k in (1, 2) for f in (torch.cos, torch.sin)], dim=1)
    pair_Q2 = torch.combinations(torch.arange(30), 2)
    a_Q, b_Q = angle_N[pair_Q2].T
    query_QM = torch.stack(
        [
            a_Q.cos() + b_Q.cos(),
            a_Q.sin() + b_Q.sin(),
            -(a_Q + b_Q).cos() / 2,
            -(a_Q + b_Q).sin() / 2,
        ],
        dim=1,
    )
    assert bool(solves(query_QM, document_NM, pair_Q2))


def test_a_tie_does_not_solve() -> None:
    square_NM = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert bool(solves(torch.tensor([[1.0, 1.0]]), square_NM, torch.tensor([[0, 1]])))
    assert not bool(solves(torch.tensor([[1.0, 0.0]]), square_NM, torch.tensor([[0, 1]])))


def test_the_search_finds_what_geometry_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a circle only neighbours share a cap, on a sphere only the joined corners of a planar graph do."""
    monkeypatch.setattr(capacity, "STEPS", 600)  # more would fail as surely, but later
    advanced: list[int] = []
    assert probe([3, 2], progress=advanced.append) == [Point(2, 3), Point(3, 4)]
    assert advanced == [1, 1]


def test_a_colder_loss_finds_places_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is a matter of the loss: docs/stress.md says so."""
    monkeypatch.setattr(capacity, "STEPS", 1000)
    assert place(14, 5) is None
    monkeypatch.setattr(capacity, "TEMPERATURE", 0.05)
    assert place(14, 5) is not None


def test_what_was_placed_is_a_proof() -> None:
    found = place(7, 4, seed=3)
    assert found is not None
    query_QM, document_NM, pair_Q2 = found
    assert len(pair_Q2) == 21
    torch.testing.assert_close(document_NM.norm(dim=1), torch.ones(7))
    for query_M, pair in zip(query_QM.numpy(), pair_Q2.tolist(), strict=True):
        assert sorted(np.argsort(-(document_NM.numpy() @ query_M))[:2].tolist()) == pair
    again = place(7, 4, seed=3)
    assert again is not None
    assert torch.equal(again[0], query_QM)


def test_the_fit_finds_a_cubic_again() -> None:
    points = cubic(range(4, 12), (1, 2, 3, 4))
    np.testing.assert_allclose(fit(points), (1, 2, 3, 4), rtol=1e-6)
    guess = extrapolate(points, 100)
    assert guess.value == pytest.approx(4_030_201, rel=1e-6)
    assert guess.low == pytest.approx(guess.high, rel=1e-6)


def test_low_dimensions_do_not_bend_the_fit() -> None:
    points = cubic(range(4, 12), (1, 2, 3, 4))
    np.testing.assert_array_equal(fit([Point(2, 3), Point(3, 4), *points]), fit(points))


def test_the_published_fit_says_what_the_paper_says() -> None:
    for dim, documents in ((512, 500_000), (768, 1_700_000), (1024, 4_000_000)):
        assert extrapolate([], dim).published == pytest.approx(documents, rel=0.05)


def test_too_few_points_give_no_fit() -> None:
    points = cubic(range(4, 7), (1, 2, 3, 4))
    assert fit(points) is None
    assert capacity.as_dict(points)["fit"] is None
    assert extrapolate(points, 9) == CapacityGuess(9, None, None, None, pytest.approx(32.7, abs=0.1))


@pytest.mark.parametrize("dims", [[], [1, 4]])
def test_refuses_dimensions_without_an_answer(dims: list[int]) -> None:
    with pytest.raises(UserError, match="2 or more"):
        probe(dims)
