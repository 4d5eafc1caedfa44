"""Router biases: nothing changes until they do, they are saved, and formats without a place refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.export.gguf.graph import as_graph
from moembed.export.nomic import to_nomic
from moembed.export.onnx.export import export_onnx
from moembed.families.flat import FlatMoE
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from moembed.weights.selection_bias import add_selection_bias, remove_selection_bias
from moembed.weights.upcycle import UpcycleConfig, upcycle


def biased(model: Embedder, value: float = 0.0) -> Parts:
    parts = model.parts()
    parts.spec, parts.state = add_selection_bias(parts.spec, parts.state)
    for name in parts.state:
        if name.endswith("router.bias_E"):
            parts.state[name][0] = value
    return parts


def test_biases_of_zero_change_nothing(moe_model: Embedder, texts: list[str]) -> None:
    parts = biased(moe_model)
    np.testing.assert_allclose(Embedder(parts).encode(texts), moe_model.encode(texts), atol=1e-6)
    assert add_selection_bias(parts.spec, parts.state) == (parts.spec, parts.state)
    spec, state = remove_selection_bias(parts.spec, parts.state, "it")
    assert spec == moe_model.encoder.spec
    assert state.keys() == moe_model.parts().state.keys()
    assert remove_selection_bias(spec, state, "it") == (spec, state)


def test_a_bias_changes_the_choice_but_not_the_weights(moe_model: Embedder) -> None:
    """A large one makes its expert everybody's; its weight stays its probability."""
    model = Embedder(biased(moe_model, value=10.0))
    router = model.encoder.layers[1].ffn.router  # type: ignore[union-attr]
    hidden_TD = torch.randn(5, 16)
    routing = router(hidden_TD, [5])
    assert (routing.expert_P == 0).sum() == 5
    prob_TE = (hidden_TD @ router.weight_ED.T).softmax(-1)
    chosen_TK = prob_TE[routing.token_P, routing.expert_P].view(5, 2)
    expected_TK = chosen_TK / chosen_TK.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.weight_P.view(5, 2), expected_TK)


def test_a_folder_gives_the_biases_back_and_without_them_is_as_before(
    moe_model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    model = Embedder(biased(moe_model, value=0.3))
    model.save_pretrained(tmp_path / "biased")
    saved = Embedder.from_pretrained(tmp_path / "biased", dtype="bfloat16", device="cpu")
    state = saved.encoder.state_dict()
    biases = [tensor for name, tensor in state.items() if name.endswith("router.bias_E")]
    assert len(biases) == 2
    assert all(torch.equal(bias, torch.tensor([0.3, 0, 0, 0])) for bias in biases)
    assert saved.space() != moe_model.space()
    moe_model.save_pretrained(tmp_path / "plain")
    assert "selection_bias" not in (tmp_path / "plain" / "config.json").read_text()
    assert not any(name.endswith("router.bias_E") for name in read_folder(tmp_path / "plain").state)


@pytest.mark.parametrize("export", [to_nomic, lambda parts: as_graph(parts, False)])
def test_formats_without_biases_take_zeros_and_refuse_others(export: object, make_model: MakeModel) -> None:
    assert callable(export)
    router = RouterConfig(normalize=None)
    model = make_model(
        position="rope", moe=FlatMoE(layers=(1, 3), num_experts=4, bias="shared", router=router)
    )
    export(biased(model))
    with pytest.raises(UserError, match="cannot hold this model: a bias takes part in its choice of experts"):
        export(biased(model, value=0.1))


def test_onnx_refuses_a_bias(moe_model: Embedder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="ONNX cannot hold this model"):
        export_onnx(biased(moe_model, value=0.1), tmp_path / "onnx")
    assert export_onnx(biased(moe_model), tmp_path / "onnx")["max_error"] < 1e-4


def test_only_tokens_that_choose_can_be_biased(make_model: MakeModel) -> None:
    parts = make_model().parts()
    with pytest.raises(UserError, match="needs a model whose tokens choose their experts"):
        add_selection_bias(parts.spec, parts.state)
    with pytest.raises(ValueError, match="selection_bias is for token_choice"):
        RouterConfig(kind="expert_choice", selection_bias=True)


@pytest.mark.parametrize("granularity", [1, 2])
def test_upcycling_makes_the_biases_that_its_router_has(
    granularity: int, make_model: MakeModel, texts: list[str]
) -> None:
    dense = make_model(num_layers=2)
    parts = dense.parts()
    options = UpcycleConfig(granularity=granularity, router=RouterConfig(selection_bias=True))
    parts.spec, parts.state = upcycle(parts.spec, parts.state, options)
    model = Embedder(parts).eval()
    np.testing.assert_allclose(model.encode(texts), dense.encode(texts), atol=1e-5)
    assert parts.state["layers.1.ffn.router.bias_E"].tolist() == [0.0] * 8 * granularity
