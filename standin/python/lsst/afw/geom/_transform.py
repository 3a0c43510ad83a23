# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps of points of one plane to another."""

from __future__ import annotations

__all__ = ["TransformPoint2ToPoint2", "linearizeTransform", "makeTransform", "makeWcsPairTransform"]

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsst.geom import AffineTransform, Point2D
from lsst.pex.exceptions import InvalidParameterError

from ._sky_wcs import SkyWcs

_Map = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class TransformPoint2ToPoint2:
    """A map of points of a plane to points of a plane, and back.

    `makeTransform` and `makeWcsPairTransform` make them.

    Parameters
    ----------
    forward, inverse : callable
        Maps of arrays x and y to arrays x and y.
    """

    def __init__(self, forward: _Map, inverse: _Map):
        self._forward, self._inverse = forward, inverse

    @staticmethod
    def _apply(function: _Map, point: Any) -> Any:
        points = [point] if isinstance(point, Point2D) else list(point)
        xy = np.array([(p.getX(), p.getY()) for p in points], dtype=float).reshape(-1, 2)
        x, y = function(xy[:, 0], xy[:, 1])
        result = [Point2D(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        return result[0] if isinstance(point, Point2D) else result

    def applyForward(self, point: Point2D | Sequence[Point2D]) -> Any:
        """Map a point or a list of points."""
        return self._apply(self._forward, point)

    def applyInverse(self, point: Point2D | Sequence[Point2D]) -> Any:
        """Map a point or a list of points back."""
        return self._apply(self._inverse, point)

    def inverted(self) -> TransformPoint2ToPoint2:
        """Return the map back."""
        return TransformPoint2ToPoint2(self._inverse, self._forward)

    def then(self, next: TransformPoint2ToPoint2) -> TransformPoint2ToPoint2:
        """Return this map followed by another one."""
        return TransformPoint2ToPoint2(
            lambda x, y: next._forward(*self._forward(x, y)),
            lambda x, y: self._inverse(*next._inverse(x, y)),
        )

    def getJacobian(self, x: Point2D) -> np.ndarray:
        """Return the derivatives (2, 2) at a point."""
        # Half a pixel to either side: exact to second order.
        step = 0.5
        px = x.getX() + step * np.array([1.0, -1.0, 0.0, 0.0])
        py = x.getY() + step * np.array([0.0, 0.0, 1.0, -1.0])
        mapped = np.stack(self._forward(px, py))
        return (mapped[:, [0, 2]] - mapped[:, [1, 3]]) / (2 * step)


def makeTransform(affine: AffineTransform) -> TransformPoint2ToPoint2:
    """Return an affine map as a transform.

    Parameters
    ----------
    affine : `lsst.geom.AffineTransform`
        The map.
    """
    inverse = affine.inverted()
    return TransformPoint2ToPoint2(
        lambda x, y: (affine.applyX(x, y), affine.applyY(x, y)),
        lambda x, y: (inverse.applyX(x, y), inverse.applyY(x, y)),
    )


def makeWcsPairTransform(src: SkyWcs, dst: SkyWcs) -> TransformPoint2ToPoint2:
    """Return the map of the pixels of one system to those of another.

    Parameters
    ----------
    src, dst : `SkyWcs`
        The systems.
    """
    return TransformPoint2ToPoint2(
        lambda x, y: dst.skyToPixelArray(*src.pixelToSkyArray(x, y)),
        lambda x, y: src.skyToPixelArray(*dst.pixelToSkyArray(x, y)),
    )


def linearizeTransform(original: TransformPoint2ToPoint2, inPoint: Point2D) -> AffineTransform:
    """Return the affine map that touches a transform at a point.

    Parameters
    ----------
    original : `TransformPoint2ToPoint2`
        The transform.
    inPoint : `lsst.geom.Point2D`
        The point.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if the transform has no value or no derivative there.
    """
    mapped = original.applyForward(inPoint)
    jacobian = original.getJacobian(inPoint)
    if not (np.isfinite(np.array(mapped)).all() and np.isfinite(jacobian).all()):
        raise InvalidParameterError(f"Transform ill-defined: {inPoint} -> {mapped}, J = {jacobian}")
    return AffineTransform(jacobian, np.array(mapped) - jacobian @ np.array(inPoint))
