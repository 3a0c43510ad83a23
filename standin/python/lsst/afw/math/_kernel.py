# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernels: images with a centre."""

from __future__ import annotations

__all__ = ["FixedKernel", "Kernel"]

from typing import TYPE_CHECKING, Any

import numpy as np

from lsst.afw.table import Schema
from lsst.afw.table.io import Persistable, register_persistable
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.pex.exceptions import InvalidParameterError, OverflowError

if TYPE_CHECKING:
    from lsst.afw.image import ImageD
    from lsst.afw.table import BaseCatalog


class Kernel(Persistable):
    """Base class of kernels.

    Parameters
    ----------
    width, height : `int`
        Size of the kernel.
    """

    def __init__(self, width: int, height: int):
        if width < 1 or height < 1:
            raise InvalidParameterError(f"kernel height = {height} and/or width = {width} < 1")
        self._width, self._height = int(width), int(height)
        self._ctr = Point2I((self._width - 1) // 2, (self._height - 1) // 2)

    def getWidth(self) -> int:
        """Return the number of columns."""
        return self._width

    def getHeight(self) -> int:
        """Return the number of rows."""
        return self._height

    def getDimensions(self) -> Extent2I:
        """Return the size."""
        return Extent2I(self._width, self._height)

    def getCtr(self) -> Point2I:
        """Return the index of the centre."""
        return Point2I(self._ctr)

    def setCtr(self, ctr: Point2I) -> None:
        """Set the index of the centre."""
        self._ctr = Point2I(ctr)

    def getBBox(self) -> Box2I:
        """Return the bounding box, with the centre at (0, 0)."""
        return Box2I(Point2I(-self._ctr.getX(), -self._ctr.getY()), self.getDimensions())

    def isSpatiallyVarying(self) -> bool:
        """Return whether the kernel differs from place to place."""
        return False

    def isPersistable(self) -> bool:
        """Return whether the kernel can be saved."""
        return False

    def clone(self) -> Kernel:
        """Return a copy."""
        raise NotImplementedError(f"{type(self).__name__} does not define clone.")

    def resized(self, width: int, height: int) -> Kernel:
        """Return the kernel with another size."""
        raise NotImplementedError(f"{type(self).__name__} does not define resized.")

    def _doComputeImage(self, x: float, y: float) -> np.ndarray:
        """Return the kernel's pixels (y, x) at a position."""
        raise NotImplementedError(f"{type(self).__name__} does not define _doComputeImage.")

    def computeImage(self, image: ImageD, doNormalize: bool, x: float = 0.0, y: float = 0.0) -> float:
        """Fill an image with the kernel.

        Parameters
        ----------
        image : `lsst.afw.image.ImageD`
            Image of the kernel's size; its origin is set too.
        doNormalize : `bool`
            Scale the pixels to sum 1.
        x, y : `float`, optional
            Position, where the kernel depends on it.

        Returns
        -------
        sum : `float`
            Sum of the pixels.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if the size is not that of the kernel.
        lsst.pex.exceptions.OverflowError
            Raised if the sum to scale is 0.
        """
        if image.getDimensions() != self.getDimensions():
            raise InvalidParameterError(
                f"image dimensions = {image.getDimensions()} != {self.getDimensions()} = kernel dimensions"
            )
        array = self._doComputeImage(x, y)
        total = float(array.sum())
        if doNormalize:
            if total == 0:
                raise OverflowError("Cannot normalize; kernel sum is 0")
            array, total = array / total, 1.0
        image.setXY0(Point2I(-self._ctr.getX(), -self._ctr.getY()))
        image.array[:, :] = array
        return total


@register_persistable("FixedKernel", module="lsst.afw.math")
class FixedKernel(Kernel):
    """Kernel given by an image.

    Parameters
    ----------
    image : `lsst.afw.image.ImageD`
        Pixels, which are copied; the centre is the middle of the image, not
        its pixel (0, 0).
    """

    def __init__(self, image: ImageD):
        super().__init__(image.getWidth(), image.getHeight())
        if image.array.dtype != np.float64:
            raise TypeError(f"FixedKernel is made from an ImageD, not from {type(image).__name__}.")
        self._array = image.array.copy()

    def getSum(self) -> float:
        """Return the sum of the pixels."""
        return float(self._array.sum())

    def isPersistable(self) -> bool:
        # Docstring inherited.
        return True

    def clone(self) -> FixedKernel:
        """Return a copy."""
        other = FixedKernel.__new__(FixedKernel)
        other.__dict__.update(self.__dict__)
        other._array = self._array.copy()
        return other

    def resized(self, width: int, height: int) -> FixedKernel:
        """Return the kernel cut or padded with zeros about its centre.

        Parameters
        ----------
        width, height : `int`
            New size; it differs from the old one by even numbers.

        Returns
        -------
        kernel : `FixedKernel`
            New kernel.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if a dimension is not positive or changes by an odd number.
        """
        from lsst.afw.image import ImageD

        if width <= 0 or height <= 0:
            raise InvalidParameterError(f"Cannot create FixedKernel with dimensions ({width}, {height}).")
        if (width - self._width) % 2 or (height - self._height) % 2:
            raise InvalidParameterError(
                f"Cannot resize FixedKernel from ({self._width}, {self._height}) to ({width}, {height}), "
                "because at least one dimension would change by an odd value."
            )
        # As in C++, the quotient is truncated towards zero.
        corner = Point2I(-((width - 1) // 2), -((height - 1) // 2))
        resized = ImageD(Box2I(corner, Extent2I(width, height)))
        common = self.getBBox()
        common.clip(resized.getBBox())
        source = ImageD(self._array, False, self.getBBox().getMin())
        resized[common] = source[common]
        return FixedKernel(resized)

    def _doComputeImage(self, x: float, y: float) -> np.ndarray:
        return self._array

    # Persistence ---------------------------------------------------------

    def _persist(self, handle: Any) -> None:
        schema = Schema()
        values = {}
        for name, doc, x, y in (
            ("dimensions", "dimensions of a Kernel's images", self._width, self._height),
            ("center", "center point in a Kernel image", self._ctr.getX(), self._ctr.getY()),
        ):
            values[schema.addField(f"{name}_x", type=np.int32, doc=doc, units="pixel")] = x
            values[schema.addField(f"{name}_y", type=np.int32, doc=doc, units="pixel")] = y
        image = schema.addField("image", type="ArrayD", doc="pixel values (row-major)", size=self._array.size)
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        for key, value in values.items():
            record.set(key, value)
        record.set(image, self._array.ravel())
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: Any, catalogs: list[BaseCatalog]) -> FixedKernel:
        from lsst.afw.image import ImageD

        record = catalogs[0][0]
        shape = int(record["dimensions_y"]), int(record["dimensions_x"])
        kernel = cls(ImageD(np.array(record["image"], np.float64).reshape(shape)))
        kernel.setCtr(Point2I(int(record["center_x"]), int(record["center_y"])))
        return kernel
