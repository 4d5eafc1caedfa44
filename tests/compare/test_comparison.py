from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run
from moembed.compare.align import BUCKETS, bucket_name
from moembed.compare.comparison import compare
from moembed.compare.estimates import Difference
from moembed.compare.results import LEAST_ITEMS, Comparison
from moembed.compare.scores import Scores, save_scores
from moembed.compare.significance import paired_difference
from moembed.compare.statistics import STATISTICS, statistic
from moembed.compare.verdict import REAL, cautions, is_real, sentences
from moembed.types import UserError

ITEMS = 120
RIGHT = np.random.default_rng(99).normal(size=ITEMS)


def retrieval(task: str, gain: float = 0.0, items: int = ITEMS, seed: int = 0, **changes: Any) -> Scores:
    """Two languages and two lengths by turns; all gain is in the first language."""
    base_Q = np.random.default_rng(len(task)).random(items)
    german_Q = np.arange(items) % 2 == 0
    value_Q = base_Q + 2 * gain * german_Q + 0.05 * np.random.default_rng(seed).normal(size=items)
    return replace(
        Scores(
            task=task,
            kind="retrieval",
            item=[f"q{i}" for i in range(items)],
            language=["de" if german else "th" for german in german_Q],
            length=np.where(np.arange(items) % 4 < 2, 20, 70),
            values={"ndcg@10": value_Q, "mrr@10": value_Q**2},
        ),
        **changes,
    )


def sts(noise: float, seed: int = 0) -> Scores:
    value = np.stack([RIGHT + noise * np.random.default_rng(seed).normal(size=ITEMS), RIGHT], axis=1)
    kinds = {"spearman": value, "pearson": value}
    return Scores("sts", "sts", list(map(str, range(ITEMS))), [""] * ITEMS, np.full(ITEMS, 20), kinds)


def on(*scores: Scores) -> list[dict[str, Scores]]:
    return [{one.task: one for one in scores}]


