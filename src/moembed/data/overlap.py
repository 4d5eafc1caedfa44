"""How much of an evaluation a model has seen in training: texts that are equal, or that share long word runs.

A training text *contains* a task text if at least a given share of the task text's n-grams of words occur in
it. Runs of 13 words were the unit of GPT-3's report (Brown et al., 2020, arXiv:2005.14165, appendix C).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moembed.data.scripts import UNSPACED
from moembed.data.text_key import normalize, text_key
from moembed.types import Pair, UserError

_PUNCTUATION = "!-/:-@\\[-`{-~\u00a1-\u00bf\u060c\u061b\u061f\u0964\u2000-\u206f\u3000-\u303f"
# In scripts that put no blanks between words, every character counts as one.
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{_PUNCTUATION}{UNSPACED}]+")


Texts = Mapping[str, Sequence[str]]  # by task


@dataclass(slots=True)
class Overlap:
    """What the texts of a source share with the texts of a task.

    ``equal`` and ``containing`` count texts of the source: those equal to one of the task after
    normalisation, and those that are not but contain one. ``seen`` are the places of the task's texts found.
    """

    equal: int = 0
    containing: int = 0
    seen: set[int] = field(default_factory=set)
    examples: list[tuple[str, str]] = field(default_factory=list)  # (text of the source, text of the task)


class TaskTexts:
    """The texts of several tasks, to be looked up; ``sizes`` says how many of each.

    Raises:
        UserError: a containment outside (0, 1] or runs of less than one word.
    """

    def __init__(self, tasks: Texts, ngram: int = 13, containment: float = 0.5) -> None:
        if not 0 < containment <= 1 or ngram < 1:
            raise UserError(f"containment {containment} must be in (0, 1] and ngram {ngram} at least 1")
        self.sizes = {task: len(texts) for task, texts in tasks.items()}
        self._texts = [(task, place, text) for task in tasks for place, text in enumerate(tasks[task])]
        self._ngram = ngram
        self._with_key: dict[bytes, list[int]] = defaultdict(list)
        self._with_gram: dict[int, list[int]] = defaultdict(list)
        self._needed: list[float] = []
        for number, (_, _, text) in enumerate(self._texts):
            self._with_key[text_key(text)].append(number)
            grams = ngrams(text, ngram)
            self._needed.append(containment * len(grams))
            for gram in grams:
                self._with_gram[gram].append(number)

    def look_up(self, text: str, found: Mapping[str, Overlap], examples: int) -> None:
        """Note in ``found``, task by task, what ``text`` equals and contains."""
        equal, contained = self._matches(text)
        of_task: dict[str, list[int]] = defaultdict(list)
        for number in [*equal, *contained]:
            of_task[self._texts[number][0]].append(number)
        for task, numbers in of_task.items():
            overlap = found[task]
            overlap.seen.update(self._texts[number][1] for number in numbers)
            if numbers[0] in equal:
                overlap.equal += 1
            else:
                overlap.containing += 1
            if len(overlap.examples) < examples:
                overlap.examples.append((text, self._texts[numbers[0]][2]))

    def holds(self, text: str) -> bool:
        """Whether ``text`` equals or contains a text of any task."""
        return any(self._matches(text))

    def _matches(self, text: str) -> tuple[list[int], list[int]]:
        """The texts that ``text`` equals, and those that it contains and does not equal."""
        equal = self._with_key.get(text_key(text), [])
        shared = Counter(n for gram in ngrams(text, self._ngram) for n in self._with_gram.get(gram, ()))
        contained = [n for n, count in shared.items() if count >= self._needed[n] and n not in equal]
        return equal, contained


def find_overlap(
    pairs: Iterable[Pair], queries: TaskTexts, documents: TaskTexts, examples: int = 3
) -> list[dict[str, Any]]:
    """Compare training queries with the queries of tasks, and training documents with their documents.

    Hard negatives do not count: they are not taught as answers.

    Returns:
        For every task and role: ``task``, ``role``, ``equal``, ``containing`` (see ``Overlap``),
        ``task_texts``, how many of those were ``seen``, ``examples``.
    """
    known = {"query": queries, "document": documents}
    found = {role: {task: Overlap() for task in texts.sizes} for role, texts in known.items()}
    for pair in pairs:
        queries.look_up(pair.query, found["query"], examples)
        documents.look_up(pair.document, found["document"], examples)
    return [
        {
            "task": task,
            "role": role,
            "equal": overlap.equal,
            "containing": overlap.containing,
            "task_texts": known[role].sizes[task],
            "seen": len(overlap.seen),
            "examples": [{"training": mine, "task": theirs} for mine, theirs in overlap.examples],
        }
        for role, by_task in found.items()
        for task, overlap in by_task.items()
    ]


def ngrams(text: str, size: int) -> set[int]:
    """Hashes of all runs of ``size`` words of the normalised text, valid within this process."""
    words = _WORD.findall(normalize(text))
    return {hash(tuple(words[i : i + size])) for i in range(len(words) - size + 1)}
