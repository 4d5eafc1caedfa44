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
from moembed.runs.compress_vocabulary import compress_model
from moembed.runs.quantize import QuantizePlan, quantize_model
from moembed.weights.compress_vocabulary import VocabularyConfig
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


@pytest.mark.filterwarnings("ignore:.*is it the model's own")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", ["int8", "int4", "pruning", "tensor_train", "dpq"])
def test_a_smaller_model_in_half_precision_computes_too(
    method: str, dtype: torch.dtype, make_model: MakeModel, tmp_path: Path, texts: list[str]
) -> None:
    """Compressed words have the precision of the layers; a quantized folder is read in float32."""
    base = base_of(make_model(num_layers=2, vocab_size=800, width=24), dtype, tmp_path / "base")
    sizes = {"pruning": {"ratio": 0.7}, "tensor_train": {"ratio": 0.7}, "dpq": {"ratio": 0.4}}
    plan = VocabularyConfig.model_validate({"method": method, **sizes.get(method, {})})
    compress_model(base, tmp_path / "words", plan)
    (tmp_path / "texts.csv").write_text("text\nowl\nmole\n")
    quantize_model(str(tmp_path / "words"), tmp_path / "small", QuantizePlan(texts=tmp_path / "texts.csv"))
    for name, wanted in (("words", dtype), ("small", torch.float32)):
        parts = read_folder(tmp_path / name)
        assert {x.dtype for x in parts.state.values() if x.is_floating_point()} == {wanted}
        found = Embedder(parts).eval().encode(texts)
        expected = Embedder.from_pretrained(tmp_path / name).encode(texts)
        np.testing.assert_allclose(found, expected, atol=0.05)
