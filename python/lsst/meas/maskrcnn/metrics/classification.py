# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well stars and galaxies are told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from .binned import ONE_SIGMA, BinnedFraction, Fraction, binned_fraction, fraction
from .match_table import MatchTable, matched_rows

__all__ = [
    "BinnedConfusion",
    "Confusion",
    "RocCurve",
    "binned_confusion",
    "binned_roc",
    "confusion",
    "confusion_matrix",
    "roc_curve",
    "star_roc",
]


@dataclass(frozen=True)
class Confusion:
    """True classes against those given.

    Parameters
    ----------
    counts : `numpy.ndarray`
        Number of sources by true class (row) and class given (column), each
        in the order star, galaxy; int64, (2, 2).
    accuracy : `Fraction`
        Sources of the right class.
    star_completeness, galaxy_completeness : `Fraction`
        True stars (galaxies) classed as such.
    star_purity, galaxy_purity : `Fraction`
        Sources classed as star (galaxy) that are such.
    """

    counts: NDArray[np.int64]
    accuracy: Fraction
    star_completeness: Fraction
    galaxy_completeness: Fraction
    star_purity: Fraction
    galaxy_purity: Fraction


@dataclass(frozen=True)
class BinnedConfusion:
    """True classes against those given, in bins.

    Parameters
    ----------
    counts : `numpy.ndarray`
        As in `Confusion`, int64, (bin, 2, 2).
    accuracy : `BinnedFraction`
        Sources of the right class.
    star_completeness, galaxy_completeness : `BinnedFraction`
        True stars (galaxies) classed as such.
    star_purity, galaxy_purity : `BinnedFraction`
        Sources classed as star (galaxy) that are such.
    """

    counts: NDArray[np.int64]
    accuracy: BinnedFraction
    star_completeness: BinnedFraction
    galaxy_completeness: BinnedFraction
    star_purity: BinnedFraction
    galaxy_purity: BinnedFraction


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
    low, high : `float`
        Limits of the confidence interval of the area.
    n_star, n_galaxy : `int`
        Number of sources.
    """

    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    threshold: NDArray[np.float64]
    area: float
    low: float
    high: float
    n_star: int
    n_galaxy: int


def confusion_matrix(truth_is_star: ArrayLike, detected_is_star: ArrayLike) -> NDArray[np.int64]:
    """Count true classes against those given.

    Parameters
    ----------
    truth_is_star, detected_is_star : array_like
        Whether each source is a star, and was classed as one, bool,
        (source,).

    Returns
    -------
    counts : `numpy.ndarray`
        Number of sources by true class (row) and class given (column), each
        in the order star, galaxy; int64, (2, 2).

    Raises
    ------
    ValueError
        Raised if the lengths differ.

    Examples
    --------
    >>> confusion_matrix([True, True, False], [True, False, False])
    array([[1, 1],
           [0, 1]])
    """
    truth, given = np.asarray(truth_is_star, dtype=bool), np.asarray(detected_is_star, dtype=bool)
    if truth.shape != given.shape or truth.ndim != 1:
        raise ValueError(f"Both classes are needed of every source; given were {truth.shape}, {given.shape}.")
    return np.bincount(2 * ~truth + 1 * ~given, minlength=4).reshape(2, 2)


def confusion(table: MatchTable, *, min_score: float | None = None, level: float = ONE_SIGMA) -> Confusion:
    """Compare the classes of all matched sources.

    Parameters
    ----------
    table : `MatchTable`
        The match table; its matching must not have asked for equal classes.
    min_score : `float`, optional
        Only detections of at least this score.
    level : `float`
        Confidence level of the intervals.

    Returns
    -------
    confusion : `Confusion`
        Counts and shares.
    """
    rows = matched_rows(table, min_score=min_score)
    counts = confusion_matrix(
        np.asarray(table["truth_is_star"])[rows], np.asarray(table["detected_is_star"])[rows]
    )
    right, by_truth, by_given = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    shares = [
        fraction(int(hits), int(total), level=level)
        for hits, total in ((right.sum(), counts.sum()), *zip(right, by_truth), *zip(right, by_given))
    ]
    return Confusion(counts, *shares)


def binned_confusion(
    table: MatchTable,
    edges: ArrayLike,
    column: str = "mag",
    *,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
    method: str = "wilson",
) -> BinnedConfusion:
    """Compare the classes of matched sources in bins.

    Parameters
    ----------
    table : `MatchTable`
        The match table; its matching must not have asked for equal classes.
    edges : array_like
        Limits of the bins, (bin + 1,).
    column : `str`
        What to bin by.
    min_score : `float`, optional
        Only detections of at least this score.
    level : `float`
        Confidence level of the intervals.
    method : `str`
        See `binned.binomial_interval`.

    Returns
    -------
    confusion : `BinnedConfusion`
        Counts and shares.
    """
    rows = matched_rows(table, min_score=min_score)
    values = np.asarray(table[column], dtype=float)[rows]
    truth = np.asarray(table["truth_is_star"], dtype=bool)[rows]
    given = np.asarray(table["detected_is_star"], dtype=bool)[rows]

    def share(selected: NDArray[np.bool_]) -> BinnedFraction:
        right = truth[selected] == given[selected]
        return binned_fraction(values[selected], right, edges, level=level, method=method)

    everything = np.ones(len(values), dtype=bool)
    shares = [share(selected) for selected in (everything, truth, ~truth, given, ~given)]
    stars, galaxies = shares[1], shares[2]
    counts = np.stack(
        [stars.hits, stars.total - stars.hits, galaxies.total - galaxies.hits, galaxies.hits], axis=1
    ).reshape(-1, 2, 2)
    return BinnedConfusion(counts, *shares)


def roc_curve(p_star: ArrayLike, is_star: ArrayLike, *, level: float = ONE_SIGMA) -> RocCurve:
    """Compute the receiver operating characteristic of a star probability.

    Parameters
    ----------
    p_star : array_like
        Probability of being a star, or anything that grows with it; NaN is
        left out, (source,).
    is_star : array_like
        Whether each source is a star, bool, (source,).
    level : `float`
        Confidence level of the area.

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
    Mann-Whitney statistic with ties counted half. Its variance is that of
    DeLong, DeLong & Clarke-Pearson (1988, Biometrics 44, 837), in ranks (Sun
    & Xu 2014, IEEE SPL 21, 1389); the interval is symmetric in the logit of
    the area and so within 0 and 1.

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
    area, low, high = _area(p[star], p[~star], level)
    threshold = np.append(np.inf, sorted_p[last])
    return RocCurve(false_positive, true_positive, threshold, area, low, high, n_star, n_galaxy)


