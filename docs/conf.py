"""The site: `make docs`. Its source folder is the repository, so that records and the changelog are pages."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from moembed import __version__  # noqa: E402

# What the API pages show: the rooms people build on, in the order of the package.
ROOMS = {
    "data": "Data",
    "losses": "Losses",
    "moe": "Experts and routers",
    "model": "The encoder",
    "families": "Checkpoint families",
    "folder": "Model folders",
    "inference": "Inference",
    "weights": "Operations on weights",
    "search": "Search",
    "compare": "Scores and differences",
    "evaluation": "Evaluation",
    "stress": "Stress tests",
    "training": "Training",
    "export": "Export",
    "runs": "Commands as functions",
    "experiment": "Experiments",
}

project = "moembed"
author = "The moembed authors"
project_copyright = "2026, the moembed authors"
release = version = __version__
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/*/*.md", "records/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"moembed {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path: list[str] = []

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page of a room has one heading, modules below it

default_role = "code"
autodoc_mock_imports = ["triton"]
autodoc_inherit_docstrings = False  # those of torch refer to pages of torch
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
napoleon_custom_sections = [("Warns", "returns_style")]


def modules(room: str) -> list[str]:
    """The modules of a room that have a docstring of their own, in the order of their names."""
    source = ROOT / "src"
    files = sorted((source / "moembed" / room).rglob("*.py"))
    names = [".".join(file.relative_to(source).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def write_rooms(app: object) -> None:
    """A page for every room, made of the docstrings: docs/api/ROOM.md, which git leaves alone."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    for room, title in ROOMS.items():
        parts = [f"# {title}\n\n```{{eval-rst}}\n"]
        parts += [f"{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n\n" for name in modules(room)]
        page, text = folder / f"{room}.md", "".join(parts) + "```\n"
        if not page.exists() or page.read_text("utf-8") != text:
            page.write_text(text, "utf-8")


def without_aliases(app: object, what: str, name: str, member: object, *rest: object) -> bool | None:
    """Fields of named tuples have a docstring that says nothing."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def setup(app) -> None:  # type: ignore[no-untyped-def]
    app.connect("autodoc-skip-member", without_aliases)
    app.connect("config-inited", lambda app, config: write_rooms(app))
