"""Whether ``tokenizer.json`` alone gives the tokens that transformers makes of all files of a folder.

transformers' classes for BERT, RoBERTa and XLM-RoBERTa take the vocabulary from ``tokenizer.json`` and set up
the rest from ``tokenizer_config.json``; any class adds special tokens that stand in another file only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers

from moembed.files import read_json
from moembed.types import UserError

_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>"}
_ROBERTA |= {"mask": "<mask>"}
# The classes whose way of reading the files is known here, with the special tokens they have of their own.
# Of these, BertTokenizer alone gives models the types of tokens.
_CLASSES: dict[str, dict[str, str]] = {
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
    "BertTokenizer": _BERT,
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
}
_CLASS_OF_MODEL = {
    "bert": "BertTokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "moembed": "TokenizersBackend",
}


@dataclass(frozen=True)
class StoredTokenizer:
    """What a folder says of its tokenizer: the small files, and ``tokenizer.json`` where there is one.

    ``options`` are arguments that `sentence_bert_config.json` hands to the tokenizer's class.
    """

    folder: Path
    config: dict[str, Any]
    special: dict[str, Any]
    added: dict[str, Any]
    model: dict[str, Any]
    options: dict[str, Any]


def as_stored(stored: StoredTokenizer, pairs: bool = False) -> tuple[Backend, str] | None:
    """``tokenizer.json`` where transformers would make the same of all files together; else None.

    ``pairs``: two texts read as one count too.
    """
    file = stored.folder / "tokenizer.json"
    if not file.exists():
        return None
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{file} is not a readable tokenizer ({error})") from None
    backend.no_padding()  # what is compared below is one text, whole and alone
    backend.no_truncation()
    name = _class_name(stored)
    if name not in _CLASSES or stored.options:
        return None
    values = read_json(file)
    if not (_same_added(stored, values, name) and _same_pipeline(stored, values, backend, name)):
        return None
    if pairs and _CLASSES[name] and not _same_pairs(stored, backend, name):
        return None
    cut = values.get("truncation") or {}
    return backend, str(stored.config.get("truncation_side") or cut.get("direction", "right")).lower()


def _class_name(stored: StoredTokenizer) -> str:
    name = stored.config.get("tokenizer_class") or stored.model.get("tokenizer_class")
    return str(name or _CLASS_OF_MODEL.get(stored.model.get("model_type", ""), "")).removesuffix("Fast")


def gives_types(stored: StoredTokenizer) -> bool:
    """Whether transformers hands the types of tokens to the model, so that it tells query and document."""
    names = stored.options.get("model_input_names") or stored.config.get("model_input_names")
    if names:
        return "token_type_ids" in names
    name = _class_name(stored)
    if name in _CLASSES:
        return name == "BertTokenizer"
    import transformers

    return "token_type_ids" in getattr(getattr(transformers, name, None), "model_input_names", ())


def _same_added(stored: StoredTokenizer, values: dict[str, Any], name: str) -> bool:
    """Whether every token that any file adds is in ``tokenizer.json``, special where it is named special."""
    in_json = {token["content"]: token for token in values.get("added_tokens") or []}
    sources = [stored.config]
    if (decoder := stored.config.get("added_tokens_decoder")) is not None:
        listed = {int(i): tuple(token.get(flag) for flag in _FLAGS) for i, token in decoder.items()}
        if listed != {token["id"]: tuple(token[flag] for flag in _FLAGS) for token in in_json.values()}:
            return False
    else:
        sources.append(stored.special)
        if any(token not in in_json or in_json[token]["id"] != i for token, i in stored.added.items()):
            return False
    special = set(_special_tokens(stored, name).values())
    for source in sources:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            extra = source.get(key) or []
            special |= {_content(token) for token in (extra.values() if isinstance(extra, dict) else extra)}
    if not all(token in in_json and in_json[token]["special"] for token in special):
        return False
    if not _CLASSES[name]:
        return True
    # these classes add the tokens again, one after the other behind the vocabulary
    vocabulary = values["model"]["vocab"]
    known = vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    behind = [token["id"] for token in in_json.values() if token["content"] not in known]
    return behind == list(range(len(known), len(known) + len(behind)))


def _special_tokens(stored: StoredTokenizer, name: str) -> dict[str, str]:
    """Special tokens by role, ``cls`` and so on: those of the class, then what the files say."""
    found = dict(_CLASSES[name])
    legacy = stored.special if "added_tokens_decoder" not in stored.config else {}
    for source in (stored.config, legacy):
        for key, value in source.items():
            if key.endswith("_token") and isinstance(value, str | dict):
                found[key.removesuffix("_token")] = _content(value)
    return found


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _same_pipeline(stored: StoredTokenizer, values: dict[str, Any], backend: Backend, name: str) -> bool:
    """Whether the class would set up normaliser, splitter, model and special tokens as they are stored."""
    if not _CLASSES[name]:
        return "add_prefix_space" not in stored.config
    config, model = stored.config, values["model"]
    special = _special_tokens(stored, name)
    first, last = (special[role] for role in (("bos", "eos") if name.startswith("XLM") else ("cls", "sep")))
    ends = [backend.token_to_id(first), backend.token_to_id(last)]
    word = backend.encode("a").ids
    if backend.encode("").ids != ends or [word[0], word[-1]] != ends or len(word) < 3:
        return False
    normalizer: Any = None
    splitter: Any
    if name == "BertTokenizer":
        expected = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        expected |= {"unk_token": special["unk"]}
        normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
            strip_accents=config.get("strip_accents"),
            lowercase=bool(config.get("do_lower_case", True)),
        )
        splitter = pre_tokenizers.BertPreTokenizer()
    elif name == "RobertaTokenizer":
        expected = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
        if any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
            return False
        if model.get("byte_fallback") or model.get("ignore_merges"):
            return False
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
        splitter.trim_offsets = getattr(backend.pre_tokenizer, "trim_offsets", True)  # moves no id
    else:
        expected = {"type": "Unigram", "unk_id": 3}
        if model.get("byte_fallback"):
            return False
        normalizer = backend.normalizer if isinstance(backend.normalizer, normalizers.Precompiled) else None
        scheme: Any = "always" if config.get("add_prefix_space", True) else "never"
        metaspace = pre_tokenizers.Metaspace("▁", scheme)
        splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    return (
        all(model.get(key) == value for key, value in expected.items())
        and _state(backend.normalizer) == _state(normalizer)
        and _state(backend.pre_tokenizer) == _state(splitter)
    )


def _same_pairs(stored: StoredTokenizer, backend: Backend, name: str) -> bool:
    """Whether the class would set up two texts as they are stored: ``[CLS] a [SEP] b [SEP]``, of types 0 and
    1, or ``<s> a </s></s> b </s>``."""
    text = backend.encode("a", add_special_tokens=False).ids
    first, last = backend.encode("").ids
    between = [last] if name == "BertTokenizer" else [last, last]
    one, other = [first, *text, *between], [*text, last]
    types = [0] * len(one) + [int(name == "BertTokenizer")] * len(other)
    pair = backend.encode("a", "a")
    return pair.ids == one + other and pair.type_ids == types


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())
