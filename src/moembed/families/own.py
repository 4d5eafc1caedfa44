"""Our own ``config.json``: the keys of `moembed.families.flat`, or, if they cannot say it, the spec."""

from __future__ import annotations

import json
from typing import Any

from moembed.config import validate
from moembed.families.flat import flatten, read_flat
from moembed.families.mapping import Names, Stored
from moembed.model.encoder import tensor_shapes
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

NAME = "moembed"


def read_config(values: dict[str, Any]) -> EncoderSpec:
    return read_encoder(values["encoder"])


def read_encoder(encoder: dict[str, Any]) -> EncoderSpec:
    """What stands under ``encoder``.

    Raises:
        UserError: an unknown or missing key, a wrong value.
    """
    if not isinstance(encoder, dict):
        raise UserError("encoder holds no keys")
    if "layers" in encoder:
        return validate(EncoderSpec, encoder)
    return read_flat({key: value for key, value in encoder.items() if key != "family"})


def write_config(spec: EncoderSpec) -> dict[str, Any]:
    return {"model_type": NAME, "encoder": json.loads(encoder_json(spec))}


def encoder_json(spec: EncoderSpec, family: str = NAME) -> str:
    """What stands under ``encoder``, in bytes that never change for a spec: ids of models are made of them.

    Args:
        family: the ``model_type`` under which the model is stored.
    """
    try:
        flat = flatten(spec, NAME)
    except UserError:
        return spec.model_dump_json(exclude_defaults=True)  # a field that is added later changes no bytes
    return f'{{"family":{json.dumps(family)},{flat.model_dump_json()[1:]}'


def names(spec: EncoderSpec) -> Names:
    return {name: Stored(name) for name in tensor_shapes(spec)}
