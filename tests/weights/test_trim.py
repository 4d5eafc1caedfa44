"""A trimmed vocabulary cuts the texts it was trimmed to as before, and their vectors are the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from conftest import MakeModel, Run, complete
from moembed.embedder import Embedder
from moembed.types import UserError
from moembed.weights.pieces import KINDS, learn
from moembed.weights.trim import trim
from moembed.weights.vocabulary import Origins, with_tokenizer

TEXTS = [
    "Der Maulwurf gräbt Gänge unter der Wiese.",
    "Die Eule jagt nachts Mäuse; die Mäuse graben Gänge.",
    "крот роет ходы под лугом, сова охотится ночью",
    "the mole digs tunnels under the meadow, an owl hunts at night",
] * 4
LEARNT = {kind: learn(kind, lambda: TEXTS, 420) for kind in KINDS}


def pieces(backend: Backend, text: str) -> list[str]:
    return list(backend.encode(text).tokens)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_texts_are_cut_as_before_by_fewer_pieces(kind: str) -> None:
    whole = LEARNT[kind]
    small = trim(whole, lambda: TEXTS[:2])
    assert small.get_vocab_size() < 0.85 * whole.get_vocab_size()
    assert sorted(small.get_vocab().values()) == list(range(small.get_vocab_size()))
    for text in TEXTS[:2]:
        assert pieces(small, text) == pieces(whole, text)
    special = KINDS[kind].special.values()
    assert [small.token_to_id(name) for name in special] == [whole.token_to_id(name) for name in special]
    assert trim(small, lambda: TEXTS[:2]).to_str() == small.to_str()


@given(st.lists(st.text(alphabet="Malwurf gräbt,Eu", min_size=1, max_size=30), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_whatever_the_texts_are(texts: list[str]) -> None:
    for whole in LEARNT.values():
        if not any(encoding.ids for encoding in whole.encode_batch(texts, add_special_tokens=False)):
            continue
        small = trim(whole, lambda: texts)
        assert [pieces(small, text) for text in texts] == [pieces(whole, text) for text in texts]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_words_of_the_same_letters_are_never_unknown(kind: str) -> None:
    """Rare pieces fall apart into letters, which stay."""
    small = trim(LEARNT[kind], lambda: TEXTS, min_count=1000)
    unknown = KINDS[kind].special["unk"]
    for text in ("Maulwurf", "нора", "Gänge"):
        assert unknown not in pieces(small, text)
    assert small.get_vocab_size() < trim(LEARNT[kind], lambda: TEXTS).get_vocab_size()


def test_added_tokens_stay_and_keep_what_they_are() -> None:
    whole = Backend.from_str(LEARNT["unigram"].to_str())
    whole.add_special_tokens([AddedToken("<extra>", special=True)])
    small = trim(whole, lambda: TEXTS[:1])
    assert small.token_to_id("<extra>") == small.get_vocab_size() - 1
    assert pieces(small, "Maulwurf <extra> gräbt") == pieces(whole, "Maulwurf <extra> gräbt")


@pytest.mark.parametrize("processor", [processors.BertProcessing, processors.RobertaProcessing])
def test_ids_in_other_processors_move(processor: type) -> None:
    """Special tokens behind the words, as some BERTs have them."""
    words = {"owl": 0, "mole": 1, "owls": 2, "[UNK]": 3, "[CLS]": 4, "[SEP]": 5, "[PAD]": 6}
    whole = Backend(models.WordPiece(words, unk_token="[UNK]"))
    whole.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    whole.post_processor = processor(("[SEP]", 5), ("[CLS]", 4))
    whole.enable_padding(pad_id=6, pad_token="[PAD]")
    small = trim(whole, lambda: ["mole"])
    assert small.get_vocab() == {"mole": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[PAD]": 4}
    assert small.encode("mole").ids == [2, 0, 3]
    assert json.loads(small.to_str())["padding"]["pad_id"] == 4


def test_raw_bytes_stay_where_unknown_characters_are_written_with_them() -> None:
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    words = {piece: i for i, piece in enumerate(["<unk>", *raw, "o", "w", "l", "ow", "owl", "s"])}
    whole = Backend(
        models.BPE(words, [("o", "w"), ("ow", "l")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    small = trim(whole, lambda: ["owl"])
    assert pieces(small, "owl\u00e9") == pieces(whole, "owl\u00e9") == ["owl", "<0xC3>", "<0xA9>"]


def test_nothing_to_trim_to_is_refused() -> None:
    with pytest.raises(UserError, match="there is no text"):
        trim(LEARNT["unigram"], list)
    with pytest.raises(UserError, match="of kind WordLevel cannot be trimmed"):
        trim(Backend(models.WordLevel({"mole": 0, "?": 1}, unk_token="?")), lambda: ["mole"])


def test_vectors_of_the_texts_stay(make_model: MakeModel, texts: list[str]) -> None:
    parts = make_model().parts()
    backend = trim(parts.tokenizer.backend, lambda: texts[:3])
    made, origins = with_tokenizer(parts, backend, {})
    small, whole = Embedder(made).eval(), Embedder(parts).eval()
    assert origins == Origins(backend.get_vocab_size(), 0, 0)
    assert len(small.encoder.word.weight) < len(whole.encoder.word.weight)
    np.testing.assert_array_equal(small.encode(texts[:3]), whole.encode(texts[:3]))


def test_the_pieces_of_prompts_stay(make_model: MakeModel, tmp_path: Path, run: Run) -> None:
    """No text says "query": but the model says it in front of every one."""
    prompts = {"query": "query: ", "document": "", "sts": "what does {} eat?"}
    make_model(prompts=prompts).save_pretrained(tmp_path / "whole")
    seen = ["moles dig", "owls hunt at night", "moles", "moles hunt"]
    (tmp_path / "texts.txt").write_text("\n".join(seen))
    for count in ("1", "3"):
        command = ("tokenizer", tmp_path / "texts.txt", "--base", tmp_path / "whole", "--trim")
        code, _, err = run(*command, "--min-count", count, "--out", tmp_path / "small", "--overwrite")
        assert code == 0, err
        small, whole = (Embedder.from_pretrained(tmp_path / name) for name in ("small", "whole"))
        assert small.encode_query(["moles"]).tobytes() == whole.encode_query(["moles"]).tobytes()
        assert small.encode(["moles"], prompt_name="sts") == pytest.approx(
            whole.encode(["moles"], prompt_name="sts"), abs=1e-6
        )
        rest = [model.tokenizer.backend.encode("owls hunt at night").tokens for model in (small, whole)]
        assert (rest[0] == rest[1]) == (count == "1")  # pieces of the texts are counted as before


def test_a_first_word_that_is_another_piece_behind_a_prompt_stays() -> None:
    """Byte-level vocabularies write the space in front of a word into its piece."""
    words = [*"query:owl\u0120", "qu", "que", "quer", "query", "ow", "owl", "\u0120owl"]
    pairs = ["o w", "ow l", "\u0120 owl", "q u", "qu e", "que r", "quer y"]
    whole = Backend(models.BPE({w: i for i, w in enumerate(words)}, [tuple(p.split()) for p in pairs]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pieces(whole, "query: owl") == ["query", ":", "\u0120owl"]
    assert pieces(trim(whole, lambda: ["owl"], 1, ["query: "]), "query: owl") == ["query", ":", "\u0120owl"]
    assert pieces(trim(whole, lambda: ["owl"]), "owl") == ["owl"]


def test_ids_in_the_small_files_move_too(tmp_path: Path, run: Run) -> None:
    """ModernBERT has special tokens behind its words; beyond the vocabulary, transformers refuses them."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    words = ["owl", "mole", "owls", "moles", "voles", "worms", "hunt", "night", "o", "w", "l", "s"]
    numbered = {word: i for i, word in enumerate([*words, *special])}
    backend = Backend(models.WordPiece(numbered, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(special)
    backend.post_processor = processors.BertProcessing(("[SEP]", 14), ("[CLS]", 13))
    ids = {"pad": 15, "cls": 13, "sep": 14, "bos": 13, "eos": 14}
    config = transformers.ModernBertConfig(
        vocab_size=17, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, **{f"{role}_token_id": number for role, number in ids.items()},
    )  # fmt: skip
    whole = tmp_path / "whole"
    transformers.ModernBertModel(config).save_pretrained(whole)
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(whole)
    complete(whole)
    file = whole / "tokenizer_config.json"
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in json.loads(backend.to_str())["added_tokens"]
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": decoder}))

    (tmp_path / "texts.txt").write_text("owl hunt")
    command = ("tokenizer", tmp_path / "texts.txt", "--base", whole, "--trim")
    code, _, err = run(*command, "--out", tmp_path / "small")
    assert code == 0, err
    small = Embedder.from_pretrained(tmp_path / "small")
    texts = ["owl hunt", "owl mole"]
    rows, _ = small.tokenizer.rows(texts)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert theirs(texts)["input_ids"] == rows
    assert theirs.pad_token_id == small.tokenizer.backend.token_to_id("[PAD]")
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "small").config
    for role, name in (("pad", "[PAD]"), ("cls", "[CLS]"), ("sep", "[SEP]"), ("eos", "[SEP]")):
        assert getattr(loaded, f"{role}_token_id") == small.tokenizer.backend.token_to_id(name)
    written = json.loads((tmp_path / "small" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {int(number): token["content"] for number, token in written.items()} == {
        small.tokenizer.backend.token_to_id(name): name for name in special
    }
