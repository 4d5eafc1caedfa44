"""Training a reranker: exact over chunks, exact after a stop, and what it leaves ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

import moembed
from conftest import MakeModel, Run
from moembed.config import validate
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.reranker import fresh_reranker, read_reranker
from moembed.losses.balance import balance_loss
from moembed.losses.reranking import listwise_softmax
from moembed.moe.router import RouterConfig
from moembed.reranker import Reranker
from moembed.runs.train_reranker import RerankerConfig, build
from moembed.training.optim import OptimConfig
from moembed.training.parallel import ALONE
from moembed.training.reranking.batch import candidates
from moembed.training.reranking.held_out import HeldOutLists
from moembed.training.reranking.settings import RerankingConfig
from moembed.training.reranking.task import RerankingTask
from moembed.training.reranking.train import train_reranking
from moembed.types import Pair, UserError
from training_runs import checkpoints, interrupt_at, metrics

WORDS = ["mole", "owl", "worms", "voles", "night", "long", "wide", "where"]
PAIRS = [
    Pair(f"what {a} {b}", f"the {b} and the {a}", (f"the {WORDS[i - 3]} and the {b}", f"long {a}"))
    for i, a in enumerate(WORDS)
    for b in WORDS
    if a != b
]


def settings(**changes: Any) -> RerankingConfig:
    values: dict[str, Any] = {"steps": 6, "batch_size": 8, "chunk_tokens": 60, "precision": "float32"}
    values |= {"save_every": 2, "optim": OptimConfig(learning_rate=5e-3, warmup_steps=2.0)}
    return RerankingConfig.model_validate(values | changes)


@pytest.fixture
def base(make_model: MakeModel, tmp_path: Path) -> Path:
    """A small mixture of experts with types of tokens."""
    moe = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(top_k=2))
    embedder: Embedder = make_model(num_layers=2, moe=moe)
    embedder.tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    embedder.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def fresh(base: Path) -> Callable[[], Reranker]:
    return lambda: Reranker(fresh_reranker(base, seed=1))


def run_training(config: RerankingConfig, model: Reranker, folder: Path, resume: bool = False) -> None:
    train_reranking(config, model, [Source.from_pairs("tiny", PAIRS)], [1.0], folder, resume)


def test_the_gradient_of_a_batch_is_that_of_its_formula(fresh: Callable[[], Reranker]) -> None:
    """Chunks, random negatives and the routers' balance included."""
    config = settings(random_negatives=2)
    task = RerankingTask(config, fresh(), [Source.from_pairs("tiny", PAIRS)], [1.0], ALONE)
    batch = task.batch(0)
    assert len(batch.chunks.batches) > 2
    task.model.train()
    terms = task.backward(0, batch)
    found = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}

    # all lists in one pass
    whole = RerankingTask(
        settings(random_negatives=2, chunk_tokens=10**6), fresh(), task.sources, [1.0], ALONE
    )
    (chunk,), (row_B,) = whole.batch(0).chunks.batches, whole.batch(0).chunks.row_CB
    model = whole.model.train()
    encoded = model(chunk)
    score_P = torch.zeros(len(row_B)).index_copy(0, row_B, encoded.vector_BM[:, 0])
    loss = listwise_softmax(score_P, batch.query_P, batch.positive_P, len(batch.pairs))
    balance = 0.01 * balance_loss(encoded.router, encoded.router)
    (loss + balance).backward()
    assert terms.loss == pytest.approx((loss + balance).item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-5), name