def compared(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The result as its JSON, whose keys are a promise to those who read files."""
    return compare(*arguments, **options).to_json()


@pytest.fixture
def three() -> dict[str, list[dict[str, Scores]]]:
    """BM25 knows no sentence similarity; the new model gains on retrieval, and not on similarity."""
    return {
        "bm25": on(retrieval("owls", -0.2, seed=1), retrieval("voles", -0.2, seed=2)),
        "new": on(retrieval("owls", 0.1, seed=3), retrieval("voles", 0.1, seed=4), sts(0.5, 5)),
        "old": on(retrieval("owls", seed=6), retrieval("voles", seed=7), sts(0.5, 9)),
    }


def test_the_schema(three: dict[str, Any]) -> None:
    result = compared(three, draws=200)
    assert json.loads(json.dumps(result)) == result
    assert (result["systems"], result["reference"]) == (["bm25", "new", "old"], "old")
    assert result["seeds"] == {"bm25": 1, "new": 1, "old": 1}
    owls = result["tasks"]["owls"]
    assert {key: owls[key] for key in ("kind", "main", "items", "languages")} == {
        "kind": "retrieval", "main": "ndcg@10", "items": ITEMS, "languages": ["de", "th"],
    }  # fmt: skip
    assert set(owls["metrics"]) == {"bm25", "new", "old"}
    assert set(owls["metrics"]["new"]) == {"ndcg@10", "mrr@10"}
    assert set(owls["metrics"]["new"]["mrr@10"]) == {"value", "low", "high"}
    gap = owls["differences"]["new"]["ndcg@10"]
    assert set(gap) == {"mean", "low", "high", "p_value", "p_holm", "effect"}
    assert result["tasks"]["sts"]["main"] == "spearman"
    assert result["tasks"]["sts"]["languages"] == []
    assert result["overall"]["tasks"] == 3
    assert {kind: (row["tasks"], row["main"]) for kind, row in result["kinds"].items()} == {
        "retrieval": (2, "ndcg@10"),
        "sts": (1, "spearman"),
    }
    assert {name: row["items"] for name, row in result["languages"].items()} == {"de": ITEMS, "th": ITEMS}
    assert {name: row["tasks"] for name, row in result["lengths"].items()} == {"0-31": 3, "64-127": 2}


def test_a_comparison_is_its_json(three: dict[str, Any]) -> None:
    result = compare(three, draws=50)
    written = json.loads(json.dumps(result.to_json()))
    assert Comparison.from_json(written) == result
    assert list(written) == [
        "systems", "reference", "seeds", "tasks", "overall", "kinds", "languages", "lengths", "borda",
        "paired",
    ]  # fmt: skip
    assert list(written["tasks"]["owls"]) == [
        "kind", "main", "items", "languages", "metrics", "differences"
    ]  # fmt: skip
    sections = {name: next(iter(written[name].values())) for name in ("kinds", "languages", "lengths")}
    rest = {"metrics", "differences"}
    assert {name: set(row) - rest for name, row in sections.items()} == {
        "kinds": {"tasks", "main"}, "languages": {"tasks", "items"}, "lengths": {"tasks", "items"},
    }  # fmt: skip
    assert set(written["overall"]) - rest == {"tasks"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("seeds"), "seeds is missing"),
        (lambda values: values["tasks"]["owls"].pop("main"), "tasks.owls.main is missing"),
        (lambda values: values["overall"]["metrics"]["new"]["score"].update(low="x"), "low is 'x'"),
        (lambda values: values.update(systems=None), "systems is None"),
    ],
)
def test_another_json_is_refused_by_its_first_fault(
    three: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    values = compared(three, draws=20)
    change(values)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        Comparison.from_json(values)
    assert "the result of a comparison" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_systems_without_a_common_task_are_refused(three: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """Two files of scores that have nothing to do with each other are no comparison."""
    apart = {"a": on(retrieval("owls")), "b": on(retrieval("voles"), sts(0.5))}
    with pytest.raises(UserError, match=r"a and b have no task in common \(owls and sts, voles\)"):
        compare(apart)
    beside = {"a": on(retrieval("owls")), "b": on(retrieval("owls")), "c": on(sts(0.5))}
    with pytest.raises(UserError, match="c and b have no task in common"):
        compare(beside, "b")
    for name, (seed,) in apart.items():
        save_scores(tmp_path / f"{name}.parquet", list(seed.values()), {"system": name})
    code, out, err = run("compare", tmp_path / "a.parquet", tmp_path / "b.parquet", "--json")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    three["bm25"] = [{}]  # a baseline that can do none of the tasks stands beside
    assert compare(three, draws=20).others == ["bm25", "new"]


def test_one_rule_says_what_is_real() -> None:
    gap = Difference(mean=0.1, low=0.05, high=0.15, p_value=0.001, p_holm=0.01, effect=0.3)
    assert is_real(gap)
    assert not is_real(replace(gap, p_holm=REAL))
    assert not is_real(replace(gap, p_holm=float("nan")))
    assert gap.turned() == replace(gap, mean=-0.1, low=-0.15, high=-0.05, effect=-0.3)
    assert gap.turned().turned() == gap


def test_tasks_that_a_system_lacks_are_named(three: dict[str, Any], run: Run, tmp_path: Path) -> None:
    assert cautions(compare(three, draws=20)) == ["bm25 has no score on sts and no part in means over it."]


def test_tasks_of_few_items_are_named() -> None:
    few = {name: on(retrieval("owls", items=29), retrieval("voles", items=30)) for name in "ab"}
    told = "Fewer than 30 items, of which intervals and p-values say little: owls."
    assert cautions(compare(few, draws=20)) == [told]


def test_a_system_that_lacks_a_task_is_compared_where_it_has_all(three: dict[str, Any]) -> None:
    result = compared(three, draws=50)
    assert set(result["overall"]["metrics"]) == {"new", "old"}
    assert set(result["overall"]["differences"]) == {"new"}
    assert set(result["tasks"]["sts"]["metrics"]) == {"new", "old"}
    assert set(result["kinds"]["retrieval"]["differences"]) == {"bm25", "new"}
    assert set(result["lengths"]["64-127"]["metrics"]) == {"bm25", "new", "old"}
    assert set(result["lengths"]["0-31"]["metrics"]) == {"new", "old"}
    assert compared(three, "bm25", draws=50)["overall"]["differences"] == {}


def test_values_and_differences_are_of_means_over_tasks(three: dict[str, Any]) -> None:
    result = compared(three, draws=50)
    new, old = three["new"][0], three["old"][0]
    spearman = STATISTICS["spearman"]
    main = {"owls": "ndcg@10", "voles": "ndcg@10", "sts": "spearman"}
    values = [
        spearman(s[t].values[m]) if t == "sts" else s[t].values[m].mean()
        for s in (new, old)
        for t, m in main.items()
    ]
    cell = result["overall"]["differences"]["new"]["score"]
    assert cell["mean"] == pytest.approx(np.mean(values[:3]) - np.mean(values[3:]))
    assert cell["low"] < cell["mean"] < cell["high"]
    german = [s["owls"].values["ndcg@10"][::2].mean() for s in (new, old)]
    also = [s["voles"].values["ndcg@10"][::2].mean() for s in (new, old)]
    assert result["languages"]["de"]["metrics"]["new"]["score"]["value"] == pytest.approx(
        np.mean([german[0], also[0]])
    )


@pytest.mark.parametrize(("task", "metric"), [("owls", "ndcg@10"), ("sts", "spearman")])
def test_one_task_is_compared_as_paired_difference_does(
    three: dict[str, Any], task: str, metric: str
) -> None:
    cell = compared(three)["tasks"][task]["differences"]["new"][metric]
    alone = paired_difference(*(three[s][0][task].values[metric] for s in ("new", "old")), statistic(metric))
    assert cell["mean"] == pytest.approx(alone.mean)
    assert cell["low"] == pytest.approx(alone.low, abs=0.01)
    assert cell["high"] == pytest.approx(alone.high, abs=0.01)
    assert cell["p_value"] == pytest.approx(alone.p_value, abs=0.05)


def test_nothing_depends_on_what_else_is_compared(three: dict[str, Any]) -> None:
    whole = compared(three, draws=100)
    part = compared(
        {name: on(*(three[name][0][t] for t in ("sts", "owls"))) for name in ("old", "new")}, "old", 100
    )
    for task in ("owls", "sts"):
        for metric, cell in part["tasks"][task]["differences"]["new"].items():
            other = whole["tasks"][task]["differences"]["new"][metric]
            for key in ("mean", "low", "high", "p_value"):
                assert cell[key] == pytest.approx(other[key]), (task, metric, key)


def test_holm_counts_the_comparisons_of_a_section(three: dict[str, Any]) -> None:
    result = compared(three, draws=300)
    tasks = result["tasks"]
    main = [(t, s) for t in tasks for s in tasks[t]["differences"]]
    assert len(main) == 5
    cells = [tasks[t]["differences"][s][tasks[t]["main"]] for t, s in main]
    least = min(cells, key=lambda cell: cell["p_value"])
    assert least["p_holm"] == pytest.approx(5 * least["p_value"])
    other = [tasks[t]["differences"][s]["mrr@10"] for t in ("owls", "voles") for s in ("bm25", "new")]
    assert min(c["p_holm"] for c in other) == pytest.approx(4 * min(c["p_value"] for c in other))
    overall = result["overall"]["differences"]["new"]["score"]
    assert overall["p_holm"] == overall["p_value"]


def test_few_items_make_no_group() -> None:
    items = 2 * LEAST_ITEMS - 1  # one German more than Thai
    systems = {name: on(retrieval("owls", items=items, seed=seed)) for seed, name in enumerate("ab")}
    result = compared(systems, draws=20)
    assert list(result["languages"]) == ["de"]
    assert sum(row["items"] for row in result["lengths"].values()) < items


def test_buckets_are_named_by_their_characters() -> None:
    names = [bucket_name(i) for i in range(len(BUCKETS))]
    assert (names[0], names[1], names[-1]) == ("0-31", "32-63", "2048+")


def simulated(kind: Callable[[np.random.Generator], list[list[np.ndarray]]], times: int) -> np.ndarray:
    """p-values over all tasks of two systems that do not differ; ``[system][seed] -> (tasks, Q)``."""
    rng = np.random.default_rng(12)
    p_values = []
    for _ in range(times):
        systems = {
            name: [
                {
                    f"t{t}": Scores(
                        f"t{t}",
                        "bitext",
                        [str(i) for i in range(len(v))],
                        [""] * len(v),
                        np.zeros(len(v)),
                        {"f1": v},
                    )
                    for t, v in enumerate(tasks)
                }
                for tasks in seeds
            ]
            for name, seeds in zip("ab", kind(rng), strict=True)
        }
        p_values.append(compared(systems, draws=199)["overall"]["differences"]["a"]["score"]["p_value"])
    return np.sort(p_values)


def distance_to_uniform(p: np.ndarray) -> float:
    grid = np.arange(len(p) + 1) / len(p)
    return float(max((p - grid[:-1]).max(), (grid[1:] - p).max()) * np.sqrt(len(p)) / 1.63)


def test_p_values_over_tasks_are_uniform_when_nothing_differs() -> None:
    """Tasks of different sizes and noise, with the same true mean."""

    def two(rng: np.random.Generator) -> list[list[Any]]:
        return [[[rng.normal(size=20), 3 * rng.exponential(size=80)]] for _ in "ab"]

    assert distance_to_uniform(simulated(two, 200)) < 1


def test_p_values_over_tasks_and_seeds_are_uniform_when_nothing_differs() -> None:
    """A seed does alike on both tasks: its luck is not averaged away."""

    def three_seeds(rng: np.random.Generator) -> list[list[Any]]:
        return [
            [[luck + rng.normal(size=20), luck + rng.normal(size=80)] for luck in rng.normal(size=3)]
            for _ in "ab"
        ]

    p = simulated(three_seeds, 200)
    assert distance_to_uniform(p) < 1
    assert np.mean(p <= 0.05) < 0.09


def test_the_seeds_of_a_system_are_averaged(three: dict[str, Any]) -> None:
    three["new"] *= 3
    one, same = compared({**three, "new": three["new"][:1]}, draws=50), compared(three, draws=50)
    assert same["seeds"]["new"] == 3
    gaps = [result["overall"]["differences"]["new"]["score"] for result in (one, same)]
    assert [gaps[0][key] for key in ("mean", "low", "high")] == pytest.approx(
        [gaps[1][k] for k in ("mean", "low", "high")]
    )
    three["new"] = [
        on(retrieval("owls", 0.1 + luck), retrieval("voles", 0.1 + luck), sts(0.5))[0]
        for luck in (-0.05, 0, 0.05)
    ]
    wide = compared(three, draws=50)["overall"]["differences"]["new"]["score"]
    assert wide["high"] - wide["low"] > 1.5 * (gaps[0]["high"] - gaps[0]["low"])


def test_systems_that_cannot_be_compared(three: dict[str, Any]) -> None:
    for changes in ({"items": 100}, {"item": [f"x{i}" for i in range(ITEMS)]}, {"kind": "bitext"}):
        with pytest.raises(UserError, match=r"owls: a and b were not scored on the same items"):
            compared({"a": on(retrieval("owls")), "b": on(retrieval("owls", **changes))})
    other = sts(0.5)
    other.values["spearman"] = other.values["spearman"] + 1
    with pytest.raises(UserError, match=r"sts: a and b .* same judgements"):
        compared({"a": on(sts(0.5)), "b": on(other)})
    with pytest.raises(UserError, match="owls: the seeds of a were not"):
        compared({"a": [*on(retrieval("owls")), *on(retrieval("owls", items=50))]})
    with pytest.raises(UserError, match="a: not every seed was evaluated on sts, voles"):
        compared({"a": [*on(retrieval("owls")), *on(retrieval("owls"), retrieval("voles"), sts(1))]})
    with pytest.raises(UserError, match="owls: a, b have no metric in common"):
        compared({"a": on(retrieval("owls")), "b": on(retrieval("owls", values={"map": np.zeros(ITEMS)}))})
    with pytest.raises(UserError, match="no system is called 'c': the reference must be one of a, b"):
        compared({"a": on(sts(1)), "b": on(sts(1))}, "c")
    with pytest.raises(UserError, match="NaN"):
        compared({"a": on(retrieval("owls", values={"f1": np.full(ITEMS, np.nan)}))})
    for nothing in ({}, {"a": []}, {"a": [{}]}):
        with pytest.raises(UserError, match="nothing to compare"):
            compared(nothing)


def test_sentences_say_what_is_real(three: dict[str, Any]) -> None:
    result = compare(three)
    told = sentences(result)
    gap = result.to_json()["kinds"]["retrieval"]["differences"]["bm25"]["ndcg@10"]
    assert told[0] == (
        f"old beats bm25 by {-gap['mean']:.3f} nDCG@10 [{-gap['high']:.3f}, {-gap['low']:.3f}] "
        "over 2 retrieval tasks (p < 0.001 after Holm)."
    )
    assert "bm25 against old, by task: worse on owls and voles." in told
    assert any(
        re.match(r"new beats old by 0\.0\d\d mean score \[0.*\] over 3 tasks \(p < 0.001 after", s)
        for s in told
    )
    assert "new against old, by task: better on owls and voles; no clear difference on sts." in told
    assert "new against old, by language: better on de; no clear difference on th." in told
    assert len(told) == len(set(told))


def test_sentences_claim_nothing_where_nothing_differs() -> None:
    told = sentences(compare({"a": on(sts(0.5, 1)), "b": on(sts(0.5, 2))}))
    assert len(told) == 1
    assert re.match(
        r"No clear difference between a and b on sts: [+−]0\.\d+ Spearman \[−.*\] \(p = 0", told[0]
    )
    assert sentences(compare({"a": on(sts(0.5))})) == []


def test_sentences_go_by_the_corrected_p_value_alone(three: dict[str, Any]) -> None:
    result = compared(three, draws=50)
    rows = [result["overall"]]
    for section in ("tasks", "kinds", "languages", "lengths"):
        rows += result[section].values()
    for row in rows:
        for cells in row["differences"].values():
            for cell in cells.values():
                cell["p_holm"] = 0.2
    for sentence in sentences(Comparison.from_json(result)):
        assert "o clear difference" in sentence
        assert not re.search("beats|better|worse", sentence)


def test_sentences_tell_of_seeds(three: dict[str, Any]) -> None:
    three["new"] *= 2
    assert sentences(compare(three, draws=20))[-1] == (
        "The intervals count the variation between seeds, from 2 runs of new; "
        "not that of single runs: bm25 and old."
    )


def test_runs_are_paired_where_they_saw_the_same_batches(three: dict[str, Any]) -> None:
    """Runs that differ much among themselves, and alike in both systems, hide no difference."""

    def runs(gain: float) -> list[dict[str, Scores]]:
        return [on(retrieval("owls", gain + luck))[0] for luck in (-0.2, 0, 0.2)]

    systems = {"new": runs(0.01), "old": runs(0.0)}
    apart, paired = compare(systems), compare(systems, paired=["new"])
    assert not is_real(apart.overall.differences["new"]["score"])
    assert is_real(paired.overall.differences["new"]["score"])
    assert paired.paired == ["new"]
    assert sentences(paired)[-1] == "Compared run by run, with the same batches in both: new."
    assert Comparison.from_json(paired.to_json()) == paired
    with pytest.raises(UserError, match="new has 2 runs and old 3: only as many can be paired"):
        compare({"new": runs(0.01)[:2], "old": runs(0.0)}, paired=["new"])


@pytest.fixture
def kept(three: dict[str, Any], tmp_path: Path) -> list[Path]:
    paths = []
    for name, (seed,) in three.items():
        paths.append(tmp_path / "scores" / f"{name}.parquet")
        save_scores(paths[-1], list(seed.values()), {"system": name, "space_id": name, "seed": None})
    return paths


def test_the_command(run: Run, kept: list[Path], three: dict[str, Any], tmp_path: Path) -> None:
    code, out, err = run("compare", *kept)
    assert code == 0, err
    for piece in (
        "owls",
        "mean of retrieval",
        "mean of all",
        "language de",
        "length 64-127",
        "p after Holm",
        "effect",
    ):
        assert piece in out
    for sentence in sentences(compare(three)):
        assert sentence in out
    code, out, err = run(
        "compare", *kept, "--json", "--out", tmp_path / "out" / "result.json", "--reference", "new"
    )
    assert code == 0, err
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(out) == compared(three, "new") == written


def test_the_command_pairs_seeds(run: Run, tmp_path: Path) -> None:
    for name, gain in {"new": 0.01, "old": 0.0}.items():
        for seed, luck in enumerate((-0.2, 0, 0.2)):
            about = {"system": name, "space_id": f"{name}-{seed}", "seed": seed}
            save_scores(tmp_path / f"{name}-{seed}.parquet", [retrieval("owls", gain + luck)], about)
    systems = [f"{name}={tmp_path}/{name}-*.parquet" for name in ("new", "old")]
    code, out, err = run("compare", *systems)
    assert (code, "No clear difference between new and old on owls" in out) == (0, True), err
    code, out, err = run("compare", *systems, "--pair-seeds")
    assert (code, "new beats old by 0.010 nDCG@10" in out) == (0, True), err
    assert "Compared run by run" in out


def test_the_command_shows_what_is_asked_for(run: Run, kept: list[Path]) -> None:
    code, out, err = run("compare", *kept, "--by", "language", "--metric", "mrr@10")
    assert code == 0, err
    assert "language de" in out
    assert "owls  " not in out
    assert "MRR@10" in out
    code, out, err = run("compare", kept[1], f"alias={kept[2]}", "--by", "task")
    assert (code, "alias" in out, "language" in out.split("\n\n")[0]) == (0, True, False)


def test_the_command_writes_the_page(run: Run, kept: list[Path], tmp_path: Path) -> None:
    code, _, err = run("compare", *kept, "--html", tmp_path / "page.html")
    assert code == 0, err
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert json.loads((tmp_path / "page.json").read_text())["reference"] == "old"


def test_the_command_refuses_in_one_sentence(run: Run, kept: list[Path], tmp_path: Path) -> None:
    for arguments, message in (
        ([kept[0]], "two runs or more"),
        ([kept[0].parent, kept[0]], "holds several systems (bm25, new, old)"),
        ([kept[0], tmp_path / "none"], "no such file of scores"),
        ([*kept, "--reference", "x"], "no system is called 'x'"),
        ([*kept, "--metric", "f1"], "not scored by 'f1'"),
        ([*kept, "--html", tmp_path / "page.htm"], "does not end in .html"),
    ):
        code, _, err = run("compare", *arguments)
        assert code == 2
        assert message in err
        assert "Traceback" not in err


def test_the_page_of_the_docs_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "is-the-difference-real.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 2
    names: dict[str, Any] = {}  # the second example goes on from the first
    for code, printed in examples:
        exec(code, names)
        assert capsys.readouterr().out == printed
    gaps = [float(gap) for gap in re.findall(r"δ = (0\.\d+)", page)]
    rows = re.findall(r"^\| (0\.\d+) \| (.*) \|$", page, flags=re.MULTILINE)
    assert len(gaps) == len(rows) == 4
    for deviation, cells in rows:
        expected = [f"{round(((1.96 + 0.84) * float(deviation) / gap) ** 2):,}" for gap in gaps]
        assert cells.split(" | ") == expected


def test_so_many_queries_see_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(13)
    deviation, gap = 0.2, 0.05
    queries = round(((1.96 + 0.84) * deviation / gap) ** 2)
    trials = [deviation * rng.normal(size=queries) + gap for _ in range(300)]
    seen = [paired_difference(gain, np.zeros(queries), draws=199).p_value <= 0.05 for gain in trials]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.07)
