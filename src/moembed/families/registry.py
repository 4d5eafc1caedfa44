"""The checkpoint families we read and write, by ``model_type``.

A family is three functions: its ``config.json`` to our ``EncoderConfig``, back again, and the table of its
tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moembed.config import validate
from moembed.families import bert, nomic
from moembed.families.mapping import Names, Stored
from moembed.model.encoder import Encoder, EncoderConfig
from moembed.types import UserError


@dataclass(frozen=True)
class Family:
    read_config: Callable[[dict[str, Any]], EncoderConfig]
    write_config: Callable[[EncoderConfig], dict[str, Any]]
    names: Callable[[EncoderConfig], Names]
    prefixes: tuple[str, ...] = ("",)  # what may stand before every name; the first is what we write
    brings_code: bool = False  # whether the published config names code beside it, of which we are a copy


def _read_own(values: dict[str, Any]) -> EncoderConfig:
    return validate(EncoderConfig, values["encoder"])


def _write_own(config: EncoderConfig) -> dict[str, Any]:
    return {"model_type": "moembed", "encoder": config.model_dump(mode="json")}


def _own_names(config: EncoderConfig) -> Names:
    with torch.device("meta"):
        return {name: Stored(name) for name in Encoder(config).state_dict()}


_BERT = Family(bert.read_config, bert.write_config, bert.names, prefixes=("", "bert.", "roberta."))
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "nomic_bert": Family(
        nomic.read_config, nomic.write_config, nomic.names, ("", "bert.", "nomic_bert."), brings_code=True
    ),
    "moembed": Family(_read_own, _write_own, _own_names, prefixes=("encoder.", "")),
}


def family_of(values: dict[str, Any]) -> Family:
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(f"unknown model_type {model_type!r} (known: {', '.join(FAMILIES)})")
    family = FAMILIES[model_type]
    if values.get("auto_map") and not family.brings_code:
        raise UserError(
            f"this model calls itself {model_type!r} but brings code of its own (auto_map in config.json), "
            "which is not run: without it the vectors would be others"
        )
    return family
