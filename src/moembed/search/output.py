"""A file of pairs that appears whole, and the folder beside it that keeps what is finished until then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moembed.data.layouts import corpus_shards, shards
from moembed.data.sources import Source, SourceConfig
from moembed.data.writer import jsonl_writer
from moembed.files import write_json, write_whole
from moembed.types import UserError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_SCHEMA = pa.schema(
    {
        "query": pa.large_string(),
        "document": pa.large_string(),
        "negatives": pa.large_list(pa.large_string()),
        "language": pa.string(),
        "source": pa.string(),
    }
)


class Partial:
    """``OUT.partial``: finished blocks of ``OUT``, as .npy files, and the options they were made with.

    Raises:
        UserError: ``out`` exists and may not be replaced, or has an unknown suffix; blocks in the
            folder were made with other options, or it is somebody else's.
    """

    def __init__(self, out: Path, options: Row, overwrite: bool = False) -> None:
        self.out, self.folder = out, out.with_name(out.name + ".partial")
        if not out.name.endswith(SUFFIXES):  # told now, not after hours
            raise UserError(f"{out} does not end in {', '.join(SUFFIXES)}")
        if out.exists() and not overwrite:
            raise UserError(f"{out} already exists: choose another name, or pass --overwrite")
        manifest = self.folder / "manifest.json"
        try:
            found = json.loads(manifest.read_bytes())
        except FileNotFoundError:
            self._start(options)
        except ValueError as error:
            raise UserError(f"{manifest} is not valid JSON ({error}): delete {self.folder}") from None
        else:
            self._go_on(found, json.loads(json.dumps(options)))

    def _start(self, options: Row) -> None:
        if self.folder.exists() and any(file.suffix != ".tmp" for file in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds files of somebody else: move them away")
        self._write(options)

    def _go_on(self, found: Row, options: Row) -> None:
        changes = [
            f"{name} was {found.get(name)} and is {options.get(name)}"
            for name in sorted(found.keys() | options.keys())
            if found.get(name) != options.get(name)
        ]
        if changes and any(self.folder.glob("*.npy")):
            raise UserError(
                f"{self.folder} was started with other options ({'; '.join(changes)}): "
                "repeat the first ones, or delete it"
            )
        self._write(options)

    def _write(self, options: Row) -> None:
        write_json(self.folder / "manifest.json", options)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def finish(self, blocks: Iterable[list[Row]], nothing: str) -> None:
        """Write the file, then delete the folder.

        Raises:
            UserError: ``nothing``, where the blocks hold no row: no file is written.
        """
        blocks = iter(blocks)
        first = next(filter(None, blocks), None)
        if first is None:
            raise UserError(nothing)
        blocks = chain([first], blocks)
        if self.out.suffix == ".parquet":
            write_whole(self.out, lambda file: _write_parquet(file, blocks))
        else:
            with jsonl_writer(self.out) as write:
                for row in chain.from_iterable(blocks):
                    write(row)
        shutil.rmtree(self.folder)


def stamps(pairs: SourceConfig, corpus: SourceConfig | None = None) -> list[Any]:
    """What changes when the rows of the inputs do, or which of them are read."""
    inputs = [(pairs, shards)] + ([(corpus, corpus_shards)] if corpus else [])
    return [
        [config.model_dump(), [shard.stamp() for shard in find(config.path, config.split, config.subset)]]
        for config, find in inputs
    ]


def pair_rows(
    source: Source, rows: np.ndarray, negatives: Iterable[Sequence[str]] | None = None
) -> list[Row]:
    """The pairs of ``rows`` as they are written, with their own negatives or these; nothing empty is kept."""
    pairs = source.pairs(rows)
    columns = (
        (pair.query for pair in pairs),
        (pair.document for pair in pairs),
        map(list, negatives if negatives is not None else (pair.negatives for pair in pairs)),
        source.labels("language", rows),
        source.labels("group", rows),
    )
    return [
        {name: value for name, value in zip(_SCHEMA.names, values, strict=True) if value}
        for values in zip(*columns, strict=True)
    ]


def _write_parquet(file: BinaryIO, blocks: Iterable[list[Row]]) -> None:
    with pq.ParquetWriter(file, _SCHEMA) as writer:
        for block in blocks:
            writer.write_table(pa.Table.from_pylist(block, _SCHEMA))
