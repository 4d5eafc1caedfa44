"""The checkpoint families we read and write, by ``model_type``.

A family is three functions: its ``config.json`` to an ``EncoderSpec``, back again, and the table of its
tensors. A spec that a family cannot say is refused by its ``write_config``, so that what is written always
reads as the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from moembed.families import bert, decoder, gemma, nomic, own, t5
from moembed.families.mapping import Names
from moembed.model.spec import EncoderSpec
from moembed.types import UserError


@dataclass(frozen=True)
class Family:
    name: str
    read_config: Callable[[dict[str, Any]], EncoderSpec]
    write_config: Callable[[EncoderSpec], dict[str, Any]]
    names: Callable[[EncoderSpec], Names]
    prefixes: tuple[str, ...] = ("",)  # what may stand before every name; the first is what we write
    left_out: tuple[str, ...] = ()  # how names begin of tensors that play no part in an embedding
    brings_code: bool = False  # whether the published config names code beside it, of which we are a copy


def _bert(name: str) -> Family:
    write = partial(bert.write_config, model_type=name)
    return Family(name, bert.read_config, write, bert.names, prefixes=("", "bert.", "roberta."))


def _language_model(name: str) -> Family:
    room = gemma if name in gemma.KINDS else decoder
    write = partial(room.write_config, model_type=name)
    return Family(name, room.read_config, write, room.names, prefixes=("", "model."), left_out=("score.",))


def _t5(name: str) -> Family:
    write = partial(t5.write_config, model_type=name)
    left_out = ("decoder.", "encoder.embed_tokens.")
    return Family(name, t5.read_config, write, t5.names, left_out=left_out)


_NOMIC = Family(
    "nomic_bert",
    nomic.read_config,
    nomic.write_config,
    nomic.names,
    prefixes=("", "bert.", "nomic_bert."),
    brings_code=True,
)
_OWN = Family(own.NAME, own.read_config, own.write_config, own.names, prefixes=("encoder.", ""))
_LANGUAGE_MODELS = map(_language_model, (*decoder.KINDS, *gemma.KINDS))
FAMILIES = {
    family.name: family
    for family in (*map(_bert, bert.CLASSES), _NOMIC, *_LANGUAGE_MODELS, *map(_t5, t5.KINDS), _OWN)
}


def family_of(values: dict[str, Any]) -> Family:
    """The family of a ``config.json``.

    Raises:
        UserError: a ``model_type`` we do not know, or that comes with code of its own.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"unknown model_type {model_type!r} (known: {', '.join(FAMILIES)})")
    family = FAMILIES[model_type]
    if values.get("auto_map") and not family.brings_code:
        raise UserError(
            f"this model calls itself {model_type!r} but brings code of its own (auto_map in config.json), "
            "which is not run: without it the vectors would be others"
        )
    return family


def family_to_write(spec: EncoderSpec, source: dict[str, Any]) -> Family:
    """The family a model is stored in: that of the config it was read from, while it can say the spec.

    Args:
        source: ``config.json`` as it was read, or nothing but the ``model_type`` that is wanted.
    """
    family = FAMILIES.get(source.get("model_type", own.NAME), _OWN)
    try:
        family.write_config(spec)
    except UserError:
        return _OWN
    return family
