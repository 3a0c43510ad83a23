# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions of pixel position that are defined on a bounding box."""

from __future__ import annotations

__all__ = ["BoundedField", "ChebyshevBoundedField"]

import abc
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.polynomial import chebyshev

from lsst.afw.table.io import Persistable, register_persistable
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.pex.exceptions import RuntimeError

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle


class BoundedField(Persistable, abc.ABC):
    """A function of position with a domain.

    Parameters
    ----------
    bbox : `lsst.geom.Box2I`
        The domain.
    """

    def __init__(self, bbox: Box2I):
        self._bbox = Box2I(bbox)

    def getBBox(self) -> Box2I:
        """Return the domain."""
        return Box2I(self._bbox)

    @abc.abstractmethod
    def _evaluate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Evaluate at arrays of positions."""

    @abc.abstractmethod
    def integrate(self) -> float:
        """Return the integral over the domain."""

    @abc.abstractmethod
    def mean(self) -> float:
        """Return the mean over the domain."""

    @abc.abstractmethod
    def __mul__(self, scale: float) -> BoundedField: ...

    def __rmul__(self, scale: float) -> BoundedField:
        return self * scale

    def __truediv__(self, scale: float) -> BoundedField:
        return self * (1.0 / scale)

    def isPersistable(self) -> bool:
        """Tell whether the field can be written to FITS."""
        return True

    def evaluate(self, x: Any, y: Any = None) -> Any:
        """Evaluate the field.

        Parameters
        ----------
        x : `float`, `numpy.ndarray` or `lsst.geom.Point2D`
            Position, or its x (pixels).
        y : `float` or `numpy.ndarray`, optional
            The y (pixels).

        Returns
        -------
        value : `float` or `numpy.ndarray`
            Value or values.
        """
        if y is None:
            if not isinstance(x, Point2D):
                raise TypeError(f"evaluate wants a Point2D or x and y, got {x!r}.")
            x, y = x.getX(), x.getY()
        if isinstance(x, np.ndarray):
            return self._evaluate(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        return float(self._evaluate(np.asarray(x, dtype=float), np.asarray(y, dtype=float)))

    def _on_grid(self, bbox: Box2I) -> np.ndarray:
        """Evaluate on the pixels of a box; axes (y, x)."""
        x = np.arange(bbox.getBeginX(), bbox.getEndX(), dtype=float)
        y = np.arange(bbox.getBeginY(), bbox.getEndY(), dtype=float)
        xx, yy = np.meshgrid(x, y)
        return self._evaluate(xx, yy)

    def _region(self, image: Any, overlapOnly: bool) -> Box2I:
        """Return the part of an image that the field covers."""
        bbox = image.getBBox()
        if overlapOnly:
            bbox.clip(self._bbox)
        elif not self._bbox.contains(bbox):
            raise RuntimeError(
                f"Image bounding box {bbox} is not contained in the field's {self._bbox}; pass "
                "overlapOnly=True to use the common part."
            )
        return bbox

    def fillImage(self, image: Any, overlapOnly: bool = False) -> None:
        """Replace pixels by the field's values."""
        bbox = self._region(image, overlapOnly)
        if not bbox.isEmpty():
            image[bbox].array[...] = self._on_grid(bbox)

    def addToImage(self, image: Any, scaleBy: float = 1.0, overlapOnly: bool = False) -> None:
        """Add ``scaleBy`` times the field to an image."""
        bbox = self._region(image, overlapOnly)
        if not bbox.isEmpty():
            array = image[bbox].array
            array += (scaleBy * self._on_grid(bbox)).astype(array.dtype)

    def multiplyImage(self, image: Any, overlapOnly: bool = False) -> None:
        """Multiply an image (or image and variance) by the field."""
        self._scale(image, overlapOnly, inverse=False)

    def divideImage(self, image: Any, overlapOnly: bool = False) -> None:
        """Divide an image (or image and variance) by the field."""
        self._scale(image, overlapOnly, inverse=True)

    def _scale(self, image: Any, overlapOnly: bool, inverse: bool) -> None:
        bbox = self._region(image, overlapOnly)
        if bbox.isEmpty():
            return
        factor = self._on_grid(bbox)
        if inverse:
            factor = 1.0 / factor
        part = image[bbox]
        plane = part.image if hasattr(part, "variance") else part
        plane.array[...] = plane.array * factor
        if hasattr(part, "variance"):
            part.variance.array[...] = part.variance.array * factor**2

    def __repr__(self) -> str:
        return f"BoundedField({self})"


