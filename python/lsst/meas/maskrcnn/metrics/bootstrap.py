# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors of figures by resampling images, and of their differences.

The sources of an image share its seeing, noise and neighbours, so images are
drawn, not sources: B times as many as there are, with replacement (Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13). A figure
is a function of how often each image was drawn, so that nothing is matched or
measured again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray
from .binned import divide

__all__ = [
    "LEVEL",
    "BootstrapResult",
    "ImageStatistic",
    "PairedResult",
    "bootstrap",
    "combine",
    "paired_bootstrap",
    "paired_result",
    "ratio_statistic",
]

LEVEL = 0.6827
"""Probability within one standard deviation of a normal distribution."""

# Weights that are handed to a statistic at once.
_CELLS = 10_000_000


@dataclass(frozen=True, eq=False)
class ImageStatistic:
    """Some figures as a function of how often each image counts."""

    names: tuple[str, ...]
    """Of the images."""
    function: Callable[[FloatArray], FloatArray]
    """From weights, float64, (B, image), to values, float64, (B, K), NaN where there is none."""

    @property
    def value(self) -> FloatArray:
        """The figures of all images, each counted once, float64, (K,)."""
        return self.function(np.ones((1, len(self.names))))[0]


@dataclass(frozen=True, eq=False)
class BootstrapResult:
    """Some figures with their errors."""

    value: FloatArray
    """Of all images, float64, (K,)."""
    error: FloatArray
    """Standard deviation of the samples, float64, (K,); NaN of fewer than two images."""
    low: FloatArray
    high: FloatArray
    """Percentiles of the samples that enclose ``level`` of them, float64, (K,); NaN of fewer than two
    images."""
    level: float
    """Share of the samples between the two."""
    samples: FloatArray
    """Of each resampling, float64, (B, K). NaN where the images drawn give no value; those are left out."""


@dataclass(frozen=True, eq=False)
class PairedResult:
    """Differences of the figures of two runs on the same images."""

    first: FloatArray
    second: FloatArray
    """The figures of each run, float64, (K,)."""
    difference: BootstrapResult
    """Of the second minus the first."""
    p_value: FloatArray
    """How often resampling alone makes a difference as large, of either sign, float64, (K,); NaN where the
    difference has no error."""


def bootstrap(
    statistic: ImageStatistic, rng: np.random.Generator, n_samples: int = 1000, level: float = LEVEL
) -> BootstrapResult:
    """Give figures their errors.

    Parameters
    ----------
    statistic : `ImageStatistic`
        The figures; `ValueError` is raised if there are no images.
    rng : `numpy.random.Generator`
        Draws the images.
    n_samples : `int`
        Number of resamplings, at least 2.
    level : `float`
        Share of the samples between the limits given.
    """
    return _summarize(statistic.value, _resample(statistic, rng, n_samples), len(statistic.names), level)


def paired_bootstrap(
    first: ImageStatistic,
    second: ImageStatistic,
    rng: np.random.Generator,
    n_samples: int = 1000,
    level: float = LEVEL,
) -> PairedResult:
    """Compare two runs on the same images: their difference, its error and its significance.

    Parameters
    ----------
    first, second : `ImageStatistic`
        The same figures of both runs; `ValueError` is raised if they are not
        of the same images in the same order.
    rng : `numpy.random.Generator`
        Draws the images, the same for both.
    n_samples : `int`
        Number of resamplings, at least 2.
    level : `float`
        Share of the samples between the limits given.
    """
    if first.names != second.names:
        only = sorted(set(first.names) ^ set(second.names))
        raise ValueError(
            f"The runs have {len(first.names)} and {len(second.names)} images; "
            + (f"only one of them has {', '.join(only[:5])}." if only else "their order differs.")
            + " Give both the same images in the same order."
        )
    seed = int(rng.integers(2**63))
    results = (bootstrap(one, np.random.default_rng(seed), n_samples, level) for one in (first, second))
    return paired_result(*results)


