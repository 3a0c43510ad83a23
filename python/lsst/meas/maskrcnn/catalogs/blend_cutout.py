# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blends cut out of exposures, with what is there and what was found."""

from __future__ import annotations

__all__ = ["cut_group"]

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.afw.image import ExposureF
from lsst.geom import Box2I, Extent2I, Point2I

from ..metrics.cutouts import BlendCutout
from .evaluation import EvaluationPatch, PatchComparison, calibration

# Margin around a blend and smallest side of its cut-out (px).
_MARGIN, _LEAST_SIZE = 8, 40


def cut_group(
    patch: EvaluationPatch, comparison: PatchComparison, group: int, bands: Sequence[str]
) -> BlendCutout:
    """Cut a group of sources out of the exposures.

    Parameters
    ----------
    patch : `EvaluationPatch`
        A patch with exposures in these bands.
    comparison : `PatchComparison`
        The patch compared with its truth.
    group : `int`
        Number of the group.
    bands : `~collections.abc.Sequence` [`str`]
        Three bands, the reddest first.

    Returns
    -------
    cutout : `~lsst.meas.maskrcnn.metrics.cutouts.BlendCutout`
        A square. Its residual is the image in the middle band without what
        was found: minus the pixels of the heavy footprints where the
        catalogue has them, else without the pixels of all footprints; in
        units of the noise.
    """
    x0, y0, x1, y1 = (int(side) for side in comparison.boxes[group])
    size = max(x1 - x0 + 2 * _MARGIN, y1 - y0 + 2 * _MARGIN, _LEAST_SIZE)
    corner = ((x0 + x1 - size) // 2, (y0 + y1 - size) // 2)
    box = Box2I(Point2I(*corner), Extent2I(size, size))
    inner = Box2I(box)
    inner.clip(patch.exposures[bands[0]].getBBox())
    parts = [patch.exposures[band][inner] for band in bands]
    scales = [calibration(part) for part in parts]
    # Colours need relative calibrations; without any, counts have to do.
    scales = scales if np.isfinite(scales).all() else [1.0] * len(parts)
    noise = np.array([_noise(part) * scale for part, scale in zip(parts, scales)])
    truth, found = comparison.truth, comparison.detections
    near = np.flatnonzero(_reach_in(found.spans.boxes, box))
    found_masks, found_origins = found.spans.select(near).to_masks()
    shapes = np.array([mask.shape for mask in truth.masks], dtype=np.int64).reshape(-1, 2)
    truth_boxes = np.concatenate([truth.origins[:, ::-1], (truth.origins + shapes)[:, ::-1]], axis=1)
    true = np.flatnonzero(_reach_in(truth_boxes, box) & (shapes.prod(axis=1) > 0))
    row = comparison.result.groups[group]
    return BlendCutout(
        image=np.stack([_padded(part.image.array * scale, inner, box) for part, scale in zip(parts, scales)]),
        noise=noise if (noise > 0).all() else None,
        residual=_padded(
            _residual(parts[len(parts) // 2], [found.footprints[i] for i in near.tolist()]), inner, box
        ),
        corner=corner,
        truth_masks=[truth.masks[i] for i in true.tolist()],
        truth_origins=truth.origins[true] - corner[::-1],
        truth_is_star=truth.is_star[true],
        detection_masks=found_masks,
        detection_origins=found_origins - corner[::-1],
        detection_is_star=found.is_star[near],
        caption=f"{row['n_truth']} true, {row['n_detection']} found\nquality {row['quality']:.2f}",
    )


def _noise(exposure: ExposureF) -> float:
    variance = exposure.variance.array
    usable = np.isfinite(variance) & (variance > 0)
    return float(np.sqrt(np.median(variance[usable]))) if usable.any() else float("nan")


def _reach_in(boxes: np.ndarray, box: Box2I) -> np.ndarray:
    low, high = (box.getMinX(), box.getMinY()), (box.getMaxX(), box.getMaxY())
    return np.asarray((boxes[:, :2] <= high).all(axis=1) & (boxes[:, 2:] > low).all(axis=1))


def _padded(pixels: np.ndarray, inner: Box2I, box: Box2I) -> np.ndarray:
    """Put the pixels of a box into a larger one, NaN beyond."""
    whole = np.full((box.getHeight(), box.getWidth()), np.nan, dtype=np.float32)
    y0, x0 = inner.getMinY() - box.getMinY(), inner.getMinX() - box.getMinX()
    whole[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]] = pixels
    return whole


def _residual(exposure: ExposureF, footprints: Sequence[Any]) -> np.ndarray:
    """Image without what was found, in units of the noise."""
    box = exposure.getBBox()
    image = exposure.image.clone()
    for footprint in footprints:
        if footprint.isHeavy():
            model = footprint.extractImage(fill=0.0)
            inner = model.getBBox()
            inner.clip(box)
            if not inner.isEmpty():
                image[inner].array[:] -= model[inner].array
        else:
            footprint.getSpans().clippedTo(box).setImage(image, 0.0)
    variance = exposure.variance.array
    sigma = np.sqrt(np.where(variance > 0, variance, np.nan))
    return np.where(np.isfinite(sigma), image.array / sigma, np.nan)
