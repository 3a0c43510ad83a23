# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Completeness and purity, and the magnitude to which a catalogue is complete."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike, NDArray

from .binned import ONE_SIGMA, BinnedFraction, Fraction, binned_fraction, fraction
from .match_table import MatchTable, detection_rows, matched_rows, truth_rows

__all__ = [
    "CompletenessFit",
    "CompletenessLimit",
    "binned_completeness",
    "binned_purity",
    "completeness",
    "completeness_limit",
    "fit_completeness",
    "last_crossing",
    "purity",
]


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


@dataclass(frozen=True)
class CompletenessFit:
    r"""A falling logistic curve.

    Parameters
    ----------
    plateau : `float`
        Completeness of bright sources, c.
    midpoint : `float`
        Magnitude where the completeness is half the plateau, m0.
    width : `float`
        Scale of the fall, w (mag).
    limit : `float`
        Magnitude where the completeness is ``level``; NaN if the plateau is
        lower or the sources do not reach that far.
    limit_error : `float`
        Standard error of the limit.
    level : `float`
        The completeness at the limit.

    Notes
    -----
    :math:`p(m) = c / (1 + \exp((m - m_0) / w))`.
    """

    plateau: float
    midpoint: float
    width: float
    limit: float
    limit_error: float
    level: float

    def __call__(self, mag: ArrayLike) -> NDArray[np.float64]:
        """Compute the completeness at given magnitudes.

        Parameters
        ----------
        mag : array_like
            Magnitudes.

        Returns
        -------
        completeness : `numpy.ndarray`
            Between 0 and 1, of the shape of ``mag``.
        """
        mag = np.asarray(mag, dtype=float)
        return self.plateau * scipy.special.expit((self.midpoint - mag) / self.width)


def completeness(
    table: MatchTable,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
) -> Fraction:
    """Compute the share of true sources that were found.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    same_class : `bool`
        A source counts as found only if its class is right too.
    min_score : `float`, optional
        Only detections of at least this score count.
    level : `float`
        Confidence level of the interval.

    Returns
    -------
    completeness : `Fraction`
        The share.
    """
    found = matched_rows(table, is_star, same_class=same_class, min_score=min_score)
    return fraction(int(found.sum()), int(truth_rows(table, is_star).sum()), level=level)


def purity(
    table: MatchTable,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
) -> Fraction:
    """Compute the share of detections that are true sources.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only what was classed as star (`True`) or galaxy (`False`).
    same_class : `bool`
        A detection is true only if its class is right too.
    min_score : `float`, optional
        Only detections of at least this score.
    level : `float`
        Confidence level of the interval.

    Returns
    -------
    purity : `Fraction`
        The share.
    """
    counted = detection_rows(table, is_star, min_score=min_score)
    true = counted & matched_rows(table, same_class=same_class)
    return fraction(int(true.sum()), int(counted.sum()), level=level)


