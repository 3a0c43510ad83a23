# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is found of pairs of sources, by their separation and flux ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter
from numpy.typing import ArrayLike, NDArray

from lsst.meas.maskrcnn.metrics.binned import Fraction, fraction
from lsst.meas.maskrcnn.report.plot_style import (
    DOUBLE_COLUMN,
    LABEL_SIZE,
    LINE_WIDTH,
    NOTE_SIZE,
    OKABE_ITO,
    CurveStyle,
    add_legend,
    curve_style,
    make_figure,
)

__all__ = ["PairOutcomes", "match_pairs", "plot_pair_recall"]

_STYLES = {
    "hard": CurveStyle(OKABE_ITO["black"], (0, (4, 1.5)), "s"),
    "soft, linear": CurveStyle(OKABE_ITO["orange"], (0, (1, 1.2)), "v"),
    "soft, Gaussian": CurveStyle(OKABE_ITO["green"], (0, (5, 1.5, 1, 1.5)), "D"),
    "mask": CurveStyle(OKABE_ITO["blue"], "-", "o"),
}
_CLOSE_TICKS = 1.3
"""Ratio of neighbours below which a tick has no label."""


@dataclass(frozen=True)
class PairOutcomes:
    """What became of some pairs.

    Parameters
    ----------
    separation : `numpy.ndarray`
        Distance of the two sources, FWHM of the PSF, (pair,).
    flux_ratio : `numpy.ndarray`
        Flux of the brighter over that of the fainter, (pair,).
    both : `numpy.ndarray`
        Whether both were found, by a detection each, bool, (pair,).
    count : `numpy.ndarray`
        Number of detections that are nearer to this pair than to any other
        and within its reach, int, (pair,).
    """

    separation: NDArray[np.float64]
    flux_ratio: NDArray[np.float64]
    both: NDArray[np.bool_]
    count: NDArray[np.int64]

    @classmethod
    def concatenate(cls, parts: Sequence[PairOutcomes]) -> PairOutcomes:
        """Put outcomes one after the other.

        Parameters
        ----------
        parts : `~collections.abc.Sequence` [`PairOutcomes`]
            The outcomes, at least one.

        Returns
        -------
        outcomes : `PairOutcomes`
        """
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("separation", "flux_ratio", "both", "count")
            )
        )

    def recall(self, chosen: NDArray[np.bool_] | None = None) -> Fraction:
        """Compute the share of pairs of which both sources are found.

        Parameters
        ----------
        chosen : `numpy.ndarray`, optional
            The pairs to count, bool, (pair,); by default all.

        Returns
        -------
        recall : `~.binned.Fraction`
            With its 68 % interval.
        """
        both = self.both if chosen is None else self.both[chosen]
        return fraction(int(both.sum()), len(both))

    def surplus(self, chosen: NDArray[np.bool_] | None = None) -> float:
        """Compute how many detections there are to spare, per pair.

        Parameters
        ----------
        chosen : `numpy.ndarray`, optional
            As in `recall`.

        Returns
        -------
        surplus : `float`
            Mean of those beyond two where both were found, and beyond one
            where they were not.
        """
        spare = np.maximum(self.count - np.where(self.both, 2, 1), 0)
        return float(np.mean(spare if chosen is None else spare[chosen]))


def match_pairs(
    centers: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    fwhm: float,
    flux_ratio: ArrayLike,
    *,
    reach: float = 2.0,
) -> PairOutcomes:
    """Say which pairs were found.

    Parameters
    ----------
    centers : array_like
        Centres (x, y) of the detections, px, (detection, 2).
    first, second : array_like
        True positions (x, y) of the brighter and the fainter of each pair,
        px, (pair, 2).
    fwhm : `float`
        FWHM of the PSF, px.
    flux_ratio : array_like
        Flux ratio of each pair, (pair,).
    reach : `float`
        Detections within this many FWHM of either source count as being of
        the pair.

    Returns
    -------
    outcomes : `PairOutcomes`
        A source is found by a detection that lies within half of the pair's
        separation, and within one FWHM, of it: one detection in the middle
        does not find both.

    Notes
    -----
    Positions, not masks, decide: below one FWHM the masks of the two sources
    are nearly the same, and a second detection of the brighter one would
    pass for the fainter one.
    """
    found = np.asarray(centers, dtype=float).reshape(-1, 2)
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    distance = np.hypot(*(a - b).T)
    tolerance = np.minimum(0.5 * distance, fwhm)
    both = np.zeros(len(a), dtype=bool)
    count = np.zeros(len(a), dtype=np.int64)
    if len(found) and len(a):
        to_a, to_b = (np.hypot(*(found[:, None] - side[None]).transpose(2, 0, 1)) for side in (a, b))
        both = (to_a < tolerance).any(axis=0) & (to_b < tolerance).any(axis=0)
        nearest = np.minimum(to_a, to_b)
        pair = nearest.argmin(axis=1)
        near = nearest[np.arange(len(found)), pair] <= reach * fwhm
        count = np.bincount(pair[near], minlength=len(a))
    return PairOutcomes(distance / fwhm, np.asarray(flux_ratio, dtype=float), both, count)


