# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics.arrays import BoolArray, FloatArray
from ..metrics.calibration import Reliability, reliability
from ..train.calibrate import CalibrationCases
from .plot_style import (
    ABOVE,
    CLASS_STYLES,
    DOUBLE_COLUMN,
    LABEL_SIZE,
    OKABE_ITO,
    SINGLE_COLUMN,
    CurveStyle,
    add_legend,
    add_minor_ticks,
    curve_style,
    draw_curve,
    family_styles,
    log_counts,
    make_figure,
)

_BEFORE = CurveStyle(OKABE_ITO["orange"], (0, (5, 1.5)), "^")
_AFTER = CurveStyle(OKABE_ITO["blue"], "-", "o")
_FAINT = CurveStyle(OKABE_ITO["purple"], (0, (1, 1.2)), "v")
_STRONG = CurveStyle(OKABE_ITO["green"], (0, (5, 1.5, 1, 1.5)), "D")
_BRIGHT = 20.0

_Curves = Mapping[str, tuple[CurveStyle, FloatArray, BoolArray]]


def plot_calibrated(before: CalibrationCases, after: CalibrationCases) -> Figure:
    """Draw what scores, P(star) and P(blend) say against what is true.

    ``before`` are cases with scores as the network gives them, ``after`` the same
    in the same order, calibrated by fits to other images, see
    `~lsst.meas.maskrcnn.train.calibrate.cross_calibrate`. Each quantity has three
    diagrams over the distribution of the probabilities: all before and after; after
    calibration, the score by class and the others by S/N, and all by depth. P(blend)
    is left out where the network does not give it. Bands are of one standard
    deviation; expected calibration errors are in the legends.
    """
    if len(before) != len(after):
        raise ValueError(f"There are {len(before)} cases before calibration and {len(after)} after.")
    bright = after.snr >= _BRIGHT
    star = before.p_star > 0.5
    classes = [("star", CLASS_STYLES["star"], star), ("galaxy", CLASS_STYLES["galaxy"], ~star)]
    brightness = [(f"< {_BRIGHT:.0f}", _FAINT, ~bright), (f"≥ {_BRIGHT:.0f}", _STRONG, bright)]
    depths = _by_depth(after)
    quantities = [
        ("Score", "Share of detections that are sources", CalibrationCases.scores, "class", classes),
        ("P(star)", "Share of sources that are stars", CalibrationCases.classes, "S/N", brightness),
    ]
    if len(after.blends()[0]):
        label = "Share of sources that are blends"
        quantities.append(("P(blend)", label, CalibrationCases.blends, "S/N", brightness))
    rows = len(quantities)
    figure, axes = make_figure(
        DOUBLE_COLUMN, 0.56 * rows * DOUBLE_COLUMN, 2 * rows, 3, share_y=True, height_ratios=rows * (3.2, 1.0)
    )
    for row, (x_label, y_label, take, by, groups) in enumerate(quantities):
        both: _Curves = {"before": (_BEFORE, *take(before)), "after": (_AFTER, *take(after))}
        parts: list[tuple[str, _Curves]] = [
            (f"by {kind}, after", {n: (style, *take(after.select(chosen))) for n, style, chosen in some})
            for kind, some in ((by, groups), ("depth", depths))
        ]
        for column, (title, curves) in enumerate([("all", both), *parts]):
            top, bottom = axes[6 * row + column], axes[6 * row + 3 + column]
            results = {name: (style, reliability(*cases)) for name, (style, *cases) in curves.items()}
            _draw_curves(top, bottom, results)
            add_legend(top, loc="lower right", handlelength=2.2)
            top.set_title(f"{x_label}: {title}", fontsize=LABEL_SIZE)
            bottom.set_xlabel(x_label)
        axes[6 * row].set_ylabel(y_label)
        axes[6 * row + 3].set_ylabel("Number")
    return figure


def _by_depth(cases: CalibrationCases) -> list[tuple[str, CurveStyle, BoolArray]]:
    """Divide the images into those without noise and three equal parts by noise."""
    images, first = np.unique(cases.image, return_index=True)
    noise = cases.depth[first]
    groups = [("no noise", cases.depth == 0.0)]
    if (noise > 0.0).any():
        edges = np.quantile(noise[noise > 0.0], [1.0 / 3.0, 2.0 / 3.0])
        part = np.searchsorted(edges, cases.depth)
        groups += [
            (name, (cases.depth > 0.0) & (part == number))
            for number, name in enumerate(("deep", "middle", "shallow"))
        ]
    groups = [(name, chosen) for name, chosen in groups if chosen.any()]
    markers = ("s", "o", "^", "D")
    return [
        (name, CurveStyle(style.color, style.line, markers[index]), chosen)
        for index, ((name, chosen), style) in enumerate(zip(groups, family_styles(len(groups)), strict=True))
    ]


def plot_calibration(curves: Mapping[str, Reliability], *, x_label: str, y_label: str) -> Figure:
    """Draw reliability diagrams, with expected errors in the legend, over the numbers of cases."""
    figure, (top, bottom) = make_figure(SINGLE_COLUMN, 1.2 * SINGLE_COLUMN, 2, 1, height_ratios=(3.4, 1.0))
    styled = {name: (curve_style(name, i), curve) for i, (name, curve) in enumerate(curves.items())}
    _draw_curves(top, bottom, styled, "ECE ")
    top.set_ylabel(y_label)
    bottom.set(xlabel=x_label, ylabel="Number")
    add_legend(top, ncols=2, **ABOVE)
    return figure


def _draw_curves(
    top: Axes, bottom: Axes, curves: Mapping[str, tuple[CurveStyle, Reliability]], word: str = ""
) -> None:
    """Draw a diagram and the distributions under it."""
    top.plot([0.0, 1.0], [0.0, 1.0], color="0.5", lw=0.8, ls=":")
    for name, (style, result) in curves.items():
        error = f"{result.expected_error:.3f}" if np.isfinite(result.expected_error) else "none"
        draw_curve(top, result.mean_probability, result.bins, style, f"{name}: {word}{error}")
        bottom.stairs(result.bins.total, result.bins.edges, **style.stroke)
    for axes in (top, bottom):
        axes.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.03, 1.05)
    top.tick_params(labelbottom=False)
    add_minor_ticks(top)
    log_counts(bottom, [result.bins.total for _, result in curves.values()])
