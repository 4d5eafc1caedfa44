"""Every command with every kind of bad input: exit code 2, one sentence on stderr, no traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from conftest import MakeModel, Run
from moembed.cli import app

# What a user may give where a file of rows is expected.
FILES = [
    "missing.jsonl",
    "folder",
    "binary.jsonl",
    "binary.csv",
    "binary.parquet",
    "empty.jsonl",
    "number.jsonl",
]
FILES += ["unreadable.jsonl"] if os.geteuid() else []  # root reads everything
# A command, with INPUT where the bad file goes. MODEL, PAIRS, TEXTS, TASK and OUT are what works.
READERS = {
    "train": "train RECIPE data=INPUT",
    "train dry run": "train RECIPE data=INPUT --dry-run",
    "train recipe": "train INPUT",
    "pretrain": "pretrain RECIPE data=INPUT",
    "tokenizer": "tokenizer INPUT --out OUT",
    "synth": "synth INPUT --generator json:dumps --near 1 --out OUT.jsonl",
    "synth templates": "synth TEXTS --generator json:dumps --near 1 --out OUT.jsonl --templates INPUT",
    "synth check": "synth TEXTS --generator json:dumps --near 1 --out OUT.jsonl --check INPUT",
    "filter": "filter INPUT --model MODEL --out OUT.jsonl",
    "mine": "mine INPUT --teacher MODEL --out OUT.jsonl",
    "mine corpus": "mine PAIRS --teacher MODEL --out OUT.jsonl --corpus INPUT",
    "evaluate": "evaluate bm25 --tasks INPUT",
    "evaluate suite": "evaluate bm25 --suite INPUT",
    "evaluate against": "evaluate bm25 --suite SUITE --against INPUT",
    "compare": "compare INPUT INPUT",
    "stress": "stress bm25 --only noise --task INPUT",
    "embed": "embed INPUT --model MODEL --out OUT",
    "index": "index INPUT --model MODEL --out OUT",
    "index build": "index build INPUT --model MODEL --out OUT",
    "index delete": "index delete INPUT a",
    "index info": "index info INPUT",
    "index compress": "index compress INPUT --codec int8",
    "index bridge": "index bridge INPUT --model MODEL",
    "search": "search INPUT moles",
    "inspect texts": "inspect MODEL --texts INPUT",
    "data inspect": "data inspect RECIPE data=INPUT",
    "data convert": "data convert INPUT --task sts --out OUT.jsonl",
    "data split": "data split INPUT --out OUT",
    "data dedup": "data dedup INPUT --out OUT.jsonl",
    "data collect": "data collect --source man --out OUT.jsonl --root INPUT",
    "data overlap": "data overlap RECIPE data=PAIRS --tasks INPUT",
    # models
    "upcycle model": "upcycle INPUT OUT",
    "evaluate model": "evaluate INPUT --tasks TASK --no-baselines",
    "stress model": "stress INPUT --only limit",
    "embed model": "embed TEXTS --model INPUT --out OUT",
    "index model": "index TEXTS --model INPUT --out OUT",
    "search model": "search INDEX moles --model INPUT",
    "inspect model": "inspect INPUT",
    "drift before": "drift INPUT MODEL",
    "drift after": "drift MODEL INPUT",
    "export model": "export INPUT OUT --format onnx",
    "distill": "distill --teacher MODEL --texts INPUT --out OUT",
    "distill teacher": "distill --teacher INPUT --student MODEL --texts TEXTS --out OUT",
    "distill student": "distill --teacher MODEL --student INPUT --texts TEXTS --out OUT",
    "merge probe": "merge MODEL MODEL --method self_positioning --probe INPUT --out OUT",
    "align": "align MODEL --texts INPUT --by group --out OUT",
    "align model": "align INPUT --texts GROUPS --by group --out OUT",
    "align tasks": "align MODEL --texts GROUPS --by group --tasks INPUT --out OUT",
    "fuse": "fuse MODEL MODEL --texts INPUT --dim 2 --out OUT",
    "fuse model": "fuse MODEL INPUT --out OUT",
    "push model": "push INPUT me/moles --dry-run",
    "filter model": "filter PAIRS --model INPUT --out OUT.jsonl",
    "mine teacher": "mine PAIRS --teacher INPUT --out OUT.jsonl",
    "train base": "train RECIPE data=PAIRS base=INPUT",
    "tokenizer base": "tokenizer TEXTS --out OUT --base INPUT",
    "demo base": "demo --base INPUT --out OUT",
}
# Numbers and words that an option does not take.
OPTIONS = [
    "demo --minutes nan",
    "demo --minutes inf",
    "demo --minutes 0",
    "demo --seed 12345678901234567890123",
    "demo --seed -1",
    "tokenizer TEXTS --out OUT --vocab-size 0",
    "tokenizer TEXTS --out OUT --trim",
    "tokenizer TEXTS --out OUT --base minilm --trim --extend 5",
    "tokenizer TEXTS --out OUT --base minilm --min-count 2",
    "tokenizer TEXTS --out OUT --kind words",
    "synth TEXTS --generator nothing --out OUT.jsonl",
    "synth TEXTS --generator json:nothing --out OUT.jsonl",
    "synth TEXTS --generator http://127.0.0.1:9 --out OUT.jsonl",
    "synth TEXTS --generator json:dumps --out OUT.txt",
    "synth TEXTS --generator json:dumps --out OUT.jsonl --queries 0",
    "synth TEXTS --generator json:dumps --out OUT.jsonl --limit 0",
    "synth TEXTS --generator json:dumps --out OUT.jsonl --temperature nan",
    "synth TEXTS --generator json:dumps --out OUT.jsonl --near 0",
    "synth TEXTS --generator json:dumps --out OUT.jsonl --text-column page",
    "synth TEXTS --generator http://127.0.0.1:9 --model m --out OUT.jsonl --timeout nan",
    "filter PAIRS --model MODEL --out OUT.jsonl --k 0",
    "filter PAIRS --model MODEL --out OUT.jsonl --seed 12345678901234567890123",
    "filter PAIRS --model MODEL --out OUT.txt",
    "mine PAIRS --teacher MODEL --out OUT.jsonl --depth 0",
    "mine PAIRS --teacher MODEL --out OUT.jsonl --rule relative:nan",
    "mine PAIRS --teacher MODEL --out OUT.jsonl --rule margins:1",
    "mine PAIRS --teacher MODEL --out OUT.jsonl --seed 12345678901234567890123",
    "train RECIPE data=PAIRS steps=nan",
    "train RECIPE data=PAIRS steps=-1",
    "train RECIPE data=PAIRS learning_rate=1",
    "train RECIPE data=PAIRS seed=12345678901234567890123",
    "train RECIPE data=PAIRS query_length=100000",
    "upcycle MODEL OUT --experts 100000",
    "upcycle MODEL OUT --experts 0",
    "upcycle MODEL OUT --top-k 9 --experts 4",
    "upcycle MODEL OUT --seed 12345678901234567890123",
    "evaluate MODEL --tasks TASK --sample 0",
    "evaluate MODEL --tasks TASK --wrong-tags 2",
    "evaluate MODEL --tasks TASK --wrong-tags 0.1",
    "evaluate MODEL --tasks TASK --processes 0",
    "evaluate MODEL --tasks TASK --dims 0",
    "evaluate MODEL --tasks TASK --dtype float64",
    "compare PAIRS PAIRS --choose 0",
    "evaluate bm25 --suite SUITE --against SUITE",
    "evaluate bm25 --suite SUITE --measures entropy",
    "stress bm25 --only limit --people 2",
    "stress bm25 --only limit --queries 0",
    "stress MODEL --only long --lengths 0",
    "stress bm25 --seed 12345678901234567890123",
    "embed TEXTS --model MODEL --out OUT --dim 0",
    "embed TEXTS --model MODEL --out OUT --dim 17",
    "embed TEXTS --model MODEL --out OUT --role reader",
    "embed TEXTS --model MODEL --out OUT --dtype int4",
    "index TEXTS --model MODEL --out OUT --dim -1",
    "index TEXTS --model MODEL --out PAIRS",
    "index TEXTS --out OUT",
    "index TEXTS --model MODEL --out OUT --id page",
    "index TEXTS --model MODEL --out OUT --engine faiss",
    "index delete INDEX nothing",
    "index delete INDEX",
    "index info OUT",
    "index bridge INDEX --model MODEL",
    "index bridge INDEX --model MODEL --seed -1",
    "index compress OUT --codec int8",
    "index compress INDEX --codec int4",
    "index compress INDEX --codec bebr --bits-per-dim 0",
    "index compress INDEX --codec bebr:2 --bits-per-dim 2",
    "index compress INDEX --codec pq --bits-per-dim 2",
    "index compress INDEX --codec int8 --seed -1",
    "index TEXTS --model MODEL --out OUT --bits-per-dim 2",
    "index TEXTS --model MODEL --out OUT --codec bebr",
    "search INDEX moles -k 0",
    "search INDEX moles --where lang",
    "search INDEX moles --where lang=1",
    "search INDEX moles --weight 2",
    "search INDEX moles --weight 0.5",
    "search INDEX moles -k nan",
    "index push INDEX --to mysql://moles",
    "merge MODEL MODEL --method median --out OUT",
    "merge MODEL --out OUT",
    "merge MODEL MODEL --method self_positioning --out OUT",
    "merge MODEL MODEL --probe PAIRS --out OUT",
    "drift MODEL MODEL --tensors -1",
    "drift MODEL MODEL --experts nan",
    "prune MODEL --texts TEXTS --drop 0 --out OUT",
    "prune MODEL --texts TEXTS --drop 100 --out OUT",
    "prune MODEL --texts missing.jsonl --out OUT",
    "quantize MODEL --avg-bits 3 --out OUT",
    "compress-vocabulary MODEL --method zip --out OUT",
    "compress-vocabulary MODEL --method pq --out OUT",
    "compress-vocabulary MODEL --method pq --ratio 0 --out OUT",
    "compress-vocabulary MODEL --method pq --ratio 1e-9 --out OUT",
    "compress-vocabulary MODEL --method pq --ratio nan --out OUT",
    "compress-vocabulary MODEL --method int8 --ratio 0.5 --out OUT",
    "compress-vocabulary MODEL --method low_rank --rank 0 --out OUT",
    "compress-vocabulary MODEL --method tensor_train --rank 100000 --out OUT",
    "compress-vocabulary MODEL --method pq --ratio 0.5 --seed -1 --out OUT",
    "quantize MODEL --score size --out OUT",
    "quantize MODEL --texts missing.jsonl --out OUT",
    "align MODEL --texts GROUPS --out OUT",
    "align MODEL --texts GROUPS --by group --method shift --out OUT",
    "align MODEL --texts GROUPS --by group --method turn --out OUT",
    "align MODEL --texts GROUPS --by group --strengths 2 --out OUT",
    "align MODEL --texts GROUPS --by group --strengths nan --out OUT",
    "align MODEL --texts GROUPS --by group --strengths half --out OUT",
    "align MODEL --texts GROUPS --by group --strengths 0,1 --out OUT",
    "align MODEL --texts GROUPS --by group --sample 1 --out OUT",
    "align MODEL --texts GROUPS --by group --out PAIRS",
    "fuse MODEL --out OUT",
    "fuse MODEL MODEL --dim 4 --out OUT",
    "fuse MODEL MODEL --texts TEXTS --out OUT",
    "fuse MODEL MODEL --texts TEXTS --dim 3 --out OUT",
    "fuse MODEL MODEL --texts TEXTS --dim 0 --out OUT",
    "fuse MODEL MODEL --weights 1 --out OUT",
    "fuse MODEL MODEL --weights 1,-1 --out OUT",
    "fuse MODEL MODEL --weights nan,1 --out OUT",
    "rerank MODEL --query moles TEXTS",
    "distill --teacher MODEL --texts TEXTS --out OUT batch_size=0",
    "distill --teacher MODEL --student MODEL --texts TEXTS --out OUT --role reader",
    "distill --teacher MODEL --student MODEL --texts TEXTS --out OUT loss.kind=l1",
    "experiment RECIPE --seeds 0",
    "serve MODEL --port -1",
    "serve MODEL --workers 0",
    "export MODEL OUT --format tensorrt",
    "bench nothing",
    "bench moe --repeats 0",
    "bench moe --threads 0",
    "push MODEL moles --dry-run",
    "data inspect RECIPE data=PAIRS --sample 0",
    "data convert PAIRS --task sts --out OUT.jsonl",
    "data convert PAIRS --task sts --out OUT.jsonl --negatives 2",
    "data convert PAIRS --task clustering --out OUT.jsonl --negatives -1",
    "data convert PAIRS --task clustering --out OUT.jsonl --label query --text page",
    "data split PAIRS --out OUT --near nan",
    "data split PAIRS --out OUT --dev -1",
    "data split PAIRS --out OUT --test nan",
    "data split PAIRS --out OUT --test inf",
    "data split PAIRS --out OUT --seed -1",
    "data dedup PAIRS --out OUT.jsonl --near nan",
    "data dedup PAIRS --out OUT.jsonl --near 2",
    "data collect --source words --out OUT.jsonl",
    "data collect --source man --out OUT.jsonl --min-letters 0",
    "data overlap RECIPE data=PAIRS --tasks TASK --ngram 0",
    "data overlap RECIPE data=PAIRS --tasks TASK --containment nan",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel) -> Path:
    """Inputs that work and inputs that do not, side by side."""
    place = tmp_path_factory.mktemp("inputs")
    make_model(num_layers=2).save_pretrained(place / "model")
    pairs = [{"query": f"where is mole {i}?", "document": f"mole {i} is in tunnel {i}"} for i in range(12)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (place / "texts.jsonl").write_text('{"text": "moles dig"}\n{"text": "owls hunt"}\n')
    groups = [{"text": f"mole {i} digs", "group": "ab"[i % 2]} for i in range(6)]
    (place / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in groups))
    recipe = {"base": str(place / "model"), "out": "OUT", "steps": 1, "batch_size": 4}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    (place / "suite.yaml").write_text('{"tasks": ["task"]}')
    (place / "task" / "qrels").mkdir(parents=True)
    (place / "task" / "corpus.jsonl").write_text('{"_id": "d", "text": "moles dig"}\n')
    (place / "task" / "queries.jsonl").write_text('{"_id": "q", "text": "who digs?"}\n')
    (place / "task" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    # what does not work
    (place / "folder").mkdir()
    for name in ("binary.jsonl", "binary.csv", "binary.parquet"):
        (place / name).write_bytes(bytes(range(256)) * 4)
    (place / "empty.jsonl").touch()
    (place / "number.jsonl").write_text("3\n")
    (place / "unreadable.jsonl").write_text('{"text": "x"}\n')
    (place / "unreadable.jsonl").chmod(0)
    return place


def command(line: str, place: Path, out: Path, bad: str = "") -> list[str]:
    known = {
        "INPUT": str(place / bad),
        "MODEL": str(place / "model"),
        "PAIRS": str(place / "pairs.jsonl"),
        "TEXTS": str(place / "texts.jsonl"),
        "RECIPE": str(place / "recipe.yaml"),
        "GROUPS": str(place / "groups.jsonl"),
        "SUITE": str(place / "suite.yaml"),
        "TASK": str(place / "task"),
        "INDEX": str(place / "index"),
        "OUT": str(out / "made"),
    }
    words = line.split()
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    return words + ([f"out={out / 'made'}"] if words[0] in ("train", "pretrain") else [])


def one_sentence(result: tuple[int, str, str], out: Path) -> None:
    code, printed, err = result
    assert code == 2, err
    assert printed == ""
    lines = [line for line in err.splitlines() if line.strip()]  # notes and progress may come before
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], err
    for leak in ("Traceback", "Input should", "pydantic", "[Errno"):
        assert leak not in err
    assert not list(out.iterdir()), "nothing is made of bad input"


@pytest.mark.parametrize("bad", FILES)
@pytest.mark.parametrize("line", READERS.values(), ids=READERS)
def test_a_bad_file_is_one_sentence(
    line: str, bad: str, place: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_sentence(run(*command(line, place, tmp_path, bad)), tmp_path)


@pytest.mark.parametrize("line", OPTIONS)
def test_a_value_that_makes_no_sense_is_one_sentence(
    line: str, place: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "INDEX" in line and not (place / "index").exists():
        made = run(*command("index TEXTS --model MODEL --out INDEX", place, tmp_path))
        assert made[0] == 0, made[2]
    one_sentence(run(*command(line, place, tmp_path)), tmp_path)


def commands() -> dict[str, Any]:
    """Every command by its full name."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, made in group.commands.items():
        inner = getattr(made, "commands", None)
        found |= {f"{name} {sub}": of for sub, of in inner.items()} if inner else {name: made}
    return found


@pytest.mark.parametrize("name", commands())
def test_a_misspelled_option_names_the_nearest(name: str, run: Run) -> None:
    options = [
        option
        for made in commands()[name].params
        for option in made.opts
        if len(option) > 5 and "--" in option
    ]
    wrong = options[-1][:-1]
    code, out, err = run(*name.split(), wrong)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: no such option: {wrong}")
    assert options[-1] in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", commands())
def test_every_help_has_an_example(name: str) -> None:
    text = " ".join((commands()[name].help or "").split())
    assert f"Example: `moembed {name} " in text


@pytest.mark.parametrize("name", commands())
def test_every_number_has_a_range(name: str) -> None:
    hints = get_type_hints(commands()[name].callback, include_extras=True)
    for option, hint in hints.items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if {int, float} & {kind, *get_args(kind)}:
            assert marks, f"{name}: {option} takes any number"
            assert marks[0].min is not None, f"{name}: {option} takes numbers that are too low"


def test_every_command_that_reads_is_tried() -> None:
    tried = {" ".join(line.split()[:2] if line.startswith(("data", "index")) else line.split()[:1])
             for line in [*READERS.values(), *OPTIONS]}  # fmt: skip
    assert tried >= set(commands())
