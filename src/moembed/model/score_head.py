"""From the states of a query and a document, read as one text, to one number: the head of a reranker."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from moembed.config import Strict
from moembed.model.head import ACTIVATIONS
from moembed.model.norm import NormSpec, make_norm
from moembed.model.pooling import Pooling, PoolingConfig


class ScoreHeadConfig(Strict):
    """``logit = out(norm(activation(dense(pooled))))``; without ``dense`` it is ``out(pooled)``.

    Attributes:
        pooling: which states are read: of the first token (cls), of the last, or the mean of all.
        norm: after the activation; None: there is none.
        out_bias: whether a bias is added to the logit.
    """

    pooling: Literal["cls", "lasttoken", "mean"] = "cls"
    dense: bool = True
    dense_bias: bool = True
    activation: str = Field(default="tanh")
    norm: NormSpec | None = None
    out_bias: bool = True

    @model_validator(mode="after")
    def _known(self) -> ScoreHeadConfig:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation {self.activation!r} is not supported (known: {known})")
        if not self.dense and self.norm:
            raise ValueError("a norm follows a dense layer, and there is none")
        return self


class ScoreHead(nn.Module):
    """The head of a config, for states ``width`` wide, in fp32; its tensors are to be loaded or drawn."""

    def __init__(self, config: ScoreHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.pooling = Pooling(PoolingConfig(config.pooling), width)
        self.dense = nn.Linear(width, width, bias=config.dense_bias) if config.dense else None
        self.norm = make_norm(width, config.norm) if config.norm else None
        self.out = nn.Linear(width, 1, bias=config.out_bias)

    def forward(self, hidden_TD: Tensor, length_B: tuple[int, ...]) -> Tensor:
        """Logits ``(B, 1)`` in fp32, in the packed order, whatever autocast says."""
        with torch.autocast(hidden_TD.device.type, enabled=False):
            pooled_BD = self.pooling(hidden_TD, length_B)
            if self.dense is not None:
                pooled_BD = ACTIVATIONS[self.config.activation](_linear(self.dense, pooled_BD))
            if self.norm is not None:
                pooled_BD = self.norm(pooled_BD)
            return _linear(self.out, pooled_BD)


def _linear(layer: nn.Linear, value_BD: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(value_BD, layer.weight.float(), bias)


def score_head_shapes(config: ScoreHeadConfig, width: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor: ``dense.weight``, ``norm.weight``, ``out.weight`` …"""
    with torch.device("meta"):
        state = ScoreHead(config, width).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def fresh_score_head(config: ScoreHeadConfig, width: int, seed: int) -> dict[str, Tensor]:
    """Tensors to start training from: matrices normal(0, 0.02), biases 0, norms that multiply by one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in score_head_shapes(config, width).items():
        if name == "norm.weight":
            state[name] = torch.ones(shape)
        elif name.endswith("bias"):
            state[name] = torch.zeros(shape)
        else:
            state[name] = torch.empty(shape).normal_(0, 0.02, generator=generator)
    return state
