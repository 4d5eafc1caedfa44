"""A sentence-transformers folder <-> the parts of an Embedder. Every tensor is checked on the way in.

The files::

    config.json                          the architecture (ours or another family's)
    model.safetensors                    the weights
    tokenizer.json, tokenizer_config.json …
    modules.json, 1_Pooling, 2_Normalize how token states become one unit vector
    config_sentence_transformers.json    prompts by name
    sentence_bert_config.json            max_seq_length
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from torch import Tensor

from moembed.model.encoder import EncoderConfig
from moembed.model.families import family_of
from moembed.model.files import read_json, read_state
from moembed.model.pooling import POOLING
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

_TOKENIZER_FILES = re.compile(r"^(tokenizer.*|special_tokens_map|added_tokens|vocab|merges|.*\.model)(\.|$)")
_PADDING = ("[PAD]", "<pad>")
_MODULES = ["Transformer", "Pooling", "Normalize"]
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass
class Parts:
    """What a model folder holds: ``files`` of the tokenizer, bytes as they are, ``source``: config.json.

    ``dims`` are the prefixes of the vector that were trained to stand alone (Matryoshka).
    """

    config: EncoderConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    pooling: str
    files: dict[str, bytes] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    max_length: int
    prompts: dict[str, str]
    default_prompt: str | None
    pooling: str
    dims: tuple[int, ...] = ()


# ---- reading ----------------------------------------------------------------------------------------------


def read_folder(path: Path, allow_pickle: bool = False) -> Parts:
    """Read and check a model folder.

    Args:
        allow_pickle: where there is no model.safetensors, read the tensors of pytorch_model.bin, and nothing
            but tensors.

    Raises:
        UserError: not a model folder, unknown model type or module, missing, extra, misshapen or non-finite
            tensors, a damaged file, a tokenizer larger than the vocabulary.
    """
    if not (path / "config.json").is_file():
        what = "has no config.json, so it is not a model folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}")
    values = read_json(path / "config.json")
    config = read_config(path)
    state = read_state(path, config, family_of(values), allow_pickle)
    settings = read_settings(path, config)
    tokenizer = Tokenizer(
        _read_tokenizer(path, config), settings.max_length, settings.prompts, settings.default_prompt
    )
    return Parts(config, state, tokenizer, settings.pooling, _tokenizer_files(path), values, settings.dims)


def read_config(path: Path) -> EncoderConfig:
    """The architecture alone, from ``config.json``."""
    values = read_json(path / "config.json")
    try:
        return family_of(values).read_config(values)
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} has no key {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path / 'config.json'}: {' '.join(str(error).split())}") from None


def _read_tokenizer(path: Path, config: EncoderConfig) -> Backend:
    file = path / "tokenizer.json"
    if file.is_file():
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the Rust library raises bare Exception
            raise UserError(f"{file} is not a readable tokenizer ({error})") from None
    else:
        backend = _slow_tokenizer(path)
    largest = max(backend.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer's ids go up to {largest}, the model has {config.vocab_size} rows"
        )
    return backend


def read_settings(path: Path, config: EncoderConfig) -> Settings:
    """What the small files of a folder say about texts: length limit, prompts, pooling."""
    transformer = _optional(path / "sentence_bert_config.json")
    if transformer.get("do_lower_case"):
        raise UserError(f"{path}: do_lower_case in sentence_bert_config.json is not supported")
    tokenizer = _optional(path / "tokenizer_config.json")
    limit = int(transformer.get("max_seq_length") or tokenizer.get("model_max_length") or config.max_length)
    prompts = _optional(path / "config_sentence_transformers.json")
    return Settings(
        max_length=min(limit, config.max_length),
        prompts={name: text for name, text in (prompts.get("prompts") or {}).items() if text},
        default_prompt=prompts.get("default_prompt_name"),
        pooling=_read_pooling(path),
        dims=tuple(prompts.get("matryoshka_dims") or ()),
    )


def _slow_tokenizer(path: Path) -> Backend:
    """Folders with only ``vocab.txt`` or a sentencepiece model: transformers converts them."""
    from transformers import AutoTokenizer

    if not any(re.search(r"^vocab\.|\.model$", file.name) for file in path.iterdir()):
        # transformers would make a tokenizer that knows no word
        raise UserError(f"{path} has neither a tokenizer.json nor a vocabulary file")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True).backend_tokenizer
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} has no tokenizer.json and none could be made ({reason})") from None


def _tokenizer_files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if _TOKENIZER_FILES.match(f.name)}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_pooling(path: Path) -> str:
    if not (path / "modules.json").is_file():
        warnings.warn(f"{path} has no modules.json: mean pooling is assumed", stacklevel=2)
        return "mean"
    modules = read_json(path / "modules.json", list)
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds not in (_MODULES, _MODULES[:2]):
        known, found = " + ".join(_MODULES), " + ".join(kinds)
        raise UserError(f"{path}: a model made of {found} is not supported, only {known}")
    values = read_json(path / modules[1]["path"] / "config.json")
    modes = values.get("pooling_mode") or [mode for key, mode in _LEGACY_POOLING.items() if values.get(key)]
    mode = modes if isinstance(modes, str) else "+".join(modes)
    if mode not in POOLING:
        raise UserError(f"{path}: pooling {mode!r} is not supported (known: {', '.join(POOLING)})")
    if not values.get("include_prompt", True):
        raise UserError(f"{path}: pooling that leaves the prompt out (include_prompt false) is not supported")
    return str(mode)


# ---- writing ----------------------------------------------------------------------------------------------


def write_folder(path: Path, parts: Parts) -> None:
    """Write a folder that ``read_folder`` gives back and, for dense models, sentence-transformers loads.

    The folder appears whole or not at all: it is written under another name and then takes its place.
    """
    family = family_of({"model_type": parts.config.family})
    theirs: dict[str, Tensor] = {}
    table = family.names(parts.config)
    for ours, tensor in parts.state.items():
        if ours not in table:
            raise UserError(f"the {parts.config.family} layout has no place for {ours!r}")
        pieces = table[ours].write(tensor.detach().cpu())
        names = (family.prefixes[0] + name for name in table[ours].names)
        theirs |= {name: piece.contiguous() for name, piece in zip(names, pieces, strict=True)}
    with replacing(path) as folder:
        write_small_files(folder, parts)
        save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})


def write_small_files(folder: Path, parts: Parts) -> None:
    """Every file of a model folder but its weights: config, tokenizer, pooling, prompts."""
    dtype = str(next(iter(parts.state.values())).dtype).removeprefix("torch.")
    tokenizer = parts.tokenizer
    transformer = "sentence_transformers.models."
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": transformer + kind}
        for i, (kind, place) in enumerate(zip(_MODULES, ["", "1_Pooling", "2_Normalize"], strict=True))
    ]
    pooling = {
        "word_embedding_dimension": parts.config.width,
        "embedding_dimension": parts.config.width,
        "pooling_mode": parts.pooling,
        **{key: mode == parts.pooling for key, mode in _LEGACY_POOLING.items()},
        "include_prompt": True,
    }
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": tokenizer.prompts,
        "default_prompt_name": tokenizer.default_prompt,
        "similarity_fn_name": "cosine",
    }
    settings |= {"matryoshka_dims": list(parts.dims)} if parts.dims else {}
    _write_json(folder / "config.json", _config_values(parts, dtype))
    _write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    _write_json(folder / "config_sentence_transformers.json", settings)
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": tokenizer.max_length, "do_lower_case": False},
    )
    for name, content in parts.files.items():
        (folder / name).write_bytes(content)
    if "tokenizer.json" not in parts.files:
        tokenizer.backend.save(str(folder / "tokenizer.json"))
    if "tokenizer_config.json" not in parts.files:
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers needs beside a bare tokenizer.json to batch texts: a name for padding."""
    pad = next((token for token in _PADDING if tokenizer.backend.token_to_id(token) is not None), None)
    named = {"pad_token": pad} if pad else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.max_length} | named


def _config_values(parts: Parts, dtype: str) -> dict[str, Any]:
    """The config as it was read, with what no longer is true written over it; else a new one."""
    family, source = family_of({"model_type": parts.config.family}), parts.source
    written = family.write_config(parts.config)
    if source.get("model_type") != written["model_type"]:
        return written | {"dtype": dtype}
    values = source if family.read_config(source) == parts.config else source | written
    return values | {key: dtype for key in ("dtype", "torch_dtype") if key in source}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place when the block ends well and vanishes when not.

    Raises:
        UserError: the disk is full or not writable.
    """
    fresh, old = (path.with_name(f".{path.name}.{word}") for word in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)  # left by a process that was killed
        fresh.mkdir()
        yield fresh
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        fresh.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {path} ({error})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
