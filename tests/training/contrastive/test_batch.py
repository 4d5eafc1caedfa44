"""What a step is told by its recipe: sources with ways of their own, the loss over prefixes and depths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeModel, NewModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.losses.negatives import masked_entries
from moembed.training.contrastive.batch import PairBatch, SourceFormat, prepare
from moembed.training.contrastive.gradcache import backward
from moembed.training.contrastive.objective import Objective
from moembed.training.contrastive.settings import ContrastiveConfig, LossConfig, SourceOptions
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import Pair, UserError
from training_runs import PAIRS, assert_same_weights, metrics, run, settings

ROLES = SourceFormat("query", "document", "info_nce")


def batch_of(model: Embedder, pairs: list[Pair], form: SourceFormat = ROLES) -> PairBatch:
    return prepare(pairs, form, model.tokenizer, ContrastiveConfig(steps=1))


def vectors(model: Embedder, batch: PairBatch, depth: int = 4) -> dict[int, torch.Tensor]:
    (chunk,), (row_B,) = batch.chunks.batches, batch.chunks.row_CB
    with torch.no_grad():
        by_depth = model(chunk, range(1, depth + 1)).by_depth
    return {depth: vector_BM[row_B.argsort()] for depth, vector_BM in by_depth.items()}


# ---- sources with ways of their own -----------------------------------------------------------


def test_a_source_may_name_its_prompts(make_model: MakeModel) -> None:
    model = make_model(prompts={"query": "query: ", "document": "document: ", "label": "label, "})
    options = SourceOptions(query_prompt="label", document_prompt="")
    form = SourceFormat.of(model, options, LossConfig())
    assert form == SourceFormat("label", None, "info_nce")
    (chunk,) = batch_of(model, PAIRS[:1], form).chunks.batches
    query, document = PAIRS[0].query, PAIRS[0].document
    rows = [
        model.tokenizer.rows([query], prompt=model.tokenizer.prompt("label"))[0][0],
        model.tokenizer.rows([document])[0][0],
    ]
    assert sorted(chunk.token_T.tolist()) == sorted(rows[0] + rows[1])
    assert SourceFormat.of(model, SourceOptions(), LossConfig()) == ROLES
    with pytest.raises(UserError, match=r"no prompt named 'lable'.*did you mean 'label'"):
        SourceFormat.of(model, SourceOptions(query_prompt="lable"), LossConfig())


def test_a_source_may_have_its_own_loss(make_model: MakeModel, tmp_path: Path) -> None:
    """Each step's loss is that of its source: the same batch in the two directions."""
    sources = [Source.from_pairs(name, PAIRS) for name in ("one", "other")]
    options = [SourceOptions(), SourceOptions(loss="symmetric_info_nce")]
    both, plain = tmp_path / "both", tmp_path / "plain"
    train_contrastive(settings(steps=4), make_model(), Mixture(sources, options=options), both)
    train_contrastive(settings(steps=4), make_model(), Mixture(sources, [1.0, 1.0]), plain)
    for one, other in zip(metrics(both), metrics(plain), strict=True):
        assert one["source"] == other["source"]
        if one["source"] == "other":
            assert one["loss"] != other["loss"]
            break
        assert one["loss"] == other["loss"]


def test_hard_negatives_that_are_their_positive_are_counted_and_masked(make_model: MakeModel) -> None:
    pairs = [
        Pair("what digs", "the mole", ("the mole", "the owl")),
        Pair("what hunts", "the owl", ("the owl",)),
    ]
    batch = batch_of(make_model(), pairs)
    assert batch.same == 2
    places = torch.stack(masked_entries(batch.known, torch.arange(2), torch.arange(2)), dim=1)
    assert sorted(places.tolist()) == [[0, 2], [1, 3], [1, 4]]


def test_the_mask_has_the_one_equality_of_texts(make_model: MakeModel) -> None:
    """Other spellings of an answer are no negatives, and a negative spelt like its positive is counted."""
    pairs = [
        Pair("who digs?", "Moles dig.", ("moles  DIG.", "owls")),
        Pair("Who  Digs?", "a mole"),
        Pair("who hunts?", "an owl"),
    ]
    batch = batch_of(make_model(), pairs)
    assert batch.same == 1
    places = torch.stack(masked_entries(batch.known, torch.arange(3), torch.arange(3)), dim=1)
    assert sorted(places.tolist()) == [[0, 1], [0, 3], [1, 0], [1, 3]]


# ---- the loss ------------------------------------------------------------------------------------


