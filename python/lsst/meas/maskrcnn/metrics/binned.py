# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fractions and robust statistics in bins, with their uncertainties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MAD_TO_SIGMA",
    "OUTLIER_SIGMA",
    "BinnedFraction",
    "BinnedStatistics",
    "Fraction",
    "binned_fraction",
    "binned_statistics",
    "binomial_interval",
    "even_edges",
    "fraction",
    "log_edges",
    "robust_statistics",
    "weighted_median",
]

MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation over median absolute deviation of a normal distribution."""

OUTLIER_SIGMA = 3.0
"""Values further from the median than this many scatters are outliers."""


@dataclass(frozen=True)
class Fraction:
    """A share of a number of sources.

    Parameters
    ----------
    hits, total : `int`
        Sources that count, and all of them.
    value : `float`
        Their ratio; NaN without sources.
    low, high : `float`
        Limits of the confidence interval.
    """

    hits: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BinnedFraction:
    """A share of sources in bins of some quantity.

    Parameters
    ----------
    edges : `numpy.ndarray`
        Limits of the bins, ascending, (bin + 1,).
    center : `numpy.ndarray`
        Median of the quantity of the sources in each bin; the middle of the
        bin where there is no source, (bin,).
    hits, total : `numpy.ndarray`
        Sources that count and all of them, int64, (bin,).
    fraction : `numpy.ndarray`
        Their ratio; NaN in an empty bin, (bin,).
    low, high : `numpy.ndarray`
        Limits of the confidence interval; NaN in an empty bin, (bin,).
    """

    edges: NDArray[np.float64]
    center: NDArray[np.float64]
    hits: NDArray[np.int64]
    total: NDArray[np.int64]
    fraction: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def columns(self) -> dict[str, NDArray]:
        """Give the bins as columns of a table.

        Returns
        -------
        columns : `dict` [`str`, `numpy.ndarray`]
            One row per bin; the edges as ``bin_low`` and ``bin_high``.
        """
        return {
            "bin_low": self.edges[:-1],
            "bin_high": self.edges[1:],
            "center": self.center,
            "hits": self.hits,
            "total": self.total,
            "fraction": self.fraction,
            "low": self.low,
            "high": self.high,
        }


@dataclass(frozen=True)
class RobustStatistics:
    """Centre, width and outliers of a sample.

    Parameters
    ----------
    n : `int`
        Number of finite values.
    median : `float`
        Median; NaN without values.
    median_error : `float`
        Standard error of the median of a normal distribution of this width,
        sqrt(pi / 2) scatter / sqrt(n).
    scatter : `float`
        1.4826 times the median absolute deviation from the median: the
        standard deviation of a normal distribution.
    outliers : `Fraction`
        Values further from the median than `OUTLIER_SIGMA` scatters.
    """

    n: int
    median: float
    median_error: float
    scatter: float
    outliers: Fraction


@dataclass(frozen=True)
class BinnedStatistics:
    """Robust statistics of a quantity in bins of another.

    Parameters
    ----------
    edges : `numpy.ndarray`
        Limits of the bins, ascending, (bin + 1,).
    center : `numpy.ndarray`
        Median of the binned quantity in each bin; the middle of the bin
        where there is no source, (bin,).
    n : `numpy.ndarray`
        Number of values, int64, (bin,).
    median, median_error, scatter : `numpy.ndarray`
        As in `RobustStatistics`; NaN in an empty bin, (bin,).
    outliers : `BinnedFraction`
        Values further from their bin's median than `OUTLIER_SIGMA` of the
        bin's scatters.
    """

    edges: NDArray[np.float64]
    center: NDArray[np.float64]
    n: NDArray[np.int64]
    median: NDArray[np.float64]
    median_error: NDArray[np.float64]
    scatter: NDArray[np.float64]
    outliers: BinnedFraction

    def columns(self) -> dict[str, NDArray]:
        """Give the bins as columns of a table.

        Returns
        -------
        columns : `dict` [`str`, `numpy.ndarray`]
            One row per bin; the edges as ``bin_low`` and ``bin_high``.
        """
        return {
            "bin_low": self.edges[:-1],
            "bin_high": self.edges[1:],
            "center": self.center,
            "n": self.n,
            "median": self.median,
            "median_error": self.median_error,
            "scatter": self.scatter,
            "outlier_fraction": self.outliers.fraction,
            "outlier_low": self.outliers.low,
            "outlier_high": self.outliers.high,
        }


_ONE_SIGMA = 0.6826894921370859
"""Probability within one standard deviation of a normal distribution."""


def binomial_interval(hits: ArrayLike, total: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the limits of a share at one standard deviation.

    Parameters
    ----------
    hits, total : array_like
        Number that count and number of all, any shape, 0 <= hits <= total.

    Returns
    -------
    low, high : `numpy.ndarray`
        The limits; NaN where ``total`` is 0.

    Raises
    ------
    ValueError
        Raised if a number is negative or there are more hits than all.

    Notes
    -----
    The score interval (Wilson 1927, JASA 22, 209). It holds its level on
    average near 0 and 1 too, where the normal approximation does not (Brown,
    Cai & DasGupta 2001, Stat. Sci. 16, 101).

    Examples
    --------
    >>> low, high = binomial_interval(0, 10)
    >>> round(float(low), 3), round(float(high), 3)
    (0.0, 0.091)
    """
    hits, total = np.broadcast_arrays(np.asarray(hits, dtype=float), np.asarray(total, dtype=float))
    if np.any(hits < 0) or np.any(hits > total):
        raise ValueError("Hits must lie between 0 and the total in every bin.")
    # To import it takes as long as all else here.
    from astropy.stats import binom_conf_interval

    limits = binom_conf_interval(hits, np.maximum(total, 1.0), _ONE_SIGMA, "wilson")
    low, high = np.where(total > 0, limits, np.nan)
    return low, high


