"""Vectors as a server sends them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from moembed.types import UserError


def read_vectors(reply: Any, texts: int, dim: int, url: str) -> np.ndarray:
    """The float32 ``(texts, dim)`` of an answer of ``/v1/embeddings`` in base64.

    Raises:
        UserError: a vector is missing, damaged, or holds what is no number.
    """
    vector_NM = np.full((texts, dim), np.nan, dtype=np.float32)
    try:
        for item in reply["data"]:
            sent = np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
            vector_NM[item["index"]] = sent.reshape(dim)
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error) as error:
        raise UserError(f"{url} answered with vectors that cannot be read: {error}") from None
    if not np.isfinite(vector_NM).all():
        raise UserError(f"{url} left out the vector of a text, or gave one with NaN in it")
    return vector_NM
