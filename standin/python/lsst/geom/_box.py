# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boxes of pixels (closed) and of positions (half open)."""

from __future__ import annotations

import enum
import math
from typing import Any, ClassVar

import numpy as np

from lsst.pex.exceptions import InvalidParameterError, OverflowError

from ._coordinates import Extent2D, Extent2I, Point2D, Point2I, _as_float, _as_int
from ._interval import IntervalD, IntervalI

__all__ = ["Box2D", "Box2I", "BoxD", "BoxI"]

_INT32 = 2**31 - 1


def _bind(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Return the arguments in the order of ``names``; `None` if not given."""
    if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]):
        raise TypeError(f"{name} got arguments {args} {kwargs}; it takes {', '.join(names)}.")
    return [*args, *(kwargs.get(n) for n in names[len(args) :])]


def _corner_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, bool]:
    names = next(
        (
            pair
            for pair in (("minimum", "maximum"), ("corner", "dimensions"), ("x", "y"))
            if set(pair) & set(kwargs)
        ),
        ("minimum", "maximum"),
    )
    first, second, invert = _bind(name, args, kwargs, (*names, "invert"))
    return first, second, True if invert is None else bool(invert)


class Box2I:
    """A rectangle of pixels; minimum and maximum are both inside.

    Can be made of a minimum and a maximum `Point2I`, of a corner `Point2I`
    and an `Extent2I`, of two `IntervalI`, of a `Box2D` with an
    ``edgeHandling``, or of another box.
    """

    __slots__ = ("_h", "_w", "_x0", "_y0")

    Point = Point2I
    Extent = Extent2I

    class EdgeHandlingEnum(enum.Enum):
        """What to do with pixels that a `Box2D` covers in part."""

        EXPAND = 0
        SHRINK = 1

    EXPAND = EdgeHandlingEnum.EXPAND
    SHRINK = EdgeHandlingEnum.SHRINK

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._x0 = self._y0 = self._w = self._h = 0
        if not args and not kwargs:
            return
        first = args[0] if args else kwargs.get("other")
        if isinstance(first, Box2I):
            _bind("Box2I", args, kwargs, ("other",))
            self._x0, self._y0, self._w, self._h = first._x0, first._y0, first._w, first._h
            return
        if isinstance(first, Box2D):
            _, edges = _bind("Box2I", args, kwargs, ("other", "edgeHandling"))
            self._set_from_box2d(first, self.EXPAND if edges is None else edges)
            return
        a, b, invert = _corner_arguments("Box2I", args, kwargs)
        if isinstance(a, IntervalI) and isinstance(b, IntervalI):
            if not a.isEmpty() and not b.isEmpty():
                self._x0, self._y0, self._w, self._h = a.min, b.min, a.size, b.size
            return
        if not isinstance(a, Point2I) or not isinstance(b, Point2I | Extent2I):
            raise TypeError(
                "Box2I takes (Point2I, Point2I), (Point2I, Extent2I), two IntervalI or a box; "
                f"given {a!r}, {b!r}."
            )
        start, size = [], []
        for low, other in zip(a, b, strict=True):
            if isinstance(b, Point2I):
                length = other - low
                if length < 0:
                    if not invert:
                        return
                    low, length = other, -length
                length += 1
            else:
                length = other
                if length == 0 or (length < 0 and not invert):
                    return
                if length < 0:
                    low, length = low + length + 1, -length
            start.append(low)
            size.append(length)
        if any(v + n - 1 > _INT32 or n > _INT32 for v, n in zip(start, size, strict=True)):
            raise OverflowError("Box dimensions too large; integer overflow detected.")
        (self._x0, self._y0), (self._w, self._h) = start, size

    def _set_from_box2d(self, other: Box2D, edges: Box2I.EdgeHandlingEnum) -> None:
        if other.isEmpty():
            return
        limits = (other.minX, other.minY, other.maxX, other.maxY)
        if not all(math.isfinite(v) for v in limits):
            raise InvalidParameterError("Cannot convert non-finite IntervalD to IntervalI")
        shift = 0.5 if edges is Box2I.EXPAND else -0.5
        x0, y0 = math.ceil(limits[0] - shift), math.ceil(limits[1] - shift)
        x1, y1 = math.floor(limits[2] + shift), math.floor(limits[3] + shift)
        if x1 >= x0 and y1 >= y0:
            self._x0, self._y0, self._w, self._h = x0, y0, x1 - x0 + 1, y1 - y0 + 1

    @classmethod
    def _of(cls, x0: int, y0: int, x1: int, y1: int) -> Box2I:
        """Make a box of inclusive limits; empty if they are reversed."""
        new = cls()
        if x1 >= x0 and y1 >= y0:
            new._x0, new._y0, new._w, new._h = int(x0), int(y0), int(x1 - x0 + 1), int(y1 - y0 + 1)
        return new

    @staticmethod
    def makeCenteredBox(center: Any, size: Any) -> Box2I:
        """Make a box of a size, centred as well as pixels allow."""
        if not all(math.isfinite(v) for v in center):
            raise InvalidParameterError("Cannot make Box2I with non-finite center")
        corner = Point2D(center[0] - 0.5 * size[0] + 0.5, center[1] - 0.5 * size[1] + 0.5)
        return Box2I(Point2I(corner), Extent2I(size), invert=False)

    def swap(self, other: Box2I) -> None:
        """Exchange the limits of two boxes."""
        for name in Box2I.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs)
            setattr(other, name, mine)

    def getMinX(self) -> int:
        """Return the first column."""
        return self._x0

    def getMinY(self) -> int:
        """Return the first row."""
        return self._y0

    def getMaxX(self) -> int:
        """Return the last column."""
        return self._x0 + self._w - 1

    def getMaxY(self) -> int:
        """Return the last row."""
        return self._y0 + self._h - 1

    def getEndX(self) -> int:
        """Return one past the last column."""
        return self._x0 + self._w

    def getEndY(self) -> int:
        """Return one past the last row."""
        return self._y0 + self._h

    getBeginX = getMinX
    getBeginY = getMinY

    def getMin(self) -> Point2I:
        """Return the pixel of the lower left corner."""
        return Point2I(self._x0, self._y0)

    getBegin = getMin

    def getMax(self) -> Point2I:
        """Return the pixel of the upper right corner."""
        return Point2I(self.getMaxX(), self.getMaxY())

    def getEnd(self) -> Point2I:
        """Return one past the upper right corner."""
        return Point2I(self.getEndX(), self.getEndY())

    def getDimensions(self) -> Extent2I:
        """Return width and height."""
        return Extent2I(self._w, self._h)

    def getWidth(self) -> int:
        """Return the number of columns."""
        return self._w

    def getHeight(self) -> int:
        """Return the number of rows."""
        return self._h

    def getArea(self) -> int:
        """Return the number of pixels."""
        return self._w * self._h

    def getCenter(self) -> Point2D:
        """Return the centre."""
        return Box2D(self).getCenter()

    def getCenterX(self) -> float:
        """Return x of the centre."""
        return self.getCenter().x

    def getCenterY(self) -> float:
        """Return y of the centre."""
        return self.getCenter().y

    def getX(self) -> IntervalI:
        """Return the interval of columns."""
        return IntervalI(min=self._x0, size=self._w)

    def getY(self) -> IntervalI:
        """Return the interval of rows."""
        return IntervalI(min=self._y0, size=self._h)

    minX = property(getMinX, doc="First column.")
    minY = property(getMinY, doc="First row.")
    maxX = property(getMaxX, doc="Last column.")
    maxY = property(getMaxY, doc="Last row.")
    beginX = property(getMinX, doc="First column.")
    beginY = property(getMinY, doc="First row.")
    endX = property(getEndX, doc="One past the last column.")
    endY = property(getEndY, doc="One past the last row.")
    width = property(getWidth, doc="Number of columns.")
    height = property(getHeight, doc="Number of rows.")
    area = property(getArea, doc="Number of pixels.")
    centerX = property(getCenterX, doc="x of the centre.")
    centerY = property(getCenterY, doc="y of the centre.")
    x = property(getX, doc="Interval of columns.")
    y = property(getY, doc="Interval of rows.")

    def isEmpty(self) -> bool:
        """Tell whether there is no pixel."""
        return self._w == 0 or self._h == 0

    def contains(self, *args: Any, **kwargs: Any) -> Any:
        """Tell whether a point, a box or arrays of x and y are inside."""
        if len(args) == 1 and not kwargs:
            (other,) = args
            if isinstance(other, Box2I):
                return self.x.contains(other.x) and self.y.contains(other.y)
            if not isinstance(other, Point2I):
                raise TypeError(f"Box2I.contains takes a Point2I or Box2I; given {other!r}.")
            return self.x.contains(other.x) and self.y.contains(other.y)
        x, y = _bind("Box2I.contains", args, kwargs, ("x", "y"))
        result = np.logical_and(self.x.contains(x), self.y.contains(y))
        return bool(result) if result.ndim == 0 else result

    def __contains__(self, other: Any) -> bool:
        return self.contains(other)

    def overlaps(self, other: Box2I) -> bool:
        """Tell whether two boxes share a pixel."""
        return not self.isDisjointFrom(other)

    intersects = overlaps

    def isDisjointFrom(self, other: Box2I) -> bool:
        """Tell whether two boxes share no pixel."""
        return self.x.isDisjointFrom(other.x) or self.y.isDisjointFrom(other.y)

    def dilatedBy(self, buffer: Any) -> Box2I:
        """Return the box grown on all sides by an integer or an extent."""
        if self.isEmpty():
            return Box2I()
        bx, by = _buffer(buffer, _as_int)
        return self._of(self._x0 - bx, self._y0 - by, self.maxX + bx, self.maxY + by)

    def erodedBy(self, buffer: Any) -> Box2I:
        """Return the box shrunk on all sides by an integer or an extent."""
        return self.dilatedBy(-buffer)

    def shiftedBy(self, offset: Extent2I) -> Box2I:
        """Return the box moved."""
        if self.isEmpty():
            return Box2I()
        dx, dy = _buffer(offset, _as_int)
        return self._of(self._x0 + dx, self._y0 + dy, self.maxX + dx, self.maxY + dy)

    def reflectedAboutX(self, x: int) -> Box2I:
        """Return the mirror image about a column."""
        return Box2I(self.x.reflectedAbout(x), self.y)

    def reflectedAboutY(self, y: int) -> Box2I:
        """Return the mirror image about a row."""
        return Box2I(self.x, self.y.reflectedAbout(y))

    def expandedTo(self, other: Any) -> Box2I:
        """Return the smallest box with this one and a point or box."""
        if isinstance(other, Point2I):
            other = self._of(other.x, other.y, other.x, other.y)
        if other.isEmpty() or self.isEmpty():
            return Box2I(self if other.isEmpty() else other)
        return self._of(
            min(self._x0, other._x0),
            min(self._y0, other._y0),
            max(self.maxX, other.maxX),
            max(self.maxY, other.maxY),
        )

    def clippedTo(self, other: Box2I) -> Box2I:
        """Return the common part."""
        if self.isEmpty() or other.isEmpty():
            return Box2I()
        return self._of(
            max(self._x0, other._x0),
            max(self._y0, other._y0),
            min(self.maxX, other.maxX),
            min(self.maxY, other.maxY),
        )

    def _assign(self, other: Box2I) -> None:
        self._x0, self._y0, self._w, self._h = other._x0, other._y0, other._w, other._h

    def grow(self, buffer: Any) -> None:
        """Grow in place."""
        self._assign(self.dilatedBy(buffer))

    def shift(self, offset: Extent2I) -> None:
        """Move in place."""
        self._assign(self.shiftedBy(offset))

    def include(self, other: Any) -> None:
        """Grow in place to hold a point or box."""
        self._assign(self.expandedTo(other))

    def clip(self, other: Box2I) -> None:
        """Cut to another box in place."""
        self._assign(self.clippedTo(other))

    def flipLR(self, xExtent: int) -> None:
        """Mirror left and right in a parent of the given width."""
        if not self.isEmpty():
            self._x0 = xExtent - (self._x0 + self._w)

    def flipTB(self, yExtent: int) -> None:
        """Mirror top and bottom in a parent of the given height."""
        if not self.isEmpty():
            self._y0 = yExtent - (self._y0 + self._h)

    def getCorners(self) -> list[Point2I]:
        """Return the corner pixels counter-clockwise from the minimum."""
        return [
            self.getMin(),
            Point2I(self.maxX, self.minY),
            self.getMax(),
            Point2I(self.minX, self.maxY),
        ]

    def getSlices(self) -> tuple[slice, slice]:
        """Return the slices (y, x) that select the box from an array."""
        return slice(self._y0, self.endY, 1), slice(self._x0, self.endX, 1)

    slices = property(getSlices, doc="Slices (y, x) that select the box from an array.")

    def grid(self, dtype: Any = np.int32) -> Any:
        """Return arrays (y, x) of the x and y of every pixel."""
        return np.meshgrid(self.x.arange(dtype=dtype), self.y.arange(dtype=dtype))

    def toString(self) -> str:
        """Return corner and dimensions as text."""
        return f"Box2I({self.getMin().toString()},{self.getDimensions().toString()})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Box2I):
            return NotImplemented
        return (self._x0, self._y0, self._w, self._h) == (other._x0, other._y0, other._w, other._h)

    # Upstream's wrapped class defines equality and no hash.
    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"(minimum={self.getMin()}, maximum={self.getMax()})"

    def __repr__(self) -> str:
        return f"Box2I(corner={self.getMin()!r}, dimensions={self.getDimensions()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.isEmpty():
            return Box2I, ()
        return Box2I, (self.getMin(), self.getMax())


def _buffer(value: Any, convert: Any) -> tuple[Any, Any]:
    if isinstance(value, Extent2I | Extent2D):
        return convert(value[0]), convert(value[1])
    number = convert(value)
    return number, number


class Box2D:
    """A rectangle of positions; the maximum is outside.

    Can be made of a minimum and a maximum `Point2D`, of a corner `Point2D`
    and an `Extent2D`, of two `IntervalD`, of a `Box2I` (which it covers with
    half a pixel on each side), or of another box.
    """

    __slots__ = ("_max", "_min")

    Point = Point2D
    Extent = Extent2D
    EPSILON: ClassVar[float] = 2.0 * float(np.finfo(float).eps)
    INVALID: ClassVar[float] = math.nan

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._min = (math.nan, math.nan)
        self._max = (math.nan, math.nan)
        if not args and not kwargs:
            return
        first = args[0] if args else None
        if isinstance(first, Box2D):
            self._min, self._max = first._min, first._max
            return
        if isinstance(first, Box2I):
            if not first.isEmpty():
                self._min = (first.minX - 0.5, first.minY - 0.5)
                self._max = (first.maxX + 0.5, first.maxY + 0.5)
            return
        a, b, invert = _corner_arguments("Box2D", args, kwargs)
        if isinstance(a, IntervalD) and isinstance(b, IntervalD):
            if not a.isEmpty() and not b.isEmpty():
                self._min, self._max = (a.min, b.min), (a.max, b.max)
            return
        if not isinstance(a, Point2D) or not isinstance(b, Point2D | Extent2D):
            raise TypeError(
                "Box2D takes (Point2D, Point2D), (Point2D, Extent2D), two IntervalD or a box; "
                f"given {a!r}, {b!r}."
            )
        low = tuple(a)
        high = tuple(b) if isinstance(b, Point2D) else (a.x + b.x, a.y + b.y)
        if any(p == q or (p > q and not invert) for p, q in zip(low, high, strict=True)):
            return
        # Not by min and max, which would take a NaN for the other limit.
        limits = [(q, p) if p > q else (p, q) for p, q in zip(low, high, strict=True)]
        self._min, self._max = zip(*limits)

    @classmethod
    def _of(cls, x0: float, y0: float, x1: float, y1: float) -> Box2D:
        new = cls()
        if x1 > x0 and y1 > y0:
            new._min, new._max = (x0, y0), (x1, y1)
        return new

    @staticmethod
    def makeCenteredBox(center: Point2D, size: Extent2D) -> Box2D:
        """Make a box of a size about a centre."""
        corner = Point2D(center[0] - 0.5 * size[0], center[1] - 0.5 * size[1])
        return Box2D(corner, Extent2D(size), invert=False)

    def getMinX(self) -> float:
        """Return the lower limit of x."""
        return self._min[0]

    def getMinY(self) -> float:
        """Return the lower limit of y."""
        return self._min[1]

    def getMaxX(self) -> float:
        """Return the upper limit of x."""
        return self._max[0]

    def getMaxY(self) -> float:
        """Return the upper limit of y."""
        return self._max[1]

    def getMin(self) -> Point2D:
        """Return the lower left corner."""
        return Point2D(*self._min)

    def getMax(self) -> Point2D:
        """Return the upper right corner."""
        return Point2D(*self._max)

    def getWidth(self) -> float:
        """Return the length in x."""
        return 0.0 if self.isEmpty() else self._max[0] - self._min[0]

    def getHeight(self) -> float:
        """Return the length in y."""
        return 0.0 if self.isEmpty() else self._max[1] - self._min[1]

    def getDimensions(self) -> Extent2D:
        """Return width and height."""
        return Extent2D(self.getWidth(), self.getHeight())

    def getArea(self) -> float:
        """Return the area."""
        return self.getWidth() * self.getHeight()

    def getCenter(self) -> Point2D:
        """Return the centre."""
        return Point2D(self.getCenterX(), self.getCenterY())

    def getCenterX(self) -> float:
        """Return x of the centre."""
        return (self._min[0] + self._max[0]) * 0.5

    def getCenterY(self) -> float:
        """Return y of the centre."""
        return (self._min[1] + self._max[1]) * 0.5

    def getX(self) -> IntervalD:
        """Return the interval of x."""
        return IntervalD(min=self._min[0], max=self._max[0])

    def getY(self) -> IntervalD:
        """Return the interval of y."""
        return IntervalD(min=self._min[1], max=self._max[1])

    minX = property(getMinX, doc="Lower limit of x.")
    minY = property(getMinY, doc="Lower limit of y.")
    maxX = property(getMaxX, doc="Upper limit of x.")
    maxY = property(getMaxY, doc="Upper limit of y.")
    width = property(getWidth, doc="Length in x.")
    height = property(getHeight, doc="Length in y.")
    area = property(getArea, doc="Area.")
    centerX = property(getCenterX, doc="x of the centre.")
    centerY = property(getCenterY, doc="y of the centre.")
    x = property(getX, doc="Interval of x.")
    y = property(getY, doc="Interval of y.")

    def isEmpty(self) -> bool:
        """Tell whether there is no position."""
        return math.isnan(self._min[0])

    def contains(self, *args: Any, **kwargs: Any) -> Any:
        """Tell whether a point, a box or arrays of x and y are inside."""
        if len(args) == 1 and not kwargs:
            (other,) = args
            if isinstance(other, Box2D):
                return self.x.contains(other.x) and self.y.contains(other.y)
            if not isinstance(other, Point2D):
                raise TypeError(f"Box2D.contains takes a Point2D or Box2D; given {other!r}.")
            x, y = other
        else:
            x, y = _bind("Box2D.contains", args, kwargs, ("x", "y"))
        x, y = np.asarray(x), np.asarray(y)
        inside = (x >= self.minX) & (x < self.maxX) & (y >= self.minY) & (y < self.maxY)
        return bool(inside) if inside.ndim == 0 else inside

    def __contains__(self, other: Any) -> bool:
        return self.contains(other)

    def overlaps(self, other: Box2D) -> bool:
        """Tell whether two boxes share a position."""
        return not (
            self.isEmpty()
            or other.isEmpty()
            or other.maxX <= self.minX
            or other.maxY <= self.minY
            or other.minX >= self.maxX
            or other.minY >= self.maxY
        )

    intersects = overlaps

    def isDisjointFrom(self, other: Box2D) -> bool:
        """Tell whether two boxes share no position."""
        return not self.overlaps(other)

    def dilatedBy(self, buffer: Any) -> Box2D:
        """Return the box grown on all sides by a number or an extent."""
        bx, by = _buffer(buffer, _as_float)
        return self._of(self.minX - bx, self.minY - by, self.maxX + bx, self.maxY + by)

    def erodedBy(self, buffer: Any) -> Box2D:
        """Return the box shrunk on all sides by a number or an extent."""
        return self.dilatedBy(-buffer)

    def shiftedBy(self, offset: Extent2D) -> Box2D:
        """Return the box moved."""
        dx, dy = _buffer(offset, _as_float)
        return self._of(self.minX + dx, self.minY + dy, self.maxX + dx, self.maxY + dy)

    def expandedTo(self, other: Any) -> Box2D:
        """Return the smallest box with this one and a point or box."""
        new = Box2D(self)
        new.include(other)
        return new

    def clippedTo(self, other: Box2D) -> Box2D:
        """Return the common part."""
        if self.isEmpty() or other.isEmpty():
            return Box2D()
        return self._of(
            max(self.minX, other.minX),
            max(self.minY, other.minY),
            min(self.maxX, other.maxX),
            min(self.maxY, other.maxY),
        )

    def include(self, other: Any) -> None:
        """Grow in place to hold a point or box."""
        if isinstance(other, Box2D):
            if other.isEmpty():
                return
            low, high = other._min, other._max
        else:
            # The maximum is outside, so it moves just past the point.
            low = (other[0], other[1])
            high = (self._past(low[0]), self._past(low[1]))
        if self.isEmpty():
            self._min, self._max = low, high
            return
        if not isinstance(other, Box2D):
            high = tuple(  # type: ignore[assignment]
                h if v >= m else m for v, h, m in zip(low, high, self._max, strict=True)
            )
        self._min = (min(self._min[0], low[0]), min(self._min[1], low[1]))
        self._max = (max(self._max[0], high[0]), max(self._max[1], high[1]))

    @classmethod
    def _past(cls, value: float) -> float:
        if value < 0.0:
            return value * (1.0 - cls.EPSILON)
        if value > 0.0:
            return value * (1.0 + cls.EPSILON)
        return cls.EPSILON

    def clip(self, other: Box2D) -> None:
        """Cut to another box in place."""
        new = self.clippedTo(other)
        self._min, self._max = new._min, new._max

    def grow(self, buffer: Any) -> None:
        """Grow in place."""
        new = self.dilatedBy(buffer)
        self._min, self._max = new._min, new._max

    def shift(self, offset: Extent2D) -> None:
        """Move in place."""
        new = self.shiftedBy(offset)
        self._min, self._max = new._min, new._max

    def getCorners(self) -> list[Point2D]:
        """Return the corners counter-clockwise from the minimum."""
        return [
            self.getMin(),
            Point2D(self.maxX, self.minY),
            self.getMax(),
            Point2D(self.minX, self.maxY),
        ]

    def toString(self) -> str:
        """Return minimum and dimensions as text."""
        return f"Box2D({self.getMin().toString()},{self.getDimensions().toString()})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Box2D):
            return NotImplemented
        if self.isEmpty() or other.isEmpty():
            return self.isEmpty() and other.isEmpty()
        return self._min == other._min and self._max == other._max

    # Upstream's wrapped class defines equality and no hash.
    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"(minimum={self.getMin()}, maximum={self.getMax()})"

    def __repr__(self) -> str:
        return f"Box2D(corner={self.getMin()!r}, dimensions={self.getDimensions()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.isEmpty():
            return Box2D, ()
        return Box2D, (self.getMin(), self.getMax())


BoxI = Box2I
BoxD = Box2D