def fraction(hits: int, total: int) -> Fraction:
    """Compute one share and its confidence interval.

    Parameters
    ----------
    hits, total : `int`
        Number that count and number of all.

    Returns
    -------
    fraction : `Fraction`
        The share; NaN without sources.
    """
    low, high = binomial_interval(hits, total)
    value = float(hits) / float(total) if total else float("nan")
    return Fraction(int(hits), int(total), value, float(low), float(high))


def binned_fraction(values: ArrayLike, hit: ArrayLike, edges: ArrayLike) -> BinnedFraction:
    """Compute a share in bins.

    Parameters
    ----------
    values : array_like
        Quantity to bin by, (source,). NaN and values outside the edges are
        left out.
    hit : array_like
        Whether a source counts, bool, (source,).
    edges : array_like
        Limits of the bins, ascending; may be infinite, (bin + 1,). A bin
        holds its lower limit, the last one both.

    Returns
    -------
    binned : `BinnedFraction`
        The shares.

    Raises
    ------
    ValueError
        Raised if the lengths differ or the edges do not ascend.
    """
    values, edges, index = _bin_index(values, edges)
    hit = np.asarray(hit, dtype=bool)
    if hit.shape != values.shape:
        raise ValueError(f"Values and hits must be of one shape; given were {values.shape} and {hit.shape}.")
    n_bins = len(edges) - 1
    inside = index >= 0
    total = np.bincount(index[inside], minlength=n_bins)
    hits = np.bincount(index[inside & hit], minlength=n_bins)
    low, high = binomial_interval(hits, total)
    share = divide(hits, total)
    return BinnedFraction(edges, _centers(values, index, edges), hits, total, share, low, high)


def robust_statistics(values: ArrayLike) -> RobustStatistics:
    """Compute the median, the scatter and the share of outliers.

    Parameters
    ----------
    values : array_like
        The sample; values that are not finite are left out.

    Returns
    -------
    statistics : `RobustStatistics`
        The statistics; NaN without values.

    Examples
    --------
    >>> result = robust_statistics([1.0, 2.0, 3.0, 4.0, 100.0])
    >>> result.median, round(result.scatter, 4), result.outliers.hits
    (3.0, 1.4826, 1)
    """
    sample = np.asarray(values, dtype=float).ravel()
    sample = sample[np.isfinite(sample)]
    n = len(sample)
    if n == 0:
        nan = float("nan")
        return RobustStatistics(0, nan, nan, nan, fraction(0, 0))
    median = float(np.median(sample))
    deviation = np.abs(sample - median)
    scatter = MAD_TO_SIGMA * float(np.median(deviation))
    outliers = int(np.count_nonzero(deviation > OUTLIER_SIGMA * scatter))
    error = float(np.sqrt(0.5 * np.pi / n)) * scatter
    return RobustStatistics(n, median, error, scatter, fraction(outliers, n))


