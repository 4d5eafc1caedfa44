"""Training starts from float32, whatever the base is stored in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.runs import distill, pretrain, train, train_reranker
from moembed.weights.upcycle import UpcycleConfig, upcycle

HALF = [torch.bfloat16, torch.float16]
DATA = [{"path": "pairs.jsonl"}]


def base_of(model: Embedder, dtype: torch.dtype, path: Path) -> str:
    parts = model.parts()
    write_folder(path, replace(parts, state={name: x.to(dtype) for name, x in parts.state.items()}))
    return str(path)


def models(base: str) -> dict[str, nn.Module]:
    """What every kind of run trains."""
    common: dict[str, Any] = {"base": base, "out": "run", "steps": 1}
    contrastive = train.TrainConfig.model_validate(common | {"data": DATA, "upcycle": {"bias": "shared"}})
    student = distill.DistillConfig.model_validate(common | {"data": DATA, "teacher": base})
    masked = pretrain.PretrainConfig.model_validate(common | {"data": [{"path": "t"}], "sequence_length": 16})
    reranker = train_reranker.RerankerConfig.model_validate(common | {"data": DATA, "task": "reranking"})
    return {
        "contrastive": train.build(read_folder(Path(base)), contrastive),
        "distillation": distill.build(student, Embedder.from_pretrained(base))[0],
        "masked": pretrain.prepared(Path(base), masked)[0],
        "reranking": train_reranker.build(reranker),
    }


@pytest.mark.parametrize("dtype", HALF)
def test_a_base_in_half_precision_is_trained_in_float32(
    dtype: torch.dtype, make_model: MakeModel, tmp_path: Path
) -> None:
    base = base_of(make_model(num_layers=2, max_positions=40), dtype, tmp_path / "base")
    for task, model in models(base).items():
        found = {parameter.dtype for parameter in model.parameters()}
        assert found == {torch.float32}, task


@pytest.mark.parametrize("dtype", HALF)
def test_a_published_model_in_half_precision_computes_at_once(
    dtype: torch.dtype, make_model: MakeModel, tmp_path: Path, texts: list[str]
) -> None:
    """New tensors of an upcycled model have the precision of the old ones; the router alone has float32."""
    parts = read_folder(Path(base_of(make_model(num_layers=2), dtype, tmp_path / "base")))
    options = UpcycleConfig(bias="shared", num_shared_experts=1)
    spec, state = upcycle(parts.spec, parts.state, options)
    assert {x.dtype for name, x in state.items() if ".router." not in name} == {dtype}
    vectors = Embedder(replace(parts, spec=spec, state=state)).eval().encode(texts)
    assert np.isfinite(vectors).all()
