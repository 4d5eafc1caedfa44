from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.data.sampler import CYCLE, Sampler, mix
from moembed.types import UserError

weights_of_sources = st.lists(st.floats(1e-4, 100.0), min_size=1, max_size=6)


def shares(weights):
    return np.array(weights) / math.fsum(weights)


@given(weights_of_sources, st.integers(0, 5000))
def test_every_cycle_gives_each_source_its_share_rounded_down_or_up(weights, cycle):
    sampler = Sampler([1] * len(weights), weights, 1, seed=0)
    quota = sampler.steps_of_sources(cycle + 1) - sampler.steps_of_sources(cycle)
    assert quota.sum() == CYCLE
    assert (np.abs(quota - CYCLE * shares(weights)) < 1 + 1e-6).all()
    assert (quota >= 0).all()


@given(weights_of_sources, st.integers(0, 20))
def test_over_a_power_of_two_of_cycles_the_mix_is_exact_within_one_step(weights, power):
    cycles = 2**power
    steps = Sampler([1] * len(weights), weights, 1, seed=0).steps_of_sources(cycles)
    assert steps.sum() == CYCLE * cycles
    assert (np.abs(steps - CYCLE * cycles * shares(weights)) < 1 + 1e-4).all()


def test_a_source_of_tiny_weight_comes_up_at_its_rate():
    sampler = Sampler([1, 1], [1.0, 1e-5], 1, seed=0)
    assert sampler.steps_of_sources(128)[1] in (1, 2)
    assert sampler.steps_of_sources(1024)[1] in (10, 11)


def test_shares_written_as_decimals_are_met_exactly():
    sampler = Sampler([1, 1, 1], [0.1, 0.2, 0.7], 1, seed=0)
    assert sampler.steps_of_sources(1).tolist() == [100, 200, 700]
    assert sampler.steps_of_sources(7).tolist() == [700, 1400, 4900]


def test_the_batches_of_a_cycle_follow_the_quota_in_a_mixed_order():
    sampler = Sampler([40, 40], [3, 1], 4, seed=1)
    sources = [sampler.batch(step)[0] for step in range(CYCLE, 2 * CYCLE)]
    assert sources.count(0) == 750
    assert 100 < sources[:200].count(0) < 200


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(8, 60), st.floats(0.1, 10)), min_size=1, max_size=3),
    st.integers(1, 8),
    st.integers(0, 2**40),
)
def test_an_epoch_draws_no_row_twice_and_fills_every_batch(sources, batch_size, seed):
    sizes, weights = zip(*sources, strict=True)
    sampler = Sampler(sizes, weights, batch_size, seed)
    drawn: list[list[np.ndarray]] = [[] for _ in sizes]
    for step in range(CYCLE + 200):
        source, rows = sampler.batch(step)
        assert rows.dtype == np.int64
        assert rows.shape == (batch_size,)
        drawn[source].append(rows)
    for source, size in enumerate(sizes):
        per_epoch = sampler.steps_per_epoch(source)
        assert per_epoch == size // batch_size
        for first in range(0, len(drawn[source]), per_epoch):
            rows = np.concatenate(drawn[source][first : first + per_epoch])
            assert len(set(rows.tolist())) == len(rows)
            assert rows.min() >= 0
            assert rows.max() < size
    assert sampler.total_steps == sum(size // batch_size for size in sizes)


def test_an_epoch_without_a_tail_covers_every_row_and_the_next_one_is_reshuffled():
    sampler = Sampler([24], [1], 4, seed=3)
    first, second = (
        np.concatenate([sampler.batch(6 * epoch + i)[1] for i in range(6)]) for epoch in range(2)
    )
    assert sorted(first) == sorted(second) == list(range(24))
    assert first.tolist() != second.tolist()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=8), st.integers(0, 2**31))
def test_a_batch_does_not_depend_on_what_was_drawn_before(steps, seed):
    arguments = ([50, 31, 90], [5, 1, 0.01], 7, seed)
    used = Sampler(*arguments)
    for step in steps:
        source, rows = used.batch(step)
        fresh_source, fresh_rows = Sampler(*arguments).batch(step)
        assert source == fresh_source
        assert rows.tolist() == fresh_rows.tolist()


def test_the_caller_may_change_the_rows_it_got():
    sampler = Sampler([10], [1], 5, seed=0)
    before = sampler.batch(0)[1].tolist()
    sampler.batch(0)[1][:] = 0
    assert sampler.batch(0)[1].tolist() == before


def test_different_seeds_give_different_orders():
    def order(seed):
        sampler = Sampler([100, 100], [1, 1], 10, seed)
        return [(source, rows.tolist()) for source, rows in map(sampler.batch, range(20))]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert [source for source, _ in order(0)] != [source for source, _ in order(1)]


def test_sources_of_equal_size_are_shuffled_differently():
    sampler = Sampler([64, 64], [1, 1], 64, seed=0)
    rows = dict(sampler.batch(step) for step in range(20))
    assert rows[0].tolist() != rows[1].tolist()


def test_a_source_of_billions_of_rows_costs_no_more_than_a_batch():
    sampler = Sampler([3 * 10**12, 10], [1, 1], 5, seed=0)
    drawn = dict(map(sampler.batch, range(20)))
    assert drawn[0].max() > 10**9
    assert len(set(drawn[0].tolist())) == 5


def test_without_an_exponent_the_weights_are_the_mix():
    assert mix([10, 10**9], [1.0, 3.0]) == [1.0, 3.0]
    assert mix([10, 10**9], [1.0, 3.0], cap=5) == [1.0, 3.0]


def test_with_exponent_one_every_row_comes_up_equally_often():
    assert mix([10, 1000], [1.0, 1.0], exponent=1) == [10, 1000]
    assert mix([10, 1000], [2.0, 1.0], exponent=1) == [20, 1000]


def test_an_exponent_between_raises_the_share_of_the_small():
    small, large = mix([100, 10_000], [1.0, 1.0], exponent=0.3)
    assert large / small == pytest.approx(100**0.3)


def test_a_cap_bounds_the_rows_that_count():
    assert mix([10, 1000, 10**9], [1.0, 1.0, 1.0], exponent=1, cap=500) == [10, 500, 500]


def test_a_source_smaller_than_a_batch_is_refused_by_name():
    with pytest.raises(UserError, match="source qa has 31 rows, fewer than the batch size 32"):
        Sampler([100, 31], [1, 1], 32, seed=0, names=["web", "qa"])


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_must_be_a_positive_number(weight):
    with pytest.raises(UserError, match="number 1 has weight"):
        Sampler([10, 10], [1, weight], 5, seed=0)


@pytest.mark.parametrize(("batch_size", "seed"), [(0, 0), (4, -1)])
def test_batch_size_and_seed_have_a_lower_bound(batch_size, seed):
    with pytest.raises(UserError, match="must be at least 1"):
        Sampler([10], [1], batch_size, seed)
