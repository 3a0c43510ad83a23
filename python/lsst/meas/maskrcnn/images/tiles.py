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
from typing import Any, NamedTuple

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
# Distance from the edges of the tile, in pixels, from which on a detection is
# as good as it gets.
_CONTEXT = 32.0
# IoU, of the parts of two boxes that both tiles hold, from which detections of
# two tiles are one source.
_SAME_IOU = 0.5
# Share of the box of a detection that is cut in that of a better one of another
# tile, from which it is a fragment of that.
_FRAGMENT = 0.8
# Distance of a box from an edge of its tile inside the image, in pixels, up to
# which it is cut.
_EDGE = 4.0


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


def _smallest_side(length: int, size: int, overlap: int, align: int) -> int:
    """Side of as many tiles as there are of the size along one axis, without more overlap than is wanted."""
    count = len(_starts(length, size, overlap, align))
    least = -(-(length + (count - 1) * overlap) // count)
    sides = range(-(-least // align) * align, size, align)
    return next((side for side in sides if len(_starts(length, side, overlap, align)) == count), size)


def make_tiles(height: int, width: int, size: int, overlap: int, align: int = 1) -> list[Tile]:
    """Cover an image with overlapping tiles.

    Parameters
    ----------
    height, width : `int`
        Shape of the image in pixels.
    size : `int`
        Largest side of a tile.  There are as few tiles as this allows, and
        they are no larger than they have to be.
    overlap : `int`
        The least overlap of neighbours, from 0 to ``size - 1``.
    align : `int`
        Tiles begin at multiples of this many pixels where ``size - overlap``
        is not less.  A network with strides gives the same where two tiles
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
    [(0, 87), (66, 153), (133, 220)]
    >>> [(tile.x0, tile.x1) for tile in make_tiles(100, 220, 100, 20, align=32)]
    [(0, 96), (64, 160), (128, 220)]
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
    rows, columns = (_smallest_side(length, size, overlap, align) for length in (height, width))
    return [
        Tile(y0, x0, min(y0 + rows, height), min(x0 + columns, width))
        for y0 in _starts(height, rows, overlap, align)
        for x0 in _starts(width, columns, overlap, align)
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


class _Pairs(NamedTuple):
    """Pairs of detections of two tiles; (pair,) each."""

    first: IntArray
    second: IntArray
    iou: FloatArray
    """Of the parts of their boxes that both tiles hold."""
    common: FloatArray
    """Area that the boxes have in common."""
    same: BoolArray
    """Whether they may be of one source."""


class _Boxes(NamedTuple):
    """Detections in an order that does not depend on that of the input; (N, ...) each."""

    boxes: FloatArray
    scores: FloatArray
    tile: IntArray
    margin: FloatArray
    """Distance from the edges of the tile inside the image."""

    @property
    def cut(self) -> BoolArray:
        """Whether a part may be missing."""
        return self.margin <= _EDGE


def seam_keep(
    boxes: FloatArray,
    scores: FloatArray,
    tile_index: IntArray,
    tiles: Sequence[Tile],
    height: int,
    width: int,
) -> npt.NDArray[np.int64]:
    """Choose the detections to keep, so that each source is kept once.

    Parameters
    ----------
    boxes, scores, tile_index : `numpy.ndarray`
        Boxes (N, 4) in pixels of the whole image, scores (N,) and index (N,)
        of the tile in which each was detected.
    tiles : sequence of `Tile`
        The tiles.
    height, width : `int`
        Shape of the whole image.

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
    clipped to the pixels of both tiles, so that a source that is whole in one
    tile matches its part in the other, and a source larger than the overlap
    matches its other half.  Two whole boxes, the smaller on the middle of the
    larger, match as well: one tile may take for a star what the other takes for
    a galaxy, whose mask ends much earlier.  Pairs are joined by descending IoU
    into groups of at most one detection of each tile, which keeps blended
    neighbours apart.  Of a group one stays: not cut, then farthest from the
    edges of its tile (up to 32 pixels; of cut ones, the largest), then of the
    highest score.  Last, a detection that is cut is dropped if most of its box
    lies in that of a better one of another tile.  Memory goes with the number
    of boxes that overlap.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = make_tiles(100, 160, 100, 40)
    >>> boxes = np.array([[70.0, 20, 80, 30], [70.5, 20, 80, 30]])
    >>> seam_keep(boxes, np.array([0.8, 0.9]), np.array([0, 1]), tiles, 100, 160).tolist()
    [0]
    """
    boxes, scores = np.asarray(boxes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
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
            f"tile_index is {tile_index.min()} to {tile_index.max()}, but there are {len(tiles)} tiles."
        )
    # Ties must not depend on the order of the input.
    order = np.lexsort((tile_index, -scores, boxes[:, 3], boxes[:, 2], boxes[:, 0], boxes[:, 1]))
    bounds = np.array([[t.x0, t.y0, t.x1, t.y1] for t in tiles], dtype=np.float64)
    boxes, tile_index = boxes[order], tile_index[order]
    margin = _margin(boxes, bounds[tile_index], height, width)
    found = _Boxes(boxes, scores[order], tile_index, margin)
    parts = list(_seam_pairs(found, bounds))
    if not parts:
        return np.arange(n, dtype=np.int64)
    pairs = _Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return np.sort(order[_keep_best(found, pairs)]).astype(np.int64)


def _seam_pairs(found: _Boxes, bounds: FloatArray) -> Iterator[_Pairs]:
    """Find the pairs of detections of two tiles that may be of one source, or one a fragment of the other."""
    boxes, cut, area = found.boxes, found.cut, _area(found.boxes)
    by_tile = np.argsort(found.tile, kind="stable")
    ends = np.searchsorted(found.tile[by_tile], np.arange(len(bounds) + 1))
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
            same = ratio >= _SAME_IOU
            same |= ~cut[i] & ~cut[j] & concentric(boxes[i], boxes[j])
            use = same | (cut[i] & (both >= _FRAGMENT * area[i]))
            use |= cut[j] & (both >= _FRAGMENT * area[j])
            yield _Pairs(i[use], j[use], ratio[use], both[use], same[use])


def _keep_best(found: _Boxes, pairs: _Pairs) -> BoolArray:
    """Keep the best detection of each source, and drop fragments."""
    n, cut, area = len(found.boxes), found.cut, _area(found.boxes)
    same = np.flatnonzero(pairs.same)
    same = same[np.lexsort((pairs.second[same], pairs.first[same], -pairs.iou[same]))]
    label = _merge_groups(n, found.tile, pairs.first[same], pairs.second[same])
    # Whole before cut; whole ones by the pixels around them that the network was given, cut ones by area.
    merit = np.where(cut, area, np.minimum(found.margin, _CONTEXT))
    ranking = np.lexsort((np.arange(n), -found.scores, -merit, cut))
    rank = np.empty(n, dtype=np.int64)
    rank[ranking] = np.arange(n)
    kept = np.zeros(n, dtype=bool)
    _, best = np.unique(label[ranking], return_index=True)
    kept[ranking[best]] = True
    # Rank is a strict order, so that of two cut boxes at most one goes.
    for fragment, other in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
        gone = cut[fragment] & kept[fragment] & (rank[other] < rank[fragment])
        gone &= pairs.common >= _FRAGMENT * area[fragment]
        # The group of the other one has a member that is kept, even where that is not this one.
        kept[fragment[gone]] = False
    return kept
