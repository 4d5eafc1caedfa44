"""A tokenizer as GGUF metadata: WordPiece and Unigram, the two that llama.cpp has for encoders."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from moembed.types import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_SPACE = "\u2581"
_SPACES = ({"String": "  "}, {"Regex": " {2,}"})  # patterns whose replacement only merges spaces


def add_vocabulary(writer: GGUFWriter, backend: Backend, size: int) -> None:
    """Describe the tokenizer, its tokens filled up to the ``size`` rows of the word table.

    Raises:
        UserError: an algorithm, a normaliser or special tokens that llama.cpp cannot reproduce.
    """
    import gguf

    settings = json.loads(backend.to_str())
    algorithm = settings["model"]["type"]
    if algorithm not in ("WordPiece", "Unigram"):
        raise UserError(
            f"GGUF export knows WordPiece and Unigram tokenizers, not {algorithm}: llama.cpp holds the "
            "splitting rules of BPE in its code, by the name of a published tokenizer"
        )
    special = backend.encode("").ids
    if len(special) != 2:
        raise UserError(
            f"GGUF export needs a tokenizer that puts one token before and one after a text, this one puts "
            f"{len(special)} around it"
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    pieces = _wordpieces(settings) if algorithm == "WordPiece" else _unigrams(settings)
    for i, piece in pieces.items():
        tokens[i], kinds[i] = piece, gguf.TokenType.NORMAL
    for added in settings["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise UserError(f"llama.cpp cannot read a vocabulary that holds the same token twice, here {token!r}")
    if algorithm == "WordPiece":
        unknown = backend.token_to_id(settings["model"]["unk_token"])
        _add_wordpiece(writer, settings)
    else:
        unknown = settings["model"]["unk_id"]
        _add_unigram(writer, settings, size)
    if unknown is None:
        raise UserError("GGUF export needs a tokenizer with a token for the unknown")
    if algorithm == "Unigram":  # in WordPiece it is one control token among others
        kinds[unknown] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    first, last = special
    writer.add_bos_token_id(first)
    writer.add_eos_token_id(last)
    writer.add_sep_token_id(last)
    writer.add_unk_token_id(unknown)
    for name, add in (("pad", writer.add_pad_token_id), ("mask", writer.add_mask_token_id)):
        for spelling in (f"[{name.upper()}]", f"<{name}>"):
            if (found := backend.token_to_id(spelling)) is not None:
                add(found)


def _wordpieces(settings: dict[str, Any]) -> dict[int, str]:
    """llama.cpp marks the start of a word, where BERT marks what continues one."""
    mark = settings["model"]["continuing_subword_prefix"]
    vocabulary = settings["model"]["vocab"]
    return {
        i: piece[len(mark) :] if piece.startswith(mark) else _SPACE + piece for piece, i in vocabulary.items()
    }


def _unigrams(settings: dict[str, Any]) -> dict[int, str]:
    return {i: piece for i, (piece, _) in enumerate(settings["model"]["vocab"])}


def _add_wordpiece(writer: GGUFWriter, settings: dict[str, Any]) -> None:
    normalizer = settings["normalizer"] or {}
    splitter = settings["pre_tokenizer"] or {}
    if (
        normalizer.get("type") != "BertNormalizer"
        or splitter.get("type") != "BertPreTokenizer"
        or not (normalizer["clean_text"] and normalizer["handle_chinese_chars"])
    ):
        raise UserError("GGUF export of a WordPiece tokenizer needs BERT's own normaliser and word splitter")
    lowercase, strip_accents = normalizer["lowercase"], normalizer["strip_accents"]
    writer.add_tokenizer_model("bert")
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    writer.add_bool(
        "tokenizer.ggml.normalizer.strip_accents", lowercase if strip_accents is None else strip_accents
    )


def _add_unigram(writer: GGUFWriter, settings: dict[str, Any], size: int) -> None:
    normalizers = _flat(settings["normalizer"], "normalizers")
    splitters = _flat(settings["pre_tokenizer"], "pretokenizers")
    merging = [part for part in normalizers if part["type"] == "Replace" and part["pattern"] in _SPACES]
    maps = [part for part in normalizers if part["type"] == "Precompiled"]
    unknown = [part["type"] for part in normalizers if part not in maps + merging and part["type"] != "Strip"]
    unknown += [part["type"] for part in splitters if part["type"] not in ("WhitespaceSplit", "Metaspace")]
    if unknown or len(maps) > 1 or settings["model"].get("byte_fallback"):
        raise UserError(
            "GGUF export of a Unigram tokenizer needs sentencepiece's normaliser and splitter without byte "
            f"fallback, as XLM-RoBERTa has them (found: {', '.join(unknown) or 'another make'})"
        )
    split = any(part["type"] == "WhitespaceSplit" for part in splitters)
    scores = [score for _, score in settings["model"]["vocab"]]
    writer.add_tokenizer_model("t5")
    writer.add_token_scores(scores + [-10000.0] * (size - len(scores)))  # as unlikely as a row never used
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(
        any(part["type"] == "Metaspace" and part["prepend_scheme"] != "never" for part in splitters)
    )
    writer.add_remove_extra_whitespaces(split or bool(merging))
    for part in maps:
        writer.add_precompiled_charsmap(b64decode(part["precompiled_charsmap"]))


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[key] if part["type"] == "Sequence" else [part]
