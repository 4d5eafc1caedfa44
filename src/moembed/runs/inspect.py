"""What a model is, from its small files alone, and how its experts share the work on given texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from moembed.data.sources import iter_rows
from moembed.embedder import Embedder
from moembed.files import read_json
from moembed.folder.adapter import base_of
from moembed.folder.modules import encoder_folder, is_static
from moembed.folder.quantized import FILE as QUANTIZED
from moembed.folder.read import config_folder, read_config, read_settings
from moembed.folder.static import ANY_LENGTH
from moembed.folder.tensors import stored_dtypes, weight_files
from moembed.inference.static import StaticEmbedder
from moembed.model.encoder import num_parameters, skeleton
from moembed.model.expert_head import ExpertHead
from moembed.model.spec import EncoderSpec
from moembed.model.vectors import unit_vectors
from moembed.moe.layer import MoE, MoESpec
from moembed.packing import pack, token_budget
from moembed.runs.expert_words import ExpertWords
from moembed.search.embed import column_texts
from moembed.token_experts import record_routing
from moembed.types import RouterStats, UserError

BLOCK_ROWS = 1024
BATCH_TOKENS = 16384


def describe(folder: Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Facts about a model folder; ``config.json`` is enough, weights and tokenizer need not be there.

    Of static word vectors the table is read.
    """
    if is_static(folder):
        return _describe_static(folder)
    spec, inside = read_config(folder), config_folder(folder)
    settings = read_settings(folder, spec)
    head = settings.modules.head
    layer, moe = spec.layers[0], spec.moe
    base = base_of(encoder_folder(folder))
    few = [file for file in [encoder_folder(folder) / QUANTIZED] if file.is_file()]
    return {
        **({"adapter_of": str(base)} if base else {}),
        "family": read_json(inside / "config.json")["model_type"],
        "layers": spec.num_layers,
        "width": spec.width,
        "heads": layer.attention.num_heads,
        "ffn_width": layer.ffn.width,
        "vocabulary": spec.vocab_size,
        **({"words_compressed": form.model_dump()} if (form := spec.embeddings.compression) else {}),
        "position": _positions(spec),
        "attention": _attention(spec),
        "norm": layer.place,
        "experts": _experts(moe) if moe else "none (dense)",
        "moe_layers": list(spec.moe_layers),
        "router": moe.router.model_dump() if moe else {},
        "expert_bias": moe.bias if moe else None,
        **({"lora_experts": f"rank {moe.lora.rank}, alpha {moe.lora.alpha:g}"} if moe and moe.lora else {}),
        "shared_experts": moe.num_shared_experts if moe else 0,
        "pooling": settings.modules.pooling.summary,
        "prompts": settings.prompts,
        "max_length": settings.max_length,
        **(
            {"dense": [f"{d.in_dim} -> {d.out_dim} ({d.activation})" for d in head.dense]}
            if head.dense
            else {}
        ),
        **(
            {"expert_head": [f"{h.num_experts} experts, one per text" for h in blocks]}
            if (blocks := [step for step in head.steps if isinstance(step, ExpertHead)])
            else {}
        ),
        **_count(spec, *(settings.modules.num_parameters(spec.width, active) for active in (False, True))),
        "dtype_on_disk": ", ".join(stored_dtypes(inside, allow_pickle)) or ("8 and 4 bits" if few else None),
        "bytes_on_disk": sum(file.stat().st_size for file in few or weight_files(inside, allow_pickle)),
    }


def _describe_static(folder: Path) -> dict[str, Any]:
    model = StaticEmbedder.from_pretrained(folder)
    return {
        "family": "static word vectors, without layers",
        "width": model.table_VD.shape[1],
        "vocabulary": len(model.table_VD),
        "pooling": "mean",
        "prompts": model.tokenizer.prompts,
        "max_length": model.max_length if model.max_length < ANY_LENGTH else None,
        "parameters": model.num_parameters(),
    }


def _positions(spec: EncoderSpec) -> str:
    found = ["absolute"] if spec.embeddings.positions else []
    found += ["rope"] if any(layer.attention.rope for layer in spec.layers) else []
    found += ["relative bias"] if spec.relative_bias else []
    return " and ".join(found) or "none"


def _experts(moe: MoESpec) -> str:
    per_token = "averaged into one per text" if moe.router.merges else f"{moe.router.top_k} per token"
    return f"{moe.num_experts}, {per_token}"


def _attention(spec: EncoderSpec) -> str:
    """Which tokens of its text a token sees."""
    causal = [number for number, layer in enumerate(spec.layers) if layer.attention.causal]
    whole = "all tokens" if not causal else "those before it"
    if len(causal) not in (0, spec.num_layers):
        whole = f"all tokens; in the layers {causal} those before it"
    windows: dict[int, list[int]] = {}
    for number, layer in enumerate(spec.layers):
        if layer.attention.window is not None:
            windows.setdefault(layer.attention.window, []).append(number)
    return "; ".join([whole, *(f"at most {size} away in the layers {x}" for size, x in windows.items())])


