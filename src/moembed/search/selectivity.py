"""How many rows a condition leaves, estimated from the samples in the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from moembed.search.columns import Columns, Meets
from moembed.search.index_manifest import Part
from moembed.search.part_sample import AT


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of all parts that were kept in their footers.

    Attributes:
        weight_S: the share of all rows that a row of the sample stands for.
        names: the columns that the sample has.
    """

    columns: Columns
    weight_S: np.ndarray
    names: set[str]

    @classmethod
    def of(
        cls, parts: Sequence[Part], tables: Sequence[pa.Table | None], schemas: Sequence[Sequence[pa.Field]]
    ) -> Samples | None:
        """None: a part has no sample, or all rows of its sample are deleted and others are not."""
        total = max(1, sum(part.live for part in parts))
        kept: list[pa.Table] = []
        weights = [np.zeros(0)]
        for part, table in zip(parts, tables, strict=True):
            if table is None:
                return None
            at_S = table[AT].to_numpy()
            left = np.arange(len(at_S)) if part.deleted_N is None else np.flatnonzero(~part.deleted_N[at_S])
            if not len(left) and part.live:
                return None
            kept.append(table.take(pa.array(left, pa.int64())))
            weights.append(np.full(len(left), part.live / max(1, len(left)) / total))
        # a column that a part holds and its sample does not is one of long texts or of mixed values
        held = [{field.name for field in schema} for schema in schemas]
        names = {name for names in held for name in names}
        for table, there in zip(kept, held, strict=True):
            names -= there - set(table.column_names)

        def read(place: int, name: str) -> pa.Array | None:
            there = name in kept[place].column_names
            return kept[place][name].combine_chunks() if there else None

        return cls(Columns([len(table) for table in kept], read), np.concatenate(weights), names)

    def share(self, names: Sequence[str], test: Meets) -> float | None:
        """The share of the rows that meet a test; None: a column is not in the samples."""
        if not self.names.issuperset(names):
            return None
        return float(self.weight_S @ self.columns.meets(names, test))
