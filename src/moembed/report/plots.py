"""The plots of a page: inline SVG that follows the light or dark page around it.

matplotlib draws in stand-in colours; each becomes a CSS variable of ``page.css`` in the finished SVG: one
drawing serves both themes. The same figures give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from moembed.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import BboxBase

HUES = ("c1", "c2", "c3", "c4", "c5", "c6")
MARKERS = {"●": "o", "■": "s", "▲": "^", "✚": "P", "◆": "D", "▼": "v", "★": "*"}  # as matplotlib calls them
LIGHT = {
    "page": "#ffffff", "ink": "#1f2328", "muted": "#68707c", "line": "#e7e4dd",
    "c1": "#0f766e", "c2": "#c2570c", "c3": "#6d4fc4", "c4": "#8a93a1", "c5": "#2563b0", "c6": "#b0326b",
}  # fmt: skip
STAND_IN = {name: f"#0a0b{place:02x}" for place, name in enumerate(("ink", "muted", "line", *HUES))}
WIDTH = 440  # px of every plot: its text stays readable when a phone shrinks it
POINTS = 2000  # of a raw curve
LONGEST = 22  # characters of a row's name
STYLE = {
    "font.size": 12.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "moembed",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": STAND_IN["line"],
    "axes.labelcolor": STAND_IN["muted"],
    "grid.color": STAND_IN["line"],
    "xtick.color": STAND_IN["line"],
    "ytick.color": STAND_IN["line"],
    "xtick.labelcolor": STAND_IN["muted"],
    "ytick.labelcolor": STAND_IN["muted"],
    "ytick.major.size": 0,
}


class Look(NamedTuple):
    """How a plot and its legend show a series: a colour, and a shape for who cannot tell the colours."""

    hue: str
    mark: str


class Point(NamedTuple):
    """Of a trade-off: what it costs, what it scores, and its name."""

    cost: float
    value: float
    low: float
    high: float
    name: str


LOOKS = tuple(map(Look, HUES, MARKERS))


def curve(label: str, step: np.ndarray, value: np.ndarray, smooth: np.ndarray | None = None) -> Markup:
    """``value`` over ``step``; with ``smooth``, that line in front and the raw one faint behind it."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(whole_numbers())
        marker = "o" if len(step) == 1 else ""
        thin = slice(None, None, 1 + len(step) // POINTS)
        alpha, width = (0.35, 1.0) if smooth is not None else (1.0, 1.8)
        axes.plot(step[thin], value[thin], marker=marker, color=STAND_IN["c1"], alpha=alpha, linewidth=width)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        if smooth is not None:
            axes.plot(step[thin], smooth[thin], color=STAND_IN["c1"], linewidth=2)

    return svg(label, 230, draw)


def dots(
    label: str,
    rows: Sequence[str],
    series: Sequence[Sequence[tuple[float, ...]]],
    looks: Sequence[Look],
    zero: bool = False,
) -> Markup:
    """A dot and its interval per row and series; ``series[i][row]`` is value, low, high (NaN: not drawn).

    With ``zero`` the axis shows zero: the values are differences.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        place_R = np.arange(len(rows))
        axes.set_yticks(place_R, [short(row) for row in rows], color=STAND_IN["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=6)
        for edge in place_R[1:] - 0.5:
            axes.axhline(edge, color=STAND_IN["line"], linewidth=0.8)
        offsets = np.linspace(-0.5, 0.5, len(series) + 2)[1:-1]
        for offset, look, row_R3 in zip(offsets, looks, series, strict=True):
            value_R, low_R, high_R = np.array(row_R3).T
            axes.hlines(place_R + offset, low_R, high_R, color=STAND_IN[look.hue], linewidth=2)
            axes.plot(value_R, place_R + offset, **_marker(look))
        if zero:
            axes.axvline(0, color=STAND_IN["muted"], linewidth=1)

    return svg(label, 60 + len(rows) * (20 + 12 * len(series)), draw)


def tradeoff(
    label: str,
    series: Sequence[Sequence[Point]],
    looks: Sequence[Look],
    cost: str,
    written: Callable[[float], str],
) -> Markup:
    """Score against cost on a logarithmic axis; a line joins the points no cheaper one of the series beats.

    Args:
        cost: title of the axis, whose figures are ``written`` by this function; every cost is above zero.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xlabel(cost)
        axes.margins(0.12, 0.14)
        named: list[Point] = []
        for points, look in zip(series, looks, strict=True):
            best = _frontier(points)
            named += best
            line = np.array([(point.cost, point.value) for point in best])
            axes.plot(*line.T, color=STAND_IN[look.hue], linewidth=1.6)
            for point in points:
                strong = 1 if point in best else 0.45
                ends: dict[str, Any] = {"color": STAND_IN[look.hue], "linewidth": 1.6, "alpha": strong}
                axes.plot([point.cost, point.cost], [point.low, point.high], **ends)
                axes.plot(point.cost, point.value, alpha=strong, **_marker(look))
        _cost_axis(axes, [point.cost for points in series for point in points], written)
        _name(figure, axes, named)

    return svg(label, 320, draw)


def _frontier(points: Sequence[Point]) -> list[Point]:
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def _cost_axis(axes: Axes, costs: Sequence[float], written: Callable[[float], str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    decades = math.log10(max(costs) / min(costs))
    if decades > 0.5:
        parts = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 2.5 else (1,)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=parts))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))


