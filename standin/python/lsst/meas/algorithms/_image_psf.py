# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point spread functions that are given as pixels."""

from __future__ import annotations

__all__ = ["ImagePsf", "KernelPsf"]

from typing import TYPE_CHECKING, Any

import numpy as np

from lsst.afw.detection import Psf
from lsst.afw.geom.ellipses import Axes, Ellipse, Quadrupole
from lsst.afw.table import Schema
from lsst.afw.table.io import register_persistable
from lsst.geom import Box2I, Point2D, Point2I
from lsst.meas.base import ApertureFluxAlgorithm, SdssShapeAlgorithm

if TYPE_CHECKING:
    from lsst.afw.image import ImageD
    from lsst.afw.math import Kernel
    from lsst.afw.table import BaseCatalog


class ImagePsf(Psf):
    """PSF whose shape and aperture flux are measured on its image.

    Subclasses define ``_doComputeKernelImage`` and ``_doComputeBBox``.

    Parameters
    ----------
    isFixed : `bool`, optional
        Whether the PSF is the same everywhere.
    """

    _shape: tuple[Any, Quadrupole] | None = None

    def _doComputeApertureFlux(self, radius: float, position: Point2D, color: Any) -> float:
        image = self.computeKernelImage(position, color)
        aperture = Ellipse(Axes(radius, radius), Point2D(0.0, 0.0))
        box = Box2I(aperture.computeBBox())
        if not image.getBBox().contains(box):
            box.include(image.getBBox())
            padded = type(image)(box)
            padded[image.getBBox()] = image
            image = padded
        return ApertureFluxAlgorithm.computeSincFlux(image, aperture).instFlux

    def _doComputeShape(self, position: Point2D, color: Any) -> Quadrupole:
        # Several plugins ask for it, for every source.
        key = None if self._isFixed else (position.getX(), position.getY())
        if self._shape is None or self._shape[0] != key:
            image = self.computeKernelImage(position, color)
            result = SdssShapeAlgorithm.computeAdaptiveMoments(image, Point2D(0.0, 0.0))
            self._shape = (key, result.getShape())
        return Quadrupole(self._shape[1])


@register_persistable("KernelPsf", module="lsst.meas.algorithms")
class KernelPsf(ImagePsf):
    """PSF given by a kernel; of an image with an `lsst.afw.math.FixedKernel`.

    Parameters
    ----------
    kernel : `lsst.afw.math.Kernel`
        The kernel; its images are scaled to sum 1.
    averagePosition : `lsst.geom.Point2D`, optional
        Mean position of the stars that it was made from.
    """

    def __init__(self, kernel: Kernel, averagePosition: Point2D | None = None):
        super().__init__(isFixed=not kernel.isSpatiallyVarying())
        self._kernel = kernel.clone()
        self._averagePosition = Point2D(0.0, 0.0) if averagePosition is None else Point2D(averagePosition)

    def getKernel(self) -> Kernel:
        """Return the kernel."""
        return self._kernel

    def getAveragePosition(self) -> Point2D:
        # Docstring inherited.
        return Point2D(self._averagePosition)

    def __deepcopy__(self, memo: dict | None = None) -> KernelPsf:
        return KernelPsf(self._kernel, self._averagePosition)

    def resized(self, width: int, height: int) -> KernelPsf:
        # Docstring inherited.
        return KernelPsf(self._kernel.resized(width, height), self._averagePosition)

    def _doComputeKernelImage(self, position: Point2D, color: Any) -> ImageD:
        from lsst.afw.image import ImageD

        image = ImageD(self._kernel.getDimensions())
        center = self._kernel.getCtr()
        image.setXY0(Point2I(-center.getX(), -center.getY()))
        self._kernel.computeImage(image, True, position.getX(), position.getY())
        return image

    def _doComputeBBox(self, position: Point2D, color: Any) -> Box2I:
        return self._kernel.getBBox()

    # Persistence ---------------------------------------------------------

    def isPersistable(self) -> bool:
        """Return whether the kernel can be saved."""
        return self._kernel.isPersistable()

    def _persist(self, handle: Any) -> None:
        schema = Schema()
        kernel = schema.addField("kernel", type=np.int32, doc="archive ID of nested kernel object")
        doc = "average position of stars used to make the PSF"
        x = schema.addField("averagePosition_x", type=np.float64, doc=doc, units="pixel")
        y = schema.addField("averagePosition_y", type=np.float64, doc=doc, units="pixel")
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        record.set(kernel, handle.put(self._kernel))
        record.set(x, self._averagePosition.getX())
        record.set(y, self._averagePosition.getY())
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: Any, catalogs: list[BaseCatalog]) -> KernelPsf | None:
        record = catalogs[0][0]
        kernel = archive.get(int(record["kernel"]))
        if kernel is None:
            return None
        return cls(kernel, Point2D(record["averagePosition_x"], record["averagePosition_y"]))
