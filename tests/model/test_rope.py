"""Rotary frequencies that are scaled by how fast they are, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moembed.model.rope import RopeSpec, TurnBands, YarnBands, cos_sin

LLAMA = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN_BASE = 1000.0


@pytest.mark.parametrize(
    ("bands", "theirs"),
    [
        (TurnBands(factor=8, low=1, high=4, original_length=64), {"rope_type": "llama3", **LLAMA}),
        (
            YarnBands(factor=4, original_length=64, magnitude=1.25),
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25},
        ),
        (
            YarnBands(factor=4, low=2, high=5, original_length=64, magnitude=1.0, whole=False),
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, "beta_slow": 2.0, "beta_fast": 5.0}
            | {"truncate": False},
        ),
    ],
)
def test_scaled_frequencies_are_those_of_transformers(
    bands: TurnBands | YarnBands, theirs: dict[str, Any]
) -> None:
    values = theirs | {"rope_theta": YARN_BASE, "original_max_position_embeddings": 64}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=values)
    frequency_I, magnitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    plain_I = YARN_BASE ** -(torch.arange(0, 32, 2) / 32)
    assert not torch.allclose(frequency_I, plain_I)  # the case scales something
    place_T = torch.tensor([0, 1, 7, 200])
    cosine, sine = cos_sin(place_T, 32, RopeSpec(base=YARN_BASE, bands=bands))
    angle_TI = place_T[:, None] * frequency_I
    torch.testing.assert_close(cosine[:, 0], angle_TI.cos() * magnitude, rtol=0, atol=1e-5)
    torch.testing.assert_close(sine[:, 0], angle_TI.sin() * magnitude, rtol=0, atol=1e-5)


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"high 1\.0 must be more than low 4\.0"):
        TurnBands(factor=8, low=4, high=1, original_length=64)
