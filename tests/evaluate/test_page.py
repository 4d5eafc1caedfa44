from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from moembed.evaluate.page import summary, write_page
from moembed.types import UserError


def result(gain: tuple[float, float, float], tasks: int = 2, first: str = "base") -> dict[str, Any]:
    mean, low, high = gain
    cells = {metric: {"value": 0.61, "low": 0.6, "high": 0.62} for metric in ("ndcg@10", "mrr@10")}
    gaps = {metric: {"mean": -mean, "low": -high, "high": -low, "p_value": 0.0004} for metric in cells}
    compared = {"metrics": {first: cells, "bm25": cells, "tuned": cells}}
    compared["differences"] = {f"{first}-tuned": gaps, "bm25-tuned": gaps}
    one = {"queries": 1200, "documents": 30, "notes": [], **compared}
    return {"overall": compared, "tasks": {f"task{i}": one for i in range(tasks)}}


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (
            (0.09, 0.08, 0.1),
            "tuned beats base by +0.090 nDCG@10 [0.080, 0.100] over 2,400 queries of 2 tasks.",
        ),
        ((-0.03, -0.04, -0.02), "tuned is worse than base by 0.030 nDCG@10 [0.020, 0.040] over"),
        (
            (0.004, -0.003, 0.011),
            "tuned and base show no clear difference over 2,400 queries of 2 tasks: +0.004",
        ),
        ((0.004, 0.0, 0.008), "which includes zero."),
    ],
)
def test_the_summary_says_what_the_interval_says(
    gain: tuple[float, float, float], sentence: str, tmp_path: Path
) -> None:
    assert sentence in summary(result(gain))
    write_page(tmp_path / "page.html", result(gain))
    assert sentence in (tmp_path / "page.html").read_text()


def test_a_single_model_and_a_single_task_are_summed_up_without_a_comparison(tmp_path: Path) -> None:
    alone = result((0.1, 0.05, 0.2), tasks=1)
    for part in (alone["overall"], alone["tasks"]["task0"]):
        part["metrics"], part["differences"] = {"base": part["metrics"]["base"]}, {}
    assert summary(alone) == "base reaches 0.610 nDCG@10 [0.600, 0.620] over 1,200 queries of 1 task."
    write_page(tmp_path / "page.html", alone)
    page = (tmp_path / "page.html").read_text()
    assert "last − first" not in page
    assert "mean over tasks" not in page


def test_the_page_loads_nothing_and_shows_every_figure(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", result((0.09, 0.08, 0.1)))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"<(script|link|iframe|img)\b", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert page.count("<svg") == 4  # scores and gains of two metrics
    for words in (
        "nDCG@10",
        "MRR@10",
        "task1",
        "mean over tasks",
        "1,200 queries, 30 documents",
        "p &lt; 0.001",
    ):
        assert words in page
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_names_and_notes_of_the_user_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made = result((0.09, 0.08, 0.1), first=evil)
    made["tasks"] = {evil: made["tasks"]["task0"] | {"notes": [evil]}}
    write_page(tmp_path / "page.html", made)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*page\.html"):
        write_page(tmp_path / "nowhere" / "page.html", result((0.09, 0.08, 0.1)))
