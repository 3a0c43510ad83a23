# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks of the network to afw footprints, and footprints to masks.

Two conventions meet here, and only here:

- The network has array coordinates: the first pixel of the image is
  (0, 0) whatever the exposure's origin, boxes are [x0, y0, x1, y1] with x1
  and y1 one past the last pixel (half open) and may be fractional, and a
  mask is a boolean sub-array with the (y0, x0) of its first pixel.
- afw has the parent frame: the first pixel of the image is at xy0,
  boxes are inclusive on both sides, and pixel centres are at integers.

So a network box [x0, y0, x1, y1] covers the columns
``floor(x0) + xy0.x`` to ``ceil(x1) - 1 + xy0.x`` of an afw box, and the mask
pixel (i, j) with origin (y0, x0) lies at
``Point2I(x0 + j + xy0.x, y0 + i + xy0.y)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

import lsst.geom as geom
from lsst.afw.detection import Footprint, PeakTable
from lsst.afw.geom import SpanSet
from lsst.afw.image import MaskX

from ..deblend.masks import MaskMeasurements


def inclusive_boxes(
    boxes: np.ndarray, measurements: MaskMeasurements, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whole-pixel boxes around N network boxes, (N, 4), and their masks.

    They are cut at the edge of an image of a shape (y, x). Returns min_x, min_y, max_x and max_y, int64,
    (N,): inclusive corners in array coordinates.
    """
    height, width = shape
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low = np.floor(boxes[:, :2]).astype(np.int64)
    high = np.ceil(boxes[:, 2:]).astype(np.int64) - 1
    min_x = np.clip(np.minimum(low[:, 0], measurements.box_min_x), 0, width - 1)
    min_y = np.clip(np.minimum(low[:, 1], measurements.box_min_y), 0, height - 1)
    max_x = np.clip(np.maximum(high[:, 0], measurements.box_max_x), 0, width - 1)
    max_y = np.clip(np.maximum(high[:, 1], measurements.box_max_y), 0, height - 1)
    return min_x, min_y, max_x, max_y


def masks_to_footprints(
    masks: Sequence[np.ndarray], origins: np.ndarray, measurements: MaskMeasurements, bbox: geom.Box2I
) -> list[Footprint]:
    """Make one footprint with one peak from each of N masks, in the parent frame.

    ``origins``, (N, 2), are (y0, x0) of their first pixels in array coordinates, ``measurements`` those of
    `~lsst.meas.maskrcnn.deblend.masks.measure_masks`. The minimum of ``bbox``, the box of the exposure, is
    xy0, and it becomes the region. A mask of several pieces makes a footprint of several pieces.
    """
    footprints = []
    peaks = zip(measurements.peak_x, measurements.peak_y, measurements.peak_value, strict=True)
    for mask, (y0, x0), (x, y, value) in zip(masks, np.asarray(origins).tolist(), peaks, strict=True):
        footprint = make_footprint(mask, y0, x0, bbox)
        footprint.addPeak(float(x + bbox.getMinX()), float(y + bbox.getMinY()), float(value))
        footprints.append(footprint)
    return footprints


def make_footprint(pixels: np.ndarray, y0: int, x0: int, bbox: geom.Box2I) -> Footprint:
    """Make a footprint without peaks, in the parent frame, of a mask from (y0, x0) on in array coordinates.

    The minimum of ``bbox``, the box of the exposure, is xy0, and it becomes the region.
    """
    corner = geom.Point2I(int(x0) + bbox.getMinX(), int(y0) + bbox.getMinY())
    plane = MaskX(geom.Box2I(corner, geom.Extent2I(pixels.shape[1], pixels.shape[0])))
    plane.array[:] = pixels
    # SpanSet.fromMask finds the runs, without a Python object for each.
    return Footprint(SpanSet.fromMask(plane), PeakTable.makeMinimalSchema(), bbox)


def footprints_to_masks(
    footprints: Iterable[Footprint | None], bbox: geom.Box2I | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Make a boolean mask, as large as its box, of each of N footprints.

    Returns the masks and their origins (y0, x0), int64, (N, 2), in array coordinates, which begin at the
    minimum of ``bbox``, by default at the parent frame's own (0, 0). The mask of no footprint, or of one
    without pixels, is empty and at (0, 0).
    """
    x0, y0 = (bbox.getMinX(), bbox.getMinY()) if bbox is not None else (0, 0)
    masks: list[np.ndarray] = []
    origins: list[tuple[int, int]] = []
    for footprint in footprints:
        if footprint is None or not footprint.getArea():
            masks.append(np.zeros((0, 0), dtype=bool))
            origins.append((0, 0))
            continue
        spans = footprint.getSpans()
        box = spans.getBBox()
        masks.append(np.asarray(spans.asArray(), dtype=bool))
        origins.append((box.getMinY() - y0, box.getMinX() - x0))
    return masks, np.array(origins, dtype=np.int64).reshape(-1, 2)
