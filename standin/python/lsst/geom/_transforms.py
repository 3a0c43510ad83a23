# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linear and affine maps of the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lsst.pex.exceptions import RuntimeError

from ._angle import Angle
from ._coordinates import Extent2D, Extent2I, Point2D, Point2I

__all__ = ["AffineTransform", "LinearTransform"]


class SingularTransformException(RuntimeError):
    """A map that cannot be inverted."""


def _pair(value: Any) -> np.ndarray:
    return np.array([float(value[0]), float(value[1])])


class LinearTransform:
    """A 2 x 2 matrix that acts on points and extents.

    Parameters
    ----------
    matrix : array_like, shape (2, 2), optional
        The matrix; identity if not given.
    """

    XX, YX, XY, YY = 0, 1, 2, 3

    def __init__(self, matrix: Any = None) -> None:
        self._m = np.eye(2) if matrix is None else np.array(matrix, dtype=float)
        if self._m.shape != (2, 2):
            raise TypeError(f"LinearTransform takes a matrix of shape (2, 2); given {self._m.shape}.")

    @staticmethod
    def makeScaling(scale: float, scaleY: float | None = None) -> LinearTransform:
        """Make a map that scales."""
        return LinearTransform(np.diag([scale, scale if scaleY is None else scaleY]))

    @staticmethod
    def makeRotation(angle: Angle) -> LinearTransform:
        """Make a map that rotates counter-clockwise."""
        c, s = math.cos(float(angle)), math.sin(float(angle))
        return LinearTransform([[c, -s], [s, c]])

    def getMatrix(self) -> np.ndarray:
        """Return the matrix."""
        return self._m.copy()

    def getParameterVector(self) -> np.ndarray:
        """Return xx, yx, xy, yy."""
        return self._m.T.ravel().copy()

    def computeDeterminant(self) -> float:
        """Return the determinant."""
        return float(self._m[0, 0] * self._m[1, 1] - self._m[0, 1] * self._m[1, 0])

    def inverted(self) -> LinearTransform:
        """Return the inverse map."""
        if abs(self.computeDeterminant()) == 0.0:
            raise SingularTransformException("Could not compute LinearTransform inverse")
        return LinearTransform(np.linalg.inv(self._m))

    def isIdentity(self) -> bool:
        """Tell whether nothing is changed."""
        return bool(np.array_equal(self._m, np.eye(2)))

    def applyX(self, x: Any, y: Any) -> Any:
        """Return x of the mapped positions."""
        return self._m[0, 0] * x + self._m[0, 1] * y

    def applyY(self, x: Any, y: Any) -> Any:
        """Return y of the mapped positions."""
        return self._m[1, 0] * x + self._m[1, 1] * y

    def __call__(self, *args: Any) -> Any:
        if len(args) == 2:
            return self.applyX(*args), self.applyY(*args)
        (point,) = args
        x, y = self._m @ _pair(point)
        return Extent2D(x, y) if isinstance(point, Extent2D | Extent2I) else Point2D(x, y)

    def __getitem__(self, i: Any) -> float:
        if isinstance(i, tuple):
            return float(self._m[i])
        return float(self.getParameterVector()[i])

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, LinearTransform):
            return LinearTransform(self._m @ other._m)
        return NotImplemented

    def __add__(self, other: LinearTransform) -> LinearTransform:
        return LinearTransform(self._m + other._m)

    def __sub__(self, other: LinearTransform) -> LinearTransform:
        return LinearTransform(self._m - other._m)

    def __str__(self) -> str:
        return str(self._m)

    def __repr__(self) -> str:
        return f"LinearTransform(\n{self._m}\n)"

    def __reduce__(self) -> tuple[Any, ...]:
        return LinearTransform, (self._m,)


