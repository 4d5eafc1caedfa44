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

from moembed.families import bert, decoder, distilbert, gemma, gte, jina_v3, modernbert, mpnet, nomic, own, t5
from moembed.families.mapping import Names
from moembed.families.unknown import unknown
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
    code: tuple[str, ...] = ()  # classes of code beside published weights, of which we are a copy


def _bert(name: str) -> Family:
    write = partial(bert.write_config, model_type=name)
    prefixes = ("", "bert.", "roberta.", "data2vec_text.")
    return Family(name, bert.read_config, write, bert.names, prefixes=prefixes)


def _gte(name: str) -> Family:
    write = partial(gte.write_config, model_type=name)
    code = tuple(gte.CLASSES.values())
    return Family(name, gte.read_config, write, gte.names, prefixes=("", "new.", "gte."), code=code)


def _language_model(name: str) -> Family:
    room = gemma if name in gemma.KINDS else decoder
    write = partial(room.write_config, model_type=name)
    code = ("EuroBertModel",) if name == "eurobert" else ()
    return Family(name, room.read_config, write, room.names, ("", "model."), ("score.",), code)


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
    code=("NomicBertModel",),
)
_DISTILBERT = Family(
    "distilbert",
    distilbert.read_config,
    distilbert.write_config,
    distilbert.names,
    prefixes=("", "distilbert."),
    left_out=("vocab_", "pre_classifier."),
)
_MPNET = Family("mpnet", mpnet.read_config, mpnet.write_config, mpnet.names, prefixes=("", "mpnet."))
_MODERNBERT = Family(
    "modernbert",
    modernbert.read_config,
    modernbert.write_config,
    modernbert.names,
    prefixes=("", "model."),
    left_out=("head.", "decoder."),
)
_JINA = Family(jina_v3.NAME, jina_v3.read_config, jina_v3.write_config, jina_v3.names, ("", "roberta."))
_OWN = Family(own.NAME, own.read_config, own.write_config, own.names, prefixes=("encoder.", ""))
_LANGUAGE_MODELS = map(_language_model, (*decoder.KINDS, *gemma.KINDS))
FAMILIES = {
    family.name: family
    for family in (
        *map(_bert, bert.CLASSES),
        _DISTILBERT,
        _MPNET,
        _MODERNBERT,
        *map(_gte, gte.CLASSES),
        _JINA,
        _NOMIC,
        *_LANGUAGE_MODELS,
        *map(_t5, t5.KINDS),
        _OWN,
    )
}


def family_of(values: dict[str, Any]) -> Family:
    """The family of a ``config.json``.

    Raises:
        UserError: a ``model_type`` we do not know, or that comes with code of its own.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"unknown model_type {model_type!r}: {unknown(model_type, FAMILIES)}")
    family = FAMILIES[model_type]
    if (code := values.get("auto_map")) and _class_of(code) not in family.code:
        raise UserError(
            f"this model calls itself {model_type!r} but brings code of its own (auto_map in config.json), "
            "which is not run: without it the vectors would be others"
        )
    return family


def _class_of(auto_map: Any) -> str | None:
    """The class that ``auto_map`` names for AutoModel, without where it is from."""
    name = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    return name.rpartition(".")[2] if isinstance(name, str) else None


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