def binned_statistics(x: ArrayLike, values: ArrayLike, edges: ArrayLike) -> BinnedStatistics:
    """Compute robust statistics of a quantity in bins of another.

    Parameters
    ----------
    x : array_like
        Quantity to bin by, (source,).
    values : array_like
        Quantity of which the statistics are, (source,). Sources where either
        is NaN are left out.
    edges : array_like
        Limits of the bins, as for `binned_fraction`, (bin + 1,).

    Returns
    -------
    binned : `BinnedStatistics`
        The statistics.

    Raises
    ------
    ValueError
        Raised if the lengths differ or the edges do not ascend.
    """
    x, edges, index = _bin_index(x, edges)
    values = np.asarray(values, dtype=float)
    if values.shape != x.shape:
        raise ValueError(f"Both quantities must be of one shape; given were {x.shape} and {values.shape}.")
    index = np.where(np.isfinite(values), index, -1)
    parts = [robust_statistics(part) for part in _split(values, index, edges)]
    center = _centers(x, index, edges)
    n = np.array([part.n for part in parts], dtype=np.int64)
    hits = np.array([part.outliers.hits for part in parts], dtype=np.int64)
    share, low, high = (
        np.array([getattr(part.outliers, name) for part in parts]) for name in ("value", "low", "high")
    )
    return BinnedStatistics(
        edges,
        center,
        n,
        np.array([part.median for part in parts]),
        np.array([part.median_error for part in parts]),
        np.array([part.scatter for part in parts]),
        BinnedFraction(edges, center, hits, n, share, low, high),
    )


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute medians of values that count several times.

    Parameters
    ----------
    values : `numpy.ndarray`
        The values, (N,), or (B, N) if they differ between the medians.
    weights : `numpy.ndarray`
        How often each counts, (B, N).

    Returns
    -------
    medians : `numpy.ndarray`
        The middle value, or the mean of the two in the middle, (B,); NaN
        where all weights are 0.

    Examples
    --------
    >>> weighted_median(np.array([3.0, 1.0, 2.0]), np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]))
    array([2. , 2.5])
    """
    if not values.shape[-1]:
        return np.full(len(weights), np.nan)
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.broadcast_to(np.take_along_axis(values, order, axis=-1), weights.shape)
    total = np.cumsum(np.take_along_axis(weights, np.broadcast_to(order, weights.shape), axis=1), axis=1)
    half = 0.5 * total[:, -1:]
    rows = np.arange(len(weights))
    median = 0.5 * (ordered[rows, np.argmax(total >= half, axis=1)])
    median += 0.5 * ordered[rows, np.argmax(total > half, axis=1)]
    return np.where(half[:, 0] > 0, median, np.nan)


def even_edges(values: ArrayLike, width: float = 0.5) -> NDArray[np.float64]:
    """Choose bins of one width, at multiples of it, that hold all values.

    Parameters
    ----------
    values : array_like
        The values; those that are not finite are left out.
    width : `float`
        Width of a bin, in the unit of the values.

    Returns
    -------
    edges : `numpy.ndarray`
        Limits of the bins, at least two, (bin + 1,).

    Raises
    ------
    ValueError
        Raised if the width is not positive.

    Examples
    --------
    >>> even_edges([20.2, 21.7])
    array([20. , 20.5, 21. , 21.5, 22. ])
    """
    if not width > 0.0:
        raise ValueError(f"Bins need a positive width; given was {width}.")
    sample = np.asarray(values, dtype=float).ravel()
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return np.array([0.0, width])
    first = int(np.floor(sample.min() / width))
    last = max(int(np.ceil(sample.max() / width)), first + 1)
    return width * np.arange(first, last + 1, dtype=np.float64)


def log_edges(values: ArrayLike, per_decade: int = 4) -> NDArray[np.float64]:
    """Choose bins of one width in the logarithm that hold all positive values.

    Parameters
    ----------
    values : array_like
        The values; those that are not finite and positive are left out.
    per_decade : `int`
        Bins in a factor of ten.

    Returns
    -------
    edges : `numpy.ndarray`
        Limits of the bins, at least two, (bin + 1,).
    """
    sample = np.asarray(values, dtype=float).ravel()
    sample = sample[np.isfinite(sample) & (sample > 0.0)]
    return 10.0 ** even_edges(np.log10(sample), 1.0 / per_decade)


def divide(above: ArrayLike, below: ArrayLike) -> NDArray[np.float64]:
    """Divide numbers of shapes that fit each other; NaN where there is nothing to divide by."""
    top, bottom = np.broadcast_arrays(np.asarray(above, dtype=float), np.asarray(below, dtype=float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def _bin_index(
    values: ArrayLike, edges: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    # Bin of each value, -1 outside.
    values, edges = np.asarray(values, dtype=float), np.asarray(edges, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"Values must be one-dimensional; given was the shape {values.shape}.")
    if edges.ndim != 1 or len(edges) < 2 or not np.all(edges[1:] > edges[:-1]):
        raise ValueError(f"Bins need at least two ascending edges; given were {edges}.")
    index = np.searchsorted(edges, values, side="right").astype(np.int64) - 1
    index[values == edges[-1]] = len(edges) - 2
    index[(index >= len(edges) - 1) | ~(values >= edges[0])] = -1
    return values, edges, index


def _split(
    values: NDArray[np.float64], index: NDArray[np.int64], edges: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    order = np.argsort(index, kind="stable")
    bounds = np.searchsorted(index[order], np.arange(len(edges)))
    return [values[order[a:b]] for a, b in zip(bounds[:-1], bounds[1:])]


def _centers(
    values: NDArray[np.float64], index: NDArray[np.int64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    low, high = edges[:-1], edges[1:]
    middle = np.where(np.isfinite(low), low, high)
    both = np.isfinite(low) & np.isfinite(high)
    middle[both] = 0.5 * (low[both] + high[both])
    parts = _split(values, index, edges)
    return np.array([np.median(part) if len(part) else empty for part, empty in zip(parts, middle)])
