from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from moembed.cli.stress import SHOW
from moembed.evaluation.beir import load_task, save_task
from moembed.stress import capacity, invariance, long_context
from moembed.stress.limit import limit_task
from moembed.stress.subject import Subject
from moembed.stress.suite import PARTS, Settings, stress
from tagged_models import tagged_model


@pytest.fixture
def model_folder(make_model, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    make_model(max_positions=256).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEMBED_DATA", raising=False)


def test_all_parts_into_one_result(
    make_model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "STEPS", 100)
    monkeypatch.setattr(long_context, "LENGTHS", (256, 512))
    model = make_model(max_positions=300)
    task = limit_task(6)
    subjects = [Subject("small", model), Subject("bm25", None)]
    settings = Settings(limit_tasks=[task], dims=(2, 3), noise_task=task)
    result = stress(subjects, list(PARTS), settings, lambda what, total: nullcontext(lambda count: None))
    assert list(result) == ["limit", "capacity", "long", "invariance", "noise", "tables"]
    for part, found in result.items():
        without = part in ("capacity", "invariance")
        assert list(found.systems) == (["small"] if without else ["small", "bm25"])
    plain = {part: found.to_json() for part, found in result.items()}
    assert json.loads(json.dumps(plain)) == plain
    assert plain["limit"]["systems"]["bm25"][task.name]["limit"] is None
    for part, found in result.items():
        SHOW[part](found)
    shown = capsys.readouterr()
    for expected in ("recall@2", "a random order", "16 dimensions: too few points", "passkey", "at 75%"):
        assert expected in shown.out
    assert "small reads 300 tokens; not asked: 512 " in shown.err


def test_the_command(run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, saved, out = tmp_path / "data", tmp_path / "saved", tmp_path / "out.json"
    save_task(limit_task(5, seed=9), data / "eval" / "limit-small")
    monkeypatch.setenv("MOEMBED_DATA", str(data))
    code, printed, _ = run(
        "stress", model_folder, "bm25", "--only", "limit,noise", "--people", 6, "--save", saved,
        "--task", data / "eval" / "limit-small", "--dtype", "float32", "--json", "--out", out,
    )  # fmt: skip
    assert code == 0
    result = json.loads(printed)
    assert result == json.loads(out.read_text("utf-8"))
    assert list(result["limit"]["tasks"]) == ["limit-small", "limit-6-seed-0"]
    assert result["limit"]["systems"]["bm25"]["limit-small"]["metrics"]["recall@2"]["value"] == 1
    assert (result["noise"]["task"], result["noise"]["queries"]) == ("limit-small", 10)
    assert load_task(saved).documents == limit_task(6).documents


def test_what_was_cut_is_said(run, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would wrap its cell
    make_model(max_positions=90).save_pretrained("short")
    code, out, err = run("stress", "short", "--only", "long", "--lengths", "128", "--dtype", "float32")
    assert code == 0
    assert "128 tokens, cut at 90" in out
    assert re.search(r"cut [1-9]\d* texts of the long documents at 90 tokens", err)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("bm25", "--only", "limit,typos"), "--only 'typos' is none of limit, capacity, long"),
        (("bm25", "--only", ","), "--only names nothing"),
        (("bm25", "--lengths", "256,long"), "--lengths '256,long' is not a list of whole numbers"),
        (("bm25", "--only", "long", "--lengths", "8"), "take lengths of 64 or more"),
        (("bm25", "bm25"), "named twice"),
        (("bm25", "--save", "."), "already exists"),
        (("bm25", "--people", "2"), "at least 3"),
        (("bm25", "--only", "limit", "--task", "nowhere"), "no such task folder"),
        (("bm25", "--only", "limit", "--out", "."), ". is a folder"),
        (("bm25", "--only", "limit", "--out", __file__ + "/x.json"), "cannot write"),
        (("nowhere", "--only", "limit", "--people", "4"), "nowhere does not exist"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], complaint: str, run) -> None:
    code, _, err = run("stress", *arguments)
    assert code == 2
    assert complaint in err


def test_a_model_of_token_vectors_is_left_out_where_a_text_needs_one_vector(
    make_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "STEPS", 20)
    monkeypatch.setattr(long_context, "LENGTHS", (256,))
    model, task = make_model(pooling="tokens", max_positions=300), limit_task(4)
    settings = Settings(limit_tasks=[task], dims=(2,), noise_task=task)
    result = stress(
        [Subject("late", model)], list(PARTS), settings, lambda what, total: nullcontext(lambda count: None)
    )
    asked = [part for part, found in result.items() if found.systems]
    assert asked == ["limit", "long", "noise"]


def test_experts_by_role_are_asked_without_a_prompt(make_model) -> None:
    model = tagged_model(make_model(max_positions=64, prompts={}).parts(), tags=["query", "document"])
    assert invariance.measure(Subject("roles", model)) is not None
