# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Angles and their units."""

from __future__ import annotations

import math
import numbers
from typing import Any

import lsst.sphgeom

__all__ = [
    "HALFPI",
    "INVSQRTPI",
    "ONE_OVER_PI",
    "PI",
    "ROOT2",
    "SQRTPI",
    "TWOPI",
    "Angle",
    "AngleUnit",
    "arcminutes",
    "arcsecToRad",
    "arcseconds",
    "degToRad",
    "degrees",
    "hours",
    "isAngle",
    "masToRad",
    "milliarcseconds",
    "radToArcsec",
    "radToDeg",
    "radToMas",
    "radians",
]

PI = math.pi
TWOPI = 2.0 * math.pi
HALFPI = 0.5 * math.pi
ONE_OVER_PI = 1.0 / math.pi
SQRTPI = math.sqrt(math.pi)
INVSQRTPI = 1.0 / math.sqrt(math.pi)
ROOT2 = math.sqrt(2.0)


class AngleUnit:
    """A unit of angle; ``2.5*degrees`` makes an `Angle`.

    Parameters
    ----------
    val : `float`
        Size of the unit in radians.
    """

    __slots__ = ("_val",)

    def __init__(self, val: float) -> None:
        self._val = float(val)

    def __mul__(self, other: Any) -> Angle:
        if isinstance(other, Angle | AngleUnit):
            raise NotImplementedError
        return Angle(float(other) * self._val)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AngleUnit):
            return NotImplemented
        return self._val == other._val

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return AngleUnit, (self._val,)


radians = AngleUnit(1.0)
degrees = AngleUnit(PI / 180.0)
hours = AngleUnit(PI * 15.0 / 180.0)
arcminutes = AngleUnit(PI / 60 / 180.0)
arcseconds = AngleUnit(PI / 180.0 / 3600)
milliarcseconds = AngleUnit(PI / (180.0 * 3600 * 1000))


def _number(value: Any) -> float | None:
    """Return radians for what compares with an angle, else `None`."""
    if isinstance(value, Angle):
        return value._val
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, lsst.sphgeom.Angle):
        return value.asRadians()
    return None


class Angle:
    """An angle that knows its unit.

    Parameters
    ----------
    val : `float`
        Value in ``units``.
    units : `AngleUnit`
        Unit of ``val``.
    """

    __slots__ = ("_val",)

    def __init__(self, val: float | Angle = 0.0, units: AngleUnit = radians) -> None:
        if isinstance(val, Angle | lsst.sphgeom.Angle):
            val = val.asRadians()
        self._val = float(val) * units._val

    def asAngularUnits(self, units: AngleUnit) -> float:
        """Return the value in the given unit."""
        return self._val / units._val

    def asRadians(self) -> float:
        """Return the value in radians."""
        return self._val

    def asDegrees(self) -> float:
        """Return the value in degrees."""
        return self._val / degrees._val

    def asHours(self) -> float:
        """Return the value in hours."""
        return self._val / hours._val

    def asArcminutes(self) -> float:
        """Return the value in arcminutes."""
        return self._val / arcminutes._val

    def asArcseconds(self) -> float:
        """Return the value in arcseconds."""
        return self._val / arcseconds._val

    def asMilliarcseconds(self) -> float:
        """Return the value in milliarcseconds."""
        return self._val / milliarcseconds._val

    def wrap(self) -> Angle:
        """Return the angle in the range 0 to 2 pi."""
        if not math.isfinite(self._val):
            return Angle(math.nan)
        wrapped = math.fmod(self._val, TWOPI)
        if wrapped < 0.0:
            wrapped += TWOPI
        # A tiny negative angle plus 2 pi rounds to 2 pi itself.
        return Angle(0.0 if wrapped >= TWOPI else wrapped)

    def wrapCtr(self) -> Angle:
        """Return the angle in the range -pi to pi."""
        if not math.isfinite(self._val):
            return Angle(math.nan)
        wrapped = math.fmod(self._val, TWOPI)
        if wrapped < -PI:
            wrapped += TWOPI
            if wrapped >= PI:
                wrapped = -PI
        elif wrapped >= PI:
            wrapped -= TWOPI
            if wrapped < -PI:
                wrapped = -PI
        return Angle(wrapped)

    def wrapNear(self, refAng: Angle) -> Angle:
        """Return the angle within pi of a reference angle."""
        reference = refAng._val
        wrapped = Angle(self._val - reference).wrapCtr()._val + reference
        if wrapped - reference >= PI:
            wrapped -= TWOPI
        if wrapped - reference < -PI:
            wrapped += TWOPI
        return Angle(wrapped)

    def separation(self, other: Angle) -> Angle:
        """Return the signed difference, in the range -pi to pi."""
        return Angle(self._val - other._val).wrapCtr()

    def __float__(self) -> float:
        return self._val

    def __abs__(self) -> Angle:
        return Angle(abs(self._val))

    def __neg__(self) -> Angle:
        return Angle(-self._val)

    def __add__(self, other: Any) -> Angle:
        if not isinstance(other, Angle | lsst.sphgeom.Angle):
            return NotImplemented
        return Angle(self._val + other.asRadians())

    def __sub__(self, other: Any) -> Angle:
        if not isinstance(other, Angle | lsst.sphgeom.Angle):
            return NotImplemented
        return Angle(self._val - other.asRadians())

    def __mul__(self, other: Any) -> Angle:
        if isinstance(other, Angle | AngleUnit) or not isinstance(other, numbers.Real):
            return NotImplemented
        return Angle(self._val * float(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Angle:
        if isinstance(other, Angle):
            raise TypeError("unsupported operand type(s) for /: 'Angle' and 'Angle'")
        if not isinstance(other, numbers.Real):
            return NotImplemented
        return Angle(self._val / float(other))

    def __eq__(self, other: object) -> bool:
        value = _number(other)
        return NotImplemented if value is None else self._val == value

    def __lt__(self, other: Any) -> bool:
        value = _number(other)
        return NotImplemented if value is None else self._val < value

    def __le__(self, other: Any) -> bool:
        value = _number(other)
        return NotImplemented if value is None else self._val <= value

    def __gt__(self, other: Any) -> bool:
        value = _number(other)
        return NotImplemented if value is None else self._val > value

    def __ge__(self, other: Any) -> bool:
        value = _number(other)
        return NotImplemented if value is None else self._val >= value

    # Upstream's wrapped class defines equality and no hash.
    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Angle, (self._val,)

    def __str__(self) -> str:
        return f"{self._val:g} rad"

    def __repr__(self) -> str:
        value = self.asDegrees()
        if math.isfinite(value):
            return f"Angle({value:0.17g}, degrees)"
        return f"Angle(float('{value}'), degrees)"


def isAngle(value: Any) -> bool:
    """Tell whether a value is an `Angle`."""
    return isinstance(value, Angle)


def degToRad(x: float) -> float:
    """Convert degrees to radians."""
    return x * PI / 180.0


def radToDeg(x: float) -> float:
    """Convert radians to degrees."""
    return x * 180.0 / PI


def radToArcsec(x: float) -> float:
    """Convert radians to arcseconds."""
    return x * 3600.0 * 180.0 / PI


def radToMas(x: float) -> float:
    """Convert radians to milliarcseconds."""
    return x * 1000.0 * 3600.0 * 180.0 / PI


def arcsecToRad(x: float) -> float:
    """Convert arcseconds to radians."""
    return (x / 3600.0) * PI / 180.0


def masToRad(x: float) -> float:
    """Convert milliarcseconds to radians."""
    return (x / (1000.0 * 3600.0)) * PI / 180.0
