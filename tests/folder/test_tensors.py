"""Weights in pickles: read only when allowed, checked like safetensors, and never run."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import HfFolder, Run
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.folder.tensors import stored_dtypes, weight_files
from moembed.types import UserError

WORD, NORM = "embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight"
Change = Callable[[dict[str, Tensor]], Any]


@pytest.fixture
def folder(hf_folder: HfFolder) -> Path:
    return hf_folder("bert")[0]


def pickle_weights(folder: Path, change: Change = lambda tensors: tensors, **options: Any) -> Path:
    """Put a pickle of ``change(tensors)`` in the place of model.safetensors."""
    safe = folder / "model.safetensors"
    torch.save(change(load_file(safe)), folder / "pytorch_model.bin", **options)
    safe.unlink()
    return folder


def vectors(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    return Embedder.from_pretrained(folder, device="cpu", **options).encode(texts)


def refused(folder: Path, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        read_folder(folder, allow_pickle=True)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("mapped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_gives_the_vectors_of_the_safetensors(mapped: bool, folder: Path, texts: list[str]) -> None:
    expected = vectors(folder, texts)
    pickle_weights(folder, OrderedDict, _use_new_zipfile_serialization=mapped)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle: .* --allow-pickle"):
        vectors(folder, texts)
    assert np.array_equal(vectors(folder, texts, allow_pickle=True), expected)
    assert weight_files(folder) == []
    assert stored_dtypes(folder, allow_pickle=True) == ["float32"]


def test_safetensors_go_before_a_pickle_beside_them(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    read_folder(folder, allow_pickle=True)
    assert weight_files(folder, allow_pickle=True) == [folder / "model.safetensors"]


def test_a_pickle_in_several_files_is_one_model(folder: Path, texts: list[str]) -> None:
    expected = vectors(folder, texts)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in (0, 1)}
    for file, own in shards.items():
        torch.save({name: tensors[name] for name in own}, folder / file)
    table = {name: file for file, own in shards.items() for name in own}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    assert np.array_equal(vectors(folder, texts, allow_pickle=True), expected)
    with pytest.raises(UserError, match=r"pytorch_model\.bin\.index\.json is a pickle"):
        read_folder(folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    refused(folder, r"pytorch_model-00002-of-00002\.bin is missing, damaged")


def test_tensors_that_share_memory_in_the_pickle_are_apart_in_the_model(folder: Path) -> None:
    def overlap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        first, second = (f"encoder.layer.{i}.output.dense.weight" for i in (0, 1))
        tensors[first] = tensors[second] = tensors[first].t().contiguous().t()
        tensors[NORM] = torch.ones(1).expand(16)
        return tensors

    state = read_folder(pickle_weights(folder, overlap), allow_pickle=True).state
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert all(tensor.is_contiguous() for tensor in state.values())


def put(**changed: Any) -> Change:
    return lambda tensors: tensors | {"embeddings." + k.replace("__", "."): v for k, v in changed.items()}


BAD: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != WORD}, f"tensor '{WORD}' is missing"),
    "extra": (put(adapter=torch.ones(2)), r"belong to no part of this model: 'embeddings\.adapter'"),
    "misshapen": (put(LayerNorm__weight=torch.ones(1)), rf"'{NORM}' has shape \(1,\), expected \(16,\)"),
    "NaN": (put(LayerNorm__weight=torch.full((16,), torch.nan)), f"'{NORM}' holds NaN"),
    "integers": (put(LayerNorm__weight=torch.ones(16).int()), f"'{NORM}' has dtype int32, expected float32"),
    "sparse": (put(LayerNorm__weight=torch.ones(16).to_sparse()), "holds more than tensors by name"),
    "no values": (put(LayerNorm__weight=torch.ones(16, device="meta")), "holds more than tensors by name"),
    "a training state": (lambda t: {"epoch": 3, "state_dict": t}, "holds more than tensors by name"),
    "a list": (lambda t: list(t.values()), "holds more than tensors by name"),
    "numbers for names": (lambda t: t | {7: torch.ones(2)}, "belong to no part of this model: '7'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pickle_passes_every_check(name: str, folder: Path) -> None:
    change, complaint = BAD[name]
    refused(pickle_weights(folder, change), complaint)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_pickle_is_refused(mapped: bool, kept: float, folder: Path) -> None:
    file = pickle_weights(folder, _use_new_zipfile_serialization=mapped) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    refused(folder, r"pytorch_model\.bin is missing, damaged")


class Malice:
    """Unpickled in the ordinary way, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("mapped", [True, False])
