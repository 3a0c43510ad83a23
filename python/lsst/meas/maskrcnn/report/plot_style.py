# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all plots share: colours, lines, letters, widths of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import AutoMinorLocator, LogLocator, NullFormatter

from ..metrics.arrays import FloatArray, IntArray
from ..metrics.binned import BinnedFraction

SINGLE_COLUMN = 3.5
"""Width of a column of a journal (inch)."""

DOUBLE_COLUMN = 7.1
"""Width of a page of two columns (inch)."""

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""Colours that all kinds of colour vision tell apart (Okabe & Ito 2008)."""

LABEL_SIZE, TICK_SIZE, LEGEND_SIZE, NOTE_SIZE = 9.0, 8.0, 7.5, 7.0  # points
LINE_WIDTH = 1.3
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.1}
ABOVE |= {"columnspacing": 0.9, "alignment": "left"}
"""Place of a legend above its panel."""
FEW = 5
"""Bins of fewer sources are drawn open and without an interval."""


@dataclass(frozen=True)
class CurveStyle:
    """How a curve is drawn, so that it can be told apart without colour too."""

    color: str
    line: Any  # line style of matplotlib
    marker: str

    @property
    def stroke(self) -> dict[str, Any]:
        """Settings of matplotlib for a line in this style."""
        return {"color": self.color, "ls": self.line, "lw": LINE_WIDTH}


CLASS_STYLES = {
    "all": CurveStyle(OKABE_ITO["black"], (0, (1, 1.2)), "s"),
    "star": CurveStyle(OKABE_ITO["vermilion"], (0, (5, 1.5)), "*"),
    "galaxy": CurveStyle(OKABE_ITO["blue"], "-", "o"),
}
"""Curves of the classes, the same in each plot."""

_OTHERS = (
    CurveStyle(OKABE_ITO["blue"], "-", "o"),
    CurveStyle(OKABE_ITO["vermilion"], (0, (5, 1.5)), "^"),
    CurveStyle(OKABE_ITO["green"], (0, (5, 1.5, 1, 1.5)), "D"),
    CurveStyle(OKABE_ITO["purple"], (0, (1, 1.2)), "v"),
    CurveStyle(OKABE_ITO["orange"], (0, (3, 1, 1, 1, 1, 1)), "s"),
    CurveStyle(OKABE_ITO["sky"], (0, (8, 2)), "P"),
    CurveStyle(OKABE_ITO["black"], (0, (2, 2)), "X"),
)
_FAMILY_LINES = ("-", (0, (6, 1.5)), (0, (3, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (1, 1.1)))


def curve_style(name: str, index: int = 0) -> CurveStyle:
    """Choose the style of a curve: that of a class by its name, singular or plural, or by its place."""
    singular = {"stars": "star", "galaxies": "galaxy"}.get(name, name)
    return CLASS_STYLES.get(singular, _OTHERS[index % len(_OTHERS)])


def family_styles(n: int) -> list[CurveStyle]:
    """Choose styles for n curves that belong to a sequence: from dark to light, with changing lines."""
    # The lightest end of cividis is lost on white paper.
    levels = np.linspace(0.0, 0.8, n) if n > 1 else np.zeros(1)
    colors = matplotlib.colormaps["cividis"](levels)
    return [
        CurveStyle(matplotlib.colors.to_hex(color), _FAMILY_LINES[i % len(_FAMILY_LINES)], "")
        for i, color in enumerate(colors)
    ]


def blank_figure(width: float, height: float, dpi: float = 200.0, layout: Any = "constrained") -> Figure:
    """Make a white figure without panels (inch).

    It is not one of pyplot, which would keep it and may want a display.
    """
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def make_figure(
    width: float,
    height: float,
    n_rows: int = 1,
    n_columns: int = 1,
    *,
    dpi: float = 200.0,
    share_y: bool = False,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Make a figure (inch) and its panels, row by row; those of a row may have one y axis."""
    figure = blank_figure(width, height, dpi)
    grid = figure.subplots(
        n_rows,
        n_columns,
        squeeze=False,
        sharey="row" if share_y else False,
        gridspec_kw={"height_ratios": height_ratios} if height_ratios else None,
    )
    axes = list(grid.ravel())
    for panel in axes:
        style_axes(panel)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Set ticks and lines of a panel."""
    axes.tick_params(which="both", direction="in", top=True, right=True, labelsize=TICK_SIZE, width=0.7)
    axes.tick_params(which="major", length=4.0)
    axes.tick_params(which="minor", length=2.0)
    for spine in axes.spines.values():
        spine.set_linewidth(0.7)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_fontsize(LABEL_SIZE)


def add_legend(axes: Axes, **settings: Any) -> None:
    """Add a legend with some settings of matplotlib, if there is anything to name."""
    if not axes.get_legend_handles_labels()[1]:
        return
    look = {"fontsize": LEGEND_SIZE, "frameon": True, "framealpha": 0.85, "edgecolor": "none"}
    spacing = {"handlelength": 2.6, "borderpad": 0.3, "labelspacing": 0.3}
    axes.legend(**{**look, **spacing, **settings}).set_zorder(6)


def draw_band(axes: Axes, x: FloatArray, low: FloatArray, high: FloatArray, color: str) -> None:
    """Shade the interval of a curve, (point,), NaN where there is none."""
    axes.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    # A band has no width at a bin between empty ones.
    filled = np.isfinite(low)
    neighbour = np.append(filled[1:], False) | np.insert(filled[:-1], 0, False)
    alone = filled & ~neighbour
    if alone.any():
        axes.vlines(x[alone], low[alone], high[alone], color=color, alpha=0.5, lw=0.9)


def draw_curve(axes: Axes, x: FloatArray, binned: BinnedFraction, style: CurveStyle, label: str) -> None:
    """Draw shares in bins, at places x, with their intervals; bins of few are open symbols without."""
    few = (binned.total > 0) & (binned.total < FEW)
    low, high = (np.where(few, np.nan, limit) for limit in (binned.low, binned.high))
    draw_band(axes, x, low, high, style.color)
    marks: dict[str, Any] = {"marker": style.marker, "ms": 5.5 if style.marker == "*" else 3.2}
    shown = np.flatnonzero(~few).tolist()
    axes.plot(x, binned.fraction, markevery=shown, label=label, **style.stroke, **marks)
    if few.any():
        marks |= {"ls": "none", "color": style.color, "mfc": axes.get_facecolor()}
        axes.plot(x[few], binned.fraction[few], zorder=3, **marks)


def log_counts(axes: Axes, counts: Sequence[IntArray]) -> None:
    """Set the y axis of numbers that are drawn in it, logarithmic unless all are small."""
    # Few against many can only be seen in the logarithm.
    if max((int(count.max(initial=0)) for count in counts), default=0) <= 20:
        axes.set_ylim(bottom=0.0)
        return
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_locator(LogLocator(numticks=4))
    axes.yaxis.set_minor_formatter(NullFormatter())


def add_minor_ticks(axes: Axes) -> None:
    """Add minor ticks to the linear axes of a panel."""
    for one, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "linear":
            one.set_minor_locator(AutoMinorLocator())
