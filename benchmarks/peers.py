"""How fast are texts turned into vectors, beside every other runtime of the same weights and precision?

all-MiniLM-L6-v2, dense, on texts that every runtime reads whole. Every runtime has a process of its own and
they take turns; each batches in its own way. sentence-transformers reads the model folder; onnxruntime and
fastembed read what `moembed export --format onnx` wrote (int8: weights by output, activations by token),
llama.cpp what `--format gguf` wrote. The note is the lowest cosine of a text's vector to that of moembed in
float32: a runtime that computes something else is no peer. Tokenisation is part of every figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moembed.folder.read import read_folder
from moembed.machine import has_bfloat16
from moembed.runs.bench import AloneError, Options, Row, speed_row
from moembed.tokenizer import Tokenizer

from . import models, texts
from .runtimes import Files, Running, turns

# precision: ours, and every peer whose matrices have as many bits
PRECISIONS = {
    "16 bits": ("bfloat16", ("sentence-transformers bfloat16", "llama.cpp f16", "llama.cpp bf16")),
    "32 bits": (
        "float32",
        ("sentence-transformers float32", "onnxruntime float32", "fastembed float32", "llama.cpp f32"),
    ),
    "8 bits": ("int8", ("onnxruntime int8", "fastembed int8", "llama.cpp q8_0")),
}
if not has_bfloat16():
    del PRECISIONS["16 bits"]  # emulated bf16 serves nobody
TARGET = ">= 2"
SAME = 0.98  # cosine; below it, something else was computed


def rows(options: Options) -> Iterator[Row]:
    folder = models.minilm()
    tokenizer = read_folder(folder).tokenizer
    some = whole(texts.sample(32 if options.quick else 128), tokenizer)
    tokens = sum(map(len, tokenizer.rows(some)[0]))
    question = f"all-MiniLM-L6-v2, {len(some)} texts, {tokens:,} tokens"
    with TemporaryDirectory() as place, ExitStack() as stack:
        files = Files(folder, Path(place))
        running: dict[str, Running] = {}
        cosines: dict[str, float] = {}
        exact_NM = np.empty(0)

        # load each, and warm it up with what it will be timed on
        names = [name for ours, peers in PRECISIONS.values() for name in (f"moembed {ours}", *peers)]
        for name in sorted(names, key=lambda name: name != "moembed float32"):  # whom all are compared with
            try:
                contender = start(name, files, some, options.threads)
                stack.callback(contender.close)
                vector_NM = contender.vectors()
            except AloneError as error:
                yield Row(question, name, note=str(error))
                continue
            exact_NM = exact_NM if len(exact_NM) else vector_NM
            cosines[name] = float((vector_NM * exact_NM).sum(1).min())
            running[name] = contender

        timings = turns(running, "encode", options.repeats)
    for bits, (form, peers) in PRECISIONS.items():
        ours = f"moembed {form}"
        there = [name for name in peers if name in running and cosines[name] >= SAME]
        best = min(there, key=lambda name: timings[name].median, default=None)
        for name in (name for name in (*peers, ours) if name in running):
            to, target = (best, TARGET) if name == ours and best else (None, None)
            note = f"least cosine {cosines[name]:.4f}"
            if cosines[name] < SAME:
                note += ": it computes something else, and is not compared with"
            yield speed_row(f"{question}, {bits}", timings, name, len(some), "docs/s", to, target, note)


def start(name: str, files: Files, some: list[str], threads: int) -> Running:
    runtime, form = name.rsplit(" ", 1)
    return Running(runtime, files, form, some, threads)


def whole(some: list[str], tokenizer: Tokenizer) -> list[str]:
    """The texts, those that are too long for the model cut, so that no runtime reads more than another."""
    encodings = tokenizer.backend.encode_batch(some)
    limit = tokenizer.max_length
    return [
        text if len(encoding.ids) <= limit else text[: encoding.offsets[limit - 2][0]]
        for text, encoding in zip(some, encodings, strict=True)
    ]
