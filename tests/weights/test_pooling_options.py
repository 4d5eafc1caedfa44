"""The keys ``pooling`` and ``attention`` of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from conftest import MakeModel, randomise
from moembed.embedder import Embedder
from moembed.families.decoder import read_config
from moembed.model.encoder import Encoder
from moembed.runs.train import TrainConfig
from moembed.runs.train import build as build_model
from moembed.weights.pooling import look

DATA = {"data": "pairs.jsonl", "out": "runs/x", "steps": 1}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "vocab_size": 130,
}


def test_attention_to_one_side_or_both(make_model: MakeModel, tmp_path: Path) -> None:
    """A later word changes the first state of a bidirectional model alone; the folder keeps it."""
    both = make_model(pooling="cls")
    one = Embedder(look(both.parts(), "causal")).eval()
    short, long = "the mole digs", "the mole digs tunnels"
    assert np.abs(both.encode(short) - both.encode(long)).max() > 1e-3
    assert np.abs(one.encode(short) - one.encode(long)).max() < 1e-6
    one.save_pretrained(tmp_path / "one")
    again = Embedder.from_pretrained(tmp_path / "one", device="cpu")
    assert np.array_equal(again.encode(long), one.encode(long))
    back = Embedder(look(again.parts(), "bidirectional")).eval()
    assert np.array_equal(back.encode(long), both.encode(long))
    assert look(both.parts(), "bidirectional").spec == both.spec


def test_a_decoder_layout_keeps_the_direction(make_model: MakeModel, tmp_path: Path) -> None:
    """To bidirectional and back, saved each time in the layout of Qwen3."""
    encoder = Encoder(read_config(QWEN3))
    randomise(encoder, 0)
    base = make_model().parts()
    state = encoder.state_dict()
    tokenizer = base.tokenizer.replaced(max_length=32)
    parts = replace(base, spec=encoder.spec, state=state, source=dict(QWEN3), tokenizer=tokenizer)
    vectors = []
    directions: tuple[Literal["causal", "bidirectional"], ...] = ("causal", "bidirectional", "causal")
    for step, direction in enumerate(directions):
        model = Embedder(look(parts, direction)).eval()
        model.save_pretrained(tmp_path / str(step))
        again = Embedder.from_pretrained(tmp_path / str(step), device="cpu")
        assert again.spec == model.spec
        assert again.source["model_type"] == "qwen3"
        vectors.append(again.encode("moles eat worms"))
        parts = again.parts()
    assert np.array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_recipe_says_both(make_model: MakeModel) -> None:
    config = TrainConfig.model_validate(DATA | {"pooling": "latent_attention", "attention": "causal"})
    model = build_model(make_model().parts(), config)
    assert model.pooling.name == "latent_attention"
    assert all(layer.attention.causal for layer in model.spec.layers)
    long = DATA | {"pooling": {"name": "multi_layer", "latents": 3, "include_prompt": False}}
    model = build_model(make_model().parts(), TrainConfig.model_validate(long))
    assert model.pooling.config.size.latents == 3
    assert not model.pooling.config.include_prompt
    with pytest.raises(ValueError, match="pooling 'sum' is not supported"):
        TrainConfig.model_validate(DATA | {"pooling": "sum"})
