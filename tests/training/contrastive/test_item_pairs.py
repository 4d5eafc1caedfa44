"""Item pairs of another space: the student's cosines behind a projection go to its scores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeModel, NewModel, Run
from moembed.data.sources import Source
from moembed.losses.item_pairs import item_pair_loss
from moembed.packing import pack
from moembed.runs.train import load_recipe
from moembed.training.contrastive.batch import SourceFormat, prepare
from moembed.training.contrastive.item_pairs import ItemSpace
from moembed.training.contrastive.settings import ContrastiveConfig, ItemPairsConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.parallel import ALONE
from moembed.types import Pair, UserError
from training_runs import PAIRS, assert_same_weights, metrics, run, settings

HARD = [replace(pair, negatives=(PAIRS[i - 3].document, f"only {i}")) for i, pair in enumerate(PAIRS)]


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 30))
def test_the_loss_is_the_mean_over_ordered_pairs(items: int, dim: int, seed: int) -> None:
    """Against two loops; the shares of processes add up to it, and so do their gradients."""
    vector_NM, score_NN = drawn(items, 4, seed).requires_grad_(), drawn(items, items, seed + 1)
    projection_MP = drawn(4, dim, seed + 2).requires_grad_()
    found = item_pair_loss(vector_NM, score_NN, projection_MP)
    projected = vector_NM @ projection_MP
    squares = [
        (F.cosine_similarity(projected[i], projected[j], dim=0) - score_NN[i, j]) ** 2
        for i in range(items)
        for j in range(items)
        if i != j
    ]
    expected = torch.stack(squares).mean() if squares else torch.zeros(())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    if not squares:
        return
    own_N = torch.arange(items) % 2 == 0
    shares = [item_pair_loss(vector_NM, score_NN, projection_MP, own) for own in (own_N, ~own_N)]
    torch.testing.assert_close(sum(shares), found)
    leaves = (vector_NM, projection_MP)
    whole = torch.autograd.grad(found, leaves)
    parts = [torch.autograd.grad(share, leaves) for share in shares]
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(others), one, rtol=1e-4, atol=1e-5)


def test_a_step_is_loss_plus_weighted_distance(new_model: NewModel, make_model: MakeModel) -> None:
    """Exact over chunks, a space of another width, repeated texts as one item, against plain autograd."""
    own = {"teacher": "other", "weight": 30.0, "dim": 5}
    config = settings(negatives=2, chunk_tokens=40, loss={"balance": 0.0})
    model = new_model()
    mixture = Mixture([Source.from_pairs("tiny", HARD)])
    plain = ContrastiveTask(config, model, mixture, ALONE)
    other = make_model(seed=5, width=8, ffn_width=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moembed.embedder.Embedder.from_pretrained", lambda *_, **__: other)
        told = config.model_copy(update={"item_pairs": ItemPairsConfig.model_validate(own)})
        task = ContrastiveTask(told, model, mixture, ALONE)
    model.eval()
    projection_MP = task.objective.projection_MP
    assert projection_MP is not None
    assert torch.equal(projection_MP.detach(), torch.eye(16, 5))
    with torch.no_grad():
        projection_MP.copy_(drawn(16, 5, 3))
    batch = task.batch(0)
    assert len(batch.chunks.batches) > 1
    texts = [p.document for p in batch.pairs] + [text for p in batch.pairs for text in p.negatives]
    distinct = list(dict.fromkeys(texts))
    assert len(distinct) < len(texts)
    assert batch.items is not None
    assert [texts[i] for i in batch.items.place_I] == distinct

    found: list[Any] = []
    for one in (task, plain):
        task.module.zero_grad()
        found.append(one.backward(0, one.batch(0)))
        found.append({n: p.grad.clone() for n, p in task.module.named_parameters() if p.grad is not None})
    terms, gradients, plain_terms, plain_gradients = found
    task.module.zero_grad()
    vector_IM = model(pack(model.rows(distinct, role="document")[0])).vector_BM
    other_IK = torch.from_numpy(other.vectors(distinct, role="document").array)
    distance = item_pair_loss(vector_IM, other_IK @ other_IK.T, projection_MP)
    (30 * distance).backward()
    assert terms.log["item_pairs"] == pytest.approx(distance.item(), rel=1e-4)
    assert terms.log["items"] == len(distinct)
    assert terms.loss == pytest.approx(plain_terms.loss + 30 * distance.item(), rel=1e-4)
    for name, parameter in task.module.named_parameters():
        if parameter.grad is not None:
            added = gradients[name] - plain_gradients.get(name, 0)
            torch.testing.assert_close(added, parameter.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert float(projection_MP.grad.abs().max()) > 0.01  # type: ignore[union-attr]


def test_off_is_plain_and_stored_vectors_are_those_of_the_model(
    new_model: NewModel, make_model: MakeModel, tmp_path: Path
) -> None:
    """A run whose space is a model, and one whose space is a file of that model's vectors, are one."""
    other = make_model(seed=5)
    other.save_pretrained(tmp_path / "teacher")
    texts = sorted({pair.document for pair in PAIRS})
    np.save(tmp_path / "items.npy", 3 * other.vectors(texts, role="document").array)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"item": text}) + "\n" for text in texts))
    files = {"vectors": str(tmp_path / "items.npy"), "items": str(tmp_path / "items.jsonl")}
    runs = {
        "plain": None,
        "off": None,
        "model": {"teacher": str(tmp_path / "teacher"), "cache": str(tmp_path / "cache")},
        "stored": files | {"column": "item"},
    }
    for name, own in runs.items():
        more = {} if name == "plain" else {"item_pairs": own}
        run(settings(steps=3, **more), new_model(), tmp_path / name)
    assert_same_weights(tmp_path / "plain/model", tmp_path / "off/model")
    lines = {name: metrics(tmp_path / name) for name in runs}
    assert "item_pairs" not in lines["plain"][0]
    first = lines["model"][0]
    assert first["info_nce"] == pytest.approx(lines["plain"][0]["info_nce"] + first["item_pairs"], rel=1e-4)
    assert [line["item_pairs"] for line in lines["stored"]] == pytest.approx(
        [line["item_pairs"] for line in lines["model"]], abs=2e-4
    )
    assert lines["model"][-1]["item_pairs"] != first["item_pairs"]
    assert not (tmp_path / "model/model/projection").exists()


