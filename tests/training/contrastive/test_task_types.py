"""Sources of other tasks than retrieval: their losses are exact under GradCache, their share is fixed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeModel, Run
from moembed import UserError
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.runs.train import load_recipe
from moembed.training.contrastive.batch import prepare
from moembed.training.contrastive.settings import ContrastiveConfig, SourceOptions
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.contrastive.task_types import fixed_share, task_notes
from moembed.training.parallel import ALONE
from moembed.types import Pair
from training_runs import PAIRS, metrics, settings

SCORED = [replace(pair, score=float(i % 4), negatives=("worms",)) for i, pair in enumerate(PAIRS[:8])]
LABELLED = [
    replace(pair, label=str(i % 3), negatives=("worms", "owl"), negative_labels=(str((i + 1) % 3), "other"))
    for i, pair in enumerate(PAIRS[:8])
]


def a_task(
    model: Embedder, pairs: list[Pair], options: SourceOptions, chunk_tokens: int, **loss: Any
) -> ContrastiveTask:
    config = settings(
        batch_size=8, chunk_tokens=chunk_tokens, loss={"temperature": 0.1, "balance": 0.0} | loss
    )
    return ContrastiveTask(
        config, model.train(), Mixture([Source.from_pairs("some", pairs)], options=[options]), ALONE
    )


def plain_loss(model: Embedder, pairs: list[Pair], task_type: str) -> torch.Tensor:
    """Written out: all texts embedded with their graph, every sum a loop."""
    prefix = {"query": "query: ", "document": "document: "} if task_type == "retrieval" else {}

    def embed(texts: list[str], role: str) -> torch.Tensor:
        from moembed.packing import pack

        limit = 64 if role == "query" else 256
        rows = model.tokenizer.rows(texts, prompt=prefix.get(role, ""), max_length=limit)[0]
        packed = pack(rows)
        vector_BM: torch.Tensor = model(packed).vector_BM
        return vector_BM

    query_QM = embed([pair.query for pair in pairs], "query")
    document_QM = embed([pair.document for pair in pairs], "document")
    if task_type == "sts":
        total = torch.ones(())
        for i, one in enumerate(pairs):
            for j, other in enumerate(pairs):
                if one.score > other.score:  # type: ignore[operator]
                    cosines = [(query_QM[k] * document_QM[k]).sum() for k in (i, j)]
                    total = total + ((cosines[1] - cosines[0]) / 0.2).exp()
        return total.log()
    wrong = [(text, label) for p in pairs for text, label in zip(p.negatives, p.negative_labels, strict=True)]
    wrong_NM = embed([text for text, _ in wrong], "document")
    terms = []
    for i, pair in enumerate(pairs):
        kept = [j for j, other in enumerate(pairs) if other.label != pair.label or j == i]
        scores = torch.cat([
            document_QM[kept] @ query_QM[i],
            wrong_NM[[n for n, (_, label) in enumerate(wrong) if label != pair.label]] @ query_QM[i],
        ])  # fmt: skip
        terms.append((scores / 0.1).logsumexp(0) - query_QM[i] @ document_QM[i] / 0.1)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("chunk_tokens", [12, 100_000])
@pytest.mark.parametrize(
    ("task_type", "pairs", "key"), [("sts", SCORED, "cosent"), ("clustering", LABELLED, "info_nce")]
)
def test_cached_equals_plain(
    task_type: Any, pairs: list[Pair], key: str, chunk_tokens: int, make_model: MakeModel
) -> None:
    model = make_model(num_layers=2, moe=FlatMoE(layers=(1,), num_experts=4))
    options = SourceOptions(task_type=task_type, temperature=0.2 if task_type == "sts" else None)
    task = a_task(model, pairs, options, chunk_tokens)
    batch = task.batch(0)
    assert len(batch.chunks.batches) == 1 if chunk_tokens > 99 else len(batch.chunks.batches) > 3
    expected = plain_loss(model, list(batch.pairs), task_type)
    torch.autograd.backward(expected)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    terms = task.backward(0, batch)
    assert terms.log[key] == pytest.approx(expected.item(), rel=1e-5)
    assert {"cosent", "info_nce"} & set(terms.log) == {key}
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=2e-5)


def test_processes_share_the_loss_of_scores(make_model: MakeModel) -> None:
    task = a_task(make_model(num_layers=1), SCORED, SourceOptions(task_type="sts"), 1000)
    batch = task.batch(0)
    mine = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])
    shares = [task.loss(replace(batch, weight_Q=weight_Q)) for weight_Q in (mine, 1 - mine)]
    assert sum(shares) == pytest.approx(task.loss(batch), rel=1e-6)
    assert shares[0] == pytest.approx(3 / 8 * task.loss(batch), rel=1e-6)


def test_scored_pairs_embed_no_negatives_and_take_the_prompt_of_their_task(make_model: MakeModel) -> None:
    model = make_model(prompts={"query": "query: ", "document": "document: ", "sts": "owl "})
    task = a_task(model, SCORED, SourceOptions(task_type="sts"), 1000)
    (form,) = task.forms
    assert (form.query_prompt, form.document_prompt) == ("sts", "sts")
    batch = prepare(SCORED, form, model.tokenizer, ContrastiveConfig(steps=1))
    assert batch.chunks.rows == 2 * len(SCORED)
    assert batch.score_Q is not None
    assert batch.score_Q.tolist() == [pair.score for pair in SCORED]


@pytest.mark.parametrize(
    ("pairs", "task_type", "said"),
    [
        (PAIRS[:8], "sts", "needs a score of every pair, and 8 of 8 have none"),
        ([*SCORED, *PAIRS[:1]], "sts", "and 1 of 9 have none: name their column with the option score"),
        ([replace(pair, score=1.0) for pair in SCORED], "sts", "all pairs have the same"),
        (PAIRS[:8], "classification", "needs a label of every pair"),
        ([replace(pair, label="a") for pair in PAIRS[:8]], "clustering", "pairs of different labels"),
    ],
)
def test_what_a_task_needs(pairs: list[Pair], task_type: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task_notes(Source.from_pairs("some", pairs), SourceOptions(task_type=task_type), settings())


@given(st.lists(st.tuples(st.floats(0.1, 9), st.booleans()), min_size=2, max_size=6), st.floats(0.05, 0.95))
def test_the_share_of_retrieval_is_fixed(sources: list[tuple[float, bool]], share: float) -> None:
    weights = [weight for weight, _ in sources]
    tasks = ["retrieval" if retrieval else "sts" for _, retrieval in sources]
    assert fixed_share(weights, tasks, None) == weights
    if len(set(tasks)) < 2:
        with pytest.raises(UserError, match="retrieval_share"):
            fixed_share(weights, tasks, share)
        return
    found = fixed_share(weights, tasks, share)
    assert sum(w for w, task in zip(found, tasks, strict=True) if task == "retrieval") == pytest.approx(share)
    assert sum(found) == pytest.approx(1)
    again = fixed_share(found, tasks, share)
    assert again == pytest.approx(found)


@pytest.fixture
def recipe(make_model: MakeModel, tmp_path: Path) -> Path:
    make_model(num_layers=1).save_pretrained(tmp_path / "dense")
    rows = {
        "pairs": [{"query": p.query, "document": p.document} for p in PAIRS],
        "scores": [{"a": p.query, "b": p.document, "grade": i % 5} for i, p in enumerate(PAIRS)],
        "labels": [
            {
                "query": p.query,
                "document": p.document,
                "label": i % 4,
                "negative": "owl",
                "negative_labels": [9],
            }
            for i, p in enumerate(PAIRS)
        ],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    values: dict[str, Any] = {
        "base": str(tmp_path / "dense"), "out": str(tmp_path / "run"), "steps": 20, "batch_size": 8,
        "data": [
            str(tmp_path / "pairs.jsonl"),
            {"path": str(tmp_path / "scores.jsonl"), "task_type": "sts", "query": "a", "document": "b",
             "score": "grade"},
            {"path": str(tmp_path / "labels.jsonl"), "task_type": "classification"},
        ],
        "retrieval_share": 0.6, "precision": "float32",
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def test_a_run_of_three_tasks(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    code, _, err = run("train", recipe, "held_out=0.2", "evaluate_every=20")
    assert code == 0, err
    lines = metrics(tmp_path / "run")
    counts = Counter(line["source"] for line in lines)
    assert counts["pairs"] > counts["scores"] > 0 < counts["labels"]
    for line in lines:
        assert ("cosent" in line) is (line["source"] == "scores")
    assert "note: scores: its pairs are compared by their scores (CoSENT)" in err
    assert "note: labels: texts of one of its 4 labels are no negatives" in err
    assert sorted(lines[-1]["held_out"]) == ["labels", "pairs", "scores"]
    assert "columns not used" not in err
    code, out, err = run("data", "inspect", recipe, "--json")
    weights = {fact["source"]: fact["batches_per_1000"] for fact in json.loads(out)}
    assert weights == {"pairs": 600, "scores": 200, "labels": 200}
    assert json.loads(out)[1]["examples"][0]["score"] in range(5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            'data={"path": "SCORES", "task_type": "sts", "query": "a", "document": "b"}',
            "there is no column 'score'",
        ),
        (
            'data={"path": "LABELS", "task_type": "sts", "score": "query"}',
            "no number",
        ),
        (
            'data={"path": "LABELS", "task_type": "sts", "score": "label", "loss": "info_nce"}',
            "leave loss out",
        ),
        ('data={"path": "LABELS", "score": "label"}', "give task_type too"),
        ('data={"path": "LABELS", "label": "label"}', "give that too"),
        ('data={"path": "LABELS", "temperature": 1}', "temperature of a source is CoSENT's"),
        ('data={"path": "PAIRS", "task_type": "clustering"}', "name it with the option label of the source"),
        ('validation={"path": "LABELS", "label": "label"}', "hold others out with held_out"),
        ("retrieval_share=1", "retrieval_share"),
        ('data={"path": "PAIRS"}', "retrieval_share is 0.6, and all sources are of task_type retrieval"),
    ],
)
def test_what_a_recipe_gets_wrong_is_one_sentence(
    change: str, said: str, run: Run, recipe: Path, tmp_path: Path
) -> None:
    import re

    for name in ("pairs", "scores", "labels"):
        change = change.replace(name.upper(), str(tmp_path / f"{name}.jsonl"))
    code, out, err = run("train", recipe, change)
    assert (code, out) == (2, "")
    assert re.search(said, err.splitlines()[-1]), err


@pytest.mark.parametrize("key", ["distill.teachers", "guide.model"])
def test_nobody_judges_candidates_that_are_not_there(
    key: str, run: Run, recipe: Path, tmp_path: Path
) -> None:
    values = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(values | {"data": values["data"][1:], "retrieval_share": None}))
    code, _, err = run("train", recipe, f"{key}={tmp_path / 'dense'}", "steps=1")
    assert code == 2
    name = key.partition(".")[0]
    assert err.splitlines()[-1] == (
        f"error: {name} judges the candidates of queries, and no source is of task_type retrieval: pairs are "
        f"learned by their scores and labels alone; leave {name} out, or add a source of retrieval"
    )
    assert not (tmp_path / "run").exists()


def test_its_recipe_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", "data")
    recipe = Path(__file__).parents[3] / "recipes" / "systems" / "task-types.yaml"
    config = load_recipe(recipe, [])
    assert [source.task_type for source in config.data] == ["retrieval", "sts"]
    assert config.data[1].score == "score"


def test_a_queue_knows_no_labels(make_model: MakeModel) -> None:
    options = SourceOptions(task_type="clustering")
    with pytest.raises(UserError, match=r"loss.queue keeps candidates .* task_type clustering"):
        a_task(make_model(num_layers=1), LABELLED, options, 1000, queue=8)
