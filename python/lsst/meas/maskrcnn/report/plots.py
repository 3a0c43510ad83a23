# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plots of an evaluation, for the width of a journal's columns.

Each function takes what the other modules of `metrics` compute and returns a
figure; ``figure.savefig(path)`` writes it, as PNG or PDF. Shaded bands and
error bars are confidence intervals as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import AutoMinorLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from ..metrics.binned import BinnedFraction, BinnedStatistics, even_edges, log_edges
from ..metrics.blends import BlendSummary
from ..metrics.calibration import Reliability
from ..metrics.classification import BinnedConfusion, Confusion, RocCurve
from ..metrics.completeness import CompletenessLimit, binned_completeness, binned_purity, completeness_limit
from ..metrics.match_table import MatchTable, detection_rows, truth_rows
from .plot_style import (
    DOUBLE_COLUMN,
    LABEL_SIZE,
    LEGEND_SIZE,
    LINE_WIDTH,
    NOTE_SIZE,
    OKABE_ITO,
    SINGLE_COLUMN,
    TICK_SIZE,
    add_legend,
    curve_style,
    family_styles,
    make_figure,
    style_axes,
)

if TYPE_CHECKING:
    from ..metrics.average_precision import AveragePrecision

__all__ = [
    "FractionPanel",
    "PrecisionRecallCurve",
    "ResidualPanel",
    "completeness_panels",
    "plot_blends",
    "plot_calibration",
    "plot_confusion",
    "plot_fractions",
    "plot_precision_recall",
    "plot_residuals",
    "plot_roc",
    "precision_recall_curves",
]

_FEW = 5
# No darker than that medians in colour stand out in grey print too.
_SHADES = ListedColormap(matplotlib.colormaps["Greys"](np.linspace(0.08, 0.5, 64)))


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """A curve of precision against recall, to be drawn.

    Parameters
    ----------
    name : `str`
        The class; each has a panel.
    iou : `float`
        Smallest intersection over union of a match.
    recall, precision : `numpy.ndarray`
        The curve, (point,).
    ap : `float`
        Its average precision.
    low, high : `numpy.ndarray`, optional
        Limits of the precision, (point,).
    """

    name: str
    iou: float
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    ap: float
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class FractionPanel:
    """Shares against some quantity.

    Parameters
    ----------
    x_label, y_label : `str`
        Names of the axes, with units.
    curves : `dict` [`str`, `BinnedFraction`]
        The curves by name.
    log_x : `bool`
        Whether the x axis is logarithmic.
    limits : `dict` [`str`, `CompletenessLimit`]
        Limits to mark, by the name of their curve.
    level : `float`
        Completeness at the limits.
    """

    x_label: str
    y_label: str
    curves: Mapping[str, BinnedFraction]
    log_x: bool = False
    limits: Mapping[str, CompletenessLimit] = field(default_factory=dict)
    level: float = 0.5


@dataclass(frozen=True)
class ResidualPanel:
    """Residuals of sources against some quantity.

    Parameters
    ----------
    title : `str`
        Title, such as the class.
    x, residual : `numpy.ndarray`
        The sources, (source,).
    binned : `BinnedStatistics`
        Their statistics in bins of ``x``.
    """

    title: str
    x: NDArray[np.float64]
    residual: NDArray[np.float64]
    binned: BinnedStatistics


def precision_recall_curves(results: Mapping[str, AveragePrecision]) -> list[PrecisionRecallCurve]:
    """Take the curves of average precisions.

    Parameters
    ----------
    results : `~collections.abc.Mapping` [`str`, `AveragePrecision`]
        The average precisions by the name of their class.

    Returns
    -------
    curves : `list` [`PrecisionRecallCurve`]
        The interpolated curves, under which the average precision is the
        area, of all thresholds.
    """
    return [
        PrecisionRecallCurve(name, float(iou), curve.recall, curve.interpolated, float(ap))
        for name, result in results.items()
        for iou, ap, curve in zip(result.thresholds, result.ap, result.curves)
    ]


