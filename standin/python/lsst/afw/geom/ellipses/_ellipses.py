# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from lsst.geom import AffineTransform, Box2D, Extent2D, LinearTransform, Point2D
from lsst.pex.exceptions import InvalidParameterError

__all__ = ["Axes", "BaseCore", "Ellipse", "Quadrupole"]


class BaseCore:
    """The size, shape and orientation of an ellipse, without its centre."""

    _names: tuple[str, str, str]
    _vector: np.ndarray

    def _moments(self) -> tuple[float, float, float]:
        raise NotImplementedError

    def _set_moments(self, ixx: float, iyy: float, ixy: float) -> None:
        raise NotImplementedError

    def getName(self) -> str:
        """Return the name of the parametrisation."""
        return type(self).__name__

    def clone(self) -> Self:
        """Return a copy."""
        return type(self)(self)  # type: ignore[call-arg]

    def assign(self, other: BaseCore) -> None:
        """Take the shape of another core."""
        self._set_moments(*other._moments())

    def normalize(self) -> None:
        """Bring the parameters to their standard form, or raise."""
        raise NotImplementedError

    def getParameterVector(self) -> np.ndarray:
        """Return the three parameters."""
        return self._vector.copy()

    def setParameterVector(self, vector: Any) -> None:
        """Set the three parameters."""
        self._vector[:] = vector

    def getArea(self) -> float:
        """Return the area."""
        return math.pi * self.getDeterminantRadius() ** 2

    def getDeterminantRadius(self) -> float:
        """Return the fourth root of the determinant of the moments."""
        ixx, iyy, ixy = self._moments()
        return math.pow(ixx * iyy - ixy * ixy, 0.25)

    def getTraceRadius(self) -> float:
        """Return the root of half the trace of the moments."""
        ixx, iyy, _ = self._moments()
        return math.sqrt(0.5 * (ixx + iyy))

    def computeDimensions(self) -> Extent2D:
        """Return the size of the bounding box."""
        ixx, iyy, _ = self._moments()
        return Extent2D(2.0 * math.sqrt(ixx), 2.0 * math.sqrt(iyy))

    def grow(self, buffer: float) -> None:
        """Add to both semi-axes."""
        axes = Axes(self)
        self.assign(Axes(axes.getA() + buffer, axes.getB() + buffer, axes.getTheta()))

    def scale(self, factor: float) -> None:
        """Multiply both semi-axes."""
        self._set_moments(*(v * factor * factor for v in self._moments()))

    def convolve(self, other: BaseCore) -> Quadrupole:
        """Return the moments of the convolution of two ellipses."""
        ixx, iyy, ixy = (a + b for a, b in zip(self._moments(), other._moments(), strict=True))
        return Quadrupole(ixx, iyy, ixy)

    def transform(self, transform: LinearTransform) -> Self:
        """Return the ellipse under a linear map."""
        new = self.clone()
        new.transformInPlace(transform)
        return new

    def transformInPlace(self, transform: LinearTransform) -> None:
        """Apply a linear map."""
        ixx, iyy, ixy = self._moments()
        m = transform.getMatrix()
        q = m @ np.array([[ixx, ixy], [ixy, iyy]]) @ m.T
        self._set_moments(float(q[0, 0]), float(q[1, 1]), float(q[0, 1]))

    def getGridTransform(self) -> LinearTransform:
        """Return the symmetric transform that makes a unit circle of the ellipse."""
        ixx, iyy, ixy = self._moments()
        values, vectors = np.linalg.eigh(np.array([[ixx, ixy], [ixy, iyy]]))
        return LinearTransform((vectors / np.sqrt(values)) @ vectors.T)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(np.array_equal(self._vector, other._vector))  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        values = ", ".join(f"{n}={v}" for n, v in zip(self._names, self._vector.tolist(), strict=True))
        return f"({values})"

    def __repr__(self) -> str:
        values = ", ".join(f"{n}={v!r}" for n, v in zip(self._names, self._vector.tolist(), strict=True))
        return f"{type(self).__name__}({values})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self._vector.tolist())


