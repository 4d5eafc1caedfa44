"""LEAF: a student that gives its teacher's vectors, and queries that search the teacher's documents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

from conftest import MakeModel, Run
from moembed.data.sampler import Sampler
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.read import read_folder
from moembed.losses.balance import balance_loss
from moembed.losses.distillation import VECTOR_LOSSES, distance
from moembed.moe.router import RouterConfig
from moembed.runs.distill import DistillConfig, distill, open_teacher, open_texts
from moembed.search.index import Index
from moembed.training.distillation.task import DistillationTask
from moembed.training.distillation.teacher import TeacherVectors
from moembed.training.distillation.texts import RoleTexts, cut_texts
from moembed.training.parallel import ALONE
from moembed.types import UserError
from training_runs import TIMES, WORDS, assert_same_weights, metrics

TEXTS = [f"what does the {a} do in the {b} at night" for a in WORDS for b in WORDS if a != b]


def unit(rows: int, seed: int, dim: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)


@pytest.fixture
def teacher_folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """Four layers, 16 coordinates, and prompts of its own for both roles."""
    model = make_model(seed=7, prompts={"query": "what: ", "document": "the: "})
    model.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def student_folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """Two layers, 8 coordinates, experts in the second, and a shorter reach."""
    moe = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(top_k=2, jitter=0.1))
    model = make_model(seed=3, num_layers=2, width=8, ffn_width=12, moe=moe, dropout=0.1, max_positions=24)
    model.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than these runs; test_report.py draws those of a run."""

    def refuse(run: Path, title: str) -> Path:
        raise UserError("not in this test")

    monkeypatch.setattr("moembed.runs.distill.write_report", refuse)


def recipe(tmp_path: Path, **changes: object) -> DistillConfig:
    (tmp_path / "texts.txt").write_text("".join(text + "\n" for text in TEXTS))
    values = {
        "teacher": str(tmp_path / "teacher"), "base": str(tmp_path / "student"), "out": str(tmp_path / "run"),
        "data": str(tmp_path / "texts.txt"), "steps": 40, "batch_size": 8, "chunk_tokens": 50,
        "precision": "float32", "held_out": 0.1, "save_every": 20, "cache": str(tmp_path / "vectors"),
        "optim": {"learning_rate": 1e-2, "warmup_steps": 2.0},
    }  # fmt: skip
    return DistillConfig.model_validate(values | changes)


@contextmanager
def killed_in(method: str, call: int) -> Iterator[None]:
    """The task ends at that call of its method, counted from 0."""
    real, calls = getattr(DistillationTask, method), iter(range(100))

    def dies(task: DistillationTask, *values: object) -> object:
        if next(calls) == call:
            raise RuntimeError("killed")
        return real(task, *values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTask, method, dies)
        with pytest.raises(RuntimeError, match="killed"):
            yield


@pytest.mark.parametrize(
    ("ours", "theirs", "factor"), [("distance", "l2", 1), ("cosine", "cosine", 1), ("squared", "mse", 5)]
)
def test_the_losses_are_those_of_sentence_transformers(ours: str, theirs: str, factor: int) -> None:
    """Their squared distance is a mean over coordinates, ours a sum."""

    class Student(torch.nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"sentence_embedding": features["x"]}

    one, other = unit(6, 1), unit(6, 2)
    loss = EmbedDistillLoss(Student(), distance_metric=theirs)  # type: ignore[arg-type]
    assert float(VECTOR_LOSSES[ours](one, other)) == pytest.approx(
        factor * float(loss([{"x": one}], other)), rel=1e-5
    )


