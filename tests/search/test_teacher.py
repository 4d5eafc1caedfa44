"""Teachers of every kind agree where they hold the same vectors, and refuse what they cannot judge."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from toys import ToyModel, read_jsonl, write_jsonl

from conftest import HfFolder, MakeModel
from moembed.data.sources import SourceConfig, load_source
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.search.mine import MineConfig, mine
from moembed.search.teacher import ModelTeacher, StoredTeacher, open_teacher
from moembed.search.texts import Column, distinct
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

WORDS = ["mole", "owl", "worm", "vole", "tunnel", "meadow", "night"]
ROWS = [
    {"query": f"where is the {a} of the {b}?", "document": f"the {a} digs under the {b}"}
    for a in WORDS
    for b in WORDS[:3]
]


@pytest.fixture
def pairs(tmp_path) -> SourceConfig:
    return SourceConfig(path=write_jsonl(tmp_path / "pairs.jsonl", ROWS))


def mined(pairs, out, teacher, **named):
    mine(pairs, out, teacher, MineConfig(negatives=3, depth=8, rules=()), **named)
    return read_jsonl(out)


def store(folder, model, rows=ROWS, documents=None) -> str:
    folder.mkdir(exist_ok=True)
    for name, texts in {
        "queries": [row["query"] for row in rows],
        "documents": documents or [row["document"] for row in rows],
    }.items():
        np.save(folder / f"{name}.npy", model.vectors(texts).array)
    return f"vectors:{folder}"


def letters(model: Embedder) -> Embedder:
    """The same weights behind a tokenizer that knows letters only."""
    vocabulary = {letter: i for i, letter in enumerate("\0?abcdefghijklmnopqrstuvwxyz ")}
    backend = Backend(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    parts = model.parts()
    tokenizer = Tokenizer(backend, parts.spec.max_length, {"query": "q ", "document": "d "})
    return Embedder(Parts(parts.spec, parts.state, tokenizer, parts.pooling)).eval()


def test_any_tokenizer_will_do(pairs, tmp_path, make_model: MakeModel):
    """Each teacher's negatives are those of its own vectors, whatever it cuts texts into."""
    for name, model in [("words", make_model()), ("letters", letters(make_model()))]:
        rows = mined(pairs, tmp_path / f"{name}.jsonl", ModelTeacher(model))
        documents = [row["document"] for row in ROWS]
        query_QM = ModelTeacher(model).encode([row["query"] for row in rows], "query")
        score_QN = query_QM @ ModelTeacher(model).encode(documents, "document").T
        for row, score_N in zip(rows, score_QN, strict=True):
            near = [documents[i] for i in np.argsort(-score_N) if documents[i] != row["document"]]
            assert row["negatives"] == near[:3]
    texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("words", "letters")]
    assert texts[0] != texts[1]


def test_a_prompt_given_takes_the_place_of_the_models(make_model: MakeModel):
    model = make_model()
    own, given = ModelTeacher(model), ModelTeacher(model, {"query": "find: "})
    np.testing.assert_allclose(own.encode(["worms"], "query"), model.encode_query(["worms"]), atol=1e-6)
    np.testing.assert_allclose(given.encode(["worms"], "query"), model.encode(["find: worms"]), atol=1e-6)
    np.testing.assert_allclose(
        given.encode(["worms"], "document"), model.encode_document(["worms"]), atol=1e-6
    )
    spaces = [teacher.identity() for teacher in (own, given, ModelTeacher(model, {"query": ""}))]
    assert len({space["query"] for space in spaces}) == 3
    assert len({space["document"] for space in spaces}) == 1


def test_texts_that_are_cut_are_counted(make_model: MakeModel):
    teacher = ModelTeacher(make_model())
    teacher.encode(["mole " * 100, "mole"], "query")
    assert teacher.truncated == 1


def test_stored_vectors_serve_as_the_model_that_made_them(pairs, tmp_path):
    model = ToyModel()
    teacher = open_teacher(store(tmp_path / "v", model), lambda name: pytest.fail("nothing to load"))
    assert mined(pairs, tmp_path / "a.jsonl", teacher) == mined(
        pairs, tmp_path / "b.jsonl", ModelTeacher(model)
    )


