# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the square masks of the mask head to pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

MASK_THRESHOLD = 0.5
"""Mask probability from which a pixel belongs to a source: the one at which
the loss of the mask head (binary cross entropy) is indifferent."""

_PASTE_CELLS = 4_000_000
"""Largest number of mask pixels that are computed at once."""

_SOFT_FLOOR = 0.05
"""Mask probability from which a pixel is in a soft mask."""


class SoftMasks(NamedTuple):
    """Masks in pixels, hard and soft; names are those of `~.detections.Detections`."""

    origins: npt.NDArray[np.int32]
    """(y0, x0) of each mask, (source, 2)."""

    masks: list[npt.NDArray[np.bool_]]
    """Pixels over the threshold, (y, x) each, tight; of no pixel where there
    are none."""

    soft_origins: npt.NDArray[np.int32]
    """(y0, x0) of each of ``soft``, (source, 2)."""

    soft: list[npt.NDArray[np.uint8]]
    """Probability times 255, rounded, (y, x) each, on all pixels of the mask
    and those over 5 %; of no pixel where there are none."""

    @classmethod
    def empty(cls, count: int) -> SoftMasks:
        """Make masks without pixels."""
        hard, soft = np.zeros((0, 0), bool), np.zeros((0, 0), np.uint8)
        corners = np.zeros((count, 2), np.int32)
        return cls(corners, [hard] * count, corners.copy(), [soft] * count)


def paste_soft_masks(cells: Tensor, boxes: Tensor, size: tuple[int, int]) -> SoftMasks:
    """Bring the square masks of the mask head to pixels, hard and soft.

    Probabilities are (source, cell, cell), boxes (source, 4), the size of the tile (y, x). This is the
    inverse of torchvision's ``project_masks_on_boxes``, which makes the targets of the mask head: cell j of n
    has its centre at x0 + (j + 0.5) (x1 - x0) / n, and there the pixel in column i stands at i, not at i +
    0.5.
    """
    count = len(cells)
    result = SoftMasks.empty(count)
    if not count:
        return result
    lower = (boxes[:, :2].floor() - 1).clamp_min(0)
    upper = torch.minimum(boxes[:, 2:].ceil() + 1, boxes.new_tensor([size[1], size[0]]))
    extents = (upper - lower).long()
    sides = extents.amax(dim=1)
    order = torch.argsort(sides, stable=True).tolist()
    largest = sides.tolist()
    first = 0
    while first < count:
        # Sources of similar size share a grid; its cells bound the memory.
        last = first + 1
        while last < count and (last + 1 - first) * largest[order[last]] ** 2 <= _PASTE_CELLS:
            if largest[order[last]] > 2 * largest[order[first]] + 8:
                break
            last += 1
        index = torch.tensor(order[first:last], device=boxes.device)
        first = last
        corner = lower[index]
        values, inside = _sample(cells[index], boxes[index], corner, extents[index])
        painted = ((values >= MASK_THRESHOLD) & inside).cpu().numpy()
        _cut_out(painted, painted, corner, index, result.masks, result.origins)
        levels = ((values * 255.0 + 0.5).to(torch.uint8) * inside).cpu().numpy()
        drawn = ((values >= _SOFT_FLOOR) & inside).cpu().numpy()
        _cut_out(levels, drawn, corner, index, result.soft, result.soft_origins)
    return result


def _sample(cells: Tensor, boxes: Tensor, corner: Tensor, extents: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate masks on the pixels from a corner on, and say which of those are in their reach."""
    side = cells.shape[-1]
    places, insides = [], []
    for axis, length in enumerate(int(v) for v in extents.amax(dim=0)):
        pixel = torch.arange(length, device=boxes.device)
        low, high = boxes[:, axis : axis + 1], boxes[:, axis + 2 : axis + 3]
        place = (pixel + corner[:, axis : axis + 1] - low) / (high - low)
        # Half a cell beyond its box a mask ends, and pixels beyond its own extent are those of larger ones.
        reach = 0.5 / side
        insides.append((place > -reach) & (place < 1.0 + reach) & (pixel < extents[:, axis : axis + 1]))
        places.append(2.0 * place - 1.0)
    x, y = places
    height, width = y.shape[1], x.shape[1]
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    values = functional.grid_sample(
        cells.reshape(-1, 1, side, side), grid, align_corners=False, padding_mode="border"
    )[:, 0]
    return values, insides[0][:, None, :] & insides[1][:, :, None]


def _cut_out(
    pixels: npt.NDArray[Any],
    drawn: npt.NDArray[np.bool_],
    corner: Tensor,
    index: Tensor,
    cutouts: list[npt.NDArray[Any]],
    origins: npt.NDArray[np.int32],
) -> None:
    """Cut arrays (source, y, x) down to the pixels of each source that are drawn."""
    rows: npt.NDArray[np.bool_] = np.logical_or.reduce(drawn, axis=2)
    columns: npt.NDArray[np.bool_] = np.logical_or.reduce(drawn, axis=1)
    y0, x0 = rows.argmax(axis=1), columns.argmax(axis=1)
    y1 = rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    x1 = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    corners = corner.long().cpu().numpy()
    there = np.flatnonzero(rows.any(axis=1))
    where = index.cpu().numpy()
    origins[where[there]] = np.stack([corners[there, 1] + y0[there], corners[there, 0] + x0[there]], axis=1)
    for source in there.tolist():
        cutouts[where[source]] = pixels[source, y0[source] : y1[source], x0[source] : x1[source]].copy()
