# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points and extents in two and three dimensions, of integers and floats."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np

from lsst.utils import TemplateMeta

__all__ = [
    "CoordinateExpr",
    "CoordinateExpr2",
    "CoordinateExpr3",
    "Extent",
    "Extent2D",
    "Extent2I",
    "Extent3D",
    "Extent3I",
    "ExtentD",
    "ExtentI",
    "Point",
    "Point2D",
    "Point2I",
    "Point3D",
    "Point3I",
    "PointD",
    "PointI",
    "all",
    "any",
    "ceil",
    "floor",
    "truncate",
]


def _as_int(value: Any) -> int:
    if isinstance(value, bool | float | np.floating):
        if isinstance(value, bool):
            return int(value)
        raise TypeError(f"Incompatible argument {value!r}: an integer is wanted.")
    return operator.index(value)


def _as_float(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"Incompatible argument {value!r}: a number is wanted.")
    return float(value)


class _Coordinate:
    """What all coordinate classes share."""

    __slots__ = ("_v",)

    dimensions: ClassVar[int]
    _integer: ClassVar[bool]

    _v: list[Any]

    @classmethod
    def _make(cls, values: list[Any]) -> Self:
        new = cls.__new__(cls)
        new._v = values
        return new

    @classmethod
    def _element(cls, value: Any) -> Any:
        return _as_int(value) if cls._integer else _as_float(value)

    def __len__(self) -> int:
        return self.dimensions

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self._v))

    def __getitem__(self, i: int) -> Any:
        return self._v[self._index(i)]

    def __setitem__(self, i: int, value: Any) -> None:
        self._v[self._index(i)] = self._element(value)

    def _index(self, i: int) -> int:
        n = operator.index(i)
        if not -self.dimensions <= n < self.dimensions:
            raise IndexError(f"Index {n} not in range [{-self.dimensions}, {self.dimensions - 1}]")
        return n

    def getX(self) -> Any:
        """Return the first coordinate."""
        return self._v[0]

    def getY(self) -> Any:
        """Return the second coordinate."""
        return self._v[1]

    def setX(self, x: Any) -> None:
        """Set the first coordinate."""
        self._v[0] = self._element(x)

    def setY(self, y: Any) -> None:
        """Set the second coordinate."""
        self._v[1] = self._element(y)

    x = property(getX, setX, doc="First coordinate.")
    y = property(getY, setY, doc="Second coordinate.")

    def clone(self) -> Self:
        """Return a copy."""
        return self._make(list(self._v))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._v == other._v  # type: ignore[attr-defined]

    # Upstream's wrapped classes define equality and no hash.
    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "({})".format(", ".join(f"{v:0.5g}" for v in self._v))

    def __repr__(self) -> str:
        values = (f"{v:0.17g}" if math.isfinite(v) else f"float('{v}')" for v in self._v)
        return "{}({})".format(type(self).__name__, ", ".join(values))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self._v)

    def _compare(self, other: Any, op: Any) -> CoordinateExpr2 | CoordinateExpr3:
        if isinstance(other, _Coordinate):
            if type(other) is not type(self):
                raise TypeError(f"Cannot compare {type(self).__name__} with {type(other).__name__}.")
            values = other._v
        else:
            values = [self._element(other)] * self.dimensions
        expr = CoordinateExpr2 if self.dimensions == 2 else CoordinateExpr3
        return expr._make([op(a, b) for a, b in zip(self._v, values, strict=True)])

    def eq(self, other: Any) -> CoordinateExpr2 | CoordinateExpr3:
        """Compare element by element."""
        return self._compare(other, operator.eq)

    def ne(self, other: Any) -> CoordinateExpr2 | CoordinateExpr3:
        """Compare element by element."""
        return self._compare(other, operator.ne)

    def lt(self, other: Any) -> CoordinateExpr2 | CoordinateExpr3:
        """Compare element by element."""
        return self._compare(other, operator.lt)

    def le(self, other: Any) -> CoordinateExpr2 | CoordinateExpr3:
        """Compare element by element."""
        return self._compare(other, operator.le)

    def gt(self, other: Any) -> CoordinateExpr2 | CoordinateExpr3:
        """Compare element by element."""
        return self._compare(other, operator.gt)

    def ge(self, other: Any) -> CoordinateExpr2 | CoordinateExpr3:
        """Compare element by element."""
        return self._compare(other, operator.ge)


