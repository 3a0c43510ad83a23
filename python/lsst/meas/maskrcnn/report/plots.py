# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plots of an evaluation, for the width of a journal's columns.

Each function takes what `metrics` computes and returns a figure;
``figure.savefig(path)`` writes it, as PNG or PDF. Shaded bands and error bars
are intervals of one standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import AutoMinorLocator, FuncFormatter, MaxNLocator, NullFormatter

from ..images.classes import CLASS_NAMES
from ..images.units import AB_ZERO_POINT
from ..metrics.arrays import FloatArray, IntArray
from ..metrics.binned import BinnedStatistics, Fraction, divide, fraction
from ..metrics.binned_figures import BinnedShares
from ..metrics.blends import BLEND_KINDS
from ..metrics.classification import RocCurve
from .plot_style import (
    ABOVE,
    DOUBLE_COLUMN,
    FEW,
    LABEL_SIZE,
    LEGEND_SIZE,
    LINE_WIDTH,
    NOTE_SIZE,
    OKABE_ITO,
    SINGLE_COLUMN,
    TICK_SIZE,
    add_legend,
    add_minor_ticks,
    blank_figure,
    curve_style,
    draw_curve,
    family_styles,
    log_counts,
    make_figure,
    style_axes,
)

# No darker than that medians in colour stand out in grey print too.
_SHADES = ListedColormap(matplotlib.colormaps["Greys"](np.linspace(0.08, 0.5, 64)))

_COLUMN_LABELS = {
    "mag": "True magnitude (AB)",
    "snr": "True S/N",
    "blendedness": "Blendedness",
    "neighbor_distance": "Nearest neighbour (arcsec)",
    "score": "Score",
    "mag_detected": "Measured magnitude (AB)",
}
_MEASURE_LABELS = {
    "completeness": "Completeness",
    "purity": "Purity",
    "class_completeness": "Share of the true class",
}


def column_label(column: str, band: str = "", instrumental: bool = False) -> str:
    """Name a column of the match table on an axis, with its unit and the band of magnitudes.

    Instrumental ones are those of counts, of which one has 31.4 mag.
    """
    label = _COLUMN_LABELS[column]
    if instrumental:
        label = label.replace("(AB)", f"(instrumental + {AB_ZERO_POINT:g})")
    return label.replace("magnitude", f"{band} magnitude") if band else label


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """A curve of precision against recall, (point,), of a class, which has a panel, from an IoU on."""

    name: str
    iou: float
    recall: FloatArray
    precision: FloatArray
    ap: float


@dataclass(frozen=True)
class ResidualPanel:
    """Residuals of sources against some quantity, both (source,), and their statistics in bins of it."""

    title: str
    x: FloatArray
    residual: FloatArray
    binned: BinnedStatistics


def plot_precision_recall(curves: Sequence[PrecisionRecallCurve]) -> Figure:
    """Draw families of precision-recall curves, a panel for each class; the AP are in the legends."""
    names = list(dict.fromkeys(curve.name for curve in curves)) or [""]
    width = SINGLE_COLUMN if len(names) == 1 else DOUBLE_COLUMN
    # The lines of the legend stand below the axes, where curves do not run.
    rows = max((sum(curve.name == name for curve in curves) for name in names), default=0)
    height = min(width / len(names), 2.9) + 0.55 + 0.15 * np.ceil(rows / 2)
    figure, axes = make_figure(width, height, 1, len(names), share_y=True)
    for panel, name in zip(axes, names):
        family = sorted((curve for curve in curves if curve.name == name), key=lambda curve: curve.iou)
        for curve, style in zip(family, family_styles(len(family))):
            ap = f"{curve.ap:.3f}" if np.isfinite(curve.ap) else "none"
            # The first precision holds from no recall on.
            recall = np.append(0.0, curve.recall)
            precision = np.append(curve.precision[:1] if len(curve.precision) else np.nan, curve.precision)
            panel.step(recall, precision, where="pre", label=f"{curve.iou:.2f}: {ap}", **style.stroke)
        panel.set(xlim=(0.0, 1.0), ylim=(0.0, 1.03), xlabel="Recall")
        panel.set_title(name, fontsize=LABEL_SIZE)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        add_minor_ticks(panel)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2, "columnspacing": 1.2}
        add_legend(panel, title="IoU: AP", title_fontsize=LEGEND_SIZE, **place)
    axes[0].set_ylabel("Precision")
    return figure


