"""The plots of a page: inline SVG that follows the light or dark page around it.

matplotlib draws in stand-in colours; each becomes a CSS variable of ``page.css`` in the finished SVG: one
drawing serves both themes. For the same reason heat maps are transparent where there is nothing to see.
The same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from moembed.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

HUES = ("c1", "c2", "c3", "c4", "c5", "c6")
STAND_IN = {name: f"#0a0b{place:02x}" for place, name in enumerate(("ink", "muted", "line", *HUES))}
UNDER, OVER = (40, 116, 214), (232, 104, 28)  # readable on a white and on a black page
WIDTH = 440  # px of every plot: its text stays readable when a phone shrinks it
COLUMNS = 240  # of a heat map
POINTS = 2000  # of a raw curve
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


def curve(label: str, step: np.ndarray, value: np.ndarray, smooth: np.ndarray | None = None) -> str:
    """``value`` over ``step``; with ``smooth``, that line in front and the raw one faint behind it."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(_whole_numbers())
        marker = "o" if len(step) == 1 else ""
        thin = slice(None, None, 1 + len(step) // POINTS)
        alpha, width = (0.35, 1.0) if smooth is not None else (1.0, 1.8)
        axes.plot(step[thin], value[thin], marker=marker, color=STAND_IN["c1"], alpha=alpha, linewidth=width)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        if smooth is not None:
            axes.plot(step[thin], smooth[thin], color=STAND_IN["c1"], linewidth=2)

    return _svg(label, 230, draw)


def dots(
    label: str,
    rows: Sequence[str],
    series: Sequence[Sequence[tuple[float, ...]]],
    hues: Sequence[str],
    zero: bool = False,
) -> str:
    """A dot and its interval per row and series; ``series[i][row]`` is value, low, high (NaN: not drawn).

    With ``zero`` the axis shows zero: the values are differences.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place_R, _, hue, (value_R, low_R, high_R) in _in_rows(axes, rows, series, hues):
            axes.hlines(place_R, low_R, high_R, color=STAND_IN[hue], linewidth=2)
            axes.plot(value_R, place_R, "o", markersize=6.5, color=STAND_IN[hue])
        if zero:
            axes.axvline(0, color=STAND_IN["muted"], linewidth=1)

    return _svg(label, _rows_height(rows, series), draw)


def levels(
    label: str, rows: Sequence[str], series: Sequence[Sequence[tuple[float, ...]]], hues: Sequence[str]
) -> str:
    """A bar from zero and its interval per row and series; arguments as of ``dots``."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place_R, height, hue, (value_R, low_R, high_R) in _in_rows(axes, rows, series, hues):
            axes.barh(place_R, value_R, 0.82 * height, color=STAND_IN[hue])
            axes.hlines(place_R, low_R, high_R, color=STAND_IN["ink"], linewidth=1.2)
        axes.set_xlim(left=0)

    return _svg(label, _rows_height(rows, series), draw)


def _in_rows(
    axes: Axes, rows: Sequence[str], series: Sequence[Sequence[tuple[float, ...]]], hues: Sequence[str]
) -> Iterator[tuple[np.ndarray, float, str, np.ndarray]]:
    """Label the rows and part them; for every series its place in each, the room there, hue and values."""
    place_R = np.arange(len(rows))
    axes.set_yticks(place_R, rows, color=STAND_IN["ink"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for edge in place_R[1:] - 0.5:
        axes.axhline(edge, color=STAND_IN["line"], linewidth=0.8)
    offsets, height = np.linspace(-0.5, 0.5, len(series) + 2, retstep=True)
    for offset, hue, row_R3 in zip(offsets[1:-1], hues, series, strict=True):
        yield place_R + offset, float(height), hue, np.array(row_R3).T


def _rows_height(rows: Sequence[str], series: Sequence[object]) -> int:
    return 60 + len(rows) * (40 + 9 * len(series))


def heat(label: str, step: np.ndarray, load_LRE: Mapping[int, np.ndarray]) -> str:
    """Load of each expert over the steps, one band per layer; colour is the distance from ``1/E``."""

    def draw(figure: Figure) -> None:
        # every pixel column shows the latest record at or before its step: gaps in the log keep their width
        column = np.searchsorted(step, np.linspace(step[0], step[-1], COLUMNS), side="right") - 1
        for axes, load_RE in _bands(figure, load_LRE):
            experts = load_RE.shape[1]
            extent = (step[0], max(step[-1], step[0] + 1), experts - 0.5, -0.5)
            axes.imshow(_tint(load_RE[column].T), aspect="auto", interpolation="none", extent=extent)
            axes.set_yticks([0, experts - 1])
        axes.set_xlabel("step")

    return _svg(label, _height(load_LRE), draw)


def grid(label: str, rows: Sequence[str], load_LRE: Mapping[int, np.ndarray]) -> str:
    """Load of each expert by row, such as a source, one band per layer; colours as in ``heat``."""
    band = 26 + 16 * len(rows)

    def draw(figure: Figure) -> None:
        for axes, load_RE in _bands(figure, load_LRE):
            axes.imshow(_tint(load_RE.T).transpose(1, 0, 2), aspect="auto", interpolation="none")
            axes.set_yticks(np.arange(len(rows)), [_short(row) for row in rows], fontsize=10)
            axes.xaxis.set_major_locator(_whole_numbers())
        axes.set_xlabel("expert")

    return _svg(label, 50 + band * len(load_LRE), draw)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"


def bars(label: str, load_LE: Mapping[int, np.ndarray]) -> str:
    """Load of each expert as a share of ``1/E`` (dashed), one band per layer."""

    def draw(figure: Figure) -> None:
        top = max(1.05, *(float(load_E.max() * len(load_E)) for load_E in load_LE.values()))
        for axes, load_E in _bands(figure, load_LE):
            axes.bar(np.arange(len(load_E)), load_E * len(load_E), 0.72, color=STAND_IN["c1"])
            axes.axhline(1, color=STAND_IN["ink"], linewidth=1, linestyle=(0, (4, 3)))
            axes.set_ylim(0, top)
            axes.set_yticks([0, 1], ["0", "1/E"])
        axes.set_xlabel("expert")
        axes.xaxis.set_major_locator(_whole_numbers())

    return _svg(label, _height(load_LE), draw)


def _whole_numbers() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins="auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _bands(figure: Figure, load: Mapping[int, np.ndarray]) -> list[tuple[Axes, np.ndarray]]:
    """One plot per layer, stacked, with its layer's load."""
    stack = figure.subplots(len(load), sharex=True, squeeze=False)[:, 0]
    for axes, layer in zip(stack, load, strict=True):
        axes.grid(visible=False)
        axes.set_ylabel(f"layer {layer}", rotation=0, ha="right", va="center")
    return list(zip(stack, load.values(), strict=True))


def _height(load: Mapping[int, np.ndarray]) -> int:
    return 50 + 74 * len(load)


def _tint(load_ER: np.ndarray) -> np.ndarray:
    """RGBA: transparent at ``1/E``, the full ``UNDER`` at zero, the full ``OVER`` from ``2/E`` on."""
    surplus_ER = np.clip(load_ER * len(load_ER) - 1, -1, 1)[..., None]
    colour_ER3 = np.where(surplus_ER > 0, OVER, UNDER) / 255
    return np.concatenate([colour_ER3, np.abs(surplus_ER)], axis=-1)


def require_matplotlib() -> None:
    """Raise UserError where there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the report draws with matplotlib: pip install 'moembed[demo]'") from None


def _svg(label: str, height: float, draw: Callable[[Figure], None]) -> str:
    require_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = buffer.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :].replace("xlink:href", "href")
    for name, colour in STAND_IN.items():
        body = body.replace(colour, f"var(--{name})")
    # several drawings share one page, where an id may be used once: drop the idle ones, prefix the others
    prefix = re.sub(r"\W+", "-", label)
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda id: f' id="{prefix}-{id[1]}"' if id[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", body)
    name = escape(label)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}"><title>{name}</title>{body}'
