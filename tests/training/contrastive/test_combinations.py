"""Everything a contrastive step can be told, drawn at random: loss and gradients are those of slow loops.

Masks, weights, mixed negatives, further terms, kinds, prefixes, depths, learned temperatures, a queue, chunks
and the routers' losses together, against one pass over the whole batch. Several processes: test_parallel.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel
from moembed.data.sources import Source
from moembed.families.flat import FlatMoE
from moembed.moe.router import RouterConfig
from moembed.training.contrastive.batch import PairBatch, SourceFormat, prepare
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.parallel import ALONE
from moembed.types import Pair, RouterStats
from slow_losses import SETTINGS, Batch, slow_info_nce, slow_symmetric, slow_triplet

PAIRS = [
    Pair("what does a mole eat?", "moles eat worms", ("an owl hunts voles at night", "worms")),
    Pair("where do owls live?", "the owl is in the meadow at night", ("owls",)),
    Pair("what do they hunt?", "an owl hunts voles at night", ("the mole digs",)),
    Pair("where do owls live?", "owls live under the night"),
]
BEFORE = [  # what a queue holds: answers of the batch among them
    Pair("what digs?", "the mole digs", ("the night", "moles eat worms")),
    Pair("where do voles live?", "the owl is in the meadow at night"),
]
ROUTERS = {"balance": 0.7, "z": 0.1}


@st.composite
def losses(draw: st.DrawFn) -> dict[str, Any]:
    """The loss of a recipe, with what suits its kind."""
    kind = draw(st.sampled_from(["info_nce", "info_nce", "symmetric_info_nce", "triplet"]))
    allowed = {
        "info_nce": {"weight", "mask", "directions", "mixing", "in_batch"},
        "symmetric_info_nce": {"weight", "mask", "mixing"},
        "triplet": {"mask"},
    }
    settings = {key: value for key, value in draw(SETTINGS).items() if key in allowed[kind]}
    loss = {"kind": kind, "temperature": draw(st.sampled_from([0.1, 0.5])), **ROUTERS, **settings}
    loss["matryoshka"] = draw(st.sampled_from([None, {"dims": [16, 6], "weights": [1.0, 0.5]}]))
    loss["depths"] = draw(st.sampled_from([None, {2: 0.5, 4: 1.0}]))
    loss["queue"] = draw(st.sampled_from([0, 3, 50])) if loss.get("in_batch", True) else 0
    if kind == "triplet":
        loss["triplet"] = {"margin": 0.3, "negatives": draw(st.sampled_from(["own", "hardest"]))}
    else:
        learned = [False, True, *(["per_dim"] if loss["matryoshka"] else [])]
        loss["learn_temperature"] = draw(st.sampled_from(learned))
    return loss


def texts(pairs: list[Pair]) -> list[str]:
    return [pair.document for pair in pairs] + [text for pair in pairs for text in pair.negatives]


def prepared(pairs: list[Pair], task: ContrastiveTask, config: ContrastiveConfig) -> PairBatch:
    form = SourceFormat("query", "document", config.loss.kind)
    return replace(prepare(pairs, form, task.model.tokenizer, config), seed=5)


def embedded(task: ContrastiveTask, pairs: list[Pair]) -> tuple[dict[int, Tensor], list[RouterStats]]:
    """All texts in one pass: queries, documents, hard negatives."""
    batch = prepared(pairs, task, task.config.model_copy(update={"chunk_tokens": 10**6}))
    (chunk,), (row_B,) = batch.chunks.batches, batch.chunks.row_CB
    encoded = task.model(chunk, list(task.objective.depths))
    return {depth: vector[row_B.argsort()] for depth, vector in encoded.by_depth.items()}, encoded.router


def slow_step(
    task: ContrastiveTask, loss: dict[str, Any], past: dict[int, Tensor], scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Contrastive and router loss by their definitions.

    ``past`` holds the vectors of ``BEFORE`` as they were then; ``scale`` stands for learned temperatures.
    """
    vectors, router = embedded(task, PAIRS)
    candidates, queries = texts(PAIRS), len(PAIRS)
    owner = [*range(queries), *(i for i, pair in enumerate(PAIRS) for _ in pair.negatives)]
    queued: dict[int, Tensor] = {}
    if loss["queue"]:
        queued = {depth: vector[len(BEFORE) :][-loss["queue"] :] for depth, vector in past.items()}
        candidates = candidates + texts(BEFORE)[-loss["queue"] :]
        owner += [-1] * (len(candidates) - len(owner))
    answers = [{other.document for other in PAIRS if other.query == pair.query} for pair in PAIRS]
    known = torch.tensor([[text in right for text in candidates] for right in answers])

    total = torch.zeros(())
    nested = loss["matryoshka"] or {"dims": [16], "weights": [1.0]}
    for depth, depth_weight in (loss["depths"] or {4: 1.0}).items():
        query, document = vectors[depth][:queries], vectors[depth][queries:]
        if queued:
            document = torch.cat([document, queued[depth]])
        for place, (dim, weight) in enumerate(zip(nested["dims"], nested["weights"], strict=True)):
            cut = [F.normalize(part[:, :dim], dim=-1) for part in (query, document)]
            batch = Batch(cut[0], cut[1], known, owner, seed=5)
            temperature: Any = loss["temperature"]
            if scale is not None:
                temperature = (-(scale[place] if scale.ndim else scale)).exp()
            if loss["kind"] == "triplet":
                term, _ = slow_triplet(batch, 0.3, loss["triplet"]["negatives"], loss)
            elif loss["kind"] == "symmetric_info_nce":
                term = slow_symmetric(batch, temperature, loss)
            else:
                term, _ = slow_info_nce(batch, temperature, loss)
            total = total + depth_weight * weight * term
    balance = torch.stack(
        [len(p.prob_E) * (p.count_E / p.count_E.sum() * p.prob_E / p.tokens).sum() for p in router]
    ).mean()
    return total, 0.7 * balance + 0.1 * torch.stack([p.z / p.tokens for p in router]).mean()


