"""Tables of words: what lookup gives is the matrix by the formula, and sizes are as asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moembed.model.group_codes import GroupCodes
from moembed.model.words.codebooks import LearnedProduct, LearnedProductConfig, Product, ProductConfig
from moembed.model.words.compressors import COMPRESSORS
from moembed.model.words.factors import Hashed, LowRank, QuotientRemainder
from moembed.model.words.rows import Int4Rows, Int8Rows, PrunedRows
from moembed.model.words.table import WordTable
from moembed.model.words.tensor_train import TensorTrain
from moembed.types import UserError

ROWS, WIDTH = 300, 24
RATIO = 0.6  # of tables that have no size of their own


def matrix(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def size(method: str) -> dict[str, Any]:
    return {"ratio": None if method.startswith("int") else 2.0 if "pq" in method else RATIO, "rank": None}


def made(method: str, weight_VD: torch.Tensor, **given: Any) -> WordTable:
    kind = COMPRESSORS[method]
    config = kind.sized(*weight_VD.shape, **(size(method) | given))
    return kind.from_matrix(weight_VD, config).requires_grad_(False)


@pytest.mark.parametrize("method", COMPRESSORS)
def test_rows_come_in_the_order_of_the_tokens(method: str) -> None:
    table = made(method, matrix())
    token_T = torch.tensor([5, 299, 5, 0, 17])
    assert torch.allclose(table(token_T), table.weight[token_T], atol=1e-6)
    assert table.weight.shape == (ROWS, WIDTH)
    assert table(token_T[:0]).shape == (0, WIDTH)


@pytest.mark.parametrize("method", COMPRESSORS)
def test_floats_are_parameters_and_codes_are_not(method: str) -> None:
    table = made(method, matrix()).requires_grad_(True)
    table(torch.tensor([3, 4])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in table.parameters())
    assert not any(buffer.is_floating_point() for buffer in table.buffers())
    assert table.to(torch.bfloat16)(torch.tensor([3])).dtype == torch.bfloat16


def test_int8_and_int4_by_hand() -> None:
    weight = matrix(width=100)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert torch.equal(made("int8", weight).weight, (weight / step).round() * step)
    assert torch.equal(made("int4", weight).weight, GroupCodes.of(weight, 4).weight())
    assert made("int8", torch.zeros(3, 8)).weight.abs().sum() == 0
    assert made("int8", weight).num_bytes == ROWS * (100 + 4)
    assert made("int4", weight).num_bytes == ROWS * (64 + 2 * 4)  # two groups of 64, the second not full


def test_pruning_keeps_the_largest_values_and_no_other() -> None:
    weight = matrix()
    weight[7] = 1e-6  # a row without a value that stays
    table = made("pruning", weight)
    assert isinstance(table, PrunedRows)
    kept = len(table.value_K)
    least = weight.abs().flatten().topk(kept).values[-1]
    assert torch.equal(table.weight, torch.where(weight.abs() >= least, weight, 0))
    assert int((table.weight != 0).sum()) == kept
    assert not table.weight[7].any()


def test_low_rank_is_the_cut_singular_value_decomposition() -> None:
    weight = matrix()
    table = made("low_rank", weight, ratio=None, rank=5)
    u, s, v = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(table.weight, (u[:, :5] * s[:5]) @ v[:5], atol=1e-5)


def test_product_codes_are_the_nearest_centroids() -> None:
    weight = matrix()
    table = made("pq", weight)
    assert isinstance(table, Product)
    parts, count, width = table.centroid_SKC.shape
    for part in range(parts):
        piece = weight[:, part * width : (part + 1) * width]
        distance = (piece[:, None] - table.centroid_SKC[part]).square().sum(-1)
        chosen = distance.gather(1, table.code_VS[:, part, None].long())[:, 0]
        assert torch.allclose(chosen, distance.min(1).values, atol=1e-4)
        start = part * width
        rows = table.centroid_SKC[part][table.code_VS[:, part].long()]
        assert torch.equal(table.weight[:, start : start + width], rows)
    assert table.num_bytes == ROWS * parts + 4 * count * WIDTH


def test_hashed_words_share_the_mean_of_their_rows() -> None:
    weight = matrix()
    table = made("hash", weight)
    assert isinstance(table, Hashed)
    bucket = table.bucket(torch.arange(ROWS))
    assert len(torch.unique(bucket)) <= len(table.table_MD) == int(RATIO * ROWS)
    for number in torch.unique(bucket):
        mates = bucket == number
        mean = weight[mates].mean(0)
        assert all(torch.allclose(row, mean, atol=1e-5) for row in table.weight[mates])


def test_quotient_and_remainder_give_back_what_is_such_a_product() -> None:
    generator = torch.Generator().manual_seed(1)
    kind = QuotientRemainder
    config = kind.sized(ROWS, WIDTH, RATIO, None)
    m = config.remainders
    first = torch.rand(m, WIDTH, generator=generator) + 0.5
    second = torch.rand(-(-ROWS // m), WIDTH, generator=generator) + 0.5
    token = torch.arange(ROWS)
    weight = first[token % m] * second[token // m]
    assert torch.allclose(kind.from_matrix(weight, config).weight, weight, atol=1e-4)
    table = made("quotient_remainder", matrix())
    assert isinstance(table, QuotientRemainder)
    pairs = set(zip((token % m).tolist(), (token // m).tolist(), strict=True))
    assert len(pairs) == ROWS


def test_a_tensor_train_of_full_rank_is_the_matrix_and_its_error_falls_with_the_rank() -> None:
    weight = matrix(rows=59, width=12)
    most = TensorTrain.sized(59, 12, None, 1)
    full = min(most.rows[0] * most.columns[0], most.rows[2] * most.columns[2])
    errors = [
        float((made("tensor_train", weight, ratio=None, rank=rank).weight - weight).norm())
        for rank in range(1, full + 1)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5 * float(weight.norm())
    # all seams whole, which needs another rank at each
    v, d = most.rows, most.columns
    whole = most.model_copy(update={"ranks": (v[0] * d[0], v[2] * d[2])})
    assert torch.allclose(TensorTrain.from_matrix(weight, whole).weight, weight, atol=1e-5)


def test_learned_product_codes_are_those_of_the_nearest_and_become_codes() -> None:
    weight = matrix()
    size_ = {"parts": 6, "centroids": 16}
    table = LearnedProduct.from_matrix(weight, LearnedProductConfig(method="dpq", **size_))
    assert isinstance(table, LearnedProduct)
    pq = Product.from_matrix(weight, ProductConfig(method="pq", **size_))
    assert torch.equal(table.weight, pq.weight)
    with torch.no_grad():
        table.row_VD.add_(0.5 * matrix(seed=3))
    fixed = table.fixed()
    assert torch.equal(fixed.weight, table.weight)
    assert not torch.equal(fixed.weight, pq.weight)
    assert fixed.num_bytes < table.num_bytes


def test_learned_product_codes_do_not_depend_on_the_precision_of_training() -> None:
    """The centroids that training chooses are those that are stored as codes."""
    table = made("dpq", matrix(rows=4000))
    token_N = torch.arange(4000)
    with torch.autocast("cpu", torch.bfloat16):
        chosen_ND = table.lookup(token_N)
    assert torch.equal(chosen_ND, table.lookup(token_N))


def test_codes_that_name_nothing_are_found() -> None:
    product = made("pq", matrix(100))
    assert isinstance(product, Product)
    pruned = made("pruning", matrix())
    assert isinstance(pruned, PrunedRows)
    assert product.damage() is None
    assert pruned.damage() is None
    product.code_VS[3, 0] = 100
    pruned.column_K[9] = WIDTH
    assert product.damage() == "code 100 names none of 100 centroids"
    assert pruned.damage() == "its values do not lie in its rows and columns"


def test_the_gradient_of_a_learned_row_passes_its_choice() -> None:
    table = made("dpq", matrix()).requires_grad_(True)
    assert isinstance(table, LearnedProduct)
    aim = matrix(2, seed=4)
    (table(torch.tensor([8, 9])) * aim).sum().backward()
    assert table.row_VD.grad is not None
    assert torch.equal(table.row_VD.grad[[8, 9]], aim)
    assert not table.row_VD.grad[10:].any()


@given(
    st.sampled_from([name for name in COMPRESSORS if not name.startswith("int") and name != "dpq"]),
    st.floats(0.01, 0.99),
    st.integers(2, 400),
    st.sampled_from([4, 12, 30, 64]),
)
def test_a_table_is_within_its_ratio_and_near_it_or_is_refused(
    method: str, ratio: float, rows: int, width: int
) -> None:
    kind = COMPRESSORS[method]
    try:
        config = kind.sized(rows, width, ratio, None)
    except UserError as error:
        assert "ratio of at least" in str(error)  # noqa: PT017
        return
    found = kind(config, rows, width).num_bytes  # type: ignore[call-arg]
    assert found <= ratio * rows * width * 4 + 1e-6
    larger = {"pruning": "kept", "low_rank": "rank", "hash": "buckets", "quotient_remainder": "remainders"}
    if name := larger.get(method):
        more = config.model_copy(update={name: getattr(config, name) + 1})
        try:
            next_bytes = kind(more, rows, width).num_bytes  # type: ignore[call-arg]
        except UserError:
            return  # there is no larger one
        assert next_bytes > ratio * rows * width * 4 or method == "quotient_remainder"


@pytest.mark.parametrize(
    ("method", "given_", "reason"),
    [
        ("int8", {"ratio": 0.5}, "size of its own"),
        ("pq", {"rank": 3}, "has no rank"),
        ("pq", {}, "needs a ratio"),
        ("low_rank", {}, "or a rank"),
        ("low_rank", {"rank": 2, "ratio": 0.5}, "not both"),
        ("low_rank", {"rank": 900}, "more than the"),
        ("tensor_train", {"rank": 2, "ratio": 0.5}, "one of them"),
        ("tensor_train", {"rank": 900}, "more than the"),
    ],
)
def test_sizes_that_a_method_does_not_have(method: str, given_: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        COMPRESSORS[method].sized(ROWS, WIDTH, given_.get("ratio"), given_.get("rank"))


def test_the_names_are_those_of_the_classes() -> None:
    classes = (Int8Rows, Int4Rows, PrunedRows, LowRank, Product, Hashed, QuotientRemainder, TensorTrain)
    assert set(COMPRESSORS.values()) == {*classes, LearnedProduct}
