# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point spread functions."""

from __future__ import annotations

__all__ = ["GaussianPsf", "InvalidPsfError", "Psf"]

import enum
import math
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
from scipy.ndimage import correlate1d

from lsst.afw.geom.ellipses import Quadrupole
from lsst.afw.table import Schema
from lsst.afw.table.io import Persistable, register_persistable
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.pex.exceptions import InvalidParameterError

if TYPE_CHECKING:
    from lsst.afw.image import ImageD
    from lsst.afw.table import BaseCatalog


class InvalidPsfError(InvalidParameterError):
    """The PSF has no value at a position."""


class ImageOwnerEnum(enum.Enum):
    """Whether an image that a `Psf` returns may be changed."""

    COPY = 0
    INTERNAL = 1


ImageOwnerEnum.__qualname__ = "Psf.ImageOwnerEnum"


def _lanczos(shift: float, order: int) -> tuple[np.ndarray, int]:
    """Weights that shift samples by a fraction of a pixel.

    ``L(x) = sinc(x) sinc(x / order)`` at ``x = j + shift``, scaled to sum 1.

    Parameters
    ----------
    shift : `float`
        Shift to larger indices, in (-1, 1) pixels.
    order : `int`
        Order of the Lanczos function.

    Returns
    -------
    weights : `numpy.ndarray`, (2 * order,)
        Weights of the pixels ``first`` to ``first + 2 * order - 1``.
    first : `int`
        Offset of the first pixel: the 2 * order pixels around the point.
    """
    first = -(order - 1) - (1 if shift > 0 else 0)
    x = np.arange(first, first + 2 * order) + shift
    weights = np.sinc(x) * np.sinc(x / order)
    return weights / weights.sum(), first


def _shift(array: np.ndarray, dx: float, dy: float, algorithm: str, buffer: int) -> np.ndarray:
    """Shift an image (y, x) by less than a pixel."""
    if not algorithm.startswith("lanczos") or not algorithm[7:].isdigit():
        raise InvalidParameterError(f"Unknown or unsupported warping kernel {algorithm!r}; wanted lanczosN.")
    order = int(algorithm[7:])
    padded = np.pad(np.asarray(array, np.float64), buffer) if buffer else np.asarray(array, np.float64)
    for axis, shift in ((1, dx), (0, dy)):
        weights, first = _lanczos(shift, order)
        # correlate1d centres 2 * order weights on index ``order``.
        padded = correlate1d(padded, weights, axis=axis, mode="constant", origin=-(first + order))
    return padded[buffer:-buffer, buffer:-buffer] if buffer else padded


def _correlate(stack: np.ndarray, shift: np.ndarray, axis: int, order: int = 5) -> np.ndarray:
    """Shift each image of a stack along an axis, term by term in the order of ``correlate1d``."""
    result = np.zeros_like(stack)
    for group in (shift > 0, shift <= 0):
        if not group.any():
            continue
        first = 1 - order - int(shift[group][0] > 0)
        x = np.arange(first, first + 2 * order) + shift[group, None]
        weights = np.sinc(x) * np.sinc(x / order)
        weights /= weights.sum(axis=1)[:, None]
        begin, count = max(-first, 0), stack.shape[axis] - 2 * order
        source, done = np.moveaxis(stack[group], axis, 1), np.zeros_like(np.moveaxis(stack[group], axis, 1))
        for term in (2 * order - 1, *range(2 * order - 1)):
            done[:, begin : begin + count + 1] += (
                source[:, term : term + count + 1] * weights[:, term, None, None]
            )
        result[group] = np.moveaxis(done, 1, axis)
    return result


