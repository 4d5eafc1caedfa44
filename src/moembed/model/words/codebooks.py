"""Tables whose rows are put together from a few vectors: product quantisation, found or learned."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.model.words.table import FLOAT, WordTable, budget, floats, need_ratio, too_small
from moembed.types import UserError

CENTROIDS = 256  # of every part: as many as a byte can name
_BLOCK = 512  # rows whose distances are there at a time
_ROUNDS, _SAMPLE = 10, 64  # of k-means, and how many points it sees of each centroid


class ProductConfig(Strict):
    """``parts``: pieces of a row, each the nearest of ``centroids`` vectors of its own."""

    method: Literal["pq"]
    parts: int = Field(ge=1)
    centroids: int = Field(ge=2, le=CENTROIDS)


class LearnedProductConfig(Strict):
    """As ``pq``, with the rows that choose their centroids."""

    method: Literal["dpq"]
    parts: int = Field(ge=1)
    centroids: int = Field(ge=2, le=CENTROIDS)


class Product(WordTable):
    """Product quantisation: ``e_v = [c_1[q_v1], …, c_S[q_vS]]``, a byte for every part of a row.

    Codebooks learn, codes stay. Source: Jégou, Douze and Schmid, *Product Quantization for Nearest Neighbor
    Search* (2011); k-means is that of FAISS.
    """

    method: ClassVar[str] = "pq"

    def __init__(self, config: ProductConfig | LearnedProductConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.centroid_SKC = floats(*_codebook(config, width))
        self.register_buffer("code_VS", torch.empty(rows, config.parts, dtype=torch.uint8))

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> ProductConfig:
        parts, centroids = product_size("pq", rows, width, need_ratio("pq", ratio, rank))
        return ProductConfig(method="pq", parts=parts, centroids=centroids)

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: ProductConfig, seed: int = 0) -> WordTable:
        """By k-means, part by part."""
        made = cls(config, *weight_VD.shape)
        for part, piece_VC in enumerate(weight_VD.float().chunk(config.parts, 1)):
            centroid_KC, code_V = _k_means(piece_VC.contiguous(), config.centroids, seed)
            made.centroid_SKC.data[part], made.code_VS[:, part] = centroid_KC, code_V
        return made

    code_VS: Tensor

    def damage(self) -> str | None:
        most, there = int(self.code_VS.max()), self.centroid_SKC.shape[1]
        return f"code {most} names none of {there} centroids" if most >= there else None

    def lookup(self, token_N: Tensor) -> Tensor:
        part_S = torch.arange(len(self.centroid_SKC), device=token_N.device)
        return self.centroid_SKC[part_S, self.code_VS[token_N].long()].flatten(1)


class LearnedProduct(WordTable):
    """Differentiable product quantisation, while it is trained: each row chooses its centroids by nearness.

    ``e = c[argmin_k |q − c_k|²]`` in every part, q the row; the gradient of e reaches the centroids that were
    chosen and, straight through the choice, the row. It is as large as the matrix and more: what was trained
    is written as ``pq``, with the same values, by `moembed compress-vocabulary`.

    Source: Chen, Li and Sun, *Differentiable Product Quantization* (arXiv 1908.09756), the form by vector
    quantisation; its further loss, which draws rows and centroids to each other, is left out here, for both
    follow the same gradient.
    """

    method: ClassVar[str] = "dpq"
    by_training: ClassVar[bool] = True

    def __init__(self, config: LearnedProductConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.config = config
        self.centroid_SKC = floats(*_codebook(config, width))
        self.row_VD = floats(rows, width)

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> LearnedProductConfig:
        parts, centroids = product_size("dpq", rows, width, need_ratio("dpq", ratio, rank))
        return LearnedProductConfig(method="dpq", parts=parts, centroids=centroids)

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: LearnedProductConfig, seed: int = 0) -> WordTable:
        """The rows themselves, and centroids by k-means."""
        made = cls(config, *weight_VD.shape)
        given = config.model_dump() | {"method": "pq"}
        fixed = Product.from_matrix(weight_VD, ProductConfig.model_validate(given), seed)
        made.load_state_dict({"centroid_SKC": fixed.state_dict()["centroid_SKC"]}, strict=False)
        made.row_VD.data.copy_(weight_VD)
        return made

    def lookup(self, token_N: Tensor) -> Tensor:
        row_ND = self.row_VD[token_N]
        part_S = torch.arange(len(self.centroid_SKC), device=token_N.device)
        chosen_ND = self.centroid_SKC[part_S, self._code(row_ND)].flatten(1)
        return chosen_ND + (row_ND - row_ND.detach())  # adds zeros, and the gradient of the row

    @torch.no_grad()
    def _code(self, row_ND: Tensor) -> Tensor:
        """Numbers ``(N, S)`` of the nearest centroids; some rows at a time, for all distances take memory."""
        return torch.cat([self._nearest(block_ND) for block_ND in torch.split(row_ND, _BLOCK)])

    def _nearest(self, row_ND: Tensor) -> Tensor:
        parts, _, size = self.centroid_SKC.shape
        row_SNC = row_ND.detach().view(-1, parts, size).transpose(0, 1).float()
        centroid_SKC = self.centroid_SKC.float()
        # in float32 whatever the precision of training, so that the choice is that of `fixed`
        with torch.autocast(row_ND.device.type, enabled=False):
            # |q - c|² without |q|², which no choice depends on
            distance_SNK = centroid_SKC.square().sum(-1)[:, None] - 2 * row_SNC @ centroid_SKC.mT
        return distance_SNK.argmin(-1).T

    @torch.no_grad()
    def fixed(self) -> Product:
        """The same table as codes."""
        made = Product(self.config, self.rows, self.width)
        made.centroid_SKC.data.copy_(self.centroid_SKC.data)
        made.code_VS.copy_(self._code(self.row_VD))
        return made


def product_size(method: str, rows: int, width: int, ratio: float) -> tuple[int, int]:
    """The most parts whose codes and codebooks fit: parts · V + 4 · K · D bytes, parts a divisor of D."""
    centroids = min(CENTROIDS, rows)
    left = budget(rows, width, ratio) - FLOAT * centroids * width
    fitting = [parts for parts in range(1, width + 1) if width % parts == 0 and parts * rows <= left]
    if not fitting:
        raise too_small(method, ratio, (rows + FLOAT * centroids * width) / (rows * width * FLOAT))
    return max(fitting), centroids


def _codebook(config: ProductConfig | LearnedProductConfig, width: int) -> tuple[int, int, int]:
    if width % config.parts:
        raise UserError(f"{config.method}: {config.parts} parts do not divide a row of {width} values")
    return config.parts, config.centroids, width // config.parts


def _k_means(point_VC: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centroids, and the number of the nearest for every point."""
    faiss = _faiss()
    found = faiss.Kmeans(
        point_VC.shape[1], count, niter=_ROUNDS, seed=seed,
        min_points_per_centroid=1, max_points_per_centroid=_SAMPLE,
    )  # fmt: skip
    found.train(point_VC.numpy())
    _, code_V1 = found.index.search(point_VC.numpy(), 1)
    return torch.from_numpy(found.centroids), torch.from_numpy(code_V1[:, 0])


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("product quantisation needs FAISS: pip install 'moembed[mine]'") from None
    return faiss
