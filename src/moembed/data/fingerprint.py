"""What a table of pairs holds, in one short text: a resumed run must go on with the rows it began with."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WHOLE = 1 << 30  # bytes of a table that is read to its end; a larger one is sampled
BLOCKS, BLOCK_ROWS = 256, 256  # evenly spaced blocks of rows of a larger one


def fingerprint(table: pa.Table) -> str:
    """``13 rows, 5f0c…``: the number of rows and a hash of their values, however the table lies in memory.

    Every row of a table of up to 1 GiB counts. Of a larger one its size and 256 evenly spaced blocks of 256
    rows count, so that a run on billions of pairs starts at once.
    """
    digest = blake2b(digest_size=8)
    rows, size = len(table), table.nbytes
    if size > WHOLE and rows > BLOCKS * BLOCK_ROWS:
        digest.update(str(size).encode())
        starts = np.linspace(0, rows - BLOCK_ROWS, BLOCKS).astype(int)
        table = pa.concat_tables([table.slice(int(start), BLOCK_ROWS) for start in starts])
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(name.encode())
        for part in _hashes(column):
            digest.update(part)
    return f"{rows:,} rows, {digest.hexdigest()}"


def _hashes(column: pa.ChunkedArray) -> list[bytes]:
    """Hashes of the lengths and of the values of a column, which do not depend on its chunks."""
    lengths, values = blake2b(), blake2b()
    if pa.types.is_large_list(column.type):
        for chunk in column.chunks:
            lengths.update(_numbers(pc.list_value_length(chunk)))
        items = [chunk.flatten() for chunk in column.chunks]
        return [lengths.digest(), *_hashes(pa.chunked_array(items, column.type.value_type))]
    for chunk in column.chunks:
        if pa.types.is_large_string(chunk.type):
            lengths.update(_numbers(pc.binary_length(chunk)))
            offset_N = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :]
            if len(chunk) and (content := chunk.buffers()[2]) is not None:
                values.update(content[int(offset_N[0]) : int(offset_N[len(chunk)])])
        else:
            for value in chunk.to_pylist():
                values.update(f"{value!r}, ".encode())
    return [lengths.digest(), values.digest()]


def _numbers(array: pa.Array) -> bytes:
    return bytes(pc.fill_null(array, -1).to_numpy(zero_copy_only=False).tobytes())
