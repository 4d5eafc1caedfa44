from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.compare import formatting
from moembed.compare.results import Comparison
from moembed.compare.scores import MAIN
from moembed.compare.verdict import sentences
from moembed.report.comparison import rows, summary, tables, write_comparison
from moembed.report.page import environment
from moembed.report.pieces import Table
from moembed.types import UserError
from page_results import SYSTEMS, TASKS, made, result

SECTIONS = (
    "Scores",
    "Which differences are real",
    "Queries won and lost",
    "Languages",
    "Lengths",
    "Size of the vectors",
    "Cost",
    "Experts",
    "Notes",
    "Method",
    "Run",
)
OPTIONAL = {"curves": "Size of the vectors", "cost": "Cost", "routers": "Experts", "made": "Run"}
PARTS = {"languages": "Languages", "lengths": "Lengths"}
UNKNOWN = dict.fromkeys(("value", "low", "high"), float("nan"))
VOID = {"meta", "image"}


class Page(HTMLParser):
    """Checks that tags nest and ids are unique; gathers the text people see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str | None] = []
        self.text = ""
        self.feed(page)
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def write(folder: Path, values: dict[str, Any]) -> str:
    write_comparison(folder / "page.html", made(values))
    return (folder / "page.html").read_text(encoding="utf-8")


def html(table: Table) -> str:
    return str(environment().get_template("pieces.html.j2").module.data_table(table))


def bare(values: dict[str, Any]) -> dict[str, Any]:
    """What it has at least."""
    bare = {key: part for key, part in values.items() if key not in OPTIONAL} | {key: {} for key in PARTS}
    for task in bare["tasks"].values():
        task.pop("queries", None)
    return bare


def headings(page: str) -> tuple[str, ...]:
    return tuple(re.findall(r"<h2>(.*?)</h2>", page))


def compared(mean: float, low: float, high: float, p_holm: float) -> dict[str, Any]:
    """One task, ``tuned`` as the reference, and ``base`` as far from it as given."""
    values = bare(result(("base", "tuned"), {"scifact": "retrieval"}))
    cell = {"value": 0.61, "low": 0.6, "high": 0.62}
    gap = {"mean": mean, "low": low, "high": high, "p_value": 0.0004, "p_holm": p_holm, "effect": 0.2}
    values["tasks"]["scifact"] |= {
        "items": 1200,
        "metrics": {"base": {"ndcg@10": cell}, "tuned": {"ndcg@10": cell}},
        "differences": {"base": {"ndcg@10": gap}},
    }
    return values


@pytest.mark.parametrize(
    ("gap", "sentence"),
    [
        ((-0.09, -0.1, -0.08, 0.001), "tuned beats base by 0.090 [0.080, 0.100]."),
        ((0.03, 0.02, 0.04, 0.04), "tuned is worse than base by 0.030 [0.020, 0.040]."),
        (
            (-0.004, -0.011, 0.003, 0.3),
            "tuned shows no clear difference from base (+0.004 [−0.003, 0.011], p = 0.300).",
        ),
        ((-0.09, -0.1, -0.08, 0.05), "tuned shows no clear difference from base (+0.090"),
    ],
)
def test_the_summary_says_what_p_says(
    gap: tuple[float, float, float, float], sentence: str, tmp_path: Path
) -> None:
    values = compared(*gap)
    start = "The nDCG@10 of tuned on scifact with 1,200 queries is 0.610 [0.600, 0.620]. "
    assert summary(made(values)).startswith(start + sentence)
    assert summary(made(values)) in Page(write(tmp_path, values)).text


def test_the_summary_of_many_systems_and_kinds_of_tasks() -> None:
    values = result()
    for section in (values["overall"], *values["kinds"].values()):
        for cells in section["differences"].values():
            for gap in cells.values():
                gap |= {"mean": -0.1, "low": -0.12, "high": -0.08, "p_holm": 0.001}
    values["overall"]["differences"]["minilm"]["score"] |= {"mean": 0.2, "low": 0.1, "high": 0.3}
    said = summary(made(values))
    assert "runs/demo beats static by 0.100 [0.080, 0.120]; it is worse than minilm by 0.200" in said
    assert "On retrieval, runs/demo beats bm25 by 0.100 [0.080, 0.120]." in said  # no score on other kinds
    real = sum(gap[1] for gap in single_gaps(values))
    assert f"Of the 19 differences on single tasks, {real} are real." in said


def single_gaps(values: dict[str, Any]) -> list[tuple[str, bool]]:
    return [
        (task, cells[part["main"]]["p_holm"] < 0.05)
        for task, part in values["tasks"].items()
        for cells in part["differences"].values()
    ]


def test_every_section_is_there_and_the_page_loads_nothing(tmp_path: Path) -> None:
    values = result()
    page = write(tmp_path, values)
    parsed = Page(page)
    assert headings(page) == SECTIONS
    assert all(sentence in parsed.text for sentence in [summary(made(values)), *sentences(made(values))])
    assert "http" not in page.replace("http-equiv", "")
    assert not {"script", "link", "iframe", "img"} & set(parsed.tags)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]
    # scores and differences of tasks, languages and lengths; sizes; three costs; the experts of one system
    assert parsed.tags.count("svg") == 6 + 1 + 3 + 1
    assert "scifact: 3 queries without relevant documents were left out" in parsed.text
    assert "minilm cut 96 texts of 8 tasks (xquad-de, " in parsed.text
    assert "bm25 has no score on 5 tasks" in parsed.text
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert not re.search(r"(fill|stroke): #", drawings)  # colours follow the page


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(["bm25", "static", "a", "b<c"]), max_size=4, unique=True),
    st.dictionaries(st.text(min_size=1, max_size=9), st.sampled_from(list(MAIN)), min_size=1, max_size=7),
    st.integers(0, 9),
)
def test_every_figure_of_every_task_is_in_the_tables(
    systems: list[str], tasks: dict[str, str], seed: int
) -> None:
    values = result([*systems, "runs/demo"], tasks, seed)
    typed = made(values)
    sorted_ = rows.sort(typed)
    scores = Page(html(tables.scores(sorted_))).text
    every_metric = Page("".join(map(html, tables.metrics(typed, sorted_)))).text
    gaps = Page(html(tables.differences(sorted_))).text
    for name, task in values["tasks"].items():
        assert name in scores
        for cells in task["metrics"].values():
            for metric, cell in cells.items():
                where = scores if metric == task["main"] else every_metric
                assert formatting.decimal(cell["value"]) in where
                assert formatting.interval(cell["low"], cell["high"]) in where
        for cells in task["differences"].values():
            gap = cells[task["main"]]
            assert formatting.decimal(gap["mean"], "+") in gaps
            assert formatting.p_value(gap["p_holm"]) in gaps
            assert formatting.decimal(gap["effect"], "+") in gaps
            assert formatting.interval(gap["low"], gap["high"]) in gaps


def test_the_best_of_a_row_is_marked() -> None:
    values = result(("a", "b", "c"), {"one": "sts"})
    for name, value in {"a": 0.7, "b": 0.8, "c": 0.8}.items():
        values["tasks"]["one"]["metrics"][name]["spearman"] = {"value": value, "low": value, "high": value}
    table = html(tables.scores(rows.sort(made(values))))
    assert re.findall(r"<mark>(.*?)</mark>", table) == ["0.800", "0.800"]


def test_a_mean_over_tasks_stands_where_there_are_several() -> None:
    retrieval = {"a": "retrieval", "b": "retrieval"}
    for tasks, means in (
        ({"a": "sts"}, []),
        ({"a": "sts", "b": "bitext"}, ["2 tasks"]),
        (retrieval, ["2 tasks"]),
        (retrieval | {"c": "sts"}, ["2 tasks", "3 tasks"]),
    ):
        table = html(tables.scores(rows.sort(made(result(tasks=tasks)))))
        assert re.findall(r"<b>Mean of (.*?)</b>", table) == means


@pytest.mark.parametrize("systems", [("minilm",), SYSTEMS])
def test_a_single_task_with_the_least_a_result_can_have(systems: tuple[str, ...], tmp_path: Path) -> None:
    values = bare(result(systems, {"scifact": "retrieval"}))
    task = values["tasks"]["scifact"]
    for key in ("documents", "notes", "seconds", "truncated"):
        del task[key]
    page = write(tmp_path, values)
    assert headings(page) == ("Scores", *["Which differences are real"] * (len(systems) > 1), "Method")
    assert "<svg" not in page
    if len(systems) == 1:
        assert "reference" not in Page(page).text


@pytest.mark.parametrize(("missing", "section"), (OPTIONAL | PARTS).items())
def test_a_section_without_figures_is_left_out(missing: str, section: str, tmp_path: Path) -> None:
    values = result(tasks={"a": "retrieval", "b": "sts"})
    for task in values["tasks"].values():
        del task["seconds"]
    for key in ("languages", "lengths", "curves", "routers"):  # two of each are enough, and faster
        values[key] = dict(list(values[key].items())[:2])
    values[missing] = {}
    assert set(SECTIONS) - set(headings(write(tmp_path, values))) == {section}


def test_figures_that_are_null_or_nan_are_left_out(tmp_path: Path) -> None:
    values = result(tasks={"a": "sts", "b": "sts"})
    del values["tasks"]["a"]["metrics"]["minilm"]
    values["tasks"]["b"]["metrics"]["minilm"]["pearson"] = UNKNOWN
    values["tasks"]["b"]["differences"]["static"]["spearman"]["effect"] = float("nan")
    values["curves"]["minilm"] = [
        {
            "dim": 8,
            "codec": "int8",
            "bytes": 8,
            "score": UNKNOWN,
        }
    ]
    values["cost"] = {"minilm": {}, "runs/demo": {"texts_per_second": 0, "parameters": None}}
    values["routers"] = {"runs/demo": {"1": {"de": [0.5, 0.5]}, "3": {"en": [0.2, 0.3, 0.5]}, "5": {}}}
    page = Page(write(tmp_path, values))
    assert "nan" not in page.text
    assert "minilm has no score on a" in page.text


def test_forty_tasks_and_nine_systems(tmp_path: Path) -> None:
    tasks = {f"task-with-a-rather-long-name-{i}": list(MAIN)[i % 5] for i in range(40)}
    values = bare(result([*SYSTEMS, "a", "b", "c", "d", "e"], tasks))
    page = write(tmp_path, values)
    assert all(page.count(name) > 1 for name in tasks)
    assert "e against 8 systems" in Page(page).text
    assert len(re.findall(r'<i style="color:var\(--c\d\)">.</i>bm25', page)) > 1


def test_a_plain_comparison_has_a_page(tmp_path: Path) -> None:
    plain = Comparison.from_json(result(tasks={"a": "sts", "b": "sts"}))
    write_comparison(tmp_path / "page.html", plain)
    shown = headings((tmp_path / "page.html").read_text("utf-8"))
    assert set(SECTIONS) - set(shown) == {*OPTIONAL.values(), "Queries won and lost"}


def test_names_and_notes_of_the_user_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$1 & \"2\"')</script>"
    values = result([f"{evil}{i}" for i in range(3)], {f"{evil}{i}": "retrieval" for i in range(2)})
    values["tasks"][f"{evil}0"] |= {"notes": [evil], "truncated": {evil: 3}}
    values["languages"] |= {evil: values["languages"]["de"]}
    values["routers"][f"{evil}2"]["1"][evil] = [0.125] * 8
    values["curves"][f"{evil}2"][0]["codec"] = evil
    page = Page(write(tmp_path, values))
    assert "script" not in page.tags
    assert page.text.count(evil) > 30


def test_names_that_no_font_can_draw(tmp_path: Path) -> None:
    tasks = {"日本語\x00\ud800\nx": "sts", "ไทย": "sts"}
    page = Page(write(tmp_path, result(("a\ud800", "b\x07"), tasks)))
    assert "ไทย" in page.text


def test_same_result_same_bytes(tmp_path: Path) -> None:
    values = result(("minilm", "runs/demo"), dict(list(TASKS.items())[:2]))
    before = copy.deepcopy(values)
    assert write(tmp_path, values) == write(tmp_path, values)
    assert values == before


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*page\.html"):
        write_comparison(tmp_path / "file" / "page.html", made(compared(-0.09, -0.1, -0.08, 0.001)))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("ndcg@10", "nDCG@10"),
        ("map", "MAP"),
        ("mrr@10", "MRR@10"),
        ("hole@10", "Holes@10"),
        ("spearman", "Spearman"),
        ("pearson", "Pearson"),
        ("v_measure", "V-measure"),
        ("f1", "F1"),
        ("accuracy", "Accuracy"),
        ("recall@1", "Recall@1"),
        ("cosine_sim", "Cosine sim"),
    ],
)
def test_metrics_have_their_usual_names(key: str, name: str) -> None:
    assert formatting.metric_name(key) == name


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c"), ("abcdefghi", "a, b, c, d, e, f, g and 2 more")],
)
def test_a_long_list_names_the_first(parts: str, sentence: str) -> None:
    assert formatting.listing(list(parts)) == sentence


def test_sizes_have_units() -> None:
    assert [formatting.size(x) for x in (12, 1536, 310e6, 2.4e9)] == ["12 B", "1.54 kB", "310 MB", "2.4 GB"]


def test_queries_won_and_lost_are_told_by_task_and_system(tmp_path: Path) -> None:
    values = result()
    page = Page(write(tmp_path, values)).text
    for task in values["tasks"].values():
        for found in task.get("queries", {}).values():
            assert f"{found['won']:,} won{found['lost']:,} lost{found['alike']:,} alike" in page
    assert "Which, against minilm" in page
    assert page.count("what hunts voles?0.0001.000") == 3  # of each retrieval task, against minilm alone


def test_the_page_says_when_with_what_and_from_where_it_was_made(tmp_path: Path) -> None:
    page = Page(write(tmp_path, result())).text
    for fact in (
        "date2026-11-28",
        "moembed0.2.0",
        "cpuAMD EPYC",
        "runs/demo/models/runs/demo",
        "/data/scifact",
    ):
        assert fact in page


def test_what_is_looked_for_stands_where_a_narrow_screen_shows_it() -> None:
    found = rows.sort(made(result(("bm25", "static", "base", "runs/new"))))
    assert found.columns == ["runs/new", "base", "bm25", "static"]
    assert found.contenders == ["base", "bm25", "static"]
    heads = re.findall(r"<th scope=col>([^<]*)", html(tables.scores(found)))
    assert heads == ["", "runs/new", "base", "bm25", "static"]
