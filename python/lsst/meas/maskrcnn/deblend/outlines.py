# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks of sources whose class has changed with their widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..images.pixels import tight
from ..network.detections import Detections
from ..profiles.model import ProfileFit
from .parents import Parent

GALAXY_LEVEL, STAR_LEVEL = 0.08, 0.005
"""Fraction of its peak at which the mask of a source ends, as in the truth of the training."""


def redraw_masks(
    found: Detections,
    rows: npt.NDArray[np.int64],
    models: ProfileFit,
    band: int,
    parents: Sequence[Parent],
    min_area: int,
) -> Detections:
    """Give sources the outlines of their models in a band, within their parents.

    A source of which that would have fewer than ``min_area`` pixels stays as it is.
    """
    masks, soft = list(found.masks), list(found.soft)
    origins, soft_origins, boxes = found.origins.copy(), found.soft_origins.copy(), found.boxes.copy()
    home = {int(row): parent for parent in parents for row in parent.members}
    for row in rows.tolist():
        y0, x0, pixels = models.windows[row]
        plane, parent = pixels[band], home[row]
        low = np.maximum((y0, x0), (parent.y0, parent.x0))
        high = np.minimum(
            (y0, x0) + np.array(plane.shape), (parent.y0, parent.x0) + np.array(parent.pixels.shape)
        )
        if (low >= high).any() or not plane.max() > 0:
            continue
        level = STAR_LEVEL if found.p_star[row] >= 0.5 else GALAXY_LEVEL
        bright = _part(plane, (y0, x0), low, high) >= level * plane.max()
        mask, y, x = tight(bright & _part(parent.pixels, (parent.y0, parent.x0), low, high))
        if np.count_nonzero(mask) < max(min_area, 1):
            continue
        y, x = y + int(low[0]), x + int(low[1])
        masks[row], soft[row] = mask, np.where(mask, np.uint8(255), np.uint8(0))
        origins[row] = soft_origins[row] = y, x
        boxes[row] = x, y, x + mask.shape[1], y + mask.shape[0]
    return replace(found, masks=masks, soft=soft, origins=origins, soft_origins=soft_origins, boxes=boxes)


def _part(
    pixels: npt.NDArray[Any], origin: tuple[int, int], low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Cut the pixels from ``low`` to ``high``, (y, x) in the image, out of an array that begins elsewhere."""
    (top, left), (bottom, right) = low - origin, high - origin
    return pixels[top:bottom, left:right]