class AffineTransform:
    """A linear map followed by a translation.

    Parameters
    ----------
    linear : `LinearTransform` or array_like, optional
        A map of shape (2, 2), or the full matrix of shape (3, 3), or a
        translation (an `Extent2D` or shape (2,)) alone.
    translation : `Extent2D` or array_like, optional
        The translation.
    """

    XX, YX, XY, YY, X, Y = 0, 1, 2, 3, 4, 5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        linear, translation = kwargs.pop("linear", None), kwargs.pop("translation", None)
        matrix = kwargs.pop("matrix", None)
        if kwargs or len(args) > 2:
            raise TypeError(f"AffineTransform got unknown arguments {args} {kwargs}.")
        if len(args) == 2:
            linear, translation = args
        elif args:
            (arg,) = args
            if isinstance(arg, LinearTransform):
                linear = arg
            elif isinstance(arg, Extent2D) or np.shape(arg) == (2,):
                translation = arg
            elif np.shape(arg) == (3, 3):
                matrix = arg
            else:
                linear = arg
        self._linear = np.eye(2)
        self._shift = np.zeros(2)
        if matrix is not None:
            full = np.array(matrix, dtype=float)
            self._linear, self._shift = full[:2, :2].copy(), full[:2, 2].copy()
        if linear is not None:
            self._linear = (
                linear.getMatrix() if isinstance(linear, LinearTransform) else np.array(linear, float)
            )
        if translation is not None:
            self._shift = _pair(translation)

    @staticmethod
    def makeScaling(scale: float, scaleY: float | None = None) -> AffineTransform:
        """Make a map that scales."""
        return AffineTransform(LinearTransform.makeScaling(scale, scaleY))

    @staticmethod
    def makeRotation(angle: Angle) -> AffineTransform:
        """Make a map that rotates counter-clockwise."""
        return AffineTransform(LinearTransform.makeRotation(angle))

    @staticmethod
    def makeTranslation(translation: Extent2D) -> AffineTransform:
        """Make a map that moves."""
        return AffineTransform(translation=translation)

    def getLinear(self) -> LinearTransform:
        """Return the linear part."""
        return LinearTransform(self._linear)

    def getTranslation(self) -> Extent2D:
        """Return the translation."""
        return Extent2D(*self._shift.tolist())

    def getMatrix(self) -> np.ndarray:
        """Return the matrix of shape (3, 3)."""
        full = np.eye(3)
        full[:2, :2], full[:2, 2] = self._linear, self._shift
        return full

    def getParameterVector(self) -> np.ndarray:
        """Return xx, yx, xy, yy, x, y."""
        return np.concatenate([self._linear.T.ravel(), self._shift])

    def inverted(self) -> AffineTransform:
        """Return the inverse map."""
        inverse = self.getLinear().inverted().getMatrix()
        return AffineTransform(inverse, -inverse @ self._shift)

    def isIdentity(self) -> bool:
        """Tell whether nothing is changed."""
        return bool(np.array_equal(self.getMatrix(), np.eye(3)))

    def applyX(self, x: Any, y: Any) -> Any:
        """Return x of the mapped positions."""
        return self._linear[0, 0] * x + self._linear[0, 1] * y + self._shift[0]

    def applyY(self, x: Any, y: Any) -> Any:
        """Return y of the mapped positions."""
        return self._linear[1, 0] * x + self._linear[1, 1] * y + self._shift[1]

    def __call__(self, *args: Any) -> Any:
        if len(args) == 2:
            return self.applyX(*args), self.applyY(*args)
        (point,) = args
        if isinstance(point, Extent2D | Extent2I):
            return Extent2D(*(self._linear @ _pair(point)).tolist())
        if not isinstance(point, Point2D | Point2I):
            raise TypeError(f"AffineTransform acts on Point2D and Extent2D; given {point!r}.")
        return Point2D(*(self._linear @ _pair(point) + self._shift).tolist())

    def __getitem__(self, i: Any) -> float:
        return float(self.getMatrix()[i] if isinstance(i, tuple) else self.getParameterVector()[i])

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, AffineTransform):
            return NotImplemented
        return AffineTransform(self._linear @ other._linear, self._linear @ other._shift + self._shift)

    def __str__(self) -> str:
        return str(self.getMatrix())

    def __repr__(self) -> str:
        return f"AffineTransform(\n{self.getMatrix()}\n)"

    def __reduce__(self) -> tuple[Any, ...]:
        return AffineTransform, (self.getMatrix(),)
