# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The figures of an evaluation, drawn alike for the task's plots and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from ..metrics.arrays import FloatArray
from ..metrics.binned import Fraction, binomial_interval, divide
from ..metrics.binned_figures import (
    BinnedShares,
    binned_residual,
    binned_shares,
    class_shares,
    reliability_curves,
    residual_bins,
)
from ..metrics.blends import BLEND_KINDS
from ..metrics.classification import confusion_matrix, magnitude_rocs, roc_curve
from ..metrics.evaluation_metrics import EvaluationMetrics
from ..metrics.run_comparison import EvaluatedRun, run_setting
from .calibration_figure import plot_calibration
from .plots import (
    PrecisionRecallCurve,
    ResidualPanel,
    column_label,
    plot_blends,
    plot_confusion,
    plot_precision_recall,
    plot_residuals,
    plot_roc,
    plot_shares,
)

CLASS_WORDS = {"all": "all", "star": "stars", "galaxy": "galaxies"}
"""The classes in the plural, for titles."""


class EvaluationFigures:
    """Draws the figures of an evaluation, with its precision-recall curves if there are any."""

    def __init__(self, run: EvaluatedRun, curves: NDArray[np.void] | None = None) -> None:
        self.metrics, self.sources, self.curves = run.metrics, run.sources, curves
        self.table, self.classes, self.band = run.matches, self.sources.classes, self.sources.band
        self.instrumental = self.band in run.metrics.instrumental

    def task_plots(self) -> dict[str, Figure]:
        """Draw the plots that the task stores, by the last part of their names."""
        separate, modelled = self.classes[1:] or self.classes, np.isfinite(self.table["flux_model"]).any()
        return {
            "precisionRecall": self.precision_recall(self.classes),
            "completeness": self.completeness(self.shares()),
            "confusion": self.confusion(),
            "roc": self.roc(),
            "fluxResidual": self.flux_residual(separate, "flux_model" if modelled else "flux_detected"),
            "calibration": self.calibration(),
            "blends": plot_blends({"": blend_shares(self.metrics)}),
        }

    def precision_recall(self, names: Sequence[str]) -> Figure:
        """Draw precision against recall of the pooled detections of each class, a curve for each IoU."""
        families = []
        for name in names:
            for value in self.metrics.select(name="ap", object_class=name, definition="pooled", area="all"):
                if value.iou is None or self.curves is None:
                    continue
                points = self.curves[
                    (self.curves["definition"] == "pooled")
                    & (self.curves["object_class"] == name)
                    & (np.abs(self.curves["iou"] - value.iou) < 1e-3)
                ]
                recall, precision = np.asarray(points["recall"]), np.asarray(points["interpolated"])
                curve = PrecisionRecallCurve(CLASS_WORDS[name], value.iou, recall, precision, value.value)
                families.append(curve)
        return plot_precision_recall(families)

    def shares(self) -> list[BinnedShares]:
        """Compute the completeness and purity that the match table allows."""
        shares = binned_shares(self.sources)
        injected = run_setting(self.metrics, "injected", False)
        return [one for one in shares if one.measure != "purity"] if injected else shares

    def completeness(self, families: Sequence[BinnedShares]) -> Figure:
        """Draw completeness and purity, a panel each."""
        return plot_shares(families, band=self.band, instrumental=self.instrumental)

    def confusion(self) -> Figure:
        """Draw the confusion of stars and galaxies."""
        counts, shares = confusion_matrix(self.sources), class_shares(self.sources)
        return plot_confusion(counts, shares, band=self.band, instrumental=self.instrumental)

    def roc(self) -> Figure:
        """Draw the receiver operating characteristic of ``p_star``."""
        return plot_roc(magnitude_rocs(self.sources))

    def blend_roc(self) -> Figure:
        """Draw the receiver operating characteristic of ``p_blend``."""
        rows, _ = self.sources.blend_cases()
        curve = roc_curve(self.table["p_blend"][rows], self.table["blended"][rows] == 1)
        labels = "Single sources called blends (share)", "Blends called blends (share)"
        return plot_roc({"all": curve}, labels=labels)

    def flux_residual(self, names: Sequence[str], kind: str = "flux_detected") -> Figure:
        """Draw the residuals of a column of fluxes, a panel for each class."""
        what = {"flux_detected": "HeavyFootprint", "flux_model": "Model"}[kind]
        label = f"{what} flux / true flux \N{MINUS SIGN} 1"
        return plot_residuals(self.flux_panels(names, kind), x_label=self.residual_label, y_label=label)

    def flux_panels(self, names: Sequence[str], kind: str, title: str = "") -> list[ResidualPanel]:
        """Make the panels of `flux_residual`."""
        return self._panels(divide(self.table[kind], self.table["flux_truth"]) - 1.0, names, title)

    def centroid_offset(self, names: Sequence[str]) -> Figure:
        """Draw the offsets of positions, a panel for each class."""
        panels = self._panels(self.table["separation_arcsec"], names)
        return plot_residuals(panels, x_label=self.residual_label, y_label="Centroid offset (arcsec)")

    @property
    def residual_label(self) -> str:
        """What residuals are drawn against (`str`)."""
        return column_label(residual_bins(self.sources)[0], self.band, self.instrumental)

    def _panels(self, values: FloatArray, names: Sequence[str], title: str = "") -> list[ResidualPanel]:
        column, _ = residual_bins(self.sources)
        panels = []
        for name in names:
            rows = self.sources.matched(IS_STAR[name])
            binned = binned_residual(self.sources, values, IS_STAR[name])
            x, label = self.table[column][rows], title or CLASS_WORDS[name]
            panels.append(ResidualPanel(label, x, values[rows], binned))
        return panels

    def calibration(self, of: str = "score") -> Figure:
        """Draw how often scores, with a curve for each class, ``p_star`` or ``p_blend`` came true."""
        curves = reliability_curves(self.sources)
        if of != "score":
            name, kind = {"p_star": ("pStar", "stars"), "p_blend": ("pBlend", "blends")}[of]
            shown = {name: curves[of]} if of in curves else {}
            return plot_calibration(shown, x_label=name, y_label=f"Share of matched sources that are {kind}")
        # With classes, a detection counts as true only if its class is right too.
        several = len(self.classes) > 1
        label = "Share true, class right too" if several else "Share of detections that are true"
        start = "score/"
        shown = {name.removeprefix(start): one for name, one in curves.items() if name.startswith(start)}
        return plot_calibration(shown, x_label="Score", y_label=label)


def blend_shares(metrics: EvaluationMetrics) -> Mapping[str, Fraction]:
    """Take the shares of blends that ended in each way from the figures.

    They have the interval of the bootstrap, or the binomial one of a single patch,
    and are NaN where there is no blend.
    """
    by_name = {value.name: value for value in metrics.values}
    shares = {}
    for kind in BLEND_KINDS:
        value = by_name.get(f"blends_{kind}")
        if value is None or not math.isfinite(value.value):
            shares[kind] = Fraction(0, 0, math.nan, math.nan, math.nan)
            continue
        hits, low, high = round(value.value * value.n), value.low, value.high
        if not math.isfinite(low):
            low, high = (float(limit) for limit in binomial_interval(hits, value.n))
        shares[kind] = Fraction(hits, value.n, value.value, low, high)
    return shares
