"""A query and a document as one row of tokens: what a reranker reads.

Both are read by themselves, cut together where they are too long, and put between the special tokens that the
model was made with. The ids, the types and the cut are those of transformers with
``truncation="longest_first"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moembed.tokenizer import PairTemplate, Tokenizer, require_unicode
from moembed.types import UserError

_PAIRS, _CHARACTERS = 256, 1 << 20  # of the pairs that are encodings at one time


@dataclass(frozen=True, slots=True)
class PairRows:
    """Pairs as tokens.

    Attributes:
        ids: of every pair.
        types: of every token, row by row; None: the model tells the two texts apart by the special tokens.
        cut: tokens of the texts that were left out, of each pair.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    cut: list[int]


def pair_rows(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], types: bool, max_length: int | None = None
) -> PairRows:
    """Pairs (query, document) as tokens.

    Args:
        types: whether the model has a row for the type of each text.
        max_length: a lower limit than the tokenizer's, special tokens included.

    Raises:
        UserError: a text that is no string or no valid Unicode; a limit with no room for a text.
    """
    limit = tokenizer.max_length if max_length is None else min(max_length, tokenizer.max_length)
    if tokenizer.pair_template:
        return _in_words(tokenizer, pairs, tokenizer.pair_template, limit)
    found = PairRows([], [] if types else None, [])
    for start, some in _blocks(pairs):
        try:
            encodings = tokenizer.backend.encode_batch_fast(some)
        except TypeError:
            raise UserError(_complaint(some, start)) from None
        for encoding in encodings:
            _add(found, encoding.ids, encoding.type_ids, encoding.sequence_ids, limit, tokenizer)
    return found


def _in_words(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], template: PairTemplate, limit: int
) -> PairRows:
    """Pairs as one text each, cut at its end, between the tokens that stand around every pair."""
    encode = tokenizer.backend.encode
    before, after = (encode(text, add_special_tokens=False).ids for text in (template.before, template.after))
    room = limit - len(before) - len(after)
    if room < 1:
        raise UserError(
            f"max_length {limit} is too short: the words around a pair alone are {limit - room} tokens; "
            f"take at least {limit - room + 2}"
        )
    found = PairRows([], None, [])
    for start, some in _blocks(pairs):
        for pair in some:
            if not all(isinstance(text, str) for text in pair):
                raise UserError(_complaint(some, start))
        texts = [template.text(*pair) for pair in some]
        try:
            encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            raise UserError(_complaint(some, start)) from None
        for encoding in encodings:
            found.ids.append([*before, *encoding.ids[:room], *after])
            found.cut.append(max(0, len(encoding.ids) - room))
    return found


def _blocks(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Neighbouring pairs that are read together, each block with the place of its first."""
    block: list[tuple[str, str]] = []
    size = 0
    for place, pair in enumerate(pairs):
        if block and (len(block) == _PAIRS or size > _CHARACTERS):
            yield place - len(block), block
            block, size = [], 0
        block.append(pair)
        size += sum(len(text) for text in pair if isinstance(text, str))
    if block:
        yield len(pairs) - len(block), block


def kept_lengths(one: int, other: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay, of ``room`` in all: tokens are taken from the longer one first.

    Where neither fits alone they share the room, and the second of two that are equal gets the odd token.
    Source: the rule of the ``tokenizers`` library, ``longest_first``.
    """
    if one + other <= room:
        return one, other
    short, long = min(one, other), max(one, other)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    return (short, long) if one <= other else (long, short)


def _add(
    found: PairRows, ids: list[int], types: list[int], owners: list[int | None], limit: int,
    tokenizer: Tokenizer,
) -> None:  # fmt: skip
    count = [owners.count(0), owners.count(1)]
    room = limit - (len(ids) - sum(count))
    if room < 1:
        raise UserError(
            f"max_length {limit} is too short: the special tokens of a pair alone are {limit - room}; "
            f"take at least {limit - room + 2}"
        )
    kept = kept_lengths(count[0], count[1], room)
    if kept != tuple(count):
        places = _places(owners, count, kept, tokenizer.truncation_side == "left")
        ids, types = [ids[i] for i in places], [types[i] for i in places]
    found.ids.append(ids)
    found.cut.append(sum(count) - sum(kept))
    if found.types is not None:
        found.types.append(types)


def _places(owners: list[int | None], count: list[int], kept: tuple[int, int], left: bool) -> list[int]:
    """Places of the special tokens and of those tokens of each text that stay."""
    seen, places = [0, 0], []
    for place, owner in enumerate(owners):
        if owner is not None:
            number = seen[owner]
            seen[owner] += 1
            if not (number >= count[owner] - kept[owner] if left else number < kept[owner]):
                continue
        places.append(place)
    return places


def _complaint(pairs: Sequence[tuple[str, str]], start: int) -> str:
    """What is wrong with the first text that is none."""
    for place, pair in enumerate(pairs, start):
        for name, text in zip(("query", "text"), pair, strict=True):
            if not isinstance(text, str):
                return f"{name} {place} is a {type(text).__name__}, not a string"
            try:
                require_unicode(text, name)
            except UserError:
                return f"{name} {place} is not valid Unicode: it holds half of a surrogate pair"
    raise AssertionError("every text is well")
