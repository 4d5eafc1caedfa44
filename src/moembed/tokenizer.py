"""Texts -> token rows -> a packed Batch.

``Tokenizer.rows(["What is MoE?"], prompt="search_query: ")`` puts the prompt in front, adds the special
tokens, cuts at ``max_length`` (special tokens included) and says how many texts were cut. It changes
nothing that other threads see. ``pack`` lays rows end to end, shortest first, so that texts of equal length
stand side by side and nothing is ever computed on padding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from moembed.packing import pack
from moembed.prompts import split_prompt
from moembed.types import Batch, UserError

_Item = TypeVar("_Item")

_CHARACTERS = 1 << 20  # of the texts that the backend holds as encodings at one time
_PROBES = ("a", "the", "0", ".", "一")  # texts that show where the special tokens stand


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """How a query and a document become one text, and what stands around it, whatever its length.

    Attributes:
        before, after: tokens of these texts stand before and behind and are never cut.
        pair: ``{query}`` and ``{document}`` in it are replaced.
    """

    before: str
    pair: str
    after: str

    def text(self, query: str, document: str) -> str:
        """What is cut where it is too long, at its end."""
        front, _, rest = self.pair.partition("{query}")
        middle, _, end = rest.partition("{document}")
        return f"{front}{query}{middle}{document}{end}"


class Tokenizer:
    """A ``tokenizers`` backend together with the prompts and the length limit the model was made with.

    One object serves many threads: after construction nothing in it changes.

    Args:
        backend: its own truncation and padding settings are switched off, once, here.
        max_length: tokens per text, special tokens included.
        prompts: text in front by name, for instance ``{"query": "search_query: "}``, or around, with ``{}``.
        default_prompt: name of the prompt used for a role that has none of its own, or None.
        truncation_side: the end of a text that a cut takes tokens from.
    """

    def __init__(
        self,
        backend: Backend,
        max_length: int,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
        truncation_side: Literal["right", "left"] = "right",
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.max_length = max_length
        self.prompts = dict(prompts or {})
        self.default_prompt = default_prompt
        self.pair_template: PairTemplate | None = None  # of a reranker that is asked in words
        self.truncation_side = truncation_side
        self.prompt(default_prompt)  # refuse a default that names nothing

    def replaced(
        self,
        backend: Backend | None = None,
        max_length: int | None = None,
        prompts: dict[str, str] | None = None,
    ) -> Tokenizer:
        """The same with another backend, another limit, or other prompts."""
        made = Tokenizer(
            backend or self.backend,
            max_length or self.max_length,
            self.prompts if prompts is None else prompts,
            self.default_prompt,
            self.truncation_side,
        )
        made.pair_template = self.pair_template
        return made

    def prompt(self, name: str | None) -> str:
        """The prompt called ``name``; None means no prompt."""
        if name is None:
            return ""
        if not isinstance(name, str):
            raise UserError(f"the name of a prompt must be a string, not a {type(name).__name__}")
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            close = difflib.get_close_matches(name, self.prompts, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"this model has no prompt named {name!r} (known: {known}){hint}")
        return self.prompts[name]

    def rows(
        self, texts: Sequence[str], *, prompt: str = "", max_length: int | None = None
    ) -> tuple[list[list[int]], int]:
        """Token ids of every text and the number of texts that were cut.

        A cut text keeps its special tokens: the limit takes tokens of the text, from its ``truncation_side``.
        Of a prompt that stands around it, nothing is cut; one in front is cut as the text is.

        Args:
            prompt: put in front of every text, as it is, or with ``{}`` around it.
            max_length: a lower limit than the model's own, for this call.

        Raises:
            UserError: a text or a prompt that is no string, or no valid Unicode; a limit below the number of
                special tokens.
        """
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        check_prompt(prompt)
        before, after = self.edges(prompt)
        if limit < max(before + after, 1):
            around = "the prompt and the special tokens" if split_prompt(prompt)[1] else "the special tokens"
            raise UserError(
                f"max_length {limit} is too short: {around} alone are {before + after}; "
                f"take at least {before + after + 1}"
            )
        rows: list[list[int]] = []
        truncated = 0
        for ids in self.whole_rows(texts, prompt=prompt):
            if len(ids) > limit:
                truncated += 1
                ids = self._cut(ids, limit, before, after)
            rows.append(ids)
        return rows, truncated

    def whole_rows(self, texts: Sequence[str], *, prompt: str = "", first: int = 0) -> Iterator[list[int]]:
        """Token ids of every text, special tokens and prompt included, however long.

        Args:
            first: the number of the first text, for messages.

        Raises:
            UserError: a text or a prompt that is no string, or no valid Unicode.
        """
        check_prompt(prompt)
        front, behind = split_prompt(prompt)
        for some in _blocks(texts):
            try:
                encodings = self.backend.encode_batch_fast([front + text + behind for text in some])
            except TypeError:
                raise UserError(_complaint(texts, first)) from None
            for encoding in encodings:
                yield encoding.ids
            del encodings  # before the next block is made: of a long text they take a hundred times its ids

    def cut(self, row: list[int], prompt: str = "") -> list[int]:
        """A row of any length as ``rows`` gives it: at most ``max_length`` tokens, special ones kept."""
        return row if len(row) <= self.max_length else self._cut(row, self.max_length, *self.edges(prompt))

    def edges(self, prompt: str) -> tuple[int, int]:
        """How many tokens at the start of a text, and how many at its end, no cut takes away.

        They are special tokens and, where something stands behind the text, the whole prompt. Its two parts
        are counted by themselves, as in ``prompt_tokens``.
        """
        before, after = self._special_tokens
        front, behind = split_prompt(prompt)
        if not behind:
            return before, after
        added = len(self.backend.encode(behind, add_special_tokens=False).ids)
        return max(before, self.prompt_tokens(front)), after + added

    def batch(self, texts: Sequence[str], *, prompt: str = "", max_length: int | None = None) -> Batch:
        """The rows of the texts as a packed batch."""
        rows, truncated = self.rows(texts, prompt=prompt, max_length=max_length)
        return pack(rows, truncated)

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens at the start of a text are those of its prompt, special ones before it included.

        They are counted on the prompt alone, as sentence-transformers does: where the first word of a text
        grows together with the prompt, it counts as text from its second piece on. 0 of no prompt.
        """
        front, _ = split_prompt(prompt)
        if not front:
            return 0
        (row,), _ = self.rows([""], prompt=front)
        return len(row) - self._special_tokens[1]

    def word_rows(self, texts: Sequence[str], *, prompt: str = "") -> list[list[str | None]]:
        """For every token of ``rows``, the word of the text that it is a piece of; None for a special token.

        Where a tokenizer does not divide texts into words, a piece stands for itself.
        """
        check_prompt(prompt)
        before, after = self.edges(prompt)
        front, behind = split_prompt(prompt)
        found = []
        for some in _blocks(texts):
            whole = [front + text + behind for text in some]
            for text, encoding in zip(whole, self.backend.encode_batch(whole), strict=True):
                words = _words_of_tokens(text, encoding)
                if len(words) > self.max_length:
                    words = self._cut(words, self.max_length, before, after)
                found.append(words)
        return found

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Tokens as people read them: ``##ing`` is the rest of a word, ``▁the`` begins one after a space.

        A token that holds a part of a letter, and one beyond the vocabulary, is written as it is stored.
        """
        bytes_of_text = isinstance(self.backend.decoder, decoders.ByteLevel)
        found = []
        for token in ids:
            stored = self.backend.id_to_token(token)
            read = self.backend.decode([token], skip_special_tokens=False) if bytes_of_text else ""
            whole = read and "\ufffd" not in read
            found.append(read.replace(" ", "▁") if whole else stored if stored is not None else str(token))
        return found

    def _cut(self, ids: list[_Item], limit: int, before: int, after: int) -> list[_Item]:
        kept, end = limit - before - after, len(ids) - after
        inner = ids[before : before + kept] if self.truncation_side == "right" else ids[end - kept : end]
        return ids[:before] + inner + ids[end:]

    @property
    def num_special_tokens(self) -> int:
        """How many special tokens stand around a text."""
        return sum(self._special_tokens)

    @property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """The special tokens that stand before a text, and those behind it."""
        (row,), (before, after) = self.whole_rows([_PROBES[0]]), self._special_tokens
        return row[:before], row[len(row) - after :]

    @property
    def ends_texts(self) -> bool:
        """Whether a special token stands behind every text."""
        return self._special_tokens[1] > 0

    @cached_property
    def _special_tokens(self) -> tuple[int, int]:
        """How many special tokens the backend puts before a text and after it."""
        count = self.backend.num_special_tokens_to_add(False)
        for probe in _PROBES:
            bare = self.backend.encode(probe, add_special_tokens=False).ids
            whole = self.backend.encode(probe).ids
            for before in range(count + 1):
                if bare and whole[before : len(whole) - count + before] == bare:
                    return before, count - before
        return count, 0


def _words_of_tokens(text: str, encoding: Any) -> list[str | None]:
    spans: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if word is not None and start < end:
            first, last = spans.get(word, (start, end))
            spans[word] = (min(first, start), max(last, end))
    found: list[str | None] = []
    for word, (start, end), special in zip(
        encoding.word_ids, encoding.offsets, encoding.special_tokens_mask, strict=True
    ):
        whole = text[slice(*spans.get(word, (start, end)))].strip()
        one_word = whole and len(whole.split()) == 1
        found.append(None if special else whole if one_word else text[start:end].strip() or " ")
    return found


def check_prompt(prompt: object) -> None:
    """Raise UserError unless this can be put in front of a text, or around it."""
    if not isinstance(prompt, str):
        raise UserError(f"the prompt must be a string, not a {type(prompt).__name__}")
    split_prompt(prompt)
    require_unicode(prompt, "the prompt")


def require_unicode(text: str, what: str) -> None:
    """Raise UserError where a text holds half of a surrogate pair, which no tokenizer reads."""
    if _has_surrogate(text):
        raise UserError(f"{what} {text!r} is not valid Unicode: it holds half of a surrogate pair")


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbouring texts of together at most ``_CHARACTERS`` characters, or a longer text alone."""
    start = room = 0
    for place, text in enumerate(texts):
        size = len(text) if isinstance(text, str) else 0
        if place > start and size > room:
            yield texts[start:place]
            start = place
        room = (room if place > start else _CHARACTERS) - size
    if start < len(texts):
        yield texts[start:]


def _complaint(texts: Sequence[object], first: int = 0) -> str:
    """What is wrong with the first text that is none."""
    for position, text in enumerate(texts, first):
        if not isinstance(text, str):
            return f"text {position} is a {type(text).__name__}, not a string"
        if _has_surrogate(text):
            return f"text {position} is not valid Unicode: it holds half of a surrogate pair"
    raise AssertionError("every text is well")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
