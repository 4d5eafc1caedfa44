from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.stress.long_context import (
    DEPTHS,
    DOCUMENTS,
    KINDS,
    LENGTHS,
    haystack,
    long_task,
    measure,
    wilson,
)
from moembed.stress.subject import Subject
from moembed.stress.texts import FACTS, FILLER
from moembed.types import UserError

NEEDLE = "The pass key is here."
LONGEST = max(len(sentence.split()) for sentence in FILLER)


def words(text: str) -> int:
    return len(text.split())


def sentences(text: str) -> list[str]:
    return [part.strip() + "." for part in text.split(".") if part.strip()]


@settings(max_examples=40)
@given(st.integers(64, 800), st.floats(0, 1), st.integers(0, 2**32))
def test_the_needle_stands_at_its_depth_in_a_text_of_its_length(length: int, depth: float, seed: int) -> None:
    text = haystack(NEEDLE, length, depth, words, np.random.default_rng(seed))
    assert length - LONGEST < words(text) <= length
    around = sentences(text)
    place = around.index(NEEDLE)
    around.remove(NEEDLE)
    assert place == round(depth * len(around))
    assert set(around) <= set(FILLER)
    assert text == haystack(NEEDLE, length, depth, words, np.random.default_rng(seed))


def test_a_text_that_joins_to_more_tokens_is_shortened() -> None:
    def joined(text: str) -> int:
        return len(text)  # sentences by themselves have no blank between them

    text = haystack(NEEDLE, 500, 0.5, joined, np.random.default_rng(0))
    assert len(text) <= 500


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_is_answered_by_its_own_document_alone(kind: str) -> None:
    task = long_task(kind, 128, 0.5, words, seed=4)
    assert len(task.queries) == len(set(task.queries)) == len(set(task.documents)) == DOCUMENTS
    assert task.qrels.document.tolist() == list(range(DOCUMENTS))
    for query, document in zip(task.queries, task.documents, strict=True):
        if kind == "passkey":
            name = query.removeprefix("What is the pass key for ").removesuffix("?")
            assert [name in text for text in task.documents].count(True) == 1
            assert f"The pass key for {name} is " in document
        else:
            statement = next(statement for statement, question in FACTS if question == query)
            assert [statement in text for text in task.documents].count(True) == 1
            assert statement in document


def test_filler_answers_nothing() -> None:
    assert len({question for _, question in FACTS}) == len(FACTS)
    filler = " ".join(FILLER).casefold()
    assert "pass key" not in filler
    for statement, question in FACTS:
        names = [word for word in statement.split() if word[0].isupper()][1:] or statement.split()[1:2]
        assert not any(name.casefold() in filler.split() for name in names)
        assert statement not in question


def test_depths_differ_in_nothing_but_the_depth() -> None:
    front, back = (long_task("passkey", 128, depth, words, seed=4) for depth in (0.0, 1.0))
    assert front.queries == back.queries
    for a, b in zip(front.documents, back.documents, strict=True):
        assert sorted(sentences(a)) == sorted(sentences(b))


def test_words_alone_find_every_needle() -> None:
    found = measure(Subject("bm25", None), [256, 512])
    assert (found.unit, found.limit, found.skipped) == ("words", None, [])
    assert [(cell.length, cell.depth) for cell in found.passkey] == [
        (length, depth) for length in (256, 512) for depth in DEPTHS
    ]
    assert all(cell.value == 1 for cell in found.passkey)
    assert all(cell.low < 1 for cell in found.passkey)


def test_a_model_is_asked_as_far_as_it_reads(make_model) -> None:
    found = measure(Subject("small", make_model(max_positions=300)))
    assert (found.unit, found.limit, found.skipped) == ("tokens", 300, list(LENGTHS[1:]))
    assert {cell.length for cell in found.needle} == {256}
    assert all(cell.truncated == 0 for cell in found.needle)


def test_longer_than_it_reads_is_cut_and_counted(make_model) -> None:
    found = measure(Subject("small", make_model(max_positions=200)), [256])
    assert all(cell.truncated == DOCUMENTS for cell in found.passkey)
    last = next(cell for cell in found.passkey if cell.depth == 1)
    assert last.value <= 0.5  # the answer was cut off


def test_the_length_counts_prompt_and_special_tokens(make_model) -> None:
    subject = Subject("small", make_model())
    assert subject.length("moles") == len(["[CLS]", "document", ":", "moles", "[SEP]"])


def test_refuses_documents_without_room(make_model) -> None:
    with pytest.raises(UserError, match="12 tokens are too few for the sentence to find"):
        measure(Subject("small", make_model()), [12])


@given(st.integers(1, 200), st.data())
def test_wilson_holds_the_share(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    interval = wilson(hits, trials)
    assert 0 <= interval.low <= interval.value == hits / trials <= interval.high <= 1
    assert interval.high - interval.low > 0


def test_wilson_as_in_the_textbook() -> None:
    interval = wilson(0, 10)
    assert interval.high == pytest.approx(0.2775, abs=1e-4)
