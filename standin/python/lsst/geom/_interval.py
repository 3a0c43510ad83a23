# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intervals of one axis, of integers (closed) and floats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lsst.pex.exceptions import InvalidParameterError, OverflowError

from ._coordinates import _as_float, _as_int

__all__ = ["IntervalD", "IntervalI"]


class IntervalI:
    """A range of pixels on one axis, both ends included.

    Parameters
    ----------
    min, max : `int`, optional
        First and last pixel. One of them can be replaced by ``size``.
    size : `int`, optional
        Number of pixels.
    """

    __slots__ = ("_min", "_size")

    def __init__(self, *, min: Any = None, max: Any = None, size: Any = None) -> None:
        if min is None and max is None and size is None:
            self._min, self._size = 0, 0
            return
        if (min is None) + (max is None) + (size is None) != 1:
            raise TypeError("IntervalI takes exactly two of min, max and size.")
        if size is None:
            size = _as_int(max) - _as_int(min) + 1
        elif min is None:
            min = _as_int(max) - _as_int(size) + 1
        self._min, self._size = (_as_int(min), _as_int(size)) if size > 0 else (0, 0)
        for what, value in (("minimum", self._min), ("maximum", self.getMax()), ("size", self._size)):
            if not -(2**31) <= value < 2**31:
                raise OverflowError(f"Integer overflow ({value}) in interval {what}.")

    @classmethod
    def fromMinMax(cls, min: int, max: int) -> IntervalI:
        """Make an interval of its first and last pixel."""
        return cls(min=min, max=max)

    @classmethod
    def fromMinSize(cls, min: int, size: int) -> IntervalI:
        """Make an interval of its first pixel and size."""
        return cls(min=min, size=size)

    def getMin(self) -> int:
        """Return the first pixel."""
        return self._min

    def getMax(self) -> int:
        """Return the last pixel."""
        return self._min + self._size - 1

    def getBegin(self) -> int:
        """Return the first pixel."""
        return self._min

    def getEnd(self) -> int:
        """Return one past the last pixel."""
        return self._min + self._size

    def getSize(self) -> int:
        """Return the number of pixels."""
        return self._size

    min = property(getMin, doc="First pixel.")
    max = property(getMax, doc="Last pixel.")
    begin = property(getBegin, doc="First pixel.")
    end = property(getEnd, doc="One past the last pixel.")
    size = property(getSize, doc="Number of pixels.")

    def isEmpty(self) -> bool:
        """Tell whether there is no pixel."""
        return self._size == 0

    def contains(self, other: Any) -> Any:
        """Tell whether a pixel, an array of them or an interval is inside."""
        if isinstance(other, IntervalI):
            return other.isEmpty() or (other.min >= self.min and other.max <= self.max)
        result = (np.asarray(other) >= self.min) & (np.asarray(other) <= self.max)
        return bool(result) if result.ndim == 0 else result

    __contains__ = contains

    def overlaps(self, other: IntervalI) -> bool:
        """Tell whether two intervals share a pixel."""
        return not self.isDisjointFrom(other)

    intersects = overlaps

    def isDisjointFrom(self, other: IntervalI) -> bool:
        """Tell whether two intervals share no pixel."""
        return self.isEmpty() or other.isEmpty() or self.min > other.max or self.max < other.min

    def clippedTo(self, other: IntervalI) -> IntervalI:
        """Return the common part."""
        if self.isEmpty() or other.isEmpty():
            return IntervalI()
        first, last = max(self.min, other.min), min(self.max, other.max)
        return IntervalI(min=first, max=last)

    def expandedTo(self, other: Any) -> IntervalI:
        """Return the smallest interval with both."""
        if not isinstance(other, IntervalI):
            other = IntervalI(min=other, size=1)
        if other.isEmpty() or self.isEmpty():
            return self if other.isEmpty() else other
        return IntervalI(min=min(self.min, other.min), max=max(self.max, other.max))

    def dilatedBy(self, buffer: int) -> IntervalI:
        """Return the interval grown on both sides."""
        if self.isEmpty():
            return IntervalI()
        return IntervalI(min=self.min - buffer, max=self.max + buffer)

    def erodedBy(self, buffer: int) -> IntervalI:
        """Return the interval shrunk on both sides."""
        return self.dilatedBy(-buffer)

    def shiftedBy(self, offset: int) -> IntervalI:
        """Return the interval moved."""
        return IntervalI() if self.isEmpty() else IntervalI(min=self.min + offset, size=self.size)

    def reflectedAbout(self, point: int) -> IntervalI:
        """Return the mirror image about a pixel."""
        if self.isEmpty():
            return IntervalI()
        return IntervalI(min=2 * point - self.max, max=2 * point - self.min)

    def arange(self, dtype: Any = np.int32) -> np.ndarray:
        """Return the pixels as an array."""
        return np.arange(self.min, self.end, dtype=dtype)

    def slice(self) -> slice:
        """Return the slice that selects the interval from an array."""
        return slice(self.min, self.end)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalI):
            return NotImplemented
        return self._min == other._min and self._size == other._size

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"(min={self.min}, max={self.max})"

    def __repr__(self) -> str:
        return f"IntervalI(min={self.min}, max={self.max})"

    def __reduce__(self) -> tuple[Any, ...]:
        return IntervalI.fromMinSize, (self._min, self._size)


class IntervalD:
    """A range of positions on one axis.

    Parameters
    ----------
    min, max : `float`
        Ends. An interval with ``max < min`` or NaN is empty.
    """

    __slots__ = ("_max", "_min")

    def __init__(self, *, min: Any = math.nan, max: Any = math.nan) -> None:
        self._min, self._max = _as_float(min), _as_float(max)
        if not self._max >= self._min:
            self._min = self._max = math.nan
        elif self._min == math.inf or self._max == -math.inf:
            raise InvalidParameterError("Cannot set interval minimum to +infinity, or maximum to -infinity.")

    @classmethod
    def fromMinMax(cls, min: float, max: float) -> IntervalD:
        """Make an interval of its ends."""
        return cls(min=min, max=max)

    def getMin(self) -> float:
        """Return the lower end."""
        return self._min

    def getMax(self) -> float:
        """Return the upper end."""
        return self._max

    def getSize(self) -> float:
        """Return the length."""
        return 0.0 if self.isEmpty() else self._max - self._min

    def getCenter(self) -> float:
        """Return the middle."""
        return 0.5 * (self._min + self._max)

    min = property(getMin, doc="Lower end.")
    max = property(getMax, doc="Upper end.")
    size = property(getSize, doc="Length.")
    center = property(getCenter, doc="Middle.")

    def isEmpty(self) -> bool:
        """Tell whether there is no position."""
        return math.isnan(self._min)

    def contains(self, other: Any) -> Any:
        """Tell whether a position, an array of them or an interval is in."""
        if isinstance(other, IntervalD):
            return other.isEmpty() or (other.min >= self.min and other.max <= self.max)
        values = np.asarray(other, dtype=float)
        if np.isnan(values).any():
            raise InvalidParameterError("Cannot test whether an interval contains NaN.")
        result = (values >= self.min) & (values <= self.max)
        return bool(result) if result.ndim == 0 else result

    __contains__ = contains

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalD):
            return NotImplemented
        if self.isEmpty() or other.isEmpty():
            return self.isEmpty() and other.isEmpty()
        return self._min == other._min and self._max == other._max

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"(min={self.min}, max={self.max})"

    def __repr__(self) -> str:
        return f"IntervalD(min={self.min}, max={self.max})"

    def __reduce__(self) -> tuple[Any, ...]:
        return IntervalD.fromMinMax, (self._min, self._max)
