"""Texts as tokens on disk, written once and memory-mapped, cut into sequences when drawn.

The folder::

    tokens/index.json     languages in order, with their numbers of texts and tokens, and what made them
    tokens/0.tokens       uint32: the texts of language 0 end to end, each closed by the separator
    tokens/0.ends         int64: where each text ends
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer as Backend

from moembed.data.text import Text
from moembed.files import read_json, replacing
from moembed.types import UserError

_PART = 1 << 20  # tokens


@dataclass(frozen=True)
class Frame:
    """The special tokens a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, backend: Backend) -> Frame:
        encoding = backend.encode("a")
        places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        first, last = (places[0], places[-1]) if places else (1, 0)
        return cls(tuple(encoding.ids[:first]), tuple(encoding.ids[last + 1 :]))

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


class Language:
    """The sequences of one language, by number.

    Packed, texts stand end to end, each closed by the separator, and are cut into sequences of ``length``
    tokens, special tokens included; else every text is a sequence of its own, cut at ``length``.
    """

    def __init__(self, name: str, stem: Path, frame: Frame, length: int, packed: bool) -> None:
        self.name, self.frame, self.packed = name, frame, packed
        self.room = length - len(frame)
        self._tokens = np.memmap(stem.with_suffix(".tokens"), np.uint32, mode="r")
        self._ends = np.memmap(stem.with_suffix(".ends"), np.int64, mode="r")

    def __len__(self) -> int:
        return -(-len(self._tokens) // self.room) if self.packed else len(self._ends)

    def fingerprint(self) -> str:
        """The number of texts and a hash of their tokens, of 16 evenly spaced parts where there are many."""
        digest = hashlib.blake2b(self._ends[-1:].tobytes(), digest_size=8)
        starts = np.linspace(0, max(0, len(self._tokens) - _PART), 16).astype(np.int64)
        for start in np.unique(starts):
            digest.update(self._tokens[start : start + _PART].tobytes())
        return f"{len(self._ends):,} rows, {digest.hexdigest()}"

    def sequence(self, number: int) -> np.ndarray:
        """Token ids, special tokens included, int64."""
        if self.packed:
            start, end = number * self.room, (number + 1) * self.room
        else:
            start = int(self._ends[number - 1]) if number else 0
            end = min(int(self._ends[number]) - len(self.frame.after), start + self.room)
        body = self._tokens[start:end].astype(np.int64)
        return np.concatenate([self.frame.before, body, self.frame.after]).astype(np.int64)


def open_corpus(
    folder: Path, texts: Iterable[list[Text]], backend: Backend, length: int, packed: bool, made_of: Any,
    progress: Callable[[int], object] | None = None,
) -> list[Language]:  # fmt: skip
    """The languages of ``texts`` by name; tokenised into ``folder`` unless that was done before.

    Args:
        made_of: JSON that names the texts; a folder made of others, or with another tokenizer, is made anew.
        progress: called with the number of texts tokenised since the last call.

    Raises:
        UserError: from ``texts``; a full disk; a ``length`` without room for a token; a damaged folder.
    """
    frame = Frame.of(backend)
    if length <= len(frame):
        raise UserError(f"sequence_length {length} leaves no room beside {len(frame)} special tokens")
    digest = hashlib.sha256(backend.to_str().encode()).hexdigest()
    key = {"tokenizer": digest, "texts": made_of}
    index = folder / "index.json"
    if not index.is_file() or read_json(index).get("key") != key:
        with replacing(folder) as fresh:
            _write(fresh, texts, backend, frame, key, progress)
    try:
        languages = enumerate(read_json(index)["languages"])
        found = [Language(entry["name"], folder / str(i), frame, length, packed) for i, entry in languages]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is damaged ({error}): delete it, and the texts are tokenised again"
        ) from None
    return sorted(found, key=lambda language: language.name)


def _write(
    folder: Path, texts: Iterable[list[Text]], backend: Backend, frame: Frame, key: Any,
    progress: Callable[[int], object] | None,
) -> None:  # fmt: skip
    numbers: dict[str, int] = {}
    total: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    with ExitStack() as files:
        opened: list[tuple[BinaryIO, ...]] = []
        for block in texts:
            encodings = backend.encode_batch_fast([text.text for text in block], add_special_tokens=False)
            for (name, _), encoding in zip(block, encodings, strict=True):
                if name not in numbers:
                    stem = folder / str(numbers.setdefault(name, len(numbers)))
                    streams = (stem.with_suffix(suffix).open("wb") for suffix in (".tokens", ".ends"))
                    opened.append(tuple(map(files.enter_context, streams)))
                tokens, ends = opened[numbers[name]]
                row = np.array([*encoding.ids, *frame.after], dtype=np.uint32)
                total[name] += len(row)
                count[name] += 1
                tokens.write(row.tobytes())
                ends.write(np.int64(total[name]).tobytes())
            if progress:
                progress(len(block))
    languages = [{"name": name, "texts": count[name], "tokens": total[name]} for name in numbers]
    content = json.dumps({"key": key, "languages": languages}, indent=2, ensure_ascii=False)
    (folder / "index.json").write_text(content + "\n", encoding="utf-8")
