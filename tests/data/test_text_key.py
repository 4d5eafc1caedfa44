"""One equality of texts, wherever texts are compared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moembed.data.text_key import normalize, text_key, text_number

SPELLINGS = ["What do Owls hunt?", "what  do owls\nhunt?", " WHAT DO OWLS HUNT? ", "Ｗhat do owls hunt?"]


def test_spellings_of_a_text_are_one_text():
    assert len({text_key(text) for text in SPELLINGS}) == 1
    assert text_key(SPELLINGS[0]) != text_key("what do moles hunt?")


@given(st.text(), st.text())
def test_keys_are_equal_where_normalised_texts_are(one, two):
    assert (text_key(one) == text_key(two)) == (normalize(one) == normalize(two))
    assert (text_number(one) == text_number(two)) == (normalize(one) == normalize(two))
    assert -(2**63) <= text_number(one) < 2**63


def test_half_of_a_surrogate_pair_has_a_key():
    assert text_key("\ud83d") != text_key("\ude00")