def plot_precision_recall(curves: Sequence[PrecisionRecallCurve], *, width: float | None = None) -> Figure:
    """Draw families of precision-recall curves, a panel for each class.

    Parameters
    ----------
    curves : `~collections.abc.Sequence` [`PrecisionRecallCurve`]
        The curves.
    width : `float`, optional
        Width of the figure (inch).

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        The figure; the average precisions are in the legends.
    """
    names = list(dict.fromkeys(curve.name for curve in curves)) or [""]
    if width is None:
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
            recall = np.concatenate([[0.0], curve.recall])
            panel.step(
                recall,
                _from_zero(curve.precision),
                where="pre",
                color=style.color,
                ls=style.line,
                lw=LINE_WIDTH,
                label=f"{curve.iou:.2f}: {ap}",
            )
            if curve.low is not None and curve.high is not None:
                low, high = _from_zero(curve.low), _from_zero(curve.high)
                panel.fill_between(recall, low, high, step="pre", color=style.color, alpha=0.15, lw=0)
        panel.set_xlim(0.0, 1.0)
        panel.set_ylim(0.0, 1.03)
        panel.set_xlabel("Recall")
        panel.set_title(name, fontsize=LABEL_SIZE)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        _minor_ticks(panel)
        add_legend(
            panel,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            ncols=2,
            columnspacing=1.2,
            title="IoU: AP",
            title_fontsize=LEGEND_SIZE,
        )
    axes[0].set_ylabel("Precision")
    return figure


def completeness_panels(
    table: MatchTable, *, magnitude_label: str = "True magnitude (AB)", same_class: bool = False
) -> list[FractionPanel]:
    """Choose the panels of completeness and purity that a table allows.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    magnitude_label : `str`
        Name of the axis of true magnitudes; say the band.
    same_class : `bool`
        A source counts only if its class is right too.

    Returns
    -------
    panels : `list` [`FractionPanel`]
        Completeness against magnitude (with its limit at 0.5), S/N,
        blendedness and separation, purity against score and measured
        magnitude; those of which the table has no value are left out.
    """
    suffix = " (same class)" if same_class else ""
    truth, found = truth_rows(table), detection_rows(table)
    choices = (
        (binned_completeness, "mag", magnitude_label, lambda v: even_edges(v, 0.5), False),
        (binned_completeness, "snr", "True S/N", lambda v: log_edges(v, 4), True),
        (binned_completeness, "blendedness", "Blendedness", lambda v: np.linspace(0.0, 1.0, 11), False),
        (
            binned_completeness,
            "neighbor_distance",
            "Nearest neighbour (arcsec)",
            lambda v: log_edges(v, 6),
            True,
        ),
        (binned_purity, "score", "Score", lambda v: np.linspace(0.0, 1.0, 11), False),
        (binned_purity, "mag_detected", "Measured magnitude (AB)", lambda v: even_edges(v, 0.5), False),
    )
    panels = []
    for compute, column, label, make_edges, log_x in choices:
        is_purity = compute is binned_purity
        values = np.asarray(table[column], dtype=float)[found if is_purity else truth]
        if not np.isfinite(values).any():
            continue
        edges = make_edges(values)
        curves = {
            name: compute(table, column, edges, is_star, same_class=same_class)
            for name, is_star in IS_STAR.items()
        }
        limits = (
            {name: completeness_limit(curve) for name, curve in curves.items()} if column == "mag" else {}
        )
        panels.append(
            FractionPanel(label, ("Purity" if is_purity else "Completeness") + suffix, curves, log_x, limits)
        )
    return panels


