"""The models that are measured, as folders that every runtime can be given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moembed.folder.bases import locate_base
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.model.encoder import Encoder, EncoderConfig, initialise
from moembed.moe.layer import MoEConfig
from moembed.moe.router import RouterConfig
from moembed.tokenizer import Tokenizer
from moembed.weights.upcycle import UpcycleConfig, upcycle

LONGEST = 512  # tokens per text

PUBLISHED = EncoderConfig(
    family="moembed", vocab_size=250_048, width=768, num_layers=12, num_heads=12, ffn_width=3072,
    norm_eps=1e-5, position="rope", max_positions=2048, num_token_types=1,
    moe=MoEConfig(
        layers=(1, 3, 5, 7, 9, 11), num_experts=8, bias="shared", router=RouterConfig(normalize=None)
    ),
)  # fmt: skip


def minilm() -> Path:
    return locate_base("minilm")


def published() -> Parts:
    """The shape of Nomic Embed v2 with random weights.

    The tokenizer is MiniLM's: it knows fewer words, but gives real texts their usual lengths and counts.
    """
    encoder = Encoder(PUBLISHED)
    initialise(encoder)
    tokenizer = Tokenizer(read_folder(minilm()).tokenizer.backend, LONGEST)
    return Parts(PUBLISHED, encoder.state_dict(), tokenizer, "mean")


def upcycled_minilm() -> Parts:
    """Eight experts in every second layer, moved apart so that none is a copy of another."""
    base = read_folder(minilm())
    config, state = upcycle(base.config, base.state, UpcycleConfig())
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith(("up_EFD", "down_EDF")):
            state[name] = tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return replace(base, config=config, state=state)


def shallow_minilm(num_layers: int) -> Parts:
    """Only the first layers: what is asked of memory does not depend on how many there are."""
    base = read_folder(minilm())
    config = base.config.model_copy(update={"num_layers": num_layers})
    names = Encoder(config).state_dict().keys()
    return replace(base, config=config, state={name: base.state[name] for name in names})


def saved(parts: Parts, folder: Path) -> Path:
    write_folder(folder, parts)
    return folder


def flops(config: EncoderConfig, lengths: Sequence[int]) -> float:
    """Floating-point operations of one forward pass: two per weight a token meets, and attention's."""
    width, tokens = config.width, sum(lengths)
    block = (3 if config.gated else 2) * width * config.ffn_width
    sparse = len(config.moe.layers) if config.moe else 0
    weights = config.num_layers * 4 * width**2 + (config.num_layers - sparse) * block
    if config.moe:
        active = config.moe.router.top_k + config.moe.num_shared_experts
        weights += sparse * (active * block + width * config.moe.num_experts)
    attention = config.num_layers * 4 * width * sum(length**2 for length in lengths)
    return 2 * weights * tokens + attention
