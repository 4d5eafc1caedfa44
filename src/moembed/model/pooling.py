"""Token states of each text -> one vector per text, or one per token, on packed batches.

A way of pooling is an entry of ``POOLING``: a function, and the tensors that it owns, if it learns any. Its
name and its tensors are written to and read from ``1_Pooling``; exporters know a list of names and refuse
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from moembed.model import attention_pooling
from moembed.model.attention_pooling import AttentionSize
from moembed.model.named import NamedTensors
from moembed.model.pooled_tokens import Tensors, Tokens
from moembed.packing import offsets, on_device, positions, spread
from moembed.types import UserError


def mean(tokens: Tokens, _: Tensors) -> Tensor:
    """Mean over the tokens of the text, special tokens included."""
    return tokens.reduced(tokens.hidden_TD, "mean")


def mean_by_root(tokens: Tokens, _: Tensors) -> Tensor:
    """Sum over the tokens, divided by the square root of their number."""
    return tokens.reduced(tokens.hidden_TD, "sum") / tokens.length_B1.float().sqrt()


def maximum(tokens: Tokens, _: Tensors) -> Tensor:
    """Largest value of each coordinate over the tokens."""
    return tokens.reduced(tokens.hidden_TD, "max")


def cls(tokens: Tokens, _: Tensors) -> Tensor:
    """State of the first token."""
    hidden_TD = tokens.hidden_TD
    return hidden_TD[on_device(offsets(tokens.length_B)[:-1], hidden_TD.device)].float()


def last(tokens: Tokens, _: Tensors) -> Tensor:
    """State of the last token."""
    hidden_TD = tokens.hidden_TD
    return hidden_TD[on_device(offsets(tokens.length_B)[1:], hidden_TD.device) - 1].float()


def weighted_mean(tokens: Tokens, _: Tensors) -> Tensor:
    """Mean with weights 1, 2, 3, ... by the place in the text (Muennighoff, arXiv 2202.08904)."""
    weight_T1 = tokens.place_T[:, None].float()
    weighted_BD = tokens.reduced(tokens.hidden_TD.float() * weight_T1, "sum")
    return weighted_BD / tokens.reduced(weight_T1, "sum")


def every_token(tokens: Tokens, _: Tensors) -> Tensor:
    """The state of every token, special tokens included: a vector for each of them, not one of the text.

    Source: Khattab and Zaharia, arXiv 2004.12832, which puts a linear layer behind it, also drops
    the punctuation of documents and fills queries with mask tokens; here tokens are those of the text alone.
    """
    return tokens.hidden_TD.float()


def no_tensors(width: int, size: AttentionSize) -> dict[str, tuple[int, ...]]:
    return {}


@dataclass(frozen=True)
class Mode:
    """One way of pooling: ``pool(tokens, tensors)`` gives ``(B, D)`` in fp32, or ``(T, D)`` if ``per_token``.

    ``shapes(width, size)`` names the tensors that it owns, for states ``width`` wide; they are trained, saved
    and loaded with the model. ``all_layers``: whether it reads the states after every layer, and not only
    after the last.
    """

    pool: Callable[[Tokens, Tensors], Tensor]
    shapes: Callable[[int, AttentionSize], dict[str, tuple[int, ...]]] = no_tensors
    all_layers: bool = False
    per_token: bool = False


# The first six by the names of sentence-transformers; two learn; the last is for late interaction.
POOLING: dict[str, Mode] = {
    "mean": Mode(mean),
    "cls": Mode(cls),
    "max": Mode(maximum),
    "lasttoken": Mode(last),
    "weightedmean": Mode(weighted_mean),
    "mean_sqrt_len_tokens": Mode(mean_by_root),
    "latent_attention": Mode(attention_pooling.latent_attention, attention_pooling.latent_shapes),
    "multi_layer": Mode(attention_pooling.multi_layer, attention_pooling.layer_shapes, all_layers=True),
    "tokens": Mode(every_token, per_token=True),
}


@dataclass(frozen=True)
class PoolingConfig:
    """One way of pooling, or several whose vectors stand side by side: ``mean``, ``cls+max``.

    Attributes:
        include_prompt: whether the tokens of the prompt, and special tokens before it, are pooled too.
        size: of the ways that attend, ``latent_attention`` and ``multi_layer``; the others have none.

    Raises:
        UserError: a name that ``POOLING`` lacks; ``tokens`` beside others.
    """

    name: str = "mean"
    include_prompt: bool = True
    size: AttentionSize = field(default_factory=AttentionSize)

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.modes if mode not in POOLING]:
            raise UserError(f"pooling {unknown[0]!r} is not supported (known: {', '.join(POOLING)})")
        if len(self.modes) > 1 and self.per_token:
            raise UserError("pooling 'tokens' makes a vector of every token, so no other stands beside it")

    @property
    def per_token(self) -> bool:
        """Whether a text has a vector of each of its tokens, and not one of its own."""
        return any(POOLING[mode].per_token for mode in self.modes)

    def vectors_of(self, length: int, prompt: int | None) -> int:
        """How many vectors a text of so many tokens has, so many of them its prompt's, if ``per_token``."""
        return length if self.include_prompt or prompt is None else length - min(prompt, length)

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.name.split("+"))

    @property
    def all_layers(self) -> bool:
        """Whether the states after every layer are read."""
        return any(POOLING[mode].all_layers for mode in self.modes)

    @property
    def learns(self) -> bool:
        """Whether there are tensors, for states of any width."""
        return bool(self.shapes(1))

    @property
    def summary(self) -> str:
        """For people: the name, and that the prompt is left out where it is."""
        return self.name if self.include_prompt else f"{self.name}, without the prompt"

    def dim(self, width: int) -> int:
        """Coordinates of the pooled vector, of states ``width`` wide."""
        return width * len(self.modes)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """All tensors: ``{place of the mode}.{name}``."""
        modes = enumerate(POOLING[mode].shapes(width, self.size) for mode in self.modes)
        return {f"{i}.{name}": shape for i, shapes in modes for name, shape in shapes.items()}

    def num_parameters(self, width: int) -> int:
        return sum(prod(shape) for shape in self.shapes(width).values())