def binned_completeness(
    table: MatchTable,
    column: str,
    edges: ArrayLike,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
    method: str = "wilson",
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
    level : `float`
        Confidence level of the intervals.
    method : `str`
        See `binned.binomial_interval`.

    Returns
    -------
    completeness : `BinnedFraction`
        The shares.
    """
    selected = truth_rows(table, is_star)
    found = matched_rows(table, is_star, same_class=same_class, min_score=min_score)
    values = np.asarray(table[column], dtype=float)
    return binned_fraction(values[selected], found[selected], edges, level=level, method=method)


def binned_purity(
    table: MatchTable,
    column: str,
    edges: ArrayLike,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
    method: str = "wilson",
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
    level : `float`
        Confidence level of the intervals.
    method : `str`
        See `binned.binomial_interval`.

    Returns
    -------
    purity : `BinnedFraction`
        The shares.
    """
    selected = detection_rows(table, is_star, min_score=min_score)
    true = matched_rows(table, same_class=same_class)
    values = np.asarray(table[column], dtype=float)
    return binned_fraction(values[selected], true[selected], edges, level=level, method=method)


def completeness_limit(binned: BinnedFraction, level: float = 0.5) -> CompletenessLimit:
    """Find the faintest magnitude at which completeness falls through a level.

    Parameters
    ----------
    binned : `BinnedFraction`
        Completeness in bins of magnitude.
    level : `float`
        The completeness looked for.

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


def fit_completeness(mag: ArrayLike, found: ArrayLike, level: float = 0.5) -> CompletenessFit:
    """Fit a falling curve to which sources were found.

    Parameters
    ----------
    mag : array_like
        Magnitudes of the true sources; NaN is left out, (source,).
    found : array_like
        Whether each was found, bool, (source,).
    level : `float`
        The completeness at the limit.

    Returns
    -------
    fit : `CompletenessFit`
        The curve of the largest likelihood; all NaN for fewer than ten
        sources or where all or none were found, which set no limit.

    Raises
    ------
    ValueError
        Raised if the lengths differ.

    Notes
    -----
    Unbinned maximum likelihood of Bernoulli trials; the error is from the
    expected Fisher information.
    """
    values, hit = np.asarray(mag, dtype=float), np.asarray(found, dtype=bool)
    if values.shape != hit.shape or values.ndim != 1:
        raise ValueError(f"One answer per magnitude is needed; given were {values.shape} and {hit.shape}.")
    finite = np.isfinite(values)
    values, hit = values[finite], hit[finite]
    if len(values) < 10 or hit.all() or not hit.any():
        nan = float("nan")
        return CompletenessFit(nan, nan, nan, nan, nan, level)
    # Near the data's middle and in its width, the three parameters are of order one.
    middle, spread = float(np.median(values)), max(float(np.std(values)), 1e-3)
    scaled = (values - middle) / spread

    def negative_log_likelihood(
        parameters: NDArray[np.float64],
    ) -> tuple[float, NDArray[np.float64]]:
        share = np.clip(_logistic(scaled, parameters), 1e-12, 1.0 - 1e-12)
        slope = np.where(hit, 1.0 / share, -1.0 / (1.0 - share))
        likelihood = np.log(np.where(hit, share, 1.0 - share)).sum()
        return -float(likelihood), -(slope @ _jacobian(scaled, parameters))

    bounds = [(-8.0, 8.0), (-5.0, 5.0), (-6.0, 3.0)]
    # The likelihood may have a second, lower maximum with a step between two sources.
    best = min(
        (
            scipy.optimize.minimize(
                negative_log_likelihood,
                np.array([3.0, start, -1.5]),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
            )
            for start in (-0.7, 0.5, 1.5)
        ),
        key=lambda result: result.fun,
    )
    a, b, log_width = (float(value) for value in best.x)
    plateau, width = float(scipy.special.expit(a)), float(np.exp(log_width))
    limit = error = float("nan")
    if plateau > level:
        limit = b + width * float(np.log(plateau / level - 1.0))
        error = _limit_error(scaled, best.x, limit)
    if not scaled.min() <= limit <= scaled.max():
        limit = error = float("nan")
    return CompletenessFit(
        plateau, middle + spread * b, spread * width, middle + spread * limit, spread * error, level
    )


def _logistic(x: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, log_width = parameters
    return scipy.special.expit(a) * scipy.special.expit((b - x) / np.exp(log_width))


def _limit_error(x: NDArray[np.float64], parameters: NDArray[np.float64], limit: float) -> float:
    share = _logistic(x, parameters)
    jacobian = _jacobian(x, parameters)
    weight = 1.0 / np.maximum(share * (1.0 - share), 1e-12)
    covariance = np.linalg.pinv(jacobian.T @ (weight[:, None] * jacobian), hermitian=True)
    at_limit = np.array([limit])
    gradient = _jacobian(at_limit, parameters)[0]
    share_at = float(_logistic(at_limit, parameters)[0])
    a, _, log_width = parameters
    slope = -share_at * (1.0 - share_at / scipy.special.expit(a)) / np.exp(log_width)
    # The level is fixed, so a change of the curve there moves the limit by change / slope.
    return float(np.sqrt(max(gradient @ covariance @ gradient, 0.0)) / abs(slope))


def _jacobian(x: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, log_width = parameters
    width = np.exp(log_width)
    plateau, fall = scipy.special.expit(a), scipy.special.expit((b - x) / width)
    steep = plateau * fall * (1.0 - fall)
    return np.stack([plateau * (1.0 - plateau) * fall, steep / width, -steep * (b - x) / width], axis=1)
