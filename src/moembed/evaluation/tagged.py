"""The tag of a task's texts, for models that choose experts by the language of a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task

if TYPE_CHECKING:
    from moembed.embedder import Embedder


def language(task: Task) -> str | None:
    """The language that every item of the task has; None: there are several, or it is not known."""
    if isinstance(task, RetrievalTask):
        found = {task.language.get(query) for query in task.query_ids}
    else:
        found = set(task.language)
    return found.pop() or None if len(found) == 1 else None


@contextmanager
def tagged(model: Embedder, task: Task) -> Iterator[None]:
    """While the texts of ``task`` are embedded: those without a tag have that of the task's language.

    Nothing changes for a model without such a tag, whose tags are roles, or that was told what tag texts have
    (``model.tag``): there the model decides, and refuses where it cannot.
    """
    tags, before = model.tags, model.tag
    own = language(task)
    if tags is not None and before is None and not tags.by_role and own in tags.names:
        model.tag = own
    try:
        yield
    finally:
        model.tag = before
