"""Figures that others measured too: our whole way from files to scores must give them again.

all-MiniLM-L6-v2 in float32 at 256 tokens, on files of MOEMBED_DATA. Both figures are those of
sentence-transformers with pytrec_eval on the same files and those that MTEB publishes for the model.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moembed.compare.scores import MAIN, statistic
from moembed.embedder import Embedder
from moembed.evaluation.files import load_any
from moembed.evaluation.tasks import evaluate

DATA = os.environ.get("MOEMBED_DATA", "")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="MOEMBED_DATA does not name the folder of the task files")
@pytest.mark.parametrize(("file", "known"), [("scifact-en", 0.6451), ("sts-stsb-en.parquet", 0.8203)])
def test_known_good_figures(file: str, known: float, minilm: Path) -> None:
    model = Embedder.from_pretrained(minilm, dtype="float32")
    model.tokenizer.max_length = 256
    task = load_any(Path(DATA) / "eval" / file)
    scores = evaluate(task, model)
    main = MAIN[task.kind]
    assert statistic(main)(scores.values[main]) == pytest.approx(known, abs=0.0005)
