"""The language of a task's texts, for models that choose experts, or prompts, by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from moembed.data.text_key import text_key
from moembed.encoding import ROLES
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

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


def with_wrong_tags(texts: list[str], tag: str, others: list[str], share: float) -> list[str]:
    """``tag`` for every text, but for a share of them one of ``others``, each as likely.

    A text decides by its hash, so the same text has the same tag wherever it stands.
    """
    found = []
    for text in texts:
        key = text_key(text)
        drawn, which = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        found.append(others[which % len(others)] if drawn < share * 2**64 else tag)
    return found


def in_language(tokenizer: Tokenizer, language: str | None) -> Tokenizer:
    """With the prompts that are for ``language``: ``query-ja`` stands in for ``query`` in Japanese."""
    own = _prompts_in(tokenizer.prompts, language)
    return tokenizer.replaced(prompts=tokenizer.prompts | own) if own else tokenizer


def _prompts_in(prompts: Mapping[str, str], language: str | None) -> dict[str, str]:
    if not language:
        return {}
    return {name: prompts[f"{name}-{language}"] for name in prompts if f"{name}-{language}" in prompts}


@contextmanager
def tagged(model: Embedder, task: Task, wrong: float = 0.0) -> Iterator[None]:
    """While the texts of ``task`` are embedded: its language decides what the model does by language.

    Texts without a tag have that of the language, and prompts are those `in_language`. Nothing changes for a
    model that has neither. Tags that are roles, or that the model was told (``model.tag``), stay: there the
    model decides, and refuses where it cannot.

    Args:
        wrong: share of the texts that get another tag of the model instead, to see what that costs.

    Raises:
        UserError: tags should be wrong, and there is no language of the task that the model has, or no other.
    """
    tags, tag, tokenizer = model.tags, model.tag, model.tokenizer
    own = language(task)
    if tags is not None and tag is None and not tags.by_role and own in tags.names:
        model.tag = own
    if wrong and tags is not None:
        others = [name for name in tags.names if name != own]
        if model.tag != own or own is None or tag is not None or not others:
            model.tag = tag
            raise UserError(
                f"no tag of {task.name} can be replaced: wrong tags need a task of one language that is a "
                f"tag of the model ({', '.join(tags.names)}), another tag, and no MOEMBED_TAG"
            )
        model.tag = partial(with_wrong_tags, tag=own, others=others, share=wrong)
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
