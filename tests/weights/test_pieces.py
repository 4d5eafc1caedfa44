"""Learning vocabularies: what comes out is of the field, old pieces keep their ids, new ones are of use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from moembed.types import UserError
from moembed.weights.pieces import KINDS, extend, learn, tokenizer_files

TEXTS = [
    "Der Maulwurf gräbt Gänge unter der Wiese.",
    "Die Eule jagt nachts Mäuse; die Mäuse graben Gänge.",
    "крот роет ходы под лугом, сова охотится ночью",
    "Maulwürfe fressen Würmer, und die Würmer fressen Erde.",
] * 4


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_learnt_tokenizer_loads_everywhere_with_its_special_tokens(kind: str, tmp_path: Path) -> None:
    backend = learn(kind, lambda: TEXTS, 320)
    assert backend.get_vocab_size() <= 320
    special = KINDS[kind].special
    assert [backend.token_to_id(name) for name in special.values()] == list(range(len(special)))
    encoding = backend.encode(TEXTS[0])
    assert (encoding.tokens[0], encoding.tokens[-1]) == (special["cls"], special["sep"])
    assert special["unk"] not in encoding.tokens
    assert backend.decode(encoding.ids).replace(" ", "") == TEXTS[0].replace(" ", "")
    for name, content in tokenizer_files(backend, 77).items():
        (tmp_path / name).write_bytes(content)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS[0]).input_ids == encoding.ids
    assert loaded.model_max_length == 77
    assert {role: getattr(loaded, f"{role}_token") for role in special} == special
    pair = backend.encode("Maulwurf", "Eule").tokens
    assert pair.count(special["sep"]) == 2


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_lowercase(kind: str) -> None:
    backend = learn(kind, lambda: TEXTS, 320, lowercase=True)
    assert backend.encode("MAULWURF").ids == backend.encode("maulwurf").ids


@pytest.mark.parametrize(("kind", "size"), [("unigram", 20), ("bpe", 200), ("wordpiece", 3), ("unigram", 3)])
def test_a_size_that_is_too_small_is_refused(kind: str, size: int) -> None:
    with pytest.raises(UserError, match=r"are too few|cannot be learnt"):
        learn(kind, lambda: TEXTS, size)


def test_what_is_wrong_with_the_texts_is_said_as_it_is() -> None:
    def broken() -> Iterator[str]:
        yield "mole"
        raise UserError("row 2 is bad")

    with pytest.raises(UserError, match=r"^row 2 is bad$"):
        learn("wordpiece", broken, 320)


def bases(backend: Backend) -> dict[str, Backend]:
    unigram = learn("unigram", lambda: ["the mole digs under the meadow", "an owl hunts at night"] * 3, 60)
    unigram.add_special_tokens([AddedToken("<extra>", special=True)])
    return {"WordPiece": backend, "Unigram": unigram}


@pytest.mark.parametrize(("kind", "count"), [("WordPiece", 120), ("Unigram", 50)])
def test_extension_shortens_new_texts_and_leaves_old_ids_alone(
    kind: str, count: int, backend: Backend
) -> None:
    base = bases(backend)[kind]
    made = extend(base, lambda: TEXTS, count)
    new = {piece: i for piece, i in made.get_vocab().items() if piece not in base.get_vocab()}
    assert sorted(new.values()) == list(range(base.get_vocab_size(), base.get_vocab_size() + count))
    assert all(made.token_to_id(piece) == i for piece, i in base.get_vocab().items())
    before, after = (sum(len(b.encode(text).ids) for text in TEXTS) for b in (base, made))
    unknown = {"[UNK]", "<unk>"}
    strange = [sum(t in unknown for text in TEXTS for t in b.encode(text).tokens) for b in (base, made)]
    assert after < before or strange[1] < strange[0]
    assert strange[1] == 0


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_extension_by_nothing_is_nothing(kind: str, backend: Backend) -> None:
    base = bases(backend)[kind]
    made = extend(base, lambda: TEXTS, 0)
    assert made.get_vocab() == base.get_vocab()
    assert [made.encode(text).ids for text in TEXTS] == [base.encode(text).ids for text in TEXTS]


def test_fewer_pieces_come_where_there_are_no_more(backend: Backend) -> None:
    made = extend(backend, lambda: ["äää ööö"] * 3, 500)
    assert backend.get_vocab_size() <= made.get_vocab_size() < backend.get_vocab_size() + 500


def test_an_extended_folder_keeps_what_its_files_say(backend: Backend) -> None:
    config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    old = {"tokenizer_config.json": json.dumps(config).encode(), "vocab.txt": b"", "spiece.model": b"x"}
    made = extend(backend, lambda: TEXTS, 10)
    files = tokenizer_files(made, 32, old)
    assert json.loads(files["tokenizer_config.json"]) == config
    lines = files["vocab.txt"].decode().splitlines()
    assert [made.token_to_id(line) for line in lines] == list(range(made.get_vocab_size()))
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_tokens_that_were_added_keep_their_ids_too(kind: str) -> None:
    base = learn(kind, lambda: TEXTS, 320)
    base.add_special_tokens([AddedToken("<extra>", special=True)])
    base.add_tokens(["zebra"])
    made = extend(base, lambda: TEXTS + ["neue Wörter: Dachs, Dachse, Fuchs, Füchse"] * 9, 10)
    old, new = base.get_vocab(), made.get_vocab()
    assert len(new) > len(old)
    assert {piece: new[piece] for piece in old} == old
    assert sorted(new.values()) == list(range(len(new)))


def test_byte_pair_vocabularies_cannot_be_extended() -> None:
    with pytest.raises(
        UserError, match="a vocabulary of kind BPE cannot be extended, only WordPiece and Unigram"
    ):
        extend(learn("bpe", lambda: TEXTS, 320), lambda: TEXTS, 5)