def plot_shares(
    families: Sequence[BinnedShares],
    *,
    band: str = "",
    instrumental: bool = False,
    y_label: str | None = None,
) -> Figure:
    """Draw completeness, purity or other shares, with up to three panels beside each other."""
    n = max(len(families), 1)
    n_columns = n if n <= 3 else (2 if n == 4 else 3)
    width = SINGLE_COLUMN if n_columns == 1 else DOUBLE_COLUMN
    n_rows = -(-n // n_columns)
    figure, axes = make_figure(width, n_rows * min(0.9 * width / n_columns + 0.45, 3.0), n_rows, n_columns)
    for axis in axes[len(families) :]:
        axis.set_visible(False)
    for number, (axis, family) in enumerate(zip(axes, families)):
        for index, (name, curve) in enumerate(family.curves.items()):
            draw_curve(axis, curve.center, curve, curve_style(name, index), name)
            _mark_limit(axis, family, name, index)
        if family.column in ("snr", "neighbor_distance"):
            axis.set_xscale("log")
            # 0.1, 1, 10 stand on the line of the other panels' numbers; powers do not.
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(column_label(family.column, band, instrumental))
        if number % n_columns == 0 or family.measure != families[number - 1].measure:
            axis.set_ylabel(y_label or _MEASURE_LABELS[family.measure])
        axis.set_ylim(-0.03, 1.05)
        add_minor_ticks(axis)
        if number == 0 or list(family.curves) != list(families[0].curves) or family.limits:
            marked = any(np.isfinite(limit.value) for limit in family.limits.values())
            # Shares fill the panel, so that it stands above.
            title = {"title": "50 % complete at" if marked else None, "title_fontsize": LEGEND_SIZE}
            add_legend(axis, ncols=2 if len(family.curves) == 4 else 3, handlelength=2.0, **title, **ABOVE)
    return figure


def plot_confusion(
    counts: IntArray, shares: BinnedShares | None, *, band: str = "", instrumental: bool = False
) -> Figure:
    """Draw the confusion of stars and galaxies, overall and by magnitude in a band.

    ``counts`` are matched sources by true class (row) and class given (column), and
    ``shares`` those of each true class that were classed as such.
    """
    figure = blank_figure(DOUBLE_COLUMN, 2.9)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.4, 1.0), width_ratios=(1.0, 1.35))
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    lower = figure.add_subplot(grid[1, 1], sharex=right)
    for axis in (left, right, lower):
        style_axes(axis)
    share = divide(counts, counts.sum(axis=1, keepdims=True))
    left.imshow(np.nan_to_num(share), cmap="Blues", vmin=0.0, vmax=1.25, aspect="equal")
    for (i, j), one in np.ndenumerate(share):
        percent = f"{100 * one:.1f} %" if np.isfinite(one) else "none"
        words: dict[str, Any] = {"fontsize": LABEL_SIZE, "color": "white" if one > 0.6 else "black"}
        left.text(j, i, f"{percent}\n({counts[i, j]:d})", ha="center", va="center", **words)
    left.set_xticks([0, 1], CLASS_NAMES)
    left.set_yticks([0, 1], CLASS_NAMES, rotation=90, va="center")
    left.tick_params(length=0)
    left.set(xlabel="Class given", ylabel="True class")
    if counts.sum():
        accuracy = fraction(int(np.trace(counts)), int(counts.sum()))
        limits = f"{accuracy.low:.3f} to {accuracy.high:.3f}"
        left.set_title(f"accuracy {accuracy.value:.3f} ({limits})", fontsize=TICK_SIZE)
    curves = {} if shares is None else shares.curves
    for index, (name, curve) in enumerate(curves.items()):
        style = curve_style(name, index)
        draw_curve(right, curve.center, curve, style, f"{name} classed as {name}")
        lower.stairs(curve.total, curve.edges, **style.stroke)
    right.set(ylim=(-0.03, 1.05), ylabel="Share of the true class")
    right.tick_params(labelbottom=False)
    lower.set(xlabel=column_label("mag", band, instrumental), ylabel="Number")
    log_counts(lower, [curve.total for curve in curves.values()])
    add_minor_ticks(right)
    add_legend(right, loc="best")
    return figure


