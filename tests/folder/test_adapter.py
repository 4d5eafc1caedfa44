"""LoRA adapters: what is read is the model that peft merges, and an adapter that does not fit is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from conftest import HfFolder, Run, complete, randomise
from moembed.embedder import Embedder
from moembed.types import UserError
from tiny_configs import CONFIGS

EQUAL = 1e-5
BERT = {"target_modules": ["query", "value", "dense"], "r": 3, "lora_alpha": 5}
QWEN = {"target_modules": ["q_proj", "down_proj"], "r": 2, "use_dora": True}


@pytest.fixture
def bert(hf_folder: HfFolder) -> tuple[Path, nn.Module]:
    return hf_folder("bert")


@pytest.fixture
def qwen(bert: tuple[Path, nn.Module], tmp_path: Path) -> tuple[Path, nn.Module]:
    """A language model with its head, and the tokenizer of the other."""
    values = {key: value for key, value in CONFIGS["qwen3"].items() if key != "model_type"}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values)).eval()
    randomise(model, seed=2)
    folder = tmp_path / "qwen"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bert[0] / name).read_bytes())
    complete(folder)
    return folder, model


def adapted(base: tuple[Path, nn.Module], out: Path, **options: Any) -> nn.Module:
    """Save a random adapter of a model; give peft's own merged model."""
    folder, model = base
    config = peft.LoraConfig(init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(type(model).from_pretrained(folder), config)
    randomise(nn.ModuleList([p for name, p in wrapped.named_modules() if ".lora_" in name]), seed=7)
    wrapped.peft_config["default"].base_model_name_or_path = str(folder)
    wrapped.save_pretrained(out)
    return wrapped.merge_and_unload().eval()


def whole(merged: nn.Module, like: Path, out: Path) -> Path:
    """The merged model in a folder of its own."""
    merged.save_pretrained(out)
    for file in like.iterdir():
        if not (out / file.name).exists() and file.is_file():
            (out / file.name).write_bytes(file.read_bytes())
    complete(out)
    return out


@pytest.mark.parametrize(("name", "options"), [("bert", BERT), ("qwen", QWEN)])
def test_vectors_are_those_of_the_model_that_peft_merges(
    name: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path, texts: list[str]
) -> None:
    base = request.getfixturevalue(name)
    merged = adapted(base, tmp_path / "adapter", **options)
    expected = SentenceTransformer(str(whole(merged, base[0], tmp_path / "whole")), device="cpu").encode(
        texts
    )
    ours = Embedder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert np.abs(ours.encode(texts) - expected).max() <= EQUAL
    before = Embedder.from_pretrained(base[0], device="cpu").encode(texts)
    assert np.abs(ours.encode(texts) - before).max() > 0.01
    ours.save_pretrained(tmp_path / "again")  # whole, without an adapter
    assert not list((tmp_path / "again").glob("adapter*"))
    again = Embedder.from_pretrained(tmp_path / "again", device="cpu")
    assert np.array_equal(again.encode(texts), ours.encode(texts))


def test_a_folder_of_sentence_transformers_with_an_adapter(
    bert: tuple[Path, nn.Module], tmp_path: Path, texts: list[str]
) -> None:
    theirs = SentenceTransformer(str(bert[0]), device="cpu")
    theirs.add_adapter(peft.LoraConfig(init_lora_weights=False, **BERT))
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = Embedder.from_pretrained(tmp_path / "st", device="cpu")
    assert np.abs(ours.encode(texts) - theirs.encode(texts)).max() <= EQUAL


def test_inspect_tells_the_base(bert: tuple[Path, nn.Module], tmp_path: Path, run: Run) -> None:
    adapted(bert, tmp_path / "adapter", **BERT)
    code, out, err = run("inspect", tmp_path / "adapter", "--json")
    assert code == 0, err
    assert json.loads(out)["adapter_of"] == str(bert[0])


def test_what_does_not_fit_is_one_sentence(bert: tuple[Path, nn.Module], tmp_path: Path) -> None:
    place = tmp_path / "adapter"
    adapted(bert, place, **BERT)
    config, tensors = place / "adapter_config.json", place / "adapter_model.safetensors"
    values = json.loads(config.read_text())
    first, *_ = sorted(load_file(tensors))
    for changes, complaint in [
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "is an adapter without its base"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"peft_type": "IA3"}, "adapters of type 'IA3' are not supported, only LORA"),
        ({"target_modules": ["nothing"]}, "peft cannot put this adapter onto"),
    ]:
        config.write_text(json.dumps(values | changes))
        with pytest.raises(UserError, match=complaint) as error:
            Embedder.from_pretrained(place)
        assert "\n" not in str(error.value)
    config.write_text(json.dumps(values))
    kept = {name: tensor for name, tensor in load_file(tensors).items() if name != first}
    save_file(kept, tensors)
    with pytest.raises(UserError, match=r"does not fit its base .*: 1 of its tensors"):
        Embedder.from_pretrained(place)


def test_without_peft_the_extra_is_named(
    bert: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted(bert, tmp_path / "adapter", **BERT)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft: pip install 'moembed\[peft\]'"):
        Embedder.from_pretrained(tmp_path / "adapter")
