# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The detection image: all bands in units of their noise."""

from __future__ import annotations

__all__ = ["detection_image"]

import math

import numpy as np
import numpy.typing as npt

from .normalize import BoolArray, FloatArray


def detection_image(
    flux: FloatArray, level: FloatArray, noise: FloatArray, valid: BoolArray
) -> npt.NDArray[np.float32]:
    """Add the bands up in units of their noise.

    Parameters
    ----------
    flux : `numpy.ndarray`
        Flux of the pixels, (band, y, x), nJy.
    level, noise : `numpy.ndarray`
        Sky level and sky noise of each band, (band,), nJy; the noise is
        positive.
    valid : `numpy.ndarray`
        Usable pixels, bool (y, x).

    Returns
    -------
    image : `numpy.ndarray`
        Sum over bands of (flux - level) / noise over the root of the number
        of bands, float32 (y, x): its noise is 1 if the bands are independent.
        0 where a pixel is not valid.

    Examples
    --------
    >>> flux = np.array([[[7.0, np.nan]], [[3.0, 1.0]]], dtype=np.float32)
    >>> level, noise = np.array([1.0, 1.0]), np.array([3.0, 1.0])
    >>> detection_image(flux, level, noise, np.isfinite(flux).all(axis=0)).round(3).tolist()
    [[2.828000068664551, 0.0]]
    """
    image = np.zeros(flux.shape[1:], dtype=np.float32)
    for pixels, offset, unit in zip(flux, level, noise, strict=True):
        image += (pixels - np.float32(offset)) / np.float32(unit)
    image /= np.float32(math.sqrt(len(flux)))
    image[~valid] = 0.0
    return image
