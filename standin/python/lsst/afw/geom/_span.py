# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of pixels in a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lsst.geom import IntervalI, Point2I

__all__ = ["Span"]


class Span:
    """A run of pixels in a row, both ends included.

    Parameters
    ----------
    y : `int`
        Row.
    x0, x1 : `int`
        First and last column.
    """

    __slots__ = ("_x0", "_x1", "_y")

    def __init__(self, y: int = 0, x0: int = 0, x1: int = -1) -> None:
        self._y, self._x0, self._x1 = int(y), int(x0), int(x1)

    def getY(self) -> int:
        """Return the row."""
        return self._y

    def getX0(self) -> int:
        """Return the first column."""
        return self._x0

    def getX1(self) -> int:
        """Return the last column."""
        return self._x1

    getMinX = getX0
    getMaxX = getX1
    getBeginX = getX0

    def getEndX(self) -> int:
        """Return one past the last column."""
        return self._x1 + 1

    def getX(self) -> IntervalI:
        """Return the interval of columns."""
        return IntervalI(min=self._x0, max=self._x1)

    def getWidth(self) -> int:
        """Return the number of pixels."""
        return self._x1 - self._x0 + 1

    def getMin(self) -> Point2I:
        """Return the first pixel."""
        return Point2I(self._x0, self._y)

    def getMax(self) -> Point2I:
        """Return the last pixel."""
        return Point2I(self._x1, self._y)

    def isEmpty(self) -> bool:
        """Tell whether there is no pixel."""
        return self._x1 < self._x0

    def contains(self, *args: Any, **kwargs: Any) -> Any:
        """Tell whether a column, a pixel or arrays of x and y are inside."""
        if len(args) == 1 and not kwargs:
            (arg,) = args
            if isinstance(arg, Point2I):
                return arg.y == self._y and self._x0 <= arg.x <= self._x1
            return bool(self._x0 <= arg <= self._x1)
        x = args[0] if args else kwargs["x"]
        y = args[1] if len(args) > 1 else kwargs["y"]
        result = (np.asarray(x) >= self._x0) & (np.asarray(x) <= self._x1) & (np.asarray(y) == self._y)
        return bool(result) if result.ndim == 0 else result

    def shift(self, dx: int, dy: int) -> None:
        """Move in place."""
        self._x0 += dx
        self._x1 += dx
        self._y += dy

    def toString(self) -> str:
        """Return row and columns as text."""
        return f"{self._y}: {self._x0}..{self._x1}"

    __str__ = toString

    def __len__(self) -> int:
        return self.getWidth()

    def __iter__(self) -> Iterator[Point2I]:
        return (Point2I(x, self._y) for x in range(self._x0, self._x1 + 1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Span):
            return NotImplemented
        return (self._y, self._x0, self._x1) == (other._y, other._x0, other._x1)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Span) -> bool:
        return (self._y, self._x0, self._x1) < (other._y, other._x0, other._x1)
