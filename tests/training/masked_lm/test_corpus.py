"""Texts become token files once, and sequences by number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from moembed.data.text import Text
from moembed.training.masked_lm.corpus import Frame, Language, open_corpus
from moembed.types import UserError

CLS, SEP = 2, 3
TEXTS = [
    Text("en", "the mole digs"),
    Text("de", "owl"),
    Text("en", "owls hunt at night"),
    Text("en", "what does a mole eat"),
]


def corpus(folder: Path, backend: Backend, length: int = 6, packed: bool = True) -> list[Language]:
    return open_corpus(folder / "tokens", iter([TEXTS[:2], TEXTS[2:]]), backend, length, packed, "these")


def test_packed_texts_stand_end_to_end_with_separators(tmp_path: Path, backend: Backend) -> None:
    german, english = corpus(tmp_path, backend)
    assert (german.name, english.name) == ("de", "en")
    stream = [
        token
        for text in TEXTS
        if text.language == "en"
        for token in [*backend.encode(text.text, add_special_tokens=False).ids, SEP]
    ]
    found: list[int] = []
    for i in range(len(english)):
        first, *body, last = english.sequence(i).tolist()
        assert (first, last) == (CLS, SEP)
        assert len(body) == 4 or i == len(english) - 1
        found += body
    assert found == stream
    assert len(german) == 1


def test_unpacked_every_text_is_a_sequence_cut_at_the_length(tmp_path: Path, backend: Backend) -> None:
    german, english = corpus(tmp_path, backend, packed=False)
    own = [text.text for text in TEXTS if text.language == "en"]
    assert (len(german), len(english)) == (1, 3)
    for i, text in enumerate(own):
        ids = backend.encode(text).ids
        expected = ids if len(ids) <= 6 else [*ids[:5], SEP]
        assert english.sequence(i).tolist() == expected
        assert english.sequence(i).dtype == np.int64


def test_tokens_are_written_once(tmp_path: Path, backend: Backend) -> None:
    first = corpus(tmp_path, backend)

    def unread() -> Iterator[list[Text]]:
        raise AssertionError("the texts were read again")
        yield []

    again = open_corpus(tmp_path / "tokens", unread(), backend, 6, True, "these")
    assert again[1].sequence(0).tolist() == first[1].sequence(0).tolist()
    with pytest.raises(AssertionError, match="read again"):
        open_corpus(tmp_path / "tokens", unread(), backend, 6, True, "others")


def test_texts_that_break_off_leave_nothing_behind(tmp_path: Path, backend: Backend) -> None:
    def broken() -> Iterator[list[Text]]:
        yield TEXTS
        raise UserError("row 5 is bad")

    with pytest.raises(UserError, match="row 5 is bad"):
        open_corpus(tmp_path / "tokens", broken(), backend, 6, True, "these")
    assert list(tmp_path.iterdir()) == []


def test_the_frame_is_what_the_tokenizer_puts_around_a_text(backend: Backend) -> None:
    assert Frame.of(backend) == Frame((CLS,), (SEP,))


def test_a_length_without_room_is_refused(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(UserError, match="sequence_length 2 leaves no room beside 2 special tokens"):
        corpus(tmp_path, backend, length=2)


def test_a_damaged_folder_is_one_sentence(tmp_path: Path, backend: Backend) -> None:
    corpus(tmp_path, backend)
    file = tmp_path / "tokens" / "0.tokens"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(
        UserError, match=r"tokens is damaged .*: delete it, and the texts are tokenised again"
    ):
        corpus(tmp_path, backend)
    file.unlink()
    with pytest.raises(UserError, match="tokens is damaged"):
        corpus(tmp_path, backend)