class _Three(_Coordinate):
    """The third coordinate."""

    __slots__ = ()

    def getZ(self) -> Any:
        """Return the third coordinate."""
        return self._v[2]

    def setZ(self, z: Any) -> None:
        """Set the third coordinate."""
        self._v[2] = self._element(z)

    z = property(getZ, setZ, doc="Third coordinate.")


class _Expr(_Coordinate):
    """Result of comparing two coordinates element by element."""

    __slots__ = ()
    _integer = True

    def __init__(self, val: bool = False) -> None:
        self._v = [bool(val)] * self.dimensions

    def and_(self, other: Any) -> Any:
        """Combine with logical and."""
        return self._make([a and b for a, b in zip(self._v, other._v, strict=True)])

    def or_(self, other: Any) -> Any:
        """Combine with logical or."""
        return self._make([a or b for a, b in zip(self._v, other._v, strict=True)])

    def not_(self) -> Any:
        """Negate each element."""
        return self._make([not a for a in self._v])


class CoordinateExpr2(_Expr):
    """Two booleans."""

    __slots__ = ()
    dimensions = 2


class CoordinateExpr3(_Expr):
    """Three booleans."""

    __slots__ = ()
    dimensions = 3


def all(expr: CoordinateExpr2 | CoordinateExpr3) -> bool:
    """Tell whether every element is true."""
    return False not in expr._v


def any(expr: CoordinateExpr2 | CoordinateExpr3) -> bool:
    """Tell whether one element is true."""
    return True in expr._v


