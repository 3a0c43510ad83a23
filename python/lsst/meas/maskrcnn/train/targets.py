# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the network should find in a crop: boxes, masks and regions to ignore.

Boxes in this module are (y0, x0, y1, x1), half open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..images.pixels import tight_box
from ..metrics.arrays import BoolArray, Float32Array, FloatArray, IntArray
from .augment import Realization, Window, added_mask_area, grow_mask
from .training_scene import TrainingScene, masked_boxes

_MIN_VISIBLE = 0.3
"""Share of its mask that must be in a crop for a source that the edge cuts,
unless its position is; else it is ignored. With less, the class of a source can
no longer be seen."""


@dataclass(frozen=True, eq=False)
class SceneTruth:
    """Sources and masked pixels of a scene, as crops need them."""

    valid: BoolArray  # usable pixels, (y, x)
    labels: IntArray  # classes, (source,)
    not_ignored: BoolArray  # sources that the scene does not ignore, (source,)
    peak_flux: Float32Array  # brightest pixel of each source alone, (source, band), nJy
    masks: list[BoolArray]  # truth masks, (y, x) each
    boxes: IntArray  # their boxes, (source, 4)
    areas: IntArray  # their numbers of pixels, (source,)
    positions: FloatArray  # (y, x) of each source, (source, 2)
    masked: IntArray  # boxes of the unusable pixels, (box, 4)
    mask_levels: tuple[float, float] | None  # as in `TrainingScene`
    psf_fwhm: Float32Array | None  # as in `TrainingScene`

    @classmethod
    def from_scene(cls, scene: TrainingScene) -> Self:
        """Collect the truth of a scene."""
        shapes = np.array([mask.shape for mask in scene.masks], dtype=np.int64).reshape(-1, 2)
        origins = scene.origins.astype(np.int64).reshape(-1, 2)
        boxes = np.concatenate([origins, origins + shapes], axis=1)
        middles = 0.5 * (boxes[:, :2] + boxes[:, 2:] - 1.0)
        return cls(
            valid=scene.valid,
            labels=scene.labels.astype(np.int64),
            not_ignored=np.ones(len(scene.labels), bool) if scene.ignore is None else ~scene.ignore,
            peak_flux=scene.peak_flux,
            masks=scene.masks,
            boxes=boxes,
            areas=np.array([np.count_nonzero(mask) for mask in scene.masks], dtype=np.int64),
            positions=np.asarray(middles if scene.positions is None else scene.positions, dtype=np.float64),
            masked=masked_boxes(scene.valid),
            mask_levels=scene.mask_levels,
            psf_fwhm=scene.psf_fwhm,
        )

    def mask_growth(self, realization: Realization) -> FloatArray:
        """Compute by how many pixels the blur of a realization enlarges each mask, (source,)."""
        if self.mask_levels is None or realization.blur == 0:
            return np.zeros(len(self.labels))
        star, galaxy = (added_mask_area(realization.kernel_variance, level) for level in self.mask_levels)
        return np.where(self.labels == 1, star, galaxy)

    def bright_enough(
        self, realization: Realization, sky_sigma: FloatArray, min_peak_snr: float
    ) -> BoolArray:
        """Find the sources with a peak of the S/N wanted in any band, bool, (source,).

        ``sky_sigma`` is the noise of an empty pixel of the scene, (band,), nJy. Without
        noise they are all that are not ignored.
        """
        if realization.noise == 0.0 or not len(self.labels):
            return self.not_ignored
        peaks = self.peak_flux * realization.gain
        sigma = sky_sigma * realization.noise
        if realization.blur > 0:
            # The larger the area over which the flux is spread, the lower the peak.
            area = np.maximum(self.areas, 1)
            peaks = peaks * (area / (area + self.mask_growth(realization)))[:, None]
        if realization.own:
            sigma = sigma * realization.gain
        return self.not_ignored & (peaks >= min_peak_snr * sigma).any(axis=1)