def _count(spec: EncoderSpec, behind: int, active_behind: int) -> dict[str, Any]:
    """Parameters, and the bytes they take: routers stay in float32 whatever the dtype of the model."""
    blocks = [block for block in skeleton(spec).modules() if isinstance(block, MoE)]
    words = skeleton(spec).word
    codes = sum(tensor.nbytes for tensor in words.buffers())
    total = num_parameters(spec) + behind
    routers = sum(tensor.numel() for block in blocks for tensor in block.router.parameters())
    return {
        "parameters": total,
        "active_parameters": num_parameters(spec, active=True) + active_behind,
        "embedding_parameters": sum(tensor.numel() for tensor in words.parameters()),
        "expert_parameters": sum(block.routed_parameters() for block in blocks),
        "bytes_in_memory": {"float32": 4 * total + codes, "bfloat16": 2 * total + 2 * routers + codes},
    }


@dataclass(slots=True)
class Routed:
    """What the routers of a model did with the texts of a file, ``truncated`` of which were cut."""

    texts: int = 0
    truncated: int = 0
    stats: dict[int, RouterStats] = field(default_factory=dict)
    words: ExpertWords | None = None


def expert_load(
    model: Embedder,
    source: Path,
    column: str = "text",
    prompt_name: str | None = None,
    words: int = 8,
    role: str | None = None,
) -> dict[str, Any]:
    """Run the texts of a file and add up what every router did.

    Args:
        words: how many typical words and pieces of words to give for every expert; 0 for none.
        role: that the texts have, which may be their tag; None: the name of the prompt may be.

    Returns:
        ``texts``, how many of them were cut (``truncated``), ``tokens``, and per MoE layer the share of the
        pairs each expert got, the mean entropy of the router in nats, the mean probability of the chosen
        experts, the number of unused experts, how far the experts are apart
        (`moembed.moe.experts.Experts.distance`), and what `moembed.runs.expert_words.ExpertWords.layer` says
        of words. Prompts are tokens like others.

    Raises:
        UserError: a dense model, no rows, or a row without a string in ``column``.
    """
    found = routed(model, source, column, prompt_name, bool(words), role)
    tokens = next(iter(found.stats.values())).tokens
    blocks = {block.router.layer: block for block in model.encoder.modules() if isinstance(block, MoE)}
    layers = [
        {**stats.summary(), "expert_distance": round(blocks[layer].experts.distance(), 6)}
        | (found.words.layer(layer, words) if found.words else {})
        for layer, stats in sorted(found.stats.items())
    ]
    return {"texts": found.texts, "truncated": found.truncated, "tokens": tokens, "layers": layers}


@torch.inference_mode()
def routed(
    model: Embedder, source: Path, column: str, prompt_name: str | None, words: bool, role: str | None = None
) -> Routed:
    """As ``expert_load``, in sums; ``words``: whether these are counted too."""
    if model.encoder.spec.moe is None:
        raise UserError("this model has no experts, so there is no load to show")
    found = Routed(words=ExpertWords(model.encoder.spec.moe.num_experts) if words else None)
    for rows in iter_rows(source, BLOCK_ROWS):
        texts = column_texts(rows, column, source, found.texts)
        found.texts += len(texts)
        token_rows, cut = model.tokenizer.rows(texts, prompt=model.tokenizer.prompt(prompt_name))
        found.truncated += cut
        tags = model.tag_numbers(texts, role=prompt_name if role is None else role)
        for part in _route(model, texts, token_rows, prompt_name, tags, found.words):
            earlier = found.stats.get(part.layer)
            found.stats[part.layer] = part if earlier is None else earlier + part
    if not found.stats:
        raise UserError(f"{source} holds no rows to show the load of")
    return found


def _route(
    model: Embedder, texts: list[str], token_rows: list[list[int]], prompt_name: str | None,
    tags: list[int] | None, seen: ExpertWords | None,
) -> Iterator[RouterStats]:  # fmt: skip
    prompt = model.tokenizer.prompt(prompt_name)
    word_rows = model.tokenizer.word_rows(texts, prompt=prompt) if seen else []
    groups = token_budget([len(row) for row in token_rows], BATCH_TOKENS)
    encoder, layers = record_routing(model.encoder)
    for group in groups:
        # no vector is looked at, so nobody asks where the prompt of a text ends
        own = None if tags is None else [tags[i] for i in group]
        batch = pack([token_rows[i] for i in group], prompt_tokens=[0] * len(group), tags=own)
        found = unit_vectors(encoder, model.pooling, model.head, batch.to(model.device)).router
        if seen is not None:
            # the batch holds the rows in an order of its own: the shortest first
            order = [group[i] for i in batch.restore_B.argsort().tolist()]
            words = list(chain.from_iterable(word_rows[i] for i in order))
            seen.add(words, model.tokenizer.pieces(batch.token_T.tolist()), layers)
        layers.clear()
        yield from found
