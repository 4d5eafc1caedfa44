"""Rooms stand in a row; imports only go back. Read from the syntax trees, so nothing has to run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "moembed"
ROOMS = [
    "types", "threads", "validation", "config", "files", "machine", "console",
    "packing", "prompts", "tokenizer", "encoding", "client",
    "data", "losses", "moe", "model", "families", "folder", "recipe", "inference", "embedder", "replicas",
    "reranker", "token_experts", "weights", "search", "compare", "evaluation", "stress", "report",
    "training", "export", "interop", "serve", "runs", "experiment", "cli",
]  # fmt: skip
MAX_LINES, MAX_PARAMETERS = 80, 8
# Names that say less than the field's own, and those.
PLAIN_NAMES = {
    "Manner": "SourceFormat", "Watch": "RoutingProbe", "Starving": "DeadExpertAlarm",
    "learnt": "num_train_rows", "give_back": "trim_heap", "ahead": "prefetch", "words": "formatting",
    "road": "backend", "obstacle": "unsupported_reason", "turn": "cos_sin", "held": "packed_params",
    "leave": "write_result", "Remembered": "CachedVectors", "agree": "broadcast", "places": "true_entries",
}  # fmt: skip
TORCH_FREE = (
    "types",
    "threads",
    "validation",
    "config",
    "files",
    "client",
    "folder.hub",
    "report",
    "data",
    "compare",
    "search",
    "evaluation",
    "stress",
    "cli",
    "console",
)
BUT_WITH_TORCH = (  # optimisations, a sum of rows, a pass through the routers
    "stress.capacity",
    "evaluation.static",
    "evaluation.routing",
    "search.binariser_training",
)


def modules() -> dict[str, Path]:
    names = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if not name.endswith("__init__"):
            names[name] = path
    return names


def graph() -> dict[str, set[str]]:
    """For every module and package, the others it names in an import, those for type checkers included."""
    paths = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "__init__.py"
    }
    edges: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # of a package: the module in it, or else what its __init__ defines
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                named = {full if full.removeprefix("moembed.") in paths else node.module for full in inside}
            else:
                continue
            others = {other.removeprefix("moembed.") for other in named if other.startswith("moembed.")}
            edges[name] |= (others & paths.keys()) - {name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach one another."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for other in edges[pending.pop()] - seen:
                seen.add(other)
                pending.append(other)
        return seen

    reached = {name: reach(name) for name in edges}
    groups: list[set[str]] = []
    for name in sorted(edges):
        group = {other for other in reached[name] if name in reached[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def functions(path: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}


def is_large(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    count = len(positional) + len(arguments.kwonlyargs) - (positional[:1] in (["self"], ["cls"]))
    lines = (function.end_lineno or 0) - function.lineno + 1
    return lines > MAX_LINES or count > MAX_PARAMETERS


def given_by_others(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A Triton kernel and the forward of an autograd function: their parameters are not ours to choose."""
    marks = [ast.unparse(mark) for mark in function.decorator_list]
    takes = [argument.arg for argument in function.args.args]
    return any("triton" in mark for mark in marks) or (function.name == "forward" and takes[:1] == ["ctx"])


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
        if name.startswith("moembed.") and other in known:
            assert floor(other) <= floor(module), f"{module} imports {other}, a room behind its own"


@pytest.mark.parametrize(
    "module", sorted(m for m in modules() if m.startswith(TORCH_FREE) and m not in BUT_WITH_TORCH)
)
def test_rooms_that_do_without_torch(module: str) -> None:
    assert not any(name.split(".")[0] == "torch" for name in imports(modules()[module]))


def test_nothing_imports_the_command_line() -> None:
    outside = {m: path for m, path in modules().items() if m.split(".")[0] not in ("cli", "__main__")}
    found = {
        m: [n for n in imports(path) if f"{n}.".startswith("moembed.cli.")] for m, path in outside.items()
    }
    assert not any(found.values())


def test_no_import_goes_in_a_circle() -> None:
    """Neither inside a room nor for type checkers only."""
    assert circles(graph()) == []


def test_circles_are_seen() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": set()}
    assert circles(edges) == [{"b", "c"}, {"d"}]


def test_functions_fit_on_a_screen_and_take_few_arguments() -> None:
    large = {
        f"{module}:{name}"
        for module, path in modules().items()
        for name, function in functions(path).items()
        if not module.startswith("cli") and is_large(function) and not given_by_others(function)
    }
    assert not large


def test_modules_functions_and_classes_have_the_names_of_the_field() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found: dict[str, str] = {}
    for module, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [module.split(".")[-1], *(node.name for node in ast.walk(tree) if isinstance(node, kinds))]
        found |= {f"{module}:{name}": PLAIN_NAMES[name] for name in names if name in PLAIN_NAMES}
    assert not found


def test_every_module_opens_with_a_docstring() -> None:
    assert not [p for p in SOURCE.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]


def test_files_fit_on_a_few_screens() -> None:
    long = {m: n for m, p in modules().items() if (n := p.read_text("utf-8").count("\n")) > 330}
    assert not long


def test_the_way_of_a_batch_is_short() -> None:
    """At most 12 files and 3,000 lines for a step, as the docs walk it; three more start the run."""
    way = (SOURCE.parents[1] / "docs" / "the-way-of-a-batch.md").read_text(encoding="utf-8")
    stations = [line.split("`")[1] for line in way.splitlines() if line[:1].isdigit()]
    files = [SOURCE / station.split()[0] for station in stations]
    assert 0 < len(files) <= 12
    assert all(file.is_file() for file in files)
    assert sum(file.read_text("utf-8").count("\n") for file in files) <= 3000


def test_the_loop_knows_no_task() -> None:
    """A fresh interpreter that imports the training loop loads few of our modules, and none that embeds."""
    code = "import sys, moembed.training.loop; print(*(m for m in sys.modules if m.startswith('moembed')))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert len(loaded) <= 40
    assert not {"moembed.embedder", "moembed.data", "moembed.training.contrastive.task"} & set(loaded)
    assert (SOURCE / "training" / "loop.py").read_text("utf-8").count("\n") <= 150