def test_a_learned_temperature_learns_within_bounds(make_model: MakeModel, tmp_path: Path) -> None:
    loss = {"learn_temperature": True, "temperature": 0.02}
    optim = {"learning_rate": 0.3, "warmup_steps": 0, "clip": 0, "schedule": "constant"}
    run(settings(steps=12, loss=loss, optim=optim), make_model(num_layers=2), tmp_path)
    found = [line["temperature"] for line in metrics(tmp_path)]
    assert len(set(found)) > 3
    assert min(found) >= 0.01 - 1e-9
    with pytest.raises(ValueError, match=r"stays at 0\.01 or above"):
        LossConfig(learn_temperature=True, temperature=0.005)


def test_the_gradient_of_the_temperature_is_that_of_the_loss(make_model: MakeModel) -> None:
    model = make_model()
    batch = batch_of(model, PAIRS[:6])
    objective = Objective(LossConfig(learn_temperature=True, temperature=0.1), model)
    backward(model, batch.chunks, lambda by_depth: objective(by_depth, batch), None)
    assert objective.log_scale is not None
    assert objective.log_scale.grad is not None
    step, found = 1e-3, []
    for sign in (1, -1):
        fixed = LossConfig(temperature=math.exp(-math.log(10) - sign * step))
        found.append(float(Objective(fixed, model)(vectors(model, batch), batch)))
    numeric = (found[0] - found[1]) / (2 * step)
    assert float(objective.log_scale.grad) == pytest.approx(numeric, rel=1e-2)


def test_prefixes_and_depths_are_summed(make_model: MakeModel) -> None:
    model = make_model()
    batch = batch_of(model, PAIRS[:6])
    by_depth = vectors(model, batch)

    def loss(**changes: Any) -> float:
        return float(
            Objective(LossConfig.model_validate({"temperature": 0.1} | changes), model)(by_depth, batch)
        )

    dims = {"dims": [16, 4], "weights": [1, 3]}
    parts = [loss(matryoshka={"dims": [dim]}) for dim in (16, 4)]
    assert loss(matryoshka=dims) == pytest.approx(parts[0] + 3 * parts[1], rel=1e-5)
    assert loss() == pytest.approx(parts[0], rel=1e-5)
    early = loss(depths={2: 1.0, 4: 1.0}) - loss()
    assert loss(depths={2: 0.5, 4: 1.0}) == pytest.approx(loss() + 0.5 * early, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"depths": {2: 1}}, r"loss.depths \[2\] must end with the last of the model's 4 layers"),
        ({"depths": {4: 1, 9: 1}}, r"must end with the last of the model's 4 layers"),
        ({"matryoshka": {"dims": [64, 8]}}, r"dims \[64, 8\] go beyond the model's 16"),
    ],
)
def test_a_loss_the_model_cannot_have_is_refused(
    changes: dict[str, Any], complaint: str, make_model: MakeModel
) -> None:
    with pytest.raises(UserError, match=complaint):
        Objective(LossConfig.model_validate(changes), make_model())


@pytest.mark.parametrize("values", [{"dims": []}, {"dims": [0]}, {"dims": [8, 4], "weights": [1]}])
def test_prefixes_that_say_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dims"):
        LossConfig.model_validate({"matryoshka": values})


def test_matryoshka_helps_short_vectors_and_the_folder_knows_them(
    make_model: MakeModel, tmp_path: Path
) -> None:
    losses = {}
    for name, loss in (("plain", {}), ("nested", {"matryoshka": {"dims": [2, 16]}})):
        model = make_model(num_layers=2)
        run(settings(steps=30, save_every=99, loss={"temperature": 0.1} | loss), model, tmp_path / name)
        config = LossConfig.model_validate({"temperature": 0.1, "matryoshka": {"dims": [2]}})
        batch = batch_of(model, PAIRS)
        losses[name] = float(Objective(config, model)(vectors(model, batch, 2), batch))
    assert losses["nested"] < losses["plain"]
    saved = Embedder.from_pretrained(tmp_path / "nested", device="cpu")
    assert saved.dims == (16, 2)
    assert Embedder.from_pretrained(tmp_path / "plain", device="cpu").dims == ()
    saved.save_pretrained(tmp_path / "again")
    assert Embedder.from_pretrained(tmp_path / "again", device="cpu").dims == (16, 2)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [60, 10_000])
def test_activation_checkpointing_changes_no_bit(
    chunk_tokens: int, new_model: NewModel, tmp_path: Path
) -> None:
    """With dropout and jitter, which the second computation must draw again."""
    for name in ("off", "on"):
        config = settings(steps=3, activation_checkpointing=name == "on", chunk_tokens=chunk_tokens)
        run(config, new_model(), tmp_path / name)
    assert metrics(tmp_path / "on") == metrics(tmp_path / "off")
    assert_same_weights(tmp_path / "on" / "model", tmp_path / "off" / "model")
