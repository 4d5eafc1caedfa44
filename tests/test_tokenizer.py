"""Texts become rows with their prompt and special tokens; rows become a packed batch and find back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from moembed.packing import offsets, pack, token_budget
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

CLS, SEP = 2, 3
rows_of_tokens = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=12)


@pytest.fixture
def tokenizer(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, max_length=8, prompts={"query": "query: ", "document": "document: "})


def test_a_prompt_is_a_prefix(tokenizer: Tokenizer) -> None:
    assert tokenizer.rows(["moles"], "query") == tokenizer.rows(["query: moles"])
    assert tokenizer.rows(["moles"], "query") != tokenizer.rows(["moles"])
    assert tokenizer.rows(["moles"], None) == tokenizer.rows(["moles"])


def test_the_empty_text_is_its_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.rows([""]) == ([[CLS, SEP]], 0)
    assert tokenizer.rows([]) == ([], 0)


def test_a_long_text_keeps_its_closing_token_and_is_counted(tokenizer: Tokenizer, texts: list[str]) -> None:
    whole, _ = Tokenizer(tokenizer.backend, max_length=100).rows(texts)
    rows, truncated = tokenizer.rows(texts)
    assert truncated == sum(len(row) > 8 for row in whole) > 0
    for row, full in zip(rows, whole, strict=True):
        assert row == (full if len(full) <= 8 else [*full[:7], SEP])


def test_a_shorter_limit_holds_for_one_call_and_a_longer_one_never(tokenizer: Tokenizer) -> None:
    text = "the mole digs tunnels under the meadow at night"
    assert [len(tokenizer.rows([text], max_length=limit)[0][0]) for limit in (5, None, 50)] == [5, 8, 8]


def test_the_limits_and_padding_of_the_backend_are_off(minilm: Path) -> None:
    backend = Backend.from_file(str(minilm / "tokenizer.json"))
    assert len(backend.encode("a").ids) == 128  # the packaged file pads and cuts at 128
    tokenizer = Tokenizer(backend, max_length=256)
    assert [len(row) for row in tokenizer.rows(["a", "a " * 200])[0]] == [3, 202]


def test_an_unknown_prompt_is_refused_with_a_hint(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        UserError, match=r"no prompt named 'qery' \(known: document, query\), did you mean 'query'"
    ):
        tokenizer.rows(["moles"], "qery")
    with pytest.raises(UserError, match=r"no prompt named 'query' \(known: none\)$"):
        Tokenizer(tokenizer.backend, 8).rows(["moles"], "query")


def test_a_default_prompt_that_names_nothing_is_refused(backend: Backend) -> None:
    with pytest.raises(UserError, match="no prompt named 'query'"):
        Tokenizer(backend, 8, {}, default_prompt="query")


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (None, "text 1 is a NoneType, not a string"),
        (3, "text 1 is a int, not a string"),
        (b"moles", "text 1 is a bytes, not a string"),
        ("mo\ud800les", "text 1 is not valid Unicode"),
    ],
)
@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_what_is_not_text_is_named_by_position(
    bad: object, complaint: str, prompt_name: str | None, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=complaint):
        tokenizer.rows(["moles", bad], prompt_name)  # type: ignore[list-item]
    assert tokenizer.rows(["moles"])[0] == [[CLS, tokenizer.backend.token_to_id("moles"), SEP]]


def test_batch_is_rows_then_pack(tokenizer: Tokenizer, texts: list[str]) -> None:
    batch = tokenizer.batch(texts, "query", max_length=6)
    rows, truncated = tokenizer.rows(texts, "query", max_length=6)
    again = pack(rows, truncated)
    assert torch.equal(batch.token_T, again.token_T)
    assert torch.equal(batch.restore_B, again.restore_B)
    assert (batch.length_B, batch.truncated) == (again.length_B, again.truncated)


@given(rows_of_tokens)
def test_packing_sorts_by_length_and_restore_finds_every_text(rows: list[list[int]]) -> None:
    batch = pack(rows)
    assert list(batch.length_B) == sorted(map(len, rows))
    packed = [batch.token_T[start:end].tolist() for start, end in pairwise(offsets(batch.length_B))]
    assert [packed[place] for place in batch.restore_B.tolist()] == rows
    for one, other in pairwise(range(len(rows))):
        if len(rows[one]) == len(rows[other]):  # ties keep their order
            assert batch.restore_B[one] < batch.restore_B[other]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60))
def test_a_token_budget_holds_every_text_once_and_bounds_every_group(lengths: list[int], most: int) -> None:
    groups = token_budget(lengths, most)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[i] for i in group) <= most or len(group) == 1
    in_order = [lengths[i] for group in groups for i in group]
    assert in_order == sorted(lengths, reverse=True)
