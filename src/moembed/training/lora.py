"""Low-rank adapters (LoRA) for matrices of an encoder: these learn, the encoder's own weights stay.

``W' = W + alpha / rank * B A`` for every matrix W (out, in), every expert's slice of a stack included: A is
(rank, in), B is (out, rank) and starts at zero, so the adapted encoder starts as the same function.
Source: Hu et al., arXiv 2106.09685.

peft makes A, B, their scale and their start. Its wrapper modules do not take the place of ours, which are
packed, routed and exported by their classes: each adapter is put on its matrix as a parametrization
(`moembed.model.adapters`).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from moembed.model.attention import Attention
from moembed.model.encoder import Encoder
from moembed.moe.ffn import FeedForward
from moembed.moe.layer import MoE
from moembed.moe.router import Router
from moembed.training.settings import LORA_TARGETS, LoraConfig
from moembed.types import UserError

Matrix = tuple[nn.Module, str]

_NAME = "default"  # of the one adapter that peft makes for a matrix


class Adapters:
    """The adapters of an encoder, which is changed in place; their values go into checkpoints.

    Attributes:
        sentence: for the eye.
    """

    def __init__(self, encoder: Encoder, config: LoraConfig, seed: int) -> None:
        """
        Raises:
            UserError: no peft; a group of matrices that was asked for and that the encoder does not have.
        """
        groups = matrices(encoder)
        asked = config.targets or tuple(name for name in LORA_TARGETS if groups[name] and name != "router")
        for name in asked:
            if not groups[name]:
                own = ", ".join(group for group in LORA_TARGETS if groups[group])
                raise UserError(
                    f"lora.targets names {name}, and this model has none that learn: it has {own}"
                )
        self.encoder = encoder
        total = sum(parameter.numel() for parameter in encoder.parameters())
        encoder.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = _layers([matrix for name in asked for matrix in groups[name]], config)
        for (module, tensor), layer in made:
            register_parametrization(module, tensor, _Added(layer))
        learned = sum(parameter.numel() for parameter in self.parameters.values())
        counts = ", ".join(f"{len(groups[name])} of {name}" for name in asked)
        self.sentence = (
            f"lora: rank {config.rank} in matrices of the encoder, {counts}: {learned:,} parameters learn, "
            f"its own {total:,} stay"
        )
        self._base: str | None = None

    @classmethod
    def of(cls, encoder: Encoder, config: LoraConfig | None, seed: int) -> dict[str, Adapters]:
        """By the name of their state in a checkpoint; empty where a recipe asks for none."""
        return {} if config is None else {"lora": cls(encoder, config, seed)}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.encoder.named_parameters() if ".layer.lora_" in name}

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        return {"base": self._fingerprint(), "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the adapters were learned on other weights than the encoder has now.
        """
        if state["base"] != self._fingerprint():
            raise UserError(
                "the base changed since the run began: its adapters were learned on other weights; put the "
                "base back as it was, or train into another folder"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["tensors"][name])

    def _fingerprint(self) -> str:
        """A hash of the matrices below the adapters, which never move: made once."""
        if self._base is None:
            digest = blake2b(digest_size=16)
            for name, tensor in self.encoder.named_parameters():
                if name.endswith(".original"):
                    value = tensor.detach().cpu().contiguous().view(torch.uint8)
                    digest.update(name.encode())
                    digest.update(value.numpy().data)
            self._base = digest.hexdigest()
        return self._base


class _Added(nn.Module):
    """Adds the product of an adapter to its matrix, in the precision of the matrix: as merging does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            added: Tensor = weight + self.layer.get_delta_weight(_NAME)  # type: ignore[operator]
            return added


def matrices(encoder: Encoder) -> dict[str, list[Matrix]]:
    """The matrices of every group of targets; shared experts are dense blocks and count as ``ffn``."""
    found: dict[str, list[Matrix]] = {name: [] for name in LORA_TARGETS}
    for module in encoder.modules():
        if isinstance(module, Attention):
            found["attention"] += [(module.qkv, "weight"), (module.out, "weight")]
        elif isinstance(module, FeedForward):
            found["ffn"] += [(part, "weight") for part in (module.up, module.gate, module.down) if part]
        elif isinstance(module, MoE):
            names = ("up_EFD", "gate_EFD", "down_EDF")
            found["experts"] += [(module, name) for name in names if getattr(module, name, None) is not None]
        elif isinstance(module, Router) and module.weight_ED is not None:
            found["router"].append((module, "weight_ED"))
    return found


class _Shape(nn.Module):
    """Stands for a matrix where peft looks for one: its shape, device and precision, and one number."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.new_zeros(1).expand(like.shape), requires_grad=False)


def _layers(targets: list[Matrix], config: LoraConfig) -> list[tuple[Matrix, nn.Module]]:
    """For every matrix the layer of peft that holds its A and B."""
    peft = _peft()
    shapes = nn.Module()
    for number, (module, name) in enumerate(targets):
        shapes.add_module(f"m{number}", _Shape(getattr(module, name).detach()))
    own = peft.LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        target_modules=[],
        target_parameters=[f"m{number}.weight" for number in range(len(targets))],
    )
    peft.inject_adapter_in_model(own, shapes, adapter_name=_NAME)
    found = []
    for number, target in enumerate(targets):
        layer = shapes.get_submodule(f"m{number}")
        assert hasattr(layer, "get_delta_weight"), f"peft made no adapter for {target[1]}"
        base: Any = layer.base_layer
        stand_in = base._parameters.pop("weight").data
        base.weight = stand_in  # no parameter any more: it is not saved, moved or summed
        found.append((target, layer))
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("lora needs peft: pip install 'moembed[peft]'") from None
    return peft
