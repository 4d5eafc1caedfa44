"""Which experts the texts of each language go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import PairTask, Task
from moembed.evaluation.result import Routers
from moembed.packing import pack, token_budget
from moembed.types import RouterStats

_TEXTS = 64  # of a language
_TOKENS = 8192  # computed at a time


@torch.inference_mode()
def routing(model: Embedder, tasks: Sequence[Task]) -> Routers:
    """``[layer][language]`` -> the share of every expert, by a language's first texts; {} if dense."""
    texts: dict[str, list[str]] = {}
    for task in tasks:
        for text, language in _texts_and_languages(task):
            known = texts.setdefault(language or "unknown", [])
            if len(known) < _TEXTS:
                known.append(text)
    loads: Routers = {}
    for language, some in texts.items():
        for stats in _routed(model, some):
            loads.setdefault(str(stats.layer), {})[language] = stats.load_E.tolist()
    return loads


def _texts_and_languages(task: Task) -> Iterator[tuple[str, str]]:
    if isinstance(task, RetrievalTask):
        for text, query in zip(task.queries, task.query_ids, strict=True):
            yield text, task.language.get(query, "")
    else:
        texts = task.sentence1 if isinstance(task, PairTask) else task.texts
        yield from zip(texts, task.language, strict=True)


def _routed(model: Embedder, texts: Sequence[str]) -> list[RouterStats]:
    rows, _ = model.tokenizer.rows(texts)
    total: list[RouterStats] = []
    for group in token_budget([len(row) for row in rows], _TOKENS):
        batch = pack([rows[i] for i in group], prompt_tokens=[0] * len(group))  # vectors are not looked at
        found = model(batch.to(model.device)).router
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total