class Quadrupole(BaseCore):
    """An ellipse as its second moments.

    Parameters
    ----------
    ixx : `float`, `BaseCore` or array_like
        Moment in x; or another core; or a vector (ixx, iyy, ixy) or matrix.
    iyy, ixy : `float`, optional
        Moment in y and the mixed moment.
    normalize : `bool`, optional
        Raise if the moments are not those of an ellipse.
    """

    _names = ("ixx", "iyy", "ixy")

    def __init__(self, ixx: Any = 1.0, iyy: Any = 1.0, ixy: float = 0.0, normalize: bool = False) -> None:
        if isinstance(ixx, BaseCore):
            moments: Any = ixx._moments()
        elif isinstance(ixx, np.ndarray | list | tuple):
            normalize = iyy if isinstance(iyy, bool) else np.ndim(ixx) == 2
            array = np.asarray(ixx, dtype=float)
            moments = (array[0, 0], array[1, 1], array[0, 1]) if array.ndim == 2 else array
        else:
            moments = (ixx, iyy, ixy)
        self._vector = np.array(moments, dtype=float)
        if self._vector.shape != (3,):
            raise TypeError(f"Quadrupole takes three moments; given {moments}.")
        if normalize:
            self.normalize()

    def _moments(self) -> tuple[float, float, float]:
        ixx, iyy, ixy = self._vector.tolist()
        return ixx, iyy, ixy

    def _set_moments(self, ixx: float, iyy: float, ixy: float) -> None:
        self._vector[:] = ixx, iyy, ixy

    def normalize(self) -> None:
        """Raise if the moments are not those of an ellipse."""
        ixx, iyy, ixy = self._moments()
        if ixx < 0 or iyy < 0:
            raise InvalidParameterError("Quadrupole matrix elements cannot be negative.")
        if ixx * iyy < ixy * ixy:
            raise InvalidParameterError("Quadrupole matrix cannot have negative eigenvalues.")

    def getIxx(self) -> float:
        """Return the moment in x."""
        return float(self._vector[0])

    def getIyy(self) -> float:
        """Return the moment in y."""
        return float(self._vector[1])

    def getIxy(self) -> float:
        """Return the mixed moment."""
        return float(self._vector[2])

    def setIxx(self, ixx: float) -> None:
        """Set the moment in x."""
        self._vector[0] = ixx

    def setIyy(self, iyy: float) -> None:
        """Set the moment in y."""
        self._vector[1] = iyy

    def setIxy(self, ixy: float) -> None:
        """Set the mixed moment."""
        self._vector[2] = ixy

    def getMatrix(self) -> np.ndarray:
        """Return the moments as a symmetric matrix."""
        ixx, iyy, ixy = self._moments()
        return np.array([[ixx, ixy], [ixy, iyy]])

    def getDeterminant(self) -> float:
        """Return the determinant of the moments."""
        ixx, iyy, ixy = self._moments()
        return ixx * iyy - ixy * ixy


