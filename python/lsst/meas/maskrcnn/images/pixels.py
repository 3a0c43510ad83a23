# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which pixels can be used, the same in training and in inference, and where those of a mask are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

PLANES_OF_IMAGES = {
    "INTERPOLATED": "INTRP",
    "COSMIC_RAY": "CR",
    "SATURATED": "SAT",
    "DETECTION_EDGE": "EDGE",
    "UNMASKED_NAN": "UNMASKEDNAN",
}
"""Mask planes whose names in ``lsst.images`` and in ``lsst.afw.image`` differ."""


def tight_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Find the smallest box, rows and columns, around the pixels of a mask (y, x), or `None`."""
    box: tuple[slice, slice] | None = find_objects(mask.astype(np.uint8), 1)[0]
    return box


def tight(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], int, int]:
    """Cut a mask (y, x) down to its bounding box; (0, 0) where no pixel is set.

    Returns a copy of the part, and the row and column of its first pixel.
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
    """Find the pixels that hold data: not masked, of finite flux, and of finite variance above 0.

    Arrays are of any shape; that of ``valid`` broadcasts to that of the flux.
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