class Pooling(NamedTensors):
    """The ways of a config on packed states.

    Args:
        width: of the states.
        state: the tensors by the names of ``PoolingConfig.shapes``, taken over without copying.
    """

    def __init__(self, config: PoolingConfig, width: int, state: dict[str, Tensor] | None = None) -> None:
        super().__init__(config.shapes(width), state or {})
        self.config, self.width = config, width

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def dim(self) -> int:
        """Coordinates of the pooled vector."""
        return self.config.dim(self.width)

    def facts(self) -> list[str]:
        """What tells one pooling from another, beyond its name; nothing of most."""
        prompt = [] if self.config.include_prompt else ["without the prompt"]
        return [*prompt, *([self.digest()] if self.names else [])]

    def depths(self, wanted: Sequence[int]) -> list[int]:
        """After which layers it reads the states, to pool at the depths ``wanted``.

        Raises:
            UserError: all layers are read, and there is none, or there are more than it was made for.
        """
        if not self.config.all_layers:
            return list(wanted)
        if not wanted or min(wanted) < 1 or max(wanted) > self.config.size.layers:
            raise UserError(
                f"pooling {self.name!r} was made for 1 to {self.config.size.layers} layers, and is asked for "
                f"{list(wanted)}"
            )
        return list(range(1, max(wanted) + 1))

    def forward(
        self,
        hidden_TD: Tensor,
        length_B: Sequence[int],
        prompt_B: Sequence[int] | None = None,
        layers: Sequence[Tensor] = (),
    ) -> Tensor:
        """Vectors ``(B, M)`` fp32 of packed states; of a text with no token to pool: zeros.

        If ``per_token``, they are ``(T, M)``, those of one text after the other, without the tokens left out.

        Args:
            length_B: tokens of each text, at least one.
            prompt_B: tokens of each text that belong to its prompt; None: there are no prompts.
            layers: the states after every layer, ``hidden_TD`` the last of them; only where ``all_layers``.
        """
        if self.config.all_layers and not layers:
            raise UserError(
                f"pooling {self.name!r} reads the states after every layer, and is given the last alone"
            )
        if self.config.include_prompt or prompt_B is None or not any(prompt_B):
            return self._pooled(Tokens(hidden_TD, length_B, layers=layers))
        first_B = [min(prompt, length) for prompt, length in zip(prompt_B, length_B, strict=True)]
        first_T = spread(on_device(first_B, hidden_TD.device), length_B)
        left_T = positions(length_B, hidden_TD.device) >= first_T
        left_B = [length - first for length, first in zip(length_B, first_B, strict=True)]
        some = [i for i, left in enumerate(left_B) if left]
        rows = sum(left_B) if self.config.per_token else len(left_B)
        vector_BM = hidden_TD.new_zeros(rows, self.dim, dtype=torch.float32)
        if not some:
            return vector_BM
        kept = [states_TD[left_T] for states_TD in layers]
        tokens = Tokens(hidden_TD[left_T], [left_B[i] for i in some], [first_B[i] for i in some], kept)
        if self.config.per_token:
            return self._pooled(tokens)
        return vector_BM.index_copy(0, on_device(some, hidden_TD.device), self._pooled(tokens))

    def _pooled(self, tokens: Tokens) -> Tensor:
        pooled = []
        for i, mode in enumerate(self.config.modes):
            names = POOLING[mode].shapes(self.width, self.config.size)
            own = {name: self.tensor(f"{i}.{name}").float() for name in names}
            pooled.append(POOLING[mode].pool(tokens, own))
        return torch.cat(pooled, dim=-1) if len(pooled) > 1 else pooled[0]
