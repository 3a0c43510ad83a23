# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the algorithms share: controls, pixels, ellipses."""

from __future__ import annotations

__all__ = ["Control", "Pixels", "SimpleAlgorithm", "ellipse_rows", "get_pixels", "is_negative"]

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import SourceCatalog, SourceRecord

    from ._exceptions import MeasurementError


class Control:
    """Base of the settings of algorithms.

    Subclasses name the C++ type and the documentation of each setting in
    ``FIELDS`` and give the defaults as attributes, so that
    `lsst.pex.config.makeConfigClass` makes the config class of them.
    """

    FIELDS: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init_subclass__(cls) -> None:
        # Saved configs import this module, upstream's must have it as well.
        cls.__module__ = "lsst.meas.base"
        for name, (kind, doc) in cls.FIELDS.items():
            setattr(cls, f"_type_{name}", staticmethod(lambda kind=kind: kind))
            setattr(cls, f"_doc_{name}", staticmethod(lambda doc=doc: doc))

    def __init__(self) -> None:
        for name in self.FIELDS:
            value = getattr(type(self), name)
            setattr(self, name, list(value) if isinstance(value, list) else value)


class SimpleAlgorithm:
    """Base of algorithms that measure one source on one image."""

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        """Measure a source; the results go to its record."""
        raise NotImplementedError

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flags of a failure."""
        raise NotImplementedError

    def measureForced(
        self, measRecord: SourceRecord, exposure: ExposureF, refRecord: SourceRecord, refWcs: Any
    ) -> None:
        """Measure a source whose position is that of another catalogue."""
        self.measure(measRecord, exposure)

    def measureN(self, measCat: SourceCatalog, exposure: ExposureF) -> None:
        """Measure several sources together, which none of them can."""
        raise NotImplementedError("measureN is not defined for this algorithm.")


class Pixels(NamedTuple):
    """The planes of an image as arrays (y, x) and its origin."""

    image: np.ndarray
    mask: np.ndarray
    variance: np.ndarray
    x0: int
    y0: int


def get_pixels(image: Any) -> Pixels:
    """Return the planes of an exposure or a masked image."""
    plane = image.image
    x0, y0 = plane.getX0(), plane.getY0()
    return Pixels(plane.array, image.mask.array, image.variance.array, x0, y0)


def is_negative(record: SourceRecord) -> bool:
    """Tell whether a source was found in the negative image."""
    key = record._block.table._slot_key("is_negative")
    return False if key is None else bool(key.get(record))


def ellipse_rows(
    xx: float, yy: float, xy: float, x: float, y: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Find the pixels whose centres are inside an ellipse, row by row.

    Parameters
    ----------
    xx, yy, xy : `float`
        Moments of the ellipse: the squares of its semi-axes, if aligned.
    x, y : `float`
        Centre.

    Returns
    -------
    rows, first, last : `numpy.ndarray`
        Rows, and first and last column of each; rows without any are not in.
    box : `tuple` [`int`]
        x0, y0, x1, y1 (inclusive) of the pixels that the ellipse touches.
    """
    half_x, half_y = math.sqrt(xx), math.sqrt(yy)
    box = (
        math.ceil(x - half_x - 0.5),
        math.ceil(y - half_y - 0.5),
        math.floor(x + half_x + 0.5),
        math.floor(y + half_y + 0.5),
    )
    if yy < xx * np.finfo(float).eps:
        slope, width, drop = 0.0, xx, 0.0
    else:
        slope = xy / yy
        width = xx - xy * slope
        drop = width / yy
    rows = np.arange(box[1], box[3] + 1)
    dy = rows - y
    square = width - drop * dy * dy
    inside = square >= 0
    rows, dy = rows[inside], dy[inside]
    half = np.sqrt(square[inside])
    middle = slope * dy + x
    first, last = np.ceil(middle - half).astype(np.int64), np.floor(middle + half).astype(np.int64)
    filled = last >= first
    return rows[filled], first[filled], last[filled], box
