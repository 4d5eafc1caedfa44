"""Self-guided masks, weights and further terms against slow loops, a named library and plain InfoNCE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.losses import contrastive
from moembed.losses.contrastive import SOFTMAX_LOSSES, info_nce, symmetric_info_nce
from moembed.losses.mixing import Mixing, two_of
from moembed.losses.negatives import Duplicates, held_nearer
from moembed.losses.shaped import Shaping, Tally
from moembed.losses.weights import WEIGHTS, Candidates, effective_number, focal, hardness, margin_driven
from moembed.training.contrastive.shaping import OPTIONS, ShapingConfig, WeightConfig
from slow_losses import SETTINGS, Batch, slow_info_nce

OWNER = [0, 1, 2, 3, 0, 0, 2]  # four pairs, two hard negatives of the first and one of the third
SEED = 11


def unit(rows: int, seed: int, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def shaping(**settings: Any) -> Shaping:
    found = ShapingConfig.model_validate(settings).shaping(torch.tensor(OWNER), SEED)
    assert found is not None
    return found


SHAPED = SETTINGS.filter(lambda settings: ShapingConfig.model_validate(settings).shapes)


@given(st.integers(0, 10**6), SHAPED, st.sampled_from([0.1, 0.7]), st.sampled_from([2**22, 25, 1]))
def test_value_gradient_and_count_equal_the_slow_loop(
    seed: int, settings: dict[str, Any], temperature: float, block: int
) -> None:
    """Every mask with every weight, in one block of queries and in several."""
    vectors = [unit(4, seed).double().requires_grad_(), unit(7, seed + 1).double().requires_grad_()]
    known = Duplicates.of(torch.tensor([5, 6, 5, 7]), torch.tensor([1, 2, 3, 4, 2, 4, 2]), torch.arange(4))
    known_QN = torch.zeros(4, 7, dtype=torch.bool)
    known_QN[known.true_entries(torch.arange(4))] = True
    batch = Batch(*vectors, known_QN, OWNER, SEED)
    expected, number = slow_info_nce(batch, temperature, settings)
    tally = Tally()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "BLOCK", block)
        found = info_nce(
            *vectors,
            torch.arange(4),
            known,
            temperature=temperature,
            shaping=shaping(**settings),
            tally=tally,
        )
        gradients = torch.autograd.grad(found, vectors, allow_unused=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(expected, vectors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert tally.queries == 4
    assert tally.effective / 4 == pytest.approx(number, rel=1e-4)


OFF: list[dict[str, Any]] = [
    {"weight": {"kind": "focal", "gamma": 0}},
    {"weight": {"kind": "hardness", "alpha": 0}},
    {"weight": {"kind": "margin", "alpha": 0}},
    {"mask": {"margin": 2}},
]


@pytest.mark.parametrize("kind", sorted(SOFTMAX_LOSSES))
@pytest.mark.parametrize("settings", OFF, ids=str)
def test_off_is_plain_bit_for_bit(kind: str, settings: dict[str, Any]) -> None:
    """Value, gradients of the vectors and of a learned temperature, with a mask and a query left out."""
    vectors = [unit(4, 1).requires_grad_(), unit(7, 2).requires_grad_()]
    temperature = torch.tensor(0.05, requires_grad=True)
    mask = Duplicates.of(torch.tensor([5, 6, 5, 7]), torch.tensor([1, 2, 3, 4, 2, 4, 2]), torch.arange(4))
    results = []
    for some in (None, shaping(**settings)):
        loss = SOFTMAX_LOSSES[kind](
            *vectors,
            torch.arange(4),
            mask,
            torch.tensor([1.0, 0, 1, 1]),
            temperature=temperature,
            shaping=some,
        )
        results.append([loss, *torch.autograd.grad(loss, [*vectors, temperature])])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert ShapingConfig().shaping(torch.tensor(OWNER)) is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"weight": {"kind": "hardness", "alpha": 5}}, {"hardness_mode": "all_negatives"}),
        ({"weight": {"kind": "hardness", "alpha": 5, "on": "hard"}}, {"hardness_mode": "hard_negatives"}),
        (
            {"weight": {"kind": "hardness", "alpha": 5, "on": "in_batch"}},
            {"hardness_mode": "in_batch_negatives"},
        ),
        ({"directions": ["query_to_query"]}, {"directions": ("query_to_doc", "query_to_query")}),
        ({"directions": ["document_to_document"]}, {"directions": ("query_to_doc", "doc_to_doc")}),
    ],
    ids=str,
)  # fmt: skip
def test_equal_to_sentence_transformers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    losses = pytest.importorskip("sentence_transformers.losses")
    strength = {"hardness_strength": 5.0} if "hardness_mode" in theirs else {}
    reference = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0, **theirs, **strength)
    query, document, hard = (unit(5, seed).requires_grad_() for seed in (1, 2, 3))  # the library normalises
    columns = [query, document] + ([hard] if "directions" not in ours else [])
    expected = reference.compute_loss_from_embeddings(columns, torch.empty(0))
    config = ShapingConfig.model_validate(ours)
    owner_N = torch.arange(5).repeat(len(columns) - 1)
    vectors = F.normalize(query, dim=-1), F.normalize(torch.cat(columns[1:]), dim=-1)
    options = {"temperature": 0.05, "shaping": config.shaping(owner_N)}
    found = info_nce(*vectors, torch.arange(5), **options)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, columns), torch.autograd.grad(expected, columns), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_own_negatives_alone_are_batches_of_one_query() -> None:
    """Without in-batch negatives the loss is the mean over batches that hold one query each."""
    losses = pytest.importorskip("sentence_transformers.losses")
    reference = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    columns = [unit(5, seed).requires_grad_() for seed in (1, 2, 3, 4)]  # the library normalises
    rows = [[column[q : q + 1] for column in columns] for q in range(5)]
    expected = torch.stack(
        [reference.compute_loss_from_embeddings(row, torch.empty(0)) for row in rows]
    ).mean()
    some = ShapingConfig(in_batch=False).shaping(torch.arange(5).repeat(3))
    vectors = F.normalize(columns[0], dim=-1), F.normalize(torch.cat(columns[1:]), dim=-1)
    found = info_nce(*vectors, torch.arange(5), shaping=some, temperature=0.05)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, columns), torch.autograd.grad(expected, columns), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- masks ---------------------------------------------------------------------------------------


def test_a_planted_duplicate_gets_no_gradient() -> None:
    """A hard negative that is nearer than the positive by more than the margin."""
    query_QM = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).requires_grad_()
    document_NM = F.normalize(
        torch.tensor([[1.0, 0, 0.7], [0, 1, 0.2], [1, 0, 0.1]]), dim=-1
    ).requires_grad_()
    first = torch.tensor([1.0, 0.0])
    owner_N = torch.tensor([0, 1, 0])

    def gradient(settings: dict[str, Any]) -> Tensor:
        some = ShapingConfig.model_validate(settings).shaping(owner_N)
        loss = info_nce(query_QM, document_NM, torch.arange(2), None, first, shaping=some, temperature=0.5)
        return torch.autograd.grad(loss, document_NM)[0]

    masked, wider = gradient({"mask": {"margin": 0.1}}), gradient({"mask": {"margin": 0.3}})
    assert masked[2].eq(0).all()
    assert masked[1].ne(0).any()
    assert wider[2].ne(0).any()  # 0.18 nearer, which a margin of 0.3 allows
    assert torch.equal(wider, gradient({"mask": {"margin": 2}}))


def test_held_nearer_by_hand() -> None:
    cosine_QC = torch.tensor([[0.5, 0.55, 0.65, 0.2], [0.9, 0.1, 0.3, 0.15]])
    assert held_nearer(cosine_QC, torch.tensor([0, 1]), 0.1).tolist() == [
        [False, False, True, False],
        [True, False, True, False],
    ]
    assert not held_nearer(cosine_QC, torch.tensor([0, 1]), -1.0)[[0, 1], [0, 1]].any()  # never the positive


# ---- weights -------------------------------------------------------------------------------------


def candidates(cosine: list[float], temperature: float = 0.1, own: list[bool] | None = None) -> Candidates:
    """One query, whose first candidate is its positive."""
    cosine_QC = torch.tensor([cosine])
    negative_QC = torch.ones_like(cosine_QC, dtype=torch.bool)
    negative_QC[0, 0] = False
    own_QC = torch.tensor([own or [False] * len(cosine)])
    return Candidates(cosine_QC, cosine_QC / temperature, torch.tensor([0]), negative_QC, own_QC)


def test_focal_by_hand() -> None:
    """p = 0.99 at gamma 0.5 is a weight of 0.1."""
    seen = candidates([0.1 * math.log(99), 0.0])
    assert float(focal(seen, 0.5)) == pytest.approx(0.1, rel=1e-4)
    assert float(focal(seen, 0.0)) == 1.0
    certain = candidates([1.0, -1.0], temperature=0.01)
    assert float(focal(certain, 0.5)) == pytest.approx(math.exp(-100), abs=1e-30)
    assert math.isfinite(float(focal(certain, 0.5)))


def test_the_hardest_negative_gains_gradient_with_alpha() -> None:
    query_QM = torch.tensor([[1.0, 0.0]])
    document_NM = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]]).requires_grad_()
    shares = []
    for alpha in (0.0, 2.0, 9.0):
        some = ShapingConfig.model_validate({"weight": {"kind": "hardness", "alpha": alpha}}).shaping(None)
        loss = info_nce(query_QM, document_NM, torch.tensor([0]), temperature=0.5, shaping=some)
        shares.append(float(torch.autograd.grad(loss, document_NM)[0][1].norm()))
    assert shares == sorted(shares)
    assert shares[-1] > 2 * shares[0]
    assert hardness(candidates([0.5, 0.4]), 3.0).tolist() == [[0.0, pytest.approx(1.2)]]


def test_margin_driven_by_hand() -> None:
    tie, behind = candidates([0.5, 0.5, 0.1]), candidates([0.5, 0.9, 0.4], own=[False, False, True])
    assert float(margin_driven(tie)) == pytest.approx(1.0)
    assert float(margin_driven(behind, width=0.1)) == pytest.approx(
        2 / (1 + math.e)
    )  # its own, not the nearest
    assert float(margin_driven(behind, alpha=0.25, width=0.1)) == pytest.approx(0.75 + 0.5 / (1 + math.e))


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_effective_numbers(log_weights: list[float]) -> None:
    log_weight_QC = torch.tensor([log_weights])
    every = torch.ones_like(log_weight_QC, dtype=torch.bool)
    weights = [math.exp(w) for w in log_weights]
    expected = sum(weights) ** 2 / sum(w * w for w in weights)
    assert float(effective_number(log_weight_QC, every)) == pytest.approx(expected, rel=1e-4)
    equal = effective_number(torch.full_like(log_weight_QC, 0.7), every)
    assert float(equal) == pytest.approx(len(log_weights), rel=1e-4)
    assert float(effective_number(log_weight_QC, ~every)) == 0.0


def test_the_plain_losses_count_too() -> None:
    known = Duplicates.of(torch.tensor([5, 6, 5, 7]), torch.tensor([1, 2, 3, 4, 2, 4, 2]), torch.arange(4))
    losses: list[Callable[..., Tensor]] = [info_nce, symmetric_info_nce]
    for loss in losses:
        tally = Tally()
        loss(unit(4, 1), unit(7, 2), torch.arange(4), known, tally=tally)
        # of six: the document of the same query twice, one's own as a hard negative: 2 + 2 + ...
        masked = len(known.true_entries(torch.arange(4))[0]) - 4
        assert (tally.queries, tally.effective, tally.weight) == (4, 4 * 6 - masked, 4)
        assert masked > 2


# ---- mixing --------------------------------------------------------------------------------------


def test_chance_is_beta_and_two_different_parents() -> None:
    """Beta(2, 2) has mean 1/2 and variance 1/20; every ordered pair of parents comes up about as often."""
    chance_QK5 = Mixing(columns=4000, seed=1).chance(2)
    share_QK = chance_QK5[..., :3].median(-1).values
    assert float(share_QK.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share_QK.var()) == pytest.approx(0.05, abs=0.003)
    first, second = two_of(chance_QK5[:1, :, 3:], torch.tensor([3]))
    counts = torch.bincount((first * 3 + second)[0], minlength=9).reshape(3, 3)
    assert counts.diagonal().eq(0).all()
    assert int(counts[~torch.eye(3, dtype=torch.bool)].min()) > 500
    alone = two_of(chance_QK5[:1, :5, 3:], torch.tensor([1]))
    assert all(part.eq(0).all() for part in alone)


def test_parents_learn_through_a_mixed_candidate_unless_they_are_detached() -> None:
    query_QM, document_NM = unit(1, 1), unit(3, 2).requires_grad_()
    owner_N, gradients = torch.tensor([0, 0, 0]), []
    for settings in ({}, {"mixing": {"stop_gradient": True}}, {"mixing": {}}):
        some = ShapingConfig.model_validate(settings).shaping(owner_N, 3)
        loss = info_nce(query_QM, document_NM, torch.tensor([0]), temperature=1.0, shaping=some)
        gradients.append(torch.autograd.grad(loss, document_NM)[0][1:])
    plain, stopped, through = gradients
    along = query_QM[0] / query_QM[0].norm()
    for part in (plain, stopped):  # only the score of the parent itself, whose gradient is along the query
        assert torch.allclose(part - part @ along[:, None] * along, torch.zeros(()), atol=1e-6)
    assert not torch.allclose(through - through @ along[:, None] * along, torch.zeros(()), atol=1e-3)


# ---- names and wrong settings --------------------------------------------------------------------


def test_kinds_and_functions_are_the_same_set() -> None:
    assert set(WEIGHTS) == set(OPTIONS) == {kind for kind in WEIGHTS if WeightConfig(kind=kind)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": {"kind": "focal", "alpha": 2}}, "alpha is no option of the weight focal; it has gamma"),
        ({"weight": {"kind": "margin", "alpha": 2}}, "alpha of the weight margin is a share"),
        ({"mixing": {"kind": "list", "columns": 2}}, "a list makes one candidate per query"),
        ({"directions": ["query_to_query", "query_to_query"]}, "name each direction once"),
        ({"directions": ["query_to_query"], "in_batch": False}, "directions are terms of other queries"),
        ({"weight": {"kind": "hardness", "on": "in_batch"}, "in_batch": False}, "there is nothing to weigh"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ShapingConfig.model_validate(settings)
