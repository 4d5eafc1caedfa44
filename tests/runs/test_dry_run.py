"""What --dry-run says is what the run then does; and it writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import MakeModel, Run
from moembed.families.flat import FlatMoE
from moembed.training.memory_estimate import estimate, first_texts, graph_bytes
from moembed.types import Batch, Encoded
from training_runs import PAIRS, metrics


@pytest.fixture
def recipe(make_model: MakeModel, tmp_path: Path) -> Path:
    model = make_model(num_layers=2, moe=FlatMoE(layers=(1,), num_experts=4), dropout=0.0)
    model.save_pretrained(tmp_path / "base")
    for name, some in (("one", PAIRS), ("two", PAIRS[:12])):
        rows = [
            {"query": p.query, "document": " ".join([p.document] * (i % 5 + 1)), "negative": "worms"}
            for i, p in enumerate(some)
        ]  # of many lengths: another batch has another number of tokens
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "base": str(tmp_path / "base"), "out": str(tmp_path / "run"), "steps": 8, "batch_size": 8,
        "data": [str(tmp_path / "one.jsonl"), {"path": str(tmp_path / "two.jsonl"), "query_prompt": ""}],
        "optim": {"warmup_steps": 2, "router_learning_rate": 1e-3}, "precision": "float32",
        "chunk_tokens": 90, "loss": {"balance": 0.5, "matryoshka": {"dims": [16, 8], "weights": [1, 0.5]}},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def plan_of(run: Run, recipe: Path, *overrides: str) -> dict[str, Any]:
    code, out, err = run("train", recipe, *overrides, "--dry-run", "--json")
    assert code == 0, err
    plan: dict[str, Any] = json.loads(out)
    return plan


def test_the_run_does_what_was_said(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    plan = plan_of(run, recipe)
    assert not (tmp_path / "run").exists()
    code, _, err = run("train", recipe)
    assert code == 0, err
    lines = metrics(tmp_path / "run")
    first, batch = lines[0], plan["first_batch"]
    assert (batch["source"], batch["tokens"]) == (first["source"], first["tokens"])
    assert batch["negatives per query"] == pytest.approx(first["effective_negatives"], abs=0.01)
    assert batch["hard negatives"] == 8
    for point in plan["learning_rate"]:
        assert lines[point["step"] - 1]["learning_rate"] == pytest.approx(point["rate"])
    assert [point["step"] for point in plan["learning_rate"]] == [1, 3, 5, 7, 8]
    assert f"recipe {plan['recipe']}" in err
    assert plan["model"] in err


def test_groups_sources_and_terms(run: Run, recipe: Path) -> None:
    plan = plan_of(run, recipe, "negatives=0", "loss.temperature=0.5")
    rates = {group["first"].rpartition(".")[2]: group["learning_rate"] for group in plan["optimizer"]}
    assert rates["weight_ED"] == pytest.approx(1e-3)
    assert sorted(group["weight_decay"] for group in plan["optimizer"]) == [0, 0.01, 0.01]
    model_parameters = int(plan["model"].split()[0].replace(",", ""))
    assert sum(group["parameters"] for group in plan["optimizer"]) == model_parameters
    one, two = plan["sources"]
    assert (one["query_prompt"], two["query_prompt"], two["document_prompt"]) == ("query: ", "", "document: ")
    assert (one["batches_per_1000"], two["batches_per_1000"]) == (500, 500)
    assert (one["with_negatives"], two["trained_on"]) == (len(PAIRS), 12)
    assert plan["loss"][0] == "info_nce at temperature 0.5"
    assert "summed over prefixes of 16 (x 1), 8 (x 0.5) coordinates" in plan["loss"]
    assert "0.5 x balance of the experts" in plan["loss"]
    assert plan["first_batch"]["candidates"] == 8
    assert plan["settings"]["loss.temperature"] == 0.5
    assert plan["length"] == {"steps": 8, "batch_size": 8, "steps_per_epoch": 4}
    other = plan_of(run, recipe, "minutes=1", "upcycle.num_experts=8", "base=minilm", "layers=2",
                    "loss.matryoshka=null", "optim.warmup_steps=0.1")  # fmt: skip
    assert other["settings"]["upcycle.num_experts"] == 8
    assert [point["share"] for point in other["learning_rate"]] == [0, 0.1, 0.25, 0.5, 0.75, 1]
    assert "steps" not in other["length"]


def test_for_people(run: Run, recipe: Path, tmp_path: Path) -> None:
    code, out, err = run("train", recipe, "--dry-run")
    assert code == 0, err
    for heading in ("the loss", "the sources", "the first batch", "memory, estimated"):
        assert heading in out
    assert "nothing was trained or written" in err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    code, out, err = run("train", recipe, "--dry-run")
    assert (code, out) == (2, "")
    assert "run" in err.splitlines()[-1]
    assert (tmp_path / "run" / "mine.txt").exists()


def test_a_reranker(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moembed.runs.train_reranker.write_report", lambda run, title: run)
    changes = ("task=reranking", 'loss={"balance": 0}', "random_negatives=2", 'optim={"warmup_steps": 2}')
    data = "data=" + str(tmp_path / "one.jsonl")
    plan = plan_of(run, recipe, *changes, data)
    assert not (tmp_path / "run").exists()
    code, _, err = run("train", recipe, *changes, data)
    assert code == 0, err
    first = metrics(tmp_path / "run")[0]
    assert (plan["first_batch"]["tokens"], plan["first_batch"]["candidates"]) == (
        first["tokens"],
        first["candidates"],
    )
    assert plan["learning_rate"][0]["rate"] == pytest.approx(first["learning_rate"])
    assert plan["loss"][0].startswith("listwise over lists of the document, all its hard negatives and 2")


# ---- memory


class Squares(nn.Module):
    """Keeps its input twice over a token: once for the product, once for its square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, batch: Batch) -> Encoded:
        hidden_TD = batch.token_T[:, None].float().expand(-1, 3).contiguous()
        squared_TD = (hidden_TD @ self.weight) ** 2  # keeps the input of the product, and the product
        return Encoded({1: squared_TD})


