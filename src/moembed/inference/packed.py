"""Matrices in the layout that this machine's dot products read, and rows cut into tiles that fit its caches.

A kernel is built for every new number of rows, which costs as much as running it. Rows are therefore cut into
tiles of a few sizes, small enough that what lies between two matrices of a block stays in the cache.
`moembed.inference.engine` puts these into an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.machine import has_amx
from moembed.moe.ffn import ACTIVATIONS, Activation

TILE = 1024 if has_amx() else 512  # most rows computed at a time: with AMX calls cost more than missed caches
_TINY = 1e-12  # a row of zeros has no scale
_HALF = torch.tensor(128.5)  # casting to integers cuts, adding a half makes it round
_NO_POST: tuple[str, list[float], str] = ("none", [], "")  # nothing fused behind the product
_CACHED = 1 << 17  # values rounded at a time
_STEP = 32  # tiles are multiples of it, but for those below half of it: a query pays for its own rows
_FUSED: dict[Activation, tuple[str, str]] = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


class FloatMatrix:
    """A float32 or bfloat16 matrix in oneDNN's layout, bias and activation fused into the product."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: Activation | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), TILE)
        self.bias_O = bias_O
        self.after = _FUSED[activation] if activation else ("none", "")

    @staticmethod
    def given(hidden_ND: Tensor) -> Tensor:
        """What the product reads of these rows."""
        return hidden_ND

    def __call__(self, given_ND: Tensor) -> Tensor:
        post, algorithm = self.after
        return torch.ops.mkldnn._linear_pointwise(given_ND, self.packed, self.bias_O, post, [], algorithm)


class Rounded(NamedTuple):
    """Rows of 8 bits: ``128 + round(127 * x_ni / m_n)``, and ``m_n``, the largest ``|x_ni|`` of each row."""

    value_ND: Tensor
    largest_N1: Tensor

    @classmethod
    def of(cls, hidden_ND: Tensor) -> Rounded:
        largest_N1 = hidden_ND.abs().amax(1, keepdim=True).clamp_(min=_TINY)
        # a product with 1 / m: dividing all values would take five times as long
        value_ND = torch.addcmul(_HALF, hidden_ND, largest_N1.reciprocal(), value=127).to(torch.uint8)
        return cls(value_ND, largest_N1)

    def rows(self, index_N: Tensor) -> Rounded:
        return Rounded(self.value_ND[index_N], self.largest_N1[index_N])


class Int8Matrix:
    """Weights of 8 bits, one scale per output channel; inputs of 8 bits, one scale per row.

    ``y_no = m_n * w_o * sum_i q_ni * W_oi + b_o`` with ``q_ni = round(127 * x_ni / m_n)``, m_n the largest
    ``|x_ni|``. The kernels want unsigned inputs, so 128 is added to q and taken off again by oneDNN. Without
    VNNI two products are summed in 16 bits, where full-range weights would overflow: there they use 7 bits.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: Activation | None) -> None:
        scale_O1 = _scale(weight_OI, 127 if torch.cpu._is_vnni_supported() else 63)
        self.packed = torch.ops.onednn.qlinear_prepack(_round(weight_OI, scale_O1), None)
        self.scale_O, self.zero_O = scale_O1[:, 0] / 127, torch.zeros(len(weight_OI), dtype=torch.int32)
        self.bias_O = torch.zeros(len(weight_OI)) if bias_O is None else bias_O.float()
        self.activation = ACTIVATIONS[activation] if activation else None

    given = staticmethod(Rounded.of)

    def __call__(self, given: Rounded) -> Tensor:
        return self.scaled(self.product(given.value_ND), given.largest_N1, self.bias_O)

    def product(self, value_ND: Tensor) -> Tensor:
        """``w_o * sum_i q_ni * W_oi``: of whole numbers, so the same to the bit for any number of rows."""
        return torch.ops.onednn.qlinear_pointwise(
            value_ND,
            1.0,
            128,
            self.packed,
            self.scale_O,
            self.zero_O,
            None,
            1.0,
            0,
            torch.float32,
            *_NO_POST,
        )

    def scaled(self, product_NO: Tensor, largest_N1: Tensor, bias: Tensor) -> Tensor:
        """From the product to the output; ``bias`` is one row for all or one for each."""
        output_NO = torch.addcmul(bias, product_NO, largest_N1)
        return output_NO if self.activation is None else self.activation(output_NO)


class Int8Table:
    """An embedding table of 8-bit rows, each with its scale."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.scale_V1 = _scale(weight_VD)
        self.rounded_VD = _round(weight_VD, self.scale_V1)

    def __call__(self, token_T: Tensor) -> Tensor:
        return self.rounded_VD[token_T] * self.scale_V1[token_T]


def _scale(weight_OI: Tensor, largest: int = 127) -> Tensor:
    """Of each row, the step of a symmetric grid of ``2 * largest + 1`` points; ``(O, 1)`` float32."""
    bound_O1 = torch.maximum(weight_OI.amax(1, keepdim=True), weight_OI.amin(1, keepdim=True).neg_())
    return bound_O1.float().clamp_(min=_TINY).div_(largest)


