"""A domain against a general suite: means, drops and strata by hand, and the command from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from conftest import MakeModel, Run
from moembed.compare.scores import Scores, load_scores, save_scores
from moembed.evaluation.domain import LEAST, compare_suites
from moembed.types import UserError


def scores(task: str, values: np.ndarray, kind: str = "bitext", metric: str = "f1") -> Scores:
    items = [str(row) for row in range(len(values))]
    return Scores(task, kind, items, [""] * len(items), np.ones(len(items)), {metric: values})


def systems(names: str = "abc", items: int = 60) -> dict[str, dict[str, Scores]]:
    """Two tasks of the domain, two general ones; later systems are better, and all worse in the domain."""
    made = {}
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        level = {"fin": 0.2, "law": 0.3, "web": 0.5, "qa": 0.6}
        made[name] = {
            task: scores(task, np.clip(rng.normal(mean + 0.1 * number, 0.1, items), 0, 1))
            for task, mean in level.items()
        }
    return made


DOMAIN, GENERAL = ("finance", ["fin", "law"]), ("general", ["web", "qa"])


def mean(of: dict[str, Scores], tasks: list[str]) -> float:
    return float(np.mean([of[task].values["f1"].mean() for task in tasks]))


def test_a_drop_is_the_difference_of_means_over_tasks() -> None:
    made = systems()
    found = compare_suites(made, DOMAIN, GENERAL)
    assert list(found.drops) == ["a", "b", "c"]
    for name, drop in found.drops.items():
        assert drop.domain.value == pytest.approx(mean(made[name], DOMAIN[1]))
        assert drop.general.value == pytest.approx(mean(made[name], GENERAL[1]))
        assert drop.drop.mean == pytest.approx(drop.general.value - drop.domain.value)
        assert drop.drop.low < drop.drop.mean < drop.drop.high
        assert drop.kinds["bitext"] == drop.drop
        deviation = np.sqrt(
            sum(made[name][task].values["f1"].var() / 60 / 4 for task in (*DOMAIN[1], *GENERAL[1]))
        )
        assert (drop.drop.high - drop.drop.low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)
    assert found.rank is not None
    assert found.rank.value == pytest.approx(1)


def test_the_rank_correlation_is_scipys_and_needs_three() -> None:
    made = systems("abcde")
    made["a"]["fin"] = scores("fin", np.full(60, 0.95))
    found = compare_suites(made, DOMAIN, GENERAL)
    assert found.rank is not None
    pairs = [(drop.domain.value, drop.general.value) for drop in found.drops.values()]
    assert found.rank.value == pytest.approx(stats.spearmanr(pairs).statistic)
    assert found.rank.low <= found.rank.value <= found.rank.high < 1
    assert compare_suites(systems("ab"), DOMAIN, GENERAL).rank is None


def test_kinds_of_one_suite_alone_are_left_out() -> None:
    made = systems("ab")
    for of in made.values():
        of["sts"] = scores("sts", np.random.default_rng(0).random((60, 2)), "sts", "spearman")
    found = compare_suites(made, ("finance", ["fin", "law", "sts"]), GENERAL)
    assert (found.kinds, found.left_out) == (["bitext"], ["sts"])
    assert found.drops["a"].domain.value == pytest.approx(mean(made["a"], DOMAIN[1]))
    with pytest.raises(UserError, match="share no kind of task"):
        compare_suites(made, ("finance", ["sts"]), GENERAL)


def test_a_drop_that_is_complexity_alone_vanishes_at_equal_complexity() -> None:
    """Score = 1 - complexity in both suites; the domain is more complex."""
    rng = np.random.default_rng(0)
    hard = {"fin": rng.uniform(0.3, 1, 400), "web": rng.uniform(0, 0.7, 400)}
    made = {"a": {task: scores(task, 1 - value) for task, value in hard.items()}}
    complexity = {task: {str(row): v for row, v in enumerate(value)} for task, value in hard.items()}
    found = compare_suites(made, ("finance", ["fin"]), ("general", ["web"]), {"error": complexity}, parts=8)
    strata = found.strata["error"]
    assert found.drops["a"].drop.mean == pytest.approx(0.3, abs=0.03)
    assert abs(strata.matched["a"].mean) < 0.03
    assert (strata.domain_mean, strata.general_mean) == pytest.approx(
        (hard["fin"].mean(), hard["web"].mean())
    )
    assert sum(part.domain_items for part in strata.parts) == 400
    inside = [part for part in strata.parts if part.drops]
    assert all(min(part.domain_items, part.general_items) >= LEAST for part in inside)
    assert strata.covered == pytest.approx(sum(part.domain_items for part in inside) / 400)
    assert 0 < strata.covered < 1
    weights = np.array([part.domain_items for part in inside])
    drops = np.array([part.drops["a"].mean for part in inside])
    assert strata.matched["a"].mean == pytest.approx((weights * drops).sum() / weights.sum())


def test_a_drop_that_is_the_domain_alone_stays_at_equal_complexity() -> None:
    made = systems("ab", items=300)
    rng = np.random.default_rng(5)
    complexity = {task: {str(row): rng.random() for row in range(300)} for task in made["a"]}
    found = compare_suites(made, DOMAIN, GENERAL, {"readability": complexity})
    matched = found.strata["readability"].matched["a"]
    assert matched.mean == pytest.approx(found.drops["a"].drop.mean, abs=0.02)
    assert found.strata["readability"].covered == 1


def test_the_judge_is_not_compared_by_its_own_errors() -> None:
    made = systems("ab")
    errors = {
        task: {str(row): v for row, v in enumerate(1 - of.values["f1"])} for task, of in made["a"].items()
    }
    found = compare_suites(made, DOMAIN, GENERAL, {"error": errors}, judge="a")
    assert "a" not in found.strata["error"].matched
    assert "b" in found.strata["error"].matched
    with pytest.raises(UserError, match="no other system is compared"):
        compare_suites(systems("a"), DOMAIN, GENERAL, {"error": errors}, judge="a")


# ---- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_model(num_layers=1).save_pretrained("model")
    make_model(seed=1, num_layers=1).save_pretrained("other")
    for name, noun in (("law", "owl"), ("web", "mole")):
        rows = [
            {"query": f"{noun} {i} digs", "document": f"the {noun} {i} eats {i} worms"} for i in range(30)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path(f"{name}.yaml").write_text(json.dumps({"tasks": [f"{name}.jsonl"]}))
    return tmp_path


def test_the_command(place: Path, run: Run) -> None:
    suites = ("--suite", "law.yaml", "--against", "web.yaml")
    options = ("--measures", "entropy,error", "--error-of", "bm25", "--no-baselines", "--out", "out.json")
    code, out, err = run("evaluate", "model", "other", "bm25", *suites, *options, "--keep", "kept")
    assert code == 0, err
    for expected in ("law against web: retrieval", "rank correlation", "drop by entropy", "drop by error"):
        assert expected in out
    figures = json.loads(Path("out.json").read_text())
    tasks = {name: cells["metrics"]["model"]["ndcg@10"]["value"] for name, cells in figures["tasks"].items()}
    drop = figures["suites"]["drops"]["model"]
    assert drop["drop"]["mean"] == pytest.approx(tasks["web"] - tasks["law"])
    assert list(figures["suites"]["strata"]["error"]["matched"]) == ["model", "other"]
    assert len(list(Path("kept").glob("*.parquet"))) == 3

    code, out, err = run("evaluate", "bm25", "--suite", "law.yaml", "--json")
    assert code == 0, err
    assert list(json.loads(out)["tasks"]) == ["law"]


def test_mistakes_are_one_sentence(place: Path, run: Run) -> None:
    Path("lost.yaml").write_text('{"tasks": ["nowhere.jsonl"]}')
    Path("none.yaml").write_text('{"tasks": []}')
    Path("key.yaml").write_text('{"task": ["web.jsonl"]}')
    Path("twice.yaml").write_text('{"tasks": ["web.jsonl", "./web.jsonl"]}')
    both = ("--suite", "law.yaml", "--against", "web.yaml")
    for arguments, complaint in [
        (("--against", "web.yaml", "--tasks", "law.jsonl"), "name that of the domain with --suite"),
        (("--suite", "law.yaml", "--tasks", "law.jsonl"), "give what to evaluate on"),
        (("--suite", "law.yaml", "--measures", "entropy"), "--measures is for comparing two suites"),
        (("--suite", "law.yaml", "--error-of", "bm25"), "--error-of is for comparing two suites"),
        (("--suite", "law.yaml", "--against", "law.yaml"), "is in both suites"),
        (("--suite", "lost.yaml"), "nowhere.jsonl, which does not exist"),
        (("--suite", "none.yaml"), "none.yaml"),
        (("--suite", "key.yaml"), "did you mean"),
        (("--suite", "twice.yaml"), "names a task twice"),
        (("--suite", "nothing.yaml"), "no such suite: nothing.yaml"),
        ((*both, "--measures", "length"), "unknown measure 'length'"),
        ((*both, "--measures", "error"), "name it with error_of"),
        ((*both, "--error-of", "bm25"), "which measures does not name"),
        ((*both, "--measures", "error", "--error-of", "gpt"), "none of the systems: bm25"),
        ((*both, "--parser", "en_core_web_sm"), "parser is for the measure dependency"),
    ]:
        code, _, err = run("evaluate", "bm25", *arguments)
        assert (code, complaint in err) == (2, True), err
        assert err.strip().splitlines()[-1].startswith("error: ")


def test_what_cannot_be_compared_is_told_before_anything_is_evaluated(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(*_: object) -> None:
        raise AssertionError("hours of work that are lost")

    monkeypatch.setattr("moembed.runs.suites.evaluate_with_scores", evaluated)
    pairs = [{"sentence1": f"owl {i}", "sentence2": f"mole {i}", "score": i} for i in range(9)]
    for name in ("alike", "near"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        Path(f"{name}.yaml").write_text(json.dumps({"tasks": [f"{name}.jsonl"]}))
    both, sts = ("--suite", "law.yaml", "--against", "web.yaml"), ("--suite", "near.yaml", "--against")
    errors = ("--measures", "error", "--error-of")
    for arguments, complaint in [
        (("model", *sts, "web.yaml"), "near and web share no kind of task"),
        (("bm25", *sts, "alike.yaml"), "near and alike share no kind of task"),
        (("model", *sts, "alike.yaml", *errors, "model"), "is known where single items have a score"),
        (("model", *both, *errors, "base"), "error_of base is none of the systems: bm25, static, model"),
        (("model", "--no-baselines", *both, *errors, "model"), "no other system is compared"),
    ]:
        code, _, err = run("evaluate", *arguments)
        assert (code, complaint in err) == (2, True), err


def test_a_file_of_an_earlier_evaluation_does_not_take_the_place_of_its_scores(place: Path, run: Run) -> None:
    command = ("evaluate", "model", "--no-baselines", "--suite", "law.yaml", "--against", "web.yaml")
    command = (*command, "--keep", "kept", "--out", "out.json")
    assert run(*command)[0] == 0
    first = json.loads(Path("out.json").read_text())["suites"]["drops"]["model"]
    made, about = load_scores("kept/model.parquet")
    for one in made:
        one.values["ndcg@10"] = np.full(len(one.item), float(one.task == "web"))
    save_scores("kept/z-older.parquet", made, about)
    assert run(*command)[0] == 0
    assert json.loads(Path("out.json").read_text())["suites"]["drops"]["model"] == first


def test_what_is_not_kept_is_not_said_to_be_kept(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moembed.runs.system.routing", stopped)  # BM25 is finished, the model almost
    command = ("evaluate", "bm25", "model", "--no-baselines", "--suite", "law.yaml", "--against", "web.yaml")
    code, _, err = run(*command)
    assert (code, err.startswith("stopped: nothing is kept")) == (130, True), err
    code, _, err = run(*command, "--keep", "kept")
    assert (code, err) == (130, "stopped: the scores of bm25 are kept in kept\n")


def test_scores_that_cannot_be_kept_are_compared_all_the_same(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("moembed.runs.evaluate.save_scores", full)
    command = ("evaluate", "model", "--no-baselines", "--suite", "law.yaml", "--against", "web.yaml")
    code, out, err = run(*command, "--keep", "kept", "--json")
    assert (code, "could not be written into kept" in err) == (2, True), err
    assert list(json.loads(out)["suites"]["drops"]) == ["model"]