class Axes(BaseCore):
    """An ellipse as its semi-axes and position angle.

    Parameters
    ----------
    a : `float` or `BaseCore`
        Major semi-axis, or another core.
    b : `float`, optional
        Minor semi-axis.
    theta : `float`, optional
        Angle of the major axis from x towards y, in radians.
    normalize : `bool`, optional
        Swap the axes if ``b > a``, wrap the angle to plus or minus pi/2.
    """

    _names = ("a", "b", "theta")

    def __init__(self, a: Any = 1.0, b: float = 1.0, theta: float = 0.0, normalize: bool = False) -> None:
        self._vector = np.empty(3)
        if isinstance(a, Axes):
            self._vector[:] = a._vector
        elif isinstance(a, BaseCore):
            self._set_moments(*a._moments())
        else:
            self._vector[:] = a, b, float(theta)
        if normalize:
            self.normalize()

    def _moments(self) -> tuple[float, float, float]:
        a, b, theta = self._vector.tolist()
        c, s = math.cos(theta), math.sin(theta)
        a2, b2 = a * a, b * b
        return c * c * a2 + s * s * b2, s * s * a2 + c * c * b2, (a2 - b2) * c * s

    def _set_moments(self, ixx: float, iyy: float, ixy: float) -> None:
        total, difference = ixx + iyy, ixx - iyy
        root = math.sqrt(difference * difference + 4.0 * ixy * ixy)
        self._vector[:] = (
            math.sqrt(0.5 * (total + root)),
            math.sqrt(max(0.5 * (total - root), 0.0)),
            0.5 * math.atan2(2.0 * ixy, difference),
        )

    def normalize(self) -> None:
        """Swap the axes if ``b > a``, wrap the angle to plus or minus pi/2."""
        a, b, theta = self._vector.tolist()
        if a < 0 or b < 0:
            raise InvalidParameterError("Major and minor axes cannot be negative.")
        if a < b:
            a, b, theta = b, a, theta + 0.5 * math.pi
        if not -0.5 * math.pi <= theta < 0.5 * math.pi:
            theta = (theta + 0.5 * math.pi) % math.pi - 0.5 * math.pi
        self._vector[:] = a, b, theta

    def getA(self) -> float:
        """Return the major semi-axis."""
        return float(self._vector[0])

    def getB(self) -> float:
        """Return the minor semi-axis."""
        return float(self._vector[1])

    def getTheta(self) -> float:
        """Return the angle of the major axis in radians."""
        return float(self._vector[2])

    def setA(self, a: float) -> None:
        """Set the major semi-axis."""
        self._vector[0] = a

    def setB(self, b: float) -> None:
        """Set the minor semi-axis."""
        self._vector[1] = b

    def setTheta(self, theta: float) -> None:
        """Set the angle of the major axis in radians."""
        self._vector[2] = theta


class Ellipse:
    """An ellipse with a centre.

    Parameters
    ----------
    core : `BaseCore` or `Ellipse`
        Size, shape and orientation.
    center : `lsst.geom.Point2D`, optional
        Centre.
    """

    def __init__(self, core: BaseCore | Ellipse, center: Point2D | None = None) -> None:
        if isinstance(core, Ellipse):
            other = core
            self._core: BaseCore = other.getCore().clone()
            self._center: Point2D = Point2D(other.getCenter())
            return
        self._core = core.clone()
        self._center = Point2D() if center is None else Point2D(center)

    def getCore(self) -> Any:
        """Return size, shape and orientation."""
        return self._core

    def setCore(self, core: BaseCore) -> None:
        """Set size, shape and orientation."""
        self._core.assign(core)

    def getCenter(self) -> Point2D:
        """Return the centre."""
        return self._center

    def setCenter(self, center: Point2D) -> None:
        """Set the centre."""
        self._center = Point2D(center)

    def normalize(self) -> None:
        """Bring the core to its standard form."""
        self._core.normalize()

    def grow(self, buffer: float) -> None:
        """Add to both semi-axes."""
        self._core.grow(buffer)

    def scale(self, factor: float) -> None:
        """Multiply both semi-axes."""
        self._core.scale(factor)

    def shift(self, offset: Extent2D) -> None:
        """Move the centre."""
        self._center.shift(offset)

    def getParameterVector(self) -> np.ndarray:
        """Return the parameters of the core and the centre."""
        return np.concatenate([self._core.getParameterVector(), np.array(self._center)])

    def transform(self, transform: AffineTransform) -> Ellipse:
        """Return the ellipse under an affine map."""
        return Ellipse(self._core.transform(transform.getLinear()), transform(self._center))

    def getGridTransform(self) -> AffineTransform:
        """Return the transform that makes a unit circle about the origin of the ellipse."""
        linear = self._core.getGridTransform()
        return AffineTransform(linear, -linear(Extent2D(self._center)))

    def computeBBox(self) -> Box2D:
        """Return the bounding box."""
        size = self._core.computeDimensions()
        return Box2D(self._center - size * 0.5, size)

    def __repr__(self) -> str:
        return f"Ellipse({self._core!r}, {self._center!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Ellipse, (self._core, self._center)
