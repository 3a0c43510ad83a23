# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saturated stars: core, spikes and trails become one source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, find_objects, label

from ..network.detections import Detections
from .masks import join, paint_mask

BoolArray = npt.NDArray[np.bool_]

_ON_CORE = 0.15
"""Least share of a piece that lies on saturated pixels."""

_OWN_DEPTH = 0.5
"""Depth of a second star's own part of a core, in depths of the first star's."""

_SPIKE_RATIO = 0.35
"""Largest axis ratio of a piece of a spike."""

_SPIKE_ANGLE = math.radians(10.0)
"""Largest angle between such a piece and the line to the star."""

_SPIKE_GAP = 4.0
"""Largest gap between it and the star's mask, in radii of the saturated core."""


def join_saturated(found: Detections, saturated: BoolArray) -> Detections:
    """Make the pieces of each saturated star one source, which has the pixels of all.

    Saturated pixels, bool, (y, x), include trails of charge. Pieces share a connected region of them, on
    which a good part of each lies (a galaxy that a trail only touches is not one of them). The star is the
    one on the thickest part of the region. Another piece that is on a thick part of its own is another star
    in the same region of bled charge, and stays. Pieces that are long, narrow and point to the star from
    nearby are its spikes.
    """
    if not len(found) or not saturated.any():
        return found
    regions, _ = label(saturated, structure=np.ones((3, 3), dtype=bool))
    windows = find_objects(regions)
    members: dict[int, list[int]] = {}
    share = np.zeros(len(found))
    for index in range(len(found)):
        region, share[index] = _region(found, index, regions)
        if region:
            members.setdefault(region, []).append(index)
    kept = np.ones(len(found), dtype=bool)
    parts: dict[int, list[int]] = {}
    stars: list[tuple[int, float]] = []
    for region, pieces in sorted(members.items()):
        window = windows[region - 1]
        # A border, since the image's edge does not end a core.
        depth = distance_transform_edt(np.pad(regions[window] == region, 1))[1:-1, 1:-1]
        corner = (window[0].start, window[1].start)
        for star, others, radius in _split_region(found, pieces, depth, corner):
            stars.append((star, radius))
            others = [other for other in others if share[other] >= _ON_CORE]
            if others:
                kept[others] = False
                parts.setdefault(star, []).extend(others)
    _add_spikes(found, stars, kept, parts)
    return join(found, kept, parts)


def _region(found: Detections, index: int, regions: npt.NDArray[Any]) -> tuple[int, float]:
    """Saturated region on which a source lies, 0 for none, and the share of its pixels there."""
    mask = found.masks[index]
    y, x = found.origins[index].tolist()
    under = regions[y : y + mask.shape[0], x : x + mask.shape[1]][mask]
    if not under.any():
        return 0, 0.0
    counts = np.bincount(under)
    counts[0] = 0
    region = int(counts.argmax())
    return region, float(counts[region] / len(under))


def _split_region(
    found: Detections, pieces: list[int], depth: npt.NDArray[np.floating[Any]], corner: tuple[int, int]
) -> list[tuple[int, list[int], float]]:
    """Find the stars of a region, with the pieces and the core radius of each."""
    covered = np.zeros(depth.shape, dtype=bool)
    remaining = sorted(pieces)
    result: list[tuple[int, list[int], float]] = []
    first = 0.0
    while remaining:
        depths = [_deepest(found, index, depth, corner, covered) for index in remaining]
        deepest = int(np.argmax(depths))
        if result and depths[deepest] < max(_OWN_DEPTH * first, 1.5):
            break
        first = first or depths[deepest]
        star = remaining.pop(deepest)
        covered |= paint_mask(found, star, corner, depth.shape)
        result.append((star, [], depths[deepest]))
    for index in remaining:
        place = found.boxes[index].reshape(2, 2).mean(axis=0)
        nearest = min(
            range(len(result)),
            key=lambda n: float(np.hypot(*(found.boxes[result[n][0]].reshape(2, 2).mean(axis=0) - place))),
        )
        result[nearest][1].append(index)
    return result


def _deepest(
    found: Detections,
    index: int,
    depth: npt.NDArray[np.floating[Any]],
    corner: tuple[int, int],
    covered: BoolArray,
) -> float:
    """Largest distance from the edge of the region in a source's own part of it."""
    own = paint_mask(found, index, corner, depth.shape) & ~covered
    return float(depth[own].max()) if own.any() else 0.0


def _add_spikes(
    found: Detections, stars: list[tuple[int, float]], kept: BoolArray, parts: dict[int, list[int]]
) -> None:
    """Find the pieces of spikes, and give each to its star."""
    middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2.0
    own = {star for star, _ in stars}
    for star, radius in sorted(stars, key=lambda item: -item[1]):
        reach = (found.boxes[star, 2:] - found.boxes[star, :2]).max() / 2.0 + _SPIKE_GAP * radius
        offset = middle - middle[star]
        distance = np.hypot(offset[:, 0], offset[:, 1])
        half = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1) / 2.0
        for index in np.flatnonzero(kept & (distance > 0) & (distance - half <= reach)).tolist():
            if index not in own and _points_to(found.masks[index], offset[index]):
                kept[index] = False
                parts.setdefault(star, []).append(index)


def _points_to(mask: BoolArray, offset: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether a mask is a line along the offset (x, y)."""
    rows, columns = np.nonzero(mask)
    if len(rows) < 5:
        return False
    values, vectors = np.linalg.eigh(np.cov(np.stack([columns, rows]).astype(float)))
    # The moments of a pixel, so that a line of pixels has a width.
    ratio = math.sqrt((max(values[0], 0.0) + 1.0 / 12.0) / (values[1] + 1.0 / 12.0))
    along = abs(float(np.dot(vectors[:, 1], offset))) / float(np.hypot(*offset))
    return ratio <= _SPIKE_RATIO and along >= math.cos(_SPIKE_ANGLE)