def test_a_student_that_is_there_has_no_gradient() -> None:
    one = unit(3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(distance(one, one.detach()), one)
    assert torch.equal(gradient, torch.zeros_like(one))


def test_the_gradient_of_a_batch_is_that_of_its_formula(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Over several chunks, of different lengths; the routers' balance is that of one chunk alone."""
    config = recipe(tmp_path)
    model = Embedder.from_pretrained(student_folder)
    model.head = _projected(student_folder, 16).head
    encoder = open_teacher(str(teacher_folder))
    teacher = TeacherVectors(encoder, tmp_path / "vectors")
    texts = [text[: 9 + 3 * i] for i, text in enumerate(TEXTS[:8])]
    teacher.fill(texts, "query", lambda count: None)
    source = RoleTexts("tiny", "query", texts, len(texts))
    for loss in ("squared", "distance", "cosine"):
        values = config.model_dump() | {"loss": {"kind": loss, "balance": 0.0}}
        task = DistillationTask(DistillConfig.model_validate(values), model, teacher, [source], ALONE)
        batch = task.prepare(source, texts)
        assert len(batch.chunks) > 1
        model.zero_grad()
        terms = task.backward(0, batch)
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        rows, _ = model.rows(texts, role="query")
        wanted = encoder.vectors(texts, role="query").array
        student_BM = torch.cat([_one(model, row) for row in rows])
        plain = VECTOR_LOSSES[loss](student_BM, torch.from_numpy(wanted))
        plain.backward()
        assert terms.loss == pytest.approx(float(plain.detach()), rel=1e-5)
        for name, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad, atol=1e-5, rtol=1e-4)


def test_the_balance_loss_is_added(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, loss={"balance": 0.5}, chunk_tokens=10_000)
    model = _projected(student_folder, 16)
    teacher = TeacherVectors(open_teacher(str(teacher_folder)), tmp_path / "vectors")
    teacher.fill(TEXTS[:8], "document", lambda count: None)
    source = RoleTexts("tiny", "document", TEXTS[:8], 8)
    task = DistillationTask(config, model, teacher, [source], ALONE)
    batch = task.prepare(source, TEXTS[:8])
    terms = task.backward(0, batch)
    stats = task.embed(batch.chunks[0]).router
    balance = float(balance_loss(stats, stats).detach())
    assert terms.log["router_loss"] == pytest.approx(0.5 * balance, rel=1e-5)
    assert terms.loss == pytest.approx(terms.log["squared"] + terms.log["router_loss"], rel=1e-6)


def test_a_run_nears_the_teacher_and_serves_its_projection(
    student_folder: Path,
    teacher_folder: Path,
    tmp_path: Path,
    run: Run,
    make_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Loss and cosine on held-out texts of both roles; asymmetric search is the product of both by hand."""
    result = distill(recipe(tmp_path, steps=40))
    said = capsys.readouterr().err
    assert "a linear layer takes the student's 8 coordinates to the teacher's 16" in said
    assert "the student gets the prompts of its teacher: query 'what: ', document 'the: '" in said
    lines = metrics(tmp_path / "run")
    assert {line["role"] for line in lines} == {"query", "document"}
    for role in ("query", "document"):
        name = f"{tmp_path / 'texts.txt'}, {role}"
        assert lines[-1]["held_out"][name] < 0.6 * lines[0]["held_out_before"][name]
        assert lines[-1]["held_out_cosine"][name] > lines[0]["held_out_cosine_before"][name]

    teacher, student = Embedder.from_pretrained(teacher_folder), Embedder.from_pretrained(result.model)
    assert student.dim == 16
    assert student.head.config.dense[0].in_dim == 8
    texts = TEXTS[-4:]
    cosine = (student.encode_query(texts) * teacher.encode_query(texts)).sum(1).mean()
    assert cosine > 0.7

    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "docs.jsonl").write_text(rows)
    options = ("--model", teacher_folder, "--out", tmp_path / "i", "--dtype", "float32")
    assert run("index", tmp_path / "docs.jsonl", *options)[0] == 0
    hits = Index.open(tmp_path / "i").search(["what does the owl do"], 5, model=student)
    score_N = (student.encode_query(["what does the owl do"]) @ teacher.encode_document(TEXTS).T)[0]
    assert hits.index[0].tolist() == np.argsort(-score_N, kind="stable")[:5].tolist()
    assert hits.score[0] == pytest.approx(np.sort(score_N)[::-1][:5], abs=1e-5)

    code, _, err = run("search", tmp_path / "i", "moles", "--model", tmp_path / "run")
    assert (code, f"the documents were embedded by {teacher_folder}" in err) == (0, True)
    make_model(seed=9).save_pretrained(tmp_path / "other")
    code, _, err = run("search", tmp_path / "i", "moles", "--model", tmp_path / "other")  # declares nothing
    assert (code, "re-index the texts" in err) == (2, True)


def test_a_relation_ends_with_the_weights_it_was_declared_for(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    result = distill(recipe(tmp_path, steps=1))
    student, teacher = Embedder.from_pretrained(result.model), Embedder.from_pretrained(teacher_folder)
    space = teacher.space(role="document")
    assert student.relation is not None
    assert student.relation.allows(student, space, 16)
    assert not student.relation.allows(student, teacher.space(role="query"), 16)
    assert not student.relation.allows(student, space, 8)
    student.save_pretrained(tmp_path / "copy")
    copy = Embedder.from_pretrained(tmp_path / "copy")
    assert copy.relation == student.relation
    assert copy.relation is not None
    assert copy.relation.allows(copy, space, 16)
    with torch.no_grad():
        copy.encoder.word.weight.mul_(1.5)
    assert not copy.relation.allows(copy, space, 16)


def test_a_killed_run_goes_on_to_the_bit(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """Of experts with dropout and jitter; the teacher is not asked twice."""
    whole = distill(recipe(tmp_path, steps=6, save_every=2, epochs=None))
    again = recipe(tmp_path, steps=6, save_every=2, out=str(tmp_path / "again"))
    with killed_in("backward", 3):
        distill(again)
    distill(again, resume=True)
    assert_same_weights(Path(whole.model), tmp_path / "again" / "model")
    one, other = metrics(tmp_path / "run"), metrics(tmp_path / "again")
    drop = {*TIMES, "held_out_before", "held_out_cosine_before"}
    assert [{k: v for k, v in line.items() if k not in drop} for line in one] == [
        {k: v for k, v in line.items() if k not in drop} for line in other
    ]


def test_a_student_learns_by_adapters(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """Of attention here, and with the projection; cut and gone on with, it is the run that was not."""
    own = {"steps": 4, "save_every": 2, "lora": {"rank": 2, "targets": ["attention"]}}
    whole = distill(recipe(tmp_path, **own))
    base, student = read_folder(student_folder).state, read_folder(Path(whole.model)).state
    moved = {name for name in base if not torch.equal(base[name], student[name])}
    assert moved == {f"layers.{i}.attention.{part}.weight" for i in (0, 1) for part in ("qkv", "out")}
    model, teacher = Embedder.from_pretrained(whole.model), Embedder.from_pretrained(teacher_folder)
    assert model.relation is not None
    assert model.relation.allows(model, teacher.space(role="document"), 16)

    again = recipe(tmp_path, **own, out=str(tmp_path / "again"))
    with killed_in("update", 2):
        distill(again)
    distill(again, resume=True)
    assert_same_weights(Path(whole.model), tmp_path / "again" / "model")


def test_the_cache_of_another_teacher_is_refused(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, make_model: MakeModel
) -> None:
    teacher = TeacherVectors(open_teacher(str(teacher_folder)), tmp_path / "vectors")
    teacher.fill(TEXTS[:4], "query", lambda count: None)
    assert TeacherVectors(open_teacher(str(teacher_folder)), tmp_path / "vectors").read(
        TEXTS[:4], "query"
    ).shape == (4, 16)
    make_model(seed=8).save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="vectors of another teacher"):
        distill(recipe(tmp_path))
    assert distill(recipe(tmp_path, cache=None, steps=1)).steps == 1  # the failed run is not in the way
    for mistake in (
        {},
        {"cache": None, "optim": {"router_learning_rate": 1}, "layers": 1},
        {"cache": None, "base": str(tmp_path / "run")},
    ):
        with pytest.raises(UserError):
            distill(recipe(tmp_path, **mistake), overwrite=True)  # type: ignore[arg-type]
        assert [*(tmp_path / "run" / "teacher").glob("*/*.keys.npy")]  # nor does one cost the run before
    assert not [*tmp_path.glob(".run.*")]


def test_texts_are_cut_to_what_the_student_reads(student_folder: Path) -> None:
    """Prompt included; a text that fits, and the part of one that is cut, stay as they are."""
    tokenizer = Embedder.from_pretrained(student_folder).tokenizer
    long = " ".join(["owl hunts voles"] * 20)
    (kept, same), cut = cut_texts([long, "moles"], tokenizer, "query: ")
    assert (cut, same) == (1, "moles")
    assert long.startswith(kept)
    assert len(kept) < len(long)
    assert tokenizer.rows([kept], prompt="query: ") == (tokenizer.rows([long], prompt="query: ")[0], 0)
    tokenizer.truncation_side = "left"
    (kept,), _ = cut_texts([long], tokenizer, "")
    assert long.endswith(kept)
    assert tokenizer.rows([kept]) == (tokenizer.rows([long])[0], 0)


def test_both_roles_are_one_where_no_model_tells_them_apart(
    student_folder: Path, tmp_path: Path, make_model: MakeModel
) -> None:
    make_model(seed=7, prompts={}).save_pretrained(tmp_path / "teacher")
    config = recipe(tmp_path, prompts={})
    model = Embedder.from_pretrained(student_folder)
    model.tokenizer.prompts = {}
    found = open_texts(config, model, open_teacher(config.teacher), lambda text: None)
    assert [source.role for source in found] == ["document"]
    assert (len(found[0].texts), found[0].num_train) == (len(TEXTS), len(TEXTS) - 6)


def test_threads_draw_one_after_the_other(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler keeps one cycle of steps: two threads in it could draw from the cycle of the other."""
    inside, alone, draw = threading.Lock(), [], Sampler.batch

    def slow(sampler: Sampler, step: int) -> tuple[int, np.ndarray]:
        alone.append(inside.acquire(blocking=False))
        time.sleep(0.01)
        if alone[-1]:
            inside.release()
        return draw(sampler, step)

    monkeypatch.setattr(Sampler, "batch", slow)
    distill(recipe(tmp_path, steps=8, workers=4))
    assert len(alone) == 8
    assert all(alone)


def test_two_columns_of_a_file_have_names_of_their_own(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, data=[{"path": str(tmp_path / "texts.txt"), "role": "query"}] * 2)
    found = open_texts(config, Embedder.from_pretrained(student_folder), open_teacher(config.teacher))
    assert [source.name.rpartition("/")[2] for source in found] == [
        "texts.txt, query",
        "texts.txt, query (2)",
    ]


def test_a_dry_run_says_what_the_run_does(
    run: Run, student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, steps=4)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        json.dumps(config.model_dump(mode="json", exclude_defaults=True) | {"task": "distillation"})
    )
    code, out, err = run("train", path, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert not (tmp_path / "run").exists()
    code, _, err = run("train", path)
    assert code == 0, err
    assert plan["model"] in err
    assert f"recipe {plan['recipe']}" in err
    lines = metrics(tmp_path / "run")
    assert plan["length"]["steps"] == len(lines) == 4
    rates = {line["step"]: line["learning_rate"] for line in lines}
    assert plan["learning_rate"]
    for row in plan["learning_rate"]:
        assert row["rate"] == pytest.approx(rates[row["step"]], rel=1e-4)
    code, out, err = run("train", path, "--dry-run", "--overwrite")
    assert (code, "the learning rate" in out) == (0, True), err


def test_the_command(run: Run, student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    recipe(tmp_path)
    options = ("--teacher", teacher_folder, "--student", student_folder, "--texts", tmp_path / "texts.txt")
    code, out, err = run("distill", *options, "--out", tmp_path / "run", "--json", "steps=2", "batch_size=4")
    assert code == 0, err
    assert json.loads(out)["steps"] == 2
    code, _, err = run("train", tmp_path / "run" / "recipe.yaml", f"out={tmp_path / 'other'}", "steps=1")
    assert code == 0, err
    code, _, err = run("distill", *options, "--out", tmp_path / "b", "batch_size=4000")
    assert code == 2
    assert "fewer than the batch size" in err
    assert not (tmp_path / "b").exists()
    code, _, err = run("distill", *options, "--out", tmp_path / "c", "max_length=99")
    assert code == 2
    assert "the student reads 24; lower it" in err


def _projected(folder: Path, dim: int) -> Embedder:
    from moembed.weights.projection import add_projection

    return Embedder(add_projection(read_folder(folder), dim)).eval()


def _one(model: Embedder, row: list[int]) -> torch.Tensor:
    from moembed.packing import pack

    return model(pack([row])).vector_BM
