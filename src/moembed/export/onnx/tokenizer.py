"""The tokenizer files of an export: other runtimes read these alone, so they carry the model's own limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from moembed.files import read_json, write_json
from moembed.folder.tokenizer import pad_token
from moembed.tokenizer import Tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """``tokenizer.json``, which cuts at the model's limit and pads to no fixed length, and its config."""
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.no_padding()
    backend.enable_truncation(tokenizer.max_length, direction=tokenizer.truncation_side)
    backend.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    values: dict[str, Any] = read_json(file) if file.is_file() else {}
    pad = pad_token(backend) or backend.id_to_token(0)
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad} | values
    write_json(file, values | {"model_max_length": tokenizer.max_length})


def read_rows(folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """Rows of short texts and one longer than the model reads, by the tokenizer that was written.

    Raises:
        RuntimeError: it gives other tokens than the model's own tokenizer.
    """
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    texts = probe_texts(tokenizer.backend, tokenizer.max_length)
    rows = [backend.encode(text).ids for text in texts]
    if rows != tokenizer.rows(texts)[0]:
        raise RuntimeError("the exported tokenizer.json gives other tokens than the model's tokenizer")
    return rows


def probe_texts(backend: Backend, limit: int) -> Sequence[str]:
    """None, one, a few words of the vocabulary, and more than the limit lets pass."""
    words = [word for word in sorted(backend.get_vocab()) if word.isalpha()][:1000:7] or ["word"]
    return ["", words[0], " ".join(words[:9]), " ".join(words * (2 * limit // len(words) + 1))]
