"""`moembed prune`: see which experts texts use, take out those that they use least."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moembed.embedder import Embedder
from moembed.encoding import role_prompt
from moembed.files import require_replaceable
from moembed.folder.bases import base_name, read_base
from moembed.folder.write import write_folder
from moembed.report.card import write_card
from moembed.runs.inspect import routed
from moembed.weights.prune import least_used, prune, require_prunable, shares


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """``share`` is what the dropped experts had, see `moembed.weights.prune.shares`."""

    layer: int
    dropped: list[int]
    share: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """``truncated`` of the texts were longer than the model reads, and were cut."""

    out: str
    texts: int
    truncated: int
    experts: int
    parameters: int
    parameters_before: int
    layers: list[PrunedLayer]


def prune_model(
    model: str, out: str | Path, texts: Path, drop: int, column: str = "text", overwrite: bool = False
) -> Pruned:
    """Write ``model`` to ``out`` without the ``drop`` experts of each layer that ``texts`` use least.

    The texts are read as documents.

    Raises:
        UserError: what `moembed.weights.prune.require_prunable` refuses, no texts.
    """
    require_replaceable(Path(out), overwrite)
    parts = read_base(model)
    require_prunable(parts.spec.moe, drop)
    embedder = Embedder(parts).eval()
    prompt = role_prompt("document", parts.tokenizer.prompts, parts.tokenizer.default_prompt)
    found = routed(embedder, texts, column, prompt, words=False)
    layers = []
    for number, stats in sorted(found.stats.items()):
        moe = parts.spec.layers[number].moe
        assert moe is not None
        share_E = shares(stats, moe.router)
        gone = least_used(share_E, drop)
        layers.append(PrunedLayer(number, gone, round(sum(share_E[expert] for expert in gone), 4)))
    made = prune(parts, {layer.layer: layer.dropped for layer in layers})
    write_folder(Path(out), made)
    write_card(Path(out), str(out), base_name(model))
    assert made.spec.moe is not None
    now, before = (Embedder(one).num_parameters() for one in (made, parts))
    return Pruned(str(out), found.texts, found.truncated, made.spec.moe.num_experts, now, before, layers)
