"""The module that pools, in a sentence-transformers folder: theirs, or ours where pooling learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from moembed.files import read_json, write_json
from moembed.folder.tensors import read_tensors, write_tensors
from moembed.folder.unread import note_unread
from moembed.model.attention_pooling import AttentionSize
from moembed.model.pooling import POOLING, Pooling, PoolingConfig
from moembed.types import UserError

# Older files have a flag for each way; several stand side by side in this order.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
_SIZES = tuple(field.name for field in fields(AttentionSize))  # more keys of a pooling that learns
POOLINGS = ("Pooling", "AttentionPooling")


def read_pooling_config(file: Path, width: int) -> PoolingConfig:
    values = read_json(file)
    modes = _modes(values, file)
    if unknown := [mode for mode in modes if mode not in POOLING]:
        raise UserError(f"{file}: pooling {unknown[0]!r} is not supported (known: {', '.join(POOLING)})")
    stated = values.get("embedding_dimension", values.get("word_embedding_dimension", width))
    if stated != width:
        raise UserError(f"{file} pools vectors of {stated} coordinates, the encoder's have {width}")
    name, include = "+".join(modes), bool(values.get("include_prompt", True))
    learns = PoolingConfig(name).learns
    note_unread(file, set(values) - _POOLING_KEYS - set(_FLAGS) - set(_SIZES if learns else ()))
    return PoolingConfig(name, include, _read_size(values, file) if learns else AttentionSize())


def _read_size(values: dict[str, Any], file: Path) -> AttentionSize:
    counts: dict[str, Any] = {key: values.get(key) for key in _SIZES}
    if wrong := [key for key, value in counts.items() if type(value) is not int or value < (key != "layers")]:
        raise UserError(f"{file}: {wrong[0]} must be a count, not {counts[wrong[0]]!r}")
    return AttentionSize(**counts)


def _modes(values: dict[str, Any], file: Path) -> Sequence[str]:
    """``pooling_mode``, else the flags of older files, else mean: as sentence-transformers takes them."""
    modes = values.get("pooling_mode") or [mode for key, mode in _FLAGS.items() if values.get(key)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise UserError(f"{file}: pooling_mode must be a name or a list of names, not {modes!r}")
    return modes


def _pooling_values(pooling: PoolingConfig, width: int) -> dict[str, Any]:
    modes = list(pooling.modes)
    return {
        "word_embedding_dimension": width,
        "embedding_dimension": width,
        "pooling_mode": modes if len(modes) > 1 else modes[0],
        **{key: mode in modes for key, mode in _FLAGS.items()},
        "include_prompt": pooling.include_prompt,
        **({key: getattr(pooling.size, key) for key in _SIZES} if pooling.learns else {}),
    }


def write_pooling(folder: Path, pooling: PoolingConfig, width: int, state: dict[str, Tensor]) -> None:
    """The files of the module: its config, and its tensors if it has any."""
    write_json(folder / "config.json", _pooling_values(pooling, width))
    if state:
        write_tensors(folder, state)


def read_pooling(folder: Path) -> Pooling:
    """What ``write_pooling`` wrote, whatever the width of the states.

    Raises:
        UserError: a damaged file; a missing, extra, misshapen or non-finite tensor.
    """
    file = folder / "config.json"
    width = read_json(file).get("embedding_dimension")
    if type(width) is not int or width < 1:
        raise UserError(f"{file}: embedding_dimension must be a count, not {width!r}")
    config = read_pooling_config(file, width)
    return Pooling(config, width, read_tensors(folder, config.shapes(width), False))
