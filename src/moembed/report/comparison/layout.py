"""One HTML page about an evaluation: how good the systems are, what differs for real, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from moembed.compare import verdict
from moembed.report import html, words
from moembed.report.comparison import cards, data, tables, text
from moembed.report.comparison.data import Evaluation

TILES = 4  # systems among the tiles, at most


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of ``result``; the same result gives the same bytes.

    Args:
        result: what `moembed.compare.comparison.compare` returns. Of the tasks it may also have
            ``documents``, ``notes``, and ``seconds`` and ``truncated`` by system; of the systems ``curves``
            (score by bytes per vector), ``cost`` and ``routers`` (load by layer and language). What it lacks
            is left out.

    Raises:
        UserError: matplotlib is missing, or the page cannot be written.
    """
    evaluation = data.read(result)
    page = html.document(
        _title(evaluation),
        "moembed evaluation",
        f'<p class="lead">{escape(text.summary(result))}</p>',
        html.tiles(_tiles(evaluation)),
        html.section("Scores", html.grid(_scores(result, evaluation))),
        html.section("Which differences are real", html.grid(_differences(result, evaluation))),
        html.section("Languages", html.grid(cards.by("language", evaluation.languages, evaluation))),
        html.section("Lengths", html.grid(cards.by("length in characters", evaluation.lengths, evaluation))),
        html.section("Size of the vectors", html.grid(cards.sizes(data.sizes(result), evaluation))),
        html.section("Cost", html.grid(cards.costs(data.costs(result), evaluation))),
        html.section("Experts", html.grid(cards.routers(result.get("routers") or {}))),
        html.section("Notes", html.notes(list(text.notes(result, evaluation)))),
        html.section("Method", f'<p class="muted">{escape(text.method(evaluation))}</p>'),
    )
    html.write(path, page)


def _title(evaluation: Evaluation) -> str:
    others = evaluation.others
    if not others:
        return evaluation.reference
    named = words.listing(others) if len(others) < 4 else f"{len(others)} systems"
    return f"{evaluation.reference} against {named}"


def _tiles(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """The score of the reference and of what it is compared to, and how much there was to compare."""
    overall = evaluation.overall
    systems = [system for system in (evaluation.reference, *evaluation.others) if system in overall.scores]
    for system in systems[:TILES]:
        value, low, high = overall.scores[system]
        gap = overall.gaps.get(system)
        brackets = words.interval(low, high)
        more = f"{words.decimal(gap.value, '+')}, {words.p_value(gap.p_value)}" if gap else brackets
        yield escape(system), words.decimal(value), escape(more)
    single = [gap for row in evaluation.single for gap in row.gaps.values()]
    if len(single) > 1:
        yield "Real differences", str(sum(gap.real for gap in single)), f"of {len(single)} on single tasks"
    tasks = words.plural(len(evaluation.single), "task")
    yield evaluation.noun.capitalize(), f"{evaluation.items:,}", f"in {tasks}"


def _scores(result: Mapping[str, Any], evaluation: Evaluation) -> Iterator[str]:
    about = "In brackets: the 95 % interval." + " Marked: the highest score." * bool(evaluation.others)
    content = tables.scores(evaluation) + tables.metrics(result, evaluation)
    yield html.card("Every system on every task", content, about, wide=True)
    yield from cards.by("task", evaluation.single, evaluation)


def _differences(result: Mapping[str, Any], evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.others:
        return
    reference = escape(evaluation.reference)
    yield html.card("In words", html.notes(verdict.sentences(result)), wide=True)
    about = (
        f"Each system minus {reference}, with its 95 % interval. "
        f"▲ really better, ▼ really worse: p &lt; {verdict.REAL} after Holm's correction."
    )
    yield html.card(f"Differences to {reference}", tables.differences(evaluation), about, wide=True)
