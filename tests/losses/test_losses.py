"""Every loss against the formula written as slow Python loops, and on examples computed by hand."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.losses import contrastive
from moembed.losses.balance import balance_loss, corrected_bias, z_loss
from moembed.losses.contrastive import LOSSES, SOFTMAX_LOSSES, info_nce, symmetric_info_nce
from moembed.losses.negatives import Duplicates, Mask, masked_entries
from moembed.moe.ffn import ACTIVATIONS, FeedForwardSpec
from moembed.moe.router import ROUTERS, RouterConfig
from moembed.training.contrastive.settings import LossConfig
from moembed.training.optim import SCHEDULES, OptimConfig
from moembed.types import RouterStats

ROUNDING = 1e-5  # fp32 sums of a few dozen terms of size up to 1 / temperature


def slow_info_nce(
    query: Tensor, document: Tensor, positive: Tensor, mask: Tensor, weight: Tensor, temperature: float
) -> float:
    total = 0.0
    for q in range(len(query)):
        score = [float(query[q].double() @ document[n].double()) / temperature for n in range(len(document))]
        kept = [n for n in range(len(document)) if n == positive[q] or not mask[q, n]]
        total += float(weight[q]) * (math.log(sum(math.exp(score[n]) for n in kept)) - score[positive[q]])
    return total / float(weight.sum())


def unit(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator), dim=-1)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 4), st.sampled_from([0.02, 0.1, 1.0]))
def test_info_nce_equals_the_slow_loop(seed: int, queries: int, negatives: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    query_QM, document_NM = unit(queries, 3, generator), unit(queries + negatives, 3, generator)
    positive_Q = torch.randperm(queries + negatives, generator=generator)[:queries]
    mask_QN = torch.rand(queries, queries + negatives, generator=generator) < 0.4  # positives among them
    weight_Q = torch.rand(queries, generator=generator) + 0.1
    fast = info_nce(query_QM, document_NM, positive_Q, mask_QN, weight_Q, temperature=temperature)
    slow = slow_info_nce(query_QM, document_NM, positive_Q, mask_QN, weight_Q, temperature)
    assert float(fast) == pytest.approx(slow, rel=ROUNDING, abs=ROUNDING)
    plain = info_nce(query_QM, document_NM, positive_Q, temperature=temperature)
    nothing, ones = torch.zeros_like(mask_QN), torch.ones(queries)
    slow = slow_info_nce(query_QM, document_NM, positive_Q, nothing, ones, temperature)
    assert float(plain) == pytest.approx(slow, rel=ROUNDING, abs=ROUNDING)


def test_info_nce_by_hand() -> None:
    """Orthogonal documents: cosine 1 with the own one, 0 with the other, so log(1 + e^(-1/t)) each."""
    eye = torch.eye(2)
    right = info_nce(eye, eye, torch.tensor([0, 1]), temperature=0.5)
    assert float(right) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    wrong = info_nce(eye, eye, torch.tensor([1, 0]), temperature=0.5)
    assert float(wrong) == pytest.approx(2 + math.log(1 + math.exp(-2)), abs=1e-6)


def test_a_masked_candidate_is_as_good_as_absent_and_gets_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    query_QM = unit(2, 4, generator)
    document_NM = unit(3, 4, generator).requires_grad_()
    mask_QN = torch.tensor([[False, False, True], [False, False, True]])
    masked = info_nce(query_QM, document_NM, torch.tensor([0, 1]), mask_QN)
    assert torch.equal(masked, info_nce(query_QM, document_NM[:2], torch.tensor([0, 1])))
    (gradient,) = torch.autograd.grad(masked, document_NM)
    assert gradient[2].eq(0).all()
    assert gradient[:2].ne(0).any()


def test_the_positive_is_never_masked() -> None:
    generator = torch.Generator().manual_seed(1)
    query_QM, document_NM = unit(3, 4, generator), unit(3, 4, generator)
    everything = torch.ones(3, 3, dtype=torch.bool)
    for loss in LOSSES.values():
        assert float(loss(query_QM, document_NM, torch.arange(3), everything)) == 0.0


@given(st.integers(0, 10**6))
def test_symmetric_is_the_mean_of_both_directions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query_QM, document_NM = unit(3, 4, generator), unit(5, 4, generator)
    positive_Q = torch.tensor([4, 0, 2])
    mask_QN = torch.rand(3, 5, generator=generator) < 0.3
    weight_Q = torch.rand(3, generator=generator) + 0.1
    both = symmetric_info_nce(query_QM, document_NM, positive_Q, mask_QN, weight_Q, temperature=0.1)
    there = slow_info_nce(query_QM, document_NM, positive_Q, mask_QN, weight_Q, 0.1)
    mirrored = torch.stack([mask_QN[:, n] for n in positive_Q])  # row d: queries that are no negatives of d
    back = slow_info_nce(document_NM[positive_Q], query_QM, torch.arange(3), mirrored, weight_Q, 0.1)
    assert float(both) == pytest.approx((there + back) / 2, rel=ROUNDING, abs=ROUNDING)


def test_half_precision_vectors_are_scored_in_fp32() -> None:
    vector_QM = unit(4, 8, torch.Generator().manual_seed(2)).bfloat16()
    loss = info_nce(vector_QM, vector_QM, torch.arange(4))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, info_nce(vector_QM.float(), vector_QM.float(), torch.arange(4)))


@pytest.mark.parametrize("kind", sorted(SOFTMAX_LOSSES))
@pytest.mark.parametrize("block", [1, 20, 30])
def test_blocks_of_queries_change_nothing(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, of a learned temperature too, with a mask of either sort and a query left out."""
    generator = torch.Generator().manual_seed(3)
    vectors = unit(7, 4, generator).requires_grad_(), unit(10, 4, generator).requires_grad_()
    temperature = torch.tensor(0.2, requires_grad=True)
    mask: Mask = Duplicates.of(torch.tensor([1, 2, 1, 3, 4, 5, 6]), torch.arange(10) % 8, torch.arange(7))
    if block == 30:
        mask = torch.rand(7, 10, generator=generator) < 0.3
    weight_Q = torch.tensor([1, 2, 0, 1, 0.5, 1, 1])
    results = []
    for size in (2**22, block):
        monkeypatch.setattr(contrastive, "BLOCK", size)
        loss = LOSSES[kind](*vectors, torch.arange(7), mask, weight_Q, temperature=temperature)
        results.append([loss, *torch.autograd.grad(loss, [*vectors, temperature])])
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(SOFTMAX_LOSSES))
def test_shares_of_queries_add_up_to_the_whole(kind: str) -> None:
    """So several processes compute one loss, each with weight 0 for the queries of the others."""
    generator = torch.Generator().manual_seed(4)
    vectors = unit(5, 4, generator).requires_grad_(), unit(8, 4, generator).requires_grad_()
    mask = Duplicates.of(torch.tensor([1, 2, 1, 3, 4]), torch.arange(8) % 6, torch.arange(5))
    whole = LOSSES[kind](*vectors, torch.arange(5), mask)
    shares = []
    for mine_Q in (torch.tensor([1.0, 0, 1, 0, 1]), torch.tensor([0, 1.0, 0, 1, 0])):
        share = LOSSES[kind](*vectors, torch.arange(5), mask, mine_Q)
        shares.append(share * mine_Q.sum() / 5)
    torch.testing.assert_close(sum(shares), whole)
    for found, expected in zip(
        torch.autograd.grad(sum(shares), vectors), torch.autograd.grad(whole, vectors), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# ---- masks ---------------------------------------------------------------------------------------


def duplicates(queries: list[int], documents: list[int]) -> Duplicates:
    return Duplicates.of(torch.tensor(queries), torch.tensor(documents), torch.arange(len(queries)))


def dense(mask: Duplicates, rows: list[int]) -> Tensor:
    row_R = torch.tensor(rows)
    mask_RN = torch.zeros(len(rows), len(mask.text_N), dtype=torch.bool)
    mask_RN[masked_entries(mask, row_R, mask.positive_Q[row_R])] = True
    return mask_RN


def test_duplicates_by_hand() -> None:
    """Queries a, b, a; documents A, B, C, then negatives B, D and C."""
    mask = duplicates([1, 2, 1], [10, 20, 30, 20, 40, 30])
    expected = [
        [False, False, True, False, False, True],  # a: C answers the other a, as a negative too
        [False, False, False, True, False, False],  # b: its document returns as a negative
        [True, False, False, False, False, True],
    ]
    assert dense(mask, [0, 1, 2]).tolist() == expected
    assert dense(mask, [2, 1]).tolist() == expected[:0:-1]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_duplicates_equal_the_definition(pairs: list[tuple[int, int]], negatives: list[int]) -> None:
    queries, documents = [q for q, _ in pairs], [d for _, d in pairs] + negatives
    mask, every = duplicates(queries, documents), list(range(len(pairs)))
    mask_QN, mirrored_QQ = dense(mask, every), dense(mask.mirror(), every)
    for q in every:
        for n in range(len(documents)):
            assert bool(mask_QN[q, n]) == (n != q and (queries[q], documents[n]) in pairs)
        for d in every:
            assert bool(mirrored_QQ[d, q]) == (d != q and (queries[q], documents[d]) in pairs)


# ---- router losses -------------------------------------------------------------------------------


def stats(prob_TE: Tensor, expert_TK: Tensor, logit_TE: Tensor | None = None, layer: int = 0) -> RouterStats:
    zero = torch.zeros(())
    z = logit_TE.logsumexp(-1).square().sum() if logit_TE is not None else zero
    count_E = torch.bincount(expert_TK.reshape(-1), minlength=prob_TE.shape[1])
    return RouterStats(layer, len(prob_TE), count_E, prob_TE.sum(0), z, zero, zero)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (8, 2), (1, 1)])
