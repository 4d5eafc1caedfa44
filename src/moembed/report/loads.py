"""Plots of how much each expert does; colour is the distance from the fair share, ``1/E``.

There is nothing to see where an expert does its share: that is transparent, so that one drawing serves the
light and the dark page. Shapes: L layers, E experts, R rows such as steps, sources or languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from moembed.report.plots import STAND_IN, short, svg, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNDER, OVER = (40, 116, 214), (232, 104, 28)  # readable on a white and on a black page
COLUMNS = 240  # of a heat map


def heat(label: str, step: np.ndarray, load_LRE: Mapping[int, np.ndarray]) -> Markup:
    """Load of each expert over the steps, one band per layer."""

    def draw(figure: Figure) -> None:
        # every pixel column shows the latest record at or before its step: gaps in the log keep their width
        column = np.searchsorted(step, np.linspace(step[0], step[-1], COLUMNS), side="right") - 1
        for axes, load_RE in _bands(figure, load_LRE):
            experts = load_RE.shape[1]
            extent = (step[0], max(step[-1], step[0] + 1), experts - 0.5, -0.5)
            axes.imshow(_tint(load_RE[column].T), aspect="auto", interpolation="none", extent=extent)
            axes.set_yticks([0, experts - 1])
        axes.set_xlabel("step")

    return svg(label, _height(load_LRE), draw)


def grid(label: str, rows: Sequence[str], load_LRE: Mapping[int, np.ndarray]) -> Markup:
    """Load of each expert by row, such as a source, one band per layer; NaN is left blank."""
    band = 26 + 16 * len(rows)

    def draw(figure: Figure) -> None:
        for axes, load_RE in _bands(figure, load_LRE):
            axes.imshow(_tint(load_RE.T).transpose(1, 0, 2), aspect="auto", interpolation="none")
            axes.set_yticks(np.arange(len(rows)), [short(row) for row in rows], fontsize=10)
            axes.xaxis.set_major_locator(whole_numbers())
        axes.set_xlabel("expert")

    return svg(label, 50 + band * len(load_LRE), draw)


def bars(label: str, load_LE: Mapping[int, np.ndarray]) -> Markup:
    """Load of each expert as a share of ``1/E`` (dashed), one band per layer."""

    def draw(figure: Figure) -> None:
        top = max(1.05, *(float(load_E.max() * len(load_E)) for load_E in load_LE.values()))
        for axes, load_E in _bands(figure, load_LE):
            axes.bar(np.arange(len(load_E)), load_E * len(load_E), 0.72, color=STAND_IN["c1"])
            axes.axhline(1, color=STAND_IN["ink"], linewidth=1, linestyle=(0, (4, 3)))
            axes.set_ylim(0, top)
            axes.set_yticks([0, 1], ["0", "1/E"])
        axes.set_xlabel("expert")
        axes.xaxis.set_major_locator(whole_numbers())

    return svg(label, _height(load_LE), draw)


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
    surplus_ER = np.nan_to_num(np.clip(load_ER * len(load_ER) - 1, -1, 1))[..., None]
    colour_ER3 = np.where(surplus_ER > 0, OVER, UNDER) / 255
    return np.concatenate([colour_ER3, np.abs(surplus_ER)], axis=-1)