def _name(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write the names beside their points, leaving out what would lie over a line or another name."""
    figure.draw_without_rendering()  # fixes the layout, in which the places are measured
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    taken: list[BboxBase] = []
    for point in points:
        for up, side in ((1, "center"), (-1, "center"), (1, "right"), (-1, "left")):
            end = np.nanmax([point.value, point.high]) if up > 0 else np.nanmin([point.value, point.low])
            text = axes.annotate(
                short(point.name),
                (point.cost, end),
                (0, 5 * up),
                textcoords="offset points",
                ha=side,
                va="bottom" if up > 0 else "top",
                fontsize=10,
                color=STAND_IN["muted"],
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if (
                inside
                and not box.count_overlaps(taken)
                and not any(p.intersects_bbox(box, False) for p in lines)
            ):
                taken.append(box)
                break
            text.remove()


def _marker(look: Look) -> dict[str, Any]:
    larger = 1.4 if look.mark in "★✚" else 1  # their arms are thin
    return {
        "marker": MARKERS[look.mark],
        "markersize": 6.5 * larger,
        "markeredgewidth": 0,
        "linestyle": "",
        "color": STAND_IN[look.hue],
    }


def short(name: str) -> str:
    """What there is room for; without characters that cannot be drawn."""
    name = "".join(letter if letter.isprintable() else "�" for letter in name)
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def whole_numbers() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins="auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def require_matplotlib() -> None:
    """Raise UserError where there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the report draws with matplotlib: pip install 'moembed[demo]'") from None


def svg(label: str, height: float, draw: Callable[[Figure], None]) -> Markup:
    """What ``draw`` puts on a figure ``WIDTH`` px wide; a page holds one drawing of each ``label``."""
    require_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser draws the text, with its fonts
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = buffer.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :].replace("xlink:href", "href")
    for name, colour in STAND_IN.items():
        body = body.replace(colour, f"var(--{name})")
    # several drawings share one page, where an id may be used once: drop the idle ones, prefix the others
    prefix = f"d{sha256(label.encode(errors='replace')).hexdigest()[:8]}"
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda id: f' id="{prefix}-{id[1]}"' if id[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", body)
    name = escape(label)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}"><title>{name}</title>{body}'
    )


def standalone(drawing: Markup) -> str:
    """A drawing of `svg` as a file of its own: the light page's colours, on white."""
    text = str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    text = re.sub(r"var\(--(\w+)\)", lambda name: LIGHT[name[1]], text)
    return text.replace("</title>", f'</title><rect width="100%" height="100%" fill="{LIGHT["page"]}"/>', 1)
