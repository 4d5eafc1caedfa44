"""Folders of static word vectors, against sentence-transformers' own StaticEmbedding."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer as Backend
from torch import Tensor

from conftest import Run
from moembed import Embedder, StaticEmbedder, UserError
from moembed.encoding import View
from moembed.folder.static import ANY_LENGTH

EQUAL = 1e-6


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def folder(tmp_path: Path, backend: Backend) -> Path:
    """As sentence-transformers writes it, with prompts."""
    copy = Backend.from_str(backend.to_str())
    model = SentenceTransformer(
        modules=[StaticEmbedding(copy, embedding_weights=draw(copy.get_vocab_size(), 12)), Normalize()],
        prompts={"query": "what ", "document": ""},
        device="cpu",
    )
    model.save_pretrained(str(tmp_path / "static"))
    return tmp_path / "static"


@pytest.fixture
def model2vec(tmp_path: Path, backend: Backend) -> Path:
    """As model2vec writes it: rows that tokens share, weights of tokens, half precision; no modules.json."""
    place = tmp_path / "m2v"
    place.mkdir()
    copy, count = Backend.from_str(backend.to_str()), backend.get_vocab_size()
    copy.enable_truncation(4)
    copy.save(str(place / "tokenizer.json"))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "embeddings": draw(20, 12).half(),
        "mapping": torch.randint(20, (count,), generator=generator),
        "weights": draw(count).abs().double(),
    }
    save_file(tensors, place / "model.safetensors")
    values = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "hidden_dim": 12,
        "normalize": True,
    }
    (place / "config.json").write_text(json.dumps(values))
    return place


def test_vectors_are_those_of_sentence_transformers(folder: Path, texts: list[str]) -> None:
    ours, theirs = StaticEmbedder.from_pretrained(folder), SentenceTransformer(str(folder), device="cpu")
    assert np.abs(ours.encode(texts) - theirs.encode(texts)).max() <= EQUAL
    assert not ours.encode([""]).any()  # no token, no special token: zeros, as there
    assert np.abs(ours.encode_query(texts) - theirs.encode_query(texts)).max() <= EQUAL
    assert np.abs(ours.encode_query(texts) - ours.encode(texts)).max() > 0.01
    cut = theirs.encode(texts[:2], truncate_dim=5, normalize_embeddings=True)
    assert np.abs(ours.encode(texts[:2], dim=5) - cut).max() <= EQUAL
    assert ours.vectors(texts, role="query").space != ours.vectors(texts).space
    assert ours.max_length == ANY_LENGTH


def test_tables_of_model2vec_are_unfolded(model2vec: Path, texts: list[str]) -> None:
    theirs = StaticEmbedding.load(str(model2vec))
    expected = SentenceTransformer(modules=[theirs, Normalize()], device="cpu").encode(texts)
    with warnings.catch_warnings():  # its own config says that vectors are of length 1: nothing is to be told
        warnings.simplefilter("error")
        model = StaticEmbedder.from_pretrained(model2vec)
    with pytest.warns(UserWarning, match="texts were cut at 4 tokens"):
        ours = model.encode(texts)
    assert np.abs(ours - expected).max() <= EQUAL


def test_commands_read_it_or_say_why_not(folder: Path, model2vec: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("inspect", folder, "--json")
    assert code == 0
    assert json.loads(out)["family"] == "static word vectors, without layers"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("owls hunt", "moles eat worms")))
    code, _, err = run("index", rows, "--model", folder, "--out", tmp_path / "index")
    assert code == 0, err
    code, out, err = run("search", tmp_path / "index", "worms", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["text"] == "moles eat worms"
    sentence = "is a table of static word vectors and has no layers"
    for place in (folder, model2vec):
        for command, *rest in (("upcycle",), ("export", "--format", "onnx")):
            code, _, err = run(command, place, tmp_path / "x", *rest)
            assert (code, sentence in err) == (2, True), err
        with pytest.raises(UserError, match=sentence):
            Embedder.from_pretrained(place)


def spoil(folder: Path, **tensors: Any) -> None:
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"embedding.weight": draw(3, 12)}, r"ids go up to \d+, the table has 3 rows"),
        ({"words": draw(90, 12)}, "must hold embedding.weight"),
        ({"embedding.weight": draw(200)}, "must hold embedding.weight"),
        ({"embeddings": draw(5, 4), "mapping": torch.full((200,), 5)}, "mapping must name rows of the 5"),
        ({"embeddings": draw(200, 4), "weights": draw(3)}, "weights must be one number"),
        ({"embeddings": draw(200, 4) / 0}, "NaN or infinite"),
    ],
)
def test_a_damaged_table_is_one_sentence(folder: Path, tensors: dict[str, Tensor], complaint: str) -> None:
    inside = next(folder.rglob("model.safetensors")).parent
    spoil(inside, **tensors)
    with pytest.raises(UserError, match=complaint) as error:
        StaticEmbedder.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_table_is_refused(minilm: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="is no table of static word vectors"):
        StaticEmbedder.from_pretrained(minilm)
    with pytest.raises(UserError, match="have no layers"):
        StaticEmbedder.from_pretrained(folder).vectors(["owl"], view=View(layers=1))
