"""Prompts that stand around a text: read, cut, saved, served, trained with, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

import moembed  # noqa: F401  sentence-transformers knows our folders by it
from conftest import MakeModel
from moembed.cli.export import _write
from moembed.embedder import Embedder
from moembed.export.onnx.export import export_onnx
from moembed.folder.parts import Parts
from moembed.prompts import PROMPT_EOL, fill, split_prompt
from moembed.runs.train import TrainConfig, build
from moembed.serve.tokenizing import fit
from moembed.tokenizer import Tokenizer
from moembed.training.distillation.texts import cut_texts
from moembed.types import UserError
from moembed.weights.pooling import PoolingOptions, change_pooling, look

AROUND = "what does {} eat ?"
WORDS = ["the", "mole", "digs", "owls", "night", "zebra", "voles,"]
LONG = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


def decoder(make_model: MakeModel, prompts: dict[str, str]) -> Parts:
    parts = make_model(num_layers=2, pooling="lasttoken", prompts=prompts).parts()
    return look(parts, "causal")


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return Embedder(decoder(make_model, {"query": AROUND, "document": ""})).eval()


@settings(max_examples=25)
@given(
    st.lists(LONG, min_size=1, max_size=4), st.sampled_from([9, 12, 40]), st.sampled_from(["left", "right"])
)
def test_a_cut_takes_tokens_of_the_text_alone(
    backend: Backend, texts: list[str], limit: int, side: str
) -> None:
    tokenizer = Tokenizer(Backend.from_str(backend.to_str()), limit, truncation_side=side)  # type: ignore[arg-type]
    rows, truncated = tokenizer.rows(texts, prompt=AROUND)
    ids = lambda text: backend.encode(text, add_special_tokens=False).ids  # noqa: E731
    front, behind = (ids(part) for part in split_prompt(AROUND))
    cls, sep = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
    room = limit - len(front) - len(behind) - 2
    for text, row in zip(texts, rows, strict=True):
        own = ids(text)
        kept = own if len(own) <= room else own[:room] if side == "right" else own[len(own) - room :]
        assert row == [cls, *front, *kept, *behind, sep]
    assert truncated == sum(len(ids(text)) > room for text in texts)
    assert tokenizer.prompt_tokens(AROUND) == 1 + len(front)
    whole = list(tokenizer.whole_rows(texts, prompt=AROUND))
    assert [tokenizer.cut(row, AROUND) for row in whole] == rows
    if not any("zebra" in text for text in texts):  # half a word has other pieces than in the whole one
        cut, count = cut_texts(texts, tokenizer, AROUND)
        assert (tokenizer.rows(cut, prompt=AROUND)[0], count) == (rows, truncated)
    words = tokenizer.word_rows(texts, prompt=AROUND)
    assert [len(row) for row in words] == [len(row) for row in rows]


def test_the_last_token_is_that_of_the_prompt(model: Embedder, texts: list[str]) -> None:
    short = [text for text in texts if len(text.split()) < 8]
    expected = model.encode([fill(AROUND, text) for text in short], prompt="")
    np.testing.assert_array_equal(model.encode_query(short), expected)
    in_front = model.encode([AROUND.replace("{}", "") + text for text in short], prompt="")
    assert np.abs(expected - in_front).max() > 1e-3
    assert model.space(role="query") != model.space(role="document")


def test_a_saved_model_is_the_same_here_and_in_sentence_transformers(
    model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    long = [*texts, "the owl hunts voles at night and eats worms " * 9]
    with pytest.warns(match="were cut"):
        expected = model.encode_query(long)
    model.save_pretrained(tmp_path / "m")
    again = Embedder.from_pretrained(tmp_path / "m", device="cpu")
    with pytest.warns(match="were cut"):
        np.testing.assert_array_equal(again.encode_query(long), expected)
    theirs = library.SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(long, prompt_name="query"), expected, atol=1e-5)
    np.testing.assert_allclose(
        theirs.encode(texts, prompt_name="document"), model.encode_document(texts), atol=1e-5
    )


def test_a_server_cuts_and_divides_inside_the_prompt(model: Embedder) -> None:
    tokenizer = model.tokenizer
    text = "the owl hunts voles at night and eats worms " * 9
    rows = list(tokenizer.whole_rows([text], prompt=AROUND))
    count = tokenizer.prompt_tokens(AROUND)
    cut = fit(rows, tokenizer, "truncate", count, AROUND)
    assert cut.rows == tokenizer.rows([text], prompt=AROUND)[0]
    before, after = tokenizer.edges(AROUND)
    pieces = fit(rows, tokenizer, "chunk", count, AROUND).rows
    assert all(row[:before] == rows[0][:before] and row[-after:] == rows[0][-after:] for row in pieces)
    inside = [token for row in pieces for token in row[before : len(row) - after]]
    assert inside == rows[0][before : len(rows[0]) - after]


def test_prompt_eol_is_the_last_token_behind_its_prompt(make_model: MakeModel) -> None:
    bare = decoder(make_model, {})
    parts = change_pooling(bare, PoolingOptions(name="prompt_eol"))
    assert (parts.pooling.name, parts.tokenizer.prompts) == (
        "lasttoken", dict.fromkeys(("query", "document"), PROMPT_EOL),
    )  # fmt: skip
    values = {"data": "pairs.jsonl", "out": "run", "steps": 1, "pooling": "prompt_eol"}
    own = {"query": AROUND, "document": AROUND}
    made = build(bare, TrainConfig.model_validate(values | {"prompts": own}))
    assert (made.pooling.name, made.prompts) == ("lasttoken", own)
    with pytest.raises(UserError, match=r"the prompt 'query' of this model has nothing behind \{\}"):
        change_pooling(decoder(make_model, {"query": "query: "}), PoolingOptions(name="prompt_eol"))
    with pytest.raises(ValueError, match="leave include_prompt out"):
        PoolingOptions(name="prompt_eol", include_prompt=False)


def test_what_cannot_be_done_is_refused(model: Embedder, make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has \{\} more than once"):
        model.encode(["owl"], prompt="{} and {}")
    with pytest.raises(UserError, match="the prompt and the special tokens alone are 6"):
        model.tokenizer.rows(["owl"], prompt=AROUND, max_length=5)
    refused = r"the prompt 'query' .* text behind \{\}"
    with pytest.raises(UserError, match=f"the ONNX folder .* {refused}"):
        export_onnx(model.parts(), tmp_path / "out")
    with pytest.raises(UserError, match=f"the Nomic layout .* {refused}"):
        _write(model.parts(), tmp_path / "out", "nomic", "f16", False)
    parts = decoder(make_model, {"query": AROUND})
    values = {"data": "pairs.jsonl", "out": "run", "steps": 1}
    values["pooling"] = {"name": "mean", "include_prompt": False}
    with pytest.raises(UserError, match=r"pooling leaves prompts out \(include_prompt false\)"):
        build(parts, TrainConfig.model_validate(values))
