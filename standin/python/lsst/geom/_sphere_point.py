# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Positions on the sphere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import lsst.sphgeom
from lsst.pex.exceptions import InvalidParameterError, LengthError

from ._angle import HALFPI, Angle, AngleUnit, radians
from ._coordinates import Point2D

__all__ = ["SpherePoint", "averageSpherePoint"]


class SpherePoint:
    """A position on the sphere.

    Can be made of two `Angle`, of two numbers and a unit, of a vector or a
    `lsst.sphgeom.LonLat`, or of another point. The longitude is wrapped to
    the range 0 to 2 pi.
    """

    __slots__ = ("_lat", "_lon")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = ("longitude", "latitude", "units")
        if kwargs:
            if len(kwargs) == 1 and not args:
                args = tuple(kwargs.values())
            elif set(kwargs) <= set(names[len(args) :]):
                args = args + tuple(kwargs[n] for n in names[len(args) :] if n in kwargs)
            else:
                raise TypeError(f"SpherePoint takes {', '.join(names)}; given {sorted(kwargs)}.")
        self._lon = self._lat = math.nan
        if not args:
            return
        if len(args) == 1:
            self._set_from_one(args[0])
            return
        if len(args) == 2:
            lon, lat = args
            if not all(isinstance(a, Angle | lsst.sphgeom.Angle) for a in args):
                raise TypeError(
                    f"SpherePoint takes two Angles or two numbers and a unit; given {lon!r}, {lat!r}."
                )
            self._set(Angle(lon), Angle(lat))
            return
        lon, lat, units = args
        if not isinstance(units, AngleUnit):
            raise TypeError(f"SpherePoint takes an AngleUnit as its third argument; given {units!r}.")
        self._set(float(lon) * units, float(lat) * units)

    def _set(self, lon: Angle, lat: Angle) -> None:
        self._lon, self._lat = lon.wrap().asRadians(), lat.asRadians()
        if abs(self._lat) > HALFPI:
            raise InvalidParameterError(f"Angle {lat.asDegrees():f} is not a valid latitude.")

    def _set_from_one(self, arg: Any) -> None:
        if isinstance(arg, SpherePoint):
            self._lon, self._lat = arg._lon, arg._lat
        elif isinstance(arg, lsst.sphgeom.LonLat):
            self._set(Angle(arg.getLon().asRadians()), Angle(arg.getLat().asRadians()))
        elif isinstance(arg, lsst.sphgeom.Vector3d | lsst.sphgeom.UnitVector3d):
            x, y, z = arg.x(), arg.y(), arg.z()
            norm = math.sqrt(x * x + y * y + z * z)
            if norm <= 0.0:
                raise InvalidParameterError(f"Vector {arg} has zero norm and cannot be normalized.")
            if math.isfinite(norm):
                self._lat = math.asin(max(-1.0, min(1.0, z / norm)))
                self._lon = 0.0 if self.atPole() else Angle(math.atan2(y, x)).wrap().asRadians()
        else:
            raise TypeError(f"Cannot make a SpherePoint of {arg!r}.")

    def getLongitude(self) -> Angle:
        """Return the longitude."""
        return Angle(self._lon)

    def getLatitude(self) -> Angle:
        """Return the latitude."""
        return Angle(self._lat)

    getRa = getLongitude
    getDec = getLatitude

    def getVector(self) -> lsst.sphgeom.UnitVector3d:
        """Return the unit vector."""
        c = math.cos(self._lat)
        return lsst.sphgeom.UnitVector3d(
            math.cos(self._lon) * c, math.sin(self._lon) * c, math.sin(self._lat)
        )

    def _xyz(self) -> np.ndarray:
        c = math.cos(self._lat)
        return np.array([math.cos(self._lon) * c, math.sin(self._lon) * c, math.sin(self._lat)])

    def getPosition(self, units: AngleUnit) -> Point2D:
        """Return longitude and latitude in a unit."""
        return Point2D(Angle(self._lon).asAngularUnits(units), Angle(self._lat).asAngularUnits(units))

    def atPole(self) -> bool:
        """Tell whether the latitude is plus or minus 90 degrees."""
        return abs(self._lat) >= HALFPI

    def isFinite(self) -> bool:
        """Tell whether both angles are finite."""
        return math.isfinite(self._lon) and math.isfinite(self._lat)

    def separation(self, other: SpherePoint) -> Angle:
        """Return the angular distance (haversine formula)."""
        s_lat = math.sin((self._lat - other._lat) / 2.0)
        s_lon = math.sin((self._lon - other._lon) / 2.0)
        hav = s_lat * s_lat + math.cos(self._lat) * math.cos(other._lat) * s_lon * s_lon
        return Angle(2.0 * math.asin(min(1.0, math.sqrt(hav))) if not math.isnan(hav) else math.nan)

    def bearingTo(self, other: SpherePoint) -> Angle:
        """Return the direction of another point, from East towards North."""
        d_lon = other._lon - self._lon
        y = math.sin(d_lon) * math.cos(other._lat)
        x = math.cos(self._lat) * math.sin(other._lat) - math.sin(self._lat) * math.cos(
            other._lat
        ) * math.cos(d_lon)
        return Angle(HALFPI - math.atan2(y, x)).wrap()

    def rotated(self, axis: SpherePoint, amount: Angle) -> SpherePoint:
        """Return the point rotated about an axis (Rodrigues' formula)."""
        k, v, phi = axis._xyz(), self._xyz(), float(amount)
        if not math.isfinite(phi):
            return SpherePoint()
        x, y, z = (
            v * math.cos(phi) + np.cross(k, v) * math.sin(phi) + k * (k @ v) * (1.0 - math.cos(phi))
        ).tolist()
        return SpherePoint(lsst.sphgeom.Vector3d(x, y, z))

    def offset(self, bearing: Angle, amount: Angle) -> SpherePoint:
        """Return the point at a distance in a direction.

        Parameters
        ----------
        bearing : `Angle`
            Direction, from East towards North.
        amount : `Angle`
            Distance along the great circle.
        """
        phi, distance = float(bearing), float(amount)
        r = self._xyz()
        east = np.array([-math.sin(self._lon), math.cos(self._lon), 0.0])
        north = np.cross(r, east)
        direction = math.cos(phi) * east + math.sin(phi) * north
        x, y, z = (r * math.cos(distance) + direction * math.sin(distance)).tolist()
        return SpherePoint(lsst.sphgeom.Vector3d(x, y, z))

    def getTangentPlaneOffset(self, other: SpherePoint) -> tuple[Angle, Angle]:
        """Return (xi, eta) of a point on the tangent plane at this one."""
        s1, c1 = math.sin(self._lat), math.cos(self._lat)
        s2, c2 = math.sin(other._lat), math.cos(other._lat)
        sd, cd = math.sin(other._lon - self._lon), math.cos(other._lon - self._lon)
        div = c1 * cd * c2 + s1 * s2
        # The factor of cos(latitude of this point) in xi is upstream's.
        return Angle(c1 * sd / div), Angle((c1 * cd * s2 - s1 * c2) / div)

    @staticmethod
    def toUnitXYZ(
        *,
        longitude: Any = None,
        latitude: Any = None,
        ra: Any = None,
        dec: Any = None,
        units: AngleUnit,
    ) -> tuple[Any, Any, Any]:
        """Return x, y, z of the unit vectors of arrays of positions."""
        if (longitude is None) == (ra is None):
            raise ValueError("Exactly one of ra and longitude must be provided.")
        if (latitude is None) == (dec is None):
            raise ValueError("Exactly one of dec and latitude must be provided.")
        factor = (1.0 * units).asRadians()
        lon = factor * np.asarray(ra if longitude is None else longitude)
        lat = factor * np.asarray(dec if latitude is None else latitude)
        return np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Angle:
        if not -2 <= i < 2:
            raise IndexError(f"Index {i} not in range [-2, 1]")
        return Angle((self._lon, self._lat)[i])

    def __iter__(self) -> Iterator[Angle]:
        yield Angle(self._lon)
        yield Angle(self._lat)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpherePoint):
            return NotImplemented
        return self._lon == other._lon and self._lat == other._lat

    # Upstream's wrapped class defines equality and no hash.
    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"({self.getLongitude().asDegrees():.10f}, {self.getLatitude().asDegrees():+.10f})"

    def __repr__(self) -> str:
        return "SpherePoint({})".format(", ".join(f"{a.asDegrees()!r}*degrees" for a in self))

    def __reduce__(self) -> tuple[Any, ...]:
        return SpherePoint, (self._lon, self._lat, radians)


def averageSpherePoint(coords: Iterable[SpherePoint]) -> SpherePoint:
    """Return the direction of the mean of unit vectors."""
    vectors = [c._xyz() for c in coords]
    if not vectors:
        raise LengthError("No coordinates provided to average")
    return SpherePoint(lsst.sphgeom.Vector3d(*np.mean(vectors, axis=0).tolist()))
