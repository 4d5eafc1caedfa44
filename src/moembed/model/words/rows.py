"""Tables that keep every row: in few bits, or without its small values."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.model.group_codes import GROUP, GroupCodes
from moembed.model.words.table import FLOAT, WordTable, budget, floats, need_ratio, too_small
from moembed.types import UserError

_TINY = 1e-12  # least step of a row of zeros
_ENTRY = 6  # bytes of a value that is kept: a float32, and its column in 16 bits
_OFFSET = 8  # bytes for where a row begins


class Int8Config(Strict):
    method: Literal["int8"]


class Int4Config(Strict):
    method: Literal["int4"]


class PrunedConfig(Strict):
    """``kept``: values of the whole matrix that are not zero."""

    method: Literal["pruning"]
    kept: int = Field(ge=1)


class Int8Rows(WordTable):
    """``w ≈ q · s``: whole numbers of 8 bits, and a step ``s = max |w| / 127`` for every row."""

    method: ClassVar[str] = "int8"

    def __init__(self, config: Int8Config, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.scale_V1 = floats(rows, 1)
        self.register_buffer("code_VD", torch.empty(rows, width, dtype=torch.int8))

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> Int8Config:
        _require_no_size("int8", ratio, rank)
        return Int8Config(method="int8")

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: Int8Config, seed: int = 0) -> WordTable:
        """Rounded to the nearest."""
        made = cls(config, *weight_VD.shape)
        scale_V1 = (weight_VD.float().abs().amax(1, keepdim=True) / 127).clamp_(min=_TINY)
        made.scale_V1.data.copy_(scale_V1)
        made.code_VD.copy_((weight_VD.float() / scale_V1).round_())
        return made

    code_VD: Tensor

    def lookup(self, token_N: Tensor) -> Tensor:
        return self.code_VD[token_N] * self.scale_V1[token_N]


class Int4Rows(WordTable):
    """``w ≈ q · s``: whole numbers from −7 to 7, two of them a byte, and a step for every 64 of a row.

    The codes and steps are those of `moembed.model.group_codes`, where the steps have 16 bits, too.
    """

    method: ClassVar[str] = "int4"

    def __init__(self, config: Int4Config, rows: int, width: int) -> None:
        super().__init__(rows, width)
        groups = -(-width // GROUP)
        self.scale_VG = floats(rows, groups)
        self.register_buffer("code_VH", torch.empty(rows, groups * GROUP // 2, dtype=torch.uint8))

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> Int4Config:
        _require_no_size("int4", ratio, rank)
        return Int4Config(method="int4")

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: Int4Config, seed: int = 0) -> WordTable:
        """Rounded to the nearest."""
        made = cls(config, *weight_VD.shape)
        codes = GroupCodes.of(weight_VD, 4)
        made.scale_VG.data.copy_(codes.scale.view(made.scale_VG.shape))
        made.code_VH.copy_(codes.code.view(made.code_VH.shape))
        return made

    code_VH: Tensor

    def lookup(self, token_N: Tensor) -> Tensor:
        code_NH, scale_NG = self.code_VH[token_N], self.scale_VG[token_N]
        whole_NP = torch.stack([code_NH & 15, code_NH >> 4], -1).flatten(1).to(scale_NG.dtype) - 8
        value_NGC = whole_NP.view(*scale_NG.shape, GROUP) * scale_NG[..., None]
        return value_NGC.flatten(1)[:, : self.width]


class PrunedRows(WordTable):
    """The largest values of the whole matrix by magnitude, all others zero: a sparse matrix, row by row.

    A value that is kept takes 6 bytes: below a ratio of 1.5 something is lost. Values learn, and the places
    of zeros stay.
    """

    method: ClassVar[str] = "pruning"

    def __init__(self, config: PrunedConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        if config.kept > rows * width:
            raise UserError(f"pruning keeps {config.kept} values of {rows * width}: ask for fewer")
        if width > np.iinfo(np.int16).max:
            raise UserError(f"pruning knows rows of at most {np.iinfo(np.int16).max} values, not {width}")
        self.value_K = floats(config.kept)
        self.register_buffer("column_K", torch.empty(config.kept, dtype=torch.int16))
        self.register_buffer("start_W", torch.empty(rows + 1, dtype=torch.int64))  # W = V + 1

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> PrunedConfig:
        ratio = need_ratio("pruning", ratio, rank)
        kept = int((budget(rows, width, ratio) - _OFFSET * (rows + 1)) // _ENTRY)
        if kept < 1:
            raise too_small("pruning", ratio, (_OFFSET * (rows + 1) + _ENTRY) / (rows * width * FLOAT))
        return PrunedConfig(method="pruning", kept=min(kept, rows * width))

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: PrunedConfig, seed: int = 0) -> WordTable:
        """The nearest matrix with so many values."""
        made = cls(config, *weight_VD.shape)
        flat = weight_VD.float().flatten()
        place = np.argpartition(-flat.abs().numpy(), config.kept - 1)[: config.kept]
        place_K = torch.from_numpy(np.sort(place))
        made.value_K.data.copy_(flat[place_K])
        made.column_K.copy_(place_K % made.width)
        counts_V = (place_K // made.width).bincount(minlength=made.rows)
        made.start_W.copy_(torch.cat([counts_V.new_zeros(1), counts_V.cumsum(0)]))
        return made

    column_K: Tensor
    start_W: Tensor

    def damage(self) -> str | None:
        inside = bool(((self.column_K >= 0) & (self.column_K < self.width)).all())
        ends = self.start_W[[0, -1]].tolist() == [0, len(self.value_K)]
        in_order = bool((self.start_W.diff() >= 0).all())
        return None if inside and ends and in_order else "its values do not lie in its rows and columns"

    def lookup(self, token_N: Tensor) -> Tensor:
        start_N = self.start_W[token_N]
        count_N = self.start_W[token_N + 1] - start_N
        before_N = count_N.cumsum(0) - count_N
        entries = torch.arange(int(count_N.sum()), device=token_N.device)
        index_P = entries + (start_N - before_N).repeat_interleave(count_N)
        row_P = torch.arange(len(token_N), device=token_N.device).repeat_interleave(count_N)
        rows_ND = self.value_K.new_zeros(len(token_N), self.width)
        return rows_ND.index_put((row_P, self.column_K[index_P].long()), self.value_K[index_P])


def _require_no_size(method: str, ratio: float | None, rank: int | None) -> None:
    if ratio is not None or rank is not None:
        raise UserError(f"{method} has a size of its own: leave ratio and rank out")
