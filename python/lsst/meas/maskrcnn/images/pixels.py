# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which pixels can be used, the same in training and in inference, and where those of a mask are."""

from __future__ import annotations

__all__ = ["PLANES_OF_IMAGES", "tight", "tight_box", "usable_pixels"]

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

PLANES_OF_IMAGES = {"INTERPOLATED": "INTRP", "COSMIC_RAY": "CR", "SATURATED": "SAT", "DETECTION_EDGE": "EDGE"}
"""Mask planes whose names in ``lsst.images`` and in ``lsst.afw.image`` differ."""


def tight_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Find the smallest box around the pixels of a mask.

    Parameters
    ----------
    mask : `numpy.ndarray`
        Bool, (y, x).

    Returns
    -------
    box : `tuple` [`slice`, `slice`] or `None`
        Its rows and columns; `None` if no pixel is set.
    """
    box: tuple[slice, slice] | None = find_objects(mask.astype(np.uint8), 1)[0]
    return box


def tight(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], int, int]:
    """Cut a mask down to its bounding box.

    Parameters
    ----------
    mask : `numpy.ndarray` of `bool`, (h, w)
        The mask.

    Returns
    -------
    part : `numpy.ndarray` of `bool`, (part h, part w)
        A copy of the part; (0, 0) where no pixel is set.
    y0, x0 : `int`
        Where its first pixel is in ``mask``.
    """
    box = tight_box(mask)
    if box is None:
        return np.zeros((0, 0), bool), 0, 0
    return mask[box].copy(), box[0].start, box[1].start


def usable_pixels(
    flux: npt.NDArray[np.floating[Any]],
    variance: npt.NDArray[np.floating[Any]] | None = None,
    valid: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """Find the pixels that hold data.

    Parameters
    ----------
    flux : `numpy.ndarray`
        Flux per pixel, of any shape.
    variance : `numpy.ndarray`, optional
        Variance per pixel, of the same shape.
    valid : `numpy.ndarray`, optional
        Pixels that are not masked, bool, of a shape that broadcasts to that of
        the flux; by default all.

    Returns
    -------
    usable : `numpy.ndarray`
        Bool, of the shape of the flux: pixels that are not masked, whose flux
        is finite and whose variance is finite and above 0.
    """
    usable = np.isfinite(flux)
    if variance is not None:
        # A comparison with NaN is False.
        usable &= (variance > 0) & (variance < np.inf)
    if valid is not None:
        usable &= valid
    return usable


def cut_square(
    image: npt.NDArray[np.floating[Any]], left: int, bottom: int, size: int
) -> npt.NDArray[np.float32]:
    """Cut a square (px) out of an image (band, y, x), float32; NaN off the image."""
    cut = np.full((image.shape[0], size, size), np.nan, dtype=np.float32)
    height, width = image.shape[1:]
    y0, y1 = max(bottom, 0), min(bottom + size, height)
    x0, x1 = max(left, 0), min(left + size, width)
    if y1 > y0 and x1 > x0:
        cut[:, y0 - bottom : y1 - bottom, x0 - left : x1 - left] = image[:, y0:y1, x0:x1]
    return cut
