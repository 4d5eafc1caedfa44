"""How many pairs does the demo train on in its five minutes, with this code and with another version of it?

The demo's own recipe and pairs, for a fixed number of steps, from texts to moved weights. Each version runs
in a process of its own with its own source tree, and they take turns: `moembed bench demo --against
FOLDER_OR_COMMIT`. The batches are the same, so a pair costs both the same work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import moembed
from moembed.data.docstrings import collect
from moembed.runs.bench import AloneError, Options, Row, Timing, ratio, speed_row

STEPS, BATCH, SECONDS = 4, 128, 300
ENOUGH = 4096  # pairs that are handed over; a run meets fewer
THIS, OTHER = "this code", "the code of --against"
TARGET = ">= 3"
TIMEOUT = 900.0  # seconds of one run


def rows(options: Options) -> Iterator[Row]:
    steps = 2 if options.quick else STEPS
    trees = {THIS: Path(moembed.__file__).parents[1]} | ({OTHER: options.against} if options.against else {})
    with TemporaryDirectory() as name:
        pairs = Path(name) / "pairs.json"
        found = [(pair.query, pair.document) for pair in collect().train[:ENOUGH]]
        pairs.write_text(json.dumps(found), encoding="utf-8")
        rounds = [
            {title: train(tree, pairs, steps, options.threads) for title, tree in trees.items()}
            for _ in range(max(1, options.repeats - 1))
        ]
    timings = {title: Timing(tuple(each[title] for each in rounds)) for title in trees}
    question, trained = f"the demo's training, {steps} steps of {BATCH} pairs", steps * BATCH
    for title in reversed(trees):
        compared = title == THIS and OTHER in trees
        to, target = (OTHER, TARGET) if compared else (None, None)
        yield speed_row(question, timings, title, trained, "pairs/s", to, target)
        pairs_then = trained / timings[title].median * SECONDS
        faster = ratio(timings, to, title) if to else None
        yield Row("pairs in five minutes at this speed", title, pairs_then, "pairs", None, faster, to)
    if OTHER not in trees:
        yield Row(question, OTHER, note="not given: moembed bench demo --against FOLDER_OR_COMMIT")


def train(tree: Path, pairs: Path, steps: int, threads: int) -> float:
    """Seconds of the steps, as the trainer of that source tree counts them.

    Raises:
        AloneError: the process failed, or imported another moembed.
    """
    script = str(Path(__file__).with_name("demo_steps.py"))
    command = [sys.executable, script, str(tree), str(pairs), str(steps), str(threads)]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    if done.returncode:
        raise AloneError(f"training with {tree} failed: {done.stderr.strip().splitlines()[-1:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["pairs"] != steps * BATCH:
        raise AloneError(f"training with {tree} took {answer['pairs']} pairs, not {steps * BATCH}")
    return answer["seconds"]
