"""Whole folders of language models: tokenizers that end texts, any padding side, upcycling, and back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from conftest import complete, randomise
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.moe.router import RouterConfig
from moembed.types import TruncationWarning
from moembed.weights.upcycle import UpcycleConfig, upcycle
from tiny_configs import CLASSES, CONFIGS

EQUAL = 1e-5
END = "<|endoftext|>"
Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> Backend:
    """A byte-level BPE in the manner of GPT-2, Llama 3 and Qwen."""
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=120,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz ,?Ġ"),
        special_tokens=[],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


@pytest.fixture
def folder(tmp_path: Path, trained: Backend) -> Folder:
    """``folder("qwen3", "lasttoken", ends="tokenizer.json")``: the file that puts a token behind texts."""

    def make(name: str, pooling: str = "mean", ends: str | None = None, **changes: Any) -> Path:
        model = json.loads(trained.to_str())["model"]
        kind = (
            transformers.Qwen2Tokenizer if name.startswith("qwen") else transformers.PreTrainedTokenizerFast
        )
        special = {"eos_token": END, "pad_token": END, "padding_side": "left"}
        if kind is transformers.Qwen2Tokenizer:
            made = kind(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], **special)
        else:
            made = kind(tokenizer_object=Backend.from_str(trained.to_str()), **special)
            made.add_tokens([AddedToken(END, special=True)])
        end = made.convert_tokens_to_ids(END)
        if ends == "tokenizer.json":
            made.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, end)]
            )
        place = tmp_path / name
        made.save_pretrained(place)
        values = {key: value for key, value in (CONFIGS[name] | changes).items() if key != "model_type"}
        cls = getattr(transformers, CLASSES[name])
        theirs = cls(cls.config_class(**values, pad_token_id=end))
        randomise(theirs, seed=4)
        theirs.save_pretrained(place)
        (place / "config.json").write_text(
            json.dumps({"hidden_size": 16} | json.loads((place / "config.json").read_text()))
        )
        complete(place)
        put(place / "1_Pooling" / "config.json", pooling_mode=pooling, pooling_mode_mean_tokens=False)
        put(place / "tokenizer_config.json", model_max_length=12)
        if ends == "tokenizer_config.json":
            put(place / "tokenizer_config.json", add_eos_token=True)
        return place

    return make


def put(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


@pytest.mark.parametrize(
    ("name", "pooling", "ends"),
    [
        ("qwen3", "lasttoken", "tokenizer.json"),  # as Qwen3-Embedding is published
        ("qwen2", "lasttoken", "tokenizer_config.json"),
        ("mistral", "lasttoken", "tokenizer_config.json"),
        ("llama", "weightedmean", "tokenizer.json"),
        ("gemma3_text", "mean", "tokenizer.json"),
        ("t5", "mean", "tokenizer.json"),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_equal_sentence_transformers(
    name: str, pooling: str, ends: str, side: str, folder: Folder, texts: list[str]
) -> None:
    place = folder(name, pooling, ends)
    put(place / "tokenizer_config.json", padding_side=side)
    theirs, given = SentenceTransformer(str(place), device="cpu"), [*texts, "the owl hunts " * 9]
    with pytest.warns(TruncationWarning, match="texts were cut at 12 tokens"):
        ours = Embedder.from_pretrained(place, device="cpu").encode(given)
    assert distance(ours, theirs.encode(given)) <= EQUAL
    model = Embedder.from_pretrained(place, device="cpu")
    rows, _ = model.rows(given)
    tokens = theirs.tokenizer(given, truncation=True, max_length=12)["input_ids"]
    assert rows == tokens
    end = model.tokenizer.backend.token_to_id(END)
    assert all(row[-1] == end for row in rows)
    assert distance(model.encode([given[1]]), ours[1:2]) <= EQUAL


def test_last_tokens_without_an_end_are_told(folder: Folder) -> None:
    place = folder("qwen3", "lasttoken")
    with pytest.warns(UserWarning, match="the tokenizer puts no token behind a text"):
        read_folder(place)
    put(place / "tokenizer_config.json", add_eos_token=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_folder(place)


@pytest.mark.parametrize("name", CONFIGS)
def test_upcycling_keeps_the_vectors(name: str, folder: Folder, texts: list[str], tmp_path: Path) -> None:
    parts = read_folder(folder(name, ends="tokenizer.json"))
    before = Embedder(parts).eval().encode(texts[:4])
    options = UpcycleConfig(num_experts=3, num_shared_experts=1, router=RouterConfig(top_k=2))
    spec, state = upcycle(parts.spec, parts.state, options)
    sparse = Embedder(replace(parts, spec=spec, state=state)).eval()
    assert spec.moe_layers == (1,)
    assert distance(sparse.encode(texts[:4]), before) <= EQUAL
    sparse.save_pretrained(tmp_path / "sparse")
    again = Embedder.from_pretrained(tmp_path / "sparse", device="cpu")
    assert again.encoder.spec == spec
    assert distance(again.encode(texts[:4]), before) <= EQUAL


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_reads_the_same_here_and_in_sentence_transformers(
    name: str, folder: Folder, texts: list[str], tmp_path: Path
) -> None:
    model = Embedder.from_pretrained(folder(name, ends="tokenizer.json"), device="cpu")
    model.save_pretrained(tmp_path / "again")
    expected = model.encode(texts[:4])
    again = Embedder.from_pretrained(tmp_path / "again", device="cpu")
    assert again.source["model_type"] == name
    assert np.array_equal(again.encode(texts[:4]), expected)
    theirs = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert distance(theirs.encode(texts[:4]), expected) <= EQUAL
