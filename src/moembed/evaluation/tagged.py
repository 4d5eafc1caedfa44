"""The language of a task's texts, for models that choose experts, or prompts, by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from moembed.encoding import ROLES
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task
from moembed.tokenizer import Tokenizer

if TYPE_CHECKING:
    from moembed.client.model import Client
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
    own = _prompts_in(tokenizer.prompts, language)
    return tokenizer.replaced(prompts=tokenizer.prompts | own) if own else tokenizer


def _prompts_in(prompts: Mapping[str, str], language: str | None) -> dict[str, str]:
    if not language:
        return {}
    return {name: prompts[f"{name}-{language}"] for name in prompts if f"{name}-{language}" in prompts}


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


@contextmanager
def served_tagged(model: Client, task: Task) -> Iterator[None]:
    """As `tagged`, for a model on a server: the tag is sent with every text, and the prompt too.

    Where no tag is known (several languages, or one without experts), none is sent: the server refuses, or
    takes its default, of which the client warns.
    """
    info, tag = model.info, model.tag
    own = language(task)
    if tag is None and own in info.tags and not set(info.tags) <= set(ROLES):
        model.tag = own
    model.info = replace(info, prompts={**info.prompts, **_prompts_in(info.prompts, own)})
    try:
        yield
    finally:
        model.info, model.tag = info, tag
