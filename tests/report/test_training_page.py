from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moembed.report.training.page import write_report
from moembed.report.training.reading import smooth
from moembed.types import UserError

VOID = {"meta", "br", "image"}  # matplotlib closes <image> itself; HTML does not need it closed
METRICS = ("ndcg@10", "recall@1", "recall@10", "mrr@10")


class Page(HTMLParser):
    """Checks that tags nest and ids are unique; gathers the text people see and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []
        ids = [value for key, value in self.attributes if key == "id"]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def record(step: int, experts: int = 4, dead: bool = False) -> dict[str, Any]:
    load = np.ones(experts) / max(experts, 1)
    if dead:
        load[0] += load[2]
        load[2] = 0
    stats = {"entropy": 1.2, "top_mass": 0.6, "dead_experts": int(dead), "load": load.tolist()}
    return {
        "step": step,
        "elapsed": 0.5 * step,
        "loss": 2.0 / step,
        "learning_rate": 1e-4,
        "pairs_per_second": 200.0,
        "grad_norm": 1.0,
        "router": [{"layer": layer, **stats} for layer in (1, 3)] if experts else [],
    }


def evaluation(mean: float, low: float, high: float, p_holm: float | None = 0.0004) -> dict[str, Any]:
    value = {metric: {"value": 0.61, "low": 0.6, "high": 0.62} for metric in METRICS}
    gap = {
        metric: {"mean": mean, "low": low, "high": high, "p_value": 0.0004, "p_holm": p_holm}
        for metric in METRICS
    }
    return {
        "metrics": {"bm25": value, "base": value, "moe": value},
        "differences": {"moe-base": gap},
        "train_seconds": 744.2,
        "queries": 4000,
        "documents": 21873,
        "model": {"total_parameters": 36_412_800, "active_parameters": 25_790_208},
        "settings": {"batch_size": 64, "upcycle.num_experts": 4, "dims": [256, 64], "seed": None},
        "machine": {"cpu": "Some CPU", "cores": 2, "bfloat16": True},
        "notes": ["Queries were split by package."],
    }


def save(run: Path, records: list[dict[str, Any]], report: object = None, tail: str = "") -> Path:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records) + tail)
    if report is not None:
        (run / "report.json").write_text(json.dumps(report))
    return run


def read(run: Path, title: str = "A run") -> tuple[str, Page]:
    path = write_report(run, title)
    assert path == run / "report.html"
    page = path.read_text(encoding="utf-8")
    return page, Page(page)


def test_full_run(tmp_path: Path) -> None:
    save(tmp_path, [record(step) for step in range(1, 41)], evaluation(0.09, 0.08, 0.1))
    page, parsed = read(tmp_path)
    for heading in ("Quality", "Training", "Experts", "Notes", "Run"):
        assert f"<h2>{heading}</h2>" in page
    assert parsed.tags.count("svg") == 8  # two comparisons, four curves, heat map, bars
    assert sum(key == "aria-label" for key, _ in parsed.attributes) == 8
    for words in (
        "0.610",
        "[0.600, 0.620]",
        "+0.090",
        "p < 0.001",
        "25.8 M",
        "of 36.4 M",
        "12 min 24 s",
        "4,000",
    ):
        assert words in parsed.text
    for words in ("upcycle.num_experts", "[256, 64]", "Some CPU", "yes", "Queries were split by package."):
        assert words in parsed.text
    assert "No expert is dead: each received tokens in the last 4 logged steps." in parsed.text


def test_the_trained_model_is_the_first_column(tmp_path: Path) -> None:
    save(tmp_path, [record(1)], evaluation(0.09, 0.08, 0.1))
    page, _ = read(tmp_path)
    order = [
        page.index(name, page.index("Metrics by system")) for name in ("trained MoE", "dense base", "BM25")
    ]
    assert order == sorted(order)


def test_dead_expert_is_named(tmp_path: Path) -> None:
    save(tmp_path, [record(step, dead=step > 5) for step in range(1, 41)])
    _, parsed = read(tmp_path)
    assert (
        "Dead, without a token in the last 4 logged steps: expert 2 of layer 1; expert 2 of layer 3."
        in parsed.text
    )


def test_expert_that_recovers_is_not_dead(tmp_path: Path) -> None:
    save(tmp_path, [record(step, dead=step < 40) for step in range(1, 41)])
    assert "No expert is dead" in read(tmp_path)[1].text


def test_load_by_role_source_and_language(tmp_path: Path) -> None:
    """One card per kind, if there is more than one of it; an expert without tokens of a kind is counted."""
    lines = [record(step) | {"source": f"s{step % 2}<"} for step in range(1, 9)]
    dead = record(1, dead=True)["router"]
    lines[4] |= {"roles": {"query": dead, "document": lines[0]["router"]}, "languages": {"en": dead}}
    lines[6] |= {"roles": {"query": [{"layer": 1}], "document": 5}, "languages": 3}  # nothing to see
    page, parsed = read(save(tmp_path, lines))
    assert "<h3>Load by role</h3>" in page
    assert "<h3>Load by source</h3>" in page
    assert "Load by language" not in page
    assert parsed.tags.count("svg") == 8  # four curves, heat map, bars, two kinds
    table = re.search(r"Load by role.*?<tbody>(.*?)</tbody>", page, re.S)
    assert table
    rows = re.findall(r"<th scope=row>(\w+)</th>.*?<td>(\d+)</td></tr>", table[1])
    assert rows == [("document", "0"), ("query", "2")]
    assert "s0<" in parsed.text


def test_the_distance_between_experts_is_told_from_the_first_look_to_the_last(tmp_path: Path) -> None:
    lines = [record(step) for step in range(1, 9)]
    assert "Distance between experts" not in read(save(tmp_path, lines))[1].text
    lines[0] |= {"expert_distance": {"1": 0.0, "3": 0.01}}
    lines[5] |= {"expert_distance": {"1": 0.25, "3": 0.125}}
    page, parsed = read(save(tmp_path, lines))
    assert "Distance between experts" in parsed.text
    assert "0.000 → 0.250" in page
    assert "0.010 → 0.125" in page


def test_many_sources_are_cut_to_the_most_frequent(tmp_path: Path) -> None:
    lines = [record(step) | {"source": f"source-{step % 30:02}"} for step in range(1, 61)]
    assert "The 24 most frequent of 30." in read(save(tmp_path, lines))[1].text


def test_dense_run_has_no_expert_section(tmp_path: Path) -> None:
    save(tmp_path, [record(step, experts=0) for step in range(1, 11)], evaluation(0.09, 0.08, 0.1))
    page, parsed = read(tmp_path)
    assert "<h2>Experts</h2>" not in page
    assert parsed.tags.count("svg") == 6


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"step": 7}, "The run reached step 7; it logged no loss, and it has not been evaluated yet."),
        (
            {"step": 7, "loss": 2},
            "The run reached step 7; its loss was 2.000, and it has not been evaluated yet.",
        ),
    ],
)
def test_minimal_run(tmp_path: Path, line: dict[str, Any], sentence: str) -> None:
    assert sentence in read(save(tmp_path, [line]))[1].text


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((0.09, 0.08, 0.1, 0.001), "it gains 0.090 [0.080, 0.100] nDCG@10 over the dense base."),
        ((-0.03, -0.04, -0.02, 0.01), "it loses 0.030 [0.020, 0.040] nDCG@10 against the dense base."),
        (
            (0.004, -0.003, 0.011, 0.3),
            "it shows no clear difference from the dense base (nDCG@10 +0.004 [−0.003, 0.011], p = 0.300).",
        ),
        ((0.09, 0.08, 0.1, 0.05), "it shows no clear difference"),
        (
            (0.004, None, None, None),
            "it shows no clear difference from the dense base (nDCG@10 +0.004, without a test).",
        ),
    ],
)
def test_summary_says_what_p_after_holm_says(
    tmp_path: Path, gap: tuple[float, float, float, float], words: str
) -> None:
    save(tmp_path, [{"step": 1}], evaluation(*gap))
    assert (
        f"The trained MoE finds the right document first for 61 % of the queries; {words}"
        in read(tmp_path)[1].text
    )


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    save(tmp_path, [record(step) for step in range(1, 11)], evaluation(0.09, 0.08, 0.1))
    page, parsed = read(tmp_path)
    assert "http" not in page.replace("http-equiv", "")
    assert not {"script", "link", "iframe", "img"} & set(parsed.tags)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    links = [value or "" for key, value in parsed.attributes if key in ("href", "src", "xlink:href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)


def test_colours_follow_the_page(tmp_path: Path) -> None:
    page, _ = read(save(tmp_path, [record(step) for step in range(1, 11)], evaluation(0.09, 0.08, 0.1)))
    used = set(re.findall(r"var\(--(\w+)\)", page))
    light, dark = (
        set(re.findall(r"--(\w+):", block)) for block in re.findall(r":root \{(.*?)\}", page, re.S)
    )
    assert used <= light == dark
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert not re.search(r"(fill|stroke): #", drawings)


def test_strings_of_the_user_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$1 & \"2\"')</script>"
    report = evaluation(0.09, 0.08, 0.1)
    report["metrics"][evil] = {evil: {"value": 0.5}}
    report["differences"][f"moe-{evil}"] = {"ndcg@10": {"mean": 0.1, "low": 0.05, "high": 0.2}}
    report |= {"settings": {evil: evil, "list": [evil]}, "machine": {evil: evil}, "notes": [evil]}
    _, parsed = read(save(tmp_path, [record(1)], report), title=evil)
    assert "script" not in parsed.tags
    assert parsed.text.count(evil) >= 6


def test_torn_and_foreign_lines_are_counted(tmp_path: Path) -> None:
    tail = '[1]\n{"loss": 1}\n\n{"step": 99, "lo'
    _, parsed = read(save(tmp_path, [{"step": 1}, {"step": 2}], tail=tail))
    assert "The run reached step 2;" in parsed.text
    assert "could not be read and were left out: 3." in parsed.text


def test_torn_inside_a_character(tmp_path: Path) -> None:
    save(tmp_path, [{"step": 1}])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "note": "\xc3')
    assert "left out: 1." in read(tmp_path)[1].text


def test_step_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    save(tmp_path, [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 3.0}])
    assert "its smoothed loss went from 4.000 to 3.000" in read(tmp_path)[1].text


def test_loss_that_is_not_finite_is_said(tmp_path: Path) -> None:
    save(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}])
    assert "The loss was not a finite number in 1 logged step, first at step 2." in read(tmp_path)[1].text


@pytest.mark.parametrize(
    "report",
    [
        {},
        {
            "metrics": None,
            "differences": 3,
            "settings": [],
            "notes": "one",
            "model": "big",
            "queries": "many",
        },
        {
            "metrics": {"moe": {"ndcg@10": {"value": float("nan")}}, "base": 1},
            "differences": {"moe-base": {}},
        },
        {"metrics": {"moe": {"precision@5": {"value": 0.5}}, "odd": {"ndcg@10": {"value": 0.5}}}},
        {"notes": ["\ud800"], "level": "high", "machine": {"cpu": None}},
    ],
)
def test_absent_and_odd_figures_are_left_out(tmp_path: Path, report: dict[str, Any]) -> None:
    page, _ = read(
        save(tmp_path, [record(1) | {"router": [{"layer": 1}]}, record(2) | {"router": 5}], report)
    )
    assert "nan" not in re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.S).lower()


def test_same_run_same_bytes(tmp_path: Path) -> None:
    save(tmp_path, [record(step) for step in range(1, 6)], evaluation(0.09, 0.08, 0.1))
    assert read(tmp_path)[0] == read(tmp_path)[0]


@pytest.mark.parametrize("log", [None, b"", b'{"step": 1, "lo', b"\xff\xfe\x00"])
def test_run_without_a_log(tmp_path: Path, log: bytes | None) -> None:
    if log is not None:
        (tmp_path / "metrics.jsonl").write_bytes(log)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        write_report(tmp_path, "A run")


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"'])
def test_broken_evaluation(tmp_path: Path, text: str) -> None:
    save(tmp_path, [record(1)])
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json.* evaluate the run again"):
        write_report(tmp_path, "A run")


def test_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = read(save(tmp_path, [{"step": 1}]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moembed.files.os.replace", full)
    with pytest.raises(UserError, match=r"cannot write .*report\.html: the disk is full"):
        write_report(tmp_path, "Another title")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'moembed\[demo\]'"):
        write_report(save(tmp_path, [record(1)]), "A run")


@given(arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e3, 1e3)))
def test_smoothing_stays_within_the_values(value: np.ndarray) -> None:
    line = smooth(value)
    assert line.shape == value.shape
    assert (line >= value.min() - 1e-6).all()
    assert (line <= value.max() + 1e-6).all()
