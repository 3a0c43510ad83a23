# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Regions of a training image that are ignored in the loss.

What lies under masked pixels or below the limits of the truth is not known to
be a source, nor to be none, so it is neither a positive nor a negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

_IGNORED_SHARE = 0.5
"""Share of a box above which, if it lies in ignored regions, the box is no
negative."""


@torch.no_grad()
def ignored_share(boxes: Tensor, ignore_boxes: Tensor) -> Tensor:
    """Measure how much of each box (box, 4) lies in the union of others: 0 to 1, float32, (box,).

    Boxes are [x0, y0, x1, y1], half open; the others are rounded to whole pixels.
    From a summed-area table of the union, so that time and memory do not grow with
    the product of the two numbers.
    """
    boxes = boxes.float()
    if not len(ignore_boxes) or not len(boxes):
        return boxes.new_zeros(len(boxes))
    x0, y0, x1, y1 = ignore_boxes.round().long().clamp_min(0).unbind(dim=1)
    height, width = int(y1.max()), int(x1.max())
    edges = torch.zeros((height + 1, width + 1), dtype=torch.int32, device=boxes.device)
    one = torch.ones_like(x0, dtype=torch.int32)
    for row, column, sign in ((y0, x0, one), (y0, x1, -one), (y1, x0, -one), (y1, x1, one)):
        edges.index_put_((row, column), sign, accumulate=True)
    covered = edges.cumsum(0).cumsum(1)[:height, :width] > 0
    table = torch.zeros((height + 1, width + 1), dtype=torch.float32, device=boxes.device)
    table[1:, 1:] = covered.int().cumsum(0).cumsum(1).float()

    def at(y: Tensor, x: Tensor) -> Tensor:
        # The sum is bilinear within a pixel.
        y, x = y.clamp(0, height), x.clamp(0, width)
        row, column = y.long().clamp_max(max(height - 1, 0)), x.long().clamp_max(max(width - 1, 0))
        dy, dx = y - row, x - column
        top = table[row, column] * (1 - dx) + table[row, column + 1] * dx
        bottom = table[row + 1, column] * (1 - dx) + table[row + 1, column + 1] * dx
        return top * (1 - dy) + bottom * dy

    if height == 0 or width == 0:
        return boxes.new_zeros(len(boxes))
    left, top, right, bottom = boxes.unbind(dim=1)
    inside = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    area = (right - left) * (bottom - top)
    return torch.where(area > 0, inside / area.clamp_min(1e-6), torch.zeros_like(area)).clamp(0.0, 1.0)


def exclude_ignored(labels: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Set the labels of negatives (0) that lie mostly in ``ignore_boxes`` to -1: not in the loss."""
    regions = target.get("ignore_boxes")
    if regions is None or not len(regions):
        return labels
    share = ignored_share(boxes, regions)
    negative = labels == 0
    kept = torch.where(negative & (share > _IGNORED_SHARE), -torch.ones_like(labels), labels)
    if bool((kept >= 0).any()):
        return kept
    # A mean over nothing is not a number: the least covered box stays in.
    least = torch.where(negative, share, torch.full_like(share, 2.0)).argmin()
    kept[least] = labels[least]
    return kept
