"""Making damaged files of an index again before it is updated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moembed.encoding import TokenVectors, Vectors
from moembed.search.index_ids import made_keys
from moembed.search.index_manifest import Part
from moembed.search.index_parts import DamagedPartError
from moembed.search.part_writer import PartWriter
from moembed.types import UserError

Embed = Callable[[list[str]], Vectors | TokenVectors]


def repaired(writer: PartWriter, parts: Sequence[Part], source: str | None, embed: Embed) -> list[Part]:
    """The parts, with damaged vectors embedded again, damaged terms counted again, and damaged rows left out.

    Args:
        source: whose rows are about to be embedded: rows of this file may be left out, they come back.

    Raises:
        UserError: damaged rows that came from another file.
    """
    found = []
    for part in parts:
        which, error = damage(writer, part)
        if error is None:
            found.append(part)
        elif which == 0:
            _require_source(part, error, source)
        else:
            found.append(_written_again(writer, part, which, error, embed))
    return found


def damage(writer: PartWriter, part: Part) -> tuple[int, DamagedPartError | None]:
    """The first file of a part that is not what was written: 0 rows, 1 vectors, 2 terms, 3 token vectors."""
    checks = (writer.rows, writer.vectors, writer.terms, writer.payload)
    for which, check in enumerate(checks[: len(part.stamps)]):
        try:
            check(part)
        except DamagedPartError as error:
            return which, error
    return 0, None


def _require_source(part: Part, error: DamagedPartError, source: str | None) -> None:
    if part.source not in (None, source):
        raise UserError(
            f"{error.what}: it holds rows of {part.source}: run `moembed index` on that file first"
        )
    where = "several files: run `moembed index` on each of them" if part.source is None else part.source
    warnings.warn(
        f"{error.what}: its {part.live} rows are embedded again as far as they are in {where}", stacklevel=5
    )


def _written_again(writer: PartWriter, part: Part, which: int, error: DamagedPartError, embed: Embed) -> Part:
    rows, keys = writer.rows(part)
    keys = keys or made_keys(writer.path, [part], writer.column)[1][0]
    stored: np.ndarray | TokenVectors
    if which in (1, 3):
        warnings.warn(f"{error.what}: its texts are embedded again", stacklevel=5)
        column = writer.column or ""
        found = embed([str(row.get(column)) for row in rows])
        stored = writer.stored(found.array, keys.ids) if isinstance(found, Vectors) else found
        truncated = found.truncated
    else:
        warnings.warn(f"{error.what}: its terms are counted again", stacklevel=5)
        stored, truncated = writer.payload(part), part.truncated
    return replace(writer.write(rows, keys, stored, truncated, part.source), deleted_N=part.deleted_N)
