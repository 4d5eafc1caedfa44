"""Which tokens an encoder has to guess, and what it sees in their place.

A choice is a vector of groups over the tokens that may be chosen: -1 for a token left alone, else the number
of its group. A group shares its fate: single tokens are groups of one, spans groups of several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer as Backend

from moembed.types import UserError

MASK_TOKENS = ("[MASK]", "<mask>")
SPECIAL_TOKENS = (*MASK_TOKENS, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "<pad>", "</s>", "<unk>")
MEAN_SPAN = 3
NOT_CHOSEN = -100  # the target of a token that is not to be guessed


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer: its mask, the ids never chosen, the ids drawn at random."""

    mask: int
    special_V: np.ndarray
    ordinary: np.ndarray

    @classmethod
    def of(cls, backend: Backend) -> Vocabulary:
        """Raises: UserError if the tokenizer has no mask token."""
        mask = next((i for name in MASK_TOKENS if (i := backend.token_to_id(name)) is not None), None)
        if mask is None:
            raise UserError(f"the tokenizer has no mask token ({' or '.join(MASK_TOKENS)}) to pretrain with")
        ids = np.array(sorted(backend.get_vocab().values()))
        special = [i for i, token in backend.get_added_tokens_decoder().items() if token.special]
        special += [i for name in SPECIAL_TOKENS if (i := backend.token_to_id(name)) is not None]
        special_V = np.zeros(ids[-1] + 1, dtype=bool)
        special_V[special] = True
        return cls(mask, special_V, ids[~special_V[ids]])


def single_tokens(count: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    """``budget`` of ``count`` tokens, each by itself (Devlin et al., arXiv 1810.04805)."""
    group = np.full(count, -1)
    group[rng.choice(count, budget, replace=False)] = np.arange(budget)
    return group


def spans(count: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    """``budget`` of ``count`` tokens in runs of ``MEAN_SPAN`` on average.

    Runs and the gaps between them are uniform random compositions of their totals, so lengths are close to
    geometric (SpanBERT, Joshi et al., arXiv 1907.10529) while the number of chosen tokens is exact (T5,
    Raffel et al., arXiv 1910.10683).
    """
    runs = min(max(1, round(budget / MEAN_SPAN)), count - budget + 1)
    chosen = _composition(budget, runs, rng)
    left = _composition(count - budget + 2, runs + 1, rng)
    left[[0, -1]] -= 1  # the text may begin and end with a run
    lengths = np.append(np.stack([left[:-1], chosen], axis=1).ravel(), left[-1])
    numbers = np.append(np.stack([np.full(runs, -1), np.arange(runs)], axis=1).ravel(), -1)
    return np.repeat(numbers, lengths)


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """``parts`` positive numbers of sum ``total``, all such lists equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def next_tokens(token_S: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The sequence as it is, and at every place the token that follows, for an encoder that looks back alone.

    Special tokens are read, and never to be guessed: what follows a separator is, the separator is not.

    Returns:
        Input and target of the shape of ``token_S``, as `mask` does; nothing follows the last token.
    """
    target_S = np.full_like(token_S, NOT_CHOSEN)
    target_S[:-1] = np.where(vocabulary.special_V[token_S[1:]], NOT_CHOSEN, token_S[1:])
    return token_S.copy(), target_S


MASKING: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "single_tokens": single_tokens,
    "spans": spans,
}


def mask(
    token_S: np.ndarray, vocabulary: Vocabulary, rate: float, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder sees of one sequence and what it must guess.

    ``rate`` of the tokens, at least one, are chosen; special tokens never are. Of the chosen groups 80 %
    become mask tokens, 10 % random tokens and 10 % stay as they are (Devlin et al., arXiv 1810.04805, 3.1).

    Returns:
        Input and target of the shape of ``token_S``; the target of a token not chosen is ``NOT_CHOSEN``.
    """
    places = np.flatnonzero(~vocabulary.special_V[token_S])
    input_S, target_S = token_S.copy(), np.full_like(token_S, NOT_CHOSEN)
    if not len(places):
        return input_S, target_S
    budget = max(1, round(rate * len(places)))
    group = MASKING[kind](len(places), budget, rng)
    places, group = places[group >= 0], group[group >= 0]
    target_S[places] = token_S[places]
    fate = rng.random(group.max() + 1)[group]
    input_S[places[fate < 0.8]] = vocabulary.mask
    drawn = places[(fate >= 0.8) & (fate < 0.9)]
    input_S[drawn] = rng.choice(vocabulary.ordinary, len(drawn))
    return input_S, target_S
