"""What do bfloat16 and int8 cost in quality?

Each serving form against float32 on a retrieval task: the cosine between vectors of the same text, and the
difference in nDCG@10 with its 95 % paired interval over the queries. SciFact where MOEMBED_DATA holds it,
else functions of installed packages asked for by their summaries. all-MiniLM-L6-v2, dense and with every
second layer upcycled to eight experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moembed.compare.significance import paired_difference
from moembed.data.docstrings import collect
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.systems import KeepsDocuments
from moembed.evaluation.tasks import evaluate
from moembed.runs.bench import Options, Row
from moembed.types import UserError

from . import models, texts
from .texts import paired, reduced

FORMS = ("float32", "bfloat16", "int8")
METRIC = "ndcg@10"


def rows(options: Options) -> Iterator[Row]:
    task = some_task(300 if options.quick else 800)
    with TemporaryDirectory() as name:
        upcycled = models.saved(models.upcycled_minilm(), Path(name) / "upcycled")
        for label, folder in {"MiniLM": models.minilm(), "MiniLM, 8 experts": upcycled}.items():
            yield from compared(f"{label}, {task.name}, {len(task.documents):,} documents", folder, task)


def compared(question: str, folder: Path, task: RetrievalTask) -> Iterator[Row]:
    exact_NM, exact_Q = np.empty(0), np.empty(0)
    for form in FORMS:
        try:
            model = Embedder.from_pretrained(folder, dtype=form, device="cpu")
        except UserError as error:
            yield Row(question, form, note=str(error))
            continue
        encoder = KeepsDocuments(model)
        score_Q = evaluate(task, encoder, [METRIC]).values[METRIC]
        document_NM = encoder.documents
        note = ""
        if form == "float32":
            exact_NM, exact_Q = document_NM, score_Q
        else:
            cosine_N = (document_NM * exact_NM).sum(1)
            yield Row(question, form, float(cosine_N.mean()), "cosine", note=f"least {cosine_N.min():.4f}")
            gap = paired_difference(score_Q, exact_Q)
            note = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] against float32"
        yield Row(question, form, float(score_Q.mean()), METRIC, note=note)


def some_task(size: int) -> RetrievalTask:
    """A task of at most ``size`` documents, those that answer a query first."""
    folder = texts.DATA / "eval" / "scifact-en"
    if folder.is_dir():
        return reduced(load_task(folder), size)
    pairs = {pair.document: pair.query for pair in collect().train[:size]}
    return paired("docstrings", list(pairs.values()), list(pairs))
