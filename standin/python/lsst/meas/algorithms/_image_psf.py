# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point spread functions that are given as pixels."""

from __future__ import annotations

__all__ = ["ImagePsf", "KernelPsf"]

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import j1

from lsst.afw.detection import Psf
from lsst.afw.geom.ellipses import Quadrupole
from lsst.afw.table import Schema
from lsst.afw.table.io import register_persistable
from lsst.geom import Box2I, Point2D, Point2I
from lsst.pex.exceptions import RuntimeError as PexRuntimeError

if TYPE_CHECKING:
    from lsst.afw.image import ImageD
    from lsst.afw.math import Kernel
    from lsst.afw.table import BaseCatalog


def adaptive_moments(array: np.ndarray, x0: int, y0: int, n_iter: int = 100) -> tuple[float, float, float]:
    """Measure second moments with a matched elliptical Gaussian weight.

    Bernstein and Jarvis (2002, AJ 123, 583): the weight's moments are
    changed until they are those of the object.

    Parameters
    ----------
    array : `numpy.ndarray`, (height, width)
        Image.
    x0, y0 : `int`
        Position of the first pixel; the object is near (0, 0).
    n_iter : `int`, optional
        The most iterations.

    Returns
    -------
    ixx, iyy, ixy : `float`
        Moments in pixels squared.

    Raises
    ------
    lsst.pex.exceptions.RuntimeError
        Raised if the iteration does not converge.
    """
    y, x = np.mgrid[y0 : y0 + array.shape[0], x0 : x0 + array.shape[1]].astype(np.float64)
    weight_moments = np.diag([2.25, 2.25])
    center = np.zeros(2)
    for _ in range(n_iter):
        inverse = np.linalg.inv(weight_moments)
        dx, dy = x - center[0], y - center[1]
        exponent = inverse[0, 0] * dx**2 + 2 * inverse[0, 1] * dx * dy + inverse[1, 1] * dy**2
        weighted = array * np.exp(-0.5 * exponent)
        total = weighted.sum()
        if not total > 0:
            break
        shift = np.array([(weighted * dx).sum(), (weighted * dy).sum()]) / total
        mixed = (weighted * dx * dy).sum()
        moments = np.array([[(weighted * dx**2).sum(), mixed], [mixed, (weighted * dy**2).sum()]]) / total
        # Weighted moments of a Gaussian: the inverses of both add up.
        try:
            updated = np.linalg.inv(np.linalg.inv(moments) - inverse)
        except np.linalg.LinAlgError:
            break
        if not (np.isfinite(updated).all() and np.linalg.det(updated) > 0 and updated[0, 0] > 0):
            # The weight is much too wide: narrow it first.
            updated = moments
        change = np.abs(updated - weight_moments).max()
        weight_moments = updated
        center = center + 2 * shift
        if change < 1e-8 * np.trace(updated) and np.abs(shift).max() < 1e-8:
            return float(updated[0, 0]), float(updated[1, 1]), float(updated[0, 1])
    raise PexRuntimeError("The adaptive moments of the PSF image do not converge.")


def sinc_flux(array: np.ndarray, x0: int, y0: int, radius: float) -> float:
    """Integrate the band-limited image within a circle about (0, 0).

    The sum over pixels is done in Fourier space, where the circle is
    ``r J1(2 pi k r) / k`` (Bickerton and Lupton 2013, MNRAS 431, 1275).

    Parameters
    ----------
    array : `numpy.ndarray`, (height, width)
        Image.
    x0, y0 : `int`
        Position of the first pixel.
    radius : `float`
        Radius in pixels.

    Returns
    -------
    flux : `float`
        The integral.
    """
    # Room on all sides, as the image repeats in Fourier space.
    size = 2 ** math.ceil(math.log2(4 * (max(array.shape) + 2 * radius)))
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    k = np.hypot(kx, ky)
    k[0, 0] = 1.0
    aperture = radius * j1(2 * np.pi * k * radius) / k
    aperture[0, 0] = np.pi * radius**2
    phase = np.exp(-2j * np.pi * (kx * x0 + ky * y0))
    spectrum = (np.fft.rfft2(array, s=(size, size)) * phase).real * aperture
    # The half with kx < 0 is the mirror image.
    return float((2 * spectrum.sum() - spectrum[:, 0].sum() - spectrum[:, -1].sum()) / size**2)


class ImagePsf(Psf):
    """PSF whose shape and aperture flux are measured on its image.

    Subclasses define ``_doComputeKernelImage`` and ``_doComputeBBox``.

    Parameters
    ----------
    isFixed : `bool`, optional
        Whether the PSF is the same everywhere.
    """

    def _doComputeApertureFlux(self, radius: float, position: Point2D, color: Any) -> float:
        image = self.computeKernelImage(position, color)
        return sinc_flux(image.array, image.getX0(), image.getY0(), radius)

    def _doComputeShape(self, position: Point2D, color: Any) -> Quadrupole:
        image = self.computeKernelImage(position, color)
        return Quadrupole(*adaptive_moments(image.array, image.getX0(), image.getY0()))


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
