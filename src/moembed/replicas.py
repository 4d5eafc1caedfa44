"""The same model in several processes: texts are embedded on several devices, or cores, at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.types import UserError

_PART = 512  # texts a process takes at a time


class Replicas:
    """``encode_counted`` of one model folder by ``processes`` processes; leave the ``with`` to end them.

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

    def encode_counted(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, int]:
        """As ``Embedder.encode_counted``.

        Raises:
            UserError: what the model refuses; or a process died.
        """
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # long ones first: even ends
        parts = [order[start : start + _PART] for start in range(0, len(order), _PART)]
        waiting: dict[Future[tuple[np.ndarray, int]], list[int]] = {
            self._pool.submit(_encode, [texts[i] for i in part], prompt_name): part for part in parts
        }
        vectors, truncated = np.empty((len(texts), 0), dtype=np.float32), 0
        try:
            for done in as_completed(waiting):
                vector_NM, cut = done.result()
                if not vectors.shape[1]:
                    vectors = np.empty((len(texts), vector_NM.shape[1]), dtype=np.float32)
                vectors[waiting[done]] = vector_NM
                truncated += cut
                if progress:
                    progress(len(vector_NM))
        except BrokenProcessPool:
            raise UserError(
                "a process that embeds texts died, perhaps for want of memory: take fewer processes"
            ) from None
        return vectors, truncated


_model: Embedder  # of a process of the pool


def _load(folder: Path, processes: int, numbers: Any, options: dict[str, Any]) -> None:
    global _model
    number = numbers.get()
    if torch.cuda.is_available():
        device = f"cuda:{number % torch.cuda.device_count()}"
    else:
        device = "cpu"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    _model = Embedder.from_pretrained(folder, device=device, **options)


def _encode(texts: list[str], prompt_name: str | None) -> tuple[np.ndarray, int]:
    return _model.encode_counted(texts, prompt_name)
