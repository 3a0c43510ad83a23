# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The part of a blended source that is symmetric about its peak."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from .blend import Blend

FloatArray = npt.NDArray[np.float32]

_SMOOTH = 1.0
"""Standard deviation of the Gaussian with which symmetric templates are
smoothed (px), which takes most of the bias of a minimum away."""


def symmetric_part(blend: Blend, index: int) -> FloatArray:
    """Take the smaller of each pixel of a source and its mirror image about the peak.

    At least 0, float32, (band, y, x) on the source's box; for a star the PSF that fits its core.
    """
    smaller = _smaller(blend, index)
    if not blend.sources[index].is_star or blend.psfs is None:
        return smaller
    psf = blend.psf_on_box(index, *blend.peaks[index])
    core = np.where(psf > 0.1 * psf.max(axis=(1, 2), keepdims=True), psf, np.float32(0.0))
    norm = np.maximum((core * psf).sum(axis=(1, 2)), 1e-30)
    flux = np.maximum((core * smaller).sum(axis=(1, 2)) / norm, 0.0)
    return np.asarray(psf * flux[:, None, None], np.float32)


def _smaller(blend: Blend, index: int) -> FloatArray:
    rows, columns = blend.boxes[index]
    peak = blend.peaks[index]
    height, width = blend.parent.shape
    # Twice the peak is a whole number: it lies on a pixel, an edge or a corner.
    y = round(2.0 * peak[0]) - np.arange(rows.start, rows.stop)
    x = round(2.0 * peak[1]) - np.arange(columns.start, columns.stop)
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    own = np.where(blend.good[:, rows, columns], blend.images[:, rows, columns], np.inf)
    mirror = blend.images[:, y[:, None], x]
    mirror = np.where(blend.good[:, y[:, None], x] & inside, mirror, np.inf)
    # A pixel without a partner stands for itself, and the other way round.
    smaller = np.minimum(own, mirror)
    smaller = np.where(np.isfinite(smaller), smaller, np.float32(0.0))
    smaller = gaussian_filter(smaller, (0.0, _SMOOTH, _SMOOTH))
    return np.maximum(smaller, np.float32(0.0))
