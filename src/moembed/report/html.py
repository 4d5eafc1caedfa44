"""The pieces of HTML a page is made of, and the sheet they stand on.

A page holds everything it shows: no network, no script, light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from moembed.files import write_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the page can load nothing


def card(heading: str, content: str, about: str = "", wide: bool = False) -> str:
    caption = f"<figcaption>{about}</figcaption>" if about else ""
    return f'<figure class="card{" wide" * wide}"><h3>{heading}</h3>{content}{caption}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return grouped_table(head, {"": rows})


def grouped_table(head: Sequence[str], groups: Mapping[str, Iterable[Sequence[str]]]) -> str:
    """``groups`` maps headings, which may be empty, to the rows below them."""
    columns = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    bodies = "".join(_group(heading, rows, len(head)) for heading, rows in groups.items())
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead>{bodies}</table></div>'


def _group(heading: str, rows: Iterable[Sequence[str]], columns: int) -> str:
    title = f"<th scope=rowgroup colspan={columns}><span>{heading}</span></th>"
    lines = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<tbody>{f'<tr class=group>{title}</tr>' if heading else ''}{lines}</tbody>"


def details(heading: str, content: str) -> str:
    """``content`` behind a heading that opens it."""
    return f"<details><summary>{heading}</summary>{content}</details>"


def section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content}</section>" if content else ""


def grid(cards: Iterable[str]) -> str:
    content = "".join(cards)
    return f'<div class="grid">{content}</div>' if content else ""


def legend(names: Iterable[str], looks: Iterable[tuple[str, str]]) -> str:
    """What the colours and shapes of a plot stand for: ``looks`` are those of `moembed.report.plots`."""
    entries = (
        f'<span><i style="color:var(--{hue})">{mark}</i>{name}</span>'
        for name, (hue, mark) in zip(names, looks, strict=True)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def notes(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """The few figures people look for first: what, how much, and a remark."""
    content = "".join(
        f"<div><dt>{label}</dt><dd>{value}<small>{more}</small></dd></div>" for label, value, more in cells
    )
    return f'<dl class="tiles">{content}</dl>' if content else ""


def document(title: str, kicker: str, *parts: str) -> str:
    """A whole page: ``kicker`` above the title says what kind of page it is."""
    style = files("moembed.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="kicker">{kicker}</p>
<h1>{escape(title)}</h1>
{"".join(parts)}
</main>
</body>
</html>
"""


def write(path: Path, page: str) -> None:
    """Replace the file ``path`` at once, or leave it as it was.

    Raises:
        UserError: it cannot be written.
    """
    write_text(path, page)