@hypothesis_settings(max_examples=15)
@given(losses(), st.sampled_from([15, 40, 10**6]), st.sampled_from([None, 60]))
def test_a_step_is_the_slow_one_over_the_whole_batch(
    make_model: MakeModel, loss: dict[str, Any], chunk_tokens: int, graph_tokens: int | None
) -> None:
    moe = FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2))
    values = {"steps": 1, "batch_size": 2, "loss": loss, "precision": "float32"}
    chunks = {"chunk_tokens": chunk_tokens, "graph_tokens": graph_tokens}
    config = ContrastiveConfig.model_validate(values | chunks)
    task = ContrastiveTask(
        config, make_model(moe=moe).train(), Mixture([Source.from_pairs("all", PAIRS)]), ALONE
    )
    past: dict[int, Tensor] = {}
    if loss["queue"]:
        with torch.no_grad():
            past, _ = embedded(task, BEFORE)
        task.backward(0, prepared(BEFORE, task, config))
        task.objective.after_step()
        task.module.zero_grad()
        # the weights move on: a text of the queue and the same one in the batch are no longer equally near
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    terms = task.backward(0, prepared(PAIRS, task, config))
    found = {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}
    task.module.zero_grad()

    contrastive, router = slow_step(task, loss, past, task.objective.log_scale)
    (contrastive + router).backward()  # type: ignore[no-untyped-call]
    assert terms.log["info_nce"] == pytest.approx(contrastive.item(), rel=1e-4, abs=1e-5)
    assert terms.log["router_loss"] == pytest.approx(router.item(), rel=1e-4)
    for name, parameter in task.module.named_parameters():
        if parameter.grad is None:
            assert name not in found or found[name].eq(0).all(), name
            continue
        largest = max(1.0, float(parameter.grad.abs().max()))
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4 * largest, msg=name)
