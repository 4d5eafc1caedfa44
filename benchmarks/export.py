"""What does a model cost in each runtime on a CPU: loading, memory, speed, latency?

The shape of Nomic Embed v2 with random weights, and MiniLM with every second layer upcycled to eight experts.
Every runtime has a process of its own and reads our folder or what we exported from it. Loading lasts from
the files to the first vector, the libraries being imported; memory is what is resident after all texts, above
what the libraries take. Tokenisation is part of every figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from moembed.runs.bench import AloneError, Options, Row

from . import models, texts
from .runtimes import Measured, in_its_own_process

CONTENDERS = (
    ("moembed", "float32"),
    ("moembed", "bfloat16"),
    ("moembed", "int8"),
    ("onnxruntime", "float32"),
    ("onnxruntime", "int8"),
    ("llama.cpp", "f16"),
    ("llama.cpp", "q8_0"),
    ("sentence-transformers", "float32"),
    ("sentence-transformers", "bfloat16"),
)
MODELS = {"upcycled MiniLM": (models.upcycled_minilm, 64), "published shape": (models.published, 16)}


def rows(options: Options) -> Iterator[Row]:
    for title, (make, count) in MODELS.items():
        some = texts.sample(count // 2 if options.quick else count)
        with TemporaryDirectory() as place:
            folder = models.saved(make(), Path(place) / "model")
            for runtime, form in CONTENDERS:
                try:
                    measured = in_its_own_process(runtime, folder, form, some, options)
                except AloneError as error:
                    yield Row(title, f"{runtime} {form}", note=str(error))
                else:
                    yield from told(title, f"{runtime} {form}", measured, len(some))


def told(title: str, name: str, measured: Measured, count: int) -> Iterator[Row]:
    documents, query = measured.documents, measured.query
    yield Row(f"{title}: to the first vector", name, measured.load, "s")
    yield Row(f"{title}: resident memory", name, measured.memory / 2**20, "MiB")
    yield Row(f"{title}: {count} texts", name, count / documents.median, "docs/s", documents.spread)
    yield Row(f"{title}: one short query, p50", name, 1e3 * query.median, "ms", query.spread)
