"""Whole folders of language models: tokenizers that end texts with a token, and padding on any side."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
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
from moembed.types import TruncationWarning
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
        if ends == "add_eos_token":
            saved = transformers.AutoTokenizer.from_pretrained(place)
            saved.add_eos_token = True
            saved.save_pretrained(place)
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
        ("qwen2", "lasttoken", "add_eos_token"),
        ("mistral", "lasttoken", "add_eos_token"),
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


@pytest.mark.parametrize(
    ("pooling", "told", "why"),
    [
        ("lasttoken", {}, "state of the last token"),
        ("mean", {"add_eos_token": True}, "says add_eos_token true"),
    ],
)
def test_a_missing_end_is_told_and_not_added(
    pooling: str, told: dict[str, Any], why: str, folder: Folder
) -> None:
    place = folder("qwen3", pooling)
    put(place / "tokenizer_config.json", **told)
    with pytest.warns(UserWarning, match=f"{why}, but tokenizer.json, which decides, puts no token behind"):
        parts = read_folder(place)
    theirs = transformers.AutoTokenizer.from_pretrained(place)
    assert parts.tokenizer.rows(["the owl"])[0] == theirs(["the owl"])["input_ids"]
    saved = folder("qwen2", pooling, ends="add_eos_token")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_folder(saved)
