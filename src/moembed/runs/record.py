"""What a benchmark measured, as a record: JSON, tables, and a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moembed.files import write_text
from moembed.runs.bench import HEAD, Row, Suite


@dataclass(frozen=True, slots=True)
class Record:
    """When, how and where rows were measured, and the rows of every suite under its question."""

    date: str
    command: str
    machine: dict[str, Any]
    suites: dict[Suite, list[Row]]

    def as_dict(self) -> dict[str, Any]:
        about = {"date": self.date, "command": self.command, "machine": self.machine}
        return about | {
            "suites": {
                suite.name: {"question": suite.question, "rows": [row.as_dict() for row in rows]}
                for suite, rows in self.suites.items()
            }
        }

    def table(self, suite: Suite) -> list[list[str]]:
        """Cells of the rows of a suite; what answers the same question stands together."""
        rows = self.suites[suite]
        place = {question: i for i, question in enumerate(dict.fromkeys(row.question for row in rows))}
        return [row.cells() for row in sorted(rows, key=lambda row: place[row.question])]

    def facts(self) -> list[tuple[str, str]]:
        machine = self.machine | {"isa": ", ".join(self.machine["isa"])} | self.machine["versions"]
        about = {"date": self.date, "command": self.command} | machine
        return [(key, str(value or "none")) for key, value in about.items() if key != "versions"]

    def write(self, path: Path) -> None:
        """As Markdown; an older record gives way only when the new one is whole."""
        parts = ["# Performance", _table(("", ""), self.facts())]
        for suite in self.suites:
            parts += [f"## {suite.name}", suite.question, _table(HEAD, self.table(suite))]
        write_text(path, "\n\n".join(parts) + "\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