def _fill(cls: type[_Coordinate], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Work out the elements from the arguments of a constructor."""
    n = cls.dimensions
    if kwargs:
        names = ("x", "y", "z")[:n]
        if "value" in kwargs and len(kwargs) == 1 and not args:
            args = (kwargs["value"],)
        elif set(kwargs) == set(names[len(args) :]):
            args = args + tuple(kwargs[name] for name in names[len(args) :])
        else:
            raise TypeError(f"{cls.__name__} takes {', '.join(names)}; given {sorted(kwargs)}.")
    if not args:
        return [0 if cls._integer else 0.0] * n
    if len(args) == n:
        if cls._integer:
            # Two floats select upstream's double overload, which truncates.
            return [int(float(a)) if isinstance(a, float | np.floating) else _as_int(a) for a in args]
        return [_as_float(a) for a in args]
    if len(args) != 1:
        raise TypeError(f"{cls.__name__} takes one or {n} arguments; {len(args)} given.")
    (arg,) = args
    if isinstance(arg, _Coordinate):
        if arg.dimensions != n or isinstance(arg, _Expr):
            raise TypeError(f"Cannot make a {cls.__name__} of a {type(arg).__name__}.")
        if cls._integer and not arg._integer:
            if not (issubclass(cls, _PointMixin) and isinstance(arg, _PointMixin)):
                raise TypeError(f"Cannot make a {cls.__name__} of a {type(arg).__name__}: truncate it first.")
            # A position converts to the pixel that it lies in.
            return [math.floor(v + 0.5) for v in arg._v]
        return list(arg._v) if cls._integer else [float(v) for v in arg._v]
    if isinstance(arg, numbers.Number) or np.ndim(arg) == 0:
        return [cls._element(arg)] * n
    if not isinstance(arg, np.ndarray | list | tuple):
        raise TypeError(f"Cannot make a {cls.__name__} of {arg!r}.")
    values = np.asarray(arg)
    if values.shape != (n,) or (cls._integer and values.dtype.kind not in "iu"):
        raise TypeError(f"Cannot make a {cls.__name__} of an array of shape {values.shape}, {values.dtype}.")
    return [cls._element(v) for v in values.tolist()]


class _Vector(_Coordinate):
    """What points and extents share."""

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._v = _fill(type(self), args, kwargs)

    def _check_in_place(self, fits: bool, other: Any) -> None:
        integer = getattr(other, "_integer", isinstance(other, numbers.Integral))
        if not fits or (self._integer and not integer):
            raise TypeError(f"{type(self).__name__} takes no {type(other).__name__} in place.")

    def __iadd__(self, other: Any) -> Self:
        self._check_in_place(isinstance(other, _ExtentMixin), other)
        self._v = [a + b for a, b in zip(self._v, other._v, strict=True)]
        return self

    def __isub__(self, other: Any) -> Self:
        self._check_in_place(isinstance(other, _ExtentMixin), other)
        self._v = [a - b for a, b in zip(self._v, other._v, strict=True)]
        return self


class _PointMixin(_Vector):
    """Operations of points."""

    __slots__ = ()
    _extent: ClassVar[type[_ExtentMixin]]
    _double: ClassVar[type[_PointMixin]]

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, _ExtentMixin) or other.dimensions != self.dimensions:
            return NotImplemented
        cls = type(self) if other._integer else self._double
        return cls._make([a + b for a, b in zip(self._v, other._v, strict=True)])

    def __sub__(self, other: Any) -> Any:
        if not isinstance(other, _PointMixin | _ExtentMixin) or other.dimensions != self.dimensions:
            return NotImplemented
        cls = type(self) if other._integer else self._double
        values = [a - b for a, b in zip(self._v, other._v, strict=True)]
        return cls._extent._make(values) if isinstance(other, _PointMixin) else cls._make(values)

    def asExtent(self) -> Any:
        """Return the extent from the origin to this point."""
        return self._extent._make(list(self._v))

    def shift(self, offset: Any) -> None:
        """Move the point in place."""
        self._v = [a + self._element(b) for a, b in zip(self._v, offset, strict=True)]

    def scale(self, factor: float) -> None:
        """Multiply the coordinates in place."""
        self._v = [type(v)(v * factor) for v in self._v]

    def distanceSquared(self, other: Any) -> float:
        """Return the squared distance to another point."""
        return float(sum((a - b) ** 2 for a, b in zip(self._v, other._v, strict=True)))

    def toString(self) -> str:
        """Return the type and coordinates as text."""
        return "{}({})".format(type(self).__name__, ",".join(f"{v:g}" for v in self._v))


class _ExtentMixin(_Vector):
    """Operations of extents."""

    __slots__ = ()
    _point: ClassVar[type[_PointMixin]]
    _double: ClassVar[type[_ExtentMixin]]
    _whole: ClassVar[type[_ExtentMixin]]

    def __neg__(self) -> Self:
        return self._make([-v for v in self._v])

    def __pos__(self) -> Self:
        return self._make(list(self._v))

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, _PointMixin | _ExtentMixin) or other.dimensions != self.dimensions:
            return NotImplemented
        cls = type(self) if other._integer else self._double
        values = [a + b for a, b in zip(self._v, other._v, strict=True)]
        return cls._point._make(values) if isinstance(other, _PointMixin) else cls._make(values)

    def __sub__(self, other: Any) -> Any:
        if not isinstance(other, _ExtentMixin) or other.dimensions != self.dimensions:
            return NotImplemented
        cls = type(self) if other._integer else self._double
        return cls._make([a - b for a, b in zip(self._v, other._v, strict=True)])

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, _Coordinate) or not isinstance(other, numbers.Real):
            return NotImplemented
        if self._integer and isinstance(other, numbers.Integral):
            return self._make([v * int(other) for v in self._v])
        return self._double._make([v * float(other) for v in self._v])

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, _Coordinate) or not isinstance(other, numbers.Real):
            return NotImplemented
        return self._double._make([v / float(other) for v in self._v])

    def __floordiv__(self, other: Any) -> Any:
        if not self._integer or not isinstance(other, numbers.Integral):
            return NotImplemented
        return self._make([v // int(other) for v in self._v])

    def __imul__(self, other: Any) -> Self:
        self._check_in_place(isinstance(other, numbers.Real), other)
        self._v = [v * (int(float(other)) if self._integer else float(other)) for v in self._v]
        return self

    def __itruediv__(self, other: Any) -> Self:
        if self._integer:
            raise TypeError("In-place true division not supported for Extent<int,N>.")
        self._v = [v / float(other) for v in self._v]
        return self

    def asPoint(self) -> Any:
        """Return the point at this extent from the origin."""
        return self._point._make(list(self._v))

    def computeSquaredNorm(self) -> Any:
        """Return the squared length."""
        return sum(v * v for v in self._v)

    def computeNorm(self) -> float:
        """Return the length."""
        return math.sqrt(self.computeSquaredNorm())

    def toString(self) -> str:
        """Return the type and elements as text."""
        return "lsst::geom::{}({})".format(type(self).__name__, ",".join(f"{v:g}" for v in self._v))

    def truncate(self) -> Any:
        """Round towards zero."""
        return self._whole._make([math.trunc(v) for v in self._v])

    def floor(self) -> Any:
        """Round down."""
        return self._whole._make([math.floor(v) for v in self._v])

    def ceil(self) -> Any:
        """Round up."""
        return self._whole._make([math.ceil(v) for v in self._v])


def truncate(extent: Any) -> Any:
    """Round a floating-point extent towards zero."""
    return extent.truncate()


def floor(extent: Any) -> Any:
    """Round a floating-point extent down."""
    return extent.floor()


def ceil(extent: Any) -> Any:
    """Round a floating-point extent up."""
    return extent.ceil()


class Point2I(_PointMixin):
    """A pixel position (x, y) of integers.

    Given two floats it truncates; given a `Point2D` it rounds to the pixel
    that the position lies in.
    """

    __slots__ = ()
    dimensions = 2
    _integer = True


class Point2D(_PointMixin):
    """A position (x, y) of floats."""

    __slots__ = ()
    dimensions = 2
    _integer = False


class Point3I(_Three, _PointMixin):
    """A position (x, y, z) of integers."""

    __slots__ = ()
    dimensions = 3
    _integer = True


class Point3D(_Three, _PointMixin):
    """A position (x, y, z) of floats."""

    __slots__ = ()
    dimensions = 3
    _integer = False


class Extent2I(_ExtentMixin):
    """A difference of positions or a size (x, y), of integers."""

    __slots__ = ()
    dimensions = 2
    _integer = True


class Extent2D(_ExtentMixin):
    """A difference of positions or a size (x, y), of floats."""

    __slots__ = ()
    dimensions = 2
    _integer = False


class Extent3I(_Three, _ExtentMixin):
    """A difference of positions (x, y, z), of integers."""

    __slots__ = ()
    dimensions = 3
    _integer = True


class Extent3D(_Three, _ExtentMixin):
    """A difference of positions (x, y, z), of floats."""

    __slots__ = ()
    dimensions = 3
    _integer = False


for _p, _e, _pd, _ed, _ei in (
    (Point2I, Extent2I, Point2D, Extent2D, Extent2I),
    (Point2D, Extent2D, Point2D, Extent2D, Extent2I),
    (Point3I, Extent3I, Point3D, Extent3D, Extent3I),
    (Point3D, Extent3D, Point3D, Extent3D, Extent3I),
):
    _p._extent = _e  # type: ignore[attr-defined]
    _p._double = _pd  # type: ignore[attr-defined]
    _e._point = _p  # type: ignore[attr-defined]
    _e._double = _ed  # type: ignore[attr-defined]
    _e._whole = _ei  # type: ignore[attr-defined]
del _p, _e, _pd, _ed, _ei


class CoordinateExpr(metaclass=TemplateMeta):
    """Abstract base and factory of the comparison results."""

    TEMPLATE_PARAMS = ("dimensions",)


class Extent(metaclass=TemplateMeta):
    """Abstract base and factory of the extents."""

    TEMPLATE_PARAMS = ("dtype", "dimensions")
    TEMPLATE_DEFAULTS = (None, 2)


class Point(metaclass=TemplateMeta):
    """Abstract base and factory of the points."""

    TEMPLATE_PARAMS = ("dtype", "dimensions")
    TEMPLATE_DEFAULTS = (None, 2)


CoordinateExpr.register(2, CoordinateExpr2)
CoordinateExpr.register(3, CoordinateExpr3)
Extent.register((int, 2), Extent2I)
Extent.register((float, 2), Extent2D)
Extent.register((int, 3), Extent3I)
Extent.register((float, 3), Extent3D)
Point.register((int, 2), Point2I)
Point.register((float, 2), Point2D)
Point.register((int, 3), Point3I)
Point.register((float, 3), Point3D)
ExtentI = Extent2I
ExtentD = Extent2D
PointI = Point2I
PointD = Point2D