@register_persistable("ChebyshevBoundedField", module="lsst.afw.math")
class ChebyshevBoundedField(BoundedField):
    """A field of two-dimensional Chebyshev polynomials of the first kind.

    Parameters
    ----------
    bbox : `lsst.geom.Box2I`
        The domain, which is mapped to [-1, 1] in x and y.
    coefficients : `numpy.ndarray`
        float64 array with axes (order in y, order in x).

    Raises
    ------
    TypeError
        Raised if ``coefficients`` is no two-dimensional float64 array.
    """

    def __init__(self, bbox: Box2I, coefficients: np.ndarray):
        super().__init__(bbox)
        if not isinstance(coefficients, np.ndarray) or coefficients.dtype != np.float64:
            raise TypeError("coefficients must be a two-dimensional float64 array.")
        if coefficients.ndim != 2:
            raise TypeError(f"coefficients must have two dimensions, got {coefficients.ndim}.")
        self._coefficients = np.ascontiguousarray(coefficients)

    def getCoefficients(self) -> np.ndarray:
        """Return the coefficients, axes (order in y, order in x)."""
        return self._coefficients

    def _to_range(self, value: np.ndarray, low: int, size: int) -> np.ndarray:
        if self._coefficients.size == 1:
            # A constant needs no range; the domain may be empty.
            return np.zeros_like(value)
        # Pixel edges are half a pixel outside of the pixels' centres.
        return 2.0 * (value - (low - 0.5)) / size - 1.0

    def _evaluate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u = self._to_range(x, self._bbox.getMinX(), self._bbox.getWidth())
        v = self._to_range(y, self._bbox.getMinY(), self._bbox.getHeight())
        return chebyshev.chebval2d(u, v, self._coefficients.T)

    def _on_grid(self, bbox: Box2I) -> np.ndarray:
        x = np.arange(bbox.getBeginX(), bbox.getEndX(), dtype=float)
        y = np.arange(bbox.getBeginY(), bbox.getEndY(), dtype=float)
        u = self._to_range(x, self._bbox.getMinX(), self._bbox.getWidth())
        v = self._to_range(y, self._bbox.getMinY(), self._bbox.getHeight())
        return chebyshev.chebgrid2d(v, u, self._coefficients)

    def mean(self) -> float:
        """Return the mean over the domain."""
        ny, nx = self._coefficients.shape
        return float(_mean_of_orders(ny) @ self._coefficients @ _mean_of_orders(nx))

    def integrate(self) -> float:
        """Return the integral over the domain."""
        return self.mean() * self._bbox.getArea()

    def relocate(self, bbox: Box2I) -> Self:
        """Return a field with the same coefficients on another domain."""
        return type(self)(bbox, self._coefficients)

    def __mul__(self, scale: float) -> Self:
        return type(self)(self._bbox, self._coefficients * float(scale))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChebyshevBoundedField):
            return NotImplemented
        return self._bbox == other._bbox and np.array_equal(self._coefficients, other._coefficients)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        ny, nx = self._coefficients.shape
        return f"ChebyshevBoundedField (({ny},{nx}) coefficients in y,x)"

    def __reduce__(self) -> tuple:
        return (type(self), (self._bbox, self._coefficients))

    def _persist(self, handle: OutputArchiveHandle) -> None:
        from lsst.afw.table import Schema

        schema = Schema()
        order = schema.addField("order_x", type=np.int32, doc="maximum Chebyshev function order in x")
        box = [
            schema.addField(f"bbox_{end}_{axis}", type=np.int32, doc=f"bounding box ({name})", units="pixel")
            for end, name in (("min", "minimum"), ("max", "maximum"))
            for axis in "xy"
        ]
        coefficients = schema.addField(
            "coefficients",
            type="ArrayD",
            doc="Chebyshev function coefficients, ordered by y then x",
            size=self._coefficients.size,
        )
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        record.set(order, self._coefficients.shape[1] - 1)
        bbox = self._bbox
        corners = (bbox.getMinX(), bbox.getMinY(), bbox.getMaxX(), bbox.getMaxY())
        for key, value in zip(box, corners, strict=True):
            record.set(key, value)
        record.set(coefficients, self._coefficients.ravel())
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> Self:
        record = catalogs[0][0]
        low_x, low_y = int(record["bbox_min_x"]), int(record["bbox_min_y"])
        width = int(record["bbox_max_x"]) - low_x + 1
        height = int(record["bbox_max_y"]) - low_y + 1
        bbox = Box2I(Point2I(low_x, low_y), Extent2I(width, height)) if width and height else Box2I()
        values = np.array(record["coefficients"], dtype=np.float64)
        return cls(bbox, values.reshape(-1, int(record["order_x"]) + 1))


def _mean_of_orders(size: int) -> np.ndarray:
    """Return the means of T_0, T_1, ... over [-1, 1].

    The integral of T_n is 0 for odd n and 2 / (1 - n^2) for even n.
    """
    n = np.arange(size)
    return np.where(n % 2 == 0, 1.0 / np.where(n % 2 == 0, 1.0 - n.astype(float) ** 2, 1.0), 0.0)
