"""The tokenizer of a model folder: the ids that transformers 5 gives, whichever file decides them.

Several files speak of one tokenizer, and they may disagree. So ``tokenizer.json`` is taken as it is where all
files say the same (`moembed.folder.stored_tokenizer`), which is fast and needs no transformers; elsewhere
transformers makes the tokenizer.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from moembed.files import read_json
from moembed.folder.stored_tokenizer import StoredTokenizer, as_stored, gives_types
from moembed.types import UserError

PAD_TOKENS = ("[PAD]", "<pad>")
# The files a tokenizer is made of, and kept as they are when the model is written again.
TOKENIZER_FILES = re.compile(
    r"^((tokenizer.*|special_tokens_map|added_tokens|vocab|merges|.*\.model)(\.|$)|bpe\.codes$)"
)
_VOCABULARY = re.compile(r"^(vocab|merges|bpe)\.|\.model$")
_SENTENCEPIECE = "pip install 'moembed[sentencepiece]'"


def read_tokenizer(
    folder: Path,
    rows: int,
    options: Mapping[str, Any] | None = None,
    lowercase: bool = False,
    pairs: bool = False,
) -> tuple[Backend, Literal["right", "left"]]:
    """The tokenizer that transformers makes of a folder, and the side it cuts long texts on.

    Args:
        rows: of the model's word table; ids must stay below it.
        options: arguments for the tokenizer's class that win over its files.
        lowercase: make texts lower case first, where the tokenizer does not.
        pairs: it has to read two texts as one, too.

    Raises:
        UserError: a damaged file, no vocabulary, a tokenizer with code of its own, one without a fast form,
            ids beyond ``rows``, a vocabulary that does not belong to the model.
    """
    stored = _stored(folder, options)
    if stored.config.get("split_special_tokens"):
        raise UserError(f"{folder}: split_special_tokens true in tokenizer_config.json is not supported")
    code = stored.config.get("auto_map") or {}
    if not isinstance(code, dict) or code.get("AutoTokenizer"):
        raise UserError(
            f"{folder}: the tokenizer brings code of its own (auto_map in tokenizer_config.json), which is "
            "not run; save it as a tokenizer.json without that key"
        )
    backend, side = as_stored(stored, pairs) or _by_transformers(stored)
    if lowercase and not _lowers(backend.normalizer):
        backend.normalizer = _lowercase_first(backend.normalizer)
    _check_vocabulary(folder, backend, rows)
    if side not in ("right", "left"):
        raise UserError(f"{folder}: truncation_side {side!r} is neither 'right' nor 'left'")
    return backend, "left" if side == "left" else "right"


def reads_types(folder: Path, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a model gets the types of tokens beside their ids, as transformers does it."""
    return gives_types(_stored(folder, options))


def _stored(folder: Path, options: Mapping[str, Any] | None) -> StoredTokenizer:
    return StoredTokenizer(
        folder,
        config=_optional(folder / "tokenizer_config.json"),
        special=_optional(folder / "special_tokens_map.json"),
        added=_optional(folder / "added_tokens.json"),
        model=_optional(folder / "config.json"),
        options=dict(options or {}),
    )


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of the tokenizer, byte for byte."""
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    return {file.name: file.read_bytes() for file in files if TOKENIZER_FILES.match(file.name)}


def pad_token(backend: Backend) -> str | None:
    """The token that other libraries fill up batches with."""
    return next((token for token in PAD_TOKENS if backend.token_to_id(token) is not None), None)


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
    values: dict[str, Any] = read_json(path) if path.exists() else {}
    return values