def star_roc(table: MatchTable, *, min_score: float | None = None, level: float = ONE_SIGMA) -> RocCurve:
    """Compute the curve of ``p_star`` of all matched sources.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    min_score : `float`, optional
        Only detections of at least this score.
    level : `float`
        Confidence level of the area.

    Returns
    -------
    curve : `RocCurve`
        The curve.
    """
    rows = matched_rows(table, min_score=min_score)
    return roc_curve(np.asarray(table["p_star"])[rows], np.asarray(table["truth_is_star"])[rows], level=level)


def binned_roc(
    table: MatchTable,
    edges: ArrayLike,
    column: str = "mag",
    *,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
) -> list[RocCurve]:
    """Compute the curve of ``p_star`` in bins.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    edges : array_like
        Limits of the bins, (bin + 1,).
    column : `str`
        What to bin by.
    min_score : `float`, optional
        Only detections of at least this score.
    level : `float`
        Confidence level of the areas.

    Returns
    -------
    curves : `list` [`RocCurve`]
        One per bin; a bin holds its lower limit, the last one both.
    """
    rows = matched_rows(table, min_score=min_score)
    values = np.asarray(table[column], dtype=float)[rows]
    p_star = np.asarray(table["p_star"], dtype=float)[rows]
    is_star = np.asarray(table["truth_is_star"], dtype=bool)[rows]
    edges = np.asarray(edges, dtype=float)
    curves = []
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        inside = (values >= low) & (values < high)
        if i == len(edges) - 2:
            inside |= values == high
        curves.append(roc_curve(p_star[inside], is_star[inside], level=level))
    return curves


def _area(
    stars: NDArray[np.float64], galaxies: NDArray[np.float64], level: float
) -> tuple[float, float, float]:
    n_star, n_galaxy = len(stars), len(galaxies)
    if not n_star or not n_galaxy:
        return float("nan"), float("nan"), float("nan")
    ranks = scipy.stats.rankdata(np.concatenate([stars, galaxies]))
    # Share of the galaxies below each star, and of the stars above each galaxy.
    above = (ranks[:n_star] - scipy.stats.rankdata(stars)) / n_galaxy
    below = 1.0 - (ranks[n_star:] - scipy.stats.rankdata(galaxies)) / n_star
    area = float(above.mean())
    if n_star < 2 or n_galaxy < 2:
        return area, 0.0, 1.0
    error = float(np.sqrt(above.var(ddof=1) / n_star + below.var(ddof=1) / n_galaxy))
    if area in (0.0, 1.0):
        # Complete separation has no variance: the binomial limit for no failure in the smaller class.
        reach = 1.0 - (0.5 - 0.5 * level) ** (1.0 / min(n_star, n_galaxy))
        return area, max(0.0, area - reach), min(1.0, area + reach)
    half = float(scipy.special.ndtri(0.5 + 0.5 * level)) * error / (area * (1.0 - area))
    middle = float(scipy.special.logit(area))
    return area, float(scipy.special.expit(middle - half)), float(scipy.special.expit(middle + half))
