"""The runtimes that are compared: each takes a path and a form and gives a function from texts to vectors.

A runtime runs in a process of its own, so that none meets the threads or the memory of another. Those that
take turns (``Running``) sleep while it is not theirs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
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
from moembed.runs.bench import (
    AloneError,
    Options,
    Timing,
    alone,
    clock,
    interleave,
    missing,
    resident_memory,
)
from moembed.tokenizer import Tokenizer

from .texts import QUERY

Encode = Callable[[list[str]], Any]  # rows of vectors, in the order of the texts
TIMEOUT = 600.0  # seconds for one export or one measurement
NOWHERE = "moembed/benchmark"  # a name that fastembed asks for


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

    def encode(texts: list[str]) -> np.ndarray:
        rows, _ = tokenizer.rows(texts)
        vectors: dict[int, np.ndarray] = {}
        for group in token_budget([len(row) for row in rows], 4096):
            longest = max(len(rows[i]) for i in group)
            token_BS = np.array([rows[i] + [0] * (longest - len(rows[i])) for i in group])
            mask_BS = np.arange(longest) < np.array([[len(rows[i])] for i in group])
            feed = {"input_ids": token_BS, "attention_mask": mask_BS.astype(np.int64)}
            vectors.update(zip(group, session.run(["sentence_embedding"], feed)[0], strict=True))
        return np.stack([vectors[i] for i in range(len(texts))])

    return encode


def fastembed(path: Path, form: str, threads: int) -> Encode:
    """In its own batches of 256 texts in the callers' order; the graph is the one onnxruntime gets."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model=NOWHERE,
        pooling=PoolingType.DISABLED,  # the graph pools, and makes unit vectors
        normalization=False,
        sources=ModelSource(hf=NOWHERE),  # it wants one; the files are in ``path``
        dim=read_config(path).width,
        output_name="sentence_embedding",
    )
    model = TextEmbedding(NOWHERE, threads=threads, cuda=False, specific_model_path=str(path))
    return lambda texts: np.stack(list(model.embed(texts)))


def llamacpp(path: Path, form: str, threads: int) -> Encode:
    """In its own batches of 512 tokens."""
    from llama_cpp import Llama

    model = Llama(
        str(path), embedding=True, n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    return lambda texts: np.array(model.embed(texts, normalize=True))


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
    "fastembed": Runtime(fastembed, "fastembed", "fastembed", write_onnx),
    "llama.cpp": Runtime(llamacpp, "llama_cpp", "llama-cpp-python", write_gguf),
}


# ---- in turns ----------------------------------------------------------------------------------------------


class Running:
    """A runtime with a model loaded, in a process of its own that computes when it is asked to.

    Raises:
        AloneError: it is not installed, cannot hold this model, died or took too long.
    """

    def __init__(self, name: str, files: Files, form: str, some: list[str], threads: int) -> None:
        arguments = (name, files.of(name, form), form, some, threads)
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._result()

    def vectors(self) -> np.ndarray:
        """Of all texts, as unit vectors."""
        found = self._ask("vectors")
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def seconds(self, what: str) -> float:
        """What ``encode`` took of all texts, or ``query`` of one short text, by the clock of its process."""
        return self._ask(what)

    def close(self) -> None:
        self._pipe.close()  # whoever waits for a question ends
        self._process.join(10)
        self._process.kill()
        self._process.join()

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._result()

    def _result(self) -> Any:
        error, result = f"no result within {TIMEOUT:.0f} s", None
        try:
            if self._pipe.poll(TIMEOUT):
                error, result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            error = f"the process died, exit code {self._process.exitcode}"
        if error:
            self.close()
            raise AloneError(error)
        return result


def _answer(pipe: Connection, name: str, path: Path, form: str, some: list[str], threads: int) -> None:
    warnings.simplefilter("ignore")  # that texts are cut is the same for all
    torch.set_num_threads(threads)
    try:
        encode = RUNTIMES[name].load(path, form, threads)
        asked = {
            "encode": lambda: clock(lambda: encode(some)),
            "query": lambda: clock(lambda: encode([QUERY])),
            "vectors": lambda: np.asarray(encode(some), dtype=np.float32),
        }
        pipe.send(("", None))
        while True:
            what = pipe.recv()
            pipe.send(("", asked[what]()))
    except EOFError:
        return
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {' '.join(str(error).split())}", None))


def turns(running: Mapping[str, Running], what: str, repeats: int, warmup: int = 0) -> dict[str, Timing]:
    """As `moembed.runs.bench.interleave`."""
    rounds = [
        {name: contender.seconds(what) for name, contender in running.items()}
        for _ in range(warmup + repeats)
    ][warmup:]
    return {name: Timing(tuple(seconds[name] for seconds in rounds)) for name in running}


class Files:
    """What each runtime reads: a model folder, or what is exported from it, once for every form."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place = folder, place

    def of(self, name: str, form: str) -> Path:
        """
        Raises:
            AloneError: the runtime is not installed, or cannot hold this model.
        """
        runtime = RUNTIMES[name]
        if note := missing(runtime.package):
            raise AloneError(note)
        if not runtime.export:
            return self.folder
        path = self.place / f"{runtime.export.__name__}-{form}"
        if not path.exists():
            alone(runtime.export, self.folder, path, form, timeout=TIMEOUT)
        return path


# ---- one after the other -----------------------------------------------------------------------------------


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
    settings = (form, some, options.repeats, options.threads)
    with TemporaryDirectory() as place:
        path = Files(folder, Path(place)).of(name, form)
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
