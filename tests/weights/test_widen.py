"""Widening changes no vector, and what was added can learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.packing import pack
from moembed.types import UserError
from moembed.weights.widen import WidenConfig, widen


def widened(parts: Parts, options: WidenConfig) -> Embedder:
    spec, state = widen(parts.spec, parts.state, options)
    return Embedder(replace(parts, spec=spec, state=state)).eval()


@pytest.mark.parametrize("options", [WidenConfig(), WidenConfig(factor=3, every=2)], ids=str)
@pytest.mark.parametrize("kind", ["bert", "nomic_bert"])
def test_every_family_keeps_its_vectors(
    kind: str, options: WidenConfig, hf_folder: HfFolder, texts: list[str]
) -> None:
    parts = read_folder(hf_folder(kind)[0])
    wide = widened(parts, options)
    widths = [layer.ffn.width for layer in wide.encoder.spec.layers]
    first = 24 if options.every == 2 else 24 * options.factor
    assert widths == [first, 24 * options.factor]
    np.testing.assert_allclose(wide.encode(texts), Embedder(parts).eval().encode(texts), atol=1e-6)


def test_twice_the_width_computes_what_two_experts_do(make_model: MakeModel) -> None:
    from moembed.weights.upcycle import UpcycleConfig, upcycle

    dense = make_model(ffn_bias=False).parts()
    wide = widened(dense, WidenConfig(factor=2, every=2))
    spec, state = upcycle(dense.spec, dense.state, UpcycleConfig(num_experts=4))
    experts = Embedder(replace(dense, spec=spec, state=state))
    routers = sum(
        len(tensor.flatten()) for name, tensor in experts.encoder.state_dict().items() if "router" in name
    )
    assert wide.num_parameters() == experts.num_parameters(active=True) - routers


def test_what_was_added_gets_a_gradient_and_becomes_its_own(make_model: MakeModel) -> None:
    model = widened(make_model(num_layers=1).parts(), WidenConfig())
    ffn = model.encoder.layers[0].ffn
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = pack([[2, 9, 11, 3], [2, 30, 8, 3]], prompt_tokens=[0, 0])
    for _ in range(2):  # in the first step nothing reaches the new rows, for what they feed is zero
        model.train()(batch).vector_BM[0, :3].sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    old, new = ffn.down.weight.detach().chunk(2, dim=1)
    assert float(new.abs().min()) > 0
    old, new = ffn.up.weight.detach().chunk(2)
    assert not torch.allclose(old, new, atol=1e-4)


def test_what_cannot_be_widened_is_refused(make_model: MakeModel, moe_model: Embedder) -> None:
    with pytest.raises(UserError, match="this model has experts: widen makes the dense twin"):
        widened(moe_model.parts(), WidenConfig())
    with pytest.raises(UserError, match="every = 2 widens no layer of a model of 1 layers"):
        widened(make_model(num_layers=1).parts(), WidenConfig(every=2))
