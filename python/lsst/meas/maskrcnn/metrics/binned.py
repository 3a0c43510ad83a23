# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fractions and robust statistics in bins, with their uncertainties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import FloatArray, IntArray

MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation over median absolute deviation of a normal distribution."""

OUTLIER_SIGMA = 3.0
"""Values further from the median than this many scatters are outliers."""

_STATISTICS = ("median", "median_error", "scatter")


@dataclass(frozen=True)
class Fraction:
    """A share of a number of sources."""

    # Sources that count, and all of them.
    hits: int
    total: int
    value: float  # their ratio; NaN without sources
    # Limits of the confidence interval.
    low: float
    high: float


@dataclass(frozen=True)
class BinnedFraction:
    """A share of sources in bins of some quantity."""

    edges: FloatArray  # limits of the bins, ascending, (bin + 1,)
    # Median of the quantity of the sources in each bin; the middle of the bin where there is no source,
    # (bin,).
    center: FloatArray
    # Sources that count and all of them, (bin,).
    hits: IntArray
    total: IntArray
    # Their ratio and the limits of its confidence interval; NaN in an empty bin, (bin,).
    fraction: FloatArray
    low: FloatArray
    high: FloatArray

    def columns(self) -> dict[str, NDArray]:
        """Give the bins as columns of a table, a row for each; the edges are ``bin_low`` and ``bin_high``."""
        names = ("center", "hits", "total", "fraction", "low", "high")
        return _edge_columns(self.edges) | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class RobustStatistics:
    """Centre, width and outliers of a sample."""

    n: int  # number of finite values
    median: float  # NaN without values
    # Standard error of the median of a normal distribution of this width, sqrt(pi / 2) scatter / sqrt(n).
    median_error: float
    # 1.4826 times the median absolute deviation from the median: the standard deviation of a normal
    # distribution.
    scatter: float
    outliers: Fraction  # values further from the median than `OUTLIER_SIGMA` scatters


@dataclass(frozen=True)
class BinnedStatistics:
    """Robust statistics of a quantity in bins of another, which are as in `BinnedFraction`."""

    # Limits of the bins, (bin + 1,), and median of the binned quantity, (bin,).
    edges: FloatArray
    center: FloatArray
    n: IntArray  # number of values, (bin,)
    # As in `RobustStatistics`; NaN in an empty bin, (bin,).
    median: FloatArray
    median_error: FloatArray
    scatter: FloatArray
    # Values further from their bin's median than `OUTLIER_SIGMA` of the bin's scatters.
    outliers: BinnedFraction

    def columns(self) -> dict[str, NDArray]:
        """Give the bins as columns of a table, as `BinnedFraction.columns`."""
        own = {name: getattr(self, name) for name in ("center", "n", *_STATISTICS)}
        outliers = {f"outlier_{name}": getattr(self.outliers, name) for name in ("fraction", "low", "high")}
        return _edge_columns(self.edges) | own | outliers


_ONE_SIGMA = 0.6826894921370859
"""Probability within one standard deviation of a normal distribution."""


def binomial_interval(hits: ArrayLike, total: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Compute the limits of a share at one standard deviation, low and high; NaN where ``total`` is 0.

    They are those of the score interval (Wilson 1927, JASA 22, 209), which holds its
    level on average near 0 and 1 too, where the normal approximation does not (Brown,
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
    """Compute one share and its confidence interval; NaN without sources."""
    low, high = binomial_interval(hits, total)
    return Fraction(int(hits), int(total), float(divide(hits, total)), float(low), float(high))


def binned_fraction(values: ArrayLike, hit: ArrayLike, edges: ArrayLike) -> BinnedFraction:
    """Compute the share of sources that are hits, bool, (source,), in bins of a quantity, (source,).

    NaN and values outside the edges are left out. Edges ascend and may be infinite,
    (bin + 1,); a bin holds its lower limit, the last one both.
    """
    values, edges, index = _bin_index(values, edges)
    hit = np.asarray(hit, dtype=bool)
    if hit.shape != values.shape:
        raise ValueError(f"Values and hits must be of one shape; given were {values.shape} and {hit.shape}.")
    hits, total = (np.bincount(index[rows & (index >= 0)], minlength=len(edges) - 1) for rows in (hit, True))
    return _binned_fraction(edges, _centers(values, index, edges), hits, total)


def robust_statistics(values: ArrayLike) -> RobustStatistics:
    """Compute the median, the scatter and the share of outliers of the finite values; NaN without any.

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
    """Compute robust statistics of values in bins of x, both (source,), without those where either is NaN."""
    x, edges, index = _bin_index(x, edges)
    values = np.asarray(values, dtype=float)
    if values.shape != x.shape:
        raise ValueError(f"Both quantities must be of one shape; given were {x.shape} and {values.shape}.")
    index = np.where(np.isfinite(values), index, -1)
    parts = [robust_statistics(part) for part in _split(values, index, edges)]
    center = _centers(x, index, edges)
    n = np.array([part.n for part in parts], dtype=np.int64)
    outliers = np.array([part.outliers.hits for part in parts], dtype=np.int64)
    columns = {name: np.array([getattr(part, name) for part in parts]) for name in _STATISTICS}
    far = _binned_fraction(edges, center, outliers, n)
    return BinnedStatistics(edges, center, n, **columns, outliers=far)


