"""What a model makes of tables written as text: what should not matter, and what should.

A table is its header and its rows, a line each, cells between bars; a column is its name and its values. The
tables are made from a seed: people with a city, its country, a year and an amount. Eight properties are
measured, each as a mean over tables (or groups, or pairs of columns) with its interval:

- ``row order``, ``column order``: the cosine of a table with itself after its rows, or columns, were
  shuffled. Beside them the multivariate coefficient of variation (MCV) of all orders of one table.
- ``joins``: Spearman's correlation of the cosine of two columns with the share of values they have in common.
- ``functional dependencies``: in a table every city has its one country. The step a row's vector makes when
  the country is added should then be as long for every row of one city. What is told is the ratio of the
  variance of its length within cities to that where countries are dealt out at random: below 1, the vectors
  know of the dependency, but words alone show some of it.
- ``sample fidelity``: the cosine of a column with one of half its values.
- ``entity stability``: which people are the nearest to a person, by the name alone and by the whole row: the
  share of the 5 that both name.
- ``perturbed names``: the cosine of a table with the same one whose columns have other names, or short ones.
- ``context``: the cosine of a column of numbers with the same one beside the column of people.

Source: Cong et al., *Observatory: Characterizing Embeddings of Relational Tables* (VLDB 2024), with the MCV
of its code, ``√(mᵀ S m / (mᵀ m)²)``, S over n - 1. There, vectors of columns and cells are means of the
states of their tokens within the table. A text encoder gives one vector per text, so here each part is a text
of its own; entity stability compares two texts of one model, where the paper compares two models; and vectors
have length 1, so the MCV sees directions alone.

Words alone, the row of BM25, know nothing of order: the first two are 1 for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moembed.compare.estimates import Estimate
from moembed.compare.significance import Runs, interval, resample
from moembed.compare.statistics import STATISTICS
from moembed.search.terms import tokenize
from moembed.stress.subject import DRAWS, Subject, mean_of
from moembed.stress.texts import CITIES, people

TABLES, ROWS, ORDERS = 12, 8, 6  # tables, rows of each where they fit, shuffles of each
NEAREST = 5
COUNTRIES = (
    *("France", "Poland", "Portugal", "Kenya", "Indonesia", "Canada", "Colombia", "Greece"),
    *("Finland", "Egypt", "Peru", "Korea", "Ireland", "Cuba", "Norway", "Tunisia"),
)  # of CITIES, one each
NAMES = ("name", "city", "country", "year", "amount")
OTHER_NAMES = ("person", "town", "state", "date", "sum")
SHORT_NAMES = ("nm", "cty", "ctry", "yr", "amt")
CHANCE = "another table"

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Table:
    """Names of columns, and rows of as many cells."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        return "\n".join(" | ".join(line) for line in (self.names, *self.rows))

    def row_text(self, row: int, without: Sequence[str] = ()) -> str:
        cells = zip(self.names, self.rows[row], strict=True)
        return "; ".join(f"{name}: {cell}" for name, cell in cells if name not in without)

    def values(self, name: str) -> list[str]:
        return [row[self.names.index(name)] for row in self.rows]

    def column_text(self, name: str) -> str:
        return f"{name}: {', '.join(self.values(name))}"

    def reordered(self, order: Iterable[int]) -> Table:
        """Rows in another order."""
        return replace(self, rows=tuple(self.rows[i] for i in order))

    def turned(self, order: Iterable[int]) -> Table:
        """Columns in another order."""
        rows = tuple(tuple(row[i] for i in order) for row in self.rows)
        return Table(tuple(self.names[i] for i in order), rows)


@dataclass(frozen=True, slots=True)
class TableScores:
    """What a system makes of tables.

    Attributes:
        properties: by name; of ``another table`` the cosines of two tables, for scale.
        mcv: of the orders of rows and of columns, 0 where no order changes the vector.
        rows: of each table, as many as the model reads.
        limit: tokens the model reads.
        truncated: texts that were longer than that all the same.
    """

    properties: dict[str, Estimate]
    mcv: dict[str, Estimate]
    rows: int
    limit: int | None
    truncated: int


