"""`moembed drift`: how far a model moved from the one it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from moembed.console import say
from moembed.folder.bases import read_base
from moembed.folder.parts import Parts
from moembed.types import UserError
from moembed.weights.compress_vocabulary import whole_vocabulary
from moembed.weights.drift import Drift, Moved, by_expert, drift, grouped, order
from moembed.weights.lora_experts import full_experts
from moembed.weights.vocabulary import spelling


def drift_report(before: str, after: str, allow_pickle: bool = False) -> dict[str, Any]:
    """What changed between two models, tensor by tensor, by layer and kind, and expert by expert.

    Word embeddings are compared token by token where the tokenizers differ. Every list is sorted, the most
    moved first.

    Returns:
        JSON: ``whole``, ``groups``, ``experts``, ``tensors`` with ``relative``, ``cosine`` and ``values``;
        ``vocabulary`` with the tokens ``shared``, ``added`` and ``removed``; the names ``added``,
        ``removed`` and ``reshaped``. ``relative`` is null where the tensor was zero, ``cosine`` where one is.

    Raises:
        UserError: a model cannot be read; they have no tensor of the same name and shape.
    """
    first, second = (_whole(name, read_base(name, None, allow_pickle)) for name in (before, after))
    rows, vocabulary = _shared_words(first, second)
    found = drift(second.spec, _all_tensors(first), _all_tensors(second), rows)
    if not found.tensors:
        raise UserError(
            f"{before} and {after} have no tensor of the same name and shape, so there is no drift to tell: "
            "give a model and one that was made of it"
        )
    total = sum((tensor.moved for tensor in found.tensors), Moved())
    return {
        "before": before,
        "after": after,
        "whole": _figures(total),
        "vocabulary": vocabulary,
        "groups": [
            {"layer": layer, "kind": kind, **_figures(moved)}
            for (layer, kind), moved in grouped(found.tensors).items()
        ],
        "experts": _experts(found),
        "tensors": [
            {
                "name": tensor.name, "layer": tensor.layer, "kind": tensor.kind, "expert": tensor.expert,
                "was": tensor.was, **_figures(tensor.moved),
            }
            for tensor in sorted(found.tensors, key=lambda tensor: order(tensor.moved))
        ],
        "added": found.added,
        "removed": found.removed,
        "reshaped": found.reshaped,
    }  # fmt: skip


def _experts(found: Drift) -> list[dict[str, Any]]:
    dense = {tensor.layer for tensor in found.tensors if tensor.expert is not None and tensor.was}
    return [
        {"layer": layer, "expert": expert, "was_dense": layer in dense, **_figures(moved)}
        for (layer, expert), moved in by_expert(found.tensors).items()
    ]


def _figures(moved: Moved) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.7g}")

    return {
        "relative": rounded(moved.relative),
        "cosine": rounded(moved.cosine),
        "values": moved.values,
    }


def _whole(name: str, parts: Parts) -> Parts:
    """Codes and factors say nothing alone: the matrices that they make count."""
    if form := parts.spec.embeddings.compression:
        say(f"note: the table of words of {name} ({form.method}) is compared as floats")
        spec, state = whole_vocabulary(parts.spec, parts.state)
        parts = replace(parts, spec=spec, state=state)
    if not any(layer.moe and layer.moe.lora for layer in parts.spec.layers):
        return parts
    say(f"note: the LoRA experts of {name} are compared as full experts")
    spec, state = full_experts(parts.spec, parts.state)
    return replace(parts, spec=spec, state=state)


def _all_tensors(parts: Parts) -> dict[str, Tensor]:
    named = {f"pooling {name}": tensor for name, tensor in parts.pooling_state.items()}
    return {**parts.state, **named, **{f"head {name}": tensor for name, tensor in parts.head_state.items()}}


def _shared_words(first: Parts, second: Parts) -> tuple[tuple[list[int], list[int]] | None, dict[str, int]]:
    """Rows of the two word tables that stand for the same token, None if they are the same rows."""
    one, other = _rows(first), _rows(second)
    shared = [key for key in other if key in one]
    counts = {"shared": len(shared), "added": len(other) - len(shared), "removed": len(one) - len(shared)}
    if one == other and first.spec.vocab_size == second.spec.vocab_size:
        return None, counts
    return ([one[key] for key in shared], [other[key] for key in shared]), counts


def _rows(parts: Parts) -> dict[Any, int]:
    """The row of every token, by its text; a token whose text another has too goes by its own name."""
    backend = parts.tokenizer.backend
    key: Callable[[str], Any] = spelling(backend)
    found: dict[Any, int] = {}
    for piece, number in sorted(backend.get_vocab().items(), key=lambda item: item[1]):
        if number < parts.spec.vocab_size:
            name = key(piece)
            found[piece if name in found else name] = number
    return found
