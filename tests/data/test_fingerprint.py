"""Equal pairs have equal fingerprints, however they lie in memory; any other pair shows."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.data import fingerprint as module
from moembed.data.fingerprint import fingerprint
from moembed.data.sources import Source
from moembed.types import Pair

TEXT = st.text(max_size=3)
PAIRS = st.lists(st.builds(Pair, TEXT, TEXT, st.lists(TEXT, max_size=2).map(tuple)), min_size=1, max_size=6)


def of(pairs: list[Pair]) -> str:
    return Source.from_pairs("some", pairs).fingerprint()


@given(PAIRS, PAIRS)
def test_equal_if_and_only_if_the_pairs_are(one: list[Pair], other: list[Pair]) -> None:
    assert (of(one) == of(other)) == (one == other)
    assert of(one) == of(list(one))


@given(PAIRS, st.integers(0, 6))
def test_chunks_do_not_matter(pairs: list[Pair], cut: int) -> None:
    table = Source.from_pairs("some", pairs)._table
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert fingerprint(pieces) == fingerprint(table)


def test_a_large_table_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "BLOCKS", 3)
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    pairs = [Pair(f"q{i:03}", f"d{i:03}") for i in range(500)]
    assert of(pairs) == of(list(pairs))
    assert of(pairs) != of([*pairs[:-1], Pair("q499", "dxxx")])  # the last block holds the last row
    assert of(pairs) != of(pairs[:-1])
    assert of(pairs) != of([*pairs[:-1], Pair("q499", "longer")])
