# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Positions of detected sources, also of those in the light of a brighter one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

__all__ = ["find_peaks", "mask_centers"]

FloatArray = npt.NDArray[np.floating]


def mask_centers(soft: Sequence[npt.NDArray[np.uint8]], origins: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Find the middle of each soft mask.

    Parameters
    ----------
    soft : `~collections.abc.Sequence` [`numpy.ndarray`]
        Soft masks, uint8, (y, x) each.
    origins : array_like
        (y0, x0) of each, (source, 2), px.

    Returns
    -------
    centers : `numpy.ndarray`
        (y, x) of the mean with the squared mask as weight, (source, 2), px.

    Raises
    ------
    ValueError
        Raised if there are not as many origins as masks.
    """
    corners = np.asarray(origins, np.float64).reshape(-1, 2)
    if len(corners) != len(soft):
        raise ValueError(f"got {len(soft)} masks and {len(corners)} origins")
    centers = corners.copy()
    for index, mask in enumerate(soft):
        if mask.size == 0:
            continue
        weight = mask.astype(np.float64) ** 2
        rows, columns = weight.sum(axis=1), weight.sum(axis=0)
        mass = rows.sum()
        if mass > 0:
            centers[index, 0] += rows @ np.arange(len(rows)) / mass
            centers[index, 1] += columns @ np.arange(len(columns)) / mass
        else:
            centers[index] += (np.array(mask.shape) - 1) / 2
    return centers


def find_peaks(
    image: npt.ArrayLike,
    soft: Sequence[npt.NDArray[np.uint8]],
    origins: npt.ArrayLike,
    psf_sigma: float = 1.0,
    radius: float = 1.5,
) -> npt.NDArray[np.float64]:
    """Find the peak of each source: a maximum of the image near the middle of its mask.

    Parameters
    ----------
    image : array_like
        Image, (y, x); the sum of the bands in units of their noise is a good
        one. What is not finite counts as 0.
    soft : `~collections.abc.Sequence` [`numpy.ndarray`]
        Soft masks, uint8, (y, x) each.
    origins : array_like
        (y0, x0) of each, (source, 2), px.
    psf_sigma : `float`
        Standard deviation of the Gaussian with which the image is smoothed
        (px).
    radius : `float`
        How far from the middle of the mask a maximum may be (px).

    Returns
    -------
    peaks : `numpy.ndarray`
        (y, x), float64, (source, 2), px. The middle of the mask where there
        is no maximum nearby, or that maximum is nearer to another source.

    Raises
    ------
    ValueError
        Raised if there are not as many origins as masks.

    Notes
    -----
    The brightest pixel of a mask would be wrong in blends: the mask of a
    faint star often holds the core of its bright neighbour.
    """
    peaks = mask_centers(soft, origins)
    pixels = np.asarray(image, np.float32)
    smooth = gaussian_filter(np.where(np.isfinite(pixels), pixels, np.float32(0.0)), psf_sigma)
    y, x = np.nonzero((smooth == maximum_filter(smooth, 3)) & (smooth > 0))
    if not len(y) or not len(peaks):
        return peaks
    distance, nearest = cKDTree(np.column_stack([y, x])).query(peaks, distance_upper_bound=radius)
    taken: set[int] = set()
    for index in np.argsort(distance, kind="stable").tolist():
        maximum = int(nearest[index])
        if not np.isfinite(distance[index]):
            break
        if maximum in taken:
            continue
        taken.add(maximum)
        peaks[index] = _vertex(smooth, int(y[maximum]), int(x[maximum]))
    return peaks


def _vertex(smooth: FloatArray, y: int, x: int) -> tuple[float, float]:
    """Put a maximum between pixels, by a parabola along either axis."""
    place = []
    for line, middle in ((smooth[:, x], y), (smooth[y], x)):
        shift = 0.0
        if 0 < middle < len(line) - 1:
            before, here, after = (float(value) for value in line[middle - 1 : middle + 2])
            bend = before - 2.0 * here + after
            if bend < 0:
                shift = min(max(0.5 * (before - after) / bend, -0.5), 0.5)
        place.append(middle + shift)
    return place[0], place[1]
