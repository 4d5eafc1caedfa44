"""Queries won and lost, by a loop over the queries."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moembed.compare.scores import Scores
from moembed.evaluation.won_lost import SHOWN, won_and_lost

VALUES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.sampled_from([0.0, 0.3, 1.0])), min_size=1
)


def scores(values: list[float], kind: str = "retrieval", metric: str = "ndcg@10", first: int = 0) -> Scores:
    items = [f"q{n}" for n in range(first, first + len(values))]
    blank, length = [""] * len(values), np.zeros(len(values), dtype=np.int64)
    return Scores("task", kind, items, blank, length, {metric: np.array(values)})


@given(VALUES)
def test_every_query_counts_once_and_the_largest_differences_are_shown(
    pairs: list[tuple[float, float]],
) -> None:
    texts = {f"q{n}": f"query {n}" for n in range(len(pairs))}
    found = won_and_lost(texts, scores([a for a, _ in pairs]), scores([b for _, b in pairs]))
    assert found is not None
    assert found.won == sum(a > b for a, b in pairs)
    assert found.lost == sum(a < b for a, b in pairs)
    assert found.won + found.lost + found.alike == len(pairs)
    for shown, sign in ((found.most_won, 1), (found.most_lost, -1)):
        ranked = sorted(range(len(pairs)), key=lambda n: (-sign * (pairs[n][0] - pairs[n][1]), n))
        best = [n for n in ranked if sign * (pairs[n][0] - pairs[n][1]) > 0][:SHOWN]
        assert [one.query for one in shown] == [f"query {n}" for n in best]
        assert [(one.reference, one.other) for one in shown] == [pairs[n] for n in best]


def test_queries_are_met_by_their_ids_and_long_ones_are_cut() -> None:
    found = won_and_lost({"q2": "word " * 100}, scores([0, 0, 1.0]), scores([0.5, 0.5], first=2))
    assert found is not None
    assert (found.won, found.lost, found.alike) == (1, 0, 0)
    assert len(found.most_won[0].query) <= 200
    assert found.most_won[0].query.endswith("word …")
    assert won_and_lost({}, scores([1.0]), scores([1.0], first=7)) is None


def test_a_correlation_has_no_value_per_query() -> None:
    one = scores([0.1, 0.2], "sts", "spearman")
    one.values["spearman"] = np.zeros((2, 2))
    assert won_and_lost({}, one, one) is None
