"""How fast does a CPU turn texts into vectors, beside other ways to run the same weights?

The shape of Nomic Embed v2 with random weights against the peak of the hardware's matrix products, against
the textbook way (fp32, a loop over experts, batches of 32 in the callers' order, computed on padding) and
against llama.cpp; all-MiniLM-L6-v2 against sentence-transformers. Tokenisation is part of every figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.packing import pack
from moembed.runs.bench import (
    AloneError,
    Options,
    Row,
    Timing,
    interleave,
    missing,
    ratio,
    speed_row,
    time_row,
)
from moembed.types import UserError

from . import layers, models, runtimes, texts
from .runtimes import Encode, in_its_own_process

FORMS = ("bfloat16", "float32", "int8")
GGUF = ("f16", "q8_0", "bf16", "f32")
OURS = "moembed bfloat16"
PRODUCTS = ((4096, 768, 3072), (4096, 3072, 768), (2048, 2048, 2048))  # rows, into, out
REFERENCE = "padded, loop, float32"


def rows(options: Options) -> Iterator[Row]:
    with TemporaryDirectory() as name:
        folder = models.saved(models.published(), Path(name) / "published")
        ours: dict[str, Encode] = {}
        for form in FORMS:
            try:
                ours[f"moembed {form}"] = runtimes.moembed(folder, form, options.threads)
            except UserError as error:
                yield Row("published shape", f"moembed {form}", note=str(error))
        yield from corpus(folder, ours, options)
        yield from short_query(ours, options)
        ours.clear()
        yield from against_llamacpp(folder, options)
    yield from against_sentence_transformers(options)


def corpus(folder: Path, ours: dict[str, Encode], options: Options) -> Iterator[Row]:
    some = texts.sample(32 if options.quick else 64)
    tokenizer = read_folder(folder).tokenizer
    lengths = [len(row) for row in tokenizer.rows(some)[0]]
    products = {f"matrix product {shape}": shape for shape in PRODUCTS}
    contenders: dict[str, Callable[[], object]] = {"tokenizer": partial(tokenizer.rows, some)}
    contenders |= {name: product(*shape) for name, shape in products.items()}
    contenders |= {name: partial(encode, some) for name, encode in ours.items()}
    with torch.inference_mode():
        timings = interleave(contenders, options.repeats)

    question = f"published shape, {len(some)} texts, {sum(lengths):,} tokens"
    note = f"{min(lengths)} to {max(lengths)} tokens each"
    yield speed_row(question, timings, "tokenizer", sum(lengths), "tokens/s", note=note)
    for name in ours:
        yield speed_row(question, timings, name, len(some), "docs/s")
        yield speed_row(question, timings, name, sum(lengths), "tokens/s")

    work = {name: 2.0 * math.prod(shape) for name, shape in products.items()}
    best = max(work, key=lambda name: work[name] / timings[name].median)
    yield speed_row("peak", timings, best, work[best] / 1e9, "GFLOP/s")
    share = models.flops(models.PUBLISHED, lengths) / work[best] * ratio(timings, best, OURS)
    yield Row("share of the peak", OURS, 100 * share, "%", target=">= 55")

    slow = {REFERENCE: partial(reference(folder), some), OURS: partial(ours[OURS], some)}
    timings = interleave(slow, 1, warmup=0)  # it takes minutes, and ours is warm
    yield speed_row(question, timings, REFERENCE, len(some), "docs/s")
    yield speed_row(question, timings, OURS, len(some), "docs/s", REFERENCE, ">= 12")


def product(rows: int, into: int, out: int) -> Callable[[], object]:
    dtype = layers.native("cpu")
    run = layers.packed_linear(torch.randn(out, into, dtype=dtype), rows)
    return partial(run, torch.randn(rows, into, dtype=dtype))


def reference(folder: Path) -> Encode:
    """Padding is computed like any token, so the vectors are of no use; the time is."""
    model = Embedder(read_folder(folder)).eval()
    model.encoder.attention_backend, model.encoder.moe_backend = "padded", "loop"

    @torch.inference_mode()
    def encode(some: list[str]) -> None:
        rows, _ = model.tokenizer.rows(some)
        for batch in (rows[i : i + 32] for i in range(0, len(rows), 32)):
            longest = max(map(len, batch))
            model(pack([row + [0] * (longest - len(row)) for row in batch]))

    return encode


def short_query(ours: dict[str, Encode], options: Options) -> Iterator[Row]:
    contenders = {name: partial(encode, [texts.QUERY]) for name, encode in ours.items()}
    timings = interleave(contenders, 10 * options.repeats)
    for name in ours:
        int8 = name == "moembed int8"
        yield time_row(
            "published shape, one short query, p50", timings, name,
            OURS if int8 else None, "<= 0.7" if int8 else None,
        )  # fmt: skip


def against_llamacpp(folder: Path, options: Options) -> Iterator[Row]:
    some = texts.sample(8 if options.quick else 16)
    question = f"published shape, {len(some)} texts, a process each"
    few = replace(options, repeats=1)
    timings: dict[str, Timing] = {}
    for form in GGUF[:2] if options.quick else GGUF:
        try:
            measured = in_its_own_process("llama.cpp", folder, form, some, few)
        except AloneError as error:
            yield Row(question, f"llama.cpp {form}", note=str(error))
            continue
        timings[f"llama.cpp {form}"] = measured.documents
        yield speed_row(question, timings, f"llama.cpp {form}", len(some), "docs/s")
    best = min(timings, key=lambda name: timings[name].median, default=None)
    timings[OURS] = in_its_own_process("moembed", folder, "bfloat16", some, few).documents
    yield speed_row(question, timings, OURS, len(some), "docs/s", best, ">= 10" if best else None)


def against_sentence_transformers(options: Options) -> Iterator[Row]:
    some, minilm = texts.sample(64 if options.quick else 256), models.minilm()
    question = f"all-MiniLM-L6-v2, {len(some)} texts"
    kinds = {"moembed": runtimes.moembed}
    if note := missing("sentence-transformers"):
        yield Row(question, "sentence-transformers", note=note)
    else:
        kinds["sentence-transformers"] = runtimes.sentence_transformers
    forms = ("bfloat16", "float32")
    contenders = {
        f"{kind} {form}": partial(load(minilm, form, options.threads), some)
        for form in forms
        for kind, load in kinds.items()
    }
    timings = interleave(contenders, options.repeats)
    for form in forms:
        peer = f"sentence-transformers {form}"
        if peer in timings:
            yield speed_row(question, timings, peer, len(some), "docs/s")
        to, target = (peer, ">= 1.3" if form == "bfloat16" else None) if peer in timings else (None, None)
        yield speed_row(question, timings, f"moembed {form}", len(some), "docs/s", to, target)