def plot_pair_recall(
    outcomes: Mapping[str, Mapping[str, PairOutcomes]],
    separations: Sequence[float],
    flux_ratios: Sequence[float],
    *,
    ratio_groups: Sequence[tuple[float, float]] = ((1.0, 2.0), (3.0, 10.0)),
    separation_group: tuple[float, float] = (0.9, 1.6),
) -> Figure:
    """Draw recall against separation and flux ratio.

    Parameters
    ----------
    outcomes : `~collections.abc.Mapping`
        Outcomes by kind of pair, then by way of suppression.
    separations, flux_ratios : `~collections.abc.Sequence` [`float`]
        Those that were made; outcomes are taken to the nearest.
    ratio_groups : `~collections.abc.Sequence` [`tuple` [`float`, `float`]]
        Ranges of flux ratios, both ends included, a row of panels against
        separation each.
    separation_group : `tuple` [`float`, `float`]
        Range of separations of the row against flux ratio.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        A column for each kind of pair. Error bars are 68 % intervals.
    """
    kinds = list(outcomes)
    rows = len(ratio_groups) + 1
    figure, axes = make_figure(DOUBLE_COLUMN, 1.9 * rows + 0.3, rows, len(kinds), share_y=True)
    for column, kind in enumerate(kinds):
        for row, (low, high) in enumerate(ratio_groups):
            panel = axes[row * len(kinds) + column]

            def within(item: PairOutcomes, low: float = low, high: float = high) -> NDArray[np.bool_]:
                return (item.flux_ratio >= low) & (item.flux_ratio <= high)

            _draw(panel, outcomes[kind], separations, lambda item: item.separation, within)
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            panel.text(
                0.97, 0.06, f"flux ratio {span}", transform=panel.transAxes, ha="right", fontsize=NOTE_SIZE
            )
            panel.set_xlabel("Separation (FWHM)" if row == len(ratio_groups) - 1 else "")
            if row == 0:
                panel.set_title(kind, fontsize=LABEL_SIZE)
        panel = axes[len(ratio_groups) * len(kinds) + column]
        low, high = separation_group

        def close(item: PairOutcomes, low: float = low, high: float = high) -> NDArray[np.bool_]:
            return (item.separation >= low) & (item.separation <= high)

        _draw(panel, outcomes[kind], flux_ratios, lambda item: item.flux_ratio, close)
        inside = [value for value in separations if low <= value <= high]
        panel.text(
            0.97,
            0.9,
            f"{min(inside):g} to {max(inside):g} FWHM",
            transform=panel.transAxes,
            ha="right",
            fontsize=NOTE_SIZE,
        )
        panel.set_xlabel("Flux ratio")
    for number, panel in enumerate(axes):
        panel.set_ylim(-0.03, 1.05)
        if number % len(kinds) == 0:
            panel.set_ylabel("Both found")
    # The last row has room below its curves, which fall to the right.
    add_legend(axes[-len(kinds)], loc="lower left")
    return figure


def _draw(
    panel: Axes,
    options: Mapping[str, PairOutcomes],
    values: Sequence[float],
    of: Callable[[PairOutcomes], NDArray[np.float64]],
    chosen: Callable[[PairOutcomes], NDArray[np.bool_]],
) -> None:
    """Draw one curve for each way of suppression."""
    grid = np.asarray(values, dtype=float)
    for index, (name, item) in enumerate(options.items()):
        nearest = np.abs(np.log(of(item))[:, None] - np.log(grid)).argmin(axis=1)
        use = chosen(item)
        shares = [item.recall(use & (nearest == k)) for k in range(len(grid))]
        middle = np.array([share.value for share in shares])
        error = np.abs(np.array([(s.value - s.low, s.high - s.value) for s in shares])).T
        style = _STYLES.get(name) or curve_style(name, index)
        # Points that lie on each other are told apart by a shift of 1 per cent.
        panel.errorbar(
            grid * 1.01 ** (index - 0.5 * (len(options) - 1)),
            middle,
            error,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markersize=3.0,
            zorder=3 + index,
            linewidth=LINE_WIDTH,
            elinewidth=0.7,
            label=name,
        )
    labels: list[float] = []
    for value in grid:
        if not labels or value >= _CLOSE_TICKS * labels[-1]:
            labels.append(float(value))
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(labels))
    panel.xaxis.set_minor_locator(FixedLocator([float(value) for value in grid if value not in labels]))
    panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25, linewidth=0.5, which="both")
