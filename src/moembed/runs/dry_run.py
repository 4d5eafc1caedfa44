"""What a recipe will do, told before it does anything: read from the objects that training builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moembed.config import Strict, config_hash
from moembed.console import say
from moembed.data.sampler import CYCLE, Sampler
from moembed.data.sources import Source
from moembed.losses.contrastive import BLOCK
from moembed.losses.negatives import masked_entries
from moembed.runs.dry_run_terms import hard_negatives, loss_terms, router_terms
from moembed.runs.inputs import require_new_run
from moembed.runs.train import TrainConfig, prepared
from moembed.runs.train_reranker import RerankerConfig, prepared_reranker
from moembed.runs.training_run import model_facts
from moembed.training.contrastive.batch import PairBatch
from moembed.training.contrastive.gradcache import Chunks
from moembed.training.contrastive.task import ContrastiveTask
from moembed.training.contrastive.train import opening_notes
from moembed.training.memory_estimate import estimate
from moembed.training.optim import OptimConfig, adamw, learning_rate
from moembed.training.parallel import ALONE
from moembed.training.reranking.task import RerankingTask
from moembed.types import Batch, Encoded

_COUNTED = 512  # queries of the first batch whose negatives are counted

Plan = dict[str, Any]


def dry_run(
    config: TrainConfig, overwrite: bool = False, resume: bool = False, keep: Path | None = None
) -> Plan:
    """What ``moembed train`` would do: data and model are read, the first batch is made, nothing is written.

    Args:
        keep: a folder for the model as it is before the first step; None: nobody needs it.

    Raises:
        UserError: whatever the run would refuse before its first step.
    """
    if not resume:
        require_new_run(Path(config.out), config, overwrite)
    ready = prepared(config, say)
    if keep:
        ready.model.save_pretrained(keep)
    config, model = ready.config, ready.model
    task = ContrastiveTask(config, model.train(), ready.mixture, ALONE)
    for note in opening_notes(task):
        say(note)
    batch = task.batch(0)
    # vectors and their gradients by depth, and a block of scores with its softmax
    vectors = 2 * 4 * batch.chunks.rows * model.dim * len(task.objective.depths)
    scores = 2 * 4 * min(BLOCK, len(batch.pairs) * len(batch.owner_N))
    return {
        **common_facts("contrastive", config, task, task.steps, task.sampler),
        "model": model_facts(model, config, config.precision, ALONE),
        "sources": _sources(task.mixture.sources, task.sizes, task.sampler, _forms(task)),
        "loss": loss_terms(task),
        "first_batch": _first_batch(task, batch),
        "memory": _memory(task.module, task.embed, batch.chunks, vectors + scores),
    }


def dry_run_reranker(
    config: RerankerConfig, overwrite: bool = False, resume: bool = False, keep: Path | None = None
) -> Plan:
    """The same for ``task: reranking``."""
    if not resume:
        require_new_run(Path(config.out), config, overwrite)
    sources, weights, model = prepared_reranker(config, say)
    if keep:
        model.save_pretrained(keep)
    task = RerankingTask(config, model.train(), sources, weights, ALONE)
    batch = task.batch(0)
    loss = config.loss
    hard = hard_negatives(config.negatives)
    lists = f"the document, {hard} and {config.random_negatives} documents of other queries"
    return {
        **common_facts("reranking", config, task, task.steps, task.sampler),
        "model": model_facts(model, config, config.precision, ALONE),
        "sources": _sources(sources, task.sizes, task.sampler, [{}] * len(sources)),
        "loss": [f"{loss.kind} over lists of {lists}", *router_terms(loss, bool(task.balance.routers))],
        "first_batch": {
            "source": task.names[batch.source], "queries": len(batch.pairs),
            "candidates": len(batch.query_P), "negatives left out": batch.same,
            "lists without a wrong document": batch.alone,
            **_chunks(batch.chunks, batch.tokens, batch.truncated),
        },
        "memory": _memory(task.module, task.embed, batch.chunks, 2 * 4 * batch.chunks.rows),
    }  # fmt: skip


# ---- what all tasks have


def common_facts(kind: str, config: Any, task: Any, steps: int | None, sampler: Sampler) -> Plan:
    """Where the run ends, its settings, its learning rate and what is learned."""
    return length_facts(kind, config, steps, sampler) | {"optimizer": _groups(task.module, config.optim)}


def length_facts(kind: str, config: Any, steps: int | None, sampler: Sampler) -> Plan:
    """The same without what is learned, which the task alone knows."""
    end = {"steps": steps} | {key: getattr(config, key, None) for key in ("minutes", "epochs")}
    length = {key: value for key, value in end.items() if value is not None}
    return {
        "task": kind, "out": config.out, "recipe": config_hash(config),
        "length": length | {"batch_size": config.batch_size, "steps_per_epoch": sampler.total_steps},
        "settings": given_settings(config),
        "learning_rate": _rates(config.optim, steps),
    }  # fmt: skip


def given_settings(config: Strict) -> dict[str, Any]:
    """Every key of the resolved recipe that is not at its default, nested ones dotted, but for the data."""
    found = config.model_dump(mode="json", exclude_defaults=True, exclude={"data"})
    whole = config.model_dump(mode="json")
    found |= {key: whole[key] for key, value in found.items() if value == {}}  # a section of defaults alone

    def flat(values: dict[str, Any], front: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            nested = isinstance(value, dict) and value and all(isinstance(name, str) for name in value)
            out |= flat(value, f"{front}{key}.") if nested else {f"{front}{key}": value}
        return out

    return flat(found, "")


def _rates(optim: OptimConfig, steps: int | None) -> list[dict[str, float]]:
    """The rate at the first and the last step, at the end of the warm-up and at quarters of the run."""
    if steps is None:
        if optim.warmup_steps >= 1:  # the share of a run that the clock ends is not known
            return []
        shares = [0.0, optim.warmup_steps, 0.25, 0.5, 0.75, 1.0]
        return [{"share": s, "rate": learning_rate(optim, 0, s)} for s in sorted(set(shares))]
    warmup = optim.warmup_steps if optim.warmup_steps >= 1 else optim.warmup_steps * steps
    places = {0, min(steps - 1, round(warmup)), steps // 4, steps // 2, 3 * steps // 4, steps - 1}
    return [{"step": step + 1, "rate": learning_rate(optim, step, step / steps)} for step in sorted(places)]


def _groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """The groups of the optimiser that training makes."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = [
        {
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "tensors": len(group["params"]),
            "learning_rate": optim.learning_rate * group.get("times", 1.0),
            "weight_decay": group["weight_decay"],
            "first": names[id(group["params"][0])],
        }
        for group in adamw(module, optim).param_groups
        if group["params"]
    ]
    still = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    if still:
        counts = {"parameters": sum(parameter.numel() for parameter in still), "tensors": len(still)}
        first = names[id(still[0])]
        found.append({**counts, "learning_rate": 0.0, "weight_decay": 0.0, "first": first})
    return found


