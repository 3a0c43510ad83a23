# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Positions of detected sources, also of those in the profile of a brighter one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

from ..images.units import FWHM_PER_SIGMA
from ..profiles.blend import mask_centers

FloatArray = npt.NDArray[np.floating]

_KERNEL = 0.6
"""Width of the Gaussian with which the image is smoothed, in that of the PSF: a
narrower kernel than the matched one leaves close peaks apart."""

_RADIUS = 1.5
"""How far from the centre of the mask a maximum may be (px)."""

_CLOSE_PAIR = 1.5
"""Distance of two centres of masks, in FWHM of the PSF, below which their
maxima are drawn together."""


def find_peaks(
    image: npt.ArrayLike, soft: Sequence[npt.NDArray[np.uint8]], origins: npt.ArrayLike, fwhm: float
) -> npt.NDArray[np.float64]:
    """Find the peak of each source: a maximum of the image near the centre of its mask.

    The detection image is (y, x), and what is not finite counts as 0; soft masks are uint8, (y, x) each, with
    (y0, x0) of their first pixels, (source, 2); ``fwhm`` is that of the PSF (px). Returns (y, x), float64,
    (source, 2), px. The peak is the centre of the mask where there is no maximum nearby, where that maximum
    is nearer to another source, and in close pairs. A ValueError is raised if there are not as many origins
    as masks.

    The brightest pixel of a mask would be wrong in blends: the mask of a faint star often holds the core of
    its bright neighbour. The maxima of two sources closer than 1.5 FWHM are drawn together by the sum of
    their profiles (two equal stars at 1.05 FWHM by a quarter of the FWHM each once the image is smoothed),
    which the centres of their masks are not.
    """
    peaks = mask_centers(soft, origins)
    pixels = np.asarray(image, np.float32)
    smooth = gaussian_filter(
        np.where(np.isfinite(pixels), pixels, np.float32(0.0)), _KERNEL * fwhm / FWHM_PER_SIGMA
    )
    y, x = np.nonzero((smooth == maximum_filter(smooth, 3)) & (smooth > 0))
    if not len(y) or not len(peaks):
        return peaks
    alone = _distance_to_next(peaks) > _CLOSE_PAIR * fwhm
    distance, nearest = cKDTree(np.column_stack([y, x])).query(peaks, distance_upper_bound=_RADIUS)
    taken: set[int] = set()
    for index in np.argsort(distance, kind="stable").tolist():
        maximum = int(nearest[index])
        if not np.isfinite(distance[index]):
            break
        if maximum in taken or not alone[index]:
            continue
        taken.add(maximum)
        peaks[index] = _vertex(smooth, int(y[maximum]), int(x[maximum]))
    return peaks


def _distance_to_next(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance of each place to the nearest other one, (source,)."""
    if len(places) < 2:
        return np.full(len(places), np.inf)
    return np.asarray(cKDTree(places).query(places, k=2)[0][:, 1])


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
