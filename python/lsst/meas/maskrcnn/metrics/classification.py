# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well stars and galaxies are separated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from .binned import BinnedFraction, binned_fraction
from .match_table import MatchTable, matched_rows

__all__ = [
    "RocCurve",
    "binned_class_completeness",
    "blend_cases",
    "confusion_matrix",
    "magnitude_rocs",
    "roc_curve",
]

# Matched sources from which on the curve is drawn for three ranges of magnitude too.
_FEWEST_FOR_THIRDS = 30


@dataclass(frozen=True)
class RocCurve:
    """Stars kept against galaxies let through, over all thresholds.

    Parameters
    ----------
    false_positive : `numpy.ndarray`
        Share of the galaxies at or above the threshold, ascending,
        (threshold,).
    true_positive : `numpy.ndarray`
        Share of the stars at or above the threshold, (threshold,).
    threshold : `numpy.ndarray`
        Probabilities, descending from infinity (nothing passes),
        (threshold,).
    area : `float`
        Area under the curve: the probability that a star is given a larger
        value than a galaxy; NaN if either is missing.
    n_star, n_galaxy : `int`
        Number of sources.
    """

    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    threshold: NDArray[np.float64]
    area: float
    n_star: int
    n_galaxy: int


def confusion_matrix(table: MatchTable, *, min_score: float | None = None) -> NDArray[np.int64]:
    """Count true classes against those given.

    Parameters
    ----------
    table : `MatchTable`
        The match table; its matching must not have asked for equal classes.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    counts : `numpy.ndarray`
        Number of matched sources by true class (row) and class given
        (column), each in the order star, galaxy; int64, (2, 2).
    """
    rows = matched_rows(table, min_score=min_score)
    truth = np.asarray(table["truth_is_star"], dtype=bool)[rows]
    given = np.asarray(table["detected_is_star"], dtype=bool)[rows]
    return np.bincount(2 * ~truth + 1 * ~given, minlength=4).reshape(2, 2)


def binned_class_completeness(
    table: MatchTable, edges: ArrayLike, is_star: bool, *, min_score: float | None = None
) -> BinnedFraction:
    """Compute the share of true stars or galaxies that are classed as such.

    Parameters
    ----------
    table : `MatchTable`
        The match table; its matching must not have asked for equal classes.
    edges : array_like
        Limits of the bins of the true magnitude, (bin + 1,).
    is_star : `bool`
        Of stars or of galaxies.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    shares : `BinnedFraction`
        Of the matched sources.
    """
    rows = matched_rows(table, is_star, min_score=min_score)
    right = np.asarray(table["detected_is_star"], dtype=bool)[rows] == is_star
    return binned_fraction(np.asarray(table["mag"], dtype=float)[rows], right, edges)


def roc_curve(p_star: ArrayLike, is_star: ArrayLike) -> RocCurve:
    """Compute the receiver operating characteristic of a star probability.

    Parameters
    ----------
    p_star : array_like
        Probability of being a star, or anything that grows with it; NaN is
        left out, (source,).
    is_star : array_like
        Whether each source is a star, bool, (source,).

    Returns
    -------
    curve : `RocCurve`
        The curve; with NaN shares of a class that has no source.

    Raises
    ------
    ValueError
        Raised if the lengths differ.

    Notes
    -----
    Sources of equal probability enter together, so that the area is the
    Mann-Whitney statistic with ties counted half.

    Examples
    --------
    >>> roc_curve([0.9, 0.6, 0.6, 0.1], [True, True, False, False]).area
    0.875
    """
    p, star = np.asarray(p_star, dtype=float), np.asarray(is_star, dtype=bool)
    if p.shape != star.shape or p.ndim != 1:
        raise ValueError(f"One class per probability is needed; given were {p.shape}, {star.shape}.")
    known = ~np.isnan(p)
    p, star = p[known], star[known]
    order = np.argsort(-p, kind="stable")
    sorted_p = p[order]
    last = np.append(np.diff(sorted_p) != 0, True)[: len(sorted_p)]
    stars, galaxies = np.cumsum(star[order])[last], np.cumsum(~star[order])[last]
    n_star, n_galaxy = int(star.sum()), int((~star).sum())
    nan = np.full(len(stars) + 1, np.nan)
    true_positive = np.append(0.0, stars) / n_star if n_star else nan
    false_positive = np.append(0.0, galaxies) / n_galaxy if n_galaxy else nan
    area = float("nan")
    if n_star and n_galaxy:
        ranks = scipy.stats.rankdata(p)
        area = float((ranks[star].mean() - 0.5 * (n_star + 1)) / n_galaxy)
    threshold = np.append(np.inf, sorted_p[last])
    return RocCurve(false_positive, true_positive, threshold, area, n_star, n_galaxy)


def blend_cases(
    table: MatchTable, *, kept: float = 0.9, min_score: float | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the matched sources of which ``p_blend`` can be judged, and the clean ones.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    kept : `float`
        Share of the sources that is called clean, those of the lowest ``p_blend``.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    rows, clean : `numpy.ndarray`
        Whether each row of the table is such a source, and a clean one, bool,
        (row,).
    """
    p_blend = np.asarray(table["p_blend"], dtype=float)
    rows = matched_rows(table, min_score=min_score) & np.isfinite(p_blend) & np.isfinite(table["blended"])
    limit = np.quantile(p_blend[rows], kept) if rows.any() else np.nan
    return rows, rows & (p_blend <= limit)


def magnitude_rocs(table: MatchTable, *, min_score: float | None = None) -> dict[str, RocCurve]:
    """Compute the curves of ``p_star`` of all matched sources and by magnitude.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    curves : `dict` [`str`, `RocCurve`]
        That of ``all`` and, of thirty sources or more, those of three ranges
        of the true magnitude with as many sources each.
    """
    rows = matched_rows(table, min_score=min_score)
    p_star = np.asarray(table["p_star"], dtype=float)[rows]
    is_star = np.asarray(table["truth_is_star"], dtype=bool)[rows]
    mags = np.asarray(table["mag"], dtype=float)[rows]
    curves = {"all": roc_curve(p_star, is_star)}
    known = np.isfinite(mags)
    if known.sum() >= _FEWEST_FOR_THIRDS:
        edges = np.unique(np.quantile(mags[known], [0.0, 1 / 3, 2 / 3, 1.0]))
        index = np.clip(np.searchsorted(edges, mags, side="right") - 1, 0, len(edges) - 2)
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
            inside = known & (index == i)
            curves[f"{low:.1f} to {high:.1f} mag"] = roc_curve(p_star[inside], is_star[inside])
    return curves
