"""The models that are measured, as folders that every runtime can be given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moembed.families.flat import FlatConfig, FlatMoE
from moembed.folder.bases import locate_base
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.model.encoder import Encoder, initialise, tensor_shapes
from moembed.model.pooling import PoolingConfig
from moembed.model.spec import EncoderSpec
from moembed.moe.router import RouterConfig
from moembed.tokenizer import Tokenizer
from moembed.weights.upcycle import UpcycleConfig, upcycle

LONGEST = 512  # tokens per text

PUBLISHED = FlatConfig(
    vocab_size=250_048, width=768, num_layers=12, num_heads=12, ffn_width=3072,
    norm_eps=1e-5, position="rope", max_positions=2048, num_token_types=1,
    moe=FlatMoE(
        layers=(1, 3, 5, 7, 9, 11), num_experts=8, bias="shared", router=RouterConfig(normalize=None)
    ),
).spec()  # fmt: skip


def minilm() -> Path:
    return locate_base("minilm")


def published(spec: EncoderSpec = PUBLISHED) -> Parts:
    """The shape of Nomic Embed v2 with random weights; a smaller one for the tests.

    The tokenizer is MiniLM's: it knows fewer words, but gives real texts their usual lengths and counts.
    """
    encoder = Encoder(spec)
    initialise(encoder)
    tokenizer = Tokenizer(read_folder(minilm()).tokenizer.backend, LONGEST)
    return Parts(spec, encoder.state_dict(), tokenizer, PoolingConfig("mean"))


def upcycled_minilm() -> Parts:
    """Eight experts in every second layer, moved apart so that none is a copy of another."""
    base = read_folder(minilm())
    spec, state = upcycle(base.spec, base.state, UpcycleConfig())
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith(("up_EFD", "down_EDF")):
            state[name] = tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return replace(base, spec=spec, state=state)


def shallow_minilm(num_layers: int) -> Parts:
    """Only the first layers: what is asked of memory does not depend on how many there are."""
    base = read_folder(minilm())
    spec = base.spec.first_layers(num_layers)
    names = tensor_shapes(spec).keys()
    return replace(base, spec=spec, state={name: base.state[name] for name in names})


def saved(parts: Parts, folder: Path) -> Path:
    write_folder(folder, parts)
    return folder


def flops(spec: EncoderSpec, lengths: Sequence[int]) -> float:
    """Floating-point operations of one forward pass: two per weight a token meets, and attention's."""
    width, tokens, weights, scores = spec.width, sum(lengths), 0, 0
    for layer in spec.layers:
        block = (3 if layer.ffn.gated else 2) * width * layer.ffn.width
        heads = layer.attention.num_heads * layer.attention.head_size
        shared_heads = layer.attention.num_kv_heads * layer.attention.head_size
        weights += 2 * width * (heads + shared_heads)
        scores += 4 * heads
        if moe := layer.moe:
            weights += (moe.router.top_k + moe.num_shared_experts) * block + width * moe.num_experts
        else:
            weights += block
    return 2 * weights * tokens + scores * sum(length**2 for length in lengths)
