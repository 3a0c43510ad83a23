# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Completeness and purity, and the magnitude to which a catalogue is complete."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .binned import BinnedFraction, binned_fraction
from .match_table import MatchTable, detection_rows, matched_rows, truth_rows

__all__ = ["CompletenessLimit", "binned_completeness", "binned_purity", "completeness_limit", "last_crossing"]


@dataclass(frozen=True)
class CompletenessLimit:
    """Where completeness falls to a level.

    Parameters
    ----------
    value : `float`
        The magnitude (or whatever the bins are of); NaN if the level is not
        crossed.
    low, high : `float`
        Where the lower and the upper confidence limits of the completeness
        cross the level; NaN where they do not.
    """

    value: float
    low: float
    high: float


def binned_completeness(
    table: MatchTable,
    column: str,
    edges: ArrayLike,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
) -> BinnedFraction:
    """Compute the share of true sources that were found, in bins.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    column : `str`
        Column of the truth to bin by: ``mag``, ``snr``, ``blendedness``,
        ``neighbor_distance``.
    edges : array_like
        Limits of the bins, (bin + 1,).
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    same_class : `bool`
        A source counts as found only if its class is right too.
    min_score : `float`, optional
        Only detections of at least this score count.

    Returns
    -------
    completeness : `BinnedFraction`
        The shares.
    """
    selected = truth_rows(table, is_star)
    found = matched_rows(table, is_star, same_class=same_class, min_score=min_score)
    values = np.asarray(table[column], dtype=float)
    return binned_fraction(values[selected], found[selected], edges)


def binned_purity(
    table: MatchTable,
    column: str,
    edges: ArrayLike,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
) -> BinnedFraction:
    """Compute the share of detections that are true sources, in bins.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    column : `str`
        Column of the detections to bin by: ``score``, ``flux_detected``,
        ``mag_detected``, ``p_star``.
    edges : array_like
        Limits of the bins, (bin + 1,).
    is_star : `bool`, optional
        Only what was classed as star (`True`) or galaxy (`False`).
    same_class : `bool`
        A detection is true only if its class is right too.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    purity : `BinnedFraction`
        The shares.
    """
    selected = detection_rows(table, is_star, min_score=min_score)
    true = matched_rows(table, same_class=same_class)
    values = np.asarray(table[column], dtype=float)
    return binned_fraction(values[selected], true[selected], edges)


def completeness_limit(binned: BinnedFraction, level: float = 0.5) -> CompletenessLimit:
    """Find the faintest magnitude at which completeness falls through a level.

    Parameters
    ----------
    binned : `BinnedFraction`
        Completeness in bins of magnitude.
    level : `float`
        The completeness at the limit.

    Returns
    -------
    limit : `CompletenessLimit`
        Interpolated linearly between the bins that hold sources.

    Notes
    -----
    A dip among few bright sources is not the limit; see `last_crossing`.
    """
    curves = (binned.fraction, binned.low, binned.high)
    value, low, high = (last_crossing(binned.center, curve, binned.total, level) for curve in curves)
    if not np.isfinite(value):
        low = high = value
    return CompletenessLimit(value, low, high)


def last_crossing(x: ArrayLike, curve: ArrayLike, total: ArrayLike, level: float) -> float:
    """Find where a falling curve goes through a level for good.

    Parameters
    ----------
    x : array_like
        Centres of the bins, ascending, (bin,).
    curve : array_like
        Share in each bin, (bin,).
    total : array_like
        Number of sources in each bin, (bin,); bins without any are passed
        over.
    level : `float`
        The level.

    Returns
    -------
    crossing : `float`
        Interpolated linearly between two bins; NaN if there is none beyond
        which the sources taken together are below the level.

    Examples
    --------
    A dip, then the fall; then the same without the fall:

    >>> last_crossing([20, 21, 22, 23], [0.0, 1.0, 1.0, 0.0], [1, 9, 9, 9], 0.5)
    22.5
    >>> last_crossing([20, 21, 22, 23], [1.0, 0.0, 1.0, 1.0], [1, 1, 9, 9], 0.5)
    nan
    """
    number = np.asarray(total, dtype=float)
    filled = number > 0
    places, shares = np.asarray(x, dtype=float)[filled], np.asarray(curve, dtype=float)[filled]
    number = number[filled]
    for i in np.flatnonzero((shares[:-1] >= level) & (shares[1:] < level))[::-1].tolist():
        if np.average(shares[i + 1 :], weights=number[i + 1 :]) < level:
            step = (shares[i] - level) / (shares[i] - shares[i + 1])
            return float(places[i] + step * (places[i + 1] - places[i]))
    return float("nan")
