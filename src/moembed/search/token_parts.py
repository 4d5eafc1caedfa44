"""The token vectors of a part of a multi-vector index: one more file, and a column that counts them.

``part-00000.tokens.npy`` holds the vectors of the tokens of all rows, end to end; the column
``moembed:tokens`` says how many each row has. The vectors file of such a part holds their
encodings, see `moembed.search.fde`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moembed.encoding import TokenVectors
from moembed.search.index_parts import TOKENS, DamagedPartError, map_vectors, read_table


def read_tokens(rows_file: Path, tokens_file: Path, dim: int) -> TokenVectors:
    """The token vectors of a part, mapped and not loaded.

    Raises:
        DamagedPartError: the two files are not of one part.
    """
    table = read_table(rows_file, [TOKENS])
    if TOKENS not in table.column_names:
        raise DamagedPartError(rows_file, f"it has no column {TOKENS}")
    length_N = table[TOKENS].to_numpy().astype(np.int64)
    return TokenVectors(map_vectors(tokens_file, int(length_N.sum()), dim), length_N)


def take(tokens: TokenVectors, row_K: np.ndarray) -> TokenVectors:
    """Those of some texts, in that order, copied."""
    end_N = np.cumsum(tokens.length_N)
    length_K = tokens.length_N[row_K]
    start_K = end_N[row_K] - length_K
    place_T = np.arange(length_K.sum()) - np.repeat(np.cumsum(length_K) - length_K, length_K)
    return TokenVectors(tokens.vector_TM[np.repeat(start_K, length_K) + place_T], length_K)


def joined(parts: Sequence[TokenVectors]) -> TokenVectors:
    """Those of several lists of texts, one list after the other."""
    vector_TM = np.concatenate([part.vector_TM for part in parts])
    return TokenVectors(vector_TM, np.concatenate([part.length_N for part in parts]))


def as_tokens(texts: Sequence[np.ndarray]) -> TokenVectors:
    """One array for each text."""
    return TokenVectors(np.concatenate(texts), np.array([len(vector_TM) for vector_TM in texts], np.int64))
