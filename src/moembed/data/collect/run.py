"""Collected pairs -> one clean file of rows, with counts by language and source."""

from __future__ import annotations

import site
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from moembed.data import docstrings
from moembed.data.collect import catalogues, descriptions, manuals, office_help
from moembed.data.collect.licences import UNKNOWN, Licences
from moembed.data.collect.pair import CollectedPair, Place
from moembed.data.dedup import SeenTexts
from moembed.data.overlap import TaskTexts
from moembed.data.text_key import normalize
from moembed.data.writer import jsonl_writer
from moembed.types import UserError


@dataclass
class Collection:
    """What was written, and why the rest was not.

    Attributes:
        counts: pairs by source and language; ``licences`` and ``packages``: pairs by source and that.
        skipped: what was left out, by source and reason.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    licences: dict[str, Counter[str]] = field(default_factory=dict)
    packages: dict[str, Counter[str]] = field(default_factory=dict)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        return sum(chain.from_iterable(count.values() for count in self.counts.values()))

    def to_json(self) -> dict[str, Any]:
        parts = ("counts", "licences", "packages", "skipped")
        return {
            name: {source: dict(count.most_common()) for source, count in getattr(self, name).items()}
            for name in parts
        }


def collect_pairs(
    sources: Sequence[str],
    out: Path,
    root: Path | None = None,
    min_letters: int = 10,
    tasks: TaskTexts | None = None,
    progress: Callable[[int], None] | None = None,
) -> Collection:
    """Write the pairs of ``sources``, keys of ``SOURCES``, to a JSONL file.

    Left out and counted: queries of fewer than ``min_letters`` letters, documents without a letter, pairs of
    two languages whose texts are equal (not translated), pairs that were there before (`text_key`), and
    pairs of which a text equals or contains one of ``tasks``.

    Args:
        root: laid out like the root of a Debian machine; for docstrings a folder of Python packages. Default:
            this machine and the packages of this interpreter.

    Raises:
        UserError: an unknown source; no such root; nothing was found.
    """
    if unknown := [name for name in sources if name not in SOURCES]:
        raise UserError(f"no source is called {unknown[0]!r}: there are {', '.join(SOURCES)}")
    if root is not None and not root.is_dir():
        raise UserError(f"{root} is no folder: --root names one that is laid out like the root of a machine")
    found, seen = Collection(), SeenTexts()
    with jsonl_writer(out) as write:
        for name in dict.fromkeys(sources):
            kept, licences, packages = Counter[str](), Counter[str](), Counter[str]()
            here = (root or Path("/")).resolve()
            sites = () if root else tuple(Path(folder).resolve() for folder in site.getsitepackages())
            place = Place(here, Licences(here, sites))
            for pair in SOURCES[name](place, sites):
                if progress:
                    progress(1)
                if problem := _problem(pair, min_letters, seen, tasks):
                    place.skipped[problem] += 1
                    continue
                write(asdict(pair))
                kept[pair.language] += 1
                licences[pair.licence] += 1
                packages[pair.package] += 1
            found.counts[name], found.licences[name], found.packages[name] = kept, licences, packages
            found.skipped[name] = place.skipped
        if not found.pairs:
            raise UserError(f"no pairs of {', '.join(found.counts)} below {here}: {_WHERE}")
    return found


_WHERE = "give --root a folder that holds usr/share, or install what the source reads (docs/data.md)"


def _problem(pair: CollectedPair, min_letters: int, seen: SeenTexts, tasks: TaskTexts | None) -> str | None:
    """Why a pair is left out; None: it is kept."""
    if sum(map(str.isalpha, pair.query)) < min_letters or not any(map(str.isalpha, pair.document)):
        return "too short"
    if pair.language != pair.query_language and normalize(pair.query) == normalize(pair.document):
        return "not translated"
    if not seen.add(pair.query, pair.document):
        return "repeated"
    if tasks and any(map(tasks.holds, (pair.query, pair.document))):
        return "in an evaluation task"
    return None


def _docstrings(place: Place, sites: tuple[Path, ...]) -> Iterator[CollectedPair]:
    """The training side alone: what `moembed demo` is evaluated on stays unseen."""
    roots, aside = ([*sites], 6000) if sites else ([place.root], 0)
    read = docstrings.collect(roots, aside)
    place.skipped.update(read.skipped)
    if read.unseen:
        place.skipped["kept for evaluation"] += len(read.unseen)
    licences = Licences(place.root, tuple(roots))
    for pair in read.train:
        path = next((folder for folder in roots if (folder / pair.file).is_file()), roots[0]) / pair.file
        licence = licences.of_file(path)[1]
        yield CollectedPair(
            pair.query, pair.document, "code", "en", "docstrings", pair.package, licence or UNKNOWN
        )


SOURCES: dict[str, Callable[[Place, tuple[Path, ...]], Iterator[CollectedPair]]] = {
    "docstrings": _docstrings,
    catalogues.SOURCE: catalogues.collect,
    office_help.SOURCE: lambda place, _: office_help.collect(place),
    manuals.SOURCE: lambda place, _: manuals.collect(place),
    descriptions.SOURCE: lambda place, _: descriptions.collect(place),
}
