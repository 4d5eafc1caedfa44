"""Folders of static word vectors: sentence-transformers' ``StaticEmbedding`` and model2vec.

A table with a row per token and a ``tokenizer.json``: the vector of a text is the mean of the rows of its
tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from moembed.files import read_json
from moembed.folder.modules import STATIC, Module, is_static, read_modules
from moembed.folder.settings import read_model_settings
from moembed.folder.tensors import read_file
from moembed.folder.unread import note_unread
from moembed.tokenizer import Tokenizer
from moembed.types import UserError

ANY_LENGTH = 2**31 - 1
_OF_MODEL2VEC = {
    "model_type",
    "architectures",
    "tokenizer_name",
    "apply_pca",
    "apply_zipf",
    "sif_coefficient",
}
_OF_MODEL2VEC |= {
    "hidden_dim",
    "seq_length",
    "normalize",
    "pooling",
    "embedding_dtype",
    "vocabulary_quantization",
}


@dataclass(frozen=True)
class StaticParts:
    """What such a folder holds.

    Attributes:
        table_VD: fp32, a row per token id; what a model2vec folder says of weights is multiplied in.
        tokenizer: without special tokens; of any length unless ``tokenizer.json`` itself cuts.
    """

    table_VD: Tensor
    tokenizer: Tokenizer
    truncate_dim: int | None = None


def read_static(folder: Path) -> StaticParts:
    """Read and check such a folder.

    Raises:
        UserError: no such folder, a module behind the table that is not Normalize, no tokenizer.json, tensors
            that do not make a table, a table without a row for a token.
    """
    if not is_static(folder):
        raise UserError(f"{folder} is no table of static word vectors; read it with moembed.Embedder")
    listed = read_modules(folder)
    modules = listed or [Module(STATIC, "")]
    if rest := {module.kind for module in modules[1:]} - {"Normalize"}:
        raise UserError(f"{folder}: {', '.join(sorted(rest))} behind static word vectors is not supported")
    inside = folder / modules[0].path
    values = read_json(file) if (file := inside / "config.json").is_file() else {}
    note_unread(file, set(values) - _OF_MODEL2VEC)
    normalised = len(modules) > 1 or (not listed and bool(values.get("normalize")))
    table_VD = _table(inside)
    backend, limit = _backend(inside / "tokenizer.json")
    largest = max(backend.get_vocab().values(), default=-1)
    if largest >= len(table_VD):
        raise UserError(
            f"{inside}: the tokenizer's ids go up to {largest}, the table has {len(table_VD)} rows"
        )
    settings = read_model_settings(folder, normalised)
    tokenizer = Tokenizer(backend, limit, settings.prompts, settings.default_prompt)
    return StaticParts(table_VD, tokenizer, settings.truncate_dim)


def _table(inside: Path) -> Tensor:
    """One row per token id, of the tensors by the names of either library."""
    tensors, file = read_file(inside / "model.safetensors"), inside / "model.safetensors"
    table = tensors.pop("embedding.weight", None)
    table = tensors.pop("embeddings", None) if table is None else table
    mapping, weight = tensors.pop("mapping", None), tensors.pop("weights", None)
    if table is None or table.ndim != 2 or not table.is_floating_point() or tensors:
        found = ", ".join(sorted(tensors)) or "no table of two dimensions"
        raise UserError(f"{file} must hold embedding.weight, or embeddings with mapping and weights: {found}")
    if mapping is not None:
        if mapping.is_floating_point() or mapping.min() < 0 or mapping.max() >= len(table):
            raise UserError(f"{file}: mapping must name rows of the {len(table)} there are")
        table = table[mapping.long()]
    table = table.float()
    if weight is not None:
        if weight.shape != table.shape[:1]:
            raise UserError(f"{file}: weights must be one number for each of {len(table)} tokens")
        table = table * weight.float()[:, None]
    if not torch.isfinite(table).all():
        raise UserError(f"{file} holds NaN or infinite values")
    return table.contiguous()


def _backend(file: Path) -> tuple[Backend, int]:
    """The tokenizer without the special tokens that it would put around a text, and where it cuts."""
    values: dict[str, Any] = read_json(file)
    limit = (values.get("truncation") or {}).get("max_length", ANY_LENGTH)
    side = (values.get("truncation") or {}).get("direction", "Right")
    if side != "Right":
        raise UserError(f"{file}: truncation on the left is not supported for static word vectors")
    try:
        return Backend.from_str(json.dumps(values | {"post_processor": None})), limit
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{file} is not a readable tokenizer ({error})") from None
