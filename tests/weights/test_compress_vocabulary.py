"""A model with a compressed table of words: the model with the table that was made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.export.onnx.export import export_onnx
from moembed.families.registry import FAMILIES, family_to_write
from moembed.model.words.compressors import COMPRESSORS
from moembed.model.words.table import WordTable
from moembed.runs.compress_vocabulary import compress_model
from moembed.runs.drift import drift_report
from moembed.runs.inspect import describe
from moembed.runs.merge import MergePlan, merge
from moembed.runs.quantize import QuantizePlan, quantize_model
from moembed.types import UserError
from moembed.weights.compress_vocabulary import VocabularyConfig, compress_vocabulary, whole_vocabulary
from moembed.weights.vocabulary import pad

pytestmark = pytest.mark.filterwarnings("ignore:.*is it the model's own")


def plan(method: str) -> VocabularyConfig:
    """A size for the small tables here; product codes need centroids, of which there are as many as rows."""
    given = {"int8": {}, "int4": {}, "pq": {"ratio": 0.4}, "dpq": {"ratio": 0.4}}
    return VocabularyConfig.model_validate({"method": method, **given.get(method, {"ratio": 0.7})})


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return make_model(num_layers=2, vocab_size=800, width=24)


@pytest.fixture
def folder(model: Embedder, tmp_path: Path) -> str:
    model.save_pretrained(tmp_path / "whole")
    return str(tmp_path / "whole")


@pytest.mark.parametrize("method", COMPRESSORS)
def test_the_folder_is_the_model_with_the_rows_made_by_hand(
    method: str, model: Embedder, folder: str, texts: list[str], tmp_path: Path
) -> None:
    made = compress_model(folder, tmp_path / "small", plan(method))
    read = Embedder.from_pretrained(tmp_path / "small")
    word = read.encoder.word
    assert isinstance(word, WordTable)
    parts = model.parts()
    kind = COMPRESSORS[method]
    config = kind.sized(800, 24, plan(method).ratio, None)
    table_VD = kind.from_matrix(parts.state["word.weight"], config).weight.detach()
    by_hand = Embedder(replace(parts, state=parts.state | {"word.weight": table_VD})).eval()
    np.testing.assert_allclose(read.encode(texts), by_hand.encode(texts), atol=1e-6)
    assert not np.allclose(read.encode(texts), model.encode(texts), atol=1e-4) or made.table.error < 1e-3
    error = (table_VD - parts.state["word.weight"]).norm() / parts.state["word.weight"].norm()
    assert made.table.error == pytest.approx(float(error), rel=1e-4)
    assert made.table.bytes == word.num_bytes
    facts = describe(tmp_path / "small")
    assert facts["words_compressed"]["method"] == method
    assert facts["bytes_on_disk"] == made.file_bytes
    read.save_pretrained(tmp_path / "again")
    again = Embedder.from_pretrained(tmp_path / "again")
    assert again.spec == read.spec
    assert again.space() == read.space() != model.space()
    np.testing.assert_array_equal(again.encode(texts), read.encode(texts))


def test_what_serves_is_the_compressed_form(folder: str, texts: list[str], tmp_path: Path) -> None:
    compress_model(folder, tmp_path / "small", plan("int4"))
    for dtype in ("float32", "bfloat16", "int8"):
        read = Embedder.from_pretrained(tmp_path / "small", dtype=dtype)
        served = read.engine.encoder(read.encoder).word
        assert isinstance(served, WordTable)
        largest = max(tensor.nbytes for tensor in [*served.parameters(), *served.buffers()])
        assert largest < 800 * 24 * 4
        assert read.encode(texts[:2]).shape == (2, 24)
        assert read.dtype == dtype


def test_no_other_family_can_say_it_and_no_other_library_reads_it(make_model: MakeModel) -> None:
    parts, _ = compress_vocabulary(make_model().parts(), plan("int8"))
    assert family_to_write(parts.spec, {"model_type": "bert"}).name == "moembed"
    for family in FAMILIES.values():
        if family.name != "moembed":
            with pytest.raises(UserError):
                family.write_config(parts.spec)


@pytest.mark.parametrize("method", ["int8", "pruning", "tensor_train"])
def test_whole_again_it_is_the_same_function(method: str, model: Embedder, texts: list[str]) -> None:
    parts, _ = compress_vocabulary(model.parts(), plan(method))
    spec, state = whole_vocabulary(parts.spec, parts.state)
    assert spec == model.spec
    assert state.keys() == model.parts().state.keys()
    found = Embedder(replace(parts, spec=spec, state=state)).eval().encode(texts)
    np.testing.assert_allclose(found, Embedder(parts).eval().encode(texts), atol=1e-6)
    untouched = model.parts()
    assert whole_vocabulary(untouched.spec, untouched.state)[1] is untouched.state


def test_what_dpq_learned_becomes_the_codes_of_pq(folder: str, texts: list[str], tmp_path: Path) -> None:
    compress_model(folder, tmp_path / "learning", plan("dpq"))
    learned = Embedder.from_pretrained(tmp_path / "learning")
    with torch.no_grad():
        learned.get_parameter("encoder.word.row_VD").mul_(1.5)
    learned.save_pretrained(tmp_path / "learned")
    made = compress_model(str(tmp_path / "learned"), tmp_path / "small", VocabularyConfig(method="pq"))
    assert made.table.error == 0
    small = Embedder.from_pretrained(tmp_path / "small")
    np.testing.assert_array_equal(small.encode(texts), learned.encode(texts))
    with pytest.raises(UserError, match="size of its own"):
        compress_model(str(tmp_path / "learned"), tmp_path / "no", plan("pq"))


def test_the_layers_take_few_bits_beside_it(folder: str, tmp_path: Path) -> None:
    compress_model(folder, tmp_path / "words", plan("int4"))
    (tmp_path / "texts.csv").write_text("text\nowls hunt voles\n")
    quantize_model(str(tmp_path / "words"), tmp_path / "both", QuantizePlan(4, texts=tmp_path / "texts.csv"))
    both, words = (Embedder.from_pretrained(tmp_path / name) for name in ("both", "words"))
    assert torch.equal(both.encoder.word.weight, words.encoder.word.weight)
    assert isinstance(both.encoder.word, WordTable)
    state = words.parts().state
    assert any(not torch.equal(tensor, state[name]) for name, tensor in both.parts().state.items())


def test_drift_is_that_of_the_matrix(folder: str, tmp_path: Path) -> None:
    made = compress_model(folder, tmp_path / "small", plan("int4"))
    found = drift_report(folder, str(tmp_path / "small"))
    moved = {row["name"]: row["relative"] for row in found["tensors"]}
    assert moved["word.weight"] == pytest.approx(made.table.error, rel=1e-3)
    assert not any(value for name, value in moved.items() if name != "word.weight")


def test_refused_by_name(model: Embedder, folder: str, tmp_path: Path) -> None:
    parts, _ = compress_vocabulary(model.parts(), plan("int8"))
    with pytest.raises(UserError, match=r"padding the vocabulary needs a whole table .*\(int8\)"):
        pad(parts.spec, parts.state, 64)
    with pytest.raises(UserError, match="has the form int8 already"):
        compress_vocabulary(parts, plan("pq"))
    compress_model(folder, tmp_path / "small", plan("int8"))
    small = str(tmp_path / "small")
    with pytest.raises(UserError, match="merging needs a whole table"):
        merge([small, small], tmp_path / "merged", MergePlan())


def test_a_format_that_knows_no_codes_gets_floats_and_it_is_said(model: Embedder, tmp_path: Path) -> None:
    parts, _ = compress_vocabulary(model.parts(), plan("int8"))
    with pytest.warns(UserWarning, match=r"compressed \(int8\), which ONNX cannot say"):
        facts = export_onnx(parts, tmp_path / "onnx")
    assert facts["max_error"] < 1e-5  # the model that it is compared with is the compressed one


def test_damaged_codes_are_named(folder: str, tmp_path: Path) -> None:
    compress_model(folder, tmp_path / "small", plan("pruning"))
    file = tmp_path / "small" / "model.safetensors"
    state = load_file(file)
    state["encoder.word.start_W"][3] = 255
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the table of words is damaged"):
        Embedder.from_pretrained(tmp_path / "small")
    state["encoder.word.start_W"] = state["encoder.word.start_W"].float()
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="has dtype float32, expected"):
        Embedder.from_pretrained(tmp_path / "small")


def test_a_form_that_does_not_fit_the_config(folder: str, tmp_path: Path) -> None:
    compress_model(folder, tmp_path / "small", plan("pq"))
    file = tmp_path / "small" / "config.json"
    values = json.loads(file.read_text())
    values["encoder"]["embeddings"]["compression"]["parts"] = 7
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="7 parts do not divide a row of 24"):
        Embedder.from_pretrained(tmp_path / "small")


def test_the_command(folder: str, run: Run, tmp_path: Path) -> None:
    out = f"--out={tmp_path}/small"
    code, shown, _ = run("compress-vocabulary", folder, "--method=hash", "--ratio=0.5", out)
    assert code == 0
    assert "words by hash" in shown
    assert "train it" in shown
    code, shown, _ = run("compress-vocabulary", folder, "--method=int8", out, "--overwrite", "--json")
    assert json.loads(shown)["table"]["bytes"] == 800 * (24 + 4)
