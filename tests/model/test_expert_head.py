"""Experts behind pooling: their definition as a loop, their noise, their folder, and who refuses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.export.nomic import to_nomic
from moembed.export.onnx.computed import require_head
from moembed.model.expert_head import ExpertHead
from moembed.model.head import Dense, Head, HeadConfig, Normalize
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import UserError
from moembed.weights.expert_head import ExpertHeadConfig, add_expert_head
from training_runs import PAIRS, assert_same_weights, settings

STEP = ExpertHead(4, 3, 2)


def random_state(step: ExpertHead, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"0.{name}": torch.randn(shape, generator=generator) for name, shape in step.shapes().items()}


def head_of(seed: int = 0) -> Head:
    return Head(HeadConfig((STEP, Normalize())), random_state(STEP, seed))


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    """Whose experts have learned something."""
    parts = add_expert_head(make_model(num_layers=1).parts(), ExpertHeadConfig(num_experts=3))
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) for name, tensor in parts.head_state.items()
    }
    return Embedder(replace(parts, head_state=state)).eval()


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_each_text_gets_what_its_most_probable_expert_adds(seed: int, count: int) -> None:
    state = {name.removeprefix("0."): tensor for name, tensor in random_state(STEP, seed).items()}
    input_BM = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed + 1))
    expected = []
    for x in input_BM:
        hidden = torch.relu(state["router.up.weight"] @ x + state["router.up.bias"])
        p = (state["router.down.weight"] @ hidden + state["router.down.bias"]).softmax(0)
        e = int(p.argmax())
        inner = torch.relu(state["up_EFD"][e] @ x + state["up_bias_EF"][e])
        y = x + p[e] * (state["down_EDF"][e] @ inner + state["down_bias_ED"][e])
        expected.append(y / y.norm())
    found = head_of(seed).eval()(input_BM)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_noise_moves_the_choice_in_training_alone_and_everything_learns() -> None:
    head = head_of()
    input_BM = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    calm = head.eval()(input_BM)
    assert torch.equal(head(input_BM), calm)
    first, second = head.train()(input_BM), head(input_BM)
    assert not torch.equal(first, second)
    with torch.inference_mode():  # an evaluation on the way
        assert torch.equal(head(input_BM), calm)
    first[:, 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_counts_and_widths() -> None:
    config = HeadConfig((STEP, Dense(4, 2), Normalize()))
    assert config.dim(4) == 2
    experts = 3 * (2 * (4 * 2) + 2 + 4)
    router = (2 * 4 + 2) + (3 * 2 + 3) + (3 * 4 + 3)
    assert config.num_parameters() == experts + router + 10
    assert config.num_parameters(active=True) == experts // 3 + router + 10
    with pytest.raises(UserError, match="a block of experts of 4 outputs stands before a dense layer of 5"):
        HeadConfig((STEP, Dense(5, 2), Normalize()))
    with pytest.raises(UserError, match="at least one expert"):
        ExpertHead(4, 0, 2)


def test_added_to_a_model_it_keeps_the_function(make_model: MakeModel, texts: list[str]) -> None:
    dense = make_model()
    parts = add_expert_head(dense.parts(), ExpertHeadConfig())
    model = Embedder(parts).eval()
    np.testing.assert_allclose(model.encode(texts), dense.encode(texts), atol=1e-6)
    assert parts.head.layers == [ExpertHead(16, 4, 8)]
    assert not torch.equal(parts.head_state["0.up_EFD"][0], parts.head_state["0.up_EFD"][1])
    assert model.num_parameters() > model.num_parameters(active=True) > dense.num_parameters()
    with pytest.raises(UserError, match="experts behind pooling already"):
        add_expert_head(parts, ExpertHeadConfig())


def test_a_folder_keeps_it_and_sentence_transformers_gives_our_vectors(
    model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "m")
    again = Embedder.from_pretrained(tmp_path / "m", device="cpu")
    np.testing.assert_allclose(again.encode(texts), model.encode(texts), atol=1e-6)
    assert again.space() == model.space() != Embedder(add_expert_head_anew(model)).space()
    assert again.num_parameters(active=True) == model.num_parameters(active=True)

    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(texts), model.encode(texts), atol=1e-5)
    theirs.save(str(tmp_path / "n"))
    back = Embedder.from_pretrained(tmp_path / "n", device="cpu")
    np.testing.assert_allclose(back.encode(texts), model.encode(texts), atol=1e-5)


def add_expert_head_anew(model: Embedder):  # type: ignore[no-untyped-def]
    parts = model.parts()
    return add_expert_head(replace(parts, head=HeadConfig(), head_state={}), ExpertHeadConfig(num_experts=3))


def test_a_damaged_config_is_one_sentence(model: Embedder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "2_ExpertHead" / "config.json").write_text(
        '{"in_dim": 16, "num_experts": 0, "hidden": 8}'
    )
    with pytest.raises(UserError, match="num_experts must be a count, not 0"):
        Embedder.from_pretrained(tmp_path / "m", device="cpu")


def test_formats_without_it_refuse_it_by_name(model: Embedder) -> None:
    with pytest.raises(UserError, match="the Nomic layout cannot hold this model: it has experts behind"):
        to_nomic(model.parts())
    with pytest.raises(
        UserError, match="the ONNX graph cannot run this model: it has experts behind pooling"
    ):
        require_head(model.head.config)


def test_chunks_change_nothing_although_there_is_noise(make_model: MakeModel, tmp_path: Path) -> None:
    """GradCache embeds a chunk twice: its second pass draws the noise of the first."""

    def run(folder: str) -> Path:
        parts = add_expert_head(make_model(num_layers=1).parts(), ExpertHeadConfig(num_experts=3))
        mixture = Mixture([Source.from_pairs("x", PAIRS)])
        torch.manual_seed(0)
        train_contrastive(settings(steps=2), Embedder(parts), mixture, tmp_path / folder)
        return tmp_path / folder / "model"

    first, second = run("a"), run("b")
    assert_same_weights(first, second)
    trained = Embedder.from_pretrained(first, device="cpu")
    start = add_expert_head(make_model(num_layers=1).parts(), ExpertHeadConfig(num_experts=3))
    for name in ("0.down_EDF", "0.router.down.weight", "0.router.noise.weight", "0.up_EFD"):
        assert not torch.equal(trained.parts().head_state[name], start.head_state[name]), name
