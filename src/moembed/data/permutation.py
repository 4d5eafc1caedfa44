"""A shuffle that is computed and not stored: a permutation of ``n`` rows, evaluated where it is needed.

A balanced Feistel network permutes the numbers of ``2h`` bits, whatever its round function is; a number that
falls outside ``0 … n-1`` is permuted again until it falls inside (cycle walking; Black and Rogaway, *Ciphers
with arbitrary finite domains*, 2002). ``4^h`` is less than ``4n``, so few steps are needed on average. The
round function is the finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROUNDS = 8


def permute(index: np.ndarray, size: int, seed: Sequence[int]) -> np.ndarray:
    """Images of ``index`` (each in ``0 … size-1``) under the permutation that ``size`` and ``seed`` name.

    The result is int64. Time and memory grow with ``len(index)``, not with ``size``.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(list(seed)).generate_state(_ROUNDS, np.uint64)
    number = _feistel(index.astype(np.uint64), half, keys)
    while (outside := np.flatnonzero(number >= size)).size:
        number[outside] = _feistel(number[outside], half, keys)
    return number.astype(np.int64)


def _feistel(number: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """(left, right) -> (right, left xor mix(right, key)), once for every key."""
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = number >> shift, number & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(number: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of ``number``; arithmetic is modulo 2^64."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))
