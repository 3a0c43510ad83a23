# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Footprints that hold the values of their pixels."""

from __future__ import annotations

__all__ = [
    "HeavyFootprintD",
    "HeavyFootprintF",
    "HeavyFootprintI",
    "HeavyFootprintU",
    "makeHeavyFootprint",
    "mergeHeavyFootprints",
]

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from lsst.afw.table import Schema
from lsst.afw.table.io import register_persistable

from ._footprint import Footprint, _readFootprint, mergeFootprints
from ._footprint_ctrl import HeavyFootprintCtrl
from ._runs import pixel_keys

if TYPE_CHECKING:
    from lsst.afw.image._image import _TypedImage as Image
    from lsst.afw.image._maskedImage import _MaskedImageBase as MaskedImage
    from lsst.afw.table import BaseCatalog
    from lsst.geom import Box2I


def _isMaskedImage(value: object) -> bool:
    """Tell a MaskedImage from an Image and from an Exposure."""
    return all(hasattr(value, name) for name in ("image", "mask", "variance")) and not hasattr(value, "info")


class _HeavyFootprint(Footprint):
    """What all pixel types have in common.

    Parameters
    ----------
    foot : `Footprint`
        Pixels and peaks.
    mimage : `lsst.afw.image.MaskedImage`, optional
        Values of the pixels; without it they are 0.
    ctrl : `HeavyFootprintCtrl`, optional
        Whether the pixels are also changed in ``mimage``.

    Raises
    ------
    lsst.pex.exceptions.OutOfRangeError
        Raised if the footprint reaches out of the image.
    """

    _dtype: ClassVar[type[np.generic]]

    def __init__(
        self, foot: Footprint, mimage: MaskedImage | None = None, ctrl: HeavyFootprintCtrl | None = None
    ):
        if isinstance(mimage, HeavyFootprintCtrl):
            mimage, ctrl = None, mimage
        if not isinstance(foot, Footprint):
            raise TypeError(
                f"{type(self).__name__} is made from a Footprint, not from a {type(foot).__name__}."
            )
        super().__init__(foot)
        if mimage is None:
            area = foot.getArea()
            self._setPixels(np.zeros(area, self._dtype), np.zeros(area, np.int32), np.zeros(area, np.float32))
            return
        if not _isMaskedImage(mimage) or mimage.image.array.dtype != self._dtype:
            raise TypeError(
                f"{type(self).__name__} takes its pixels from a MaskedImage of "
                f"{np.dtype(self._dtype).name}, not from {mimage!r}."
            )
        spans, xy0 = self.getSpans(), mimage.getXY0()
        planes = [mimage.image.array, mimage.mask.array, mimage.variance.array]
        # One look-up for three planes; what is outside raises here.
        where = spans._indices_in(planes[0].shape, xy0)
        self._setPixels(*(plane[where] for plane in planes))
        if ctrl is not None and ctrl.getModifySource() is HeavyFootprintCtrl.SET:
            planes[0][where] = ctrl.getImageVal()
            planes[1][where] &= np.int32(~ctrl.getMaskVal())
            planes[2][where] = ctrl.getVarianceVal()

    def _setPixels(self, image: np.ndarray, mask: np.ndarray, variance: np.ndarray) -> None:
        self._image = np.ascontiguousarray(image, self._dtype)
        self._mask = np.ascontiguousarray(mask, np.int32)
        self._variance = np.ascontiguousarray(variance, np.float32)

    def isHeavy(self) -> bool:
        # Docstring inherited.
        return True

    def getImageArray(self) -> np.ndarray:
        """Return the image values, (N,), a view, in the order of the spans."""
        return self._image

    def getMaskArray(self) -> np.ndarray:
        """Return the mask values, (N,) int32, a view."""
        return self._mask

    def getVarianceArray(self) -> np.ndarray:
        """Return the variances, (N,) float32, a view."""
        return self._variance

    def getMaskBitsSet(self) -> int:
        """Return the OR of all mask values."""
        return int(np.bitwise_or.reduce(self._mask)) if self._mask.size else 0

    def insert(self, mimage: Any) -> None:
        """Overwrite the pixels of an image with those held here.

        Parameters
        ----------
        mimage : `lsst.afw.image.MaskedImage` or `lsst.afw.image.Image`
            Image to change; of an `~lsst.afw.image.Image` only that plane.
        """
        spans, xy0 = self.getSpans(), mimage.getXY0()
        if _isMaskedImage(mimage):
            spans.unflatten(mimage.image.array, self._image, xy0)
            spans.unflatten(mimage.mask.array, self._mask, xy0)
            spans.unflatten(mimage.variance.array, self._variance, xy0)
        else:
            spans.unflatten(mimage.array, self._image, xy0)

    def addTo(self, image: Image) -> None:
        """Add the image values to an image."""
        y, x = self.getSpans().indices()
        image.array[np.asarray(y) - image.getY0(), np.asarray(x) - image.getX0()] += self._image

    def subtractFrom(self, image: Image) -> None:
        """Subtract the image values from an image."""
        y, x = self.getSpans().indices()
        image.array[np.asarray(y) - image.getY0(), np.asarray(x) - image.getX0()] -= self._image

    def extractImage(self, fill: float = np.nan, bbox: Box2I | None = None, imageType: Any = None) -> Any:
        """Make an image of the footprint.

        Parameters
        ----------
        fill : `float`, optional
            Value outside the footprint.
        bbox : `lsst.geom.Box2I`, optional
            Box of the image; by default that of the footprint.
        imageType : `type`, optional
            `lsst.afw.image.Image` (the default) or
            `lsst.afw.image.MaskedImage`.

        Returns
        -------
        image : `lsst.afw.image.Image` or `lsst.afw.image.MaskedImage`
            New image.
        """
        # lsst.afw.image itself needs this package.
        import lsst.afw.image

        make: Any = lsst.afw.image.Image if imageType is None else imageType
        image = make(self.getBBox() if bbox is None else bbox, dtype=self._image.dtype)
        image.set(fill)
        self.insert(image)
        return image

    def dot(self, other: _HeavyFootprint) -> float:
        """Sum the products of the image values where both have pixels.

        Parameters
        ----------
        other : `HeavyFootprintF` and so on
            Footprint of the same pixel type.

        Returns
        -------
        product : `float`
            The sum, in double precision.
        """
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__}.dot needs its own type, not {type(other).__name__}.")
        _, mine, theirs = np.intersect1d(
            pixel_keys(self.getSpans()), pixel_keys(other.getSpans()), assume_unique=True, return_indices=True
        )
        return float((self._image[mine] * other._image[theirs]).sum(dtype=np.float64))

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle '{type(self).__module__}.{type(self).__name__}' object")

    # Persistence ---------------------------------------------------------

    def _persist(self, handle: Any) -> None:
        super()._persist(handle)
        schema = Schema()
        code = type(self).__name__[-1]
        image = schema.addField(
            "image", type=f"Array{code}", doc="image pixels for HeavyFootprint", units="count", size=0
        )
        mask = schema.addField("mask", type="ArrayI", doc="mask pixels for HeavyFootprint", size=0)
        variance = schema.addField(
            "variance", type="ArrayF", doc="variance pixels for HeavyFootprint", units="count^2", size=0
        )
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        record.set(image, self._image)
        record.set(mask, self._mask)
        record.set(variance, self._variance)
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: Any, catalogs: list[BaseCatalog]) -> Footprint:
        footprint = _readFootprint(archive, catalogs)
        heavy = cls.__new__(cls)
        heavy._copyFrom(footprint)
        record = catalogs[2][0]
        heavy._setPixels(record["image"], record["mask"], record["variance"])
        return heavy