def plot_roc(
    curves: Mapping[str, RocCurve],
    *,
    labels: tuple[str, str] = ("Galaxies classed as star (share)", "Stars classed as star (share)"),
) -> Figure:
    """Draw receiver operating characteristics by name, with the areas in the legend."""
    figure, (axis,) = make_figure(SINGLE_COLUMN, 0.95 * SINGLE_COLUMN)
    axis.plot([0.0, 1.0], [0.0, 1.0], color="0.6", lw=0.7, ls=":")
    for index, (name, curve) in enumerate(curves.items()):
        style = curve_style(name, index)
        area = f"area {curve.area:.3f}" if np.isfinite(curve.area) else "one class only"
        axis.plot(curve.false_positive, curve.true_positive, label=f"{name}: {area}", **style.stroke)
    axis.set(xlim=(-0.02, 1.0), ylim=(0.0, 1.02), xlabel=labels[0], ylabel=labels[1])
    add_minor_ticks(axis)
    add_legend(axis, loc="lower right")
    return figure


def plot_residuals(
    panels: Sequence[ResidualPanel],
    *,
    x_label: str = "Blendedness",
    y_label: str = "Detected flux / true flux - 1",
) -> Figure:
    """Draw residuals of sources with their median and scatter in bins.

    Up to 300 sources a panel are points, more are shading. Bars are the scatter, and
    a band is the error of the median. The y axis holds the scatter of each bin and
    nine tenths of the sources; a panel says how many are beyond it.
    """
    n = max(len(panels), 1)
    width = SINGLE_COLUMN if n == 1 else DOUBLE_COLUMN
    figure, axes = make_figure(width, min(0.85 * width / n + 0.3, 3.0), 1, n, share_y=True)
    low, high = _residual_range(panels)
    for axis, panel in zip(axes, panels):
        x, y = np.asarray(panel.x, dtype=float), np.asarray(panel.residual, dtype=float)
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        left, right = float(panel.binned.edges[0]), float(panel.binned.edges[-1])
        inside = (y >= low) & (y <= high) & (x >= left) & (x <= right)
        if inside.sum() > 300:
            grid: dict[str, Any] = {"gridsize": (28, 16), "extent": (left, right, low, high), "mincnt": 1}
            grid |= {"bins": "log", "cmap": _SHADES, "vmin": 0.5, "vmax": max(inside.sum() / 20.0, 10.0)}
            axis.hexbin(x[inside], y[inside], linewidths=0.1, zorder=1, **grid)
        else:
            axis.plot(x[inside], y[inside], ".", color="0.6", ms=3.0, zorder=1)
        _draw_statistics(axis, panel.binned)
        axis.axhline(0.0, color="0.3", lw=0.7, ls=":", zorder=2)
        margin = 0.02 * (right - left)
        axis.set(xlim=(left - margin, right + margin), ylim=(low, high), xlabel=x_label)
        axis.set_title(panel.title, fontsize=LABEL_SIZE, pad=14.0)
        add_minor_ticks(axis)
        outside = int(np.count_nonzero((y < low) | (y > high)))
        note = f"{len(y)} sources" + (f", {outside} beyond the axis" if outside else "")
        # Above the axes, where no source is.
        axis.text(0.5, 1.02, note, transform=axis.transAxes, fontsize=NOTE_SIZE, ha="center", va="bottom")
    axes[0].set_ylabel(y_label)
    # One legend for all panels, the medians before the few.
    named = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        named.update(dict(zip(labels[::-1], handles[::-1])))
    add_legend(axes[0], loc="upper left", handles=list(named.values()), labels=list(named))
    return figure


