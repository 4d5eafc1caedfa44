"""To the layout of the published Nomic Embed v2, which TEI, vLLM, fastembed-rs and llama.cpp read."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from moembed.families.nomic import write_config
from moembed.folder.parts import Parts
from moembed.model.encoder import EncoderConfig
from moembed.weights.selection_bias import without_selection_bias


def to_nomic(parts: Parts) -> Parts:
    """The same model as a ``nomic_bert`` checkpoint: same function, their names, shapes and config keys.

    Experts without any bias get biases of zeros, which the layout always has.

    Raises:
        UserError: all that the model has and the layout cannot say, in one sentence.
    """
    parts = without_selection_bias(parts, "the Nomic layout")
    config, state = parts.config, parts.state
    if moe := config.moe:
        changes: dict[str, object] = {} if moe.num_shared_experts else {"shared_weight": "mean"}
        if moe.bias == "none":
            changes["bias"] = "shared"
            state = state | _zero_biases(config, state)
        moe = moe.model_copy(update=changes)
    config = config.model_copy(update={"family": "nomic_bert", "moe": moe})
    write_config(config)  # refuses what cannot be said before anything is written
    source = parts.source if parts.config.family == "nomic_bert" else {}
    return replace(parts, config=config, state=state, source=source)


def _zero_biases(config: EncoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output bias of every MoE layer, and those of its shared experts."""
    assert config.moe is not None
    zeros: dict[str, Tensor] = {}
    for i in config.moe.layers:
        block = f"layers.{i}.ffn"
        zeros[f"{block}.bias_D"] = state["word.weight"].new_zeros(config.width)
        for name, weight in state.items():
            if name.startswith(f"{block}.shared.") and name.endswith(".weight"):
                zeros[name.removesuffix("weight") + "bias"] = weight.new_zeros(len(weight))
    return zeros