class Psf(Persistable):
    """Base class of point spread functions.

    Subclasses define ``_doComputeKernelImage(position, color)``,
    ``_doComputeApertureFlux(radius, position, color)``,
    ``_doComputeShape(position, color)``, ``_doComputeBBox(position, color)``
    and ``resized(width, height)``, with the names that subclasses of the C++
    class use.

    Parameters
    ----------
    isFixed : `bool`, optional
        Whether the PSF is the same everywhere.
    capacity : `int`, optional
        Number of images to keep; only the number is.
    """

    ImageOwnerEnum: ClassVar = ImageOwnerEnum
    COPY: ClassVar = ImageOwnerEnum.COPY
    INTERNAL: ClassVar = ImageOwnerEnum.INTERNAL

    def __init__(self, isFixed: bool = False, capacity: int = 100):
        self._isFixed = bool(isFixed)
        self._capacity = int(capacity)

    # Hooks ---------------------------------------------------------------

    def _missing(self, name: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} does not define {name}.")

    def _doComputeKernelImage(self, position: Point2D, color: Any) -> ImageD:
        """Return the PSF at a position, centred on pixel (0, 0), sum 1."""
        self._missing("_doComputeKernelImage")

    def _doComputeApertureFlux(self, radius: float, position: Point2D, color: Any) -> float:
        """Return the flux within a radius."""
        self._missing("_doComputeApertureFlux")

    def _doComputeShape(self, position: Point2D, color: Any) -> Quadrupole:
        """Return the second moments."""
        self._missing("_doComputeShape")

    def _doComputeBBox(self, position: Point2D, color: Any) -> Box2I:
        """Return the bounding box of the kernel image."""
        self._missing("_doComputeBBox")

    def _doComputeImage(self, position: Point2D, color: Any) -> ImageD:
        """Return the PSF centred on a position in the image."""
        return self.recenterKernelImage(self.computeKernelImage(position, color), position)

    def _doComputeImageBBox(self, position: Point2D, color: Any) -> Box2I:
        """Return the bounding box of the image at a position."""
        return self.computeImage(position, color).getBBox()

    # What callers use ----------------------------------------------------

    def _at(self, position: Point2D) -> Point2D:
        """Return a position, or the average one where it is NaN."""
        if not isinstance(position, Point2D):
            if not isinstance(position, Point2I):
                raise TypeError(f"The position of a PSF is a Point2D, not {position!r}.")
            position = Point2D(position)
        if math.isnan(position.getX()) and math.isnan(position.getY()):
            return self.getAveragePosition()
        return position

    def computeImage(self, position: Point2D, color: Any = None, owner: Any = ImageOwnerEnum.COPY) -> ImageD:
        """Make an image of a point source at a position.

        Parameters
        ----------
        position : `lsst.geom.Point2D`
            Position in the parent image.
        color : `object`, optional
            Not used.
        owner : `Psf.ImageOwnerEnum`, optional
            Not used: the image is always the caller's.

        Returns
        -------
        image : `lsst.afw.image.ImageD`
            Image with the origin (xy0) of the parent image.
        """
        return self._doComputeImage(self._at(position), color)

    def computeKernelImage(
        self, position: Point2D, color: Any = None, owner: Any = ImageOwnerEnum.COPY
    ) -> ImageD:
        """Make an image of the PSF about the pixel (0, 0).

        Parameters
        ----------
        position : `lsst.geom.Point2D`
            Where in the parent image the PSF is wanted.
        color : `object`, optional
            Not used.
        owner : `Psf.ImageOwnerEnum`, optional
            Not used: the image is always the caller's.

        Returns
        -------
        image : `lsst.afw.image.ImageD`
            Image whose pixel (0, 0) is the centre; its sum is 1.
        """
        position = self._at(position)
        return self._doComputeKernelImage(self.getAveragePosition() if self._isFixed else position, color)

    def _imagesAt(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...] | None:
        """Make the images of N point sources, as `computeImage` does one at a time.

        Returns
        -------
        images : `numpy.ndarray`, (N, height, width)
            The images.
        y0, x0 : `numpy.ndarray`, (N,), int
            Their first pixels. In place of all three there is None if the PSF is not the same everywhere.
        """
        if not self._isFixed or type(self)._doComputeImage is not Psf._doComputeImage:
            return None
        kernel = self.computeKernelImage(self.getAveragePosition())
        whole = np.floor(np.stack([y, x]) + 0.5)
        shift = (np.stack([y, x]) - whole).astype(np.float32).astype(np.float64)
        images = np.empty((x.size, *kernel.array.shape))
        images[:] = kernel.array
        moved = np.flatnonzero(shift.any(axis=0))
        for part in np.array_split(moved, moved.size // 64 + 1):
            padded = np.pad(images[part], ((0, 0), (5, 5), (5, 5)))
            for axis, by in ((2, shift[1, part]), (1, shift[0, part])):
                padded = _correlate(padded, by, axis)
            images[part] = padded[:, 5:-5, 5:-5]
        y0, x0 = whole.astype(np.int64) + [[kernel.getY0()], [kernel.getX0()]]
        return images, y0, x0

    def computePeak(self, position: Point2D, color: Any = None) -> float:
        """Return the value of the kernel image's central pixel."""
        image = self.computeKernelImage(position, color)
        return float(image.array[-image.getY0(), -image.getX0()])

    def computeApertureFlux(self, radius: float, position: Point2D, color: Any = None) -> float:
        """Return the flux within a radius in pixels; the total is 1."""
        return self._doComputeApertureFlux(radius, self._at(position), color)

    def computeShape(self, position: Point2D, color: Any = None) -> Quadrupole:
        """Return the second moments of the PSF, in pixels squared."""
        return self._doComputeShape(self._at(position), color)

    def computeBBox(self, position: Point2D, color: Any = None) -> Box2I:
        """Return the bounding box of the kernel image."""
        return self._doComputeBBox(self._at(position), color)

    def computeKernelBBox(self, position: Point2D, color: Any = None) -> Box2I:
        """Return the bounding box of the kernel image."""
        return self.computeBBox(position, color)

    def computeImageBBox(self, position: Point2D, color: Any = None) -> Box2I:
        """Return the bounding box of the image at a position."""
        return self._doComputeImageBBox(self._at(position), color)

    def getLocalKernel(self, position: Point2D, color: Any = None) -> Any:
        """Return the PSF at a position as a kernel."""
        from lsst.afw.math import FixedKernel

        return FixedKernel(self.computeKernelImage(position, color))

    def getAveragePosition(self) -> Point2D:
        """Return the mean position of the stars that it was made from."""
        return Point2D(0.0, 0.0)

    def getCacheCapacity(self) -> int:
        """Return the number of images to keep."""
        return self._capacity

    def setCacheCapacity(self, capacity: int) -> None:
        """Set the number of images to keep."""
        self._capacity = int(capacity)

    def clone(self) -> Psf:
        """Return a copy."""
        return self.__deepcopy__()

    def __deepcopy__(self, memo: dict | None = None) -> Psf:
        self._missing("__deepcopy__")

    def resized(self, width: int, height: int) -> Psf:
        """Return the same PSF with images of another size."""
        self._missing("resized")

    @staticmethod
    def recenterKernelImage(
        im: ImageD, position: Point2D, warpAlgorithm: str = "lanczos5", warpBuffer: int = 5
    ) -> ImageD:
        """Move a kernel image to a position in the parent image.

        Parameters
        ----------
        im : `lsst.afw.image.ImageD`
            Image centred on pixel (0, 0).
        position : `lsst.geom.Point2D`
            Where the centre goes.
        warpAlgorithm : `str`, optional
            "lanczosN".
        warpBuffer : `int`, optional
            Width of the border of zeros while it is interpolated.

        Returns
        -------
        image : `lsst.afw.image.ImageD`
            Image of the same size, shifted by at most half a pixel and with
            its origin near ``position``.
        """
        from lsst.afw.image import ImageD

        ix, iy = math.floor(position.getX() + 0.5), math.floor(position.getY() + 0.5)
        # Upstream hands the remainders on in single precision.
        dx, dy = float(np.float32(position.getX() - ix)), float(np.float32(position.getY() - iy))
        array = im.array
        if dx or dy:
            array = _shift(array, dx, dy, warpAlgorithm, warpBuffer)
        return ImageD(np.array(array, np.float64), False, Point2I(im.getX0() + ix, im.getY0() + iy))


@register_persistable("GaussianPsf", module="lsst.afw.detection")
class GaussianPsf(Psf):
    """A circular Gaussian, the same everywhere.

    Parameters
    ----------
    width, height : `int`
        Size of the images, odd; or, instead, ``dimensions``, an
        `lsst.geom.Extent2I`.
    sigma : `float`
        Standard deviation in pixels.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if a dimension is even.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(isFixed=True)
        if "dimensions" in kwargs or (args and isinstance(args[0], Extent2I)):
            names: tuple[str, ...] = ("dimensions", "sigma")
        else:
            names = ("width", "height", "sigma")
        bound = dict(zip(names, args, strict=False))
        if len(args) > len(names) or set(bound) & set(kwargs) or set(bound) | set(kwargs) != set(names):
            raise TypeError(
                "GaussianPsf takes (width, height, sigma) or (dimensions: Extent2I, sigma); got "
                f"{args}, {kwargs}."
            )
        bound |= kwargs
        if "dimensions" in bound:
            self._dimensions = Extent2I(bound["dimensions"])
        else:
            self._dimensions = Extent2I(bound["width"], bound["height"])
        if self._dimensions.getX() % 2 == 0 or self._dimensions.getY() % 2 == 0:
            raise InvalidParameterError(f"GaussianPsf dimensions must be odd, not {self._dimensions}.")
        self._sigma = float(bound["sigma"])

    def getDimensions(self) -> Extent2I:
        """Return the size of the images."""
        return Extent2I(self._dimensions)

    def getSigma(self) -> float:
        """Return the standard deviation in pixels."""
        return self._sigma

    def isPersistable(self) -> bool:
        """Return True: it can be saved."""
        return True

    def __deepcopy__(self, memo: dict | None = None) -> GaussianPsf:
        return GaussianPsf(self._dimensions, self._sigma)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GaussianPsf):
            return NotImplemented
        return self._dimensions == other._dimensions and self._sigma == other._sigma

    __hash__ = Psf.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return GaussianPsf, (self._dimensions.getX(), self._dimensions.getY(), self._sigma)

    def resized(self, width: int, height: int) -> GaussianPsf:
        # Docstring inherited.
        return GaussianPsf(width, height, self._sigma)

    def _doComputeKernelImage(self, position: Point2D, color: Any) -> ImageD:
        from lsst.afw.image import ImageD

        bbox = self._doComputeBBox(position, color)
        x = np.arange(bbox.getMinX(), bbox.getMaxX() + 1, dtype=np.float64)
        y = np.arange(bbox.getMinY(), bbox.getMaxY() + 1, dtype=np.float64)
        array = np.exp(-0.5 * (x**2 + y[:, None] ** 2) / self._sigma**2)
        return ImageD(array / array.sum(), False, bbox.getMin())

    def _doComputeApertureFlux(self, radius: float, position: Point2D, color: Any) -> float:
        return -math.expm1(-0.5 * (radius / self._sigma) ** 2)

    def _doComputeShape(self, position: Point2D, color: Any) -> Quadrupole:
        return Quadrupole(self._sigma**2, self._sigma**2, 0.0)

    def _doComputeBBox(self, position: Point2D, color: Any) -> Box2I:
        width, height = self._dimensions.getX(), self._dimensions.getY()
        return Box2I(Point2I(-(width // 2), -(height // 2)), self._dimensions)

    # Persistence ---------------------------------------------------------

    def _persist(self, handle: Any) -> None:
        schema = Schema()
        doc = "width/height of realization of Psf"
        width = schema.addField("dimensions_x", type=np.int32, doc=doc, units="pixel")
        height = schema.addField("dimensions_y", type=np.int32, doc=doc, units="pixel")
        sigma = schema.addField("sigma", type=np.float64, doc="radius of Gaussian", units="pixel")
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        record.set(width, self._dimensions.getX())
        record.set(height, self._dimensions.getY())
        record.set(sigma, self._sigma)
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: Any, catalogs: list[BaseCatalog]) -> GaussianPsf:
        record = catalogs[0][0]
        return cls(int(record["dimensions_x"]), int(record["dimensions_y"]), float(record["sigma"]))
