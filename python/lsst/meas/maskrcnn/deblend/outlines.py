# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks of sources whose class has changed with their widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
        outline = np.zeros(parent.pixels.shape, np.float32)
        low = np.maximum([parent.y0 - y0, parent.x0 - x0], 0)
        high = np.minimum(np.add([parent.y0 - y0, parent.x0 - x0], outline.shape), plane.shape)
        if not (plane.size and plane.max() > 0 and (low < high).all()):
            continue
        start = low + (y0 - parent.y0, x0 - parent.x0)
        stop = start + (high - low)
        part = plane[low[0] : high[0], low[1] : high[1]]
        outline[start[0] : stop[0], start[1] : stop[1]] = part
        level = STAR_LEVEL if models.is_star[row] else GALAXY_LEVEL
        mask, y, x = tight((outline >= level * plane.max()) & parent.pixels)
        if np.count_nonzero(mask) < max(min_area, 1):
            continue
        y, x = y + parent.y0, x + parent.x0
        masks[row], soft[row] = mask, np.where(mask, np.uint8(255), np.uint8(0))
        origins[row] = soft_origins[row] = y, x
        boxes[row] = x, y, x + mask.shape[1], y + mask.shape[0]
    return replace(found, masks=masks, soft=soft, origins=origins, soft_origins=soft_origins, boxes=boxes)
