"""mteb's own runner on tasks from disk: it must find what we find, and be given what it asks for."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import MakeModel
from moembed.cli.mteb import run_mteb
from moembed.compare.statistics import statistic
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task, load_any
from moembed.evaluation.tasks import evaluate
from moembed.families.flat import FlatMoE
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from tagged_models import tagged_model

mteb = pytest.importorskip("mteb")
runner = pytest.importorskip("moembed.evaluation.mteb")
local_task = pytest.importorskip("moembed.evaluation.mteb_tasks").local_task

KNOWN = "the mole moles digs under an owl owls hunt hunts voles at night eat worms where is wide long"
WORDS = KNOWN.split()
NAME = "someone/something"
ROUNDED = 5.001e-6  # mteb rounds what it finds of rankings to five digits


def sentences(count: int, seed: int) -> list[str]:
    """Distinct texts, so that no two candidates tie: mteb breaks ties by name, and we by row."""
    draw = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choice(WORDS, draw.integers(3, 9)))] = None
    return list(found)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def retrieval(tmp_path: Path) -> Path:
    """Graded judgements of 20 queries over 40 documents, half of which have a title."""
    folder, draw = tmp_path / "burrows", np.random.default_rng(0)
    (folder / "qrels").mkdir(parents=True)
    texts = sentences(60, 1)
    corpus = [{"_id": f"d{n}", "title": "moles" * (n % 2), "text": text} for n, text in enumerate(texts[:40])]
    write(folder / "corpus.jsonl", corpus)
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, text in enumerate(texts[40:])])
    judged = [(q, d, draw.integers(0, 4)) for q in range(20) for d in draw.choice(40, 6, replace=False)]
    lines = ["query-id\tcorpus-id\tscore", *(f"q{q}\td{d}\t{grade}" for q, d, grade in judged)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def sts(folder: Path) -> Path:
    scores = np.random.default_rng(2).integers(0, 6, 30).tolist()
    pairs = zip(sentences(30, 3), sentences(30, 4), scores, strict=True)
    rows = [{"sentence1": first, "sentence2": second, "score": score} for first, second, score in pairs]
    return write(folder / "alike.jsonl", rows)


def same_or_not(folder: Path) -> Path:
    labels = np.random.default_rng(10).integers(0, 2, 30).tolist()
    pairs = zip(sentences(30, 11), sentences(30, 12), labels, strict=True)
    rows = [{"sentence1": first, "sentence2": second, "labels": label} for first, second, label in pairs]
    return write(folder / "same.jsonl", rows)


def bitext(folder: Path) -> Path:
    pairs = zip(sentences(30, 5), sentences(30, 6), ["deu-eng", "fra-eng"] * 15, strict=True)
    rows = [{"sentence1": first, "sentence2": second, "pair": pair} for first, second, pair in pairs]
    return write(folder / "pairs.jsonl", rows)


def classification(folder: Path) -> Path:
    rows = [
        {
            "text": text,
            "label": f"label {n % 3}",
            "split": "test" if n % 5 == 0 else "train",
            "language": "en",
        }
        for n, text in enumerate(sentences(90, 7))
    ]
    return write(folder / "labels.jsonl", rows)


def clustering(folder: Path) -> Path:
    rows = [{"text": text, "label": str(n % 4)} for n, text in enumerate(sentences(1200, 8))]
    return write(folder / "clusters.jsonl", rows)


def reranking(folder: Path) -> Path:
    texts = sentences(90, 9)
    rows = [
        {"query": texts[n], "positive": texts[n + 1 : n + 3], "negative": texts[n + 3 : n + 9]}
        for n in range(0, 90, 9)
    ]
    return write(folder / "candidates.jsonl", rows)


def ours(task: Task, model: Embedder, metrics: list[str]) -> dict[str, float]:
    found = evaluate(task, model, metrics)
    return {metric: statistic(metric)(found.values[metric]) for metric in metrics}


def theirs(task: Task, model: Embedder) -> list[dict[str, Any]]:
    """The scores of every subset."""
    encoder = runner.MtebEncoder(model, NAME)
    result = mteb.evaluate(encoder, local_task(task), cache=None, co2_tracker=False, show_progress_bar=False)
    return list(result.task_results[0].scores["test"])


# ---- the same scores ---------------------------------------------------------------------------------------


def test_retrieval_scores_are_ours(retrieval: Path, moe_model: Embedder) -> None:
    task = load_any(retrieval)
    metrics = ["ndcg@10", "ndcg@3", "recall@10", "precision@5", "mrr@10", "map@100"]
    (found,) = theirs(task, moe_model)
    for metric, value in ours(task, moe_model, metrics).items():
        assert found[metric.replace("@", "_at_")] == pytest.approx(value, abs=ROUNDED), metric
    assert 0 < found["ndcg_at_10"] < 1
    assert found["main_score"] == found["ndcg_at_10"]


def test_reranking_scores_are_ours(tmp_path: Path, moe_model: Embedder) -> None:
    task = load_any(reranking(tmp_path))
    (found,) = theirs(task, moe_model)
    for metric, value in ours(task, moe_model, ["map@1000", "ndcg@10", "mrr@10"]).items():
        assert found[metric.replace("@", "_at_")] == pytest.approx(value, abs=ROUNDED), metric


def test_sts_scores_are_ours(tmp_path: Path, moe_model: Embedder) -> None:
    task = load_any(sts(tmp_path))
    (found,) = theirs(task, moe_model)
    for metric, value in ours(task, moe_model, ["spearman", "pearson"]).items():
        assert found[f"cosine_{metric}"] == pytest.approx(value, abs=1e-6)
        assert found[metric] == pytest.approx(value, abs=1e-6)  # by the model's own similarity


def test_pair_classification_scores_are_ours(tmp_path: Path, moe_model: Embedder) -> None:
    task = load_any(same_or_not(tmp_path))
    (found,) = theirs(task, moe_model)
    expected = ours(task, moe_model, ["ap"])["ap"]
    assert 0 < expected < 1
    assert found["main_score"] == found["cosine_ap"] == pytest.approx(expected, abs=1e-6)


def test_retrieval_without_identical_ids_scores_as_ours(retrieval: Path, moe_model: Embedder) -> None:
    """The queries are documents of the corpus, under the same ids; no judgement names a query itself."""
    rows = [json.loads(line) for line in (retrieval / "corpus.jsonl").read_text().splitlines()]
    write(retrieval / "queries.jsonl", [{"_id": row["_id"], "text": row["text"]} for row in rows[:20]])
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"d{q}\td{d}\t{1 + (q + d) % 3}" for q in range(20) for d in range(q + 1, q + 19, 3) if d < 40]
    (retrieval / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    task = load_any(retrieval)
    assert isinstance(task, RetrievalTask)
    assert task.same_ids
    (found,) = theirs(task, moe_model)
    for metric, value in ours(task, moe_model, ["ndcg@10", "recall@10", "map@100"]).items():
        assert found[metric.replace("@", "_at_")] == pytest.approx(value, abs=ROUNDED), metric
    others = ours(replace(task, same_ids=False), moe_model, ["ndcg@10"])
    assert others["ndcg@10"] < found["ndcg_at_10"]


@pytest.mark.parametrize(
    ("make", "metric"),
    [(bitext, "f1"), (bitext, "accuracy"), (classification, "accuracy"), (clustering, "v_measure")],
)
def test_other_scores_are_ours(
    make: Callable[[Path], Path], metric: str, tmp_path: Path, moe_model: Embedder
) -> None:
    """Subsets are of one size here, so that the mean over them is the mean over items."""
    task = load_any(make(tmp_path))
    found = [subset[metric] for subset in theirs(task, moe_model)]
    assert np.mean(found) == pytest.approx(ours(task, moe_model, [metric])[metric], abs=1e-9)


def test_grades_that_mteb_cannot_count(retrieval: Path) -> None:
    file = retrieval / "qrels" / "test.tsv"
    file.write_text(file.read_text() + "q0\td39\t0.5\n")
    with pytest.raises(UserError, match=r"whole grades only, and burrows has the grade 0.5"):
        local_task(load_any(retrieval))


# ---- the protocol ------------------------------------------------------------------------------------------


def test_the_protocol(moe_model: Embedder) -> None:
    encoder = runner.MtebEncoder(moe_model, NAME)
    assert isinstance(encoder, mteb.EncoderProtocol)
    assert not isinstance(encoder, mteb.SearchProtocol | mteb.CrossEncoderProtocol)


PROMPTS = {"query": "a: ", "passage": "b: ", "STS": "c: ", "Clustering": "d: ", "Retrieval-query": "e: "}
SPECIAL = PROMPTS | {"SciFact": "f: ", "SciFact-document": "g: "}


@pytest.mark.parametrize(
    ("prompts", "name", "kind", "role", "expected"),
    [
        (SPECIAL, "SciFact", "Retrieval", "document", "SciFact-document"),
        (SPECIAL, "SciFact", "Retrieval", "query", "SciFact"),
        (PROMPTS, "SciFact", "Retrieval", "query", "Retrieval-query"),
        (PROMPTS, "SciFact", "Retrieval", "document", "passage"),
        (PROMPTS, "AskUbuntu", "Reranking", "query", "query"),
        (PROMPTS, "STS12", "STS", None, "STS"),
        (PROMPTS, "SummEval", "Summarization", None, None),
        ({"clustering": "d: "}, "ArXiv", "Clustering", None, "clustering"),
        ({}, "SciFact", "Retrieval", "query", None),
    ],
)
def test_the_most_special_prompt_is_chosen(
    prompts: dict[str, str],
    name: str,
    kind: str,
    role: str | None,
    expected: str | None,
    make_model: MakeModel,
) -> None:
    encoder = runner.MtebEncoder(make_model(prompts=prompts), NAME)
    assert encoder.prompt_name(SimpleNamespace(name=name, type=kind), role) == expected


def test_prompts_go_in_front_of_the_texts(retrieval: Path, make_model: MakeModel) -> None:
    model = make_model(prompts={"query": "eat ", "passage": "hunt "})
    encoder = runner.MtebEncoder(model, NAME)
    seen: dict[str, np.ndarray] = {}

    def remember(inputs: Any, prompt_type: Any = None, **rest: Any) -> np.ndarray:
        seen[prompt_type.value] = type(encoder).encode(encoder, inputs, prompt_type=prompt_type, **rest)
        return seen[prompt_type.value]

    encoder.encode = remember
    task = load_any(retrieval)
    mteb.evaluate(encoder, local_task(task), cache=None, co2_tracker=False, show_progress_bar=False)
    asked = encoder.asked[task.name]
    assert asked.prompts == {"query": "query", "document": "passage"}
    assert asked.texts == len(task.queries) + len(task.documents)
    queries = model.encode([f"eat {text}" for text in task.queries])
    documents = model.encode([f"hunt {text}" for text in task.documents])
    np.testing.assert_allclose(seen["query"], queries, atol=1e-6)
    np.testing.assert_allclose(seen["document"], documents, atol=1e-6)
    assert np.abs(seen["query"] - model.encode(task.queries)).max() > 1e-3


def test_cut_texts_are_counted(tmp_path: Path, moe_model: Embedder) -> None:
    long = "moles eat worms at night " * 20
    rows = [{"sentence1": f"{text} {long * (n < 7)}", "sentence2": text, "score": n} for n, text in
            enumerate(sentences(20, 0))]  # fmt: skip
    encoder = runner.MtebEncoder(moe_model, NAME)
    task = local_task(load_any(write(tmp_path / "long.jsonl", rows)))
    mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert (encoder.asked["long"].truncated, encoder.asked["long"].texts) == (7, 40)


def test_experts_by_role_are_told_the_role_whatever_the_prompt(make_model: MakeModel) -> None:
    dense = make_model(prompts={"Any-query": "eat "})
    model = tagged_model(dense.parts(), tags=["query", "document"])
    encoder, metadata = runner.MtebEncoder(model, NAME), SimpleNamespace(name="Any", type="Retrieval")
    for role in ("query", "document"):
        found = encoder.encode(
            [{"text": WORDS}], task_metadata=metadata, hf_split="test", hf_subset="default",
            prompt_type=SimpleNamespace(value=role),
        )  # fmt: skip
        prefix = "eat " if role == "query" else ""
        np.testing.assert_allclose(found, model.encode(WORDS, prompt=prefix, tag=role), atol=1e-6)


def test_vectors_are_shortened(moe_model: Embedder) -> None:
    encoder = runner.MtebEncoder(moe_model, NAME, "main", dim=4)
    metadata = SimpleNamespace(name="any", type="STS")
    found = encoder.encode([{"text": WORDS}], task_metadata=metadata, hf_split="test", hf_subset="default")
    np.testing.assert_allclose(found, moe_model.encode(WORDS, dim=4), atol=1e-6)
    assert encoder.mteb_model_meta.embed_dim == 4
    whole = runner.MtebEncoder(moe_model, NAME, "main").mteb_model_meta
    assert encoder.mteb_model_meta.experiment_name != whole.experiment_name is None


# ---- the model card ----------------------------------------------------------------------------------------


def test_parameters_are_counted_as_mteb_counts_them(make_model: MakeModel) -> None:
    dense = make_model()
    sparse = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2)))
    for model in (dense, sparse):
        meta = runner.MtebEncoder(model, NAME).mteb_model_meta
        table = model.encoder.word.weight.numel()
        assert meta.n_parameters == sum(p.numel() for p in model.parameters()) == model.num_parameters()
        assert meta.n_embedding_parameters == table
        assert meta.n_active_parameters == model.num_parameters(active=True) - table
    assert meta.n_active_parameters < meta.n_parameters - table
    assert (meta.max_tokens, meta.embed_dim, meta.use_instructions) == (32, 16, True)


def test_the_revision_follows_the_model(make_model: MakeModel) -> None:
    def revision(model: Embedder) -> str:
        return str(runner.MtebEncoder(model, NAME).mteb_model_meta.revision)

    shorter, other = make_model(), make_model(prompts={"query": "ask "})
    shorter.tokenizer.max_length = 16
    assert revision(make_model()) == revision(make_model())
    ends = make_model()
    ends.tokenizer.truncation_side = "left"
    assert len({revision(model) for model in (make_model(), make_model(seed=1), shorter, other, ends)}) == 5


# ---- the cache ---------------------------------------------------------------------------------------------


def forbidden(*arguments: Any, **rest: Any) -> Any:
    raise AssertionError("asked for vectors again")


def test_a_second_run_is_answered_from_the_cache(
    retrieval: Path, tmp_path: Path, moe_model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, encoder = tmp_path / "cache", runner.MtebEncoder(moe_model, NAME)
    first = runner.evaluate_task(encoder, local_task(load_any(retrieval)), cache)
    revision = encoder.mteb_model_meta.revision
    file = cache / "results" / "someone__something" / revision / "burrows.json"
    written = json.loads(file.read_text())
    assert written["task_name"] == "burrows"
    assert written["scores"]["test"][0]["ndcg_at_10"] == first.get_score()
    card = json.loads((file.parent / "model_meta.json").read_text())
    assert card["n_active_parameters_override"] < card["n_parameters"]

    with monkeypatch.context() as patch:
        patch.setattr(runner.MtebEncoder, "encode", forbidden)
        again = runner.evaluate_task(encoder, local_task(load_any(retrieval)), cache)
        by_mteb = mteb.evaluate(encoder, local_task(load_any(retrieval)), cache=mteb.ResultCache(cache))
        assert again.get_score() == by_mteb.task_results[0].get_score() == first.get_score()
        with pytest.raises(AssertionError, match="again"):
            runner.evaluate_task(
                runner.MtebEncoder(moe_model, NAME, dim=8), local_task(load_any(retrieval)), cache
            )

    file.write_text(file.read_text()[:100])  # as a full disk leaves it
    assert runner.evaluate_task(encoder, local_task(load_any(retrieval)), cache).scores == first.scores
    assert json.loads(file.read_text())["scores"] == written["scores"]


def test_other_data_of_the_same_name_is_computed(
    retrieval: Path, tmp_path: Path, moe_model: Embedder
) -> None:
    cache, encoder = tmp_path / "cache", runner.MtebEncoder(moe_model, NAME)
    first = runner.evaluate_task(encoder, local_task(load_any(retrieval)), cache)
    (retrieval / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    second = runner.evaluate_task(encoder, local_task(load_any(retrieval)), cache)
    assert first.dataset_revision != second.dataset_revision
    assert first.scores != second.scores


# ---- names and the command ---------------------------------------------------------------------------------


def test_tasks_are_found_by_name(tmp_path: Path) -> None:
    nano = runner.find_tasks(["NanoBEIR"])
    assert len(nano) == 13
    assert {task.metadata.type for task in nano} == {"Retrieval"}
    assert len(runner.find_tasks(["NanoBEIR", "NanoSciFactRetrieval"])) == 13
    english = runner.find_tasks(["MTEB(eng, v2)"])
    assert {"STS12", "ArguAna", "Banking77Classification.v2"} & {task.metadata.name for task in english}
    assert [task.metadata.name for task in runner.find_tasks(["STS12", str(sts(tmp_path))])] == [
        "STS12",
        "alike",
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("NanoBIER", r"no task or benchmark 'NanoBIER', and there is no such file, did you mean 'NanoBEIR'"),
        ("CIFAR10", r"task CIFAR10 holds image: the model reads text alone"),
    ],
)
def test_names_it_does_not_know(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        runner.find_tasks(["STS12", name])


def test_the_command(
    retrieval: Path, tmp_path: Path, moe_model: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    moe_model.save_pretrained(tmp_path / "run" / "model")
    models = [str(tmp_path / "run")]
    names, out = [str(retrieval), str(sts(tmp_path))], tmp_path / "scores.json"
    run_mteb(models, names, dtype="float32", cache=tmp_path / "cache", out=out)
    shown = capsys.readouterr()
    assert "note" in shown.err
    assert "query with the prompt 'query', document with the prompt 'document'" in shown.err
    assert "STS without a prompt" in shown.err
    assert "burrows" in shown.out
    assert "mean of tasks" in shown.out
    assert len(list((tmp_path / "cache" / "results" / "local__run").glob("*/*.json"))) == 3

    run_mteb(models, names, dtype="float32", cache=tmp_path / "cache", json_=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["tasks"].keys() == json.loads(out.read_text())["tasks"].keys() == {"burrows", "alike"}
    task = load_any(retrieval)
    score = ours(task, moe_model, ["ndcg@10"])["ndcg@10"]
    assert answer["tasks"]["burrows"]["scores"][models[0]] == pytest.approx(score, abs=ROUNDED)


def test_data_that_cannot_be_had(
    retrieval: Path, tmp_path: Path, moe_model: Embedder, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def unreachable(name: str) -> list[Any]:
        task = local_task(load_any(name))
        task.data_loaded = Path(name) == retrieval
        return [task]

    monkeypatch.setattr(runner, "_named", unreachable)
    moe_model.save_pretrained(tmp_path / "model")
    names = [str(retrieval), str(sts(tmp_path))]
    with pytest.raises(UserError, match=r"mteb's task alike cannot be loaded \(.+\): check the network"):
        run_mteb([str(tmp_path / "model")], names, dtype="float32", cache=tmp_path / "cache")
    shown = capsys.readouterr().out
    assert "burrows" in shown
    assert "mean" not in shown
    assert list((tmp_path / "cache").rglob("burrows.json"))


def test_without_mteb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "moembed.evaluation.mteb")
    with pytest.raises(UserError, match=r"pip install 'moembed\[eval\]'"):
        importlib.import_module("moembed.evaluation.mteb")
