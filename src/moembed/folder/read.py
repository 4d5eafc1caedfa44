"""A sentence-transformers folder -> the parts of an Embedder. Every tensor is checked on the way in.

The files::

    config.json                          the architecture (ours or another family's)
    model.safetensors                    the weights
    tokenizer.json, tokenizer_config.json …
    modules.json, 1_Pooling, 2_Normalize how token states become one unit vector
    config_sentence_transformers.json    prompts by name
    sentence_bert_config.json            max_seq_length
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from moembed.families.registry import family_of
from moembed.files import read_json
from moembed.folder.parts import LEGACY_POOLING, MODULES, Parts
from moembed.folder.tensors import read_state
from moembed.model.pooling import POOLING
from moembed.model.spec import EncoderSpec
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

_TOKENIZER_FILES = re.compile(r"^(tokenizer.*|special_tokens_map|added_tokens|vocab|merges|.*\.model)(\.|$)")


@dataclass(frozen=True)
class Settings:
    max_length: int
    prompts: dict[str, str]
    default_prompt: str | None
    pooling: str
    dims: tuple[int, ...] = ()


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
    spec = read_config(path)
    state = read_state(path, spec, family_of(values), allow_pickle)
    settings = read_settings(path, spec)
    tokenizer = Tokenizer(
        _read_tokenizer(path, spec), settings.max_length, settings.prompts, settings.default_prompt
    )
    return Parts(spec, state, tokenizer, settings.pooling, _tokenizer_files(path), values, settings.dims)


def read_config(path: Path) -> EncoderSpec:
    """The architecture alone, from ``config.json``."""
    values = read_json(path / "config.json")
    try:
        return family_of(values).read_config(values)
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} has no key {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path / 'config.json'}: {' '.join(str(error).split())}") from None


def _read_tokenizer(path: Path, spec: EncoderSpec) -> Backend:
    file = path / "tokenizer.json"
    if file.is_file():
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the Rust library raises bare Exception
            raise UserError(f"{file} is not a readable tokenizer ({error})") from None
    else:
        backend = _slow_tokenizer(path)
    largest = max(backend.get_vocab().values(), default=-1)
    if largest >= spec.vocab_size:
        raise UserError(
            f"{path}: the tokenizer's ids go up to {largest}, the model has {spec.vocab_size} rows"
        )
    return backend


def read_settings(path: Path, spec: EncoderSpec) -> Settings:
    """What the small files of a folder say about texts: length limit, prompts, pooling."""
    transformer = _optional(path / "sentence_bert_config.json")
    if transformer.get("do_lower_case"):
        raise UserError(f"{path}: do_lower_case in sentence_bert_config.json is not supported")
    tokenizer = _optional(path / "tokenizer_config.json")
    limit = int(transformer.get("max_seq_length") or tokenizer.get("model_max_length") or spec.max_length)
    prompts = _optional(path / "config_sentence_transformers.json")
    return Settings(
        max_length=min(limit, spec.max_length),
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
    if kinds not in (MODULES, MODULES[:2]):
        known, found = " + ".join(MODULES), " + ".join(kinds)
        raise UserError(f"{path}: a model made of {found} is not supported, only {known}")
    values = read_json(path / modules[1]["path"] / "config.json")
    modes = values.get("pooling_mode") or [mode for key, mode in LEGACY_POOLING.items() if values.get(key)]
    mode = modes if isinstance(modes, str) else "+".join(modes)
    if mode not in POOLING:
        raise UserError(f"{path}: pooling {mode!r} is not supported (known: {', '.join(POOLING)})")
    if not values.get("include_prompt", True):
        raise UserError(f"{path}: pooling that leaves the prompt out (include_prompt false) is not supported")
    return str(mode)
