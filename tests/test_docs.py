"""Every block of code in README.md and docs/ runs as it stands, on tiny models in the places it names.

docs/other-tools.md has tests of its own, in test_readme.py. A block that is not run says why in a comment in
front of it: ``<!-- not run: needs a GPU -->``.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

import published
from conftest import HfFolder
from doc_pages import PAGES, ROOT, blocks, outputs, run_block, run_line
from moembed.embedder import Embedder

WORDS = ["mole", "moles", "owl", "owls", "voles", "worms", "night", "wide", "long", "under", "eat", "hunt"]
NOMIC = published.CONFIG | {"n_positions": 512, "max_trained_positions": 512}
# What a page says of full size and a tiny model cannot do, page by page.
REPLACED = {
    "gguf.md": {"q8_0": "f16"},
    "README.md": {"out=runs/mine": "batch_size=8 steps=2 out=runs/mine"},
    "nomic-v2.md": {"dim=256": "dim=8", "data=pairs": "batch_size=8 steps=2 data=pairs"},
    "training.md": {"steps=200": "steps=2"},
    "reranking.md": {"out=runs/reranker": "batch_size=8 max_length=32 steps=2 out=runs/reranker"},
    "from-sentence-transformers.md": {"upcycle=None, out": "upcycle=None, batch_size=8, steps=2, out"},
    "tutorial.md": {
        "evaluate_every=10": "evaluate_every=2 batch_size=8 steps=4",
        "train.jsonl\n": "train.jsonl batch_size=8\n",
    },
    "which-loss.md": {
        "[384, 128]": "[16, 8]",
        "data=pairs.jsonl loss": "data=pairs.jsonl batch_size=8 steps=2 loss",
    },
    "tokenizer.md": {"32000": "120", "--extend 10000": "--extend 5"},
}


def pair_rows(count: int) -> list[dict[str, str]]:
    """Questions of two words that no two rows share, and answers that repeat one of them."""
    pairs = [(a, b) for a in WORDS for b in WORDS if a < b]
    return [
        {
            "query": f"what of {a} and {b}, {n}?",
            "document": f"{b} by {a}, {n} {a}",
            "page": f"p{n % 20}",
            "language": "en",
        }
        for n, (a, b) in enumerate(pairs[:count])
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture
def here(
    world: Path,
    hf_folder: HfFolder,
    moe_model: Embedder,
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """What a reader has by then: pairs, runs, tasks, and folders that go before hub ids of their names."""
    if not any(world.iterdir()):
        fill(world, hf_folder, moe_model, backend, monkeypatch)
    place = tmp_path / "here"
    shutil.copytree(world, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("MOEMBED_DATA", str(place / "data"))
    return place


def fill(
    world: Path, hf_folder: HfFolder, moe_model: Embedder, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    (world / "recipes").symlink_to(ROOT / "recipes")
    # models
    dense = hf_folder("bert", max_position_embeddings=512)[0]
    for name in ("minilm", "intfloat/multilingual-e5-small", "path/to/dense-bert", "runs/dense/model"):
        shutil.copytree(dense, world / name)
    for name in ("nomic-ai/nomic-embed-text-v2-moe", "path/to/nomic-moe"):
        published.write(world / name, NOMIC, published.make_tensors(NOMIC), backend)
    plain = NOMIC | published.VARIANTS["dense, plain"]
    published.write(world / "path/to/dense", plain, published.make_tensors(plain), backend)
    # pairs and texts
    rows = pair_rows(60)
    for name in ("pairs.jsonl", "pairs.jsonl.gz", "de.parquet", "split/train.jsonl"):
        write_rows(world / name, rows)
    write_rows(world / "split/dev.jsonl", pair_rows(10))
    write_rows(world / "split/test.jsonl", pair_rows(20))
    texts = [
        {"id": f"note-{n}", "text": row["document"], "page": n, "language": "en"}
        for n, row in enumerate(rows)
    ]
    for name in ("notes.jsonl", "corpus.jsonl", "queries.csv", "texts.parquet"):
        write_rows(world / name, texts)
    scored = [
        {"sentence1": row["query"], "sentence2": rows[n - 1]["document"], "score": n % 5}
        for n, row in enumerate(rows)
    ]
    write_rows(world / "sts-de.csv", scored)
    labelled = [text | {"label": f"l{n % 2}"} for n, text in enumerate(texts)]
    write_rows(world / "reviews.parquet", labelled)
    for name in ("scifact", "nfcorpus", "moles"):
        beir(world / "data" / name, rows[:20])
    # runs: one is trained, the others are copies
    run_line(
        "moembed train recipes/finetune.yaml data=pairs.jsonl batch_size=8 steps=2 out=runs/mine",
        "fixture",
    )
    for number, name in enumerate(("demo", "new", "old", "moe-1", "moe-2", "dense-1", "dense-2")):
        shutil.copytree(world / "runs/mine", world / "runs" / name)
        weights = world / "runs" / name / "model" / "model.safetensors"
        tensors = load_file(weights)
        tensors[min(tensors)] *= 1 + number / 10  # as if it had another seed
        save_file(tensors, weights, {"format": "pt"})
    beir(world / "runs/demo/task", rows[:20])
    run_line("moembed index notes.jsonl --model runs/demo --out runs/demo/index", "fixture")


def beir(folder: Path, rows: list[dict[str, str]]) -> None:
    write_rows(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": r["document"]} for n, r in enumerate(rows)])
    write_rows(folder / "queries.jsonl", [{"_id": f"q{n}", "text": r["query"]} for n, r in enumerate(rows)])
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(len(rows)))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p) and p.name != "other-tools.md"], ids=lambda page: page.name
)
def test_the_blocks_of_a_page(page: Path, here: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for made in outputs(page):  # the page makes it itself
        shutil.rmtree(here / made, ignore_errors=True)
    for block in blocks(page):
        if not block.not_run:
            run_block(block, names, REPLACED.get(page.name, {}))


@pytest.mark.parametrize("folder", ["", "records"])
def test_what_pages_link_to_is_there(folder: str) -> None:
    """Of the pages beside the docs, whose links test_public.py follows."""
    for page in (ROOT / folder).glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
