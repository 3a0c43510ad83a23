# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Large galaxies of which only the core was found."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label, uniform_filter

from ..network.detections import Detections
from .masks import add_pixels, paint_mask

_CORE_LEVEL = 0.1
"""Brightness in units of the peak to which masks of cores grow, and over which the
light about them is that of the galaxy. This and the limits below were chosen on
galaxies brighter than magnitude 18 (``tests/benchmarks/bench_bright.py``)."""

_GROWTH = 2.0
"""Least area of a galaxy in areas of its core."""

_LARGE_AREA = 20.0
"""Least area of such a galaxy, in units of the square of the PSF's FWHM."""

_BRIGHT_SNR = 300.0
"""Least flux of its core over the root of the area, in units of the noise of a pixel."""


def grow_cores(found: Detections, detection: npt.NDArray[np.float32], fwhm: float) -> Detections:
    """Give large galaxies of which only the core was found the pixels around it.

    ``detection`` is the detection image, flux above the sky in units of its noise, (y, x); ``fwhm`` that of
    the PSF (px).

    The pixels are connected to the peak, brighter than a tenth of it, and in no other mask. Where they lead
    to something brighter, the core stays as it is.
    """
    grown = found.take(np.arange(len(found)))
    smooth = uniform_filter(np.maximum(detection, 0.0), 3, mode="nearest")
    taken = np.zeros(detection.shape, dtype=bool)
    for mask, (y, x) in zip(found.masks, found.origins.tolist(), strict=True):
        taken[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    for index in np.flatnonzero(found.p_star < 0.5).tolist():
        mask, low = found.masks[index], found.origins[index].astype(np.int64)
        area = np.count_nonzero(mask)
        high = low + mask.shape
        pixels = np.maximum(detection[low[0] : high[0], low[1] : high[1]], 0.0)
        if pixels[mask].sum(dtype=np.float64) <= _BRIGHT_SNR * math.sqrt(area):
            continue
        reach = 2 * max(mask.shape) + math.ceil(fwhm)
        corner = np.maximum(low - reach, 0)
        window = np.s_[corner[0] : high[0] + reach, corner[1] : high[1] + reach]
        light = smooth[window]
        own = paint_mask(found, index, corner, light.shape)
        peak = np.unravel_index(int(np.argmax(np.where(own, light, -1.0))), light.shape)
        regions, _ = label(light >= _CORE_LEVEL * light[peak])
        region = regions == regions[peak]
        if light[region].max() > light[peak]:
            continue
        region &= ~taken[window] | own
        if np.count_nonzero(region) >= max(_GROWTH * area, _LARGE_AREA * fwhm**2):
            add_pixels(grown, index, region, corner)
    return grown