def _sources(
    sources: Sequence[Source], sizes: Sequence[int], sampler: Sampler, more: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    share = sampler.steps_of_sources(1)
    return [
        {
            "source": source.name, "pairs": len(source), "trained_on": size,
            "batches_per_1000": int(share[number] * 1000 // CYCLE),
            "with_negatives": source.count_negatives()[0], **more[number],
        }
        for number, (source, size) in enumerate(zip(sources, sizes, strict=True))
    ]  # fmt: skip


def _chunks(chunks: Chunks, tokens: int, truncated: int) -> dict[str, Any]:
    return {
        "tokens": tokens, "texts cut": truncated, "chunks": len(chunks.batches),
        "chunks embedded once": min(chunks.kept, len(chunks.batches)),
    }  # fmt: skip


def _memory(
    module: nn.Module, embed: Callable[[Batch], Encoded], chunks: Chunks, vectors: int
) -> dict[str, Any]:
    sizes = [sum(batch.length_B) for batch in chunks.batches]
    together = max([*sizes, sum(sizes[-chunks.kept :])])
    largest = max(chunks.batches, key=lambda batch: len(batch.token_T))
    found = estimate(module, embed, largest, together, vectors)
    return {**asdict(found), "total": found.total, "available": _available()}


def _available() -> int:
    from moembed.machine import memory_bytes

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return memory_bytes()


def _forms(task: ContrastiveTask) -> list[dict[str, Any]]:
    """The task, the loss and the prompts of every source, as its batches will have them."""
    tokenizer = task.model.tokenizer
    return [
        {
            "task_type": form.task_type,
            "loss": "cosent" if form.scored else form.loss,
            "query_prompt": tokenizer.prompt(form.query_prompt),
            "document_prompt": tokenizer.prompt(form.document_prompt),
        }
        for form in task.forms
    ]


def _first_batch(task: ContrastiveTask, batch: PairBatch) -> dict[str, Any]:
    """The batch of step 1 as it will be, with its masks."""
    queries, candidates = len(batch.pairs), len(batch.owner_N)
    facts: dict[str, Any] = {"source": task.names[batch.source], "queries": queries, "candidates": candidates}
    if batch.score_Q is None:
        row_R = torch.arange(min(_COUNTED, queries))
        masked = len(masked_entries(batch.known, row_R, batch.known.positive_Q[row_R])[0]) / len(row_R)
        facts |= {
            "hard negatives": candidates - queries,
            "negatives per query": round(candidates - 1 - masked, 2),
        }
    return facts | _chunks(batch.chunks, batch.tokens, batch.truncated)
