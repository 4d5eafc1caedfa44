"""Ways of pooling that learn: tokens that attend to latents, and latents that attend to layers.

Both compute in fp32 whatever autocast says. Their matrices are shaped by the width of the states: they are
about as large as one layer of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model.pooled_tokens import Tensors, Tokens

LATENTS, HEADS = 32, 8


@dataclass(frozen=True)
class AttentionSize:
    """Of a pooling that attends: latents, most heads, and the layers of the model it was made for.

    The heads that are used are the largest number that divides both ``heads`` and the width of the states.
    """

    latents: int = LATENTS
    heads: int = HEADS
    layers: int = 0


def latent_shapes(width: int, size: AttentionSize) -> dict[str, tuple[int, ...]]:
    """The tensors of ``latent_attention``: ``12 D^2 + R D`` values and norms."""
    return {"latents": (size.latents, width), **_block(width, size)}


def layer_shapes(width: int, size: AttentionSize) -> dict[str, tuple[int, ...]]:
    """The tensors of ``multi_layer``: those of ``latent_attention``, and one place for every layer."""
    return {"layers": (size.layers, width), **latent_shapes(width, size)}


def _block(width: int, size: AttentionSize) -> dict[str, tuple[int, ...]]:
    norms = ("query_norm", "key_norm", "ffn_norm")
    return {
        # what a head's scores are multiplied by; its length is the number of heads
        "head_scale": (gcd(size.heads, width),),
        **{f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")},
        **{f"{name}.weight": (width, width) for name in ("query", "key", "value", "out")},
        "up.weight": (4 * width, width),
        "up.bias": (4 * width,),
        "down.weight": (width, 4 * width),
        "down.bias": (width,),
    }


def latent_attention(tokens: Tokens, own: Tensors) -> Tensor:
    """Every token attends to learned latents; then the mean over the tokens of each text.

    ``H = X + attention(X, L, L)``, ``P = H + down(gelu(up(H)))``, result ``mean(P)``, with layer norms before
    the attention, on both sides, and before ``up``. X are the states ``(T, D)``, L the latents ``(R, D)``.
    The softmax runs over latents, so a token's value depends on no other token, and on no padding.

    Source: Lee et al., *NV-Embed*, arXiv 2405.17428, section 3.1: tokens are queries, the latents keys and
    values, an MLP of two linear layers with GELU between, mean pooling; 512 latents and 8 heads for a width
    of 4096. The layer norms and the residuals are those of the Perceiver (arXiv 2103.03206), as in its code.
    """
    with torch.autocast(tokens.hidden_TD.device.type, enabled=False):
        state_TD = tokens.hidden_TD.float()
        attended_TD = state_TD + _attend(state_TD[None], own["latents"][None], own)[0]
        return tokens.reduced(_feed(attended_TD, own), "mean")


def multi_layer(tokens: Tokens, own: Tensors) -> Tensor:
    """Learned latents attend to the mean state after every layer; then the mean over the latents.

    ``M_l = mean over tokens of the states after layer l, plus E_l``, ``H = L + attention(L, M, M)``,
    ``P = H + down(gelu(up(H)))``, result ``mean(P)``, with layer norms as in ``latent_attention``. E has a
    row for every layer of the whole model; a model of its first layers uses the first rows.

    Source: Tang and Yang, *Pooling And Attention: What Are Effective Designs For LLM-Based Embedding
    Models?*, arXiv 2409.02727: latents are the queries, the layers keys and values, the states of the
    embedding layer are left out. The published code has GEGLU where this has GELU, and is
    sized for a model of 7B.
    """
    with torch.autocast(tokens.hidden_TD.device.type, enabled=False):
        means_BLD = torch.stack([tokens.reduced(states_TD, "mean") for states_TD in tokens.layers], dim=1)
        means_BLD = means_BLD + own["layers"][: means_BLD.shape[1]]
        latents_BRD = own["latents"].expand(len(means_BLD), -1, -1)
        attended_BRD = latents_BRD + _attend(latents_BRD, means_BLD, own)
        return _feed(attended_BRD, own).mean(dim=1)


def _attend(query_BQD: Tensor, key_BKD: Tensor, own: Tensors) -> Tensor:
    heads = len(own["head_scale"])
    query_BQD, key_BKD = _norm(query_BQD, "query_norm", own), _norm(key_BKD, "key_norm", own)

    def split(states: Tensor, name: str) -> Tensor:
        return F.linear(states, own[f"{name}.weight"]).view(*states.shape[:-1], heads, -1).transpose(1, 2)

    query = split(query_BQD, "query") * own["head_scale"][:, None, None]
    mixed = F.scaled_dot_product_attention(query, split(key_BKD, "key"), split(key_BKD, "value"))
    return F.linear(mixed.transpose(1, 2).flatten(-2), own["out.weight"])


def _feed(state: Tensor, own: Tensors) -> Tensor:
    inner = F.gelu(F.linear(_norm(state, "ffn_norm", own), own["up.weight"], own["up.bias"]))
    return state + F.linear(inner, own["down.weight"], own["down.bias"])


def _norm(state: Tensor, name: str, own: Tensors) -> Tensor:
    return F.layer_norm(state, state.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])


def fresh(name: str, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Tensors to start training from.

    ``latent_attention`` starts as the mean over the tokens, exactly: ``out`` and ``down`` are zeros.
    ``multi_layer`` starts near the mean over all layers of their normed means: values and ``out`` are the
    identity, latents and places small.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for tensor, shape in shapes.items():
        one, zero = tensor.endswith("norm.weight") or tensor == "head_scale", tensor.endswith("bias")
        is_zero = zero or tensor == "down.weight" or (tensor == "out.weight" and name == "latent_attention")
        if one or is_zero:
            state[tensor] = torch.full(shape, float(one))
        elif name == "multi_layer" and tensor in ("value.weight", "out.weight"):
            state[tensor] = torch.eye(*shape)
        else:
            std = 1 / sqrt(shape[-1]) if tensor.endswith("weight") or name == "latent_attention" else 0.02
            state[tensor] = torch.empty(shape).normal_(0, std, generator=generator)
    return state
