"""The head against the modules of torch it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moembed.model.head import ACTIVATIONS, Dense, Head, HeadConfig, Normalize
from moembed.model.pooling import POOLING, Pooling, PoolingConfig
from moembed.types import UserError

PLAIN = sorted(m for m in POOLING if not (PoolingConfig(m).learns or PoolingConfig(m).per_token))

MODULES = {"identity": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
MODULES |= {"sigmoid": nn.Sigmoid}


def random_state(config: HeadConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in config.shapes().items()}


dense = st.builds(
    Dense, st.just(4), st.sampled_from([3, 4]), st.booleans(), st.sampled_from(sorted(MODULES)), st.booleans()
)


@given(dense, st.booleans(), st.integers(0, 99))
def test_a_dense_layer_is_linear_activation_and_residual(step: Dense, before: bool, seed: int) -> None:
    assert MODULES.keys() == ACTIVATIONS.keys()
    config = HeadConfig((*([Normalize()] if before else []), step, Normalize()))
    state = random_state(config, seed)
    input_BM = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed + 1))
    linear = nn.Linear(4, step.out_dim, bias=step.bias)
    at = f"{int(before)}."
    linear.load_state_dict({n.split(".")[-1]: t for n, t in state.items() if n.startswith(at + "linear")})
    x_BM = input_BM / input_BM.norm(dim=1, keepdim=True) if before else input_BM
    expected = MODULES[step.activation]()(linear(x_BM))
    if step.residual:
        expected = expected + (x_BM @ state[at + "residual.weight"].T if step.out_dim != 4 else x_BM)
    expected = expected / expected.norm(dim=1, keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(Head(config, state)(input_BM), expected)


def test_a_head_trains_and_gives_its_state_back() -> None:
    config = HeadConfig((Dense(4, 3), Normalize()))
    head = Head(config, random_state(config))
    head(torch.ones(2, 4))[:, 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    other = random_state(config, seed=1)
    head.load(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in head.state().items())
    assert head.state().keys() == config.shapes().keys()
    assert config.num_parameters() == sum(parameter.numel() for parameter in head.parameters()) == 15
    assert (config.dim(4), HeadConfig().dim(4)) == (3, 4)


def test_heads_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="the last step of a head must be Normalize"):
        HeadConfig((Dense(4, 3),))
    with pytest.raises(UserError, match="of 3 outputs stands before a dense layer of 4 inputs"):
        HeadConfig((Dense(4, 3), Dense(4, 3), Normalize()))
    with pytest.raises(UserError, match="activation 'mish' of a dense layer is not supported"):
        Dense(4, 3, activation="mish")


@given(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3))
def test_poolings_side_by_side_are_each_alone(modes: list[str]) -> None:
    hidden_TD = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    pooling = Pooling(PoolingConfig("+".join(modes)), 3)
    alone = [Pooling(PoolingConfig(mode), 3)(hidden_TD, [2, 4]) for mode in modes]
    assert torch.equal(pooling(hidden_TD, [2, 4]), torch.cat(alone, dim=1))
    assert pooling.dim == 3 * len(modes)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(UserError, match=r"pooling 'median' is not supported \(known: mean, cls"):
        PoolingConfig("mean+median")
