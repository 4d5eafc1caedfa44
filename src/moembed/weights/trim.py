"""A vocabulary cut to the pieces that texts use: most of a multilingual model is rows of other languages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from itertools import islice
from typing import Any

from tokenizers import Tokenizer as Backend

from moembed.prompts import split_prompt
from moembed.types import UserError
from moembed.weights.pieces import Texts

_BLOCK = 2048  # texts tokenised at a time
_MARKS = "▁Ġ"  # how SentencePiece and byte-level vocabularies write the space in front of a word


def trim(backend: Backend, texts: Texts, min_count: int = 1, prompts: Collection[str] = ()) -> Backend:
    """``backend`` with those pieces alone that ``texts`` use ``min_count`` times or more.

    Special and added tokens stay, and so do the pieces of ``prompts``, which a model puts around every text,
    and pieces of one character that is in a piece the texts use, so that words of the same letters never
    become unknown. The order of the pieces stays, their ids close up. With ``min_count`` 1 the texts are
    cut as before, alone and with a prompt: what is best, longest or merged first among all pieces still is
    among fewer. With more, rare pieces fall apart into smaller ones.

    Raises:
        UserError: no text, or a tokenizer that is none of WordPiece, Unigram and BPE.
    """
    values = json.loads(backend.to_str())
    model = values["model"]
    if model["type"] not in _TRIM:
        raise UserError(f"a vocabulary of kind {model['type']} cannot be trimmed, only {', '.join(_TRIM)}")
    prompts = dict.fromkeys(filter(None, prompts))
    counts = _counts(backend, texts, prompts)
    if not counts:
        raise UserError("there is no text to trim the vocabulary to")

    # what stays, by its text
    piece_of = {number: piece for piece, number in backend.get_vocab(with_added_tokens=True).items()}
    prefix = model.get("continuing_subword_prefix") or ""
    letters = {letter for number in counts for letter in piece_of[number]}
    kept = {token["content"] for token in values["added_tokens"]}
    kept |= {piece_of[number] for number, count in counts.items() if count >= min_count}
    edges = [edge for prompt in prompts for edge in split_prompt(prompt)]
    for encoding in backend.encode_batch_fast(edges, add_special_tokens=False):
        kept.update(piece_of[number] for number in encoding.ids)
    for piece in piece_of.values():
        text = piece.removeprefix(prefix) if prefix else piece
        if len(text.lstrip(_MARKS) or text) == 1 and letters.issuperset(text):
            kept.add(piece)
    kept |= _TRIM[model["type"]](model, kept)

    # the vocabulary without the rest, and every id that is written somewhere
    ids = {number: place for place, number in enumerate(n for n in sorted(piece_of) if piece_of[n] in kept)}
    if model["type"] == "Unigram":
        model["unk_id"] = None if model["unk_id"] is None else ids[model["unk_id"]]
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
    else:
        model["vocab"] = {piece: ids[number] for piece, number in model["vocab"].items() if piece in kept}
    for token in values["added_tokens"]:
        token["id"] = ids[token["id"]]
    if values["padding"]:
        values["padding"]["pad_id"] = ids[values["padding"]["pad_id"]]
    _renumber(values["post_processor"], ids)
    return Backend.from_str(json.dumps(values))


def _counts(backend: Backend, texts: Texts, prompts: Collection[str]) -> Counter[int]:
    """How often the texts use every piece, alone or with a prompt, where their first word may be another."""
    alone: Counter[int] = Counter()
    prompted: dict[str, Counter[int]] = {prompt: Counter() for prompt in prompts}
    stream = iter(texts())
    while block := list(islice(stream, _BLOCK)):
        for prompt, counts in (("", alone), *prompted.items()):
            front, behind = split_prompt(prompt)
            whole = [front + text + behind for text in block]
            for encoding in backend.encode_batch_fast(whole, add_special_tokens=False):
                counts.update(encoding.ids)
    if alone:
        for counts in prompted.values():
            alone |= counts  # the larger of each
    return alone


def _wordpiece(model: dict[str, Any], kept: set[str]) -> set[str]:
    return {model["unk_token"]}


def _unigram(model: dict[str, Any], kept: set[str]) -> set[str]:
    """The unknown piece, the least likely one, by which an unknown character is weighed, and raw bytes."""
    least = min(model["vocab"], key=lambda entry: entry[1])[0]
    unknown = [] if model["unk_id"] is None else [model["vocab"][model["unk_id"]][0]]
    return {least, *unknown, *_raw_bytes(model)}


def _raw_bytes(model: dict[str, Any]) -> list[str]:
    """The pieces that an unknown character is written with, where the model does so."""
    return [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []


def _bpe(model: dict[str, Any], kept: set[str]) -> set[str]:
    """All that kept pieces are merged from, and raw bytes; other merges are dropped from ``model``."""
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    needed = {piece for piece in (model["unk_token"], *kept, *_raw_bytes(model)) if piece}
    prefix = model.get("continuing_subword_prefix") or ""
    for left, right in reversed(merges):  # a piece is merged before it is part of another
        if left + right.removeprefix(prefix) in needed:
            needed |= {left, right}
    needed |= {
        piece for piece in model["vocab"] if len(piece) == 1
    }  # the alphabet of a byte-level vocabulary
    model["merges"] = [
        merge for merge in merges if {merge[0], merge[1], merge[0] + merge[1].removeprefix(prefix)} <= needed
    ]
    return needed & model["vocab"].keys()


_TRIM = {"WordPiece": _wordpiece, "Unigram": _unigram, "BPE": _bpe}


def _renumber(part: Any, ids: dict[int, int]) -> None:
    """New ids in a post-processor: ``ids`` of a template's tokens, ``["</s>", 2]`` of RoBERTa and BERT."""
    if isinstance(part, list):
        for one in part:
            _renumber(one, ids)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "special_tokens":
                for token in value.values():
                    token["ids"] = [ids[number] for number in token["ids"]]
            elif key in ("sep", "cls"):
                part[key] = [value[0], ids[value[1]]]
            else:
                _renumber(value, ids)
