"""The result of an evaluation and its JSON are the same."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.compare.results import Comparison
from moembed.compare.scores import MAIN
from moembed.evaluation.result import EvaluationResult
from page_results import result


@settings(max_examples=30)
@given(
    st.lists(st.text(max_size=5), max_size=4, unique=True).map(lambda names: [*names, "last"]),
    st.dictionaries(st.text(max_size=9), st.sampled_from(list(MAIN)), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_the_json_is_the_result(systems: list[str], tasks: dict[str, str], seed: int) -> None:
    values = result(list(dict.fromkeys(systems)), tasks, seed)
    typed = EvaluationResult.from_json(values)
    written = json.loads(json.dumps(typed.to_json()))
    assert EvaluationResult.from_json(written) == typed
    for cost in values["cost"].values():  # what is not known has no key
        for key in [key for key, value in cost.items() if value is None]:
            del cost[key]
    assert written == values
    plain = Comparison.from_json(values)  # an evaluation is a comparison, and more
    assert plain.overall == typed.overall
    assert set(plain.to_json()) == set(values) - {"cost", "curves", "routers", "made"}
