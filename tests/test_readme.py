"""What README.md and docs/other-tools.md show of other tools gives the values it should, on small models."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

import published
from conftest import HfFolder, Run
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder

ROOT = Path(__file__).parents[1]
SHOWN = "\n".join((ROOT / page).read_text("utf-8") for page in ("README.md", "docs/other-tools.md"))
EQUAL = 1e-4  # what is promised of an export


@pytest.fixture
def here(
    moe_model: Embedder,
    hf_folder: HfFolder,
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The runs a reader has by then, and a folder that goes before the hub id of its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mine"):
        moe_model.save_pretrained(f"runs/{name}/model")
    write_folder(Path("runs/dense/model"), read_folder(hf_folder("bert")[0]))
    nomic = tmp_path / "nomic-ai" / "nomic-embed-text-v2-moe"
    published.write(nomic, published.CONFIG, published.make_tensors(published.CONFIG), backend)
    return tmp_path


def load(path: str) -> Embedder:
    return Embedder.from_pretrained(path, device="cpu")


def value_of(block_with: str) -> Any:
    """Run the one block of Python that has these words; what its last line gives, or what it prints."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", SHOWN, re.DOTALL) if block_with in b]
    tree, names = ast.parse(block), {}
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    exec(compile(tree, "README.md", "exec"), names)
    shown = last.value.args[0] if ast.unparse(last).startswith("print(") else last.value  # type: ignore[attr-defined]
    return eval(compile(ast.Expression(shown), "README.md", "eval"), names)


def export(run: Run, format: str) -> None:
    (line,) = [line for line in SHOWN.splitlines() if re.match(rf"moembed export .* --format {format}", line)]
    code, _, err = run(*shlex.split(line)[1:])
    assert code == 0, err


def test_the_embedder(here: Path) -> None:
    assert value_of("encode_document([") == load("runs/demo").num_parameters(active=True)


def test_sentence_transformers(here: Path) -> None:
    vectors = value_of("SentenceTransformer")
    assert np.abs(vectors - load("runs/demo").encode(["Owls hunt voles."])).max() <= EQUAL


def test_nomic(here: Path, backend: Backend) -> None:
    tensors = published.make_tensors(published.CONFIG)
    texts = {"what do moles eat?": "query", "Moles eat worms.": "passage"}
    rows = [published.token_row(backend, text, published.PROMPTS[role]) for text, role in texts.items()]
    query, document = (published.embedding(published.CONFIG, tensors, row) for row in rows)
    assert value_of("nomic-ai/") == pytest.approx(np.dot(query, document), abs=EQUAL)


def test_onnxruntime(here: Path, run: Run) -> None:
    export(run, "onnx")
    ((vector,),) = value_of("onnxruntime")
    assert np.abs(vector - load("runs/mine").encode("where do moles live?")).max() <= EQUAL


@pytest.mark.interop
def test_llamacpp(here: Path, run: Run) -> None:
    pytest.importorskip("llama_cpp")
    export(run, "gguf")
    assert value_of("llama_cpp") == pytest.approx(1, abs=EQUAL)
