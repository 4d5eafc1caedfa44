"""``encode`` as users of sentence-transformers call it: equal values, or one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.types import UserError

EQUAL = 1e-5
Both = tuple[Embedder, SentenceTransformer]


@pytest.fixture
def both(hf_folder: HfFolder) -> Both:
    folder, _ = hf_folder("bert")
    return Embedder.from_pretrained(folder, device="cpu"), SentenceTransformer(str(folder), device="cpu")


CALLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "what is so already": {"normalize_embeddings": True, "output_value": "sentence_embedding"},
    "device": {"device": "cpu", "convert_to_numpy": True},
    "batches": {"batch_size": 2, "show_progress_bar": True},
    "none": {"precision": None, "show_progress_bar": None, "truncate_dim": None, "prompt_name": None},
    "tensor": {"convert_to_tensor": True},
    "tensors": {"convert_to_numpy": False},
    "prompt": {"prompt": "an owl: "},
    "fewer coordinates": {"truncate_dim": 7, "normalize_embeddings": True},
    "bits": {"precision": "ubinary"},
    "signed bits": {"precision": "binary", "convert_to_tensor": True},
}


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_values_and_types_are_those_of_sentence_transformers(
    name: str, one: bool, both: Both, texts: list[str]
) -> None:
    given: Any = texts[0] if one else texts
    ours, theirs = (model.encode(given, **CALLS[name]) for model in both)
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs)
    for mine, other in zip(list(ours), list(theirs), strict=True):
        assert getattr(mine, "dtype", None) == getattr(other, "dtype", None)
        assert np.abs(np.asarray(mine, np.float32) - np.asarray(other, np.float32)).max() <= EQUAL


@pytest.mark.parametrize("texts", ["worms", ["worms", "an owl"]])
def test_texts_have_their_other_names(texts: Any, both: Both) -> None:
    ours, theirs = both
    for name in ("sentences", "inputs"):
        assert np.array_equal(ours.encode(**{name: texts}), ours.encode(texts))
        assert np.abs(ours.encode(**{name: texts}) - theirs.encode(**{name: texts})).max() <= EQUAL


def test_queries_and_documents_take_the_same_keywords(moe_model: Embedder) -> None:
    for encode, prompt in ((moe_model.encode_query, "query: "), (moe_model.encode_document, "document: ")):
        whole = moe_model.encode(["worms"], prompt=prompt, dim=5)
        found = encode(["worms"], truncate_dim=5, batch_size=1, convert_to_tensor=True)
        assert isinstance(found, torch.Tensor)
        assert np.array_equal(found.numpy(), whole)
        assert np.array_equal(encode("worms", prompt="x "), moe_model.encode("worms", prompt="x "))
        assert np.array_equal(encode("worms", prompt_name="query"), moe_model.encode("worms", "query"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"normalize_embeddings": False}, "every vector has length 1 here: leave normalize_embeddings out"),
    ({"output_value": "token_embeddings"}, "output_value 'token_embeddings' is not available"),
    ({"output_value": None}, "output_value None is not available"),
    ({"precision": "int8"}, r"precision 'int8' takes its scale .*quantize_embeddings"),
    ({"precision": "float8"}, r"precision 'float8' is not known \(known: float32, binary, ubinary\)"),
    ({"device": "cuda:3"}, r"this model is on cpu: load it on the other device, .* device='cuda:3'"),
    ({"device": "gpu"}, "there is no device 'gpu' here"),
    ({"device": ["cpu", "cpu"]}, "several devices: embed with moembed.replicas.Replicas"),
    ({"pool": {}}, "encode has no pool: texts are embedded by several processes"),
    ({"task": "query"}, "encode has no task: pass prompt_name"),
    ({"batchsize": 3}, r"encode has no keyword 'batchsize' .*did you mean 'batch_size'\?"),
    ({"dim": 4, "truncate_dim": 5}, "dim and truncate_dim say the same: give one of them"),
    ({"truncate_dim": 17}, r"dim 17 is not within 1\.\.16"),
    ({"sentences": ["a"]}, "texts and sentences say the same"),
]


@pytest.mark.parametrize(("keywords", "complaint"), REFUSED)
def test_what_cannot_be_is_one_sentence(
    keywords: dict[str, Any], complaint: str, moe_model: Embedder
) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        moe_model.encode(["worms"], **keywords)
    assert "\n" not in str(error.value)


def test_names_that_they_know(both: Both, texts: list[str]) -> None:
    ours, theirs = both
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.get_sentence_embedding_dimension() == 16
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.prompts == {name: text for name, text in theirs.prompts.items() if text}
    assert ours.default_prompt_name == theirs.default_prompt_name
    vectors = theirs.encode(texts, convert_to_tensor=True)
    for one, other in ((vectors, vectors[:3]), (vectors[0], vectors), (list(vectors), vectors)):
        expected = theirs.similarity(torch.as_tensor(np.stack(one)) if isinstance(one, list) else one, other)
        assert np.abs(ours.similarity(one, other) - expected.numpy()).max() <= EQUAL
    expected = theirs.similarity_pairwise(vectors, vectors.flip(0))
    assert np.abs(ours.similarity_pairwise(vectors, vectors.flip(0)) - expected.numpy()).max() <= EQUAL
    with pytest.raises(UserError, match=re.escape("vectors (8, 16) and (1, 16) are not pairs")):
        ours.similarity_pairwise(vectors, vectors[0])
    with pytest.raises(UserError, match="not of one width"):
        ours.similarity(vectors, vectors[:, :3])


def test_a_model_shows_itself_in_one_line(moe_model: Embedder, make_model: MakeModel) -> None:
    assert repr(moe_model) == ("Embedder(4 layers, 4 experts in 2, dim 16, max_length 32, float32 on cpu)")
    assert repr(make_model()) == "Embedder(4 layers, dim 16, max_length 32, float32 on cpu)"


def test_a_column_of_polars_and_no_table(moe_model: Embedder, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    texts = ["the mole digs", "an owl hunts"]
    table = polars.DataFrame({"text": texts})
    assert np.array_equal(moe_model.encode(table["text"]), moe_model.encode(texts))
    with pytest.raises(UserError, match="a DataFrame is a table, not a list of texts: pass one column"):
        moe_model.encode(table)
