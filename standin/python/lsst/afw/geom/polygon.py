# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Polygons in pixel coordinates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lsst.afw.typehandling import Storable
from lsst.geom import AffineTransform, Box2D, Point2D, Point2I
from lsst.pex.exceptions import LengthError, RuntimeError

__all__ = ["Polygon", "SinglePolygonException"]


class SinglePolygonException(RuntimeError):
    """An operation that should give one polygon gave another number."""


class Polygon(Storable):
    """A simple polygon.

    Parameters
    ----------
    vertices : iterable of `lsst.geom.Point2D` or `lsst.geom.Box2D`
        Corners in order, the first not repeated (it may be); or a box.
    """

    def __init__(self, vertices: Iterable[Point2D] | Box2D) -> None:
        points = vertices.getCorners() if isinstance(vertices, Box2D) else vertices
        array = np.array([(p.x, p.y) for p in points], dtype=float).reshape(-1, 2)
        if len(array) > 1 and np.array_equal(array[0], array[-1]):
            array = array[:-1]
        if len(array) < 3:
            raise LengthError(f"A polygon has at least three vertices; given {len(array)}.")
        # The geometry library behind upstream keeps vertices clockwise.
        if _signed_area(array) > 0:
            array = np.concatenate([array[:1], array[:0:-1]])
        self._vertices = array

    def getVertices(self) -> list[Point2D]:
        """Return the vertices, the first again at the end."""
        return [Point2D(x, y) for x, y in [*self._vertices.tolist(), self._vertices[0].tolist()]]

    def getEdges(self) -> list[tuple[Point2D, Point2D]]:
        """Return the ends of each edge."""
        points = self.getVertices()
        return list(zip(points[:-1], points[1:], strict=True))

    def getNumEdges(self) -> int:
        """Return the number of edges."""
        return len(self._vertices)

    def getBBox(self) -> Box2D:
        """Return the bounding box."""
        low, high = self._vertices.min(axis=0), self._vertices.max(axis=0)
        return Box2D(Point2D(*low.tolist()), Point2D(*high.tolist()))

    def calculateArea(self) -> float:
        """Return the area."""
        return abs(_signed_area(self._vertices))

    def calculatePerimeter(self) -> float:
        """Return the length of the outline."""
        return float(np.hypot(*(np.roll(self._vertices, -1, axis=0) - self._vertices).T).sum())

    def calculateCenter(self) -> Point2D:
        """Return the centroid."""
        x, y = self._vertices.T
        x1, y1 = np.roll(x, -1), np.roll(y, -1)
        cross = x * y1 - x1 * y
        total = 3.0 * cross.sum()
        return Point2D(float(((x + x1) * cross).sum() / total), float(((y + y1) * cross).sum() / total))

    def contains(self, *args: Any, **kwargs: Any) -> Any:
        """Tell whether a point, a list of them or arrays x, y are inside.

        Points on the outline are not inside.
        """
        if len(args) == 1 and not kwargs:
            (arg,) = args
            if isinstance(arg, Point2D | Point2I):
                return bool(self._contains(np.array([float(arg.x)]), np.array([float(arg.y)]))[0])
            array = np.array([(p.x, p.y) for p in arg], dtype=float).reshape(-1, 2)
            return self._contains(*array.T).tolist()
        x = args[0] if args else kwargs["x"]
        y = args[1] if len(args) > 1 else kwargs["y"]
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        result = self._contains(x.ravel(), y.ravel()).reshape(x.shape)
        return bool(result) if result.ndim == 0 else result

    def _contains(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inside = np.zeros(x.shape, dtype=bool)
        on_edge = np.zeros(x.shape, dtype=bool)
        for (xa, ya), (xb, yb) in zip(self._vertices, np.roll(self._vertices, -1, axis=0), strict=True):
            cross = (xb - xa) * (y - ya) - (yb - ya) * (x - xa)
            between = (np.minimum(xa, xb) <= x) & (x <= np.maximum(xa, xb))
            between &= (np.minimum(ya, yb) <= y) & (y <= np.maximum(ya, yb))
            on_edge |= (cross == 0) & between
            # A ray to the right crosses an edge whose ends are on both sides.
            spans = (ya > y) != (yb > y)
            inside ^= spans & ((cross > 0) == (yb > ya))
        return inside & ~on_edge

    def transform(self, transform: AffineTransform) -> Polygon:
        """Return the polygon under an affine map."""
        x, y = transform(self._vertices[:, 0], self._vertices[:, 1])
        return Polygon([Point2D(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)])

    def isPersistable(self) -> bool:
        """Tell whether the object can be written to FITS."""
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Polygon):
            return NotImplemented
        a, b = self._vertices, other._vertices
        if a.shape != b.shape:
            return False
        return any(np.array_equal(a, np.roll(b, k, axis=0)) for k in range(len(b)))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.getVertices()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Polygon, (self.getVertices(),)


def _signed_area(vertices: np.ndarray) -> float:
    """Return the area, positive if counter-clockwise (shoelace formula)."""
    x, y = vertices.T
    return 0.5 * float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
