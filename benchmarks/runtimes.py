"""The runtimes that are compared: each takes a path and a form and gives a function from texts to vectors."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend

from moembed.embedder import Embedder
from moembed.export.gguf.export import Kind, export_gguf
from moembed.export.onnx.export import export_onnx
from moembed.folder.read import read_config, read_folder, read_settings
from moembed.packing import token_budget
from moembed.runs.bench import AloneError, Options, Timing, alone, interleave, missing, resident_memory
from moembed.tokenizer import Tokenizer

from .texts import QUERY

Encode = Callable[[list[str]], object]
TIMEOUT = 600.0  # seconds for one export or one measurement


def moembed(path: Path, form: str, threads: int) -> Encode:
    """A model as it serves; ``form`` is its dtype. Every suite that encodes makes ours here."""
    return Embedder.from_pretrained(path, dtype=form, device="cpu").encode


def sentence_transformers(path: Path, form: str, threads: int) -> Encode:
    model = sentence_transformer(path, getattr(torch, form))
    return lambda texts: model.encode(texts, show_progress_bar=False)


def sentence_transformer(path: Path, dtype: torch.dtype) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    return SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": dtype})


def onnxruntime(path: Path, form: str, threads: int) -> Encode:
    """Texts of like length in padded batches of at most 4,096 tokens."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    file = str(path / "onnx" / "model.onnx")
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    backend = Backend.from_file(str(path / "tokenizer.json"))
    tokenizer = Tokenizer(backend, read_settings(path, read_config(path)).max_length)

    def encode(texts: list[str]) -> None:
        rows, _ = tokenizer.rows(texts)
        for group in token_budget([len(row) for row in rows], 4096):
            longest = max(len(rows[i]) for i in group)
            token_BS = np.array([rows[i] + [0] * (longest - len(rows[i])) for i in group])
            mask_BS = np.arange(longest) < np.array([[len(rows[i])] for i in group])
            feed = {"input_ids": token_BS, "attention_mask": mask_BS.astype(np.int64)}
            session.run(["sentence_embedding"], feed)

    return encode


def llamacpp(path: Path, form: str, threads: int) -> Encode:
    """In its own batches of 512 tokens."""
    from llama_cpp import Llama

    model = Llama(
        str(path), embedding=True, n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    return lambda texts: model.embed(texts, normalize=True)


def write_onnx(folder: Path, out: Path, form: str) -> None:
    export_onnx(read_folder(folder), out, int8=form == "int8")


def write_gguf(folder: Path, out: Path, form: Kind) -> None:
    export_gguf(read_folder(folder), out, form, fold_expert_bias=True)


@dataclass(frozen=True)
class Runtime:
    load: Callable[[Path, str, int], Encode]
    library: str  # by the name it is imported by
    package: str  # by the name it is installed by
    export: Callable[[Path, Path, Any], None] | None = None  # what it reads, made of a model folder


RUNTIMES = {
    "moembed": Runtime(moembed, "torch", "torch"),
    "sentence-transformers": Runtime(sentence_transformers, "sentence_transformers", "sentence-transformers"),
    "onnxruntime": Runtime(onnxruntime, "onnxruntime", "onnxruntime", write_onnx),
    "llama.cpp": Runtime(llamacpp, "llama_cpp", "llama-cpp-python", write_gguf),
}


@dataclass(frozen=True)
class Measured:
    load: float  # seconds from the files to the first vector, the libraries being imported
    memory: int  # bytes resident when all texts have been encoded, above what the libraries take
    documents: Timing  # of all texts
    query: Timing  # of one short text


def in_its_own_process(name: str, folder: Path, form: str, some: list[str], options: Options) -> Measured:
    """Load a model folder, or what is exported from it, in a runtime, and run it.

    Raises:
        AloneError: it is not installed, cannot hold this model, died or took too long.
    """
    runtime = RUNTIMES[name]
    if note := missing(runtime.package):
        raise AloneError(note)
    settings = (form, some, options.repeats, options.threads)
    with TemporaryDirectory() as place:
        path = folder
        if runtime.export:
            path = Path(place) / "model"
            alone(runtime.export, folder, path, form, timeout=TIMEOUT)
        return alone(measure, name, path, *settings, timeout=TIMEOUT).result


def measure(name: str, path: Path, form: str, some: list[str], repeats: int, threads: int) -> Measured:
    warnings.simplefilter("ignore")  # that texts are cut is the same for all
    torch.set_num_threads(threads)
    runtime = RUNTIMES[name]
    import_module(runtime.library)
    before = resident_memory()
    start = time.perf_counter()
    encode = runtime.load(path, form, threads)
    encode([QUERY])
    load = time.perf_counter() - start
    documents = interleave({name: lambda: encode(some)}, repeats)[name]
    memory = resident_memory() - before
    query = interleave({name: lambda: encode([QUERY])}, 10 * repeats)[name]
    return Measured(load, memory, documents, query)
