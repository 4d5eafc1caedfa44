from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.data.permutation import permute

seeds = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)


@given(st.integers(1, 3000), seeds)
def test_it_is_a_permutation_of_any_size(size, seed):
    image = permute(np.arange(size), size, seed)
    assert image.dtype == np.int64
    assert sorted(image.tolist()) == list(range(size))


@given(st.integers(2, 2**45), seeds, st.data())
def test_a_row_does_not_depend_on_the_others_asked_for(size, seed, data):
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = permute(np.array(index), size, seed)
    assert together.tolist() == [int(permute(np.array([i]), size, seed)[0]) for i in index]
    assert len(set(together.tolist())) == len(index)
    assert 0 <= together.min() <= together.max() < size


@pytest.mark.parametrize("size", [3, 5, 16, 40])
def test_over_seeds_every_row_comes_first_equally_often(size):
    first = [int(permute(np.array([0]), size, [seed])[0]) for seed in range(50 * size)]
    counts = np.bincount(first, minlength=size)
    chi_square = ((counts - 50) ** 2 / 50).sum()
    assert chi_square < size + 5 * np.sqrt(2 * size)


def test_neighbours_are_torn_apart():
    size = 100_000
    image = permute(np.arange(size), size, [7])
    assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 0.02
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.02


def test_another_seed_is_another_order():
    orders = {
        tuple(permute(np.arange(50), 50, [0, source, epoch])) for source in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_order_stays_the_same_from_release_to_release():
    """A run that is resumed with a later version must go on with the rows it has not seen."""
    assert permute(np.arange(6), 1000, [1, 2, 3]).tolist() == [531, 187, 947, 314, 356, 168]
