# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a training went, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..metrics.arrays import FloatArray
from .plot_style import DOUBLE_COLUMN, LINE_WIDTH, NOTE_SIZE, OKABE_ITO, add_legend, curve_style, make_figure

_KEYS: dict[str, type] = {"step": np.int64, "epoch": np.int64, "stage": str}
_TOTAL = "loss"
_POINTS = 400
_FEW = 60


def history_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table of the rows of a history, as `~lsst.meas.maskrcnn.train.loop.TrainResult` has them.

    ``step``, ``epoch`` and ``stage`` come first; NaN where a row has no such value.
    Times are in seconds.
    """
    table = Table()
    for name in dict.fromkeys([*_KEYS, *(name for row in rows for name in row if name != "kind")]):
        values = [np.nan if row.get(name) is None else row[name] for row in rows]
        table[name] = np.array(values, dtype=_KEYS.get(name, np.float64))
        if name in ("seconds", "data_seconds", "elapsed"):
            table[name].unit = "s"
    return table


def plot_training(steps: Table, epochs: Table, stages: Sequence[str] | None = None) -> Figure:
    """Draw losses, learning rate and validation AP against the step.

    The history of the steps has columns ``step``, ``stage`` (its name),
    ``learning_rate``, ``loss`` (the sum) and the parts of it, ``loss_...``; that of
    the epochs ``step`` and, if there was a validation, ``ap50_...``. Stages are in
    their order; by default as they appear. Curves of the losses are means over
    neighbouring rows, so that the noise of single batches does not hide them; lines
    mark where a stage ends.
    """
    figure, (losses, rates, precision) = make_figure(
        DOUBLE_COLUMN, 6.0, 3, 1, dpi=150.0, height_ratios=(3, 1.3, 2)
    )
    rows, marks = _columns(steps), _columns(epochs)
    step = rows["step"].astype(float)
    _draw_losses(losses, rows, step)
    rate = rows.get("learning_rate", np.zeros(0))
    if np.any(rate > 0):
        rates.plot(step, rate, color=OKABE_ITO["black"], linewidth=LINE_WIDTH)
        # A rate that falls to zero would squeeze all before it.
        rates.set_ylim(max(rate[rate > 0].min(), 1e-4 * rate.max()) / 2, 2 * rate.max())
        rates.set_yscale("log")
    rates.set_ylabel("Learning rate")
    _draw_precision(precision, marks)
    _mark_stages((losses, rates, precision), rows["stage"], step, stages)
    highest = max([*step, *marks["step"].astype(float), 1.0])
    for panel in (losses, rates, precision):
        panel.set_xlim(0, highest)
    precision.set_xlabel("Step")
    return figure


def _columns(table: Table) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(table[name]) for name in table.colnames}


def _draw_losses(axes: Axes, steps: Mapping[str, NDArray[Any]], step: FloatArray) -> None:
    parts = sorted(name for name in steps if name.startswith("loss_"))
    for index, name in enumerate([_TOTAL, *parts]):
        if name not in steps or not len(step):
            continue
        style = curve_style("all") if name == _TOTAL else curve_style(name, index - 1)
        label = "sum" if name == _TOTAL else name.removeprefix("loss_").replace("_", " ")
        x, y = _smoothed(step, steps[name])
        axes.plot(x, y, label=label, **style.stroke)
        if name == _TOTAL and np.any(y > 0):
            axes.set_yscale("log")
    axes.set_ylabel("Loss")
    # Room for the legend above the curves.
    low, high = axes.get_ylim()
    axes.set_ylim(top=high * (high / low) ** 0.35 if axes.get_yscale() == "log" else 1.35 * high - 0.35 * low)
    add_legend(axes, ncols=3, loc="upper right")


def _smoothed(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means of about as many neighbouring rows as make a readable curve."""
    if len(x) <= _FEW:
        return x, y
    n = min(_POINTS, len(x) // max(len(x) // _POINTS, 8) + 1)
    edges = np.linspace(0, len(x), n + 1).astype(int)
    pieces = [slice(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True) if high > low]
    return np.array([x[piece].mean() for piece in pieces]), np.array([y[piece].mean() for piece in pieces])


def _draw_precision(axes: Axes, epochs: Mapping[str, NDArray[Any]]) -> None:
    x = epochs["step"].astype(float)
    for index, name in enumerate(sorted(name for name in epochs if name.startswith("ap50_"))):
        y = epochs[name]
        known = np.isfinite(y)
        label = name.removeprefix("ap50_")
        style = curve_style(label, index)
        axes.plot(x[known], y[known], marker=style.marker, ms=3.5, label=label, **style.stroke)
    axes.set(ylim=(0, 1), ylabel="Validation AP (IoU 0.5)")
    if len(x):
        add_legend(axes, loc="lower right")
    else:
        middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "no validation", fontsize=NOTE_SIZE, **middle)


def _mark_stages(
    panels: Sequence[Axes], names: NDArray[Any], step: FloatArray, stages: Sequence[str] | None
) -> None:
    """Write the stages' names where they begin, and lines between them."""
    order = list(dict.fromkeys(names.tolist())) if stages is None else list(stages)
    for name in order:
        inside = np.flatnonzero(names == name)
        if not len(inside):
            continue
        start = 0.0 if inside[0] == 0 else float(step[inside[0]])
        for panel in panels:
            if start > 0:
                panel.axvline(start, color="0.6", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        panels[0].annotate(name, (start, 1.0), (2, 2), fontsize=NOTE_SIZE, va="bottom", **above)