def test_items_that_the_space_does_not_know_take_no_part(make_model: MakeModel, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", drawn(3, 7, 0).numpy())
    texts = ["Moles  eat worms", "an owl", "AN owl"]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = ItemPairsConfig(vectors=str(tmp_path / "v.npy"), items=str(tmp_path / "i.jsonl"))
    space = ItemSpace.open(config)
    assert space is not None
    pairs = [Pair("a", "an owl"), Pair("b", "what?"), Pair("c", "moles eat worms"), Pair("d", "an Owl")]
    form = SourceFormat("query", "document", "info_nce")
    batch = prepare(pairs, form, make_model().tokenizer, settings())
    items = space.items([pair.document for pair in pairs], batch.key_N)
    assert items.place_I.tolist() == [0, 2]
    expected = F.normalize(drawn(3, 7, 0), dim=-1)[[1, 0]]
    torch.testing.assert_close(items.vector_IK, expected)
    assert space.notes([Source.from_pairs("some", pairs)]) == [
        "item_pairs knows 3 of 4 documents that were looked up"
    ]
    with pytest.raises(UserError, match="has none of 1 documents of the data"):
        space.notes([Source.from_pairs("others", pairs[1:2])])


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, "not both and not none"),
        ({"teacher": "a", "vectors": "v.npy", "items": "i.jsonl"}, "not both and not none"),
        ({"vectors": "v.npy"}, "go together"),
        ({"vectors": "v.npy", "items": "i.jsonl", "cache": "c"}, "leave it out"),
        ({"vectors": "no.npy", "items": "i.jsonl"}, "cannot read"),
        ({"vectors": "zero.npy", "items": "i.jsonl"}, "row 2 of .*zero.npy is zero, NaN or infinite"),
        ({"vectors": "v.npy", "items": "i.jsonl"}, "has 3 vectors and .* 2 rows"),
        (
            {"vectors": "two.npy", "items": "i.jsonl", "column": "name"},
            "row 1 .* 'name' is missing",
        ),
        ({"vectors": "row.npy", "items": "i.jsonl"}, "no matrix of floats"),
        ({"vectors": "several.npz", "items": "i.jsonl"}, "no matrix of floats"),
        ({"teacher": "minilm", "dim": 17}, "item_pairs.dim 17 goes beyond the 16 coordinates"),
    ],
)
def test_wrong_settings_are_one_sentence(
    own: dict[str, object], told: str, tmp_path: Path, make_model: MakeModel, run: Run
) -> None:
    make_model(num_layers=2).save_pretrained(tmp_path / "model")
    arrays = {"v": np.ones((3, 2)), "two": np.ones((2, 2)), "row": np.ones(2), "zero": np.eye(2, 2) * [1, 0]}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "several.npz", **arrays)
    (tmp_path / "i.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    rows = [{"query": f"where is mole {i}?", "document": f"mole {i}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {key: str(tmp_path / str(own[key])) for key in ("vectors", "items") if key in own}
    recipe = {
        "base": str(tmp_path / "model"), "data": str(tmp_path / "pairs.jsonl"), "steps": 1, "batch_size": 4,
        "out": str(tmp_path / "out"), "item_pairs": own | files,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code, _, err = run("train", tmp_path / "recipe.yaml")
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(told, line), line


def test_the_recipe_is_read() -> None:
    file = Path(__file__).parents[3] / "recipes" / "systems" / "item-pairs.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOEMBED_DATA", "data")
        plan = load_recipe(file, [])
    assert isinstance(plan, ContrastiveConfig)
    assert plan.item_pairs == ItemPairsConfig(teacher="minilm", dim=128)
