"""Labelled files -> pairs: two texts and a score, or two texts of one label with negatives of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moembed.data.columns import as_list, missing_column
from moembed.data.grades import NEGATIVE_LABELS, label_of, score_of
from moembed.data.layouts import shards
from moembed.data.readers import Row, text_problem
from moembed.data.text_key import text_key
from moembed.data.writer import jsonl_writer
from moembed.types import UserError

Task = Literal["sts", "classification", "clustering"]

_FIRST = ("sentence1", "text1", "query", "sent1", "premise")
_SECOND = ("sentence2", "text2", "document", "sent2", "hypothesis")
_SCORE = ("score", "similarity_score", "similarity", "label", "labels")
_TEXT = ("text", "sentence", "sentences", "texts", "query")
_LABEL = ("label", "labels", "label_text", "category", "intent")
_KEPT = ("language", "source")  # columns that go along


@dataclass(slots=True)
class Converted:
    """What became of the rows of a labelled file."""

    rows: int = 0
    pairs: int = 0
    skipped: int = 0
    labels: int = 0
    alone: int = 0  # texts that are the only one of their label
    repeated: int = 0  # texts that their label has already
    columns: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # columns of which nothing is kept
    notes: list[str] = field(default_factory=list)


def convert_file(
    path: str, out: Path, task: Task, columns: dict[str, str | None], negatives: int = 0, seed: int = 0,
    skip_bad_rows: bool = False,
) -> Converted:  # fmt: skip
    """Write pairs that a source of ``task_type`` ``task`` reads.

    ``sts``: every row becomes ``query``, ``document``, ``score``.
    ``classification`` and ``clustering``: every text becomes the ``query`` of one pair. Its ``document`` is a
    random other text of its label, ``negative`` has so many random texts of other labels, whose labels are in
    ``negative_labels``. A row may hold lists of texts and of labels, as the clustering tasks of MTEB do.
    ``language`` and ``source`` go along: those of the row, of which a pair has its ``query``.

    Args:
        columns: of ``first``, ``second`` and ``score``, or of ``text`` and ``label``; None: the one of the
            usual names that is there.

    Raises:
        UserError: no such columns, a bad row that is not to be skipped, no pairs.
    """
    done = Converted()
    rows = _rows(path, task, columns, done, skip_bad_rows)
    if task == "sts":
        made: Iterator[dict[str, Any]] = rows
    else:
        made = _of_labels(list(rows), negatives, seed, done)
    with jsonl_writer(out) as write:
        for row in made:
            write(row)
            done.pairs += 1
        if not done.pairs:
            why = f": {'; '.join(done.notes)}" if done.notes else ""
            raise UserError(f"{path} holds no pairs for task {task}{why}")
    if done.unread:
        done.notes.append(f"columns not read: {', '.join(done.unread)}")
    return done


def _rows(
    path: str, task: Task, columns: dict[str, str | None], done: Converted, skip: bool
) -> Iterator[dict[str, Any]]:
    """Checked rows: of ``sts`` pairs, else ``text`` and ``label``, several of a row with lists."""
    read: Callable[[Row, dict[str, str]], list[dict[str, Any]]] = _scored if task == "sts" else _labelled
    names = {"first": _FIRST, "second": _SECOND, "score": _SCORE}
    usual = names if task == "sts" else {"text": _TEXT, "label": _LABEL}
    others: dict[str, None] = {}  # columns; of all rows, for each of a JSONL file may have its own
    for shard in shards(path):
        for number, row in shard.rows():
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                if not done.columns:
                    done.columns = {key: _column(row, key, columns.get(key), of) for key, of in usual.items()}
                found = read(row, done.columns)
                others |= dict.fromkeys(name for name in row if name not in _KEPT)
            except UserError as error:  # no row would do
                raise UserError(f"{path}: {error}") from None
            except ValueError as error:
                place = f"{shard.where(number)}: {error}"
                if not skip:
                    raise UserError(f"{place}; correct it, or pass --skip-bad-rows") from None
                done.skipped += 1
                done.notes = done.notes or [f"the first bad row: {place}"]
                continue
            done.rows += 1
            yield from found
    done.unread = [name for name in others if name not in done.columns.values()]


def _column(row: Row, key: str, asked: str | None, usual: Sequence[str]) -> str:
    """The column of ``key``: the one that is asked for, or the first usual one that the first row has."""
    if asked is not None:
        if asked not in row:
            raise UserError(f"{missing_column(asked, row)}: name another one with --{key}")
        return asked
    found = next((name for name in usual if name in row), None)
    if found is None:
        raise UserError(
            f"none of the columns {', '.join(map(repr, row))} is called {', '.join(usual[:-1])} or "
            f"{usual[-1]}: name it with --{key}"
        )
    return found


def _scored(row: Row, columns: dict[str, str]) -> list[dict[str, Any]]:
    first, second = (_text(row, columns[key]) for key in ("first", "second"))
    scored = {"query": first, "document": second, "score": score_of(row, columns["score"])}
    return [scored | _kept(row, columns)]


def _kept(row: Row, columns: dict[str, str]) -> dict[str, Any]:
    return {name: row[name] for name in _KEPT if name not in columns.values() and row.get(name) is not None}


def _labelled(row: Row, columns: dict[str, str]) -> list[dict[str, Any]]:
    text, label = columns["text"], columns["label"]
    if text not in row:
        raise ValueError(missing_column(text, row))
    texts = as_list(row[text])
    if texts is None:
        return [{"text": _text(row, text), "label": label_of(row, label)} | _kept(row, columns)]
    labels = as_list(row.get(label))
    if labels is None or len(labels) != len(texts):
        raise ValueError(f"column {text!r} lists {len(texts)} texts, and {label!r} not as many labels")
    found = []
    for number, (one, name) in enumerate(zip(texts, labels, strict=True)):
        kept = {key: _of(value, key, number, len(texts)) for key, value in _kept(row, columns).items()}
        found.append({"text": _text({text: one}, text), "label": label_of({label: name}, label)} | kept)
    return found


def _of(value: Any, column: str, number: int, count: int) -> Any:
    """What a row with lists says of one of its texts: an item of a list, or the same of all."""
    some = as_list(value)
    if some is not None and len(some) != count:
        raise ValueError(f"column {column!r} lists {len(some)} values for {count} texts")
    return value if some is None else some[number]


def _text(row: Row, column: str) -> str:
    if column not in row:
        raise ValueError(missing_column(column, row))
    if problem := text_problem(row[column]):
        raise ValueError(f"column {column!r} {problem}")
    return str(row[column])


def _of_labels(
    rows: list[dict[str, Any]], negatives: int, seed: int, done: Converted
) -> Iterator[dict[str, Any]]:
    """A pair for every text that has another one of its label; equal texts of a label count once."""
    texts: dict[str, list[str]] = {}
    keys: dict[str, set[bytes]] = {}
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        label, text = row["label"], row["text"]
        if (key := text_key(text)) not in keys.setdefault(label, set()):
            keys[label].add(key)
            texts.setdefault(label, []).append(text)
            first[label, text] = row
    done.labels = len(texts)
    done.repeated = len(rows) - len(first)
    if done.repeated:
        done.notes.append(f"{done.repeated:,} texts are repetitions within their label and count once")
    if len(texts) < 2:
        raise UserError(
            f"all texts have the label {next(iter(texts), '')!r}, so there is nothing to tell apart"
        )
    # a text of two labels may be drawn as a negative of the one it has, too, and is then left out
    everything = [(text, label) for label, some in texts.items() for text in some]
    random = np.random.default_rng(seed)
    start = 0
    for label, some in texts.items():
        if len(some) == 1:
            done.alone += 1
            start += 1
            continue
        room = len(everything) - len(some)
        for place, text in enumerate(some):
            other = (place + random.integers(1, len(some))) % len(some)
            pair: dict[str, Any] = {"query": text, "document": some[other], "label": label}
            if negatives:
                drawn = random.choice(room, min(negatives, room), replace=False)
                # the texts of this label stand together, and are jumped over
                wrong = [everything[i if i < start else i + len(some)] for i in drawn]
                wrong = [(t, one) for t, one in wrong if text_key(t) not in keys[label]]
                pair |= {"negative": [t for t, _ in wrong], NEGATIVE_LABELS: [one for _, one in wrong]}
            yield pair | {name: row[name] for row in [first[label, text]] for name in _KEPT if name in row}
        start += len(some)
    if done.alone:
        done.notes.append(f"{done.alone:,} labels have a single text, and it is left out")
