"""Rooms stand in a row; imports only go back. Read from the syntax trees, so nothing has to run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "moembed"
ROOMS = [
    "types", "config", "files", "machine", "console",
    "packing", "tokenizer", "encoding",
    "data", "losses", "moe", "model", "families", "folder", "recipe", "inference", "embedder", "replicas",
    "weights", "search", "compare", "evaluation", "stress", "report",
    "training", "export", "interop", "runs", "cli",
]  # fmt: skip
FOR_NOW = {
    ("compare.verdict", "report.words"),
}
TORCH_FREE = (
    "types",
    "config",
    "files",
    "folder.hub",
    "report",
    "data",
    "compare",
    "search",
    "evaluate",
    "cli",
    "console",
)
BUT_WITH_TORCH = ("stress.capacity", "evaluation.static")  # an optimisation, a sum of rows


def modules() -> dict[str, Path]:
    names = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if not name.endswith("__init__"):
            names[name] = path
    return names


def floor(module: str) -> int:
    room = module.split(".")[0]
    assert room in ROOMS, f"{module} is in no room: give it its place in ROOMS"
    return ROOMS.index(room)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Imported module names; imports for type checkers only do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_room_imports_from_the_rooms_before_it(module: str) -> None:
    known = modules()
    for name in imports(known[module]):
        other = name.removeprefix("moembed.")
        if name.startswith("moembed.") and other in known and (module, other) not in FOR_NOW:
            assert floor(other) <= floor(module), f"{module} imports {other}, a room behind its own"


@pytest.mark.parametrize(
    "module", sorted(m for m in modules() if m.startswith(TORCH_FREE) and m not in BUT_WITH_TORCH)
)
def test_rooms_that_do_without_torch(module: str) -> None:
    assert not any(name.split(".")[0] == "torch" for name in imports(modules()[module]))


def test_nothing_imports_the_command_line() -> None:
    outside = {m: path for m, path in modules().items() if not m.startswith("cli")}
    assert not [m for m, path in outside.items() if any(n.startswith("moembed.cli") for n in imports(path))]


def test_every_module_opens_with_a_docstring() -> None:
    assert not [p for p in SOURCE.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]


def test_files_fit_on_a_few_screens() -> None:
    long = {m: n for m, p in modules().items() if (n := p.read_text("utf-8").count("\n")) > 330}
    assert not long


def test_the_way_of_a_batch_is_short() -> None:
    """At most 12 files and 3,000 lines from the command line to the checkpoint, as the docs walk it."""
    way = (SOURCE.parents[1] / "docs" / "the-way-of-a-batch.md").read_text(encoding="utf-8")
    stations = [line.split("`")[1] for line in way.splitlines() if line[:1].isdigit()]
    files = [SOURCE / station.split()[0] for station in stations]
    assert 0 < len(files) <= 12
    assert all(file.is_file() for file in files)
    assert sum(file.read_text("utf-8").count("\n") for file in files) <= 3000