def test_balance_is_one_when_balanced_and_e_when_one_expert_takes_all(experts: int, top_k: int) -> None:
    tokens = 2 * experts
    uniform_TE = torch.full((tokens, experts), 1 / experts)
    turn_TK = (torch.arange(tokens)[:, None] + torch.arange(top_k)) % experts
    even = [stats(uniform_TE, turn_TK)]
    assert float(balance_loss(even, even)) == pytest.approx(1)
    first_TK = torch.zeros(tokens, 1, dtype=torch.long)
    all_to_one = [stats(F.one_hot(first_TK[:, 0], experts).float(), first_TK)]
    assert float(balance_loss(all_to_one, all_to_one)) == pytest.approx(experts)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3))
def test_balance_equals_the_switch_formula_as_megablocks_writes_it(
    seed: int, layers: int, top_k: int
) -> None:
    """E / (L T k) * sum over layers and experts of n_le * mean_t p_lte."""
    generator = torch.Generator().manual_seed(seed)
    tokens, experts = 7, 4
    prob_LTE = torch.rand(layers, tokens, experts, generator=generator).softmax(-1)
    expert_LTK = prob_LTE.topk(top_k, dim=-1).indices
    parts = [
        stats(prob, expert, layer=i)
        for i, (prob, expert) in enumerate(zip(prob_LTE, expert_LTK, strict=True))
    ]
    total = 0.0
    for layer in range(layers):
        for expert in range(experts):
            routed = int((expert_LTK[layer] == expert).sum())
            total += routed * float(prob_LTE[layer, :, expert].double().mean())
    expected = experts / (layers * tokens * top_k) * total
    assert float(balance_loss(parts, parts)) == pytest.approx(expected, rel=ROUNDING)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_shares_of_chunks_add_up_to_the_whole_in_value_and_gradient(seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logit_TE = torch.randn(7, 4, generator=generator).requires_grad_()
    prob_TE = logit_TE.softmax(-1)
    expert_TK = prob_TE.detach().topk(2, dim=-1).indices
    whole = stats(prob_TE, expert_TK, logit_TE)
    chunks = [stats(prob_TE[s], expert_TK[s], logit_TE[s]) for s in (slice(0, cut), slice(cut, 7))]
    total = (chunks[0] + chunks[1]).detach()
    for loss in (balance_loss, z_loss):
        at_once, shares = loss([whole], [whole]), sum(loss([chunk], [total]) for chunk in chunks)
        torch.testing.assert_close(shares, at_once, rtol=ROUNDING, atol=0)
        expected, found = (torch.autograd.grad(x, logit_TE, retain_graph=True)[0] for x in (at_once, shares))
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=1e-7)


