"""The tokenizer of a model folder: the ids that transformers 5 gives, whichever file decides them.

Several files speak of one tokenizer, and they may disagree. transformers' classes for BERT, RoBERTa and
XLM-RoBERTa take the vocabulary from ``tokenizer.json`` and set up the rest from ``tokenizer_config.json``;
any class adds special tokens that stand in another file only. So ``tokenizer.json`` is taken as it is where
all files say the same, which is fast and needs no transformers; elsewhere transformers makes the tokenizer.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers

from moembed.files import read_json
from moembed.types import UserError

PAD_TOKENS = ("[PAD]", "<pad>")
# The files a tokenizer is made of, and kept as they are when the model is written again.
TOKENIZER_FILES = re.compile(
    r"^((tokenizer.*|special_tokens_map|added_tokens|vocab|merges|.*\.model)(\.|$)|bpe\.codes$)"
)
_VOCABULARY = re.compile(r"^(vocab|merges|bpe)\.|\.model$")
_SENTENCEPIECE = "pip install 'moembed[sentencepiece]'"
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>"}
_ROBERTA |= {"mask": "<mask>"}
# The classes whose way of reading the files is known here, with the special tokens they have of their own.
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


def read_tokenizer(
    folder: Path, rows: int, options: Mapping[str, Any] | None = None, lowercase: bool = False
) -> tuple[Backend, Literal["right", "left"]]:
    """The tokenizer that transformers makes of a folder, and the side it cuts long texts on.

    Args:
        rows: of the model's word table; ids must stay below it.
        options: arguments for the tokenizer's class that win over its files.
        lowercase: make texts lower case first, where the tokenizer does not.

    Raises:
        UserError: a damaged file, no vocabulary, a tokenizer with code of its own, one without a fast form,
            ids beyond ``rows``, a vocabulary that does not belong to the model.
    """
    stored = StoredTokenizer(
        folder,
        config=_optional(folder / "tokenizer_config.json"),
        special=_optional(folder / "special_tokens_map.json"),
        added=_optional(folder / "added_tokens.json"),
        model=_optional(folder / "config.json"),
        options=dict(options or {}),
    )
    if stored.config.get("split_special_tokens"):
        raise UserError(f"{folder}: split_special_tokens true in tokenizer_config.json is not supported")
    code = stored.config.get("auto_map") or {}
    if not isinstance(code, dict) or code.get("AutoTokenizer"):
        raise UserError(
            f"{folder}: the tokenizer brings code of its own (auto_map in tokenizer_config.json), which is "
            "not run; save it as a tokenizer.json without that key"
        )
    backend, side = _as_stored(stored) or _by_transformers(stored)
    if lowercase and not _lowers(backend.normalizer):
        backend.normalizer = _lowercase_first(backend.normalizer)
    _check_vocabulary(folder, backend, rows)
    if side not in ("right", "left"):
        raise UserError(f"{folder}: truncation_side {side!r} is neither 'right' nor 'left'")
    return backend, "left" if side == "left" else "right"


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of the tokenizer, byte for byte."""
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if TOKENIZER_FILES.match(f.name)}


def pad_token(backend: Backend) -> str | None:
    """The token that other libraries fill up batches with."""
    return next((token for token in PAD_TOKENS if backend.token_to_id(token) is not None), None)


# ---- tokenizer.json as it is -------------------------------------------------------------------------------


def _as_stored(stored: StoredTokenizer) -> tuple[Backend, str] | None:
    """``tokenizer.json`` where transformers would make the same of all files together; else None."""
    file = stored.folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{file} is not a readable tokenizer ({error})") from None
    backend.no_padding()  # what is compared below is one text, whole and alone
    backend.no_truncation()
    name = stored.config.get("tokenizer_class") or stored.model.get("tokenizer_class")
    name = str(name or _CLASS_OF_MODEL.get(stored.model.get("model_type", ""), "")).removesuffix("Fast")
    if name not in _CLASSES or stored.options:
        return None
    values = read_json(file)
    if not (_same_added(stored, values, name) and _same_pipeline(stored, values, backend, name)):
        return None
    cut = values.get("truncation") or {}
    return backend, str(stored.config.get("truncation_side") or cut.get("direction", "right")).lower()


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


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


