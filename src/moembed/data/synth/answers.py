"""Answers that were paid for once: a file of lines, one for each question, added to and never rewritten."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from moembed.data.synth.generators import Answer
from moembed.files import writing
from moembed.types import UserError

_START = b'{"key": "'  # of every line


class AnswerLog:
    """Answers by the key of their question. A line is written the moment its answer is there.

    A killed process leaves at most a half line at the end, which is cut off. In memory there are keys and
    places alone. Several threads may ask and add; one process at a time (`moembed.files.locked`).

    Raises:
        UserError: a file that holds something else, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place: dict[str, int] = {}
        self._lock = Lock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        try:
            self._end = self._read()
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._place)

    def _read(self) -> int:
        """Note the place of every answer; returns the end of the last whole line."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                if not (line.startswith(_START) or _START.startswith(line)):  # no half line of ours
                    self._parsed(b"", number)
                break
            self._place[self._parsed(line, number)["key"]] = end
            end += len(line)
        self._file.truncate(end)
        return end

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line)
            if not isinstance(values["key"], str):
                raise TypeError
            Answer(**{name: value for name, value in values.items() if name != "key"})
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{self.path}, line {number}, is no answer that `moembed synth` wrote: delete that line, or "
                "name another file with --answers"
            ) from None
        kept: dict[str, Any] = values
        return kept

    def get(self, key: str) -> Answer | None:
        with self._lock:
            place = self._place.get(key)
            if place is None:
                return None
            self._file.seek(place)
            values = json.loads(self._file.readline())
        values.pop("key")
        return Answer(**values)

    def add(self, key: str, answer: Answer) -> None:
        """Raises UserError: the disk is full."""
        line = json.dumps({"key": key, **asdict(answer)}).encode() + b"\n"
        with self._lock, writing(self.path, "what is there is kept; make room and run the command again"):
            self._file.seek(0, 2)
            self._file.write(line)
            self._file.flush()
            self._place[key], self._end = self._end, self._end + len(line)

    def close(self) -> None:
        self._file.close()
