"""A sentence-transformers folder -> the parts of an Embedder. Every tensor is checked on the way in.

The files, of which docs/model-folders.md says what wins where two disagree::

    config.json                          the architecture (ours or another family's)
    model.safetensors                    the weights; quantized.safetensors: the weights in few bits
    tokenizer.json, tokenizer_config.json …
    modules.json, 1_Pooling, 2_Dense …   how token states become one unit vector
    config_sentence_transformers.json    prompts by name, the similarity
    sentence_bert_config.json            max_seq_length, do_lower_case
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from moembed.families.registry import family_of
from moembed.files import read_json
from moembed.folder.adapter import base_of, merged_tensors
from moembed.folder.modules import (
    PooledHead,
    encoder_folder,
    read_head_state,
    read_modules,
    read_pooled_head,
    read_pooling_state,
)
from moembed.folder.parts import Parts
from moembed.folder.quantized import FILE as QUANTIZED
from moembed.folder.quantized import read_quantized
from moembed.folder.relation import read_relation
from moembed.folder.settings import (
    TOKENIZER_KEYS,
    TRANSFORMER_FILES,
    TransformerSettings,
    read_model_settings,
    read_transformer_settings,
)
from moembed.folder.tensors import by_our_names, read_state
from moembed.folder.tokenizer import read_tokenizer, tokenizer_files
from moembed.model.embeddings import word_table
from moembed.model.pooling import PoolingConfig
from moembed.model.spec import EncoderSpec
from moembed.model.words.table import WordTable
from moembed.tokenizer import Tokenizer
from moembed.types import UserError


@dataclass(frozen=True)
class Settings:
    """What the small files of a folder say, in one."""

    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None
    dims: tuple[int, ...] = ()
    truncate_dim: int | None = None
    modules: PooledHead = field(default_factory=PooledHead)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)


def read_folder(path: Path, allow_pickle: bool = False) -> Parts:
    """Read and check a model folder.

    Args:
        allow_pickle: where there is no model.safetensors, read the tensors of pytorch_model.bin, and nothing
            but tensors.

    Raises:
        UserError: not a model folder, unknown model type or module, missing, extra, misshapen or non-finite
            tensors, a damaged file, a tokenizer that is not the model's.
    """
    spec = read_config(path)
    inside, whole = encoder_folder(path), config_folder(path)
    values = read_json(whole / "config.json")
    settings = read_settings(path, spec)
    transformer = settings.transformer
    if (inside / QUANTIZED).is_file():
        state = read_quantized(inside, spec)
    elif inside == whole:
        state = read_state(inside, spec, family_of(values), allow_pickle)
    else:
        tensors = merged_tensors(inside, whole, family_of(values))
        state = by_our_names(tensors, inside, spec, family_of(values))
        inside = inside if tokenizer_files(inside) else whole
    _check_codes(inside, spec, state)
    backend, side = read_tokenizer(inside, spec.vocab_size, transformer.options, transformer.lowercase)
    tokenizer = Tokenizer(backend, settings.max_length, settings.prompts, settings.default_prompt, side)
    files = tokenizer_files(inside)
    if kept := {key: value for key, value in transformer.file.items() if key in TOKENIZER_KEYS and value}:
        files[TRANSFORMER_FILES[0]] = json.dumps(kept).encode()
    pooling, head = settings.modules.pooling, settings.modules.head
    if not tokenizer.ends_texts:
        _note_missing_ends(path, inside, pooling)
    head_state = read_head_state(_modules_folder(path), head, allow_pickle)
    return Parts(
        spec,
        state,
        tokenizer,
        pooling,
        files,
        values,
        settings.dims,
        settings.similarity,
        head,
        head_state,
        settings.truncate_dim,
        read_pooling_state(_modules_folder(path), pooling, spec.width, allow_pickle),
        read_relation(path),
    )


def _check_codes(path: Path, spec: EncoderSpec, state: dict[str, Tensor]) -> None:
    """
    Raises:
        UserError: codes of a compressed table of words that no row can be made of.
    """
    if spec.embeddings.compression is None:
        return
    table = word_table(spec.embeddings, spec.width)
    own = ((name.removeprefix("word."), tensor) for name, tensor in state.items())
    table.load_state_dict({name: tensor for name, tensor in own if name in table.state_dict()}, assign=True)
    if isinstance(table, WordTable) and (damage := table.damage()):
        raise UserError(f"{path}: the table of words is damaged: {damage}; compress the model again")


def _note_missing_ends(path: Path, inside: Path, pooling: PoolingConfig) -> None:
    """Say so where a token behind every text was to be expected and the tokenizer puts none there."""
    file = inside / "tokenizer_config.json"
    if file.is_file() and read_json(file).get("add_eos_token"):
        why = "tokenizer_config.json says add_eos_token true"
    elif "lasttoken" in pooling.modes:
        why = "the vector is the state of the last token"
    else:
        return
    warnings.warn(
        f"{path}: {why}, but tokenizer.json, which decides, puts no token behind a text; if the model was "
        "trained with one, set add_eos_token of transformers' tokenizer to True and save it",
        stacklevel=3,
    )


def config_folder(path: Path) -> Path:
    """Where the ``config.json`` of a model lies: of an adapter, in the folder of its base."""
    inside = encoder_folder(path)
    base = base_of(inside)
    return encoder_folder(base) if base else inside


def _modules_folder(path: Path) -> Path:
    """Where it stands how texts are read and pooled: an adapter that does not say it is used as its base."""
    base = None if read_modules(path) else base_of(encoder_folder(path))
    return base or path


def read_config(path: Path) -> EncoderSpec:
    """The architecture alone, from ``config.json``."""
    file = config_folder(path) / "config.json"
    if not file.is_file():
        what = "has no config.json, so it is not a model folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}")
    values = read_json(file)
    try:
        return family_of(values).read_config(values)
    except KeyError as error:
        raise UserError(f"{file} has no key {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None


def read_settings(path: Path, spec: EncoderSpec) -> Settings:
    """What the small files of a folder say about texts: length limit, prompts, pooling."""
    path = _modules_folder(path)
    transformer = read_transformer_settings(encoder_folder(path))
    modules = read_pooled_head(path, spec.width)
    model = read_model_settings(path, modules.normalised)
    limit = transformer.max_length or spec.max_length
    if transformer.file.get("max_seq_length") is not None and limit > spec.max_length:
        warnings.warn(
            f"{path}: max_seq_length says {limit} tokens, the model has positions for {spec.max_length}: "
            "longer texts are cut there",
            stacklevel=2,
        )
    return Settings(
        min(limit, spec.max_length),
        model.prompts,
        model.default_prompt,
        model.similarity,
        model.dims,
        model.truncate_dim,
        modules,
        transformer,
    )
