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
        tags = _tag_numbers(model, some, language)
        for stats in _routed(model, some, tags):
            loads.setdefault(str(stats.layer), {})[language] = stats.load_E.tolist()
    return loads


def _texts_and_languages(task: Task) -> Iterator[tuple[str, str]]:
    if isinstance(task, RetrievalTask):
        for text, query in zip(task.queries, task.query_ids, strict=True):
            yield text, task.language.get(query, "")
    else:
        texts = task.sentence1 if isinstance(task, PairTask) else task.texts
        yield from zip(texts, task.language, strict=True)


def _tag_numbers(model: Embedder, texts: list[str], language: str) -> list[int] | None:
    known = model.tags is not None and language in model.tags.names
    return model.tag_numbers(texts, role="query", tag=language if known else None)


def _routed(model: Embedder, texts: Sequence[str], tags: Sequence[int] | None) -> list[RouterStats]:
    rows, _ = model.tokenizer.rows(texts)
    total: list[RouterStats] = []
    for group in token_budget([len(row) for row in rows], _TOKENS):
        own = None if tags is None else [tags[i] for i in group]
        zeros = [0] * len(group)  # prompts matter to vectors, which are not looked at
        batch = pack([rows[i] for i in group], prompt_tokens=zeros, tags=own)
        found = model(batch.to(model.device)).router
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total