def make_target(
    truth: SceneTruth,
    wanted: BoolArray,
    growth: FloatArray,
    window: Window,
    turns: int,
    flip: bool,
    min_area: int,
) -> dict[str, Tensor]:
    """Make the target of a crop, as `~.dataset.SceneCrops.crops` has it.

    ``wanted`` are the sources that are to be found, bool, (source,), unless fewer than
    ``min_area`` of their pixels are in the crop, and ``growth`` the pixels by which each
    mask is enlarged, (source,). The window is the part of the scene that the crop is,
    which is turned as by `turn_image`.
    """
    y0, x0, height, width = window
    shape = (height, width)
    limit, corner = np.array([*shape, *shape]), np.array([y0, x0, y0, x0])
    reach = np.zeros(len(growth))
    if growth.any():
        radius = np.sqrt(np.maximum(truth.areas, 1) / np.pi)
        reach = np.ceil(2.0 * (np.sqrt(radius**2 + growth / np.pi) - radius)) + 1.0
    boxes = truth.boxes - corner
    near = ((boxes[:, :2] - reach[:, None] < limit[:2]) & (boxes[:, 2:] + reach[:, None] > 0)).all(axis=1)
    relative = truth.positions - corner[:2] + 0.5
    inside = ((relative >= 0) & (relative < limit[:2])).all(axis=1).tolist()

    kept: list[tuple[BoolArray, int]] = []
    places: list[tuple[int, int, int, int]] = []
    ignored: list[tuple[int, int, int, int]] = []
    for index in np.flatnonzero(near).tolist():
        mask, area = truth.masks[index], int(truth.areas[index])
        top, left = boxes[index, :2].tolist()
        grown = growth[index] > 0
        if grown:
            mask, margin = grow_mask(mask, float(growth[index]))
            top, left = top - margin, left - margin
            area = int(np.count_nonzero(mask))
        part, top, left = cut_mask(mask, top, left, shape, tight=not grown)
        visible = area if part is mask and not grown else int(np.count_nonzero(part))
        if visible == 0:
            continue
        place = (top, left, top + part.shape[0], left + part.shape[1])
        large = visible >= min_area and (visible >= _MIN_VISIBLE * area or inside[index])
        if wanted[index] and large:
            kept.append((part, index))
            places.append(place)
        else:
            ignored.append(place)
    masked = np.clip(truth.masked - corner, 0, limit)
    masked = masked[(masked[:, :2] < masked[:, 2:]).all(axis=1)]
    turned = _turn_boxes(np.array(places, np.int64).reshape(-1, 4), shape, turns, flip)
    regions = np.concatenate([np.array(ignored, np.int64).reshape(-1, 4), masked])
    regions = _turn_boxes(regions, shape, turns, flip)
    masks = np.zeros((len(kept), *(shape if turns % 2 == 0 else shape[::-1])), np.uint8)
    for painted, (top, left, bottom, right), (part, _) in zip(masks, turned.tolist(), kept, strict=True):
        part = np.rot90(part, turns)
        painted[top:bottom, left:right] = part[:, ::-1] if flip else part
    return {
        "boxes": torch.from_numpy(turned[:, [1, 0, 3, 2]].astype(np.float32)),
        "labels": torch.from_numpy(truth.labels[[index for _, index in kept]]),
        "masks": torch.from_numpy(masks),
        "ignore_boxes": torch.from_numpy(regions[:, [1, 0, 3, 2]].astype(np.float32)),
    }


def cut_mask(
    mask: BoolArray, top: int, left: int, shape: tuple[int, int], *, tight: bool = False
) -> tuple[BoolArray, int, int]:
    """Cut a mask whose first pixel is (top, left) at the edge of an image (y, x), and to its bounding box.

    Returns the part, (0, 0) if nothing is left, and its first pixel. One that is ``tight`` is given back
    as it is if nothing is cut.
    """
    height, width = shape
    if top >= 0 and left >= 0 and top + mask.shape[0] <= height and left + mask.shape[1] <= width:
        if tight:
            return mask, top, left
        part = mask
    else:
        part = mask[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        top, left = max(top, 0), max(left, 0)
    box = tight_box(part)
    if box is None:
        return part[:0, :0], top, left
    return part[box], top + box[0].start, left + box[1].start


def turn_image(array: npt.NDArray[Any], turns: int, flip: bool) -> npt.NDArray[Any]:
    """Turn an image (..., y, x) by quarters, as `numpy.rot90` does, then mirror it along x if asked."""
    turned = np.rot90(array, turns, axes=(-2, -1))
    return np.array(turned[..., ::-1] if flip else turned, order="C")


def _turn_boxes(boxes: IntArray, shape: tuple[int, int], turns: int, flip: bool) -> IntArray:
    """Turn boxes as `turn_image` turns an image of this shape."""
    height, width = shape
    for _ in range(turns):
        y0, x0, y1, x1 = boxes.T
        boxes = np.stack([width - x1, y0, width - x0, y1], axis=1)
        height, width = width, height
    if flip:
        y0, x0, y1, x1 = boxes.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1)
    return boxes