def plot_fractions(
    panels: Sequence[FractionPanel], *, n_columns: int | None = None, width: float | None = None
) -> Figure:
    """Draw completeness, purity or other shares.

    Parameters
    ----------
    panels : `~collections.abc.Sequence` [`FractionPanel`]
        The panels, row by row.
    n_columns : `int`, optional
        Panels beside each other; by default three at most.
    width : `float`, optional
        Width of the figure (inch).

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        The figure.
    """
    n = max(len(panels), 1)
    if n_columns is None:
        n_columns = n if n <= 3 else (2 if n == 4 else 3)
    if width is None:
        width = SINGLE_COLUMN if n_columns == 1 else DOUBLE_COLUMN
    n_rows = -(-n // n_columns)
    figure, axes = make_figure(width, n_rows * min(0.9 * width / n_columns + 0.45, 3.0), n_rows, n_columns)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for number, (axis, panel) in enumerate(zip(axes, panels)):
        for index, (name, curve) in enumerate(panel.curves.items()):
            _draw_fraction(axis, curve, name, index)
            _mark_limit(axis, panel, name, index)
        if panel.log_x:
            _set_log_x(axis)
        axis.set_xlabel(panel.x_label)
        if number % n_columns == 0 or panel.y_label != panels[number - 1].y_label:
            axis.set_ylabel(panel.y_label)
        axis.set_ylim(-0.03, 1.05)
        _minor_ticks(axis)
        if number == 0 or list(panel.curves) != list(panels[0].curves) or panel.limits:
            marked = any(np.isfinite(limit.value) for limit in panel.limits.values())
            title = f"{100 * panel.level:.0f} % complete at" if marked else None
            # Shares fill the panel, so that it stands above.
            add_legend(
                axis,
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                borderaxespad=0.1,
                ncols=2 if len(panel.curves) == 4 else 3,
                columnspacing=0.9,
                handlelength=2.0,
                title=title,
                title_fontsize=LEGEND_SIZE,
                alignment="left",
            )
    return figure


def plot_confusion(
    matrix: Confusion, binned: BinnedConfusion, *, x_label: str = "True magnitude (AB)"
) -> Figure:
    """Draw the confusion of stars and galaxies, overall and in bins.

    Parameters
    ----------
    matrix : `Confusion`
        That of all matched sources.
    binned : `BinnedConfusion`
        The same in bins.
    x_label : `str`
        What the bins are of, with its unit.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Left the matrix, with shares of each true class and counts; right the
        share of each true class that was classed rightly.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9), dpi=200.0, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.4, 1.0), width_ratios=(1.0, 1.35))
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    lower = figure.add_subplot(grid[1, 1], sharex=right)
    for axis in (left, right, lower):
        style_axes(axis)
    total = matrix.counts.sum(axis=1, keepdims=True)
    share = np.divide(matrix.counts, total, out=np.full((2, 2), np.nan), where=total > 0)
    left.imshow(np.nan_to_num(share), cmap="Blues", vmin=0.0, vmax=1.25, aspect="equal")
    for i in range(2):
        for j in range(2):
            percent = f"{100 * share[i, j]:.1f} %" if np.isfinite(share[i, j]) else "none"
            left.text(
                j,
                i,
                f"{percent}\n({matrix.counts[i, j]:d})",
                ha="center",
                va="center",
                fontsize=LABEL_SIZE,
                color="white" if share[i, j] > 0.6 else "black",
            )
    left.set_xticks([0, 1], ["star", "galaxy"])
    left.set_yticks([0, 1], ["star", "galaxy"], rotation=90, va="center")
    left.tick_params(length=0)
    left.set_xlabel("Class given")
    left.set_ylabel("True class")
    if matrix.accuracy.total:
        accuracy = matrix.accuracy
        left.set_title(
            f"accuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})", fontsize=TICK_SIZE
        )
    curves = {"star": binned.star_completeness, "galaxy": binned.galaxy_completeness}
    for index, (name, curve) in enumerate(curves.items()):
        _draw_fraction(right, curve, f"{name} classed as {name}", index, style_name=name)
        style = curve_style(name, index)
        if np.isfinite(curve.edges).all():
            lower.stairs(curve.total, curve.edges, color=style.color, ls=style.line, lw=LINE_WIDTH)
    right.set_ylim(-0.03, 1.05)
    right.tick_params(labelbottom=False)
    lower.set_xlabel(x_label)
    lower.set_ylabel("Number")
    _log_counts(lower, [curve.total for curve in curves.values()])
    right.set_ylabel("Share of the true class")
    _minor_ticks(right)
    add_legend(right, loc="best")
    return figure


def plot_roc(curves: Mapping[str, RocCurve], *, width: float = SINGLE_COLUMN) -> Figure:
    """Draw receiver operating characteristics.

    Parameters
    ----------
    curves : `~collections.abc.Mapping` [`str`, `RocCurve`]
        The curves by name, such as the range of magnitudes.
    width : `float`
        Width of the figure (inch).

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        The figure; the areas are in the legend.
    """
    figure, (axis,) = make_figure(width, 0.95 * width)
    axis.plot([0.0, 1.0], [0.0, 1.0], color="0.6", lw=0.7, ls=":")
    for index, (name, curve) in enumerate(curves.items()):
        style = curve_style(name, index)
        area = f"area {curve.area:.3f}" if np.isfinite(curve.area) else "one class only"
        axis.plot(
            curve.false_positive,
            curve.true_positive,
            color=style.color,
            ls=style.line,
            lw=LINE_WIDTH,
            label=f"{name}: {area}",
        )
    axis.set_xlim(-0.02, 1.0)
    axis.set_ylim(0.0, 1.02)
    axis.set_xlabel("Galaxies classed as star (share)")
    axis.set_ylabel("Stars classed as star (share)")
    _minor_ticks(axis)
    add_legend(axis, loc="lower right")
    return figure


def plot_residuals(
    panels: Sequence[ResidualPanel],
    *,
    x_label: str = "Blendedness",
    y_label: str = "Detected flux / true flux - 1",
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    width: float | None = None,
) -> Figure:
    """Draw residuals of sources with their median and scatter in bins.

    Parameters
    ----------
    panels : `~collections.abc.Sequence` [`ResidualPanel`]
        The panels, beside each other with one y axis.
    x_label, y_label : `str`
        Names of the axes, with units.
    y_range : `tuple` [`float`, `float`], optional
        Limits of the y axis; by default such that the scatter of each bin and
        nine tenths of the sources are seen. A panel says how many are not.
    log_x : `bool`
        Whether the x axis is logarithmic.
    width : `float`, optional
        Width of the figure (inch).

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Up to 300 sources a panel as points, more as shading; the medians with
        the scatter as bars and the error of the median as a band.
    """
    n = max(len(panels), 1)
    if width is None:
        width = SINGLE_COLUMN if n == 1 else DOUBLE_COLUMN
    figure, axes = make_figure(width, min(0.85 * width / n + 0.3, 3.0), 1, n, share_y=True)
    low, high = _residual_range(panels) if y_range is None else y_range
    for axis, panel in zip(axes, panels):
        x, y = np.asarray(panel.x, dtype=float), np.asarray(panel.residual, dtype=float)
        known = np.isfinite(x) & np.isfinite(y) & ((x > 0.0) | (not log_x))
        x, y = x[known], y[known]
        edges = panel.binned.edges
        left, right = (float(limit) for limit in _finite_limits(edges, x))
        inside = (y >= low) & (y <= high) & (x >= left) & (x <= right)
        if inside.sum() > 300:
            extent = (*np.log10([left, right]), low, high) if log_x else (left, right, low, high)
            axis.hexbin(
                x[inside],
                y[inside],
                gridsize=(28, 16),
                extent=extent,
                xscale="log" if log_x else "linear",
                mincnt=1,
                bins="log",
                cmap=_SHADES,
                vmin=0.5,
                vmax=max(inside.sum() / 20.0, 10.0),
                linewidths=0.1,
                zorder=1,
            )
        else:
            axis.plot(x[inside], y[inside], ".", color="0.6", ms=3.0, zorder=1)
        _draw_statistics(axis, panel.binned)
        axis.axhline(0.0, color="0.3", lw=0.7, ls=":", zorder=2)
        if log_x:
            _set_log_x(axis)
        margin = 0.0 if log_x else 0.02 * (right - left)
        axis.set_xlim(left - margin, right + margin)
        axis.set_ylim(low, high)
        axis.set_xlabel(x_label)
        axis.set_title(panel.title, fontsize=LABEL_SIZE)
        _minor_ticks(axis)
        outside = int(np.count_nonzero((y < low) | (y > high)))
        note = f"{len(y)} sources" + (f", {outside} beyond the axis" if outside else "")
        axis.text(0.03, 0.03, note, transform=axis.transAxes, fontsize=NOTE_SIZE, va="bottom", zorder=7)
    axes[0].set_ylabel(y_label)
    # One legend for all panels, the medians before the few.
    named = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        named.update(dict(zip(labels[::-1], handles[::-1])))
    add_legend(axes[0], loc="upper left", handles=list(named.values()), labels=list(named))
    return figure


def plot_calibration(
    curves: Mapping[str, Reliability],
    *,
    x_label: str = "Score",
    y_label: str = "Share of detections that are true",
    width: float = SINGLE_COLUMN,
) -> Figure:
    """Draw reliability diagrams over the distribution of the probabilities.

    Parameters
    ----------
    curves : `~collections.abc.Mapping` [`str`, `Reliability`]
        The curves by name.
    x_label, y_label : `str`
        Names of the axes.
    width : `float`
        Width of the figure (inch).

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        The figure; the expected calibration errors are in the legend.
    """
    figure, (top, bottom) = make_figure(width, 1.2 * width, 2, 1, height_ratios=(3.4, 1.0))
    top.plot([0.0, 1.0], [0.0, 1.0], color="0.5", lw=0.8, ls=":", label="calibrated")
    for index, (name, curve) in enumerate(curves.items()):
        style = curve_style(name, index)
        error = f"{curve.expected_error:.3f}" if np.isfinite(curve.expected_error) else "none"
        _draw_band(top, curve.mean_probability, curve.bins.low, curve.bins.high, style.color)
        top.plot(
            curve.mean_probability,
            curve.bins.fraction,
            color=style.color,
            ls=style.line,
            marker=style.marker,
            ms=_marker_size(style.marker),
            lw=LINE_WIDTH,
            label=f"{name}: ECE {error}",
        )
        bottom.stairs(curve.bins.total, curve.bins.edges, color=style.color, ls=style.line, lw=LINE_WIDTH)
    for axis in (top, bottom):
        axis.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.03, 1.05)
    top.tick_params(labelbottom=False)
    top.set_ylabel(y_label)
    bottom.set_xlabel(x_label)
    bottom.set_ylabel("Number")
    _log_counts(bottom, [curve.bins.total for curve in curves.values()])
    _minor_ticks(top)
    add_legend(
        top,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.1,
        ncols=2,
        columnspacing=0.9,
    )
    return figure


def plot_blends(summaries: Mapping[str, BlendSummary], *, width: float = SINGLE_COLUMN) -> Figure:
    """Draw how blends ended, as bars.

    Parameters
    ----------
    summaries : `~collections.abc.Mapping` [`str`, `BlendSummary`]
        The summaries by name, such as the deblender.
    width : `float`
        Width of the figure (inch).

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Shares of the groups of two true sources or more.
    """
    kinds = ("recognized", "unrecognized", "shredded", "mismatched", "missed")
    figure, (axis,) = make_figure(width, 2.5)
    hatches = ("", "////", "....", "xxxx", "\\\\\\\\")
    place = np.arange(len(kinds))
    step = 0.8 / max(len(summaries), 1)
    for index, (name, summary) in enumerate(summaries.items()):
        style = curve_style(name, index)
        shares = [summary.of_blends[kind] for kind in kinds]
        value = np.array([share.value for share in shares])
        error = np.array([[share.value - share.low, share.high - share.value] for share in shares]).T
        x = place + (index - 0.5 * (len(summaries) - 1)) * step
        axis.bar(
            x,
            np.nan_to_num(value),
            0.92 * step,
            yerr=np.nan_to_num(np.maximum(error, 0.0)),
            color="white" if hatches[index % 5] else style.color,
            edgecolor=style.color,
            hatch=hatches[index % 5],
            error_kw={"lw": 0.9, "capsize": 2.0, "ecolor": "black"},
            label=f"{name} ({shares[0].total} blends)",
        )
    axis.set_xticks(place, kinds, rotation=20, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0.0, 1.0)
    axis.set_ylabel("Share of blends")
    axis.yaxis.set_minor_locator(AutoMinorLocator())
    add_legend(axis, loc="upper right")
    return figure


def _from_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([values[:1] if len(values) else [np.nan], values])


def _draw_fraction(
    axis: Axes, curve: BinnedFraction, name: str, index: int, style_name: str | None = None
) -> None:
    style = curve_style(style_name or name, index)
    _draw_band(axis, curve.center, curve.low, curve.high, style.color)
    axis.plot(
        curve.center,
        curve.fraction,
        color=style.color,
        ls=style.line,
        lw=LINE_WIDTH,
        marker=style.marker,
        ms=_marker_size(style.marker),
        label=name,
    )


def _draw_band(
    axis: Axes, x: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], color: str
) -> None:
    axis.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    # A band has no width at a bin between empty ones.
    filled = np.isfinite(low)
    neighbour = np.append(filled[1:], False) | np.insert(filled[:-1], 0, False)
    alone = filled & ~neighbour
    if alone.any():
        axis.vlines(x[alone], low[alone], high[alone], color=color, alpha=0.5, lw=0.9)


def _mark_limit(axis: Axes, panel: FractionPanel, name: str, index: int) -> None:
    limit = panel.limits.get(name)
    if limit is None or not np.isfinite(limit.value):
        return
    style = curve_style(name, index)
    axis.plot([limit.value, limit.value], [-0.03, panel.level], color=style.color, ls=style.line, lw=0.8)
    # The number goes into the legend, where it cannot hide a curve.
    line = next(line for line in axis.lines if line.get_label() == name)
    line.set_label(f"{name}: {limit.value:.2f}")


def _log_counts(axis: Axes, counts: Sequence[NDArray[np.int64]]) -> None:
    # Few against many can only be seen in the logarithm.
    if max((int(count.max(initial=0)) for count in counts), default=0) <= 20:
        axis.set_ylim(bottom=0.0)
        return
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)
    axis.yaxis.set_major_locator(LogLocator(numticks=4))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_statistics(axis: Axes, binned: BinnedStatistics) -> None:
    color = OKABE_ITO["vermilion"]
    # The width of a handful of values is not known.
    few = (binned.n > 0) & (binned.n < _FEW)
    error = np.where(few, np.nan, binned.median_error)
    axis.fill_between(
        binned.center, binned.median - error, binned.median + error, color=color, alpha=0.35, lw=0, zorder=3
    )
    halo: list[AbstractPathEffect] = [withStroke(linewidth=LINE_WIDTH + 1.4, foreground="white")]
    bars = axis.errorbar(
        binned.center,
        binned.median,
        yerr=np.where(few, np.nan, binned.scatter),
        color=color,
        marker="o",
        ms=3.5,
        lw=LINE_WIDTH,
        elinewidth=0.9,
        capsize=2.0,
        zorder=4,
        label="median, scatter",
    )
    for part in (bars.lines[0], *bars.lines[2]):
        part.set_path_effects(halo)
    if few.any():
        axis.plot(
            binned.center[few],
            binned.median[few],
            "o",
            color=color,
            mfc="white",
            ms=3.5,
            zorder=5,
            label=f"fewer than {_FEW} sources",
        )


def _residual_range(panels: Sequence[ResidualPanel]) -> tuple[float, float]:
    values = [np.zeros(1)]
    for panel in panels:
        residual = np.asarray(panel.residual, dtype=float)
        finite = residual[np.isfinite(residual)]
        if len(finite):
            values.append(np.quantile(finite, [0.05, 0.95]))
        # One outlier alone in its bin would else set the scale for all.
        spread = np.where(panel.binned.n < _FEW, np.nan, panel.binned.scatter)
        values += [panel.binned.median - 1.1 * spread, panel.binned.median + 1.1 * spread]
    everything = np.concatenate(values)
    everything = everything[np.isfinite(everything)]
    low, high = float(everything.min()), float(everything.max())
    margin = 0.08 * (high - low) or 0.1
    return low - margin, high + margin


def _finite_limits(edges: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = edges[np.isfinite(edges)]
    both = np.concatenate([inner, x]) if len(inner) < len(edges) else inner
    if not len(both) or both.min() == both.max():
        return np.array([0.0, 1.0])
    return np.array([both.min(), both.max()])


def _set_log_x(axis: Axes) -> None:
    axis.set_xscale("log")
    # 0.1, 1, 10 stand on the line of the other panels' numbers; powers do not.
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _minor_ticks(axis: Axes) -> None:
    for one, scale in ((axis.xaxis, axis.get_xscale()), (axis.yaxis, axis.get_yscale())):
        if scale == "linear":
            one.set_minor_locator(AutoMinorLocator())


def _marker_size(marker: str) -> float:
    return 5.5 if marker == "*" else 3.2
