# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parents: which sources touch.

Arrays are (y, x) in pixels of the image, whose first pixel is (0, 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse


@dataclasses.dataclass(frozen=True, eq=False)
class Parent:
    """A connected piece of the image and the sources in it."""

    members: npt.NDArray[np.int64]
    """Indices of its sources, (n,), ascending; a single one if that is isolated."""
    y0: int
    x0: int
    """First pixel of its bounding box in the image."""
    pixels: npt.NDArray[np.bool_]
    """Its pixels within the box, (h, w)."""

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the bounding box covers."""
        height, width = self.pixels.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    @property
    def edge(self) -> npt.NDArray[np.bool_]:
        """Pixels with one of the four neighbours outside, bool, (h, w)."""
        return np.asarray(self.pixels & ~ndimage.binary_erosion(self.pixels))

    def __len__(self) -> int:
        return len(self.members)


def make_parents(
    masks: Sequence[npt.NDArray[np.bool_]],
    origins: npt.ArrayLike,
    shape: tuple[int, int],
    grow: float = 0.0,
    max_sources: float = math.inf,
    max_area: float = math.inf,
) -> list[Parent]:
    """Join N sources whose masks overlap or touch once they are grown by a disc of radius ``grow`` (px).

    Masks are inside the image of a shape (y, x), and none of them is empty (see `~.masks.clean_masks`);
    ``origins``, (N, 2), are (y0, x0) of their first pixels. Every source is in exactly one parent, whose
    pixels are the union of its members' grown masks; parents do not overlap, and are in the order of their
    first members.

    ``max_sources`` and ``max_area`` are the most sources of a parent, and the most pixels of its bounding
    box. The masks of one that has more are grown by a pixel less until it falls apart, as grown masks join
    all of a crowded field to one parent. A parent whose masks overlap may still be over a limit.

    Pixels are connected by sides and corners. The pieces of one mask belong together wherever they lie.
    Memory is a few bytes per pixel of the image, whatever the number of sources.
    """
    corners = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    parents: list[Parent] = []
    for parent in _connect(masks, corners, shape, grow) if len(masks) else []:
        over = len(parent) > max_sources or parent.pixels.size > max_area
        if len(parent) == 1 or grow == 0 or not over:
            parents.append(parent)
            continue
        own = [masks[index] for index in parent.members.tolist()]
        places = corners[parent.members] - (parent.y0, parent.x0)
        less = max(grow - 1.0, 0.0)
        parents += [
            Parent(parent.members[part.members], part.y0 + parent.y0, part.x0 + parent.x0, part.pixels)
            for part in make_parents(own, places, parent.pixels.shape, less, max_sources, max_area)
        ]
    return sorted(parents, key=lambda parent: int(parent.members[0]))


def _connect(
    masks: Sequence[npt.NDArray[np.bool_]],
    corners: npt.NDArray[np.int64],
    shape: tuple[int, int],
    grow: float,
) -> list[Parent]:
    """Join sources whose grown masks are connected."""
    covered = np.zeros(shape, dtype=bool)
    windows = []
    for mask, (y0, x0) in zip(masks, corners.tolist(), strict=True):
        height, width = mask.shape
        windows.append((slice(y0, y0 + height), slice(x0, x0 + width)))
        covered[windows[-1]] |= mask
    labels, n_labels = ndimage.label(grow_pixels(covered, grow), structure=np.ones((3, 3), dtype=bool))
    del covered
    first, group = _group_labels(masks, windows, labels, n_labels)
    boxes = ndimage.find_objects(labels)
    pieces: dict[int, list[int]] = {}
    for label in range(1, n_labels + 1):
        pieces.setdefault(int(group[label]), []).append(label)

    group_of = group[first]
    # Stable: members ascend within a group.
    by_group = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[by_group], prepend=-1))
    parents = []
    for members in np.split(by_group, starts[1:]):
        own = pieces[int(group_of[members[0]])]
        rows = [boxes[label - 1][0] for label in own]
        columns = [boxes[label - 1][1] for label in own]
        y0, x0 = min(item.start for item in rows), min(item.start for item in columns)
        window = labels[y0 : max(item.stop for item in rows), x0 : max(item.stop for item in columns)]
        pixels = window == own[0] if len(own) == 1 else np.isin(window, own)
        parents.append(Parent(members.astype(np.int64), y0, x0, pixels))
    return parents


def _group_labels(
    masks: Sequence[npt.NDArray[np.bool_]],
    windows: Sequence[tuple[slice, slice]],
    labels: npt.NDArray[np.int32],
    n_labels: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.integer]]:
    """First label of each mask, and the group of each label: one for all labels of a mask."""
    first = np.empty(len(masks), dtype=np.int64)
    links: list[tuple[int, int]] = []
    for index, (mask, window) in enumerate(zip(masks, windows, strict=True)):
        found = labels[window][mask]
        first[index] = found[0]
        if (found != found[0]).any():
            links += [(int(found[0]), int(other)) for other in np.unique(found)]
    if not links:
        return first, np.arange(n_labels + 1)
    one, other = np.array(links).T
    graph = sparse.coo_array((np.ones(len(one)), (one, other)), shape=(n_labels + 1, n_labels + 1))
    return first, sparse.csgraph.connected_components(graph, directed=False)[1]


def grow_pixels(covered: npt.NDArray[np.bool_], radius: float) -> npt.NDArray[np.bool_]:
    """Set all pixels, (y, x), within a radius (px) of one that is set."""
    reach = int(radius)
    if reach == 0:
        return covered
    height, width = covered.shape
    grown = np.zeros_like(covered)
    # Widths of the rows of a disc fall with the distance from its middle, so that one row-wise union grows
    # step by step.
    row = covered.copy()
    half = 0
    for dy in range(reach, -1, -1):
        wanted = int(np.sqrt(radius**2 - dy**2))
        while half < min(wanted, width - 1):
            half += 1
            row[:, half:] |= covered[:, :-half]
            row[:, :-half] |= covered[:, half:]
        if dy < height:
            grown[dy:] |= row[: height - dy]
            grown[: height - dy] |= row[dy:]
    return grown