@register_persistable("HeavyFootprintF", module="lsst.afw.detection")
class HeavyFootprintF(_HeavyFootprint):
    """Footprint with float32 pixels."""

    _dtype = np.float32


@register_persistable("HeavyFootprintD", module="lsst.afw.detection")
class HeavyFootprintD(_HeavyFootprint):
    """Footprint with float64 pixels."""

    _dtype = np.float64


@register_persistable("HeavyFootprintI", module="lsst.afw.detection")
class HeavyFootprintI(_HeavyFootprint):
    """Footprint with int32 pixels."""

    _dtype = np.int32


@register_persistable("HeavyFootprintU", module="lsst.afw.detection")
class HeavyFootprintU(_HeavyFootprint):
    """Footprint with uint16 pixels."""

    _dtype = np.uint16


_CLASSES: dict[np.dtype, type[_HeavyFootprint]] = {
    np.dtype(cls._dtype): cls for cls in (HeavyFootprintF, HeavyFootprintD, HeavyFootprintI, HeavyFootprintU)
}


def makeHeavyFootprint(
    foot: Footprint, img: MaskedImage, ctrl: HeavyFootprintCtrl | None = None
) -> _HeavyFootprint:
    """Make the heavy footprint whose type fits an image.

    Parameters
    ----------
    foot : `Footprint`
        Pixels and peaks.
    img : `lsst.afw.image.MaskedImage`
        Values of the pixels.
    ctrl : `HeavyFootprintCtrl`, optional
        Whether the pixels are also changed in ``img``.

    Returns
    -------
    heavy : `HeavyFootprintF` and so on
        New footprint.
    """
    if not _isMaskedImage(img) or img.image.array.dtype not in _CLASSES:
        raise TypeError(f"makeHeavyFootprint needs a MaskedImage of type F, D, I or U, not {img!r}.")
    return _CLASSES[img.image.array.dtype](foot, img, ctrl)


def mergeHeavyFootprints(h1: _HeavyFootprint, h2: _HeavyFootprint) -> _HeavyFootprint:
    """Add two heavy footprints.

    Parameters
    ----------
    h1, h2 : `HeavyFootprintF` and so on
        Footprints of the same type.

    Returns
    -------
    merged : `HeavyFootprintF` and so on
        Pixels of either; where both have one, image and variance are summed
        and the mask bits united. The peaks are those of both.
    """
    if type(h1) is not type(h2):
        raise TypeError(
            f"mergeHeavyFootprints needs one pixel type, not {type(h1).__name__} and {type(h2).__name__}."
        )
    merged = type(h1)(mergeFootprints(h1, h2))
    keys = pixel_keys(merged.getSpans())
    for heavy in (h1, h2):
        where = np.searchsorted(keys, pixel_keys(heavy.getSpans()))
        merged._image[where] += heavy._image
        merged._mask[where] |= heavy._mask
        merged._variance[where] += heavy._variance
    return merged
