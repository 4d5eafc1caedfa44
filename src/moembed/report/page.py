"""One HTML file per page, made from a template: no network, no script, light and dark."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moembed.files import write_text
from moembed.report import loads

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the page can load nothing


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("moembed.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("moembed.report").joinpath("page.css").read_text(encoding="utf-8")
    made.globals |= {"policy": POLICY, "style": Markup(style), "under": loads.UNDER, "over": loads.OVER}
    return made


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill the template and replace the file ``path`` by it at once, or leave the file as it was.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, environment().get_template(f"{template}.html.j2").render(values))
