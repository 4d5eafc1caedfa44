"""What to say about a ``model_type`` that is no family of ours: the nearest one, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# model_type -> the nearest family, and what of the model it cannot say
MISSING = {
    "albert": ("bert", "word rows that are narrower than the states"),
    "electra": ("bert", "word rows of another width than the states"),
    "mobilebert": ("bert", "bottlenecks around every layer"),
    "squeezebert": ("bert", "grouped convolutions in the place of matrices"),
    "convbert": ("bert", "convolutions beside attention"),
    "ernie": ("bert", "a table of task types"),
    "deberta": ("bert", "attention to relative positions by content (disentangled)"),
    "deberta-v2": ("bert", "attention to relative positions by content (disentangled)"),
    "roformer": ("bert", "rotary positions that pair neighbouring coordinates"),
    "big_bird": ("roberta", "sparse attention by blocks"),
    "longformer": ("roberta", "a window with tokens that see all"),
    "luke": ("roberta", "entities beside words"),
    "roberta-prelayernorm": ("roberta", "norms before each part"),
    "xlm-roberta-xl": ("xlm-roberta", "norms before each part"),
    "xlnet": ("bert", "attention to relative positions by content"),
    "bart": ("bert", "a decoder that reads what the encoder gives"),
    "mixtral": ("mistral", "experts in a published decoder"),
    "qwen2_moe": ("qwen2", "experts in a published decoder"),
    "qwen3_moe": ("qwen3", "experts in a published decoder"),
    "gemma2": ("gemma3_text", "scores that are capped by tanh"),
    "gemma3": ("gemma3_text", "images beside text"),
    "phi3": ("llama", "one matrix for queries, keys and values, and scaling by lists of factors"),
    "gpt2": ("llama", "learned positions and norms with biases in a decoder"),
    "opt": ("llama", "learned positions in a decoder"),
    "gpt_neox": ("llama", "both parts of a layer side by side"),
    "nemotron": ("llama", "norms that multiply by one plus a weight and have a bias"),
}
_CLOSE = 0.5  # share of equal letters


def unknown(model_type: object, known: Iterable[str]) -> str:
    """The end of the sentence "unknown model_type …:"."""
    names = list(known)
    if isinstance(model_type, str) and model_type in MISSING:
        nearest, missing = MISSING[model_type]
        return f"the nearest known family is {nearest!r}, and what it lacks is {missing}"
    listed = f"known are {', '.join(names)}"
    close = get_close_matches(str(model_type), names, n=1, cutoff=_CLOSE)
    if not close:
        return listed
    return f"the nearest name is {close[0]!r}, but no file says how such a checkpoint is read ({listed})"
