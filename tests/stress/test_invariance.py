from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moembed.encoding import Vectors
from moembed.inference.options import DTYPES
from moembed.stress.invariance import TEXTS, TOLERANCE, Closeness, measure
from moembed.stress.subject import Subject


def test_company_changes_nothing_but_rounding(moe_model) -> None:
    found = measure(Subject("small", moe_model))
    assert found is not None
    assert found.dtype == "float32"
    assert found.steady
    assert set(found.company) == {"again", "batch-mates", "order", "longer batch-mates"}
    assert found.company["again"] == Closeness(0, pytest.approx(1))


@pytest.mark.parametrize("leak", ["batch-mates", "order", "longer batch-mates"])
def test_a_model_that_looks_at_its_company_is_found_out(
    leak: str, make_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    vectors = model.vectors

    def leaky(texts: list[str], **options: Any) -> Vectors:
        found = vectors(texts, **options)
        seen = {
            "batch-mates": len(texts) > 1,
            "order": texts == list(TEXTS[::-1]),
            "longer batch-mates": len(texts) == len(TEXTS) + 2,
        }
        return replace(found, array=found.array + np.float32(1e-3) * seen[leak])

    monkeypatch.setattr(model, "vectors", leaky)
    found = measure(Subject("leaky", model))
    assert found is not None
    assert not found.steady
    assert found.company[leak].max_difference == pytest.approx(1e-3, rel=0.1)


def test_casing_is_nothing_to_a_tokenizer_that_lowers_it(make_model) -> None:
    found = measure(Subject("small", make_model()))
    assert found is not None
    for name in ("lower", "upper", "title"):
        assert found.casing[name]["min"] == pytest.approx(1, abs=1e-5)
    assert found.casing["another text"]["min"] < 0.999


def test_every_precision_has_a_tolerance() -> None:
    assert set(TOLERANCE) == {*DTYPES, "int8"}


def test_bm25_has_no_vectors_to_compare() -> None:
    assert measure(Subject("bm25", None)) is None
