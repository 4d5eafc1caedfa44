"""Many texts as token rows, window after window, the next one in the making while the last is embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from moembed.tokenizer import Tokenizer

_WINDOW = 4096  # texts that are tokens at one time

Rows = tuple[list[list[int]], int]  # token ids of every text, and how many texts were cut


def windows(tokenizer: Tokenizer, texts: Sequence[str], prompt: str) -> Iterator[Rows]:
    """``tokenizer.rows`` of all texts, in their order; nothing of no texts."""
    if len(texts) <= _WINDOW:
        if texts:
            yield tokenizer.rows(texts, prompt=prompt)
        return
    with ThreadPoolExecutor(1) as thread:
        waiting: list[Future[Rows]] = []
        for start in range(0, len(texts), _WINDOW):
            window = texts[start : start + _WINDOW]
            waiting.append(thread.submit(tokenizer.rows, window, prompt=prompt))
            if len(waiting) > 1:
                yield waiting.pop(0).result()
        yield waiting.pop().result()
