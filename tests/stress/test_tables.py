"""Tables as text: an encoder that knows no order, one that does, and the measures against named libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from function_encoder import FunctionEncoder
from moembed.stress import tables
from moembed.stress.subject import Subject
from moembed.stress.tables import NAMES, Table, dependencies, joins, make_tables, mcv, measure, stability

COUNTRY = NAMES.index("country")


def letters(texts: list[str], role: str = "") -> np.ndarray:
    """How often each character stands in a text: no order is known."""
    count_NV = np.array([[text.count(chr(c)) + 1e-3 for c in range(32, 127)] for text in texts])
    return count_NV / np.linalg.norm(count_NV, axis=1, keepdims=True)


def endings(texts: list[str], role: str = "") -> np.ndarray:
    """What the last characters of a text are: all is order."""
    return letters([text[-20:] for text in texts])


def subject(function=letters) -> Subject:
    model = FunctionEncoder(function)
    return Subject("by hand", model)  # type: ignore[arg-type]


@pytest.mark.parametrize("system", [subject(), Subject("bm25", None)])
def test_order_means_nothing_to_words_and_letters(system: Subject) -> None:
    scores = measure(system)
    assert scores is not None
    for what in ("row order", "column order"):
        assert scores.properties[what].value == pytest.approx(1)
        assert scores.mcv[what].value == pytest.approx(0, abs=1e-7)
    assert scores.properties["another table"].value < 0.999
    assert scores.properties["joins"].value > 0.5
    assert (scores.rows, scores.truncated) == (tables.ROWS, 0)


def test_order_is_seen_where_a_vector_depends_on_it() -> None:
    scores = measure(subject(endings))
    assert scores is not None
    for what in ("row order", "column order"):
        assert scores.properties[what].high < 0.99
        assert scores.mcv[what].low > 0.01


def test_the_coefficient_of_variation() -> None:
    value_N1 = np.random.default_rng(0).normal(3, 1, (20, 1))
    assert mcv(value_N1) == pytest.approx(stats.variation(value_N1[:, 0], ddof=1))
    vector_NM = np.random.default_rng(1).normal(1, 1, (5, 7))  # fewer vectors than coordinates
    mean_M, cov_MM = vector_NM.mean(axis=0), np.cov(vector_NM.T)
    assert mcv(vector_NM) == pytest.approx(np.sqrt(mean_M @ cov_MM @ mean_M / (mean_M @ mean_M) ** 2))


def test_every_city_has_one_country_and_shuffles_keep_the_rows() -> None:
    for table in make_tables():
        pairs = set(zip(table.values("city"), table.values("country"), strict=True))
        assert len(pairs) == len(set(table.values("city"))) < len(table.rows)
    table = make_tables(count=1)[0]
    order = [2, 0, 1, *range(3, len(table.rows))]
    assert table.reordered(order).rows[0] == table.rows[2]
    turned = table.turned([4, 3, 2, 1, 0])
    assert (turned.names, turned.rows[0]) == (NAMES[::-1], table.rows[0][::-1])
    assert turned.row_text(0, without=["city", "name"]) == "; ".join(
        f"{name}: {table.rows[0][NAMES.index(name)]}" for name in ("amount", "year", "country")
    )


def test_a_join_is_known_by_an_encoder_that_counts_names() -> None:
    def names(texts: list[str]) -> np.ndarray:
        known: dict[str, int] = {}
        split = [text.partition(": ")[2].split(", ") for text in texts]
        array_NV = np.zeros((len(texts), sum(map(len, split))))
        for row, found in enumerate(split):
            for name in found:
                array_NV[row, known.setdefault(name, len(known))] = len(found) ** -0.5
        return array_NV

    assert joins(names, np.random.default_rng(0)).value > 0.99
    noise = np.random.default_rng(1)
    assert abs(joins(lambda texts: noise.normal(size=(len(texts), 9)), np.random.default_rng(0)).value) < 0.5


def test_dependencies_are_seen_by_what_knows_them() -> None:
    def knows(texts: list[str]) -> np.ndarray:
        """A country moves the vector by a step that the city alone decides, or else by its own."""
        row_N2 = []
        for text in texts:
            cells = dict(part.split(": ") for part in text.split("; "))
            right = dict(zip(tables.CITIES, tables.COUNTRIES, strict=True))[cells["city"]]
            country = cells.get("country")
            step = (
                0.0 if country is None else 1.0 if country == right else 2.0 + len(country) + ord(country[0])
            )
            row_N2.append([1.0, step])
        return np.array(row_N2)

    made = make_tables()
    assert dependencies(knows, made, np.random.default_rng(0)).value == 0
    blind = dependencies(lambda texts: np.ones((len(texts), 2)), made, np.random.default_rng(0))
    assert blind.value == 1


def test_entities_keep_their_neighbours_where_rows_say_no_more() -> None:
    def by_name(texts: list[str]) -> np.ndarray:
        return letters([text.removeprefix("name: ").partition(";")[0] for text in texts])

    assert stability(by_name, make_tables()).value == 1
    assert stability(lambda texts: letters(texts), make_tables()).value < 1


def test_rows_are_as_many_as_the_model_reads(make_model) -> None:
    small = Subject("small", make_model(max_positions=100))
    assert measure(small) is None
    larger = Subject("larger", make_model(max_positions=250))
    scores = measure(larger)
    assert scores is not None
    assert 3 <= scores.rows < tables.ROWS
    assert scores.truncated == 0


def test_a_table_is_written_line_by_line() -> None:
    table = Table(("a", "b"), (("1", "2"), ("3", "4")))
    assert table.text() == "a | b\n1 | 2\n3 | 4"
    assert table.column_text("b") == "b: 2, 4"
