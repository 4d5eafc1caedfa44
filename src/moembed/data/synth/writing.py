"""Documents -> questions -> answers -> rows of pairs, with where each came from.

All questions are asked first, several documents at a time; rows are then made of the answers alone, in the
order of the documents, so they do not depend on which answer came first, or on how often a run was stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

from pydantic import Field, model_validator

from moembed.config import Strict
from moembed.data.dedup import SeenTexts
from moembed.data.synth.answers import AnswerLog
from moembed.data.synth.checks import problem, texts_of
from moembed.data.synth.documents import Document, Documents
from moembed.data.synth.generators import Answer, Generator, Question, RefusedError
from moembed.data.synth.templates import Kind, Template, Templates
from moembed.types import UserError

Row = dict[str, Any]

_TRIED = 5  # questions refused, and none answered now or earlier, before the generator is given up


class SynthConfig(Strict):
    """How many texts of each kind a document gets (0: none), and how they are asked for.

    ``hard_negatives`` are those of every query. ``near``: queries, and paraphrases, this similar to an
    earlier one are left out (1: equal ones alone). What is null is not sent.
    """

    queries: int = Field(3, ge=0, le=100)
    paraphrases: int = Field(0, ge=0, le=100)
    hard_negatives: int = Field(0, ge=0, le=100)
    temperature: float | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    near: float = Field(0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _something_to_write(self) -> SynthConfig:
        if not (self.queries or self.paraphrases):
            raise ValueError("nothing is asked for: set queries or paraphrases above 0")
        if self.hard_negatives and not self.queries:
            raise ValueError("hard negatives are those of queries: set queries above 0")
        return self


@dataclass(slots=True)
class Tally:
    """What became of the texts: kept ones by kind, the others by kind and reason."""

    kept: Counter[Kind] = field(default_factory=Counter)
    rejected: dict[Kind, Counter[str]] = field(default_factory=dict)

    def reject(self, kind: Kind, reason: str) -> None:
        self.rejected.setdefault(kind, Counter())[reason] += 1


Ask = Callable[[Question], Answer]


class Writer:
    """Asks the questions of documents, and makes rows of the answers."""

    def __init__(
        self, config: SynthConfig, templates: Templates, generator: Generator, log: AnswerLog
    ) -> None:
        self.config, self.templates = config, templates.by_kind()
        self.generator, self.log = generator, log
        self.asked = self.reused = self.tokens_in = self.tokens_out = 0
        self.refused: list[str] = []
        self._lock, self._stopped = Lock(), Event()

    # ---- asking ------------------------------------------------------------------------------------------

    def ask_all(self, documents: Documents, advance: Callable[[int], object]) -> None:
        """Have an answer in the log for every question.

        On an error and on Ctrl-C no new question is asked, and those on their way are waited for and kept.

        Raises:
            UserError: the generator does not answer.
        """
        pool = ThreadPoolExecutor(self.generator.at_once, "moembed-synth")
        pending: set[Future[None]] = set()
        try:
            for document in documents:
                pending.add(pool.submit(self._ask_of, document))
                if len(pending) >= 2 * self.generator.at_once:
                    pending = _finish(pending, advance)
            while pending:
                pending = _finish(pending, advance)
        except BaseException:
            self._stopped.set()
            self.generator.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask_of(self, document: Document) -> None:
        for _ in self._drafts(document, self._ask, Tally()):
            pass

    def _ask(self, question: Question) -> Answer:
        key = question.key(self.generator)
        known = self.log.get(key)
        if known:
            with self._lock:
                self.reused += 1
            return known
        if self._stopped.is_set():
            raise UserError("stopped before this question was asked")
        try:
            answer = self.generator.answer(question)
        except RefusedError as error:
            with self._lock:
                self.refused.append(str(error))
                if len(self.refused) >= _TRIED and not (self.asked or self.reused):
                    raise UserError(f"the first {_TRIED} questions were refused: {error}") from None
            raise
        self.log.add(key, answer)
        with self._lock:
            self.asked += 1
            self.tokens_in += answer.tokens_in
            self.tokens_out += answer.tokens_out
        return answer

    # ---- rows --------------------------------------------------------------------------------------------

    def rows(self, documents: Documents, tally: Tally) -> Iterator[Row]:
        """The rows of all answers, without repeated ones: ``query``, ``document``, ``provenance`` …"""
        near = None if self.config.near == 1 else self.config.near
        seen = {"query": SeenTexts(near), "paraphrase": SeenTexts(near)}
        for document in documents:
            for row in self._drafts(document, self._known, tally, seen):
                kind: Kind = row["provenance"]["kind"]
                tally.kept[kind] += 1
                tally.kept["hard_negative"] += len(row.get("negatives", ()))
                yield row

    def _known(self, question: Question) -> Answer:
        answer = self.log.get(question.key(self.generator))
        if answer is None:
            raise RefusedError
        return answer

    def _drafts(
        self, document: Document, ask: Ask, tally: Tally, seen: dict[str, SeenTexts] | None = None
    ) -> Iterator[Row]:
        config = self.config
        for text, source in self._texts("query", document, "", config.queries, ask, tally):
            if seen and not seen["query"].add(text):
                tally.reject("query", "repeated")
                continue
            row: Row = {"query": text, "document": document.text}
            wrong = list(self._texts("hard_negative", document, text, config.hard_negatives, ask, tally))
            if wrong:
                row["negatives"] = [negative for negative, _ in wrong]
                source = source | {"negatives": wrong[0][1]}
            yield _labelled(row, document, source)
        for text, source in self._texts("paraphrase", document, "", config.paraphrases, ask, tally):
            if seen and not seen["paraphrase"].add(text):
                tally.reject("paraphrase", "repeated")
                continue
            yield _labelled({"query": document.text, "document": text}, document, source)

    def _texts(
        self, kind: Kind, document: Document, query: str, count: int, ask: Ask, tally: Tally
    ) -> Iterator[tuple[str, Row]]:
        """The texts of a kind that can be used, and where they come from."""
        if not count:
            return
        config, template = self.config, self.templates[kind]
        prompt = template.fill(document.text, query, count)
        question = Question(template.system, prompt, config.temperature, config.seed, config.max_tokens)
        try:
            answer = ask(question)
        except RefusedError:
            tally.reject(kind, "refused")
            return
        found = texts_of(answer)
        if isinstance(found, str):
            tally.reject(kind, found)
            return
        for _ in found[count:]:
            tally.reject(kind, "more than asked for")
        longest = template.longest or 2 * len(document.text) + 200
        originals, earlier = [document.text, query] if query else [document.text], list[str]()
        for value in found[:count]:
            text = value.strip() if isinstance(value, str) else value
            if reason := problem(text, originals, earlier, longest):
                tally.reject(kind, reason)
                continue
            earlier.append(text)
            yield text, self._source(kind, answer)

    def _source(self, kind: Kind, answer: Answer) -> Row:
        template: Template = self.templates[kind]
        return {
            "kind": kind, "generator": self.generator.name, "model": answer.model, "template": template.hash,
            "temperature": self.config.temperature, "seed": self.config.seed,
        }  # fmt: skip


def _labelled(row: Row, document: Document, source: Row) -> Row:
    language = {"language": document.language} if document.language else {}
    group = f"synthetic-{source['kind']}"
    return row | language | {"source": group, "provenance": source | {"document_id": document.id}}


def _finish(pending: set[Future[None]], advance: Callable[[int], object]) -> set[Future[None]]:
    """Wait for one document at least; an error of any is raised."""
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        advance(1)
    return set(rest)
