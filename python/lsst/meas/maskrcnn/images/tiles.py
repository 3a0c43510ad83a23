# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Overlapping tiles, and detections kept once across their seams; numpy only.

Boxes are [x0, y0, x1, y1], half open, in pixels of the whole image.
"""

from __future__ import annotations

__all__ = ["Tile", "concentric", "make_tiles", "overlapping_pairs", "seam_keep"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

# Candidate pairs handled at once: bounds the memory for crowded seams.
_PAIR_CHUNK = 1_000_000
# Distance of two centres, in sides of the smaller box, and share of the smaller
# box in the larger one, from which two boxes are on one source.
_CONCENTRIC = 0.25
_CONTAINED = 0.7
# Surroundings, in pixels, beyond which a better centred view is no better.
_CONTEXT = 32.0


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, half open.

    Attributes
    ----------
    y0, x0, y1, x1 : `int`
        First row and column, and the ones after the last.
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices (y, x) that cut the tile from an image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def _starts(length: int, size: int, overlap: int, align: int) -> list[int]:
    """First pixels of the tiles along one axis."""
    if length <= size:
        return [0]
    # The fewest steps of at most size - overlap that reach the end.  Spread
    # evenly, all the seams share the surplus overlap.  All is counted in units
    # of the alignment, where a step is not too short for that.
    unit = align if size - overlap >= align else 1
    units = -(-(length - size) // unit)
    steps = -(-units // ((size - overlap) // unit))
    return [i * units // steps * unit for i in range(steps + 1)]


def make_tiles(height: int, width: int, size: int, overlap: int, align: int = 1) -> list[Tile]:
    """Cover an image with overlapping tiles.

    Parameters
    ----------
    height, width : `int`
        Shape of the image in pixels.
    size : `int`
        Side of a tile.  Along an axis on which the image is smaller, the tile
        is as long as the image.
    overlap : `int`
        The least overlap of neighbours, from 0 to ``size - 1``.
    align : `int`
        Tiles begin at multiples of this many pixels where ``size - overlap``
        is not less.  A network with strides sees the same where two tiles
        overlap only if they begin at multiples of its strides.

    Returns
    -------
    tiles : `list` [`Tile`]
        By rows from the origin; empty for an image without pixels.  All are
        of one size but for the last of a row or column, which are shorter by
        up to ``align - 1`` pixels.

    Raises
    ------
    ValueError
        If the sizes, the overlap or the alignment are out of range.

    Examples
    --------
    >>> [(tile.x0, tile.x1) for tile in make_tiles(100, 220, 100, 20)]
    [(0, 100), (60, 160), (120, 220)]
    >>> [(tile.x0, tile.x1) for tile in make_tiles(100, 220, 100, 20, align=32)]
    [(0, 100), (64, 164), (128, 220)]
    """
    if height < 0 or width < 0:
        raise ValueError(f"The image has shape ({height}, {width}); it cannot be negative.")
    if size < 1:
        raise ValueError(f"The tile size is {size}; it must be at least 1.")
    if not 0 <= overlap < size:
        raise ValueError(f"The overlap is {overlap} for tiles of {size}; it must be from 0 to {size - 1}.")
    if align < 1:
        raise ValueError(f"The alignment is {align}; it must be at least 1.")
    if height == 0 or width == 0:
        return []
    return [
        Tile(y0, x0, min(y0 + size, height), min(x0 + size, width))
        for y0 in _starts(height, size, overlap, align)
        for x0 in _starts(width, size, overlap, align)
    ]


def _tile_pairs(bounds: FloatArray) -> Iterator[tuple[int, int]]:
    """Yield pairs of tiles that share pixels, each once."""
    for a in range(len(bounds) - 1):
        rest = bounds[a + 1 :]
        shared = (np.minimum(rest[:, 2:], bounds[a, 2:]) > np.maximum(rest[:, :2], bounds[a, :2])).all(axis=1)
        for b in np.flatnonzero(shared):
            yield a, a + 1 + int(b)


def overlapping_pairs(first: FloatArray, second: FloatArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Find pairs of boxes that overlap, by a sweep along x.

    Parameters
    ----------
    first, second : `numpy.ndarray`
        Boxes [x0, y0, x1, y1], (N, 4) and (M, 4), pixels; M at least 1.

    Yields
    ------
    i, j : `numpy.ndarray`
        Indices of pairs, in parts that bound the memory.
    """
    # With second sorted by x0, the boxes that can overlap one of first in x
    # are a range of indices.
    order = np.argsort(second[:, 0], kind="stable")
    x0 = second[order, 0]
    widest = float(np.max(second[:, 2] - second[:, 0]))
    low = np.searchsorted(x0, first[:, 0] - widest, side="left")
    high = np.searchsorted(x0, first[:, 2], side="left")
    count = np.maximum(high - low, 0)
    total = np.cumsum(count)
    start = 0
    while start < len(first):
        done = total[start - 1] if start else 0
        # At least one box, then as many as fit into a chunk.
        stop = max(start + 1, int(np.searchsorted(total, done + _PAIR_CHUNK, side="right")))
        n = count[start:stop]
        i = np.repeat(np.arange(start, stop), n)
        j = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(low[start:stop], n)
        j = order[j]
        touch = (np.minimum(first[i, 2:], second[j, 2:]) > np.maximum(first[i, :2], second[j, :2])).all(
            axis=1
        )
        yield i[touch], j[touch]
        start = stop


