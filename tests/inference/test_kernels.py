"""No kernel is built for a number of rows that comes once: rows are computed in a few sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moembed.embedder import Embedder
from moembed.inference.engine import can_round
from moembed.inference.packed import TILE, tiles

pytestmark = pytest.mark.skipif(not can_round(), reason="this PyTorch was built without oneDNN")

SIZES = sorted({computed for rows in range(1, TILE + 1) for _, computed in tiles(rows)})
WARM = "after the warm-up"
SCRIPT = f"""
import ctypes, random, sys
from moembed import Embedder
model = Embedder.from_pretrained(sys.argv[1], dtype=sys.argv[2], device="cpu")

def embed(tokens):
    model.embed([[1] * 32] * (tokens // 32) + [[1] * (tokens % 32)])

for tokens in {SIZES}:
    embed(tokens)
ctypes.CDLL(None).puts({WARM!r}.encode())  # by the buffer that oneDNN writes to
draw = random.Random(0)
for _ in range(60):
    embed(draw.randrange(1, 2000))
"""


def rows_of_new_kernels(folder: Path, dtype: str) -> tuple[list[int], list[int]]:
    """The numbers of rows that oneDNN built products for, before the warm-up was over and after it."""
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), dtype]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    pattern = re.compile(r"create:cache_miss.*,(?:matmul|inner_product),.*,(?:mb(\d+)ic|(\d+)x\d+:)")

    def rows(part: str) -> list[int]:
        return [int(a or b) for a, b in pattern.findall(part)]

    before, _, after = out.partition(WARM)
    return rows(before), rows(after)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_serving_builds_no_kernel_after_the_warm_up(moembed_folder: Path, dtype: str) -> None:
    before, after = rows_of_new_kernels(moembed_folder, dtype)
    assert set(before) == set(SIZES)
    assert after == []


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_experts_build_kernels_of_the_same_sizes_alone(
    moe_model: Embedder, tmp_path: Path, dtype: str
) -> None:
    moe_model.save_pretrained(tmp_path / "m")
    before, after = rows_of_new_kernels(tmp_path / "m", dtype)
    assert set(before + after) <= set(SIZES)


@pytest.fixture
def moembed_folder(make_model, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "m")
    return tmp_path / "m"
