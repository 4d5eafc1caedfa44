"""Measures of complexity, by hand and by closed forms; spaCy's part with a parser made on the spot."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moembed.compare.scores import Scores
from moembed.evaluation.complexity import (
    complexities,
    dependency,
    entropy,
    error,
    item_texts,
    mean_distance,
    readability,
    syllables,
)
from moembed.evaluation.files import PairTask
from moembed.types import UserError


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("mole", 1),
        ("moles", 2),
        ("table", 2),
        ("the", 1),
        ("readability", 5),
        ("owl", 1),
        ("rhythm", 1),
        ("committee", 3),
        ("coffee", 2),
        ("agree", 2),
        ("movie", 2),
        ("unique", 2),
        ("value", 2),
    ],
)
def test_syllables_are_groups_of_vowels(word: str, count: int) -> None:
    assert syllables(word) == count


def test_the_fog_index() -> None:
    text = "The mole digs. Considerable subterranean activity follows!"  # 7 words, 2 sentences, 3 long
    assert readability([text, "", "…"]) == pytest.approx([0.4 * (7 / 2 + 300 / 7), 0, 0])
    plain, hard = readability(["The owl is up.", "Institutional depositary instrumentality."])
    assert plain < hard


@given(st.lists(st.sampled_from(["mole", "owl", "Owl", "vole"]), min_size=1, max_size=30))
def test_entropy_is_scipys(words: list[str]) -> None:
    counts = np.unique([word.lower() for word in words], return_counts=True)[1]
    assert entropy([" ".join(words)])[0] == pytest.approx(stats.entropy(counts, base=2), abs=1e-12)


def test_entropy_of_different_words_is_their_logarithm() -> None:
    assert entropy(["a b c d e f g h", "", "a a a"]) == pytest.approx([math.log2(8), 0, 0])


def test_the_distance_of_dependencies() -> None:
    # the(1) mole(2) <- digs(2) tunnels(2): heads by place, the root is its own
    assert mean_distance([1, 2, 2, 2]) == 1
    assert mean_distance([3, 3, 3, 3]) == 2
    assert mean_distance([0]) == mean_distance([]) == 0


def test_a_parser_of_spacy(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")

    @spacy.Language.component("all-on-the-last")
    def parse(doc):
        for token in doc:
            token.head, token.dep_ = doc[len(doc) - 1], "dep"
        return doc

    nlp = spacy.blank("en")
    nlp.add_pipe("all-on-the-last")
    nlp.to_disk(tmp_path / "parser")
    assert dependency(str(tmp_path / "parser"))(["one two three four"])[0] == 2
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="parses nothing"):
        dependency(str(tmp_path / "blank"))(["one two"])
    with pytest.raises(UserError, match="the parser nowhere, which is not installed"):
        dependency("nowhere")


def test_without_spacy_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(UserError, match=r"pip install 'moembed\[parser\]'"):
        dependency()


def test_by_measure_task_and_item() -> None:
    task = PairTask(
        "pairs", "sts", ["a mole", "an owl"], ["a vole", "an owl"], np.array([1.0, 2.0]), [""] * 2, []
    )
    assert item_texts(task) == {"0": "a mole\na vole", "1": "an owl\nan owl"}
    of_pairs = Scores("pairs", "sts", ["0", "1"], [""] * 2, np.ones(2), {"spearman": np.ones((2, 2))})
    assert error(of_pairs) is None
    found = complexities([task], ["entropy", "error"], {"pairs": of_pairs})
    assert found == {"entropy": {"pairs": {"0": 1.5, "1": 1.0}}, "error": {}}
    bitext = Scores("pairs", "bitext", ["0", "1"], [""] * 2, np.ones(2), {"f1": np.array([1.0, 0.25])})
    assert complexities([task], ["error"], {"pairs": bitext})["error"]["pairs"] == {"0": 0.0, "1": 0.75}
    with pytest.raises(UserError, match="unknown measure 'length'"):
        complexities([task], ["length"], {})
