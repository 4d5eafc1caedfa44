"""What is masked: how much, which tokens never, in which runs, and by what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from moembed.training.masked_lm.masking import MASKING, MEAN_SPAN, NOT_CHOSEN, Vocabulary, mask, spans
from moembed.training.masked_lm.objective import OBJECTIVES
from moembed.types import UserError

MASK, WORDS = 4, 200
VOCABULARY = Vocabulary(MASK, np.arange(WORDS) < 5, np.arange(5, WORDS))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.sampled_from(sorted(MASKING)), st.integers(1, 60), st.integers(0, 99), st.data())
def test_a_choice_is_as_large_as_its_budget(kind: str, count: int, seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, count))
    group = MASKING[kind](count, budget, rng(seed))
    assert len(group) == count
    assert np.count_nonzero(group >= 0) == budget
    chosen = group[group >= 0]
    assert set(chosen) == set(range(chosen.max() + 1))


@given(st.integers(0, 99), st.floats(0.05, 0.9), st.lists(st.integers(0, WORDS - 1), max_size=60))
def test_targets_are_the_chosen_tokens_and_nothing_else_changes(
    seed: int, rate: float, ids: list[int]
) -> None:
    token_S = np.array(ids, dtype=np.int64)
    for kind in MASKING:
        input_S, target_S = mask(token_S, VOCABULARY, rate, kind, rng(seed))
        chosen_S = target_S != NOT_CHOSEN
        ordinary = int((token_S >= 5).sum())
        assert chosen_S.sum() == (max(1, round(rate * ordinary)) if ordinary else 0)
        assert (token_S[chosen_S] >= 5).all()
        np.testing.assert_array_equal(target_S[chosen_S], token_S[chosen_S])
        np.testing.assert_array_equal(input_S[~chosen_S], token_S[~chosen_S])
        assert ((input_S[chosen_S] == MASK) | (input_S[chosen_S] >= 5)).all()


@pytest.mark.parametrize("kind", sorted(MASKING))
def test_eight_of_ten_become_masks_one_another_token_one_stays(kind: str) -> None:
    token_S = np.full(100_000, 7)
    input_S, target_S = mask(token_S, VOCABULARY, 0.3, kind, rng())
    chosen = input_S[target_S != NOT_CHOSEN]
    assert len(chosen) == 30_000
    assert np.mean(chosen == MASK) == pytest.approx(0.8, abs=0.02)
    assert np.mean(chosen == 7) == pytest.approx(0.1, abs=0.02)
    assert len(set(chosen)) > 150  # the rest come from the whole vocabulary


def test_spans_have_the_mean_length_they_should_and_share_their_fate() -> None:
    group = spans(100_000, 30_000, rng())
    lengths = np.bincount(group[group >= 0])
    assert lengths.mean() == pytest.approx(MEAN_SPAN)
    geometric = (1 - 1 / MEAN_SPAN) ** np.arange(6) / MEAN_SPAN
    np.testing.assert_allclose(np.bincount(lengths)[1:7] / len(lengths), geometric, atol=0.02)
    starts = np.flatnonzero(np.diff(group, prepend=-1) != 0)
    runs = [group[start] for start in starts if group[start] >= 0]
    assert len(runs) == len(set(runs))  # one run each
    input_S, target_S = mask(np.full(100_000, 7), VOCABULARY, 0.3, "spans", rng())
    masked = (input_S == MASK)[target_S != NOT_CHOSEN]
    assert np.mean(masked[1:] == masked[:-1]) > 0.85  # single tokens: 0.68


def test_the_same_seed_masks_the_same() -> None:
    token_S = np.arange(5, 105)
    for kind in MASKING:
        one, two, other = (mask(token_S, VOCABULARY, 0.3, kind, rng(seed))[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, two)
        assert (one != other).any()


def test_a_tokenizer_names_its_mask_and_its_special_tokens(backend: Backend) -> None:
    vocabulary = Vocabulary.of(backend)
    assert vocabulary.mask == backend.token_to_id("[MASK]")
    assert np.flatnonzero(vocabulary.special_V).tolist() == [0, 1, 2, 3, 4]
    assert len(vocabulary.ordinary) == backend.get_vocab_size() - 5


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"no mask token \(\[MASK\] or <mask>\)"):
        Vocabulary.of(Backend(models.WordPiece({"[UNK]": 0, "mole": 1}, unk_token="[UNK]")))


def test_objectives_name_ways_of_masking() -> None:
    assert {objective.masking for objective in OBJECTIVES.values()} - {None} == set(MASKING)
