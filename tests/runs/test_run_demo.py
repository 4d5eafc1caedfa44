"""The demo on a small made-up installation and a tiny base, and, slowly, the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moembed.cli import main
from moembed.data.docstrings import Docstrings, collect
from moembed.runs import demo

WORDS = ["read", "write", "open", "close", "sort", "merge", "split", "join", "pack", "parse"]


def fake_packages(root: Path, packages: int = 6, functions: int = 60) -> None:
    for package in range(packages):
        folder = root / f"package{package}"
        folder.mkdir(parents=True)
        lines = ['"""A package."""\n']
        for i in range(functions):
            first, second = WORDS[i % 10], WORDS[(i // 10 + package) % 10]
            lines.append(
                f"def {first}_{second}_{package}_{i}(value):\n"
                f'    """{first.title()} and {second} the value number {i} of package {package}."""\n'
                f"    value = {first}(value, {i})\n"
                f"    if value is None:\n"
                f"        return {package}\n"
                f"    return {second}(value)\n\n"
            )
        (folder / "__init__.py").write_text("\n".join(lines))


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_packages(tmp_path / "site")

    def small() -> Docstrings:
        return collect(roots=[tmp_path / "site"], unseen_documents=100)

    monkeypatch.setattr(demo, "collect", small)
    return tmp_path


def test_the_demo_goes_the_whole_line(
    small_world: Path, make_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(prompts={}).save_pretrained(small_world / "base")
    out = small_world / "run"
    arguments = [
        "demo",
        "--minutes",
        "0.02",
        "--base",
        str(small_world / "base"),
        "--out",
        str(out),
        "--twin",
    ]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert "of packages" not in printed.err.splitlines()[-1]
    report = json.loads((out / "report.json").read_text())
    assert set(report["metrics"]) == {"bm25", "base", "twin", "moe"}
    for system in report["metrics"].values():
        assert set(system) == {"ndcg@10", "recall@1", "recall@10", "mrr@10"}
        assert all(cell["low"] <= cell["value"] <= cell["high"] for cell in system.values())
    assert report["train_seconds"] > 0
    assert report["documents"] >= 100
    assert not set(report["unseen_packages"]) & {"package-that-is-not-there"}
    assert "<svg" in (out / "report.html").read_text()

    assert main(["search", str(out), "Read and write the value number 0", "-k", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert len(hits) == 3
    assert set(hits[0]) == {"score", "package", "name", "file", "code"}
    assert {hit["package"] for hit in hits} <= set(report["unseen_packages"])

    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_missing_library_is_named_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert main(["demo", "--out", str(tmp_path / "run")]) == 2
    assert "the demo needs matplotlib; run: pip install 'moembed[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_minute_of_training_helps_on_packages_never_seen(tmp_path: Path) -> None:
    """Real packages, the real base: the gain's whole interval lies above zero."""
    assert main(["demo", "--minutes", "1", "--out", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["queries"] >= 1500
    assert report["documents"] >= 5000
    assert report["differences"]["moe-base"]["ndcg@10"]["low"] > 0
