"""What happens at every step: one JSON line in ``metrics.jsonl``, one progress line for the eye."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moembed.console import clock
from moembed.files import write_text, writing
from moembed.training.settings import Length
from moembed.training.task import Terms

_PLAIN_EVERY_SECONDS = 10.0
_SHADES = " ▁▂▃▄▅▆▇█"


class Log:
    """Append-only JSONL plus a bar on a terminal, plain lines elsewhere (both on stderr).

    Args:
        start: steps done before, when a run is resumed; their lines are kept, later ones dropped.
        silent: writes and shows nothing: of several processes, one logs.
    """

    def __init__(self, run: Path, length: Length, start: int, resume: bool, silent: bool = False) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.silent, self.length = silent, length
        path = Path(os.devnull) if silent else run / "metrics.jsonl"
        if not silent:
            self._drop_lines_after(path, start if resume else 0)
        self.file = path.open("a", encoding="utf-8")
        self.shown = -math.inf
        self.recent: list[tuple[float, int]] = []
        console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=silent or not console.is_terminal,
        )
        self.bar = self.progress.add_task("", total=1.0)

    def __enter__(self) -> Log:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.file.close()

    @staticmethod
    def _drop_lines_after(path: Path, step: int) -> None:
        steps = ((line.get("step"), line) for line in read_metrics(path))
        kept = [line for number, line in steps if isinstance(number, int) and number <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def say(self, sentence: str) -> None:
        """A line for the eye, above the bar."""
        if not self.silent:
            self.progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int, elapsed: float, terms: Terms, entries: Mapping[str, Any]) -> None:
        """Write a step's line and show how it goes."""
        self.recent = [*self.recent[-20:], (elapsed, terms.pairs)]
        seconds = self.recent[-1][0] - self.recent[0][0]
        rate = sum(pairs for _, pairs in self.recent[1:]) / seconds if seconds > 0 else 0.0
        rate = round(rate or terms.pairs / max(elapsed, 1e-9), 2)
        router = [part.summary() for part in terms.router]
        sizes = {"pairs": terms.pairs, "truncated": terms.truncated, "pairs_per_second": rate}
        line = {"step": step, "elapsed": elapsed, "loss": terms.loss, **terms.log, **sizes, "router": router}
        with writing(Path(self.file.name)):
            self.file.write(json.dumps(line | dict(entries)) + "\n")
            self.file.flush()

        done = self.length.progress(step, elapsed)
        left = elapsed * (1 - done) / done if 0 < done < 1 else 0.0
        text = (
            f"step {step}{f'/{self.length.steps}' if self.length.steps else ''}  loss {terms.loss:.3f}  "
            f"{rate:.0f} pairs/s  ETA {clock(left)}"
        )
        if "effective_negatives" in terms.log:
            text += f"  negatives {terms.log['effective_negatives']:,.0f}"
        if terms.router:
            text += "  load " + " ".join(_load_bar(part.load_E.tolist()) for part in terms.router)
        self.progress.update(self.bar, completed=min(done, 1.0), description=text)
        if self.silent or not self.progress.disable:
            return
        if elapsed - self.shown >= _PLAIN_EVERY_SECONDS:
            self.shown = elapsed
            print(text, file=sys.stderr, flush=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics file, up to the first that is damaged: a kill may have torn the last."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def _load_bar(load: list[float]) -> str:
    """One character per expert; half height is a balanced load of 1/E."""
    height = (len(_SHADES) - 1) / 2
    return "".join(_SHADES[min(len(_SHADES) - 1, round(share * len(load) * height))] for share in load)
