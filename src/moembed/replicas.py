"""The same model in several processes: texts are embedded on several devices, or cores, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.encoding import FULL, Progress, Vectors, View, as_texts
from moembed.threads import available_cores
from moembed.types import UserError

T = TypeVar("T")

_PART = 512  # texts a process takes at a time


class Replicas:
    """A text encoder of one model folder in ``processes`` processes; leave the ``with`` to end them.

    On GPUs they are dealt out in turn; on a CPU the cores are shared. A vector depends on its own text alone,
    so the number of processes changes nothing but the time.

    Args:
        options: of ``Embedder.from_pretrained``, without the device.
    """

    def __init__(self, folder: Path, processes: int, options: dict[str, Any]) -> None:
        context = get_context("spawn")
        numbers = context.SimpleQueue()
        for number in range(processes):
            numbers.put(number)
        self._pool = ProcessPoolExecutor(processes, context, _load, (folder, processes, numbers, options))

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def dim(self) -> int:
        """Width of the full vector."""
        return self._ask(_dim)

    @property
    def max_length(self) -> int | None:
        """Tokens read of a text, special ones and prompt included."""
        return self._ask(_max_length)

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """As ``Embedder.space``."""
        return self._ask(_space, role, prompt, view)

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """As ``Embedder.vectors``.

        Raises:
            UserError: what the model refuses; or a process died.
        """
        listed = as_texts(texts)
        space = self.space(role=role, prompt=prompt, view=view)
        order = sorted(range(len(listed)), key=lambda i: -len(listed[i]))  # long ones first: even ends
        parts = [order[start : start + _PART] for start in range(0, len(order), _PART)]
        waiting = {
            self._pool.submit(_embed, [listed[i] for i in part], role, prompt, view): part for part in parts
        }
        vectors, truncated = np.zeros((len(listed), view.dim or self.dim), dtype=np.float32), 0
        with _alive():
            for done in as_completed(waiting):
                vector_NM, cut = done.result()
                vectors[waiting[done]] = vector_NM
                truncated += cut
                if progress:
                    progress(len(vector_NM))
        return Vectors(vectors, truncated, space)

    def _ask(self, question: Callable[..., T], *arguments: object) -> T:
        with _alive():
            return self._pool.submit(question, *arguments).result()


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a process that embeds texts died, perhaps because the memory was full: take fewer processes"
        ) from None


_model: Embedder | UserError  # of a process of the pool, or why there is none


def _load(folder: Path, processes: int, numbers: Any, options: dict[str, Any]) -> None:
    global _model
    number = numbers.get()
    if torch.cuda.is_available():
        device = f"cuda:{number % torch.cuda.device_count()}"
    else:
        device = "cpu"
        torch.set_num_threads(max(1, available_cores() // processes))
    try:
        _model = Embedder.from_pretrained(folder, device=device, **options)
    except UserError as error:
        _model = error


def _loaded() -> Embedder:
    if isinstance(_model, UserError):
        raise _model
    return _model


def _embed(texts: list[str], role: str | None, prompt: str | None, view: View) -> tuple[np.ndarray, int]:
    model = _loaded()
    rows, truncated = model.rows(texts, role=role, prompt=prompt)
    known = model.prompt_tokens(role=role, prompt=prompt)
    tags = model.tag_numbers(texts, role=role, prompt=prompt)
    return model.embed(rows, view, prompt_tokens=known, tags=tags), truncated


def _dim() -> int:
    return _loaded().dim


def _max_length() -> int:
    return _loaded().max_length


def _space(role: str | None, prompt: str | None, view: View) -> str:
    return _loaded().space(role=role, prompt=prompt, view=view)
