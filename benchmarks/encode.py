"""How fast does a CPU turn texts into vectors, beside other ways to run the same weights?

The shape of Nomic Embed v2 with random weights against the peak of the hardware's matrix products, against
the textbook way (fp32, a loop over experts, batches of 32 in the callers' order, computed on padding) and
against llama.cpp in each of its types, a process each that take turns. Tokenisation is part of every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.machine import best_dtype, has_bfloat16
from moembed.packing import pack
from moembed.runs.bench import (
    AloneError,
    Options,
    Row,
    interleave,
    ratio,
    speed_row,
    time_row,
)
from moembed.types import UserError

from . import layers, models, runtimes, texts
from .runtimes import Encode, Files, Running, turns

FORMS = (
    ("bfloat16", "float32", "int8") if has_bfloat16() else ("float32", "int8")
)  # emulated bf16 serves nobody
GGUF = ("f16", "q8_0", "bf16", "f32")
OURS = f"moembed {best_dtype()}"
AGAINST_LLAMACPP = ">= 8"  # with AMX: without, the peak itself would give 4.2, see records/performance.md
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


def corpus(folder: Path, ours: dict[str, Encode], options: Options) -> Iterator[Row]:
    some = texts.sample(32 if options.quick else 64)
    tokenizer = read_folder(folder).tokenizer
    lengths = [len(row) for row in tokenizer.rows(some)[0]]
    contenders: dict[str, Callable[[], object]] = {"tokenizer": partial(tokenizer.rows, some)}
    contenders |= {name: layers.product(*shape) for name, shape in layers.PRODUCTS.items()}
    contenders |= {name: partial(encode, some) for name, encode in ours.items()}
    with torch.inference_mode():
        timings = interleave(contenders, options.repeats)

    question = f"published shape, {len(some)} texts, {sum(lengths):,} tokens"
    note = f"{min(lengths)} to {max(lengths)} tokens each"
    yield speed_row(question, timings, "tokenizer", sum(lengths), "tokens/s", note=note)
    for name in ours:
        yield speed_row(question, timings, name, len(some), "docs/s")
        yield speed_row(question, timings, name, sum(lengths), "tokens/s")

    best, work = layers.peak(timings)
    yield speed_row("peak", timings, best, work / 1e9, "GFLOP/s")
    share = models.flops(models.PUBLISHED, lengths) / work * ratio(timings, best, OURS)
    yield Row("published shape, share of the peak", OURS, 100 * share, "%", target=">= 65")

    few = some[:32]  # of the reference, which is slow
    slow = {REFERENCE: partial(reference(folder), few), OURS: partial(ours[OURS], few)}
    timings = interleave(slow, 1, warmup=0)  # ours is warm
    question = f"published shape, {len(few)} texts in batches of 32"
    yield speed_row(question, timings, REFERENCE, len(few), "docs/s")
    yield speed_row(question, timings, OURS, len(few), "docs/s", REFERENCE, ">= 12")


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
    timings = interleave(contenders, 20 * options.repeats)
    for name in ours:
        int8 = name == "moembed int8"
        yield time_row(
            "published shape, one short query, p50", timings, name,
            OURS if int8 else None, "<= 0.7" if int8 else None,
        )  # fmt: skip


def against_llamacpp(folder: Path, options: Options) -> Iterator[Row]:
    some = texts.sample(8 if options.quick else 16)
    question = f"published shape, {len(some)} texts, a process each"
    with TemporaryDirectory() as place, ExitStack() as stack:
        files, running = Files(folder, Path(place)), {}
        for form in GGUF[:2] if options.quick else GGUF:
            name = f"llama.cpp {form}"
            try:
                running[name] = Running("llama.cpp", files, form, some, options.threads)
            except AloneError as error:
                yield Row(question, name, note=str(error))
                continue
            stack.callback(running[name].close)
        peers = list(running)
        running[OURS] = Running("moembed", files, best_dtype(), some, options.threads)
        stack.callback(running[OURS].close)
        timings = turns(running, "encode", max(1, options.repeats - 1), warmup=1)
    for name in peers:
        yield speed_row(question, timings, name, len(some), "docs/s")
    best = min(peers, key=lambda name: timings[name].median, default=None)
    yield speed_row(question, timings, OURS, len(some), "docs/s", best, AGAINST_LLAMACPP if best else None)
