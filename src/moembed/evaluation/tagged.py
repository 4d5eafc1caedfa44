"""The language of a task's texts, for models that choose experts, or prompts, by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task
from moembed.tokenizer import Tokenizer

if TYPE_CHECKING:
    from moembed.embedder import Embedder


def language(task: Task) -> str | None:
    """The language that every item of the task has; None: there are several, or it is not known."""
    if isinstance(task, RetrievalTask):
        found = {task.language.get(query) for query in task.query_ids}
    else:
        found = set(task.language)
    return found.pop() or None if len(found) == 1 else None


def in_language(tokenizer: Tokenizer, language: str | None) -> Tokenizer:
    """With the prompts that are for ``language``: ``query-ja`` stands in for ``query`` in Japanese."""
    prompts = tokenizer.prompts
    own = {name: prompts[f"{name}-{language}"] for name in prompts if f"{name}-{language}" in prompts}
    return tokenizer.replaced(prompts=prompts | own) if language and own else tokenizer


@contextmanager
def tagged(model: Embedder, task: Task) -> Iterator[None]:
    """While the texts of ``task`` are embedded: its language decides what the model does by language.

    Texts without a tag have that of the language, and prompts are those `in_language`. Nothing changes for a
    model that has neither. Tags that are roles, or that the model was told (``model.tag``), stay: there the
    model decides, and refuses where it cannot.
    """
    tags, tag, tokenizer = model.tags, model.tag, model.tokenizer
    own = language(task)
    if tags is not None and tag is None and not tags.by_role and own in tags.names:
        model.tag = own
    model.tokenizer = in_language(tokenizer, own)
    try:
        yield
    finally:
        model.tag, model.tokenizer = tag, tokenizer
