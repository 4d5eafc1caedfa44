"""A new tokenizer for a model: word-embedding rows move with their pieces, new pieces start from old ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from torch import Tensor

from moembed.folder.parts import Parts
from moembed.model.spec import EncoderSpec
from moembed.weights.compress_vocabulary import require_whole_vocabulary
from moembed.weights.size import require_memory

Key = tuple[bool, str]  # whether the piece begins a word, and its text

_ROLES = (("[PAD]", "<pad>"), ("[UNK]", "<unk>"), ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[MASK]", "<mask>"))
_SPECIAL = {name: f"special {role}" for role, names in enumerate(_ROLES) for name in names}


@dataclass(frozen=True, slots=True)
class Origins:
    """How many rows of the new table are old ones, means of the rows of their old pieces, the mean of all."""

    shared: int
    from_pieces: int
    from_mean: int


def transplant(
    spec: EncoderSpec, state: dict[str, Tensor], old: Backend, new: Backend
) -> tuple[EncoderSpec, dict[str, Tensor], Origins]:
    """The word embeddings for the pieces of ``new``; every other tensor stays.

    A piece that ``old`` has too, whatever its spelling, keeps its row; so do pad, unknown, first, last and
    mask token. Any other starts at the mean of the rows of the pieces that ``old`` cuts its text into, or, if
    it knows none of them, at the mean of all rows. A text that both cut into the same pieces therefore keeps
    its vector.
    """
    require_whole_vocabulary(spec, "a new tokenizer")
    rows = state["word.weight"]
    old_spelling = spelling(old)
    known = {old_spelling(piece): number for piece, number in old.get_vocab().items()}
    unknown = known.get((False, _SPECIAL["[UNK]"]))
    keys = {number: key for key, number in known.items()}
    mean_D = rows[list(keys)].float().mean(0)
    new_spelling = spelling(new)
    wanted = {number: new_spelling(piece) for piece, number in new.get_vocab().items()}
    table = mean_D.to(rows.dtype).repeat(max(wanted) + 1, 1)

    shared = {number: known[key] for number, key in wanted.items() if key in known}
    # two pieces may be read alike, as spaces of the vocabulary and added ones: each keeps its own row
    same = old.get_vocab()
    for piece, number in new.get_vocab().items():
        if piece in same and old_spelling(piece) == wanted[number]:
            shared[number] = same[piece]
    table[list(shared)] = rows[list(shared.values())]
    rest = [number for number in wanted if number not in shared]
    cut = old.encode_batch_fast([wanted[number][1] for number in rest], add_special_tokens=False)
    pieces: dict[int, list[int]] = {}
    for number, encoding in zip(rest, cut, strict=True):
        ids = [i for i in encoding.ids if i != unknown]
        if ids and not wanted[number][0]:  # the text continues a word: so does its first piece
            ids[0] = known.get((False, keys[ids[0]][1]), ids[0])
        if ids:
            pieces[number] = ids
    if pieces:
        flat = torch.tensor([i for ids in pieces.values() for i in ids])
        starts = torch.tensor([0, *(len(ids) for ids in pieces.values())]).cumsum(0)[:-1]
        table[list(pieces)] = F.embedding_bag(flat, rows.float(), starts, mode="mean").to(rows.dtype)
    origins = Origins(len(shared), len(pieces), len(rest) - len(pieces))
    return spec.with_vocabulary(len(table)), state | {"word.weight": table}, origins


def spelling(backend: Backend) -> Callable[[str], Key]:
    """How to read the pieces of a tokenizer: WordPiece ``##x``, byte-level ``Ġx``, SentencePiece ``▁x``."""
    values = json.loads(backend.to_str())
    byte_level = "ByteLevel" in json.dumps([values["pre_tokenizer"], values["decoder"]])
    decoder = decoders.ByteLevel()

    def key(piece: str) -> Key:
        if piece in _SPECIAL:
            return False, _SPECIAL[piece]
        if values["model"]["type"] == "WordPiece":
            prefix = values["model"]["continuing_subword_prefix"]
            return not piece.startswith(prefix), piece.removeprefix(prefix)
        text = piece
        if byte_level and "\N{REPLACEMENT CHARACTER}" not in (decoded := decoder.decode([piece])):
            text = decoded  # else the piece is part of a character, and no text
        mark = " " if byte_level else "▁"
        return text.startswith(mark), text.removeprefix(mark)

    return key


def pad(spec: EncoderSpec, state: dict[str, Tensor], multiple: int) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Rows of zeros, up to a multiple of ``multiple``: no text reaches them, matrix products run faster."""
    require_whole_vocabulary(spec, "padding the vocabulary")
    rows = -(-spec.vocab_size // multiple) * multiple
    padded = spec.with_vocabulary(rows)
    require_memory(padded, f"{rows:,} rows of word embeddings")
    table = F.pad(state["word.weight"], (0, 0, 0, rows - spec.vocab_size))
    return padded, state | {"word.weight": table}


def with_tokenizer(parts: Parts, backend: Backend, files: dict[str, bytes]) -> tuple[Parts, Origins]:
    """``parts`` with another tokenizer and the word embeddings for it; prompts and length limit stay."""
    old = parts.tokenizer
    spec, state, origins = transplant(parts.spec, parts.state, old.backend, backend)
    source, positions = _renumbered(parts.source, old.backend, backend), spec.embeddings.positions
    if positions and positions.offset and _pad(backend) != positions.offset - 1:
        source = {}  # RoBERTa's own code finds positions through the id of its pad token: not its layout
    tokenizer = old.replaced(backend=backend)
    return replace(parts, spec=spec, state=state, tokenizer=tokenizer, files=files, source=source), origins


def _renumbered(source: dict[str, Any], old: Backend, new: Backend) -> dict[str, Any]:
    """``config.json`` with the ids that its special tokens have now, null for one that is gone: other
    libraries refuse an id beyond the vocabulary."""

    def moved(number: int) -> int | None:
        token = old.id_to_token(number)
        names = next((names for names in _ROLES if token in names), (token,))
        return next((i for name in names if name and (i := new.token_to_id(name)) is not None), None)

    found = dict(source)
    for key, value in source.items():
        if key.endswith("_token_id"):
            if type(value) is int:
                found[key] = moved(value)
            elif isinstance(value, list):  # several tokens end a text
                found[key] = [i for number in value if (i := moved(number)) is not None]
    return found


def _pad(backend: Backend) -> int | None:
    return next((i for name in _ROLES[0] if (i := backend.token_to_id(name)) is not None), None)