def test_what_a_pickle_wants_to_run_is_not_run(
    mapped: bool, folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # may not switch the guard off
    trace = tmp_path / "trace"
    pickle_weights(folder, put(adapter=Malice(trace)), _use_new_zipfile_serialization=mapped)
    refused(folder, r"pytorch_model\.bin .* nothing in it was run")
    code, out, err = run("inspect", folder, "--allow-pickle")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not trace.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # it would have been


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shard", ["../evil.bin", "evil.pt", "", 3, None])
def test_an_index_names_files_of_its_own_kind_beside_it(name: str, shard: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    content = {} if shard is None else {"weight_map": {WORD: shard}}
    (folder / f"{name}.index.json").write_text(json.dumps(content))
    refused(
        folder, rf"{name}\.index\.json: weight_map must name \.(safetensors|bin) files of the same folder"
    )


def test_an_index_of_safetensors_does_not_lead_to_a_pickle(folder: Path) -> None:
    pickle_weights(folder)
    index = {"weight_map": {WORD: "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"weight_map must name \.safetensors files")


def test_no_weights_of_either_kind(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, r"has neither model\.safetensors nor pytorch_model\.bin")


# ---- the commands -----------------------------------------------------------------------------------------


def test_the_commands_read_a_pickle_when_told_to(folder: Path, tmp_path: Path, run: Run) -> None:
    safe = json.loads(run("inspect", folder, "--json")[1])
    pickle_weights(folder)
    facts = json.loads(run("inspect", folder, "--allow-pickle", "--json")[1])
    assert facts | {"bytes_on_disk": 0} == safe | {"bytes_on_disk": 0}
    assert facts["bytes_on_disk"] == (folder / "pytorch_model.bin").stat().st_size

    texts = tmp_path / "notes.jsonl"
    texts.write_text('{"text": "owls"}\n{"text": "moles"}\n')
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "moles"}\n')
    (task / "queries.jsonl").write_text('{"_id": "q", "text": "mole?"}\n')
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    calls = [
        ("upcycle", folder, tmp_path / "moe"),
        ("embed", texts, "--model", folder, "--out", tmp_path / "vectors"),
        ("index", texts, "--model", folder, "--out", tmp_path / "index", "--dtype", "float32"),
        ("search", tmp_path / "index", "moles"),
        ("evaluate", folder, "--tasks", task),
        ("export", folder, tmp_path / "a.gguf", "--format", "gguf"),
    ]
    for call in calls:
        code, out, err = run(*call)
        assert (code, out) == (2, ""), call
        assert "--allow-pickle" in err
        code, _, err = run(*call, "--allow-pickle")
        assert code == 0, err


def test_a_recipe_reads_a_pickle_when_told_to(folder: Path, tmp_path: Path, run: Run) -> None:
    pickle_weights(folder)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"query": "q{i}", "document": "d{i}"}}\n' for i in range(4)))
    recipe = tmp_path / "recipe.yaml"
    values = {"base": str(folder), "data": str(pairs), "out": str(tmp_path / "run"), "steps": 1}
    recipe.write_text(json.dumps(values | {"batch_size": 2, "precision": "float32"}))
    assert "--allow-pickle" in run("train", recipe)[2]
    code, _, err = run("train", recipe, "allow_pickle=true")
    assert code == 0, err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_one_file_goes_before_an_index_beside_it(folder: Path, texts: list[str]) -> None:
    """As in transformers, which a reader of the same folder may use."""
    from sentence_transformers import SentenceTransformer

    tensors = load_file(folder / "model.safetensors")
    other = {name: tensor * 1.5 for name, tensor in tensors.items()}
    save_file(other, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert np.abs(vectors(folder, texts) - theirs).max() <= 1e-5
    (folder / "model.safetensors").unlink()
    assert np.abs(vectors(folder, texts) - theirs).max() > 1e-3


def test_two_tensors_of_one_name_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"embeddings.LayerNorm.gamma": tensors[NORM] * 2}, folder / "model.safetensors")
    refused(folder, "there are two tensors 'embeddings.LayerNorm.weight'")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file(tensors, folder / names[0])
    save_file({NORM: tensors[NORM] * 2}, folder / names[1])
    index = {"weight_map": dict.fromkeys(tensors, names[0]) | {WORD: names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "00002-of-00002.safetensors: there are two tensors 'embeddings.LayerNorm.weight'")
