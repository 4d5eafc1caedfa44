"""What a benchmark measured, as a record: JSON, tables, and a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moembed.files import write_text
from moembed.runs.bench import HEAD, Row, Suite
from moembed.runs.load import Load


@dataclass(frozen=True, slots=True)
class Record:
    """When, how and where rows were measured, and the rows of every suite under its question."""

    date: str
    command: str
    machine: dict[str, Any]
    suites: dict[Suite, list[Row]]
    load: Load
    seconds: dict[str, float] = field(default_factory=dict)  # that each suite took, by its name

    def as_dict(self) -> dict[str, Any]:
        about: dict[str, Any] = {"date": self.date, "command": self.command, "machine": self.machine}
        about = about | {"load": self.load.facts(), "warning": self.warning()}
        return about | {
            "suites": {
                suite.name: {
                    "question": suite.question,
                    "seconds": self.seconds.get(suite.name),
                    "rows": [row.as_dict() for row in rows],
                }
                for suite, rows in self.suites.items()
            }
        }

    def warning(self) -> str | None:
        """Why the figures are not to be quoted; None if they may be."""
        return self.load.warning(
            [row.spread for rows in self.suites.values() for row in rows if row.spread is not None]
        )

    def table(self, suite: Suite) -> list[list[str]]:
        """Cells of the rows of a suite; what answers the same question stands together."""
        rows = self.suites[suite]
        place = {question: i for i, question in enumerate(dict.fromkeys(row.question for row in rows))}
        return [row.cells() for row in sorted(rows, key=lambda row: place[row.question])]

    def facts(self) -> list[tuple[str, str]]:
        told = {
            "isa": ", ".join(self.machine["isa"]),
            "environment": " ".join(f"{name}={value}" for name, value in self.machine["environment"].items()),
        }
        machine = self.machine | told | self.machine["versions"]
        about = {"date": self.date, "command": self.command, "load": self.load.facts()} | machine
        return [(key, str(value or "none")) for key, value in about.items() if key != "versions"]

    def write(self, path: Path) -> None:
        """As Markdown; an older record gives way only when the new one is whole."""
        warning = self.warning()
        parts = ["# Performance", *[f"**{warning}**"] * bool(warning), _table(("", ""), self.facts())]
        for suite in self.suites:
            took = self.seconds.get(suite.name)
            parts += [f"## {suite.name}", suite.question, _table(HEAD, self.table(suite))]
            parts += [f"The suite took {took:.0f} s."] if took is not None else []
        write_text(path, "\n\n".join(parts) + "\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
