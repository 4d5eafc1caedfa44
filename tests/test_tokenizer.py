"""Texts become rows with their prompt and special tokens; rows become a packed batch and find back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from moembed.packing import even_budget, offsets, pack, row_padding, token_budget
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

CLS, SEP = 2, 3
rows_of_tokens = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=12)


@pytest.fixture
def tokenizer(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, max_length=8, prompts={"query": "query: ", "document": "document: "})


def test_a_prompt_is_a_prefix(tokenizer: Tokenizer) -> None:
    assert tokenizer.rows(["moles"], prompt="query: ") == tokenizer.rows(["query: moles"])
    assert tokenizer.rows(["moles"], prompt=tokenizer.prompt("query")) != tokenizer.rows(["moles"])
    assert tokenizer.rows(["moles"], prompt=tokenizer.prompt(None)) == tokenizer.rows(["moles"])


def test_the_empty_text_is_its_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.rows([""]) == ([[CLS, SEP]], 0)
    assert tokenizer.rows([]) == ([], 0)


def test_a_long_text_keeps_its_closing_token_and_is_counted(tokenizer: Tokenizer, texts: list[str]) -> None:
    whole, _ = Tokenizer(tokenizer.backend, max_length=100).rows(texts)
    rows, truncated = tokenizer.rows(texts)
    assert truncated == sum(len(row) > 8 for row in whole) > 0
    for row, full in zip(rows, whole, strict=True):
        assert row == (full if len(full) <= 8 else [*full[:7], SEP])


FRAMES = {
    "around": ("[CLS] $A [SEP]", 2),
    "before": ("[CLS] $A", 1),
    "after": ("$A [SEP]", 1),
    "two after": ("[CLS] $A [SEP] [SEP]", 3),
    "none": ("$A", 0),
}


@pytest.fixture(scope="module", params=FRAMES, ids=lambda name: name.replace(" ", "-"))
def framed(request: pytest.FixtureRequest, backend: Backend) -> tuple[Backend, int]:
    """A backend, and how many special tokens it puts around a text."""
    template, count = FRAMES[request.param]
    copy = Backend.from_str(backend.to_str())
    special = [("[CLS]", CLS), ("[SEP]", SEP)]
    copy.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return copy, count


@given(
    st.lists(st.text(alphabet="aemo lw?", max_size=30), min_size=1, max_size=5),
    st.integers(0, 12),
    st.sampled_from(["right", "left"]),
    st.sampled_from(["", "query: "]),
)
def test_a_cut_is_that_of_the_backend(
    framed: tuple[Backend, int], some: list[str], extra: int, side: Literal["right", "left"], prompt: str
) -> None:
    backend, count = framed
    limit = max(count + extra, 1)
    rows, truncated = Tokenizer(backend, limit, truncation_side=side).rows(some, prompt=prompt)
    theirs = Backend.from_str(backend.to_str())
    whole = theirs.encode_batch([prompt + text for text in some])
    theirs.enable_truncation(limit, direction=side)
    assert rows == [encoding.ids for encoding in theirs.encode_batch([prompt + text for text in some])]
    assert truncated == sum(len(encoding.ids) > limit for encoding in whole)
    assert backend.truncation is None


def test_a_limit_without_room_for_the_special_tokens_is_refused(tokenizer: Tokenizer) -> None:
    for limit in (1, 0, -3):
        with pytest.raises(UserError, match=rf"max_length {limit} is too short: .* take at least 3"):
            tokenizer.rows(["moles"], max_length=limit)


def test_threads_share_one_tokenizer(tokenizer: Tokenizer, texts: list[str]) -> None:
    limits = [3, 5, 8, None] * 30
    expected = [tokenizer.rows(texts, max_length=limit) for limit in limits]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda limit: tokenizer.rows(texts, max_length=limit), limits))
    assert found == expected


def test_long_texts_are_encoded_a_few_at_a_time(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moembed.tokenizer._CHARACTERS", 100)
    sizes: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch_fast(self, batch: list[str]) -> Any:
            sizes.append(sum(map(len, batch)))
            return backend.encode_batch_fast(batch)

    texts = ["moles " * count for count in (1, 2, 3, 40, 5, 6, 7, 0, 8)]
    rows, truncated = Tokenizer(Counting(), 20).rows(texts)  # type: ignore[arg-type]
    assert (rows, truncated) == Tokenizer(backend, 20).rows(texts)
    assert sum(sizes) == sum(map(len, texts))
    assert len(sizes) > 2
    assert max(size for size in sizes if size != 240) <= 100


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
        tokenizer.prompt("qery")
    with pytest.raises(UserError, match=r"no prompt named 'query' \(known: none\)$"):
        Tokenizer(tokenizer.backend, 8).prompt("query")


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
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_what_is_not_text_is_named_by_position(
    bad: object, complaint: str, prompt: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=complaint):
        tokenizer.rows(["moles", bad], prompt=prompt)  # type: ignore[list-item]
    assert tokenizer.rows(["moles"])[0] == [[CLS, tokenizer.backend.token_to_id("moles"), SEP]]


def test_batch_is_rows_then_pack(tokenizer: Tokenizer, texts: list[str]) -> None:
    batch = tokenizer.batch(texts, prompt="query: ", max_length=6)
    rows, truncated = tokenizer.rows(texts, prompt="query: ", max_length=6)
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


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200))
def test_an_even_budget_makes_no_small_last_group(lengths: list[int], most: int) -> None:
    groups = even_budget(lengths, most)
    in_order = [lengths[i] for group in groups for i in group]
    assert in_order == sorted(lengths, reverse=True)
    sizes = [sum(lengths[i] for i in group) for group in groups]
    assert all(size <= most or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    assert len(groups) <= len(token_budget(lengths, most))
    if lengths and max(lengths) * 4 <= most:
        # room for one text more than its share in every group: what is missing in the last one
        assert max(sizes) - sizes[-1] <= max(lengths) * len(groups)


@given(st.integers(0, 10**6))
def test_padded_rows_are_few_and_their_numbers_too(rows: int) -> None:
    padded = rows + row_padding(rows)
    assert padded % 32 == 0
    assert 0 <= padded - rows <= max(31, rows // 16)
    assert row_padding(padded) == 0
