"""Rotary positions take the place of the table, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.model.block import LayerSpec
from moembed.model.rope import RopeSpec, YarnBands
from moembed.types import UserError
from moembed.weights.positions import to_rope


def test_every_tensor_but_the_table_stays(hf_folder: HfFolder, texts: list[str], tmp_path: Path) -> None:
    parts = read_folder(hf_folder("xlm-roberta", pad_token_id=0)[0])
    spec, state = to_rope(parts.spec, parts.state, base=500.0, max_positions=99)
    assert {layer.attention.rope for layer in spec.layers} == {RopeSpec(base=500.0)}
    assert (spec.embeddings.positions, spec.max_length) == (None, 99)
    assert parts.state.keys() - state.keys() == {"position.weight"}
    assert all(state[name] is parts.state[name] for name in state)
    model = Embedder(Parts(spec, state, parts.tokenizer, parts.pooling)).eval()
    model.save_pretrained(tmp_path / "rotary")
    again = Embedder.from_pretrained(tmp_path / "rotary", device="cpu")
    np.testing.assert_array_equal(again.encode(texts), model.encode(texts))


def test_a_document_of_8192_tokens_is_read_to_its_last_one(make_model: MakeModel) -> None:
    parts = make_model(num_layers=1).parts()
    spec, state = to_rope(parts.spec, parts.state, max_positions=8192)
    tokenizer = parts.tokenizer.replaced(max_length=8192)
    model = Embedder(Parts(spec, state, tokenizer, parts.pooling)).eval()
    body = "the owl hunts voles " * 2047  # two special tokens, and one word
    found = model.vectors([f"{body}digs", f"{body}worms", f"{body}digs worms"], prompt="")
    assert model.num_tokens([f"{body}digs"], prompt="") == [8191]
    assert found.truncated == 0
    assert model.vectors([f"{body}digs worms"], prompt="").truncated == 0
    assert model.vectors([f"{body}digs worms owl"], prompt="").truncated == 1
    for other in found.array[1:]:  # one token of 8,191, or one more
        assert 1e-6 < np.abs(found.array[0] - other).max() < 1e-2


def test_order_still_matters_and_length_is_no_longer_bound(make_model: MakeModel) -> None:
    parts = make_model().parts()
    spec, state = to_rope(parts.spec, parts.state, max_positions=64)
    encoder = Embedder(Parts(spec, state, parts.tokenizer, parts.pooling)).eval().encoder
    token_T = torch.arange(5, 45)
    forth, back = (encoder(order, (40,))[0][4].mean(0) for order in (token_T, token_T.flip(0)))
    assert (forth - back).abs().max() > 1e-3


def test_a_rotary_model_only_gets_another_base(make_model: MakeModel) -> None:
    parts = make_model(position="rope", family="nomic_bert").parts()
    spec, state = to_rope(parts.spec, parts.state, 10_000.0, parts.spec.max_length)
    assert spec == parts.spec
    assert state == parts.state


def test_the_scaling_of_rotary_positions_stays(make_model: MakeModel) -> None:
    parts = make_model(position="rope").parts()
    bands = YarnBands(factor=4.0, original_length=16, magnitude=1.1)
    scaled = RopeSpec(base=50.0, scaling=2.0, bands=bands)

    def with_scaling(_: int, layer: LayerSpec) -> LayerSpec:
        return layer.model_copy(update={"attention": layer.attention.model_copy(update={"rope": scaled})})

    own, _ = to_rope(parts.spec.with_layers(with_scaling), parts.state, max_positions=64)
    assert own == parts.spec.with_layers(with_scaling).replace(max_length=64)
    spec, _ = to_rope(parts.spec.with_layers(with_scaling), parts.state, 500.0, 64)
    ropes = {layer.attention.rope for layer in spec.layers}
    assert ropes == {RopeSpec(base=500.0, scaling=2.0, bands=bands)}


def test_heads_of_odd_width_are_refused(make_model: MakeModel) -> None:
    parts = make_model(width=6, num_heads=2).parts()
    with pytest.raises(UserError, match="heads of width 3 cannot be rotary"):
        to_rope(parts.spec, parts.state)
