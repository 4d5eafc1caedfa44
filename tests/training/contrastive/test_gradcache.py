"""Two passes in chunks give the loss and every gradient of one pass with the whole graph in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.losses.balance import balance_loss, z_loss
from moembed.losses.contrastive import info_nce
from moembed.losses.negatives import masked_entries
from moembed.moe.router import RouterConfig
from moembed.training.contrastive.batch import PairBatch, SourceFormat, prepare
from moembed.training.contrastive.gradcache import backward
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.types import Batch, Encoded, Pair, RouterStats

DEPTHS = [1, 3, 4]
PAIRS = [
    Pair("what does a mole eat?", "moles eat worms", ("an owl hunts voles at night", "worms")),
    Pair("where do owls live?", "the owl is in the meadow at night"),
    Pair("what do they hunt?", "an owl hunts voles at night", ("the mole digs",)),
    Pair("where do owls live?", "owls live under the night"),
    Pair("what digs?", "moles eat worms"),
    Pair("do worms live long?", "the meadow is wide and the night is long, and the owl is patient"),
]


def close(found: Tensor, expected: Tensor) -> bool:
    """fp32 on two orders of summation: rounding grows with the largest entry of a gradient."""
    return torch.allclose(found, expected, rtol=1e-4, atol=2e-5 * max(1.0, float(expected.abs().max())))


def make(make_model: MakeModel, kind: str = "token_choice", chance: float = 0.2) -> Embedder:
    """Experts in two layers; ``chance`` is the dropout and the jitter."""
    router = RouterConfig.model_validate({"kind": kind, "jitter": chance})
    moe = FlatMoE(layers=(1, 3), num_experts=4, num_shared_experts=1, router=router)
    return make_model(dropout=chance, moe=moe).train()


ROLES = SourceFormat("query", "document", "info_nce")


def prepared(model: Embedder, chunk_tokens: int, graph_tokens: int | None = None) -> PairBatch:
    config = ContrastiveConfig(steps=1, chunk_tokens=chunk_tokens, graph_tokens=graph_tokens)
    return prepare(PAIRS, ROLES, model.tokenizer, config)


def mask(batch: PairBatch) -> Tensor:
    """What must not count as a negative, as a matrix."""
    row_Q = torch.arange(len(batch.pairs))
    mask_QN = torch.zeros(len(row_Q), batch.chunks.rows - len(row_Q), dtype=torch.bool)
    mask_QN[masked_entries(batch.known, row_Q, row_Q)] = True
    return mask_QN


def contrastive(batch: PairBatch) -> Callable[[dict[int, Tensor]], Tensor]:
    """InfoNCE at three depths, each with its weight, on hard negatives and without known duplicates."""
    mask_QN = mask(batch)
    assert mask_QN.any()
    queries = len(batch.pairs)
    positive_Q = torch.arange(queries)

    def loss(by_depth: dict[int, Tensor]) -> Tensor:
        assert sorted(by_depth) == DEPTHS
        total = torch.zeros(())
        for depth, vector_BM in by_depth.items():
            query_QM, document_NM = vector_BM[:queries], vector_BM[queries:]
            total = total + depth * info_nce(query_QM, document_NM, positive_Q, mask_QN, temperature=0.1)
        return total

    return loss


def router_loss(stats: Sequence[RouterStats], total: Sequence[RouterStats]) -> Tensor:
    return 0.7 * balance_loss(stats, total) + 0.1 * z_loss(stats, total)


def plain(model: Embedder, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor]:
    """The definition: all chunks with their graphs, one loss, one backward."""
    torch.manual_seed(seed)
    encoded = [model(chunk, DEPTHS) for chunk in batch.chunks.batches]
    place_B = torch.cat(batch.chunks.row_CB).argsort()
    by_depth = {depth: torch.cat([part.by_depth[depth] for part in encoded])[place_B] for depth in DEPTHS}
    total = encoded[0].router
    for part in encoded[1:]:
        total = [one + other for one, other in zip(total, part.router, strict=True)]
    terms = contrastive(batch)(by_depth), router_loss(total, total)
    sum(terms).backward()
    return terms


def gradients(model: Embedder) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    model.zero_grad()
    return found


@pytest.mark.parametrize("chunk_tokens", [1, 25, 60, 100_000])
@pytest.mark.parametrize("graph_tokens", [None, 70, 100_000])
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
def test_cached_equals_plain_with_everything_on(
    kind: str, graph_tokens: int | None, chunk_tokens: int, make_model: MakeModel
) -> None:
    """Dropout, jitter, hard negatives, a duplicate mask, three depths, balance and z-loss, uneven chunks."""
    model = make(make_model, kind)
    batch = prepared(model, chunk_tokens, graph_tokens)
    sizes = [len(chunk.length_B) for chunk in batch.chunks.batches]
    assert len(sizes) == {1: 15, 100_000: 1}.get(chunk_tokens, len(sizes))
    assert chunk_tokens not in (25, 60) or len(set(sizes)) > 1
    expected_loss, expected_router = plain(model, batch, seed=5)
    expected, state = gradients(model), torch.get_rng_state()

    torch.manual_seed(5)
    terms = backward(lambda chunk: model(chunk, DEPTHS), batch.chunks, contrastive(batch), router_loss)
    assert terms.contrastive == pytest.approx(expected_loss.item(), rel=1e-5)
    assert terms.router == pytest.approx(expected_router.item(), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)  # as if every text had been embedded once
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert close(found[name], gradient), name
    assert sum(part.tokens for part in terms.stats) == 2 * batch.tokens
    assert not any(part.prob_E.requires_grad or part.z.requires_grad for part in terms.stats)


def test_without_chance_the_chunks_change_nothing(make_model: MakeModel) -> None:
    model = make(make_model, chance=0.0)
    results = []
    for chunk_tokens in (100_000, 40, 7):
        batch = prepared(model, chunk_tokens)
        terms = backward(lambda chunk: model(chunk, DEPTHS), batch.chunks, contrastive(batch), router_loss)
        results.append((terms, gradients(model)))
    whole, expected = results[0]
    for terms, found in results[1:]:
        assert terms.contrastive == pytest.approx(whole.contrastive, rel=1e-5)
        assert terms.router == pytest.approx(whole.router, rel=1e-5)
        assert all(close(found[name], gradient) for name, gradient in expected.items())
        for part, complete in zip(terms.stats, whole.stats, strict=True):
            assert torch.equal(part.count_E, complete.count_E)


def test_gradients_add_to_those_already_there(make_model: MakeModel) -> None:
    model = make(make_model, chance=0.0)
    batch = prepared(model, 40)
    run = lambda: backward(lambda c: model(c, DEPTHS), batch.chunks, contrastive(batch), router_loss)  # noqa: E731
    run()
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    run()
    assert all(close(parameter.grad, 2 * once[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("graph_tokens", [None, 70, 100_000])
def test_chunks_that_keep_their_graph_are_embedded_once(
    graph_tokens: int | None, make_model: MakeModel
) -> None:
    model = make(make_model)
    batch = prepared(model, 40, graph_tokens)
    count, kept = len(batch.chunks.batches), batch.chunks.kept
    tokens = [sum(chunk.length_B) for chunk in batch.chunks.batches]
    assert kept == {None: 1, 70: kept, 100_000: count}[graph_tokens]
    assert sum(tokens[-kept:]) <= max(40, graph_tokens or 0)
    assert kept == count or sum(tokens[-kept - 1 :]) > max(40, graph_tokens or 0)
    modes: list[bool] = []

    def embed(chunk: Batch) -> Encoded:
        modes.append(torch.is_grad_enabled())
        return model(chunk, DEPTHS)

    backward(embed, batch.chunks, contrastive(batch), router_loss)
    assert modes == [False] * (count - kept) + [True] * kept + [True] * (count - kept)


def test_the_router_terms_reach_the_routers(make_model: MakeModel) -> None:
    model = make(make_model, chance=0.0)
    batch = prepared(model, 40)
    found = []
    for terms in (None, router_loss):
        backward(lambda chunk: model(chunk, DEPTHS), batch.chunks, contrastive(batch), terms)
        found.append(gradients(model)["encoder.layers.1.ffn.router.weight_ED"])
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("chunk_tokens", [40, 100_000])
def test_a_dense_model_has_no_router_terms(chunk_tokens: int, make_model: MakeModel) -> None:
    model = make_model(dropout=0.1).train()
    batch = prepared(model, chunk_tokens)
    terms = backward(lambda chunk: model(chunk, DEPTHS), batch.chunks, contrastive(batch), router_loss)
    assert (terms.router, terms.stats) == (0.0, [])
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_depth_the_loss_ignores_costs_nothing(make_model: MakeModel) -> None:
    model = make(make_model, chance=0.0)
    batch = prepared(model, 40)
    loss: Any = lambda by_depth: by_depth[3][0].sum()  # noqa: E731
    backward(lambda chunk: model(chunk, [2, 3]), batch.chunks, loss, None)
    found = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.ne(0).any()}
    assert any(name.startswith("encoder.layers.2.") for name in found)
    assert not any(name.startswith("encoder.layers.3.") for name in found)


def test_prepare_lays_out_queries_documents_and_negatives(make_model: MakeModel) -> None:
    model = make_model()
    for chunk_tokens, limit, negatives in ((20, None, 3), (100_000, 1, 2), (40, 0, 0)):
        config = ContrastiveConfig(steps=1, chunk_tokens=chunk_tokens, negatives=limit)
        batch = prepare(PAIRS, ROLES, model.tokenizer, config)
        documents = [pair.document for pair in PAIRS]
        mined = [text for pair in PAIRS for text in pair.negatives[:limit]]
        assert len(mined) == negatives
        with torch.no_grad():
            vector_BM = torch.cat([model(chunk).vector_BM for chunk in batch.chunks.batches])
            vector_BM = vector_BM[torch.cat(batch.chunks.row_CB).argsort()]
        expected = torch.cat(
            [
                torch.from_numpy(model.encode([pair.query for pair in PAIRS], "query")),
                torch.from_numpy(model.encode(documents + mined, "document")),
            ]
        )
        torch.testing.assert_close(vector_BM, expected, rtol=0, atol=1e-5)
        assert batch.chunks.rows == 2 * len(PAIRS) + negatives
        assert mask(batch).shape == (len(PAIRS), len(documents) + negatives)
        assert batch.tokens == sum(sum(chunk.length_B) for chunk in batch.chunks.batches)
    known = [(q, n) for q, n in mask(batch).nonzero().tolist()]
    assert known == [(0, 4), (1, 3), (3, 1), (4, 0)]  # the same document, the same query


def test_prepare_cuts_and_counts_by_role(make_model: MakeModel) -> None:
    model = make_model()
    batch = prepare(
        PAIRS, ROLES, model.tokenizer, ContrastiveConfig(steps=1, query_length=4, document_length=9)
    )
    rows, cut = model.tokenizer.rows([pair.query for pair in PAIRS], prompt="query: ", max_length=4)
    documents = [pair.document for pair in PAIRS] + [text for pair in PAIRS for text in pair.negatives]
    more, also = model.tokenizer.rows(documents, prompt=model.tokenizer.prompt("document"), max_length=9)
    assert batch.truncated == cut + also
    assert 0 < also < len(documents)
    assert batch.tokens == sum(map(len, rows + more))
