"""The mini pipeline names only what exists, refuses in one sentence, and, slowly, runs on made-up data."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from conftest import Run
from moembed.cli import app
from moembed.config import load
from moembed.runs.pretrain import PretrainConfig
from moembed.runs.train import TrainConfig

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "mini" / "pipeline.sh"
STAGES = [
    "data dedup", "data dedup", "tokenizer", "pretrain", "filter", "train", "mine", "upcycle", "train",
    "evaluate",
]  # fmt: skip
SOURCES = [
    "squad-en",
    "jaquad-ja",
    "iapp-wiki-qa-th",
    "arcd-ar",
    "cmrc2018-trial-zh",
    "facqa-id",
    "faquad-pt",
]


def calls() -> list[list[str]]:
    """The words of every `moembed …` of the script, in its order, with the variables as they stand."""
    text = re.sub(r"^\s*#.*$", "", SCRIPT.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"\bmoembed ([a-z].*)$", text, flags=re.MULTILINE)]


def name_of(words: list[str]) -> str:
    return " ".join(words[:2] if words[0] == "data" else words[:1])


def test_the_stages_come_in_order() -> None:
    names = [name_of(words) for words in calls()]
    assert names == STAGES


@pytest.mark.parametrize("words", calls(), ids=name_of)
def test_commands_options_and_recipes_exist(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    for part in name_of(words).split():
        command = command.commands[part]
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    assert {word for word in words if word.startswith("--")} <= known
    recipes = [word for word in words if word.endswith(".yaml")]
    overrides = [re.sub(r"\$\w+", "x", word) for word in words if re.match(r"[a-z_.]+=", word)]
    for recipe in recipes:
        load(PretrainConfig if words[0] == "pretrain" else TrainConfig, ROOT / recipe, overrides)
    assert len(recipes) == (words[0] in ("pretrain", "train"))


def pipeline(out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    commands = out.parent / "bin"
    commands.mkdir(exist_ok=True)
    moembed = commands / "moembed"
    code = "import sys; from moembed.cli import main; sys.exit(main())"
    moembed.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    moembed.chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OUT": str(out)} | variables
    return subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "MOEMBED_DATA is {data}, which holds no text.parquet, train and eval"),
        (("--again",), "unknown argument --again; the only one is --resume"),
    ],
)
def test_refuses_in_one_sentence(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = pipeline(tmp_path / "out", *arguments, MOEMBED_DATA=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"pipeline: {message.format(data=tmp_path)}\n"
    assert not (tmp_path / "out").exists()


def test_does_not_touch_what_is_there(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    (tmp_path / "out").mkdir()
    done = pipeline(tmp_path / "out", MOEMBED_DATA=str(tmp_path / "data"))
    assert done.returncode == 2
    assert "exists; go on there with --resume, or choose another OUT" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_data(folder: Path) -> None:
    """A world of moles: translations, questions, texts in two languages and a task."""
    moles = range(80)
    write(
        folder / "train" / "moles-parallel.parquet",
        [
            {
                "query": f"mole {i} digs",
                "document": f"der maulwurf {i} gräbt",
                "language": "de",
                "source": "moles",
            }
            for i in moles
        ],
    )
    for source in SOURCES:
        rows = [
            {"query": f"where is mole {i}?", "document": f"{source}: mole {i} is in tunnel {i * 7 % 80}"}
            for i in moles
        ]
        write(
            folder / "train" / f"{source}.parquet",
            [row | {"language": "en", "source": source} for row in rows],
        )
    texts = [
        {"text": f"mole {i} is in tunnel {i * 7 % 80}, the maulwurf gräbt", "language": "en"} for i in moles
    ]
    write(folder / "text.parquet", texts * 4)
    task = folder / "eval" / "moles"
    write(task / "corpus.parquet", [{"_id": f"d{i}", "title": "", "text": f"mole {i} sleeps"} for i in moles])
    write(task / "queries.parquet", [{"_id": f"q{i}", "text": f"mole {i}?"} for i in moles])
    write(task / "qrels.parquet", [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in moles])


@pytest.mark.slow
def test_runs_every_stage_and_resumes(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    tiny = "steps=3 batch_size=4 query_length=16 document_length=16 save_every=2 precision=float32"
    variables = {
        "MOEMBED_DATA": str(tmp_path / "data"),
        "TASKS": "moles",
        "PIECES": "10",
        "PARALLEL": "60",
        "QUESTIONS": "8",
        "PRETRAIN": "steps=3 batch_size=2 sequence_length=16 held_out.sequences=2 precision=float32",
        "CONTRASTIVE": tiny,
        "FINETUNE": tiny,
    }
    out = tmp_path / "out"
    done = pipeline(out, **variables)
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text("utf-8")
    assert "http" not in page.replace("http-equiv", "")
    report = json.loads((out / "report.json").read_text())
    assert list(report["overall"]["metrics"]) == [
        "minilm", "bm25", str(out / "contrastive"), str(out / "finetuned")
    ]  # fmt: skip
    assert report["tasks"]["moles"]["items"] == 80
    assert len((out / "pairs" / "parallel.jsonl").read_text().splitlines()) == 60

    (out / "report.html").unlink()
    again = pipeline(out, "--resume", **variables)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is there") == 9
    assert (out / "report.html").exists()


def test_evaluate_writes_a_page_and_its_figures(run: Run, make_model: Any, tmp_path: Path) -> None:
    make_model(prompts={}).save_pretrained(tmp_path / "model")
    make_data(tmp_path / "data")
    task = tmp_path / "data" / "eval" / "moles"
    arguments = ("evaluate", "bm25", tmp_path / "model", "--no-baselines", "--tasks", task)
    code, out, err = run(*arguments, "--html", tmp_path / "page.html", "--json")
    assert code == 0, err
    figures = json.loads((tmp_path / "page.json").read_text())
    assert figures == json.loads(out)
    assert figures["overall"]["metrics"].keys() == {"bm25", str(tmp_path / "model")}
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "bm25" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("page", "message"), [("page.htm", "does not end in .html"), ("nowhere/page.html", "there is no folder")]
)
def test_a_page_that_could_not_be_written_is_refused_before_any_work(
    run: Run, tmp_path: Path, page: str, message: str
) -> None:
    code, _, err = run("evaluate", "minilm", "--tasks", tmp_path / "no-task", "--html", tmp_path / page)
    assert code == 2
    assert message in err
