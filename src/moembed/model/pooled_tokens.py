"""What a way of pooling is given: the tokens of each text that are pooled, packed end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.packing import on_device, positions, spread

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """The tokens that are pooled, end to end; each text has at least one.

    Attributes:
        hidden_TD: their states.
        length_B: how many of them each text has.
        first_B: the place of the first of them in its text; None: it is the first of the text.
        layers: their states after every layer, from the first layer to the last that ran; only for ways of
            pooling that read all layers.
    """

    hidden_TD: Tensor
    length_B: Sequence[int]
    first_B: Sequence[int] | None = None
    layers: Sequence[Tensor] = ()

    @property
    def length_B1(self) -> Tensor:
        return on_device(self.length_B, self.hidden_TD.device)[:, None]

    @property
    def place_T(self) -> Tensor:
        """The place of every token in its text, counted from 1."""
        place_T = positions(self.length_B, self.hidden_TD.device) + 1
        if self.first_B is None:
            return place_T
        return place_T + spread(on_device(self.first_B, self.hidden_TD.device), self.length_B)

    def reduced(self, value_TX: Tensor, how: str) -> Tensor:
        """Sum, mean or max over the tokens of each text, in fp32."""
        lengths = on_device(self.length_B, value_TX.device)
        # unsafe: without the check that the lengths add up to the rows, which would wait for the device
        return torch.segment_reduce(value_TX.float(), how, lengths=lengths, unsafe=True)