def paired_result(first: BootstrapResult, second: BootstrapResult) -> PairedResult:
    """Compare two runs that were resampled in the same way.

    Parameters
    ----------
    first, second : `BootstrapResult`
        The same figures of both runs, of as many images, from generators of
        the same seed.

    Notes
    -----
    The samples of the difference are moved to a mean of no difference before
    they are compared with the difference found (Hall and Wilson 1991,
    Biometrics 47, 757). The smallest possible value is 1 / (``n_samples`` + 1).
    With few images it is too small: below some ten, take it as a hint.
    """
    difference, spread = second.value - first.value, second.samples - first.samples
    with_error = np.isfinite(first.error) & np.isfinite(second.error)
    result = _summarize(difference, np.where(with_error, spread, np.nan), 2, first.level)
    known = np.isfinite(spread)
    # Differences that are equal but for rounding are equal.
    larger = known & (np.abs(spread - difference) >= np.abs(difference) - 1e-12)
    p_value = (1.0 + larger.sum(axis=0)) / (1.0 + known.sum(axis=0))
    p_value[~np.isfinite(result.error)] = np.nan
    return PairedResult(first.value, second.value, result, p_value)


def combine(function: Callable[..., FloatArray], *statistics: ImageStatistic) -> ImageStatistic:
    """Make a statistic of others on the same images, such as their mean.

    Parameters
    ----------
    function : `~collections.abc.Callable`
        From the values of each statistic, (B, K) each, to new ones.
    *statistics : `ImageStatistic`
        The others; `ValueError` is raised if their images are not the same.
    """
    names = statistics[0].names
    if any(one.names != names for one in statistics):
        raise ValueError("Statistics of different images cannot be combined.")
    return ImageStatistic(names, lambda weights: function(*(one.function(weights) for one in statistics)))


def ratio_statistic(names: tuple[str, ...], above: npt.ArrayLike, below: npt.ArrayLike) -> ImageStatistic:
    """Make a statistic of a ratio of sums over images, such as completeness, (B, K).

    Parameters
    ----------
    names : `tuple` [`str`]
        Of the images.
    above, below : `numpy.ndarray`
        What is summed above and below the line, (image, K) or (image,). The
        ratio is NaN where the sum below is 0.
    """
    top, bottom = (np.asarray(part, dtype=np.float64) for part in (above, below))
    if top.shape != bottom.shape or top.ndim not in (1, 2) or len(top) != len(names):
        raise ValueError(
            f"above and below are {top.shape} and {bottom.shape}; both must be "
            f"({len(names)},) or ({len(names)}, K)."
        )
    if top.ndim == 1:
        top, bottom = top[:, None], bottom[:, None]

    return ImageStatistic(names, lambda weights: divide(weights @ top, weights @ bottom))


def _resample(statistic: ImageStatistic, rng: np.random.Generator, n_samples: int) -> FloatArray:
    n_images = len(statistic.names)
    if n_images < 1 or n_samples < 2:
        raise ValueError(f"{n_samples} samples of {n_images} images; at least 2 of 1 are needed.")
    rows = max(1, _CELLS // n_images)
    chance = np.full(n_images, 1.0 / n_images)
    parts = []
    for start in range(0, n_samples, rows):
        weights = rng.multinomial(n_images, chance, size=min(rows, n_samples - start))
        parts.append(statistic.function(weights.astype(np.float64)))
    return np.concatenate(parts)


def _summarize(value: FloatArray, samples: FloatArray, n_images: int, level: float) -> BootstrapResult:
    error, low, high = (np.full(value.shape, np.nan) for _ in range(3))
    for k in range(len(value)):
        known = samples[np.isfinite(samples[:, k]), k]
        if n_images > 1 and len(known) > 1:
            error[k] = np.std(known, ddof=1)
            low[k], high[k] = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    return BootstrapResult(value, error, low, high, level, samples)