def _round(weight_OI: Tensor, scale_O1: Tensor) -> Tensor:
    """In parts that stay in the cache: fresh memory for whole matrices would cost more than the rounding."""
    rounded_OI = torch.empty_like(weight_OI, dtype=torch.int8, memory_format=torch.contiguous_format)
    rows = max(1, _CACHED // weight_OI.shape[1])
    parts = (torch.split(tensor, rows) for tensor in (rounded_OI, weight_OI, scale_O1))
    for rounded, weight, scale in zip(*parts, strict=True):
        rounded.copy_(torch.div(weight, scale).round_())
    return rounded_OI


Matrix = FloatMatrix | Int8Matrix


class Tiled:
    """A matrix, or the two or three of a feed-forward block, applied to rows tile by tile.

    ``down(act(up(x)))`` or gated ``down(act(gate(x)) * up(x))``; without ``down`` it is ``up`` alone. The
    activation sits in the matrix it follows.
    """

    def __init__(self, up: Matrix, gate: Matrix | None, down: Matrix | None) -> None:
        self.up, self.gate, self.down = up, gate, down

    def matrices(self) -> list[Matrix]:
        return [matrix for matrix in (self.up, self.gate, self.down) if matrix is not None]

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        computed = [self.tile(hidden_ND[rows], padded) for rows, padded in tiles(len(hidden_ND))]
        return computed[0] if len(computed) == 1 else torch.cat(computed)

    def tile(self, hidden_ND: Tensor, padded: int) -> Tensor:
        """One tile, computed on ``padded`` rows."""
        size = len(hidden_ND)
        if padded > size:
            hidden_ND = F.pad(hidden_ND, (0, 0, 0, padded - size))
        given: Any = self.up.given(hidden_ND)
        output_NO = self.up(given)
        if self.gate is not None:
            output_NO = self.gate(given).mul_(output_NO)
        if self.down is not None:
            output_NO = self.down(self.down.given(output_NO))  # type: ignore[arg-type]
        return output_NO[:size] if padded > size else output_NO


class TiledExperts:
    """Experts, each on its rows; all have the same form.

    Few rows (a query) take a way of their own in 8 bits, for then calls cost more than arithmetic: they are
    rounded and scaled once for all experts, and only the products are made expert by expert. The values are
    the same to the bit.
    """

    def __init__(self, experts: Sequence[Tiled]) -> None:
        self.experts = experts
        self.up, self.gate, self.down = (
            [matrix for matrix in matrices if isinstance(matrix, Int8Matrix)]
            for matrices in zip(*((expert.up, expert.gate, expert.down) for expert in experts), strict=True)
        )
        self.bias = [
            torch.stack([x.bias_O for x in part]) for part in (self.up, self.gate, self.down) if part
        ]

    def __call__(self, hidden_TD: Tensor, token_P: Tensor, expert_P: Tensor, counts: list[int]) -> Tensor:
        """The outputs ``(P, D)`` of pairs that stand in the order of their experts, ``counts`` of each."""
        if len(token_P) > TILE:
            return self._by_tiles(hidden_TD, token_P, counts)
        if self.up:
            return self._rounded_once(hidden_TD, token_P, expert_P, counts)
        parts = zip(self.experts, torch.split(hidden_TD[token_P], counts), strict=True)
        return torch.cat([expert.tile(part, _padded(len(part))) for expert, part in parts if len(part)])

    def _by_tiles(self, hidden_TD: Tensor, token_P: Tensor, counts: list[int]) -> Tensor:
        output_PD = hidden_TD.new_empty(len(token_P), hidden_TD.shape[1])
        slices = zip(self.experts, torch.split(token_P, counts), torch.split(output_PD, counts), strict=True)
        for expert, token_N, output_ND in slices:
            for rows, padded in tiles(len(token_N)):
                output_ND[rows] = expert.tile(hidden_TD[token_N[rows]], padded)
        return output_PD

    def _rounded_once(
        self, hidden_TD: Tensor, token_P: Tensor, expert_P: Tensor, counts: list[int]
    ) -> Tensor:
        def multiplied(matrices: list[Int8Matrix], bias_EO: Tensor, given: Rounded) -> Tensor:
            parts = zip(matrices, torch.split(given.value_ND, counts), strict=True)
            product_PO = torch.cat([_product(matrix, part) for matrix, part in parts if len(part)])
            return matrices[0].scaled(product_PO, given.largest_N1, bias_EO[expert_P])

        given = Rounded.of(hidden_TD).rows(token_P)
        inner_PF = multiplied(self.up, self.bias[0], given)
        if self.gate:
            inner_PF = multiplied(self.gate, self.bias[1], given).mul_(inner_PF)
        return multiplied(self.down, self.bias[-1], Rounded.of(inner_PF))


def _product(matrix: Int8Matrix, value_ND: Tensor) -> Tensor:
    size = len(value_ND)
    padded = _padded(size)
    if padded == size:
        return matrix.product(value_ND)
    return matrix.product(F.pad(value_ND, (0, 0, 0, padded - size)))[:size]


def tiles(rows: int) -> Iterator[tuple[slice, int]]:
    """The rows of each tile and how many it is computed on: few different sizes, little padding."""
    count = -(-rows // TILE)
    even = _padded(-(-rows // count)) if count else 1
    for start in range(0, rows, even):
        size = min(even, rows - start)
        yield slice(start, start + size), _padded(size)


def _padded(rows: int) -> int:
    if rows <= _STEP // 2:
        return rows
    step = max(_STEP, 1 << (rows - 1).bit_length() >> 4)  # above 512 rows eight sizes per octave
    return -(-rows // step) * step
