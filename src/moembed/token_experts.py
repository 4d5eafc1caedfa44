"""Which experts every token of a text chose, layer by layer, seen in the model that computes the vectors.

``record_routing`` gives a twin of an encoder that remembers what its routers decide. The encoder itself, and
whoever else is using it at the time, is left alone: the twin has a tree of modules of its own and shares all
tensors and packed matrices. ``token_experts`` asks the served form of a model, so with ``int8`` or bfloat16
it shows what those numbers decide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from moembed.embedder import Embedder
from moembed.inference.engine import Engine
from moembed.inference.layers import PackedMoE
from moembed.model.encoder import Encoder
from moembed.moe.layer import MoE
from moembed.moe.router import Pairs, Routing


@dataclass(frozen=True, slots=True)
class RoutedLayer:
    """The P pairs that one MoE layer made of a packed batch, in the order of their tokens.

    Attributes:
        token_P: int64, the place of the token in the packed batch.
        expert_P: int64.
        weight_P: float32, what the output of the expert is multiplied by.
    """

    layer: int
    token_P: np.ndarray
    expert_P: np.ndarray
    weight_P: np.ndarray


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """What one MoE layer did with the tokens of one text.

    Attributes:
        experts: for every token its experts, the one of the largest weight first. Where tokens choose, they
            have equally many; where experts choose, a token can have none.
        weights: of these experts, in their order.
    """

    layer: int
    num_experts: int
    experts: list[list[int]]
    weights: list[list[float]]


@dataclass(frozen=True, slots=True)
class TokenExperts:
    """The tokens of one text, prompt and special ones included, and what the MoE layers did with them.

    Attributes:
        pieces: the tokens as `Tokenizer.pieces` writes them.
        special: whether a token is one that the tokenizer put around the text.
        truncated: whether the text was longer than the model reads; the tokens cut off are not here.
        layers: none of a dense model.
    """

    pieces: list[str]
    special: list[bool]
    truncated: bool
    layers: list[ExpertChoice]


def record_routing(encoder: Encoder) -> tuple[Encoder, list[RoutedLayer]]:
    """A twin that computes the same values, and the list to which every MoE layer it runs adds its pairs.

    The twin is for one caller at a time. The list grows until the caller empties it.
    """
    layers: list[RoutedLayer] = []
    numbers = encoder.spec.moe_layers

    def recorded(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(hidden_TD: Tensor, pairs: Pairs | Routing, *rest: str) -> Tensor:
            parts = (pairs.token_P, pairs.expert_P, pairs.weight_P.detach().float())
            # layers that share their weights are one module: the order of the calls tells them apart
            number = numbers[len(layers) % len(numbers)]
            layers.append(RoutedLayer(number, *(part.cpu().numpy() for part in parts)))
            return compute(hidden_TD, pairs, *rest)

        return run

    def twin_of(module: nn.Module) -> nn.Module:
        twin = copy.copy(module)
        children = module._modules.items()
        twin.__dict__["_modules"] = {name: child and twin_of(child) for name, child in children}
        if isinstance(module, PackedMoE):
            twin.__dict__["weighted"] = recorded(module.weighted)
        elif isinstance(module, MoE):
            twin.__dict__["routed"] = recorded(module.routed)
        return twin

    twin = twin_of(encoder)
    assert isinstance(twin, Encoder)
    return twin, layers


def token_experts(
    model: Embedder,
    text: str,
    *,
    role: str | None = None,
    prompt: str | None = None,
    tag: str | None = None,
) -> TokenExperts:
    """Embed one text as ``model.vectors([text], …)`` does, and tell the experts of every token.

    Raises:
        UserError: a text or prompt that cannot be read; a tag that the model does not know, or none where it
            needs one.
    """
    prefix = model.prefix(role, prompt)
    (row,), cut = model.tokenizer.rows([text], prompt=prefix)
    (words,) = model.tokenizer.word_rows([text], prompt=prefix)
    routed: dict[int, RoutedLayer] = {}
    if model.encoder.spec.moe is None:
        model.tag_numbers([text], tag=tag)  # refuses one
    else:
        engine = _RecordingEngine(model.engine, model.encoder)
        observed = copy.copy(model)
        observed.__dict__["engine"] = engine
        observed.vectors([text], role=role, prompt=prompt, tag=tag)
        routed = {layer.layer: layer for layer in engine.layers}
    return TokenExperts(
        pieces=model.tokenizer.pieces(row),
        special=[word is None for word in words],
        truncated=cut > 0,
        layers=[
            _choice(model, layer, routed.get(layer), len(row)) for layer in model.encoder.spec.moe_layers
        ],
    )


class _RecordingEngine(Engine):
    """An engine whose encoder is the recording twin of what another engine made."""

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        super().__init__(engine.int8)
        self.twin, self.layers = record_routing(engine.encoder(encoder))

    def encoder(self, module: Encoder) -> Encoder:
        return self.twin


def _choice(model: Embedder, layer: int, routed: RoutedLayer | None, tokens: int) -> ExpertChoice:
    moe = model.encoder.spec.layers[layer].moe
    assert moe is not None
    experts: list[list[int]] = [[] for _ in range(tokens)]
    weights: list[list[float]] = [[] for _ in range(tokens)]
    if routed is not None:  # None: a text without a single token, which no layer has seen
        by_weight = np.lexsort((routed.expert_P, -routed.weight_P))
        for pair in by_weight.tolist():
            token = int(routed.token_P[pair])
            experts[token].append(int(routed.expert_P[pair]))
            weights[token].append(float(routed.weight_P[pair]))
    return ExpertChoice(layer, moe.num_experts, experts, weights)