def a_batch(lengths: tuple[int, ...]) -> Batch:
    return Batch(torch.arange(sum(lengths)), lengths, torch.arange(len(lengths)))


def test_what_autograd_keeps_is_counted() -> None:
    model = Squares()
    batch = a_batch((100, 100, 300, 700))
    address = {model.weight.untyped_storage().data_ptr()}
    for part, tokens in ((first_texts(batch, 128), 100), (first_texts(batch, 1024), 500), (batch, 1200)):
        assert len(part.token_T) == tokens
        assert graph_bytes(model, part, address) == 2 * 3 * 4 * tokens
    found = estimate(model, model, batch, graph_tokens=1200, vectors=7)
    assert (found.weights, found.gradients, found.optimizer) == (36, 36, 72)
    assert found.graph == graph_bytes(model, batch, address)
    assert found.total == 36 + 36 + 72 + 7 + 2 * 3 * 4 * 1200
    model.weight.requires_grad_(False)
    still = estimate(model, model, batch, graph_tokens=1200, vectors=7)
    assert (still.gradients, still.optimizer, still.graph) == (0, 0, 0)


def test_an_encoder_keeps_what_was_estimated(make_model: MakeModel) -> None:
    from moembed.packing import pack

    model = make_model(num_layers=3, dropout=0.0).train()
    rows = model.tokenizer.rows(["what does a mole eat at night"] * 60)[0]
    batch = pack(rows)
    found = estimate(model, model, batch, len(batch.token_T), 0)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert found.graph == pytest.approx(graph_bytes(model, batch, known), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            ["loss.learn_temperature=per_dim"],
            ["info_nce at temperature 0.02, learned for each of the prefixes"],
        ),
        (
            ["loss.queue=900", "loss.mask.margin=0.1", "loss.weight={kind: focal, gamma: 0.5}"],
            [
                "negatives too: the last 900 documents and hard negatives, as they were",
                "mask: margin 0.1",
                "weight: focal, gamma 0.5",
            ],
        ),
        (
            ["loss.kind=triplet", "loss.triplet.margin=0.4"],
            ["triplet: margin 0.4, negatives own"],
        ),
        (
            ["distill.candidates=own", "distill.weight=2", "data=SCORED"],
            [
                "2 x KL to the ranking by the scores of the data over the query's own candidates "
                "(temperature 1, scores brought to one scale by z)"
            ],
        ),
        (
            ["schedules={loss.weight.alpha: {0: 0, 0.5: 1}, batch_size: {0: 4, 1: 8}}",
             "loss.weight={kind: margin}"],
            ["loss.weight.alpha: 0 at step 1, 1 at step 5", "batch_size: 4 at step 1, 8 at step 8"],
        ),
    ],
)  # fmt: skip
def test_every_term_has_its_line(
    changes: list[str], lines: list[str], run: Run, recipe: Path, tmp_path: Path
) -> None:
    rows = [{"query": p.query, "document": p.document, "negative": "worms", "scores": [2, 1]} for p in PAIRS]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = json.dumps([{"path": str(tmp_path / "scored.jsonl"), "scores": "scores"}])
    plan = plan_of(run, recipe, *(change.replace("SCORED", scored) for change in changes))
    assert set(lines) <= set(plan["loss"])