# ---- the tokenizer that transformers makes -----------------------------------------------------------------


def _by_transformers(stored: StoredTokenizer) -> tuple[Backend, str]:
    folder, whole = stored.folder, (stored.folder / "tokenizer.json").is_file()
    names = [file.name for file in folder.iterdir()]
    if not whole and not any(_VOCABULARY.search(name) for name in names):
        # transformers would make a tokenizer that knows no word
        raise UserError(f"{folder} has neither a tokenizer.json nor a vocabulary file")
    pieces = next((name for name in names if name.endswith(".model")), None)
    if pieces and not whole and "vocab.txt" not in names and find_spec("sentencepiece") is None:
        raise UserError(
            f"{folder} has no tokenizer.json, and reading its {pieces} needs sentencepiece: {_SENTENCEPIECE}"
        )
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **stored.options
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        if whole:
            raise UserError(f"{folder}: transformers cannot make its tokenizer ({reason})") from None
        raise UserError(f"{folder} has no tokenizer.json and none could be made ({reason})") from None
    backend = getattr(made, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise UserError(
            f"{folder}: {type(made).__name__} has no fast form, so its tokenizer cannot be read; "
            "convert it to a tokenizer.json and put that into the folder"
        )
    backend.no_padding()
    backend.no_truncation()
    return backend, str(made.truncation_side)


def _lowercase_first(normalizer: Any) -> Any:
    return normalizers.Sequence([normalizers.Lowercase(), *_flat(normalizer)])


def _lowers(normalizer: Any) -> bool:
    """As sentence-transformers sees it; BERT's own normaliser then does it a second time, to no effect."""
    return any(isinstance(part, normalizers.Lowercase) for part in _flat(normalizer))


def _flat(normalizer: Any) -> list[Any]:
    parts: Any = normalizer if isinstance(normalizer, normalizers.Sequence) else (normalizer,)
    return [part for part in parts if part is not None]


# ---- does it belong to the model? --------------------------------------------------------------------------


def _check_vocabulary(folder: Path, backend: Backend, rows: int) -> None:
    """Refuse a tokenizer with ids beyond the model's rows, and one that does not know the model's words."""
    vocabulary = backend.get_vocab()
    largest = max(vocabulary.values(), default=-1)
    if largest >= rows:
        raise UserError(f"{folder}: the tokenizer's ids go up to {largest}, the model has {rows} rows")
    special = {str(token) for token in backend.get_added_tokens_decoder().values()}
    words = [token for token in vocabulary if token not in special]
    if (unknown := _all_unknown(backend, words)) or len(words) * 10 < rows:
        count = 0 if unknown else len(words)
        raise UserError(
            f"{folder}: the tokenizer knows {count:,} words and the model has {rows:,} rows, so it is not "
            "the model's own; put the tokenizer.json of the model into the folder"
        )
    if len(words) * 2 < rows:
        warnings.warn(
            f"{folder}: the tokenizer knows {len(words):,} words and the model has {rows:,} rows; "
            "is it the model's own?",
            stacklevel=2,
        )


def _all_unknown(backend: Backend, words: Sequence[str], count: int = 200) -> bool:
    """Whether the words of its own vocabulary, read as text, give what an Old Persian letter gives."""
    unknown = set(backend.encode("\U000103a0", add_special_tokens=False).ids)
    found = (re.search(r"[^\W\d_]+", word) for word in words)
    text = " ".join(match.group() for match in islice(filter(None, found), count))
    return set(backend.encode(text, add_special_tokens=False).ids) <= unknown


def _optional(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(path) if path.is_file() else {}
    return values
