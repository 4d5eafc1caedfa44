from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.stress import noise
from moembed.stress.limit import limit_task
from moembed.stress.noise import TYPOS, cut_short, docstring_task, measure, misspell, with_typos
from moembed.stress.subject import Subject
from moembed.types import UserError

seeds = st.integers(0, 2**32)
rates = st.floats(0, 1)
sentences = st.lists(st.text("abcdefgHIJäß東 7_-", min_size=1, max_size=9), max_size=12).map(" ".join)


@given(sentences, rates, seeds)
def test_typos_are_small_and_the_same_for_a_seed(text: str, rate: float, seed: int) -> None:
    changed = misspell(text, rate, seed)
    words = noise._WORD.findall(text)
    assert abs(len(changed) - len(text)) <= len(words)
    assert changed == misspell(text, rate, seed)
    assert misspell(text, 0, seed) == text


@given(st.lists(st.text("abcdefg", min_size=2, max_size=8), max_size=20), rates, rates, seeds)
def test_a_higher_rate_only_adds(words: list[str], one: float, other: float, seed: int) -> None:
    low, high = sorted((one, other))
    few, many = (misspell(" ".join(words), rate, seed).split() for rate in (low, high))
    assert len(few) == len(many) == len(words)  # a typo never joins or loses a word
    for word, less, more in zip(words, few, many, strict=True):
        assert less in (word, more)
        assert abs(len(more) - len(word)) <= 1


def test_the_rate_is_a_share_of_words() -> None:
    words = ["lighthouse"] * 4000
    changed = sum(word != "lighthouse" for word in misspell(" ".join(words), 0.1).split())
    assert changed == pytest.approx(400, abs=60)


@pytest.mark.parametrize(
    ("kind", "expected"), [("swap", "heta"), ("drop", "het"), ("double", "heaat"), ("neighbour", "hezt")]
)
def test_each_kind_of_typo(kind: str, expected: str) -> None:
    assert TYPOS[kind]("heat", 2, 0.999) == expected


def test_keys_touch_each_other() -> None:
    neighbours = noise._NEIGHBOURS
    assert set(neighbours["g"]) == set("fhtyvb")
    assert set(neighbours["q"]) == set("wa")
    assert all(key in neighbours[other] for key, others in neighbours.items() for other in others)
    assert TYPOS["neighbour"]("Ä", 0, 0.5) == "ÄÄ"
    assert TYPOS["neighbour"]("Go", 0, 0).isupper() is False
    assert TYPOS["neighbour"]("GO", 0, 0)[0].isupper()


def test_queries_are_misspelt_each_in_its_own_way_and_documents_not_at_all() -> None:
    task = limit_task(10)
    noisy = with_typos(task, 1.0, seed=5)
    assert noisy.documents == task.documents
    assert len(set(noisy.queries)) > 1
    assert noisy.queries != task.queries
    assert with_typos(task, 0).queries == task.queries


@given(st.floats(0.01, 1))
def test_documents_keep_their_beginning(kept: float) -> None:
    task = limit_task(5)
    for whole, part in zip(task.documents, cut_short(task, kept).documents, strict=True):
        assert whole.startswith(part)
        assert len(part) == math.ceil(kept * len(whole))


def test_differences_are_to_the_clean_task() -> None:
    found = measure(Subject("bm25", None), limit_task(20))
    assert found.clean.value == pytest.approx(1)
    assert list(found.typos) == ["0.05", "0.1", "0.2"]
    for variant in (*found.typos.values(), *found.kept.values()):
        gap = variant.difference
        assert gap.mean == pytest.approx(variant.value - 1)
        assert gap.low <= gap.mean <= gap.high <= 0
    scores = [found.typos[rate].value for rate in ("0.05", "0.1", "0.2")]
    assert scores == sorted(scores, reverse=True)
    assert found.kept["0.25"].difference.p_value < 0.01


def library(folder: Path, functions: int) -> Path:
    package = folder / "tunnels"
    package.mkdir()
    code = [
        f'def dig_{n}(depth):\n    """Dig tunnel number {n} under the wide meadow."""\n'
        f"    mole = {n}\n    deeper = depth + mole\n    return deeper\n"
        for n in range(functions)
    ]
    (package / "dig.py").write_text("\n".join(code))
    return folder


def test_docstrings_of_the_library_look_for_their_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library(tmp_path, 9)))
    task = docstring_task(6, seed=1)
    assert len(task.queries) == len(task.documents) == 6
    for query, document in zip(task.queries, task.documents, strict=True):
        number = query.split()[3]
        assert f"def dig_{number}(" in document


def test_a_library_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library(tmp_path, 3)))
    with pytest.raises(UserError, match=r"shows 3 functions .* pass --task"):
        docstring_task(6)
