# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interpretation of the ``image[...]`` arguments of image-like objects.

Positions are ``(x, y)`` and, unless ``LOCAL`` is given, refer to the parent
image (they include xy0).
"""

from __future__ import annotations

__all__ = [
    "LOCAL",
    "PARENT",
    "ImageOrigin",
    "imageIndicesToNumpy",
    "interpretSliceArgs",
    "splitSliceArgs",
    "translateSliceArgs",
]

import enum
from collections.abc import Callable
from typing import Any

from lsst.geom import Box2I, Extent2I, Point2I


class ImageOrigin(enum.Enum):
    """Coordinate system of pixel positions."""

    PARENT = 0
    """Positions include the image's xy0."""

    LOCAL = 1
    """Positions count from the image's first pixel."""

    def __int__(self) -> int:
        return int(self.value)


PARENT = ImageOrigin.PARENT
LOCAL = ImageOrigin.LOCAL


def splitSliceArgs(sliceArgs: Any) -> tuple[Any, ImageOrigin]:
    """Separate the index from a trailing `ImageOrigin`.

    Parameters
    ----------
    sliceArgs : `object`
        What was given in brackets.

    Returns
    -------
    index : `object`
        The index without the origin.
    origin : `ImageOrigin`
        The origin (``PARENT`` unless given).
    """
    if isinstance(sliceArgs, tuple) and len(sliceArgs) > 0 and isinstance(sliceArgs[-1], ImageOrigin):
        if len(sliceArgs) == 2:
            return sliceArgs[0], sliceArgs[-1]
        return sliceArgs[:-1], sliceArgs[-1]
    return sliceArgs, PARENT


def _resolve(index: Any, size: int, origin: ImageOrigin, default: int | None) -> int:
    """Turn one bound of an index into a coordinate.

    Negative numbers count from the end in ``LOCAL``; in ``PARENT`` they are
    ambiguous (xy0 can be negative) and refused.
    """
    if index is None:
        if default is None:
            raise TypeError("An integer is needed for each of x and y, got None.")
        return default
    value = int(index)
    if value < 0:
        if origin == LOCAL:
            return size + value
        raise IndexError(
            f"Negative index {value} is not permitted with the PARENT origin; use LOCAL to count from the "
            "upper edge, or a Point2I or Box2I to address pixels at negative parent coordinates."
        )
    return value


def interpretSliceArgs(
    sliceArgs: Any, bboxGetter: Callable[..., Box2I]
) -> tuple[int | slice, int | slice, ImageOrigin]:
    """Bring bracket arguments into the form (x, y, origin).

    Parameters
    ----------
    sliceArgs : `object`
        What was given in brackets: ``x, y``, two slices, a ``Point2I``, a
        ``Box2I`` or ``:``, each optionally followed by an origin.
    bboxGetter : `~collections.abc.Callable`
        Returns the bounding box for an origin.

    Returns
    -------
    x, y : `int` or `slice`
        Index or slice in each dimension.
    origin : `ImageOrigin`
        Coordinate system of the above.

    Raises
    ------
    TypeError
        Raised for mixtures of integers and slices and for other types.
    IndexError
        Raised for negative numbers in ``PARENT`` coordinates.
    """
    slices, origin = splitSliceArgs(sliceArgs)
    if isinstance(slices, Point2I):
        return slices.getX(), slices.getY(), origin
    if isinstance(slices, Box2I):
        x0, y0 = slices.getMinX(), slices.getMinY()
        return slice(x0, x0 + slices.getWidth()), slice(y0, y0 + slices.getHeight()), origin
    if isinstance(slices, slice):
        if slices.start is not None or slices.stop is not None or slices.step is not None:
            raise TypeError("Single-dimension slices must not have bounds.")
        x: Any = slices
        y: Any = slices
        origin = LOCAL
    else:
        x, y = slices
    bbox = bboxGetter(origin)
    if isinstance(x, slice):
        if not isinstance(y, slice):
            raise TypeError("Mixed indices of the form (slice, int) are not supported for images.")
        if x.step is not None or y.step is not None:
            raise ValueError("Slices with steps are not supported in image indexing.")
        width, height = bbox.getWidth(), bbox.getHeight()
        return (
            slice(
                _resolve(x.start, width, origin, bbox.getBeginX()),
                _resolve(x.stop, width, origin, bbox.getEndX()),
            ),
            slice(
                _resolve(y.start, height, origin, bbox.getBeginY()),
                _resolve(y.stop, height, origin, bbox.getEndY()),
            ),
            origin,
        )
    if isinstance(y, slice):
        raise TypeError("Mixed indices of the form (int, slice) are not supported for images.")
    return (
        _resolve(x, bbox.getWidth(), origin, None),
        _resolve(y, bbox.getHeight(), origin, None),
        origin,
    )


def translateSliceArgs(
    sliceArgs: Any, bboxGetter: Callable[..., Box2I]
) -> tuple[Box2I | None, Point2I | None, ImageOrigin]:
    """Bring bracket arguments into a box (sub-image) or a point (pixel).

    Parameters
    ----------
    sliceArgs : `object`
        See `interpretSliceArgs`.
    bboxGetter : `~collections.abc.Callable`
        Returns the bounding box for an origin.

    Returns
    -------
    box : `lsst.geom.Box2I` or `None`
        Box of a sub-image.
    index : `lsst.geom.Point2I` or `None`
        Position of a single pixel.
    origin : `ImageOrigin`
        Coordinate system of the above.
    """
    slices, origin = splitSliceArgs(sliceArgs)
    if isinstance(slices, Point2I):
        return None, slices, origin
    if isinstance(slices, Box2I):
        return slices, None, origin
    x, y, origin = interpretSliceArgs(sliceArgs, bboxGetter)
    if isinstance(x, slice) and isinstance(y, slice):
        begin = Point2I(x.start, y.start)
        return Box2I(begin, Extent2I(x.stop - x.start, y.stop - y.start)), None, origin
    return None, Point2I(x, y), origin


def imageIndicesToNumpy(
    sliceArgs: Any, bboxGetter: Callable[..., Box2I]
) -> tuple[int | slice, int | slice, Box2I | None]:
    """Convert bracket arguments to array indices.

    Parameters
    ----------
    sliceArgs : `object`
        See `interpretSliceArgs`.
    bboxGetter : `~collections.abc.Callable`
        Returns the bounding box for an origin.

    Returns
    -------
    y, x : `int` or `slice`
        Indices into an array with axes (y, x).
    bbox : `lsst.geom.Box2I` or `None`
        Parent bounding box of a sub-image, `None` for a single pixel.
    """
    x, y, origin = interpretSliceArgs(sliceArgs, bboxGetter)
    parent = bboxGetter()
    x0, y0 = parent.getMinX(), parent.getMinY()
    if isinstance(x, slice) and isinstance(y, slice):
        dx, dy = (x0, y0) if origin == PARENT else (0, 0)
        local_x = slice(x.start - dx, x.stop - dx)
        local_y = slice(y.start - dy, y.stop - dy)
        bbox = Box2I(
            Point2I(local_x.start + x0, local_y.start + y0),
            Extent2I(x.stop - x.start, y.stop - y.start),
        )
        return local_y, local_x, bbox
    if origin == PARENT:
        return y - y0, x - x0, None  # type: ignore[operator]
    return y, x, None