def plot_blends(shares: Mapping[str, Mapping[str, Fraction]]) -> Figure:
    """Draw how blends ended, as bars: their shares of each of `BLEND_KINDS`, by the name of the run."""
    figure, (axis,) = make_figure(SINGLE_COLUMN, 2.5)
    hatches = ("", "////", "....", "xxxx", "\\\\\\\\")
    place = np.arange(len(BLEND_KINDS))
    step = 0.8 / max(len(shares), 1)
    for index, (name, of_kinds) in enumerate(shares.items()):
        style = curve_style(name, index)
        ends = [of_kinds[kind] for kind in BLEND_KINDS]
        value = np.array([share.value for share in ends])
        error = np.array([[share.value - share.low, share.high - share.value] for share in ends]).T
        x = place + (index - 0.5 * (len(shares) - 1)) * step
        hatch = hatches[index % 5]
        color = "white" if hatch else style.color
        fill: dict[str, Any] = {"color": color, "edgecolor": style.color, "hatch": hatch}
        caps = {"lw": 0.9, "capsize": 2.0, "ecolor": "black"}
        bars: dict[str, Any] = {"yerr": np.nan_to_num(np.maximum(error, 0.0)), "error_kw": caps}
        label = f"{name} ({ends[0].total} blends)" if name else f"{ends[0].total} blends"
        axis.bar(x, np.nan_to_num(value), 0.92 * step, label=label, **fill, **bars)
    axis.set_xticks(place, BLEND_KINDS, rotation=20, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    axis.set(ylim=(0.0, 1.0), ylabel="Share of blends")
    axis.yaxis.set_minor_locator(AutoMinorLocator())
    add_legend(axis, loc="upper right")
    return figure


def _mark_limit(axis: Axes, family: BinnedShares, name: str, index: int) -> None:
    limit = family.limits.get(name)
    if limit is None or not np.isfinite(limit.value):
        return
    stroke = curve_style(name, index).stroke | {"lw": 0.8}
    axis.plot([limit.value, limit.value], [-0.03, 0.5], **stroke)
    # The number goes into the legend, where it cannot hide a curve.
    line = next(line for line in axis.lines if line.get_label() == name)
    line.set_label(f"{name}: {limit.value:.2f}")


def _draw_statistics(axis: Axes, binned: BinnedStatistics) -> None:
    color = OKABE_ITO["vermilion"]
    # The width of a handful of values is not known.
    few = (binned.n > 0) & (binned.n < FEW)
    error = np.where(few, np.nan, binned.median_error)
    band = binned.median - error, binned.median + error
    axis.fill_between(binned.center, *band, color=color, alpha=0.35, lw=0, zorder=3)
    halo: list[AbstractPathEffect] = [withStroke(linewidth=LINE_WIDTH + 1.4, foreground="white")]
    points: dict[str, Any] = {"color": color, "marker": "o", "ms": 3.5}
    scatter = {"yerr": np.where(few, np.nan, binned.scatter), "elinewidth": 0.9, "capsize": 2.0, **points}
    bars = axis.errorbar(
        binned.center, binned.median, lw=LINE_WIDTH, zorder=4, label="median, scatter", **scatter
    )
    for part in (bars.lines[0], *bars.lines[2]):
        part.set_path_effects(halo)
    if few.any():
        label = f"fewer than {FEW} sources"
        axis.plot(binned.center[few], binned.median[few], ls="", mfc="white", zorder=5, label=label, **points)


def _residual_range(panels: Sequence[ResidualPanel]) -> tuple[float, float]:
    values = [np.zeros(1)]
    for panel in panels:
        residual = np.asarray(panel.residual, dtype=float)
        finite = residual[np.isfinite(residual)]
        if len(finite):
            values.append(np.quantile(finite, [0.05, 0.95]))
        # One outlier alone in its bin would else set the scale for all.
        spread = np.where(panel.binned.n < FEW, np.nan, panel.binned.scatter)
        values += [panel.binned.median - 1.1 * spread, panel.binned.median + 1.1 * spread]
    everything = np.concatenate(values)
    everything = everything[np.isfinite(everything)]
    low, high = float(everything.min()), float(everything.max())
    margin = 0.08 * (high - low) or 0.1
    return low - margin, high + margin
