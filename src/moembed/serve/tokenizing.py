"""Texts and token ids of requests as token rows, in threads that let the event loop and each other run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from moembed.serve.batching.batcher import shutting_down
from moembed.serve.errors import TOO_LONG, RequestError
from moembed.tokenizer import Tokenizer

T = TypeVar("T")
Truncate = Literal["error", "truncate", "chunk"]

_SLICE = 1 << 15  # characters tokenized at a time: about ten milliseconds
_THREADS = 2
_PER_TOKEN = 4  # characters, in a guess that only the bound of the queue hangs on


class TokenizerThreads:
    """Texts to rows. Many texts are done slice by slice, so that other requests come in between; a text
    longer than a slice goes to a thread that nobody else waits for but other such texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._short = ThreadPoolExecutor(_THREADS, "tokenize")
        self._long = ThreadPoolExecutor(1, "tokenize-long")

    async def rows(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """Token ids of every text, special tokens and prompt included, however long.

        Raises:
            UserError: a text or a prompt that is no string, or no valid Unicode.
        """
        rows: list[list[int]] = []
        for start, end in _slices(texts, len(prompt)):
            size = len(prompt) + _size(texts[start])
            pool = self._short if end - start > 1 or size <= _SLICE else self._long
            rows += await _in(pool, self._whole, texts[start:end], prompt, start)
        return rows

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Anything short that is not to hold the event loop up."""
        return await _in(self._short, function, *arguments)

    def close(self) -> None:
        """Refuse further work with 503; what has been begun ends by itself."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False)

    def _whole(self, texts: Sequence[str], prompt: str, first: int) -> list[list[int]]:
        return list(self._tokenizer.whole_rows(texts, prompt=prompt, first=first))


async def _in(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    try:
        future = pool.submit(function, *arguments)
    except RuntimeError:  # the pool is shut down
        raise shutting_down() from None
    return await asyncio.wrap_future(future)


def _size(text: object) -> int:
    return len(text) if isinstance(text, str) else 0


def _slices(texts: Sequence[str], front: int = 0) -> Iterator[tuple[int, int]]:
    """Where neighbouring texts of together at most a slice start and end, or a longer text alone.

    Args:
        front: characters that are read before each of them.
    """
    start = size = 0
    for place, text in enumerate(texts):
        if place > start and size + front + _size(text) > _SLICE:
            yield start, place
            start, size = place, 0
        size += front + _size(text)
    if start < len(texts):
        yield start, len(texts)


def guessed_tokens(inputs: Sequence[str] | Sequence[Sequence[int]], most: int | None) -> int:
    """About how many tokens will be read of inputs that are not tokenized yet, ``most`` of each."""
    sizes = (-(-len(one) // _PER_TOKEN) if isinstance(one, str) else len(one) for one in inputs)
    return sum(sizes) if most is None else sum(min(size, most) for size in sizes)


def given_rows(inputs: Sequence[Sequence[int]], tokenizer: Tokenizer, vocab_size: int) -> list[list[int]]:
    """Rows of token ids that a client sent; special tokens are put around a row that has none.

    Raises:
        RequestError: 400, an id that is none of the model's.
    """
    before, after = tokenizer.special_tokens
    rows = []
    for place, ids in enumerate(inputs):
        row = list(ids)
        for token in row:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise RequestError(
                    400,
                    f"input {place} holds {token!r}, which is no token id of this model: they are whole "
                    f"numbers within 0..{vocab_size - 1}; the ids of another model's tokenizer mean other "
                    "words here, so send text instead",
                    code="invalid_token",
                    param="input",
                )
        marked = len(row) >= len(before) + len(after) and row[: len(before)] == before
        if not (marked and row[len(row) - len(after) :] == after):
            row = [*before, *row, *after]
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rows that the model can read whole, and what they have to do with the texts of the request.

    Attributes:
        rows: one or more of each text, in the order of the texts.
        truncated: of each text, the tokens that were cut off.
        text_R: of each row, the number of its text; None: one row of each text.
        weight_R: of each row, its tokens without prompt and special ones, and at least 1.
    """

    rows: list[list[int]]
    truncated: tuple[int, ...]
    text_R: np.ndarray | None = None
    weight_R: np.ndarray | None = None


def fit(
    rows: list[list[int]], tokenizer: Tokenizer, truncate: Truncate, prompt_tokens: int, prompt: str = ""
) -> Fitted:
    """Deal with rows that are longer than the model reads.

    ``chunk`` cuts a text into consecutive pieces, each with the prompt and the special tokens around it.

    Args:
        prompt_tokens: at the start of each row, special ones included; 0 without a prompt.
        prompt: the prompt itself, for what of it stands behind the texts.

    Raises:
        RequestError: 400, a row is too long and ``truncate`` says ``error``; the prompt leaves no room.
    """
    limit = tokenizer.max_length
    none_cut = (0,) * len(rows)
    if all(len(row) <= limit for row in rows):
        return Fitted(rows, none_cut)
    if truncate == "error":
        place = next(i for i, row in enumerate(rows) if len(row) > limit)
        raise RequestError(
            400,
            f"text {place} has {len(rows[place])} tokens, and this model reads {limit}",
            code=TOO_LONG,
            param="input",
        )
    if truncate == "truncate":
        cut = [tokenizer.cut(row, prompt) for row in rows]
        lost = tuple(len(whole) - len(row) for whole, row in zip(rows, cut, strict=True))
        return Fitted(cut, lost)

    before, after = tokenizer.edges(prompt)
    head = max(before, prompt_tokens)
    room = limit - head - after
    if room < 1:
        raise RequestError(
            400,
            f"the prompt has {limit - room} of the {limit} tokens that this model reads: no room is left for "
            "text",
            code=TOO_LONG,
            param="prompt",
        )
    pieces: list[list[int]] = []
    text_of: list[int] = []
    weights: list[int] = []
    for place, row in enumerate(rows):
        body, tail = row[head : len(row) - after], row[len(row) - after :]
        for start in range(0, max(1, len(body)), room):
            piece = body[start : start + room]
            pieces.append([*row[:head], *piece, *tail])
            text_of.append(place)
            weights.append(max(1, len(piece)))
    return Fitted(pieces, none_cut, np.array(text_of), np.array(weights))


def mean_of_pieces(vector_RM: np.ndarray, fitted: Fitted) -> np.ndarray:
    """One unit vector of each text: ``normalised(sum of w_r * v_r)`` over its rows r; zeros stay."""
    if fitted.text_R is None or fitted.weight_R is None:
        return vector_RM
    start_N = np.flatnonzero(np.diff(fitted.text_R, prepend=-1))
    sum_NM = np.add.reduceat(vector_RM * fitted.weight_R[:, None], start_N, axis=0)
    norm_N1 = np.linalg.norm(sum_NM, axis=1, keepdims=True)
    mean_NM = (sum_NM / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)
    alone_N = np.diff(start_N, append=len(vector_RM)) == 1  # these stay as they are, to the bit
    mean_NM[alone_N] = vector_RM[start_N[alone_N]]
    return mean_NM
