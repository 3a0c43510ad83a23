# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Overlapping tiles of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, half open: first row and column, and the ones after the last."""

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
    """Cover an image with overlapping tiles, by rows from the origin.

    There are as few tiles as their largest side, ``size``, allows, and they are no larger
    than they have to be. All are of one size but for the last of a row or column, which
    are shorter by up to ``align - 1`` pixels. ``overlap`` is the least one of neighbours,
    from 0 to ``size - 1``. Tiles begin at multiples of ``align`` where ``size - overlap``
    is not less. A network with strides gives the same where two tiles overlap only if
    they begin at multiples of its strides.

    Examples
    --------
    >>> [(tile.x0, tile.x1) for tile in make_tiles(100, 220, 100, 20)]
    [(0, 87), (66, 153), (133, 220)]
    >>> [(tile.x0, tile.x1) for tile in make_tiles(100, 220, 100, 20, align=32)]
    [(0, 96), (64, 160), (128, 220)]
    """
    if height == 0 or width == 0:
        return []
    rows, columns = (_smallest_side(length, size, overlap, align) for length in (height, width))
    return [
        Tile(y0, x0, min(y0 + rows, height), min(x0 + columns, width))
        for y0 in _starts(height, rows, overlap, align)
        for x0 in _starts(width, columns, overlap, align)
    ]
