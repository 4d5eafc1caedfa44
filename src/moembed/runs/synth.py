"""Synthetic pairs: written by a generator, checked by a model that must find each document, and told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moembed.data.dedup import SeenTexts
from moembed.data.sources import Source
from moembed.data.synth.answers import AnswerLog
from moembed.data.synth.documents import Documents
from moembed.data.synth.generators import Generator
from moembed.data.synth.templates import Templates
from moembed.data.synth.writing import Row, SynthConfig, Tally, Writer
from moembed.data.writer import jsonl_writer
from moembed.encoding import Bar, no_bar
from moembed.files import locked, require_writable, write_json
from moembed.search.filter import FilterConfig, pair_ranks
from moembed.search.teacher import Teacher
from moembed.types import Pair, UserError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_LOST = "not found again"  # why a pair is left out that the check drops


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The query of a pair must find its document among the ``k`` best of all documents with pairs."""

    teacher: Teacher
    name: str
    k: int


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """What was written, and why the rest was not; saved as ``OUT.report.json`` with the templates.

    ``asked`` counts questions answered in this run, ``reused`` those whose answer was there; ``kept`` and
    ``rejected`` count texts by kind. ``notes`` is what a reader has to know beside.
    """

    path: Path
    documents: int
    repeated: int
    skipped: int
    asked: int
    reused: int
    tokens_in: int
    tokens_out: int
    rows: int
    kept: dict[str, int]
    rejected: dict[str, dict[str, int]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def synthesize(
    documents: Documents, out: Path, generator: Generator, config: SynthConfig, templates: Templates, *,
    answers: Path | None = None, check: RoundTrip | None = None, progress: Bar = no_bar,
) -> SynthSummary:  # fmt: skip
    """Write pairs for ``documents`` to the JSONL file ``out``, each with its provenance.

    Answers are kept in ``answers`` (default: ``OUT.answers``) the moment they come, and stay there: a
    question that was answered is not asked again, by this run or a later one.

    Raises:
        UserError: unusable documents, a generator that does not answer, an output that cannot be written, no
            row that can be used.
    """
    if not out.name.endswith(_SUFFIXES):
        raise UserError(f"{out} does not end in {', '.join(_SUFFIXES)}")
    total = sum(1 for _ in documents)  # a bad row is told before anything is asked
    notes = documents.notes()
    place = answers or out.with_name(f"{out.name}.answers")
    tally = Tally()
    SeenTexts(None if config.near == 1 else config.near)  # needs a library, which is told now
    with locked(out), locked(place):
        require_writable(out)
        with closing(AnswerLog(place)) as log:
            writer = Writer(config, templates, generator, log)
            with progress("documents", total) as advance:
                writer.ask_all(documents, advance)
            rows = _checked(writer, documents, tally, check, notes, progress) if check else None
            with jsonl_writer(out) as write:
                for row in writer.rows(documents, tally) if rows is None else rows:
                    write(row)
                if not sum(tally.kept.values()):
                    raise UserError(f"no text can be used: {_reasons(tally)}; the answers are in {place}")
    if writer.refused:
        notes.append(f"{len(writer.refused):,} questions were refused, the first: {writer.refused[0]}")
    if documents.left:
        notes.append(f"the first {documents.limit:,} documents alone: there are more")
    summary = SynthSummary(
        path=out, documents=total, repeated=documents.repeated, skipped=documents.skipped,
        asked=writer.asked, reused=writer.reused, tokens_in=writer.tokens_in, tokens_out=writer.tokens_out,
        rows=tally.kept["query"] + tally.kept["paraphrase"],
        kept={str(kind): number for kind, number in tally.kept.items() if number},
        rejected={str(kind): dict(some.most_common()) for kind, some in tally.rejected.items()},
        notes=notes,
    )  # fmt: skip
    _report(summary, generator, config, templates, check)
    return summary


def _checked(
    writer: Writer, documents: Documents, tally: Tally, check: RoundTrip, notes: list[str], progress: Bar
) -> Iterator[Row]:
    """The rows whose document is found again, with the rank it has among the documents of its kind."""
    ranks: dict[str, Iterator[int]] = {}
    for kind in ("query", "paraphrase"):  # a paraphrase is no wrong answer to a query
        pairs = [
            Pair(row["query"], row["document"])
            for row in writer.rows(documents, Tally())
            if row["provenance"]["kind"] == kind
        ]
        if not pairs:
            continue
        source, config = Source.from_pairs(kind, pairs), FilterConfig(k=check.k)
        if len({pair.document for pair in pairs}) <= check.k:
            notes.append(
                f"the check drops no {kind}: {len(pairs):,} pairs have no more than {check.k} documents"
            )
        with tempfile.TemporaryDirectory() as folder:
            rank_N = pair_ranks(source, check.teacher, config, Path(folder), progress)
        ranks[kind] = iter(rank_N.tolist())
    if cut := getattr(check.teacher, "truncated", 0):
        notes.append(f"the check cut {cut:,} texts: they were longer than {check.name} reads")
    return _found(writer, documents, tally, ranks, check)


def _found(
    writer: Writer, documents: Documents, tally: Tally, ranks: dict[str, Iterator[int]], check: RoundTrip
) -> Iterator[Row]:
    for row in writer.rows(documents, tally):
        kind = row["provenance"]["kind"]
        rank = next(ranks[kind])
        if rank <= check.k:
            row["provenance"] |= {"check": check.name, "rank": rank}
            yield row
            continue
        tally.kept[kind] -= 1
        tally.reject(kind, _LOST)
        if lost := len(row.get("negatives", ())):
            tally.kept["hard_negative"] -= lost
            for _ in range(lost):
                tally.reject("hard_negative", "of a query that was not found again")


def _reasons(tally: Tally) -> str:
    return ", ".join(
        f"{kind}: {reason} {count:,}"
        for kind, some in tally.rejected.items()
        for reason, count in some.most_common()
    )


def _report(
    summary: SynthSummary, generator: Generator, config: SynthConfig, templates: Templates,
    check: RoundTrip | None,
) -> None:  # fmt: skip
    """What a hash in a row stands for, beside what became of the texts."""
    write_json(
        summary.path.with_name(f"{summary.path.name}.report.json"),
        {
            "generator": generator.name,
            "model": generator.model,
            "settings": config.model_dump(),
            "check": {"model": check.name, "k": check.k} if check else None,
            "templates": {
                kind: {"hash": template.hash, **template.model_dump()}
                for kind, template in templates.by_kind().items()
            },
            **summary.to_json(),
        },
    )