def test_the_lists_hold_what_they_should() -> None:
    pairs = [
        Pair("where", "in the meadow", ("at night", "In  the meadow", "under")),
        Pair("where", "under"),
        Pair("what", "worms", ("voles",)),
    ]
    found, left_out = candidates(pairs, None, 2, [0])
    lists = [[c.text for c in found if c.query == place] for place in range(3)]
    # equal texts and another answer to the same query are no negatives, whatever a miner found
    assert lists[0] == ["in the meadow", "at night", "worms"]
    assert left_out == 2
    assert lists[1] == ["under", "worms"]
    assert sorted(lists[2]) == sorted(["worms", "voles", "in the meadow", "under"])
    assert [c.positive for c in found if c.query == 2] == [True, False, False, False]
    assert [c.text for c in candidates(pairs, 0, 0, [0])[0]] == ["in the meadow", "under", "worms"]
    assert candidates(pairs, None, 1, [5]) == candidates(pairs, None, 1, [5])


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    fresh: Callable[[], Reranker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(held_out=0.2, evaluate_every=3, random_negatives=1)
    run_training(config, fresh(), tmp_path / "whole")
    with monkeypatch.context() as patch:

        def stop() -> None:
            raise RuntimeError("power cut")

        interrupt_at(4, patch, stop)
        with pytest.raises(RuntimeError, match="power cut"):
            run_training(config, fresh(), tmp_path / "cut")
    assert "step-000002" in checkpoints(tmp_path / "cut")
    run_training(config, fresh(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    one, other = (read_reranker(tmp_path / name / "model") for name in ("whole", "cut"))
    assert one.head == other.head
    for mine, theirs in ((one.state, other.state), (one.head_state, other.head_state)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("kind", ["listwise", "bce"])
def test_it_learns_to_rank_and_sentence_transformers_opens_it(
    kind: str, base: Path, tmp_path: Path, run: Run
) -> None:
    """The whole way of a user: recipe, training, the folder, and `moembed rerank`."""
    lines = [
        json.dumps({"query": pair.query, "document": pair.document, "negatives": list(pair.negatives)})
        for pair in PAIRS
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"task: reranking\nbase: {base}\ndata: {tmp_path / 'pairs.jsonl'}\nout: {tmp_path / 'run'}\n"
        f"steps: 40\nbatch_size: 16\nheld_out: 0.2\nprecision: float32\nloss: {{kind: {kind}}}\n"
        "optim: {learning_rate: 1e-2, warmup_steps: 4}\n"
    )
    code, out, err = run("train", recipe, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 40
    log = metrics(tmp_path / "run")
    (before,), (after,) = log[0]["held_out_mrr_before"].values(), log[-1]["held_out_mrr"].values()
    assert after > before
    assert log[0]["candidates"] == 48

    documents = ["the owl and the mole", "long mole", "the night and the owl"]
    scores = moembed.Reranker.from_pretrained(tmp_path / "run").scores("what mole owl", documents)
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(tmp_path / "run" / "model"), device="cpu").predict(
        [("what mole owl", text) for text in documents]
    )
    assert np.allclose(theirs, scores, atol=1e-5)

    rows = [{"text": text, "n": i} for i, text in enumerate(documents)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("rerank", tmp_path / "run", tmp_path / "docs.jsonl", "--query", "what mole owl")
    code, out, err = run(*arguments, "--json", "-k", 2, "--dtype", "float32")
    assert code == 0, err
    order = np.argsort(-scores, kind="stable")[:2]
    assert [hit["row"]["n"] for hit in json.loads(out)] == order.tolist()
    assert [hit["score"] for hit in json.loads(out)] == pytest.approx(scores[order].tolist(), abs=1e-5)
    code, out, err = run(*arguments, "--dtype", "float32")
    assert code == 0, err
    assert out.startswith(f"{scores[order[0]]:8.4f}  {order[0]}")


def test_bad_recipes_are_one_sentence(base: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"query": p.query, "document": p.document}) + "\n" for p in PAIRS)
    )
    recipe: dict[str, Any] = {"task": "reranking", "base": str(base), "data": str(tmp_path / "pairs.jsonl")}
    recipe |= {"out": str(tmp_path / "run"), "steps": 2, "batch_size": 4}
    with pytest.raises(UserError, match=r"have no hard negatives.*moembed mine"):
        moembed.train_reranker(recipe)
    for changes, sentence in (
        ({"negatives": 0}, "nothing to compare with"),
        ({"random_negatives": 4}, "fewer than batch_size"),
        ({"random_negatives": 2, "max_length": 99}, "max_length is 99, but the model reads 32"),
        ({"epochs": 1, "steps": 1}, "exactly one of steps, epochs and minutes"),
    ):
        with pytest.raises(UserError, match=sentence):
            moembed.train_reranker({**recipe, "out": str(tmp_path / "b"), **changes})
    with pytest.raises(UserError, match=r"moembed\.train_reranker"):
        moembed.train(recipe)
    code, _, err = run("rerank", tmp_path / "nowhere", tmp_path / "pairs.jsonl", "--query", "owl")
    assert code == 2
    assert "error:" in err
    code, _, err = run("rerank", base, tmp_path / "pairs.jsonl", "--query", "owl", "--column", "document")
    assert code == 2
    assert "error:" in err


def test_hard_negatives_may_come_late(fresh: Callable[[], Reranker]) -> None:
    """Of a source that begins with more than a thousand pairs without any."""
    pairs = [*([replace(PAIRS[0], negatives=())] * 1200), PAIRS[0]]
    assert PAIRS[0].negatives
    task = RerankingTask(settings(), fresh(), [Source.from_pairs("late", pairs)], [1.0], ALONE)
    assert task.sizes == [1201]


def test_sources_of_one_name_are_all_looked_at(fresh: Callable[[], Reranker]) -> None:
    sources = [Source.from_pairs("train", pairs) for pairs in (PAIRS, PAIRS[::-1])]
    task = RerankingTask(settings(held_out=0.2), fresh(), sources, [1.0, 1.0], ALONE)
    assert [*HeldOutLists(task).found()["held_out"]] == ["train", "train (2)"]
    assert [*task.contents()] == ["train", "train (2)"]


def test_a_head_keeps_its_pooling(base: Path, fresh: Callable[[], Reranker], tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path / "ranker")
    recipe = {"task": "reranking", "data": "x", "out": "y", "steps": 1, "pooling": "mean"}
    assert build(validate(RerankerConfig, recipe | {"base": str(base)})).head.config.pooling == "mean"
    with pytest.raises(UserError, match=r"pooling is mean, and the head of .*ranker reads by cls: leave"):
        build(validate(RerankerConfig, recipe | {"base": str(tmp_path / "ranker")}))
