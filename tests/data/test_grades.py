"""Numbers that no float can hold are bad rows, each with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from moembed.data.sources import SourceConfig, load_source
from moembed.types import UserError

DIGITS = "9" * 400


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (DIGITS, f"{'9' * 60}…"),
        (f'"{DIGITS}"', f"'{'9' * 59}…"),
        ("1e400", "inf"),
        ("1e39", "1e+39"),
        ("NaN", "nan"),
    ],
)
def test_a_score_that_is_too_large_is_told_by_file_and_line(written: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "a", "document": "b", "score": 1}\n' * 2)
    file.write_text(f'{file.read_text()}{{"query": "a", "document": "b", "score": {written}}}\n')
    with pytest.raises(UserError) as refused:
        load_source(SourceConfig(path=str(file), score="score"))
    assert str(refused.value).startswith(f"{file}, line 3: column 'score' is {told}, no number; correct it")
    file.write_text(f'{{"query": "a", "document": "b", "negative": "c", "scores": [1, {written}]}}\n')
    with pytest.raises(UserError) as refused:
        load_source(SourceConfig(path=str(file), scores="scores"))
    assert str(refused.value).startswith(f"{file}, line 1: column 'scores' is {told}, no number; correct it")
