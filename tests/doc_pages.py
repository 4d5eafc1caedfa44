"""The blocks of code of README.md and of docs/, and running them."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moembed.cli import main
from moembed.experiment.settings import ExperimentConfig
from moembed.runs.pretrain import PretrainConfig
from moembed.runs.train import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What prepares a machine: nothing of it is run here, but what it names must exist.
_PREPARE = {"make", "pip", "source", "git", "cd"}


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code, why it is not run ("" if it is), and what follows it, if that is a bare block."""

    page: str
    line: int
    language: str
    text: str
    not_run: str
    output: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text("utf-8"), []
    ends: list[int] = []
    for match in _BLOCK.finditer(text):
        reason, language, body = match.groups()
        if not language and body.split(maxsplit=1)[0] in ("moembed", *_PREPARE):
            language = "sh"
        if found and not language and not text[ends[-1] : match.start()].strip():
            last = found.pop()
            found.append(Block(last.page, last.line, last.language, last.text, last.not_run, body))
        elif language != "{toctree}" and language != "{eval-rst}":
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page.name, line, language, body, reason or ""))
        ends.append(match.end())
    return found


def outputs(page: Path) -> set[str]:
    """The folders and files that commands of a page write."""
    text = "\n".join(block.text for block in blocks(page) if not block.not_run)
    return set(re.findall(r"\bout[= ]\"?([\w./-]+)", text))


def run_block(block: Block, names: dict[str, Any], replace: dict[str, str]) -> None:
    """Run or check a block; ``names`` holds what earlier Python of the page has defined."""
    text = block.text
    for old, new in replace.items():
        text = text.replace(old, new)
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, str(block), "exec"), names)
        assert not block.output or printed.getvalue() == block.output, f"{block}: {printed.getvalue()}"
    elif block.language == "sh":
        for line in text.replace("\\\n", " ").splitlines():
            run_line(line, str(block))
    elif block.language == "yaml":
        keys = TrainConfig.model_fields.keys() | PretrainConfig.model_fields.keys()
        keys |= ExperimentConfig.model_fields.keys() | {"stages", "tolerance"}
        assert yaml.safe_load(text).keys() <= keys, block
    elif block.language == "json":
        for line in text.splitlines():
            json.loads(line)
    else:
        assert block.language in ("", "text"), f"{block}: nobody checks a block of {block.language}"


def run_line(line: str, place: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] in _PREPARE:
        _check_names(words, place)
        return
    if words[0] != "moembed":
        subprocess.run(["bash", "-euc", line], check=True)
        return
    arguments = []
    for word in map(os.path.expandvars, words[1:]):
        quoted = f"'{word}" in line
        arguments += sorted(glob.glob(word)) if "*" in word and not quoted else [word]
    printed, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        code = main(arguments)
    assert code == 0, f"{place}: {line}\n{printed.getvalue()}\n{complaints.getvalue()}"


def _check_names(words: list[str], place: str) -> None:
    """A target of the Makefile or an extra of the package that is named must be there."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        for word in words[1:]:
            assert "=" in word or word in targets, f"{place}: there is no make {word}"
    for extra in re.findall(r"moembed\[([a-z,]+)\]", " ".join(words)):
        known = re.search(r"optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S)
        assert known
        assert set(extra.split(",")) <= set(re.findall(r"^([a-z]+) = ", known[1], re.MULTILINE)), place
