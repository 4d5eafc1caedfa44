"""Vectors as the bytes of a reply, without a Python number on the way."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import orjson
from starlette.responses import Response

EncodingFormat = Literal["float", "base64"]


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON of plain values and float32 arrays in C order, which orjson writes from their memory.

    What JSON has no word for, such as a decimal of a Parquet column, becomes its text.
    """
    body = orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json", headers=dict(headers or {}))


def embedding_rows(vector_NM: np.ndarray, encoding_format: EncodingFormat) -> list[dict[str, Any]]:
    """OpenAI's ``data``: for every text its number and its vector, of floats or as base64.

    base64 is of the float32 numbers, little-endian, one behind the other; the openai client asks for it
    unless told otherwise, and reads it with ``numpy.frombuffer``.
    """
    array_NM = np.ascontiguousarray(vector_NM, dtype=np.float32)
    rows: list[Any] = list(array_NM)
    if encoding_format == "base64":
        little_NM = array_NM.astype("<f4", copy=False)
        rows = [base64.b64encode(row.data).decode("ascii") for row in little_NM]
    return [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)]
