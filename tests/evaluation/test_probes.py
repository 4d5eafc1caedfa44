from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moembed.evaluation.probes import REPEATS, SAMPLES, clusters, draws, predict
from moembed.types import UserError


def test_draws_hold_so_many_of_every_label_and_differ() -> None:
    labels = ["a"] * 40 + ["b"] * 3 + ["c"] * 20
    drawn = draws(labels)
    assert len(drawn) == REPEATS
    for rows in drawn:
        assert len(rows) == len(set(rows.tolist()))
        taken = [labels[row] for row in rows]
        assert [taken.count(label) for label in "abc"] == [SAMPLES, 3, SAMPLES]
    assert len({tuple(sorted(rows.tolist())) for rows in drawn}) == REPEATS


class Rows(list[str]):
    """The labels of a data set, as far as mteb looks at one here."""

    def __getitem__(self, column: Any) -> Any:
        assert column == "label"
        return list(self)

    def select(self, rows: list[int]) -> None:
        pass


@pytest.mark.slow  # to import it is
def test_draws_are_those_of_mteb() -> None:
    classification = pytest.importorskip("mteb.abstasks.classification").AbsTaskClassification
    task: Any = SimpleNamespace(
        seed=42, samples_per_label=classification.samples_per_label, label_column_name="label"
    )
    assert (classification.samples_per_label, classification.n_experiments) == (SAMPLES, REPEATS)
    labels = np.random.default_rng(0).choice(["a", "b", "c"], 200).tolist()
    order = None
    for number, rows in enumerate(draws(labels)):
        _, order, theirs = classification._undersample_data(task, Rows(labels), number, order)
        assert rows.tolist() == theirs


def test_what_is_apart_is_told_apart() -> None:
    vector_NM = np.array([[0, 0], [0, 1], [9, 0], [9, 1]] * 3, np.float32)
    label_N = np.array(["left", "left", "right", "right"] * 3)
    assert predict(vector_NM, label_N, vector_NM).tolist() == label_N.tolist()
    found = clusters(vector_NM, 2)
    assert len(set(zip(label_N.tolist(), found.tolist(), strict=True))) == 2


def test_vectors_that_are_not_finite_are_refused() -> None:
    vector_NM = np.array([[0, 0], [np.inf, 1]], np.float32)
    with pytest.raises(UserError, match="NaN or infinite"):
        clusters(vector_NM, 2)
    with pytest.raises(UserError, match="NaN or infinite"):
        predict(np.nan_to_num(vector_NM), np.array(["a", "b"]), vector_NM)