def test_stored_vectors_of_a_corpus(pairs, tmp_path):
    model, texts = ToyModel(), [row["document"] for row in ROWS] + WORDS
    corpus = SourceConfig(
        path=write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in texts]), document="text"
    )
    teacher = StoredTeacher(store(tmp_path / "v", model, documents=texts).removeprefix("vectors:"))
    wanted = mined(pairs, tmp_path / "b.jsonl", ModelTeacher(model), corpus=corpus)
    assert mined(pairs, tmp_path / "a.jsonl", teacher, corpus=corpus) == wanted
    less = SourceConfig(
        path=write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in texts[1:]]), document="text"
    )
    teacher = StoredTeacher(store(tmp_path / "v", model, documents=texts[1:]).removeprefix("vectors:"))
    with pytest.raises(
        UserError, match=r"no vector for the document of pairs, row 1: it is not in the corpus"
    ):
        mined(pairs, tmp_path / "x.jsonl", teacher, corpus=less)


def test_stored_vectors_that_do_not_fit_are_refused(pairs, tmp_path):
    folder, model = tmp_path / "v", ToyModel()
    with pytest.raises(UserError, match=r"cannot read .*queries\.npy"):
        StoredTeacher(folder)
    store(folder, model, ROWS[1:])
    with pytest.raises(UserError, match="holds 20 vectors, pairs has 21 rows"):
        mined(pairs, tmp_path / "x.jsonl", StoredTeacher(folder))
    bad_NM = np.load(folder / "documents.npy")
    for array, complaint in [
        (bad_NM[:, :5], "8 dimensions and documents 5"),
        (bad_NM[0], "must be a matrix of floats"),
        (bad_NM.astype(int), "must be a matrix of floats"),
        (np.where(np.arange(20)[:, None] == 4, np.nan, bad_NM), r"documents\.npy, row 5, holds NaN"),
    ]:
        np.save(folder / "documents.npy", array)
        with pytest.raises(UserError, match=complaint):
            StoredTeacher(folder)
    (folder / "documents.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"cannot read .*documents\.npy"):
        StoredTeacher(folder)
    with pytest.raises(UserError, match="a prompt would change nothing"):
        open_teacher(f"vectors:{folder}", lambda name: pytest.fail("no model"), {"query": "find: "})


def test_sentence_transformers_agree_with_an_embedder(tmp_path, hf_folder: HfFolder):
    pytest.importorskip("sentence_transformers")
    folder, _ = hf_folder("bert")
    prompts = {"prompts": {"query": "query: ", "document": "document: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    theirs = open_teacher(f"st:{folder}", lambda name: pytest.fail("st: loads by itself"))
    ours = ModelTeacher(Embedder.from_pretrained(folder, device="cpu"))
    texts = ["the mole digs", "an owl", "where do worms live?"]
    for role in ("query", "document"):
        np.testing.assert_allclose(theirs.encode(texts, role), ours.encode(texts, role), atol=1e-5)
    assert isinstance(theirs, ModelTeacher)
    bare = ModelTeacher(theirs.model, {"query": ""})
    wanted = Embedder.from_pretrained(folder, device="cpu").encode(texts, prompt="")
    np.testing.assert_allclose(bare.encode(texts, "query"), wanted, atol=1e-5)
    spaces = {*theirs.identity().values(), *bare.identity().values()}
    assert len(spaces) == 3, "queries, bare queries, documents"
    with pytest.raises(UserError, match="sentence-transformers cannot load"):
        open_teacher(f"st:{tmp_path / 'nothing'}", lambda name: pytest.fail("no model"))


def test_distinct_texts_keep_their_order(tmp_path):
    rows = [{"query": text, "document": text.upper()} for text in "banana"]
    other = [{"query": text, "document": text.upper()} for text in "cab"]
    sources = [
        load_source(SourceConfig(path=write_jsonl(tmp_path / f"{i}.jsonl", some)))
        for i, some in enumerate((rows, other))
    ]
    texts = distinct(Column("document", sources))
    assert texts.take(np.arange(len(texts))) == ["B", "A", "N", "C"]
    assert texts.row_U.tolist() == [0, 1, 2, 6]
    assert texts.text_N.tolist() == [0, 1, 2, 1, 2, 1, 3, 1, 0]
    some = distinct(Column("query", sources), np.array([3, 5, 7]))
    assert some.take(np.arange(len(some))) == ["a"]
    assert texts.column.where(7) == "the document of 1, row 2"
