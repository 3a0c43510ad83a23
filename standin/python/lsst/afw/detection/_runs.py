# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work on many spans at once, as plain arrays."""

from __future__ import annotations

__all__ = [
    "SHIFT",
    "box_bounds",
    "component_labels",
    "connect_runs",
    "contains_points",
    "find_runs",
    "paint_runs",
    "pixel_keys",
    "split_starts",
]

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from lsst.afw.geom import SpanSet
    from lsst.geom import Box2I

SHIFT = 32
"""Bits by which the row is shifted in the sort key of a pixel."""


def box_bounds(box: Box2I) -> tuple[int, int, int, int]:
    """Return x0, y0, width and height of a box as plain integers."""
    return box.getMinX(), box.getMinY(), box.getWidth(), box.getHeight()


def _key(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    # Negative columns would borrow from the row, hence the offset.
    return (np.asarray(y, np.int64) << SHIFT) + (np.asarray(x, np.int64) + (1 << (SHIFT - 1)))


def pixel_keys(spans: SpanSet) -> np.ndarray:
    """Return one sortable integer for each pixel of a SpanSet.

    Parameters
    ----------
    spans : `lsst.afw.geom.SpanSet`
        Spans, sorted by row and column as every SpanSet is.

    Returns
    -------
    keys : `numpy.ndarray`, (N,)
        Increasing int64 keys, in the order of `SpanSet.flatten`.
    """
    y, x0, x1 = spans._y, spans._x0, spans._x1
    widths = np.asarray(x1, np.int64) - x0 + 1
    starts = np.cumsum(widths) - widths
    within = np.arange(int(widths.sum()), dtype=np.int64) - np.repeat(starts, widths)
    return np.repeat(_key(y, x0), widths) + within


def contains_points(spans: SpanSet, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tell which pixels are in a SpanSet.

    Parameters
    ----------
    spans : `lsst.afw.geom.SpanSet`
        Spans, sorted by row and column.
    x, y : `numpy.ndarray`, (N,)
        Integer pixel positions.

    Returns
    -------
    inside : `numpy.ndarray`, (N,)
        `bool` for each pixel.
    """
    x, y = np.asarray(x, np.int64), np.asarray(y, np.int64)
    if len(spans._y) == 0:
        return np.zeros(x.shape, bool)
    position = np.searchsorted(_key(spans._y, spans._x0), _key(y, x), side="right") - 1
    inside = position >= 0
    position = np.maximum(position, 0)
    return inside & (np.asarray(spans._y)[position] == y) & (x <= np.asarray(spans._x1)[position])


def find_runs(selected: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the horizontal runs of True pixels.

    Parameters
    ----------
    selected : `numpy.ndarray`, (height, width)
        Boolean image.

    Returns
    -------
    y, x0, x1 : `numpy.ndarray`, (R,)
        int32 row, first and last column of each run, in row-major order.
    """
    height, width = selected.shape
    padded = np.zeros((height, width + 1), np.int8)
    padded[:, :width] = selected
    flat = padded.ravel()
    # The zero column at the end of each row keeps runs from going over.
    edges = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    first, after = edges[0::2], edges[1::2]
    y, x0 = np.divmod(first, width + 1)
    x1 = after - 1 - y * (width + 1)
    return y.astype(np.int32), x0.astype(np.int32), x1.astype(np.int32)


def paint_runs(
    y: np.ndarray, x0: np.ndarray, x1: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count how many runs cover each pixel.

    Parameters
    ----------
    y, x0, x1 : `numpy.ndarray`, (R,)
        Runs in array coordinates; they may reach out of the image and
        overlap.
    height, width : `int`
        Shape of the image.

    Returns
    -------
    counts : `numpy.ndarray`, (height, width)
        int32 number of runs on each pixel.
    inside : `numpy.ndarray`, (R,)
        Which runs touch the image.
    """
    inside = (y >= 0) & (y < height) & (x1 >= 0) & (x0 < width)
    row = np.asarray(y, np.int64)[inside] * (width + 1)
    first = row + np.maximum(x0[inside], 0)
    after = row + np.minimum(x1[inside], width - 1) + 1
    steps = np.bincount(first, minlength=height * (width + 1)).astype(np.int32)
    steps -= np.bincount(after, minlength=height * (width + 1)).astype(np.int32)
    counts = np.cumsum(steps.reshape(height, width + 1), axis=1, dtype=np.int32)
    return counts[:, :width], inside


def connect_runs(y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find which runs touch which runs of the row before (8-connected).

    Parameters
    ----------
    y, x0, x1 : `numpy.ndarray`, (R,)
        Runs in row-major order.

    Returns
    -------
    current, previous : `numpy.ndarray`, (P,)
        Indices of touching runs, sorted by ``current``, then ``previous``.
    """
    above = np.asarray(y, np.int64) - 1
    # Runs of a row have increasing first and last columns, so those that
    # touch are one interval of indices.
    low = np.searchsorted(_key(y, x1), _key(above, np.asarray(x0, np.int64) - 1), side="left")
    high = np.searchsorted(_key(y, x0), _key(above, np.asarray(x1, np.int64) + 1), side="right")
    counts = np.maximum(high - low, 0)
    current = np.repeat(np.arange(len(y)), counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return current, np.repeat(low, counts) + within


def component_labels(y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> tuple[int, np.ndarray]:
    """Number the 8-connected components of runs in upstream's order.

    The scan of ``lsst::afw::detection`` goes through the image row by row
    and gives a new number to a run whose first pixel touches nothing in the
    row before; where numbers meet, that of the run's first pixel stays. Its
    list of footprints is sorted by the number that is left.

    Parameters
    ----------
    y, x0, x1 : `numpy.ndarray`, (R,)
        Runs in row-major order.

    Returns
    -------
    n_components : `int`
        Number of components.
    labels : `numpy.ndarray`, (R,)
        Component of each run, counted from 0.
    """
    n_runs = len(y)
    if n_runs == 0:
        return 0, np.zeros(0, np.int64)
    current, previous = connect_runs(y, x0, x1)
    graph = coo_array((np.ones(len(current), np.int8), (current, previous)), shape=(n_runs, n_runs))
    n_components, labels = connected_components(graph, directed=False)

    n_previous = np.bincount(current, minlength=n_runs)
    first_pair = np.cumsum(n_previous) - n_previous
    leftmost = np.zeros(n_runs, np.int64)
    touched = n_previous > 0
    leftmost[touched] = previous[first_pair[touched]]
    # The first pixel sees columns x0 - 1 to x0 + 1 of the row before.
    is_new = ~touched | (np.asarray(x0)[leftmost] > np.asarray(x0) + 1)

    # A run that is not new has the number of its leftmost neighbour; follow
    # those links, doubling their reach, to the run that got the number.
    origin = np.where(is_new, np.arange(n_runs), leftmost)
    while True:
        further = origin[origin]
        if np.array_equal(further, origin):
            break
        origin = further
    number = np.cumsum(is_new) - 1
    node = number[origin]

    # Numbers meet wherever a run touches more than its own number.
    joins = node[current] != node[previous]
    root = np.arange(int(is_new.sum())).tolist()

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for kept, absorbed in zip(node[current[joins]].tolist(), node[previous[joins]].tolist(), strict=True):
        root[find(absorbed)] = find(kept)

    # One number per component is left: the root of any of its runs.
    sample = np.zeros(n_components, np.int64)
    sample[labels] = np.arange(n_runs)
    final = np.array([find(int(node[i])) for i in sample])
    rank = np.empty(n_components, np.int64)
    rank[np.argsort(final)] = np.arange(n_components)
    return n_components, rank[labels]


def split_starts(sorted_labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Return where each label begins in a sorted array, and its end.

    Parameters
    ----------
    sorted_labels : `numpy.ndarray`, (R,)
        Labels in increasing order.
    n_labels : `int`
        Number of labels.

    Returns
    -------
    starts : `numpy.ndarray`, (n_labels + 1,)
        Label ``i`` is at ``starts[i]:starts[i + 1]``.
    """
    return np.searchsorted(sorted_labels, np.arange(n_labels + 1))
