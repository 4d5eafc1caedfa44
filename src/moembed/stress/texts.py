"""What stress tests are made of, all of it written for them; the words are in ``words/``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import numpy as np


def _read(name: str) -> str:
    return (files("moembed.stress") / "words" / name).read_text(encoding="utf-8")


THINGS = _read("things.txt").split()  # a single word each and no two alike: words alone tell them apart
FIRST_NAMES = _read("first_names.txt").split()
LAST_NAMES = _read("last_names.txt").split()
CITIES = _read("cities.txt").split()
# Sentences that answer no question about a pass key or a fact.
FILLER = _read("filler.txt").splitlines()
# Statements and the questions they answer; invented, so that no model knows the answer from elsewhere.
FACTS = [(said, asked) for said, asked in (line.split("\t") for line in _read("facts.tsv").splitlines())]


def people(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` different full names."""
    chosen = rng.choice(len(FIRST_NAMES) * len(LAST_NAMES), size=count, replace=False)
    return [f"{FIRST_NAMES[i // len(LAST_NAMES)]} {LAST_NAMES[i % len(LAST_NAMES)]}" for i in chosen]


def filler(rng: np.random.Generator) -> Iterator[int]:
    """Rows of ``FILLER`` without end: all of them in random order, then again in another."""
    while True:
        yield from rng.permutation(len(FILLER)).tolist()
