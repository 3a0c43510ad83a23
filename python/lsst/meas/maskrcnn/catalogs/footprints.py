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

__all__ = ["footprints_to_masks", "inclusive_boxes", "make_footprint", "masks_to_footprints"]

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
    """Whole-pixel boxes around the network's boxes and their masks.

    Parameters
    ----------
    boxes : `numpy.ndarray`, (N, 4), float
        Half-open network boxes [x0, y0, x1, y1] in array coordinates.
    measurements : `MaskMeasurements`
        What was measured on the N masks.
    shape : `tuple` [`int`, `int`]
        Height and width of the image, at which boxes are cut.

    Returns
    -------
    min_x, min_y, max_x, max_y : `numpy.ndarray`, (N,), int64
        Inclusive corners in array coordinates.
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
    """Make one footprint with one peak from each mask.

    Parameters
    ----------
    masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        N boolean masks, each (h, w).
    origins : `numpy.ndarray`, (N, 2), int
        (y0, x0) of each mask's first pixel in array coordinates.
    measurements : `MaskMeasurements`
        What `~lsst.meas.maskrcnn.deblend.masks.measure_masks` found on them.
    bbox : `lsst.geom.Box2I`
        Box of the exposure: its minimum is xy0, and it becomes the region of
        the footprints.

    Returns
    -------
    footprints : `list` [`lsst.afw.detection.Footprint`]
        N footprints in the parent frame. A mask of several pieces makes a
        footprint of several pieces.
    """
    footprints = []
    peaks = zip(measurements.peak_x, measurements.peak_y, measurements.peak_value, strict=True)
    for mask, (y0, x0), (x, y, value) in zip(masks, np.asarray(origins).tolist(), peaks, strict=True):
        footprint = make_footprint(mask, y0, x0, bbox)
        footprint.addPeak(float(x + bbox.getMinX()), float(y + bbox.getMinY()), float(value))
        footprints.append(footprint)
    return footprints


def make_footprint(pixels: np.ndarray, y0: int, x0: int, bbox: geom.Box2I) -> Footprint:
    """Make a footprint without peaks from a mask.

    Parameters
    ----------
    pixels : `numpy.ndarray`, (h, w), bool
        The mask.
    y0, x0 : `int`
        Its first pixel in array coordinates.
    bbox : `lsst.geom.Box2I`
        Box of the exposure: its minimum is xy0, and it becomes the region.

    Returns
    -------
    footprint : `lsst.afw.detection.Footprint`
        In the parent frame.
    """
    corner = geom.Point2I(int(x0) + bbox.getMinX(), int(y0) + bbox.getMinY())
    plane = MaskX(geom.Box2I(corner, geom.Extent2I(pixels.shape[1], pixels.shape[0])))
    plane.array[:] = pixels
    # SpanSet.fromMask finds the runs, without a Python object for each.
    return Footprint(SpanSet.fromMask(plane), PeakTable.makeMinimalSchema(), bbox)


def footprints_to_masks(
    footprints: Iterable[Footprint], bbox: geom.Box2I | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Make one boolean mask from each footprint.

    Parameters
    ----------
    footprints : `~collections.abc.Iterable` [`lsst.afw.detection.Footprint`]
        N footprints in the parent frame.
    bbox : `lsst.geom.Box2I`, optional
        Box of the exposure; its minimum is the origin of the array
        coordinates. By default the parent frame's own origin, (0, 0).

    Returns
    -------
    masks : `list` [`numpy.ndarray`]
        N boolean masks, each as large as the footprint's box.
    origins : `numpy.ndarray`, (N, 2), int64
        (y0, x0) of each mask's first pixel in array coordinates.
    """
    x0, y0 = (bbox.getMinX(), bbox.getMinY()) if bbox is not None else (0, 0)
    masks: list[np.ndarray] = []
    origins: list[tuple[int, int]] = []
    for footprint in footprints:
        spans = footprint.getSpans()
        box = spans.getBBox()
        masks.append(np.asarray(spans.asArray(), dtype=bool))
        origins.append((box.getMinY() - y0, box.getMinX() - x0))
    return masks, np.array(origins, dtype=np.int64).reshape(-1, 2)
