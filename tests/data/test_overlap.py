from __future__ import annotations

import pytest

from moembed.data.overlap import TaskTexts, find_overlap, ngrams
from moembed.types import Pair, UserError

PASSAGE = " ".join(f"word{i}" for i in range(40))
RUN = " ".join(f"word{i}" for i in range(26))  # 14 of the passage's 28 runs of 13


def overlap(pairs, queries=(), documents=(), **options):
    rows = find_overlap(
        pairs, TaskTexts({"task": queries}, **options), TaskTexts({"task": documents}, **options)
    )
    assert [(row["task"], row["role"]) for row in rows] == [("task", "query"), ("task", "document")]
    return rows


def counts(row):
    return row["equal"], row["containing"], row["seen"], row["task_texts"]


def test_equal_texts_are_counted_on_both_sides():
    pairs = [Pair("Who  is it?", "d"), Pair("who is it?", PASSAGE), Pair("someone else", "e")]
    query, document = overlap(pairs, ["Who is it?", "why"], [PASSAGE.upper(), "x"])
    assert counts(query) == (2, 0, 1, 2)
    assert counts(document) == (1, 0, 1, 2)
    assert query["examples"][0] == {"training": "Who  is it?", "task": "Who is it?"}


def test_a_longer_text_contains_a_task_text_and_punctuation_does_not_matter():
    text = "Some say: " + PASSAGE.replace("word20", "word20,").replace(" word30", " (Word30)") + "!"
    assert counts(overlap([Pair("q", text)], [], [PASSAGE])[1]) == (0, 1, 1, 1)


def test_containment_is_a_share_of_the_runs_of_the_task_text():
    assert counts(overlap([Pair("q", RUN)], [], [PASSAGE])[1])[1] == 1
    assert counts(overlap([Pair("q", RUN)], [], [PASSAGE], containment=0.51)[1])[1] == 0
    assert counts(overlap([Pair("q", RUN)], [], [PASSAGE], ngram=20, containment=0.4)[1])[1] == 0


def test_short_texts_count_only_when_equal():
    assert counts(overlap([Pair("who is it now", "d")], ["who is it"])[0]) == (0, 0, 0, 1)


def test_queries_are_compared_with_queries_and_documents_with_documents():
    query, document = overlap([Pair(PASSAGE, "who")], ["who"], [PASSAGE])
    assert counts(query) == counts(document) == (0, 0, 0, 1)


def test_hard_negatives_do_not_count():
    assert counts(overlap([Pair("q", "d", (PASSAGE,))], [], [PASSAGE])[1]) == (0, 0, 0, 1)


def test_a_training_text_is_counted_once_for_each_task():
    documents = TaskTexts({"a": [PASSAGE, PASSAGE + " more"], "b": [PASSAGE], "c": ["x"]})
    rows = find_overlap([Pair("q", PASSAGE)], TaskTexts({}), documents)
    assert [(row["task"], *counts(row)) for row in rows] == [
        ("a", 1, 0, 2, 2),
        ("b", 1, 0, 1, 1),
        ("c", 0, 0, 0, 1),
    ]


def test_examples_are_few():
    row = overlap([Pair("q", PASSAGE)] * 9, [], [PASSAGE])[1]
    assert (row["equal"], len(row["examples"])) == (9, 3)


def test_scripts_without_blanks_have_runs_of_characters():
    assert len(ngrams("東京は日本の首都であり人口が多い。", 13)) == 4
    assert len(ngrams("ภาษาไทยไม่มีช่องว่าง", 13)) == 8
    assert ngrams("हिन्दी में एक वाक्य", 2) == ngrams("हिन्दी, में एक वाक्य।", 2)
    assert len(ngrams("हिन्दी में एक वाक्य", 2)) == 3


@pytest.mark.parametrize("options", [{"containment": 0}, {"containment": 1.1}, {"ngram": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="must be in"):
        TaskTexts({}, **options)
