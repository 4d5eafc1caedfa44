"""Rows of the word embeddings move with their pieces; new pieces start where their parts stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.families.flat import FlatConfig
from moembed.families.registry import family_to_write
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.tokenizer import Tokenizer
from moembed.types import UserError
from moembed.weights.pieces import extend, learn, tokenizer_files
from moembed.weights.vocabulary import Origins, pad, spelling, transplant, with_tokenizer

GERMAN = ["der maulwurf gräbt gänge", "die eule jagt nachts mäuse", "крот роет ходы"] * 4


def added(backend: Backend, *pieces: str) -> Backend:
    """``backend`` with pieces appended to its WordPiece vocabulary."""
    values = json.loads(backend.to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary |= {piece: len(vocabulary) + i for i, piece in enumerate(pieces)}
    return Backend.from_str(json.dumps(values))


def moved(parts: Parts, backend: Backend) -> tuple[Embedder, Origins]:
    made, origins = with_tokenizer(parts, backend, {})
    return Embedder(made).eval(), origins


def test_extension_by_nothing_keeps_every_vector(make_model: MakeModel, texts: list[str]) -> None:
    parts = make_model().parts()
    model, origins = moved(parts, extend(parts.tokenizer.backend, lambda: GERMAN, 0))
    assert origins == Origins(parts.spec.vocab_size, 0, 0)
    assert torch.equal(model.encoder.word.weight, parts.state["word.weight"])
    np.testing.assert_array_equal(model.encode(texts), Embedder(parts).eval().encode(texts))


def test_pieces_that_are_read_alike_keep_their_own_rows() -> None:
    """Two spaces as bytes of the vocabulary, and as a token that was added."""
    values = json.loads(learn("bpe", lambda: ["mole  owl"] * 4, 300).to_str())
    values["model"]["vocab"] |= {"ĠĠ": len(values["model"]["vocab"])}
    backend = Backend.from_str(json.dumps(values))
    backend.add_tokens(["  "])
    rows = torch.arange(backend.get_vocab_size() * 4.0).view(-1, 4)
    spec = FlatConfig(
        vocab_size=len(rows), width=4, num_layers=1, num_heads=1, ffn_width=4, position="rope"
    ).spec()
    _, state, _ = transplant(spec, {"word.weight": rows}, backend, backend)
    assert torch.equal(state["word.weight"], rows)


def test_texts_of_old_pieces_keep_their_vectors(make_model: MakeModel, texts: list[str]) -> None:
    parts = make_model().parts()
    old = parts.tokenizer.backend
    backend = extend(old, lambda: GERMAN, 30)
    same = [text for text in texts if backend.encode(text).ids == old.encode(text).ids]
    assert len(same) >= len(texts) - 1
    model, origins = moved(parts, backend)
    assert origins.shared == parts.spec.vocab_size
    assert origins.from_pieces + origins.from_mean == 30
    assert model.encoder.spec.vocab_size == parts.spec.vocab_size + 30
    np.testing.assert_array_equal(model.encode(same), Embedder(parts).eval().encode(same))


def test_minilm_keeps_its_vectors(minilm_parts: Parts, texts: list[str]) -> None:
    backend = added(minilm_parts.tokenizer.backend, "крот", "##вьями")
    model, origins = moved(minilm_parts, backend)
    assert origins == Origins(30522, 2, 0)
    np.testing.assert_array_equal(model.encode(texts), Embedder(minilm_parts).eval().encode(texts))


@pytest.fixture
def minilm_parts(minilm: Path) -> Parts:
    return read_folder(minilm)


def test_new_rows_are_means_of_old_pieces(make_model: MakeModel) -> None:
    parts = make_model().parts()
    old, rows = parts.tokenizer.backend, parts.state["word.weight"]
    backend = added(old, "molehunt", "##hunt", "##ba", "мышь", "bб")

    def mean(*pieces: str) -> torch.Tensor:
        return rows[[old.token_to_id(piece) for piece in pieces]].mean(0)

    _, state, origins = transplant(parts.spec, parts.state, old, backend)
    new = state["word.weight"][-5:]
    torch.testing.assert_close(new[0], mean("mole", "##h", "##u", "##n", "##t"))
    torch.testing.assert_close(new[1], mean("hunt"))  # there is no ##hunt: the word stands in
    torch.testing.assert_close(new[2], mean("##b", "##a"))  # continues a word, and so do its parts
    torch.testing.assert_close(new[3], rows.mean(0))
    torch.testing.assert_close(new[4], rows.mean(0))
    assert origins == Origins(len(rows), 3, 2)


def sentencepiece(pieces: Sequence[str]) -> Backend:
    backend = learn("unigram", lambda: ["mole owl hunt ba"] * 3, 40)
    values = json.loads(backend.to_str())
    values["model"]["vocab"] = [*values["model"]["vocab"][:5], *([piece, -1.0] for piece in pieces)]
    return Backend.from_str(json.dumps(values))


@pytest.mark.parametrize(
    ("kind", "starting", "inside"),
    [("unigram", "▁mole", "s"), ("bpe", "Ġmole", "s"), ("wordpiece", "mole", "##s")],
)
def test_pieces_meet_across_spellings(kind: str, starting: str, inside: str) -> None:
    key = spelling(learn(kind, lambda: ["mole moles"] * 3, 300))
    assert key(starting) == (True, "mole")
    assert key(inside) == (False, "s")
    first, mask = {"wordpiece": ("[CLS]", "[MASK]")}.get(kind, ("<s>", "<mask>"))
    assert (key(first), key(mask)) == ((False, "special 2"), (False, "special 4"))


def test_bytes_of_half_a_character_are_no_text() -> None:
    key = spelling(learn("bpe", lambda: ["крот"] * 3, 300))
    assert key("ÐºÑĢ") == (False, "кр")
    assert key("Ð") == (False, "Ð")  # stays apart from every text but itself


def test_another_kind_of_tokenizer_takes_rows_along(make_model: MakeModel) -> None:
    parts = make_model().parts()
    old, rows = parts.tokenizer.backend, parts.state["word.weight"]
    backend = sentencepiece(["▁mole", "s", "▁Owls", "▁xyz", "▁你"])
    spec, state, origins = transplant(parts.spec, parts.state, old, backend)
    table = state["word.weight"]
    assert spec.vocab_size == len(table) == 10
    for piece, other in {
        "<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]",
        "▁mole": "mole", "s": "##s", "▁Owls": "owls",
    }.items():  # fmt: skip
        assert torch.equal(table[backend.token_to_id(piece)], rows[old.token_to_id(other)]), piece
    torch.testing.assert_close(table[9], rows.mean(0))
    assert origins == Origins(shared=7, from_pieces=2, from_mean=1)


def test_a_transplanted_folder_is_read_again(make_model: MakeModel, texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    parts = make_model().parts()
    backend = learn("bpe", lambda: texts, 300)
    made, _ = with_tokenizer(parts, backend, tokenizer_files(backend, parts.tokenizer.max_length))
    Embedder(made).save_pretrained(folder)
    again = Embedder.from_pretrained(folder, device="cpu")
    assert again.tokenizer.prompts == parts.tokenizer.prompts
    np.testing.assert_array_equal(again.encode(texts), Embedder(made).eval().encode(texts))


def test_long_texts_are_still_cut_on_the_same_side(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model().parts()
    parts.tokenizer = Tokenizer(parts.tokenizer.backend, 8, truncation_side="left")
    backend = learn("wordpiece", lambda: GERMAN, 60)
    files = tokenizer_files(backend, 8, truncation_side="left")
    made, _ = with_tokenizer(parts, backend, files)
    Embedder(made).save_pretrained(tmp_path / "model")
    again = read_folder(tmp_path / "model").tokenizer
    text = [" ".join(GERMAN)]
    assert made.tokenizer.rows(text) == again.rows(text)
    assert again.truncation_side == "left"


def test_roberta_positions_do_not_hang_on_a_pad_token_that_moved(hf_folder: HfFolder) -> None:
    parts = read_folder(hf_folder("roberta", pad_token_id=1)[0])
    texts = lambda: ["mole owl"] * 3  # noqa: E731
    stays, _ = with_tokenizer(parts, learn("unigram", texts, 30), {})
    moves, _ = with_tokenizer(parts, learn("wordpiece", texts, 30), {})
    names = [family_to_write(parts.spec, parts.source).name for parts in (stays, moves)]
    assert names == ["roberta", "moembed"]


def test_more_rows_than_memory_are_refused(make_model: MakeModel) -> None:
    parts = make_model().parts()
    with pytest.raises(UserError, match="1,000,000,000,000 rows of word embeddings make a model of "):
        pad(parts.spec, parts.state, 10**12)


def test_padding_adds_rows_that_no_text_reaches(make_model: MakeModel, texts: list[str]) -> None:
    parts = make_model().parts()
    size = parts.spec.vocab_size
    spec, state = pad(parts.spec, parts.state, 64)
    assert spec.vocab_size == len(state["word.weight"]) == -(-size // 64) * 64
    assert state["word.weight"][size:].abs().sum() == 0
    model = Embedder(Parts(spec, state, parts.tokenizer, parts.pooling)).eval()
    np.testing.assert_array_equal(model.encode(texts), Embedder(parts).eval().encode(texts))
    assert pad(spec, state, 64)[0] == spec