def weighted_median(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute medians, (B,), of values, (N,) or (B, N), that count as often as weights, (B, N), say.

    It is the middle value, or the mean of the two in the middle; NaN where all weights are 0.

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


def even_edges(values: ArrayLike, width: float = 0.5) -> FloatArray:
    """Choose bins of one width, at multiples of it, that hold all finite values; at least one, (bin + 1,).

    Examples
    --------
    >>> even_edges([20.2, 21.7])
    array([20. , 20.5, 21. , 21.5, 22. ])
    """
    sample = np.asarray(values, dtype=float).ravel()
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return np.array([0.0, width])
    first = int(np.floor(sample.min() / width))
    last = max(int(np.ceil(sample.max() / width)), first + 1)
    return width * np.arange(first, last + 1, dtype=np.float64)


def log_edges(values: ArrayLike, per_decade: int) -> FloatArray:
    """Choose so many bins in each factor of ten, as `even_edges` does, that hold all positive values."""
    sample = np.asarray(values, dtype=float).ravel()
    return 10.0 ** even_edges(np.log10(sample[np.isfinite(sample) & (sample > 0.0)]), 1.0 / per_decade)


def divide(above: ArrayLike, below: ArrayLike) -> FloatArray:
    """Divide numbers of shapes that fit each other; NaN where there is nothing to divide by."""
    top, bottom = np.broadcast_arrays(np.asarray(above, dtype=float), np.asarray(below, dtype=float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def _edge_columns(edges: FloatArray) -> dict[str, NDArray]:
    return {"bin_low": edges[:-1], "bin_high": edges[1:]}


def _binned_fraction(
    edges: FloatArray, center: FloatArray, hits: IntArray, total: IntArray
) -> BinnedFraction:
    return BinnedFraction(edges, center, hits, total, divide(hits, total), *binomial_interval(hits, total))


def _bin_index(values: ArrayLike, edges: ArrayLike) -> tuple[FloatArray, FloatArray, IntArray]:
    """Values, edges, and the bin of each value, -1 outside."""
    values, edges = np.asarray(values, dtype=float), np.asarray(edges, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"Values must be one-dimensional; given was the shape {values.shape}.")
    if edges.ndim != 1 or len(edges) < 2 or not np.all(edges[1:] > edges[:-1]):
        raise ValueError(f"Bins need at least two ascending edges; given were {edges}.")
    index = np.searchsorted(edges, values, side="right").astype(np.int64) - 1
    index[values == edges[-1]] = len(edges) - 2
    index[(index >= len(edges) - 1) | ~(values >= edges[0])] = -1
    return values, edges, index


def _split(values: FloatArray, index: IntArray, edges: FloatArray) -> list[FloatArray]:
    """Values of each bin."""
    order = np.argsort(index, kind="stable")
    bounds = np.searchsorted(index[order], np.arange(len(edges)))
    return [values[order[a:b]] for a, b in zip(bounds[:-1], bounds[1:])]


def _centers(values: FloatArray, index: IntArray, edges: FloatArray) -> FloatArray:
    """Median of each bin, or else its middle, or its finite edge."""
    low, high = edges[:-1], edges[1:]
    middle = np.where(np.isfinite(low), low, high)
    both = np.isfinite(low) & np.isfinite(high)
    middle[both] = 0.5 * (low[both] + high[both])
    parts = _split(values, index, edges)
    return np.array([np.median(part) if len(part) else empty for part, empty in zip(parts, middle)])
