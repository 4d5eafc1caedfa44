"""A model written in the published layout keeps its vectors, or is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend

import published
from conftest import HfFolder, MakeModel
from moembed.cli import main
from moembed.embedder import Embedder
from moembed.export.nomic import to_nomic
from moembed.families.flat import FlatMoE
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.model.pooling import PoolingConfig
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle

EQUAL = 1e-6  # the same tensors in the same order of summation, up to where a bias of zero is added
ROPE: dict[str, Any] = {"position": "rope", "num_token_types": 1, "norm_eps": 1e-5}


def exported(model: Embedder, folder: Path) -> Embedder:
    write_folder(folder, to_nomic(model.parts()))
    return Embedder.from_pretrained(folder, device="cpu")


def distance(one: Embedder, other: Embedder, texts: list[str]) -> float:
    return float(np.abs(one.vectors(texts, prompt="").array - other.vectors(texts, prompt="").array).max())


@pytest.mark.parametrize("normalize", [None, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_a_dense_model_upcycled_the_published_way_keeps_its_vectors(
    kind: str,
    normalize: float | None,
    hf_folder: HfFolder,
    backend: Backend,
    texts: list[str],
    tmp_path: Path,
) -> None:
    if kind == "gated":
        folder, _ = hf_folder("nomic_bert")
    else:
        values = published.CONFIG | {"num_experts": 0}
        folder = published.write(tmp_path / "dense", values, published.make_tensors(values), backend)
    parts = read_folder(folder)
    router = RouterConfig(normalize=normalize)
    options = UpcycleConfig.published().model_copy(update={"router": router})
    spec, state = upcycle(parts.spec, parts.state, options)
    model = Embedder(replace(parts, spec=spec, state=state)).eval()
    again = exported(model, tmp_path / "nomic")
    assert distance(again, model, texts) <= EQUAL
    assert again.encoder.spec == spec.with_experts(
        lambda moe: moe.model_copy(update={"shared_weight": "mean"})
    )
    values = json.loads((tmp_path / "nomic" / "config.json").read_text())
    assert (values["num_experts"], values["moe_top_k"], values["moe_every_n_layers"]) == (8, 2, 2)
    assert "hidden_size" not in values  # by which transformers would take it for a dense model


def test_names_and_shapes_are_the_published_ones(make_model: MakeModel, tmp_path: Path) -> None:
    moe = FlatMoE(layers=(1, 3), num_experts=4, bias="shared", router=RouterConfig(normalize=None))
    exported(make_model(**ROPE, moe=moe), tmp_path / "nomic")
    values = json.loads((tmp_path / "nomic" / "config.json").read_text())
    expected = published.make_tensors(values)
    found = load_file(tmp_path / "nomic" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: array.shape for name, array in expected.items()
    }


@pytest.mark.parametrize("shared", [0, 2])
def test_experts_without_biases_get_biases_of_zero(
    shared: int, make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    moe = {"layers": (1, 3), "num_experts": 4, "num_shared_experts": shared, "shared_weight": "mean"}
    gate = {"gated": True, "activation": "silu"}
    model = make_model(**ROPE, **gate, moe=FlatMoE.model_validate(moe | {"bias": "none"}))
    assert distance(exported(model, tmp_path / "nomic"), model, texts) <= EQUAL
    tensors = load_file(tmp_path / "nomic" / "model.safetensors")
    assert tensors["encoder.layers.1.mlp.experts.bias"].eq(0).all()


@pytest.mark.parametrize("changes", published.VARIANTS.values(), ids=published.VARIANTS)
def test_what_was_published_is_exported_unchanged(
    changes: dict[str, Any], backend: Backend, tmp_path: Path
) -> None:
    values = published.CONFIG | changes
    folder = published.write(tmp_path / "published", values, published.make_tensors(values), backend)
    write_folder(tmp_path / "again", to_nomic(read_folder(folder)))
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == values
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def experts(**options: Any) -> dict[str, Any]:
    return {"moe": FlatMoE.model_validate({"layers": (1, 3), "num_experts": 4, "bias": "shared"} | options)}


@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        ({"position": "absolute"}, ["absolute positions"]),
        ({"rope_base": 0.5, "num_token_types": 0, "activation": "relu"}, ["the activation relu"]),
        ({"activation": "relu"}, ["the activation relu"]),
        ({"activation": "relu", "gated": True}, ["the activation relu, gated"]),
        ({"activation": "gelu", "gated": True} | experts(), ["the activation gelu, gated"]),
        (experts(bias="each"), ["biases inside its experts (upcycle with --published)"]),
        (experts(layers=(0, 2)), ["experts in the layers [0, 2]"]),
        (experts(router=RouterConfig(kind="expert_choice")), ["a router of kind expert_choice"]),
        (experts(num_shared_experts=1), ["shared experts that are added, not averaged"]),
        ({"position": "absolute"} | experts(bias="each"), ["absolute positions", "biases inside"]),
    ],
)
def test_what_the_layout_cannot_say_is_refused(
    changes: dict[str, Any], complaints: list[str], make_model: MakeModel
) -> None:
    with pytest.raises(UserError, match=r"^the Nomic layout cannot hold") as error:
        to_nomic(make_model(**(ROPE | changes)).parts())
    assert all(complaint in str(error.value) for complaint in complaints)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pooling", ["latent_attention", "multi_layer"])
def test_pooling_that_learns_is_refused(pooling: str, make_model: MakeModel) -> None:
    """What reads the layout would take the mean instead."""
    parts = make_model(**ROPE, **experts(router=RouterConfig(normalize=None))).parts()
    learned = replace(parts, pooling=PoolingConfig(pooling))
    with pytest.raises(UserError, match=f"its pooling, {pooling}, has learned weights"):
        to_nomic(learned)


def test_the_command_writes_what_another_run_reads(
    make_model: MakeModel, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(**ROPE, **experts(router=RouterConfig(normalize=None)))
    model.save_pretrained(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), str(tmp_path / "nomic")]
    assert main([*arguments, "--format", "nomic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "nomic"
    assert distance(Embedder.from_pretrained(tmp_path / "nomic", device="cpu"), model, texts) <= EQUAL
    assert main([*arguments, "--format", "nomic"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_refused_export_writes_nothing(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "nomic"
    assert main(["export", str(tmp_path / "model"), str(out), "--format", "nomic"]) == 2
    assert "absolute positions" in capsys.readouterr().err
    assert not out.exists()
