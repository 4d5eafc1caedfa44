"""To the layout of the published Nomic Embed v2, which TEI, vLLM, fastembed-rs and llama.cpp read."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from moembed.families.nomic import write_config
from moembed.families.registry import family_to_write
from moembed.folder.parts import Parts
from moembed.model.expert_head import ExpertHead
from moembed.model.spec import EncoderSpec
from moembed.moe.layer import MoESpec
from moembed.types import UserError
from moembed.weights.compress_vocabulary import with_whole_vocabulary
from moembed.weights.lora_experts import full_experts
from moembed.weights.selection_bias import remove_selection_bias


def to_nomic(parts: Parts) -> Parts:
    """The same model as a ``nomic_bert`` checkpoint: same function, their names, shapes and config keys.

    Experts without any bias get biases of zeros, which the layout always has.

    Raises:
        UserError: all that the model has and the layout cannot say, in one sentence.
    """
    if any(isinstance(step, ExpertHead) for step in parts.head.steps):
        raise UserError("the Nomic layout cannot hold this model: it has experts behind pooling")
    if parts.pooling.per_token:
        raise UserError("the Nomic layout cannot hold this model: it makes a vector of every token")
    if parts.pooling.learns:  # what reads the layout has no code for it, and would take the mean
        name = " and ".join(parts.pooling.modes)
        raise UserError(f"the Nomic layout cannot hold this model: its pooling, {name}, has learned weights")
    parts = with_whole_vocabulary(parts, "the Nomic layout")
    spec, state = full_experts(parts.spec.without_noise(), parts.state)
    spec, state = remove_selection_bias(spec, state, "the Nomic layout")
    state = state | _zero_biases(spec, state)

    def in_their_words(moe: MoESpec) -> MoESpec:
        changes = {} if moe.num_shared_experts else {"shared_weight": "mean"}
        changes |= {"bias": "shared"} if moe.bias == "none" else {}
        return moe.model_copy(update=changes)

    spec = spec.with_experts(in_their_words)
    write_config(spec)  # refuses what cannot be said before anything is written
    stored = family_to_write(parts.spec, parts.source).name == "nomic_bert"
    source = parts.source if stored else {"model_type": "nomic_bert"}
    return replace(parts, spec=spec, state=state, source=source)


def _zero_biases(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output bias of every MoE layer that has none, and those of its shared experts."""
    zeros: dict[str, Tensor] = {}
    for number, layer in enumerate(spec.layers):
        if layer.moe is None or layer.moe.bias != "none":
            continue
        block = f"layers.{number}.ffn"
        zeros[f"{block}.bias_D"] = state["word.weight"].new_zeros(spec.width)
        for name, weight in state.items():
            if name.startswith(f"{block}.shared.") and name.endswith(".weight"):
                zeros[name.removesuffix("weight") + "bias"] = weight.new_zeros(len(weight))
    return zeros