def _area(boxes: FloatArray) -> FloatArray:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)


def _intersection(first: FloatArray, second: FloatArray) -> FloatArray:
    """Boxes (N, 4) common to the boxes of each pair."""
    return np.concatenate(
        [np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])], axis=1
    )


def concentric(first: FloatArray, second: FloatArray) -> BoolArray:
    """Say which pairs of boxes lie one on the middle of the other.

    The mask of a star reaches much farther than that of a galaxy of the same
    size (0.005 and 0.08 of the peak in the published rule), so that a source
    which is taken for both has two boxes whose IoU is small.

    Parameters
    ----------
    first, second : `numpy.ndarray`
        Boxes [x0, y0, x1, y1], (pair, 4), pixels.

    Returns
    -------
    same : `numpy.ndarray`
        Whether both are on one source, bool, (pair,).
    """
    smaller = np.minimum(_area(first), _area(second))
    offset = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]) / 2
    near = np.hypot(offset[:, 0], offset[:, 1]) <= _CONCENTRIC * np.sqrt(smaller)
    return near & (_area(_intersection(first, second)) >= _CONTAINED * smaller)


def _margin(boxes: FloatArray, bounds: FloatArray, height: int, width: int) -> FloatArray:
    """Distance of boxes from the edges of their tile inside the image.

    Infinite for a tile that has no such edge.
    """
    low = np.where(bounds[:, :2] > 0, boxes[:, :2] - bounds[:, :2], np.inf)
    inside = bounds[:, 2:] < np.array([width, height])
    high = np.where(inside, bounds[:, 2:] - boxes[:, 2:], np.inf)
    return np.minimum(low, high).min(axis=1)


def _merge_groups(n: int, tile_index: IntArray, first: IntArray, second: IntArray) -> npt.NDArray[np.int64]:
    """Join pairs in the given order, never two detections of one tile.

    Returns the label of the group of each detection.
    """
    label = np.arange(n, dtype=np.int64)
    members: dict[int, list[int]] = {}
    tiles: dict[int, set[int]] = {}
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        a, b = int(label[i]), int(label[j])
        if a == b:
            continue
        tiles_a = tiles.get(a) or {int(tile_index[i])}
        tiles_b = tiles.get(b) or {int(tile_index[j])}
        if tiles_a & tiles_b:
            continue
        members[a] = members.get(a, [a]) + members.pop(b, [b])
        tiles[a] = tiles_a | tiles_b
        tiles.pop(b, None)
        label[members[a]] = a
    return label