def make_tables(count: int = TABLES, rows: int = ROWS, seed: int = 0) -> list[Table]:
    """Tables of people; the cities of a table are few, so that each occurs in several rows."""
    rng = np.random.default_rng([seed, rows])
    tables = []
    for _ in range(count):
        cities = rng.permutation(len(CITIES))[: max(2, rows // 2)]
        city_N = rng.permutation(np.resize(cities, rows))
        years, amounts = rng.integers(1950, 2025, rows), rng.integers(10, 9999, rows)
        cells = zip(people(rows, rng), city_N, years, amounts, strict=True)
        tables.append(
            Table(NAMES, tuple((n, CITIES[c], COUNTRIES[c], str(y), str(a)) for n, c, y, a in cells))
        )
    return tables


def measure(subject: Subject, seed: int = 0) -> TableScores | None:
    """All properties; None for a model that does not read a table of three rows whole, and for one of token
    vectors."""
    if subject.model and not subject.has_vectors:
        return None
    rows = next((n for n in range(ROWS, 2, -1) if _fits(subject, make_tables(rows=n, seed=seed))), None)
    if rows is None:
        return None
    tables, rng = make_tables(rows=rows, seed=seed), np.random.default_rng([seed, 1])
    cut = subject.truncated
    embed = _embedder(subject)
    properties: dict[str, Estimate] = {}
    mcv: dict[str, Estimate] = {}
    for what, shuffled in (("row order", _row_orders), ("column order", _column_orders)):
        properties[what], mcv[what] = _orders(embed, [shuffled(table, rng) for table in tables])
    properties["joins"] = joins(embed, rng, rows)
    properties["functional dependencies"] = dependencies(embed, tables, rng)
    properties["sample fidelity"] = _pairs(
        embed,
        [t.column_text("name") for t in tables],
        [t.reordered(np.sort(rng.permutation(rows)[: rows // 2])).column_text("name") for t in tables],
    )
    properties["entity stability"] = stability(embed, tables)
    whole = [table.text() for table in tables]
    for what, names in (("other names", OTHER_NAMES), ("short names", SHORT_NAMES)):
        properties[what] = _pairs(embed, whole, [replace(table, names=names).text() for table in tables])
    properties["context"] = _pairs(
        embed,
        [table.column_text("amount") for table in tables],
        [f"{table.column_text('name')}; {table.column_text('amount')}" for table in tables],
    )
    properties[CHANCE] = _pairs(embed, whole, [*whole[1:], whole[0]])
    return TableScores(properties, mcv, rows, subject.limit, subject.truncated - cut)


def _fits(subject: Subject, tables: Sequence[Table]) -> bool:
    """Whether whole tables are read, with a tenth to spare: the same words in another order may be other
    tokens."""
    return subject.limit is None or all(1.1 * subject.length(t.text()) <= subject.limit for t in tables)


def _embedder(subject: Subject) -> Embed:
    """Texts -> rows of length 1, those of BM25 counts of words: each call has coordinates of its own."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        if subject.model:
            return subject.encode_documents(list(texts))
        words = [tokenize(text) for text in texts]
        number = {word: i for i, word in enumerate(dict.fromkeys(word for some in words for word in some))}
        count_NV = np.zeros((len(texts), len(number)))
        for row, some in enumerate(words):
            np.add.at(count_NV[row], [number[word] for word in some], 1)
        unit_NV: np.ndarray = count_NV / np.linalg.norm(count_NV, axis=1, keepdims=True)
        return unit_NV

    return embed


# ---- order -------------------------------------------------------------------------------------------------


def _row_orders(table: Table, rng: np.random.Generator) -> list[Table]:
    return [table, *(table.reordered(rng.permutation(len(table.rows))) for _ in range(ORDERS))]


def _column_orders(table: Table, rng: np.random.Generator) -> list[Table]:
    return [table, *(table.turned(rng.permutation(len(table.names))) for _ in range(ORDERS))]


def _orders(embed: Embed, orders: Sequence[Sequence[Table]]) -> tuple[Estimate, Estimate]:
    """Cosines with the first order, and MCV, as means over tables."""
    vector_TOM = embed([one.text() for some in orders for one in some]).reshape(
        len(orders), len(orders[0]), -1
    )
    cosine_TO = np.einsum("tom,tm->to", vector_TOM[:, 1:], vector_TOM[:, 0])
    return mean_of(cosine_TO.mean(axis=1)), mean_of(np.array([mcv(vector_OM) for vector_OM in vector_TOM]))


def mcv(vector_NM: np.ndarray) -> float:
    """``√(mᵀ S m / (mᵀ m)²)``: m the mean and S the covariance, over n − 1, of the vectors.

    Of one coordinate it is the coefficient of variation. It has no meaning where m is near 0.
    """
    mean_M = vector_NM.mean(axis=0)
    along_N = (vector_NM - mean_M) @ mean_M  # mᵀ S m is the variance of these
    return float(np.sqrt(along_N @ along_N / (len(vector_NM) - 1)) / (mean_M @ mean_M))


# ---- columns and cells -------------------------------------------------------------------------------------


def joins(embed: Embed, rng: np.random.Generator, values: int = ROWS) -> Estimate:
    """Spearman between cosine and overlap, over pairs of columns of which 0 to all ``values`` are common.

    Columns have as many values each, so containment and Jaccard rank the pairs alike.
    """
    shared_P = np.repeat(np.arange(values + 1), TABLES // 3)
    texts = []
    for shared in shared_P:
        found = people(2 * values - shared, rng)
        first, second = found[:values], found[:shared] + found[values:]
        texts += [
            f"name: {', '.join(rng.permutation(first))}",
            f"person: {', '.join(rng.permutation(second))}",
        ]
    vector_PM = embed(texts)
    cosine_P = (vector_PM[::2] * vector_PM[1::2]).sum(axis=1)
    pair_P2 = np.stack([cosine_P, shared_P], axis=1)
    spearman = STATISTICS["spearman"]
    drawn_XD = resample(spearman, [pair_P2], DRAWS, np.random.default_rng(0))
    return interval(Runs(np.array([spearman(pair_P2)]), drawn_XD, spearman.bounds))


def dependencies(embed: Embed, tables: Sequence[Table], rng: np.random.Generator) -> Estimate:
    """The mean over tables of: variance of steps within cities, by that with countries dealt out at random.

    A step is the length of ``E(row) - E(row without its country)``. 1 where both are 0.
    """
    at, ratios = NAMES.index("country"), []
    for table in tables:
        dealt = rng.permutation(table.values("country"))
        broken = replace(
            table, rows=tuple((*r[:at], c, *r[at + 1 :]) for r, c in zip(table.rows, dealt, strict=True))
        )
        own, other = (_within(_steps(embed, one), one.values("city")) for one in (table, broken))
        ratios.append(own / other if other > 0 else 1.0)
    return mean_of(np.array(ratios))


def _steps(embed: Embed, table: Table) -> np.ndarray:
    rows = range(len(table.rows))
    vector_BM = embed(
        [table.row_text(i) for i in rows] + [table.row_text(i, without=["country"]) for i in rows]
    )
    length_N: np.ndarray = np.linalg.norm(vector_BM[: len(rows)] - vector_BM[len(rows) :], axis=1)
    return length_N


def _within(value_N: np.ndarray, groups: Sequence[str]) -> float:
    """The variance within groups, each row counted alike."""
    _, number_N = np.unique(groups, return_inverse=True)
    mean_G = np.bincount(number_N, value_N) / np.bincount(number_N)
    return float(((value_N - mean_G[number_N]) ** 2).mean())


def stability(embed: Embed, tables: Sequence[Table]) -> Estimate:
    """The share of the nearest that a person has both by name and by row, among the people of all tables."""
    names = [name for table in tables for name in table.values("name")]
    rows = [table.row_text(i) for table in tables for i in range(len(table.rows))]
    by_name_NK, by_row_NK = _nearest(embed(names)), _nearest(embed(rows))
    common_N = [len(np.intersect1d(a, b)) / NEAREST for a, b in zip(by_name_NK, by_row_NK, strict=True)]
    return mean_of(np.array(common_N))


def _nearest(vector_NM: np.ndarray) -> np.ndarray:
    cosine_NN = vector_NM @ vector_NM.T
    np.fill_diagonal(cosine_NN, -np.inf)
    return np.argsort(-cosine_NN, axis=1, kind="stable")[:, :NEAREST]


def _pairs(embed: Embed, first: Sequence[str], second: Sequence[str]) -> Estimate:
    vector_NM = embed([*first, *second])
    return mean_of((vector_NM[: len(first)] * vector_NM[len(first) :]).sum(axis=1))
