# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Medians, areas and calibration errors as functions of how often each image counts.

Values are counted by image and by place in the sorted list of all values, so
that a resampling is a product of matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import BoolArray, FloatArray, IntArray
from .binned import MAD_TO_SIGMA, OUTLIER_SIGMA, divide, weighted_median
from .bootstrap import ImageStatistic

# More different values than this are put into as many groups of neighbours.
_MAX_VALUES = 1000


def median_statistic(
    names: tuple[str, ...], image: NDArray[np.integer[Any]], values: FloatArray
) -> ImageStatistic:
    """Make median, scatter and outliers functions of how often images count.

    They are those of `robust_statistics`, (B, 3), of finite values, (value,),
    in images of given numbers, (value,). More than a thousand different values
    are put into as many groups of neighbours.
    """
    points, index = _grouped(values)
    counts = count_by_image(image, index, len(names), len(points))

    def robust(weights: FloatArray) -> FloatArray:
        result = np.full((len(weights), 3), np.nan)
        for start in range(0, len(weights), 200):
            part = slice(start, start + 200)
            numbers = weights[part] @ counts
            median = weighted_median(points, numbers)
            distance = np.abs(points - median[:, None])
            scatter = MAD_TO_SIGMA * weighted_median(distance, numbers)
            outside = np.where(distance > OUTLIER_SIGMA * scatter[:, None], numbers, 0.0).sum(axis=1)
            share = divide(outside, numbers.sum(axis=1))
            result[part] = np.stack([median, scatter, share], axis=1)
        return result

    return ImageStatistic(names, robust)


def roc_area_statistic(
    names: tuple[str, ...], image: NDArray[Any], p_star: FloatArray, is_star: BoolArray
) -> ImageStatistic:
    """Make the area under a ROC curve, (B, 1), a function of how often images count.

    Of each source there are the number of its image, its probability of being
    a star and whether it is one, (source,).
    """
    points, index = _grouped(p_star)
    stars, galaxies = (
        count_by_image(image[rows], index[rows], len(names), len(points)) for rows in (is_star, ~is_star)
    )

    def area(weights: FloatArray) -> FloatArray:
        s, g = weights @ stars, weights @ galaxies
        # Galaxies below each star, and half of those beside it.
        below = np.cumsum(g, axis=1) - 0.5 * g
        return divide((s * below).sum(axis=1), s.sum(axis=1) * g.sum(axis=1))[:, None]

    return ImageStatistic(names, area)


def reliability_statistic(
    names: tuple[str, ...], image: NDArray[Any], given: FloatArray, outcome: BoolArray
) -> ImageStatistic:
    """Make the errors of a calibration functions of how often images count.

    They are the expected calibration error in ten bins and the Brier score,
    (B, 2). Of each case there are the number of its image, its probability and
    whether it came true, (case,).
    """
    n_bins = 10
    index = np.minimum((given * n_bins).astype(np.int64), n_bins - 1)
    number = count_by_image(image, index, len(names), n_bins)
    gap = count_by_image(image, index, len(names), n_bins, outcome - given)
    square = np.bincount(image, weights=(outcome - given) ** 2, minlength=len(names))

    def errors(weights: FloatArray) -> FloatArray:
        both = np.stack([np.abs(weights @ gap).sum(axis=1), weights @ square], axis=1)
        return divide(both, (weights @ number).sum(axis=1)[:, None])

    return ImageStatistic(names, errors)


def count_by_image(
    image: NDArray[Any], index: NDArray[Any], n_images: int, n_bins: int, weights: Any = None
) -> FloatArray:
    """Count values, (value,), or sum their weights, by numbers of image and bin, float64, (image, bin)."""
    code = np.asarray(image, dtype=np.int64) * n_bins + index
    sums = np.bincount(code, weights=weights, minlength=n_images * n_bins)
    return sums.reshape(n_images, n_bins).astype(np.float64)


def _grouped(values: FloatArray) -> tuple[FloatArray, IntArray]:
    """Sort values into at most `_MAX_VALUES` groups: their middles, and the group of each."""
    points, index = np.unique(values, return_inverse=True)
    if len(points) > _MAX_VALUES:
        edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _MAX_VALUES + 1)))
        index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        number = np.bincount(index, minlength=len(edges) - 1)
        total = np.bincount(index, weights=values, minlength=len(edges) - 1)
        points = np.where(number > 0, divide(total, number), 0.5 * (edges[:-1] + edges[1:]))
    return points, index.reshape(-1)