def seam_keep(
    boxes: FloatArray,
    scores: FloatArray,
    tile_index: IntArray,
    tiles: Sequence[Tile],
    height: int,
    width: int,
    *,
    iou: float = 0.5,
    containment: float = 0.8,
    edge: float = 4.0,
) -> npt.NDArray[np.int64]:
    """Choose the detections to keep, so that each source is kept once.

    Parameters
    ----------
    boxes : `numpy.ndarray`
        Boxes (N, 4) in pixels of the whole image.
    scores : `numpy.ndarray`
        Scores (N,).
    tile_index : `numpy.ndarray`
        Index (N,) of the tile in which each was detected.
    tiles : sequence of `Tile`
        The tiles.
    height, width : `int`
        Shape of the whole image.
    iou : `float`
        Detections of two tiles are one source if the parts of their boxes
        that both tiles see have at least this intersection over union.
    containment : `float`
        A detection that is cut is dropped if at least this fraction of its
        box lies in that of a kept one of another tile which sees more.
    edge : `float`
        A detection is cut if its box comes within this many pixels of an edge
        of its tile that is not one of the image.

    Returns
    -------
    kept : `numpy.ndarray`
        Ascending indices (int64) of the detections to keep.  As a set of
        boxes it does not depend on the order of the input.

    Raises
    ------
    ValueError
        If the shapes do not match or an index has no tile.

    Notes
    -----
    Only detections of different tiles are compared: two sources whose boxes
    overlap in one tile are a blend, not a duplicate.  The boxes of a pair are
    clipped to what both tiles see, so that a source that is whole in one tile
    matches the part of it that the other sees, and a source larger than the
    overlap matches its other half.  Two whole boxes of which the smaller lies on
    the middle of the larger match as well, whatever their IoU: one tile may take
    for a star what the other takes for a galaxy, whose mask ends much earlier.
    Pairs are joined by descending IoU into
    groups that hold at most one detection of each tile; this keeps blended
    neighbours apart, which a plain suppression would merge.  Of a group that
    one stays which is not cut, then lies farthest from the edges of its tile
    (up to 32 pixels; of cut ones, the largest), then has the highest score.
    Last, fragments that are cut go if another tile sees them
    as part of something larger.

    A sweep along x finds the pairs, tile pair by tile pair: memory goes with
    the number of boxes that truly overlap, not with N^2.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = make_tiles(100, 160, 100, 40)
    >>> boxes = np.array([[70.0, 20, 80, 30], [70.5, 20, 80, 30]])
    >>> seam_keep(boxes, np.array([0.8, 0.9]), np.array([0, 1]), tiles, 100, 160).tolist()
    [0]
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    scores = np.asarray(scores, dtype=np.float64)
    tile_index = np.asarray(tile_index)
    n = len(boxes)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    if boxes.shape != (n, 4) or scores.shape != (n,) or tile_index.shape != (n,):
        raise ValueError(
            f"boxes, scores and tile_index have shapes {boxes.shape}, {scores.shape}, {tile_index.shape}; "
            "(N, 4), (N,) and (N,) are needed."
        )
    if tile_index.min() < 0 or tile_index.max() >= len(tiles):
        raise ValueError(
            f"tile_index runs from {tile_index.min()} to {tile_index.max()}, but there are {len(tiles)} "
            "tiles."
        )
    # All the work is on detections in a canonical order, so that ties do not
    # depend on the order of the input.
    order = np.lexsort((tile_index, -scores, boxes[:, 3], boxes[:, 2], boxes[:, 0], boxes[:, 1]))
    boxes, scores, tile_index = boxes[order], scores[order], tile_index[order]
    bounds = np.array([[t.x0, t.y0, t.x1, t.y1] for t in tiles], dtype=np.float64)
    margin = _margin(boxes, bounds[tile_index], height, width)
    cut = margin <= edge
    area = _area(boxes)

    by_tile = np.argsort(tile_index, kind="stable")
    ends = np.searchsorted(tile_index[by_tile], np.arange(len(tiles) + 1))
    pair_first, pair_second, pair_iou, pair_common, pair_alike = [], [], [], [], []
    for a, b in _tile_pairs(bounds):
        common = _intersection(bounds[a : a + 1], bounds[b : b + 1])
        inside = []
        for t in (a, b):
            index = by_tile[ends[t] : ends[t + 1]]
            inside.append(index[_area(_intersection(boxes[index], common)) > 0])
        if not (len(inside[0]) and len(inside[1])):
            continue
        for i, j in overlapping_pairs(boxes[inside[0]], boxes[inside[1]]):
            i, j = inside[0][i], inside[1][j]
            both = _area(_intersection(boxes[i], boxes[j]))
            union = _area(_intersection(boxes[i], common)) + _area(_intersection(boxes[j], common)) - both
            ratio = both / union
            alike = ratio >= iou
            alike |= ~cut[i] & ~cut[j] & concentric(boxes[i], boxes[j])
            # Keep the pairs that can matter below.
            use = alike | (cut[i] & (both >= containment * area[i]))
            use |= cut[j] & (both >= containment * area[j])
            pair_first.append(i[use])
            pair_second.append(j[use])
            pair_iou.append(ratio[use])
            pair_common.append(both[use])
            pair_alike.append(alike[use])
    if not pair_first:
        return np.arange(n, dtype=np.int64)
    first, second = np.concatenate(pair_first), np.concatenate(pair_second)
    ratio, both = np.concatenate(pair_iou), np.concatenate(pair_common)

    same = np.flatnonzero(np.concatenate(pair_alike))
    same = same[np.lexsort((second[same], first[same], -ratio[same]))]
    label = _merge_groups(n, tile_index, first[same], second[same])

    # Rank: whole before cut; whole ones by the surroundings that the network
    # saw, cut ones by area; then by score.
    merit = np.where(cut, area, np.minimum(margin, _CONTEXT))
    ranking = np.lexsort((np.arange(n), -scores, -merit, cut))
    rank = np.empty(n, dtype=np.int64)
    rank[ranking] = np.arange(n)
    kept = np.zeros(n, dtype=bool)
    _, best = np.unique(label[ranking], return_index=True)
    kept[ranking[best]] = True

    # Rank is a strict order, so that of two cut boxes at most one goes.
    for fragment, other in ((first, second), (second, first)):
        gone = cut[fragment] & kept[fragment] & (rank[other] < rank[fragment])
        gone &= both >= containment * area[fragment]
        # Whoever saw the other one best, that place is taken: its group has a
        # kept member even where this very detection is not it.
        kept[fragment[gone]] = False
    return np.sort(order[kept]).astype(np.int64)
