# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks of sources whose class has changed with their widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..network.detections import Detections
from ..profiles.model import ProfileFit, pixels_at
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
        if not (plane.size and plane.max() > 0):
            continue
        level = STAR_LEVEL if found.p_star[row] >= 0.5 else GALAXY_LEVEL
        y, x = np.nonzero(plane >= level * plane.max()) + np.array([[y0], [x0]])
        inside = pixels_at(parent.pixels[None], y - parent.y0, x - parent.x0)[0]
        if np.count_nonzero(inside) < max(min_area, 1):
            continue
        y, x = y[inside], x[inside]
        corner = y.min(), x.min()
        mask = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), bool)
        mask[y - corner[0], x - corner[1]] = True
        masks[row], soft[row] = mask, np.where(mask, np.uint8(255), np.uint8(0))
        origins[row] = soft_origins[row] = corner
        boxes[row] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return replace(found, masks=masks, soft=soft, origins=origins, soft_origins=soft_origins, boxes=boxes)
