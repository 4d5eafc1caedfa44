"""A sample of the rows of a part, kept in its footer: how many rows a condition leaves, before it is asked.

A sample answers any condition, also one over columns that depend on one another, which a minimum, a maximum
and a number of values for each column do not.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SAMPLED = 64  # rows of a part, at most
AT = "moembed:at"  # the column that says which rows they are
LONGEST = 64  # mean length of texts that are kept: longer ones are what is searched, not what filters


def packed(table: pa.Table, plain: list[str]) -> bytes:
    """A random sample of the rows of a part, for its footer; always the same of the same number of rows.

    Args:
        plain: the columns that a condition may read.
    """
    row_K = np.sort(np.random.default_rng(table.num_rows).permutation(table.num_rows)[:SAMPLED])
    taken = table.select([name for name in plain if not _is_long(table[name])]).take(row_K)
    taken = taken.append_column(AT, pa.array(row_K, pa.int64())).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, taken.schema) as stream:
        stream.write_table(taken)
    return base64.b64encode(zlib.compress(sink.getvalue().to_pybytes()))


def unpacked(text: bytes) -> pa.Table:
    """What ``packed`` took, and in ``AT`` which rows they are."""
    with pa.ipc.open_stream(zlib.decompress(base64.b64decode(text))) as stream:
        return stream.read_all()


def _is_long(column: pa.ChunkedArray) -> bool:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return False
    return (pc.mean(pc.utf8_length(column)).as_py() or 0) > LONGEST
