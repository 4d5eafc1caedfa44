"""Rows -> train, dev and test, so that no text of one side stands on another.

Rows that share a text, have nearly equal texts or carry the same group are linked, directly or through other
rows; linked rows form a block, and a block goes to one side whole.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moembed.data.columns import ColumnUse, missing_column
from moembed.data.dedup import NearTexts
from moembed.data.files import find
from moembed.data.layouts import HF, shards
from moembed.data.pairs import PairRecord, SourceConfig, pairs_of_row
from moembed.data.readers import Row
from moembed.data.text_key import normalize, text_key
from moembed.data.writer import jsonl_writer
from moembed.files import replacing, write_json
from moembed.types import UserError

SIDES = ("train", "dev", "test")
_FULL_ENOUGH = 0.9  # of what was asked for; below it a note says so


@dataclass(slots=True)
class Split:
    """What was read and what went where: rows of each side, blocks of linked rows, the largest of them."""

    rows: int
    train: int
    dev: int
    test: int
    blocks: int
    largest_block: int
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


class Links:
    """Which of the numbers 0, 1, … belong together (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def add(self) -> int:
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def root(self, node: int) -> int:
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        self._parent[max(one, other)] = min(one, other)


class Blocks:
    """Blocks of linked rows, as rows come in; about 200 bytes per text, with ``near`` about two kilobytes.

    ``near``: texts of at least this estimated Jaccard similarity link their rows too (`NearTexts`).
    """

    def __init__(self, near: float | None = None) -> None:
        self._links = Links()
        self._node: dict[bytes, int] = {}
        self._row_nodes: list[int] = []
        self._near = NearTexts(near) if near is not None else None
        self._near_nodes: list[int] = []  # of the texts in ``_near``, in its order

    def add(self, texts: Sequence[str], group: str | None = None) -> None:
        """A row with these texts, of whatever role: a query that is another row's document links the two."""
        nodes = [self._text(text) for text in texts]
        if group is not None:
            nodes.append(self._key(b"group\n" + group.encode("utf-8", "surrogatepass")))
        for other in nodes[1:]:
            self._links.join(nodes[0], other)
        self._row_nodes.append(nodes[0])

    def names(self) -> list[bytes]:
        """Of every row the name of its block, the smallest key in it: the order of rows changes nothing."""
        name: dict[int, bytes] = {}
        for key, node in self._node.items():
            root = self._links.root(node)
            name[root] = min(key, name.get(root, key))
        return [name[self._links.root(node)] for node in self._row_nodes]

    def side_of_texts(self, sides: Sequence[str]) -> dict[bytes, str]:
        """The key of every text -> its side, given the side of every row."""
        of_root = {self._links.root(node): side for node, side in zip(self._row_nodes, sides, strict=True)}
        return {key: of_root[self._links.root(node)] for key, node in self._node.items()}

    def _key(self, key: bytes) -> int:
        if key not in self._node:
            self._node[key] = self._links.add()
        return self._node[key]

    def _text(self, text: str) -> int:
        key = text_key(text)
        known = key in self._node
        node = self._key(key)
        if self._near is None or known:
            return node
        sketch = self._near.sketch(normalize(text))
        for place in self._near.candidates(sketch):
            other = self._near_nodes[place]
            # those of one block already need no comparing: thousands of copies cost no more than a few
            if self._links.root(other) != self._links.root(node) and self._near.similar(sketch, place):
                self._links.join(node, other)
        self._near.insert(sketch)
        self._near_nodes.append(node)
        return node


def assign(names: Sequence[bytes], dev: float, test: float, seed: int) -> list[str]:
    """The side of every row, from the name of its block.

    Blocks come in an order that ``seed`` and their names decide. Each goes to test while it fits into what
    test has room for, else to dev on the same terms, else to train. So no side holds more than was asked
    for, and a row that is added moves few others.

    Args:
        dev: share of the rows below 1, a number of rows from 1 on; 0 for none. ``test`` likewise.

    Raises:
        UserError: more is asked for than there are rows, or a side stays empty.
    """
    total = len(names)
    for place, share in (("dev", dev), ("test", test)):
        if not 0 <= share < math.inf:
            raise UserError(f"{place} {share} is neither a share of the rows below 1 nor a number of rows")
    room = {"test": _count(test, total), "dev": _count(dev, total)}
    if sum(room.values()) >= total:
        raise UserError(
            f"dev and test together would take {sum(room.values()):,} of {total:,} rows: "
            "leave some to train on"
        )
    wanted, size = dict(room), Counter(names)
    prefix = seed.to_bytes(8, "little")
    side = {}
    for name in sorted(size, key=lambda name: hashlib.blake2b(prefix + name, digest_size=16).digest()):
        fits = [place for place in ("test", "dev") if size[name] <= room[place]]
        side[name] = fits[0] if fits else "train"
        if fits:
            room[fits[0]] -= size[name]
    sides = [side[name] for name in names]
    for place, rows in ({"train": total} | wanted).items():
        if rows and place not in sides:
            raise UserError(
                f"no row is left for {place}: equal texts and groups link the {total:,} rows into "
                f"{len(size):,} blocks, the largest of {max(size.values()):,} rows; take other shares, a "
                "group that divides the rows more finely, or link equal texts alone (near 1)"
            )
    return sides


def _count(share: float, total: int) -> int:
    return round(share * total) if share < 1 else round(share)


def split_file(
    source: SourceConfig,
    out: Path,
    dev: float = 0.1,
    test: float = 0.1,
    near: float | None = 0.8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Split:
    """Write the rows of ``source``, with all columns, to ``train``, ``dev`` and ``test.jsonl`` of a folder.

    Rows keep their order within a side. ``split.json`` beside them tells the options and the counts. The
    folder appears whole. ``source.group`` names a column whose equal values stay on one side.

    Raises:
        UserError: as `moembed.data.layouts.shards` and ``assign``; a row without usable texts, unless
            ``source.bad_rows`` skips it; ``near`` without datasketch; rows that lie in ``out``.
    """
    _require_outside(source, out)
    # the first reading: which rows belong together
    blocks, use, skipped, alone = Blocks(near), ColumnUse(), 0, 0
    for _, pairs in _rows(source, use, progress):
        if pairs is None:
            skipped += 1
        else:
            blocks.add([pairs[0].query, *(pair.document for pair in pairs)], pairs[0].group)
            alone += pairs[0].group is None
    names = blocks.names()
    if not names:
        raise UserError(f"{source.path} holds no usable rows")
    sides = assign(names, dev, test, seed)
    size, count = Counter(names), Counter(sides)
    done = Split(
        len(names), count["train"], count["dev"], count["test"], len(size), max(size.values()), skipped
    )

    # the second reading: every row to its side
    place_of, seen_elsewhere, order = blocks.side_of_texts(sides), 0, iter(sides)
    with replacing(out) as folder:
        with (
            jsonl_writer(folder / "train.jsonl") as train,
            jsonl_writer(folder / "dev.jsonl") as write_dev,
            jsonl_writer(folder / "test.jsonl") as write_test,
        ):
            write = {"train": train, "dev": write_dev, "test": write_test}
            for row, pairs in _rows(source, ColumnUse(), progress):
                if pairs is not None:
                    side = next(order)
                    write[side](row)
                    seen_elsewhere += side == "train" and _shows_others(pairs, place_of)
        for name, rows in (("dev", dev), ("test", test)):
            if not rows:
                (folder / f"{name}.jsonl").unlink()
        done.notes = _notes(done, {"dev": dev, "test": test}, source, use, seen_elsewhere)
        if source.group is not None and alone:
            done.notes.append(f"{alone:,} rows have no {source.group}: only their texts link them to others")
        options = {"source": source.path, "dev": dev, "test": test, "near": near, "seed": seed}
        write_json(folder / "split.json", options | {"group": source.group} | asdict(done))
    return done


def _require_outside(source: SourceConfig, out: Path) -> None:
    """Refuse to put the new folder in the place of the rows it is made of."""
    if "://" in source.path or source.path.startswith(HF):
        return
    folder, files = find(source.path)
    here = [Path(file.path).resolve() for file in [*files, *([folder] if folder else [])]]
    if inside := next((path for path in here if path.is_relative_to(out.resolve())), None):
        raise UserError(
            f"{out} holds {inside.name}, which is to be divided: choose another folder for the sides"
        )


def _rows(
    source: SourceConfig, use: ColumnUse, progress: Callable[[int], None] | None
) -> Iterator[tuple[Row, list[PairRecord] | None]]:
    """Every row and its pairs; None in place of the pairs of a bad row that is skipped."""
    for shard in shards(source.path, source.split, source.subset):
        for number, row in shard.rows():
            pairs = row if isinstance(row, str) else _pairs(row, source, use)
            if isinstance(pairs, str):
                if source.bad_rows == "refuse":
                    raise UserError(f"{shard.where(number)}: {pairs}; {source.advice(pairs)}")
                yield {}, None
            else:
                assert not isinstance(row, str)
                yield row, pairs
            if progress:
                progress(1)


def _pairs(row: Row, source: SourceConfig, use: ColumnUse) -> list[PairRecord] | str:
    use.see(row)
    if source.group is not None and source.group not in row:
        return missing_column(source.group, row)
    return pairs_of_row(row, source, use, quotes=False)


def _shows_others(pairs: Sequence[PairRecord], place_of: dict[bytes, str]) -> bool:
    """Whether a hard negative of a training row is a text of another side."""
    return any(place_of.get(text_key(text), "train") != "train" for text in pairs[0].negatives)


def _notes(
    done: Split, asked: dict[str, float], source: SourceConfig, use: ColumnUse, seen_elsewhere: int
) -> list[str]:
    notes = []
    for name, share in asked.items():
        wanted, got = _count(share, done.rows), getattr(done, name)
        if got < _FULL_ENOUGH * wanted:
            notes.append(
                f"{name} has {got:,} rows instead of {wanted:,}: blocks of linked rows stay whole, and the "
                f"largest has {done.largest_block:,} rows"
            )
    if seen_elsewhere:
        notes.append(
            f"{seen_elsewhere:,} training rows have a hard negative that is a text of dev or test: "
            "mine negatives among the training documents instead"
        )
    if unused := [column for column in use.unused if column != source.group]:
        notes.append(f"columns not compared: {', '.join(unused)} (they are kept)")
    return notes
