"""The parts of an Embedder -> a sentence-transformers folder, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from moembed.families.registry import Family, family_to_write
from moembed.files import replacing, write_json
from moembed.folder.modules import write_modules
from moembed.folder.parts import Parts
from moembed.folder.relation import write_relation
from moembed.folder.settings import SENTENCE_TRANSFORMERS, TRANSFORMER_FILES
from moembed.folder.tensors import layout_tensors
from moembed.folder.tokenizer import pad_token
from moembed.model.spec import EncoderSpec
from moembed.tokenizer import Tokenizer
from moembed.types import UserError


def write_folder(path: Path, parts: Parts) -> None:
    """Write a folder that ``read_folder`` gives back and, for dense models, sentence-transformers loads.

    The folder appears whole or not at all: it is written under another name and then takes its place.
    """
    family = family_to_write(parts.spec, parts.source)
    theirs = layout_tensors(parts.spec, parts.state, family)
    with replacing(path) as folder:
        write_small_files(folder, parts)
        save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})


def write_small_files(folder: Path, parts: Parts) -> None:
    """Every file of a model folder but the encoder's weights: config, tokenizer, modules, prompts."""
    dtype = str(next(iter(parts.state.values())).dtype).removeprefix("torch.")
    tokenizer, files = parts.tokenizer, dict(parts.files)
    kept = json.loads(files.pop(TRANSFORMER_FILES[0], b"{}"))
    for options in filter(lambda value: isinstance(value, dict), kept.values()):
        options.pop("model_max_length", None)  # it would win over max_seq_length, which may be another by now
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": tokenizer.prompts,
        "default_prompt_name": tokenizer.default_prompt,
        "similarity_fn_name": parts.similarity_fn_name or "cosine",
    }
    settings |= {"matryoshka_dims": list(parts.dims)} if parts.dims else {}
    settings |= {"truncate_dim": parts.truncate_dim} if parts.truncate_dim else {}
    write_json(folder / "config.json", _config_values(parts, dtype))
    write_modules(folder, parts)
    write_json(folder / SENTENCE_TRANSFORMERS, settings)
    if parts.relation:
        write_relation(folder, parts.relation)
    write_json(
        folder / TRANSFORMER_FILES[0],
        {"do_lower_case": False} | kept | {"max_seq_length": tokenizer.max_length},
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if "tokenizer.json" not in files:
        tokenizer.backend.save(str(folder / "tokenizer.json"))
    if "tokenizer_config.json" not in files:
        write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers needs beside a bare tokenizer.json to batch texts: a name for padding."""
    pad = pad_token(tokenizer.backend)
    named = {"pad_token": pad} if pad else {}
    named |= {"truncation_side": "left"} if tokenizer.truncation_side == "left" else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.max_length} | named


def _reads_as(values: dict[str, Any], family: Family, spec: EncoderSpec) -> bool:
    try:
        return family.read_config(values) == spec
    except UserError:
        return False


def _config_values(parts: Parts, dtype: str) -> dict[str, Any]:
    """The config as it was read, with what no longer is true written over it; else a new one."""
    family, source = family_to_write(parts.spec, parts.source), parts.source
    written = family.write_config(parts.spec)
    if source.get("model_type") != family.name or source.keys() == {"model_type"}:
        return written | {"dtype": dtype}
    values = source if family.read_config(source) == parts.spec else source | written
    if not _reads_as(values, family, parts.spec):  # an old key says otherwise, and wins over a new one
        values = written
    return values | {key: dtype for key in ("dtype", "torch_dtype") if key in source}