def test_z_loss_by_hand() -> None:
    """logsumexp of two logits log(1) and log(3) is log(4)."""
    logit_TE = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    parts = [stats(logit_TE.softmax(-1), torch.zeros(2, 1).long(), logit_TE)]
    assert float(z_loss(parts, parts)) == pytest.approx(math.log(4) ** 2)
    more = [*parts, stats(logit_TE.softmax(-1), torch.zeros(2, 1).long(), logit_TE + 1, layer=1)]
    assert float(z_loss(more, more)) == pytest.approx((math.log(4) ** 2 + (math.log(4) + 1) ** 2) / 2)


def test_a_bias_moves_against_the_load_by_one_rate() -> None:
    bias_E = corrected_bias(torch.tensor([0.5, 0.0, -0.5, 0.0]), torch.tensor([0.4, 0.25, 0.1, 0.25]), 0.1)
    assert bias_E.tolist() == pytest.approx([0.4, 0.0, -0.4, 0.0])


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "config", "field"),
    [
        (LOSSES, LossConfig, "kind"),
        (ROUTERS, RouterConfig, "kind"),
        (ACTIVATIONS, FeedForwardSpec, "activation"),
        (SCHEDULES, OptimConfig, "schedule"),
    ],
)
def test_a_config_names_exactly_what_the_table_holds(table: dict, config: type, field: str) -> None:
    assert set(table) == set(get_args(config.model_fields[field].annotation))
