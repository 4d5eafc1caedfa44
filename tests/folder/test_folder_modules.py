"""What stands behind the encoder in a folder, pooling and Dense, against sentence-transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from conftest import HfFolder, Run
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.model.head import Dense, HeadConfig, Normalize
from moembed.types import UserError

EQUAL = 1e-5  # fp32 on two orders of summation; vectors have length 1


def load(path: Path) -> Embedder:
    return Embedder.from_pretrained(path, device="cpu")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


def change(name: str, **changes: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        put_json(folder / name, json.loads((folder / name).read_text()) | changes)

    return damage


FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens"}


@pytest.mark.parametrize("modes", [["mean_sqrt_len_tokens"], ["cls", "mean"], ["mean", "cls"], []])
@pytest.mark.parametrize("flags", [True, False])
def test_poolings_side_by_side(flags: bool, modes: list[str], hf_folder: HfFolder, texts: list[str]) -> None:
    folder, _ = hf_folder("bert")
    values: dict[str, Any] = {f"pooling_mode_{FLAGS[mode]}": True for mode in modes}
    values = values if flags or not modes else {"pooling_mode": modes}
    put_json(folder / "1_Pooling" / "config.json", values | {"word_embedding_dimension": 16})
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = load(folder)
    assert ours.dim == theirs.get_embedding_dimension() == 16 * max(len(modes), 1)
    assert distance(ours.encode(texts), theirs.encode(texts)) <= EQUAL


def add_dense(folder: Path, steps: list[tuple[str, dict[str, Any]]]) -> None:
    """Modules behind pooling, the Dense ones with random tensors."""
    modules = json.loads((folder / "modules.json").read_text())[:2]
    for i, (kind, values) in enumerate(steps, start=2):
        inside = folder / f"{i}_{kind}"
        inside.mkdir(exist_ok=True)
        name = f"sentence_transformers.models.{kind}"
        modules.append({"idx": i, "name": str(i), "path": inside.name, "type": name})
        if kind == "Dense":
            put_json(inside / "config.json", values)
            config = HeadConfig((dense_of(values), Normalize()))
            generator = torch.Generator().manual_seed(i)
            tensors = {
                n: torch.randn(shape, generator=generator) for n, shape in config.dense[0].shapes().items()
            }
            save_file(tensors, inside / "model.safetensors")
    put_json(folder / "modules.json", modules)


def dense_of(values: dict[str, Any]) -> Dense:
    sizes = values["in_features"], values["out_features"]
    return Dense(*sizes, values.get("bias", True), residual=values.get("use_residual", False))


def put_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


def dense(into: int, out: int, activation: str | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    named = {"activation_function": f"torch.nn.modules.{activation}"} if activation else {}
    return "Dense", {"in_features": into, "out_features": out, **named, **more}


NORMALIZE: tuple[str, dict[str, Any]] = ("Normalize", {})
HEADS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "tanh": [dense(16, 8, "activation.Tanh"), NORMALIZE],
    "by default": [dense(16, 20), NORMALIZE],
    "two, without biases": [
        dense(16, 24, "linear.Identity", bias=False),
        dense(24, 12, "linear.Identity", bias=False),
        NORMALIZE,
    ],
    "in between": [NORMALIZE, dense(16, 16, "activation.GELU", use_residual=True), NORMALIZE],
    "residual": [dense(16, 9, "activation.SiLU", use_residual=True), NORMALIZE],
    "not of length 1": [dense(16, 7, "activation.ReLU")],
}


@pytest.mark.filterwarnings("ignore:.*has no Normalize module:UserWarning")
@pytest.mark.parametrize("name", HEADS)
def test_dense_modules_give_the_vectors_of_sentence_transformers(
    name: str, hf_folder: HfFolder, tmp_path: Path, texts: list[str], run: Run
) -> None:
    folder, _ = hf_folder("bert")
    add_dense(folder, HEADS[name])
    theirs = SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(texts, normalize_embeddings=True)
    ours = load(folder)
    ours.save_pretrained(tmp_path / "again")
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert ours.dim == expected.shape[1]
    for vectors in (ours.encode(texts), load(tmp_path / "again").encode(texts), again.encode(texts)):
        assert distance(vectors, expected) <= EQUAL
    assert load(tmp_path / "again").space() == ours.space()
    code, shown, _ = run("inspect", folder, "--json")
    assert code == 0
    assert json.loads(shown)["parameters"] == sum(p.numel() for p in ours.parameters())
    assert ours.num_parameters() == sum(p.numel() for p in ours.parameters())


def test_another_head_is_another_space(hf_folder: HfFolder, tmp_path: Path) -> None:
    folder, _ = hf_folder("bert")
    plain = load(folder).space()
    add_dense(folder, HEADS["tanh"])
    model = load(folder)
    before = model.space()
    with torch.no_grad():
        next(model.head.parameters()).mul_(2)
    assert len({plain, before, model.space()}) == 3


DENSE = "2_Dense/config.json"
DENSE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another width": (change(DENSE, in_features=15), r"2_Dense takes 15 coordinates and is given 16"),
    "no count": (change(DENSE, out_features="8"), "in_features and out_features must be counts"),
    "another activation": (
        change(DENSE, activation_function="torch.nn.modules.Mish"),
        "Mish' is not supported",
    ),
    "code of its own": (change(DENSE, activation_function="owls.Tanh"), "'owls.Tanh' is not supported"),
    "another input": (
        change(DENSE, module_input_name="token_embeddings"),
        "'token_embeddings' is not supported",
    ),
    "another shape": (
        change(DENSE, out_features=9),
        r"'linear\.weight' has shape \(8, 16\), expected \(9, 16\)",
    ),
    "a tensor too many": (change(DENSE, bias=False), r"'linear\.bias' belongs to no part of this module"),
    "a tensor too few": (change(DENSE, use_residual=True), r"'residual\.weight' is missing"),
    "no tensors": (
        lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(),
        r"2_Dense has no model\.safetensors",
    ),
}


@pytest.mark.parametrize("name", DENSE_DAMAGES)
def test_a_damaged_dense_module_is_refused_in_one_sentence(name: str, hf_folder: HfFolder) -> None:
    damage, complaint = DENSE_DAMAGES[name]
    folder, _ = hf_folder("bert")
    add_dense(folder, HEADS["tanh"])
    read_folder(folder)
    damage(folder)
    with pytest.raises(UserError, match=complaint) as error:
        read_folder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*has no Normalize module:UserWarning")
@pytest.mark.parametrize("width", [6, 24])
def test_dim_is_within_what_the_last_dense_module_gives(
    width: int, hf_folder: HfFolder, texts: list[str]
) -> None:
    folder, _ = hf_folder("bert")
    add_dense(folder, [("Dense", {"in_features": 16, "out_features": width, "bias": False})])
    whole = load(folder).encode(texts)
    for dim in (1, 5, width):
        cut = Embedder.from_pretrained(folder, device="cpu", dim=dim).encode(texts)
        expected = whole[:, :dim] / np.linalg.norm(whole[:, :dim], axis=1, keepdims=True)
        assert distance(cut, expected) <= EQUAL
    with pytest.raises(UserError, match=rf"dim {width + 1} is not within 1..{width}"):
        Embedder.from_pretrained(folder, device="cpu", dim=width + 1)


SMALL = ["config.json", "modules.json", "tokenizer_config.json", "sentence_bert_config.json"]
SMALL += ["special_tokens_map.json", "config_sentence_transformers.json", "1_Pooling/config.json"]


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_that_cannot_be_read_is_one_sentence(name: str, hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("bert")
    file = folder / name
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"not valid JSON.*nested too deeply"):
        load(folder)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)|has no config.json"):
        load(folder)


def test_a_model_type_that_is_no_name_is_refused(hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("bert")
    change("config.json", model_type=["bert"])(folder)
    with pytest.raises(UserError, match="unknown model_type"):
        load(folder)


def test_a_folder_without_normalize_is_said_and_saved_with_it(hf_folder: HfFolder, tmp_path: Path) -> None:
    folder, _ = hf_folder("bert")
    add_dense(folder, [dense(16, 7)])
    with pytest.warns(UserWarning, match="has no Normalize module, so its vectors are not of length 1 in"):
        model = load(folder)
    model.save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "again").space() == model.space()
