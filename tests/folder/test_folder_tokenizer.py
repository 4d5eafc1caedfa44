"""The tokenizer of a folder gives the ids of transformers, whichever of its files says what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from conftest import SPECIAL
from moembed.folder import tokenizer as module
from moembed.folder.stored_tokenizer import StoredTokenizer, as_stored
from moembed.folder.tokenizer import _optional, read_tokenizer
from moembed.types import UserError

ROWS = 300
TEXTS = [
    "", " ", "the mole", "The MOLE  digs, under\tthe meadow", "é Éa e\u0301", "[MASK] a [unused1] <mask> b",
    "[PAD]x[CLS] <s> </s> <pad>", "土竜 and 土", "owls hunt voles at night " * 12, "a\u200bb ﬁ x", "<new> w",
]  # fmt: skip
BERT = {"tokenizer_class": "BertTokenizer"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
LATER = {"content": "[unused1]", "lstrip": False, "rstrip": True, "single_word": False}
LATER |= {"normalized": False, "special": True}
DECODER = {str(i): LATER | {"content": token, "rstrip": False} for i, token in enumerate(SPECIAL)}


def wordpiece(lowercase: bool = True, special: bool = True) -> Backend:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"##{x}" for x in letters), *letters.upper(), "é", "土", "竜", *",.[]<>/"]
    words = ["the", "mole", "The", "MOLE", "digs", "under", "meadow", "owls", "hunt", "voles", "at", "night"]
    vocabulary = [*SPECIAL, "[unused1]", *pieces, *words]
    made = Backend(models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if special:
        made.add_special_tokens(SPECIAL)
    return made


def padded() -> Backend:
    made = wordpiece()
    made.enable_padding(length=9)
    made.enable_truncation(9)
    return made


def byte_level() -> Backend:
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "w")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    made = Backend(models.BPE(vocabulary, merges, fuse_unk=False))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return made


def unigram() -> Backend:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = "abcdefghijklmnopqrstuvwxyz,é"
    words = ["▁", "▁the", "▁mole", "▁owls", "▁hunt", "mole", "▁THE"]
    pieces = [(token, 0.0) for token in special] + [(x, -9.0) for x in letters] + [(x, -3.0) for x in words]
    made = Backend(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    metaspace = pre_tokenizers.Metaspace("▁", "always")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.add_special_tokens([*special, "<mask>"])
    return made


Change = dict[str, dict[str, Any]]


def named(**values: Any) -> Change:
    """Changes of tokenizer_config.json."""
    return {"tokenizer_config": values}


# name: (model type, tokenizer.json, small files)
VARIANTS: dict[str, tuple[str, Callable[[], Backend], Change]] = {
    "bert, nothing beside": ("bert", wordpiece, {}),
    "bert": ("bert", wordpiece, named(**BERT)),
    "bert fast": ("bert", wordpiece, named(tokenizer_class="BertTokenizerFast")),
    "bert of a config": ("moembed", wordpiece, named(**BERT)),
    "bert, padded and cut": ("bert", padded, named(**BERT)),
    "as it is": ("bert", wordpiece, named(**FAST)),
    "as it is, ours": ("moembed", wordpiece, {}),
    "an unknown class": ("bert", wordpiece, named(tokenizer_class="OwlTokenizer")),
    "no lower case": ("bert", wordpiece, named(**BERT, do_lower_case=False)),
    "lower case by default": ("bert", lambda: wordpiece(lowercase=False), named(**BERT)),
    "lower case, as it is": ("bert", lambda: wordpiece(lowercase=False), named(**FAST, do_lower_case=True)),
    "cased": ("bert", lambda: wordpiece(lowercase=False), named(**BERT, do_lower_case=False)),
    "accents": ("bert", wordpiece, named(**BERT, strip_accents=False)),
    "chinese": ("nomic_bert", wordpiece, named(**BERT, tokenize_chinese_chars=False)),
    "other ends": ("bert", wordpiece, named(**BERT, cls_token="[MASK]", sep_token="[PAD]")),
    "other ends, as it is": ("bert", wordpiece, named(**FAST, cls_token="[MASK]")),
    "extra": ("bert", wordpiece, named(**BERT, additional_special_tokens=["[unused1]"])),
    "extra, as it is": ("bert", wordpiece, named(**FAST, extra_special_tokens=["[unused1]", "<new>"])),
    "extra by name": ("bert", wordpiece, named(**FAST, extra_special_tokens={"later_token": "[unused1]"})),
    "extra in the map": ("bert", wordpiece, {"special_tokens_map": {"additional_special_tokens": ["<new>"]}}),
    "a role of its own": ("bert", wordpiece, named(**BERT, query_token="[unused1]")),
    "decoder": ("bert", wordpiece, named(**BERT, added_tokens_decoder=DECODER)),
    "decoder with more": ("bert", wordpiece, named(**BERT, added_tokens_decoder=DECODER | {"5": LATER})),
    "decoder with less": ("bert", wordpiece, named(**FAST, added_tokens_decoder={"0": DECODER["0"]})),
    "added tokens": ("bert", wordpiece, {"added_tokens": {"<new>": 108}, "tokenizer_config": BERT}),
    "added tokens, as it is": ("bert", wordpiece, {"added_tokens": {"<new>": 108}, "tokenizer_config": FAST}),
    "nothing special": ("bert", lambda: wordpiece(special=False), named(**FAST, pad_token="[PAD]")),
    "special in the map": (
        "bert", lambda: wordpiece(special=False),
        {"special_tokens_map": {"mask_token": {"content": "[MASK]", "lstrip": True, "normalized": False}}},
    ),
    "roberta": ("roberta", byte_level, {}),
    "roberta with a space": ("roberta", byte_level, named(add_prefix_space=True)),
    "roberta, as it is": ("roberta", byte_level, named(**FAST, add_prefix_space=True)),
    "roberta with wordpieces": ("roberta", wordpiece, named(**BERT)),
    "xlm-roberta": ("xlm-roberta", unigram, {}),
    "xlm-roberta, another end": ("xlm-roberta", unigram, named(eos_token="<pad>")),
    "xlm-roberta without a space": ("xlm-roberta", unigram, named(add_prefix_space=False)),
    "xlm-roberta, as it is": ("xlm-roberta", unigram, named(**FAST)),
    "camembert": ("camembert", unigram, named(tokenizer_class="CamembertTokenizer")),
    "mpnet": ("mpnet", lambda: wordpiece(lowercase=False), named(tokenizer_class="MPNetTokenizer")),
    "distilbert": ("distilbert", wordpiece, named(tokenizer_class="DistilBertTokenizer")),
    "t5": ("t5", unigram, named(tokenizer_class="T5Tokenizer")),
    "qwen": ("qwen2", byte_level, named(tokenizer_class="Qwen2Tokenizer")),
    "xlm-roberta in nomic": ("nomic_bert", unigram, named(tokenizer_class="XLMRobertaTokenizer")),
}  # fmt: skip
# Here transformers has nothing to add, so tokenizer.json is taken as it is, and transformers is not imported.
AS_STORED = ["bert, nothing beside", "bert", "bert fast", "bert of a config", "as it is", "as it is, ours"]
AS_STORED += [
    "bert, padded and cut",
    "cased",
    "lower case, as it is",
    "other ends, as it is",
    "decoder",
    "roberta",
]
AS_STORED += ["roberta with wordpieces", "xlm-roberta", "xlm-roberta, as it is", "xlm-roberta in nomic"]


def make(folder: Path, variant: str) -> Path:
    kind, backend, files = VARIANTS[variant]
    backend().save(str(folder / "tokenizer.json"))
    config = {"model_type": kind, "vocab_size": ROWS}
    for name, values in ({"config": config} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def ids(backend: Backend) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(TEXTS)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ids_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(make(tmp_path, variant), local_files_only=True)
    ours, _ = read_tokenizer(tmp_path, ROWS)
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    assert ids(ours) == [theirs(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_is_asked_only_where_files_disagree(variant: str, tmp_path: Path) -> None:
    make(tmp_path, variant)
    names = ("tokenizer_config", "special_tokens_map", "added_tokens", "config")
    stored = StoredTokenizer(tmp_path, *(_optional(tmp_path / f"{name}.json") for name in names), {})
    assert (as_stored(stored) is not None) == (variant in AS_STORED)


def test_arguments_for_the_tokenizer_win_over_its_files(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    ours, _ = read_tokenizer(tmp_path, ROWS, {"do_lower_case": False})
    assert ours.encode("The mole").tokens == ["[CLS]", "The", "mole", "[SEP]"]


def test_lower_case_can_be_asked_for_from_outside(tmp_path: Path) -> None:
    make(tmp_path, "roberta")
    as_is, _ = read_tokenizer(tmp_path, ROWS)
    lower, _ = read_tokenizer(tmp_path, ROWS, lowercase=True)
    assert ids(lower) == [as_is.encode(text.lower()).ids for text in TEXTS]


# ---- what cannot be read -------------------------------------------------------------------------


def put(folder: Path, files: dict[str, Any]) -> Path:
    for name, values in ({"config.json": {"model_type": "roberta", "vocab_size": ROWS}} | files).items():
        (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


PHOBERT = {"tokenizer_class": "PhobertTokenizer"}
WORDS = "owls 10\nhunt 9\nmoles 8\ndig 7\n"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a class that reads another file": ({"vocab.txt": WORDS}, r"knows 0 words and the model has 300 rows"),
    "a list of counts as a list of words": (
        {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "".join(f"owls {i}\n" for i in range(99))}
        | {"tokenizer_config.json": BERT},
        r"knows 0 words and the model has 300 rows",
    ),
    "a small vocabulary": (
        {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nowls\nhunt\n", "tokenizer_config.json": BERT},
        r"knows 2 words and the model has 300 rows",
    ),
    "no fast form": (
        {"vocab.txt": WORDS, "bpe.codes": "o w 5\n"}
        | {"tokenizer_config.json": {"tokenizer_class": "PhobertTokenizer"}},
        r"PhobertTokenizer has no fast form",
    ),
    "code of its own": (
        {"vocab.txt": WORDS, "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["owl.Owl", None]}}},
        r"brings code of its own \(auto_map in tokenizer_config\.json\), which is not run",
    ),
    "special tokens cut in pieces": (
        {"vocab.txt": WORDS, "tokenizer_config.json": {"split_special_tokens": True}},
        r"split_special_tokens true",
    ),
    "half a config": (
        {"vocab.txt": WORDS, "tokenizer_config.json": "{"},
        r"tokenizer_config\.json is not valid",
    ),
    "half a map": (
        {"vocab.txt": WORDS, "special_tokens_map.json": "{"},
        r"special_tokens_map\.json is not valid",
    ),
    "half of the added tokens": (
        {"vocab.txt": WORDS, "added_tokens.json": "["},
        r"added_tokens\.json is not valid",
    ),
    "no vocabulary": ({}, r"neither a tokenizer\.json nor a vocabulary file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_cannot_be_right_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    files, complaint = REFUSED[name]
    with pytest.raises(UserError, match=complaint) as error:
        read_tokenizer(put(tmp_path, files), ROWS)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'moembed\[sentencepiece\]'"):
        read_tokenizer(put(tmp_path, {"sentencepiece.bpe.model": "pieces"}), ROWS)


def test_a_vocabulary_of_less_than_half_the_rows_is_said_once(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    with pytest.warns(UserWarning, match=r"knows 101 words and the model has 300 rows"):
        read_tokenizer(tmp_path, ROWS)


def test_minilm_needs_no_transformers(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_by_transformers", lambda stored: pytest.fail("transformers was asked"))
    assert read_tokenizer(minilm, 30522)[1] == "right"
