"""Questions about paragraphs -> pairs to train on, and a task that asks about the same paragraphs.

Usage: python corpus.py PAIRS.parquet OUT [paragraphs] [questions]

`moembed data split` keeps documents apart; here they are meant to be known. Of every paragraph that has more
than ``questions`` questions (4), so many are trained on and one more is asked. ``paragraphs`` (1,500) are
taken, evenly over the file. Writes OUT/train.parquet (query, document) and OUT/task, a BEIR folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def build(source: Path, out: Path, paragraphs: int = 1500, questions: int = 4) -> None:
    pairs = pq.read_table(source, columns=["query", "document"])
    asked: dict[str, list[str]] = {}
    for query, document in zip(*(pairs[name].to_pylist() for name in pairs.column_names), strict=True):
        known = asked.setdefault(document, [])
        if query not in known:
            known.append(query)
    enough = [document for document, queries in asked.items() if len(queries) > questions]
    if len(enough) < paragraphs:
        found = f"{len(enough):,} paragraphs with more than {questions} questions"
        sys.exit(f"{source} has {found}, not {paragraphs:,}: ask for fewer of either")
    chosen = [enough[i * len(enough) // paragraphs] for i in range(paragraphs)]
    number = [str(i) for i in range(paragraphs)]
    (out / "task").mkdir(parents=True, exist_ok=True)
    train = [(query, document) for document in chosen for query in asked[document][:questions]]
    tables = {
        "train": {"query": [query for query, _ in train], "document": [document for _, document in train]},
        "task/corpus": {"_id": number, "text": chosen},
        "task/queries": {"_id": number, "text": [asked[document][questions] for document in chosen]},
        "task/qrels": {"query-id": number, "corpus-id": number, "score": [1] * paragraphs},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), out / f"{name}.parquet")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    build(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
