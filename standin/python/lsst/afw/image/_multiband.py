# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images, masks, masked images and exposures in several bands."""

from __future__ import annotations

__all__ = [
    "IncompleteDataError",
    "MultibandExposure",
    "MultibandImage",
    "MultibandMask",
    "MultibandMaskedImage",
    "MultibandPixel",
    "computePsfImage",
]

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from lsst.afw.multiband import MultibandBase
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.pex.exceptions import InvalidParameterError

from ._exposure import Exposure, ExposureF
from ._image import Image, ImageF
from ._mask import Mask, MaskX
from ._maskedImage import MaskedImage, MaskedImageF
from ._slicing import LOCAL, PARENT, ImageOrigin, imageIndicesToNumpy


class MultibandPixel(MultibandBase):
    """One pixel in several bands.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    singles : `numpy.ndarray`
        Value in each band.
    position : `lsst.geom.Point2I`
        Position of the pixel.
    """

    def __init__(self, bands: Sequence[Any], singles: Any, position: Point2I):
        if singles is None or bands is None or position is None:
            raise NotImplementedError("Expected an array of `singles`, a list of `bands`, and a `position`")
        values = np.asarray(singles)
        super().__init__(bands, list(values), bbox=Box2I(position, Extent2I(1, 1)))
        self._singles = values

    @property
    def array(self) -> np.ndarray:
        """Value in each band, of shape (band,)."""
        return self._singles

    @array.setter
    def array(self, value: Any) -> None:
        self._singles[:] = value

    def clone(self, deep: bool = True) -> MultibandPixel:
        """Return a copy."""
        values = self._singles.copy() if deep else self._singles
        made = MultibandPixel(self.bands, values, self.getBBox().getMin())
        if not deep:
            made._bbox = self._bbox
        return made

    def __getitem__(self, indices: Any) -> Any:
        if isinstance(indices, tuple):
            raise IndexError("Too many indices: a MultibandPixel only takes a band index")
        bands, index = self._bandNamesToIndex(indices)
        if not isinstance(index, slice) and len(bands) == 1:
            return self._singles[index[0]]
        return MultibandPixel(bands, self._singles[index], self.getBBox().getMin())

    def _slice(self, bands: tuple, bandIndex: Any, indices: tuple) -> Any:
        raise IndexError("A MultibandPixel has no spatial dimensions.")


class _MultibandPlanes(MultibandBase):
    """Images or masks whose pixels are one array.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    array : `numpy.ndarray`
        Pixels, axes (band, y, x); single bands are views of it.
    singleType : `type`
        `Image` or `Mask`.
    bbox : `lsst.geom.Box2I`, optional
        Bounding box (default: from (0, 0)).
    """

    def __init__(self, bands: Sequence[Any], array: np.ndarray, singleType: Any, bbox: Box2I | None = None):
        if len(array) != len(bands):
            raise ValueError(
                f"`array` and `bands` must have the same length, got {len(array)} and {len(bands)}."
            )
        if bbox is None:
            bbox = _full_box(array)
        if array.shape[1:] != (bbox.getHeight(), bbox.getWidth()):
            raise ValueError(f"`array` of shape {array.shape} does not fit `bbox` {bbox}.")
        self._array = array
        self._bands = tuple(bands)
        self._bbox = bbox
        self._singles = tuple(
            singleType(array=plane, xy0=bbox.getMin(), dtype=array.dtype) for plane in array
        )

    @property
    def array(self) -> np.ndarray:
        """Pixels, axes (band, y, x); assignment copies values in."""
        return self._array

    @array.setter
    def array(self, value: Any) -> None:
        self._array[:] = value

    def clone(self, deep: bool = True) -> Self:
        """Return a copy."""
        array = self._array.copy() if deep else self._array
        return type(self)(self.bands, array, Box2I(self.getBBox()))  # type: ignore[call-arg, arg-type]

    def getBBox(self, origin: ImageOrigin = PARENT) -> Box2I:
        """Return the bounding box."""
        return _box(self._bbox, origin)

    def _slice(self, bands: tuple, bandIndex: Any, indices: tuple) -> Any:
        if len(indices) == 0:
            array, bbox = self._array[bandIndex], self.getBBox()
        else:
            y, x, part = imageIndicesToNumpy(indices[0] if len(indices) == 1 else indices, self.getBBox)
            array = self._array[bandIndex, y, x]
            if part is None:
                return MultibandPixel(bands, array, Point2I(x + self.x0, y + self.y0))  # type: ignore[operator]
            bbox = part
        return type(self)(bands, array, bbox)  # type: ignore[call-arg, arg-type]

    def __setitem__(self, args: Any, value: Any) -> None:
        indices = args if isinstance(args, tuple) else (args,)
        _, band_index = self._bandNamesToIndex(indices[0])
        y: Any = slice(None)
        x: Any = slice(None)
        if len(indices) > 1:
            rest = indices[1] if len(indices) == 2 else indices[1:]
            y, x, _ = imageIndicesToNumpy(rest, self.getBBox)
        self._array[band_index, y, x] = value.array if hasattr(value, "array") else value


def _full_box(array: np.ndarray) -> Box2I:
    """Return the box from (0, 0) of an array with axes (band, y, x)."""
    return Box2I(Point2I(0, 0), Extent2I(array.shape[2], array.shape[1]))


def _box(bbox: Box2I, origin: ImageOrigin) -> Box2I:
    if origin == PARENT:
        return bbox
    if origin == LOCAL:
        return Box2I(Point2I(0, 0), bbox.getDimensions())
    raise ValueError("Unrecognized origin, expected either PARENT or LOCAL")


def _stack(cls: Any, bands: Sequence[Any], singles: Sequence[Any]) -> Any:
    """Copy the pixels of single-band objects into one array."""
    boxes = [single.getBBox() for single in singles]
    if any(box != boxes[0] for box in boxes):
        raise ValueError("Single band images did not all have the same bounding box")
    return cls(bands, np.stack([single.array for single in singles]), boxes[0])


def _make_singles(bands: Sequence[Any], bandKwargs: Any, singleType: type, kwargs: dict) -> list[Any]:
    """Make the object of each band from keyword arguments."""
    items = bandKwargs.items() if isinstance(bandKwargs, Mapping) else (bandKwargs or ())
    items = list(items)
    return [singleType(**kwargs, **{key: value[band] for key, value in items}) for band in bands]


class MultibandImage(_MultibandPlanes):
    """Images in several bands.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    array : `numpy.ndarray`
        Pixels, axes (band, y, x).
    bbox : `lsst.geom.Box2I`, optional
        Bounding box (default: from (0, 0)).
    """

    def __init__(self, bands: Sequence[Any], array: np.ndarray, bbox: Box2I | None = None):
        super().__init__(bands, array, Image, bbox)

    @staticmethod
    def fromImages(bands: Sequence[Any], singles: Sequence[Any]) -> MultibandImage:
        """Make an object from (copies of) one image per band."""
        return _stack(MultibandImage, bands, singles)

    @staticmethod
    def fromKwargs(
        bands: Sequence[Any], bandKwargs: Any, singleType: type = ImageF, **kwargs: Any
    ) -> MultibandImage:
        """Make an object from the arguments of each band's constructor."""
        return _stack(MultibandImage, bands, _make_singles(bands, bandKwargs, singleType, kwargs))


class MultibandMask(_MultibandPlanes):
    """Masks in several bands; see `MultibandImage`.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    array : `numpy.ndarray`
        Pixels (int32), axes (band, y, x).
    bbox : `lsst.geom.Box2I`, optional
        Bounding box (default: from (0, 0)).
    """

    def __init__(self, bands: Sequence[Any], array: np.ndarray, bbox: Box2I | None = None):
        super().__init__(bands, array, Mask, bbox)

    @staticmethod
    def fromMasks(bands: Sequence[Any], singles: Sequence[Any]) -> MultibandMask:
        """Make an object from (copies of) one mask per band."""
        return _stack(MultibandMask, bands, singles)

    @staticmethod
    def fromKwargs(
        bands: Sequence[Any], bandKwargs: Any, singleType: type = MaskX, **kwargs: Any
    ) -> MultibandMask:
        """Make an object from the arguments of each band's constructor."""
        return _stack(MultibandMask, bands, _make_singles(bands, bandKwargs, singleType, kwargs))

    def getMaskPlane(self, key: str) -> int:
        """Return the bit of a plane."""
        return self._singles[0].getMaskPlaneDict()[key]

    def getPlaneBitMask(self, names: Any) -> int:
        """Return the pixel value of one plane or of several together."""
        return self._singles[0].getPlaneBitMask(names)

    def getNumPlanesMax(self) -> int:
        """Return the number of bits of a pixel."""
        return self._singles[0].getNumPlanesMax()

    def getNumPlanesUsed(self) -> int:
        """Return the number of planes."""
        return self._singles[0].getNumPlanesUsed()

    def getMaskPlaneDict(self) -> dict[str, int]:
        """Return names and bits of the planes."""
        return self._singles[0].getMaskPlaneDict()

    @staticmethod
    def addMaskPlane(name: str) -> int:
        """Add a plane to all masks, or find it."""
        return MaskX.addMaskPlane(name)

    @staticmethod
    def removeMaskPlane(name: str) -> None:
        """Remove a plane from the default dictionary."""
        MaskX.removeMaskPlane(name)

    @staticmethod
    def clearMaskPlaneDict() -> None:
        """Remove all planes from the default dictionary."""
        MaskX.clearMaskPlaneDict()

    def removeAndClearMaskPlane(self, name: str, removeFromDefault: bool = False) -> None:
        """Clear a plane in all bands and forget its name."""
        for single in self._singles:
            single.removeAndClearMaskPlane(name, removeFromDefault=False)
        if removeFromDefault:
            MaskX.removeMaskPlane(name)

    def clearAllMaskPlanes(self) -> None:
        """Set all pixels to zero."""
        self._array[...] = 0

    def _others(self, others: Any) -> list[Any]:
        if isinstance(others, MultibandMask):
            if self.bands != others.bands:
                raise ValueError(
                    f"Both `MultibandMask` objects must have the same bands, got {self.bands}, {others.bands}"
                )
            return list(others.singles)
        return [others] * len(self._singles)

    def _in_place(self, function: Callable[[Any, Any], Any], others: Any) -> Self:
        for single, other in zip(self._singles, self._others(others), strict=True):
            function(single, other)
        return self

    def __ior__(self, others: Any) -> Self:
        return self._in_place(operator.ior, others)

    def __iand__(self, others: Any) -> Self:
        return self._in_place(operator.iand, others)

    def __ixor__(self, others: Any) -> Self:
        return self._in_place(operator.ixor, others)


class _MultibandTriple(MultibandBase):
    """Image, mask and variance in several bands.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    image, mask, variance : `MultibandBase` or `~collections.abc.Sequence`
        The planes, as multiband objects or one object per band.
    """

    def __init__(self, bands: Sequence[Any], image: Any, mask: Any, variance: Any):
        self._bands = tuple(bands)
        if not isinstance(image, MultibandBase):
            image = MultibandImage.fromImages(bands, image)
            mask = None if mask is None else MultibandMask.fromMasks(bands, mask)
            variance = None if variance is None else MultibandImage.fromImages(bands, variance)
        self._image, self._mask, self._variance = image, mask, variance
        self._singles = tuple(self._make_single(i) for i in range(len(self._bands)))
        self._bbox = self._singles[0].getBBox()

    def _each_plane(self, function: Callable[[Any], Any]) -> list[Any]:
        """Apply a function to each plane; a missing one stays `None`."""
        planes = (self._image, self._mask, self._variance)
        return [None if plane is None else function(plane) for plane in planes]

    def _make_single(self, i: int) -> Any:
        """Make the object of a band on views of the pixels."""
        image, mask, variance = self._each_plane(lambda plane: plane.singles[i])
        return MaskedImage(image=image, mask=mask, variance=variance, dtype=self._image.array.dtype)

    @property
    def image(self) -> MultibandImage:
        """The image planes."""
        return self._image

    @property
    def mask(self) -> MultibandMask | None:
        """The mask planes."""
        return self._mask

    @property
    def variance(self) -> MultibandImage | None:
        """The variance planes."""
        return self._variance

    def getBBox(self, origin: ImageOrigin = PARENT) -> Box2I:
        """Return the bounding box."""
        return _box(self._bbox, origin)

    def setXY0(self, xy0: Point2I) -> None:
        """Set the position of the first pixel in all planes and bands."""
        super().setXY0(xy0)
        self._each_plane(lambda plane: plane.setXY0(xy0))

    def clone(self, deep: bool = True) -> Self:
        """Return a copy."""
        return type(self)(self.bands, *self._each_plane(lambda plane: plane.clone(deep)))

    def _part(self, bands: tuple, image: Any, mask: Any, variance: Any) -> Any:
        return type(self)(bands, image, mask, variance)

    def _slice(self, bands: tuple, bandIndex: Any, indices: tuple) -> Any:
        planes = self._each_plane(lambda plane: plane._slice(bands, bandIndex, indices))
        if isinstance(planes[0], MultibandPixel):
            return tuple(planes)
        return self._part(bands, *planes)


def _triple_from_singles(cls: Any, bands: Sequence[Any], singles: Sequence[Any], **kwargs: Any) -> Any:
    return cls(
        bands,
        _stack(MultibandImage, bands, [single.image for single in singles]),
        _stack(MultibandMask, bands, [single.mask for single in singles]),
        _stack(MultibandImage, bands, [single.variance for single in singles]),
        **kwargs,
    )


def _triple_from_arrays(
    cls: Any, bands: Sequence[Any], image: Any, mask: Any, variance: Any, bbox: Box2I | None
) -> Any:
    if bbox is None:
        bbox = _full_box(image)
    return cls(
        bands,
        MultibandImage(bands, image, bbox),
        None if mask is None else MultibandMask(bands, mask, bbox),
        None if variance is None else MultibandImage(bands, variance, bbox),
    )


class MultibandMaskedImage(_MultibandTriple):
    """Masked images in several bands.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    image, mask, variance : `MultibandBase` or `~collections.abc.Sequence`
        The planes, as multiband objects or one object per band.
    """

    def __init__(self, bands: Sequence[Any], image: Any = None, mask: Any = None, variance: Any = None):
        super().__init__(bands, image, mask, variance)

    @staticmethod
    def fromImages(bands: Sequence[Any], singles: Sequence[Any]) -> MultibandMaskedImage:
        """Make an object from (copies of) one masked image per band."""
        return _triple_from_singles(MultibandMaskedImage, bands, singles)

    @staticmethod
    def fromArrays(
        bands: Sequence[Any], image: Any, mask: Any, variance: Any, bbox: Box2I | None = None
    ) -> MultibandMaskedImage:
        """Make an object on arrays with axes (band, y, x)."""
        return _triple_from_arrays(MultibandMaskedImage, bands, image, mask, variance, bbox)

    @staticmethod
    def fromKwargs(
        bands: Sequence[Any], bandKwargs: Any, singleType: type = MaskedImageF, **kwargs: Any
    ) -> MultibandMaskedImage:
        """Make an object from the arguments of each band's constructor."""
        singles = _make_singles(bands, bandKwargs, singleType, kwargs)
        return _triple_from_singles(MultibandMaskedImage, bands, singles)


class IncompleteDataError(Exception):
    """A PSF could not be computed in some bands.

    Parameters
    ----------
    bands : `list` [`str`]
        All bands.
    position : `lsst.geom.Point2D`
        Where the PSF was wanted.
    partialPsf : `MultibandImage`, optional
        PSF in the bands where it could be computed.
    """

    def __init__(self, bands: Sequence[str], position: Point2D, partialPsf: MultibandImage | None = None):
        done = () if partialPsf is None else partialPsf.bands
        self.missingBands = [band for band in bands if band not in done]
        self.position = position
        self.partialPsf = partialPsf
        super().__init__(f"Failed to compute PSF at {position} in {self.missingBands}")


def _project(image: Any, bbox: Box2I) -> Any:
    """Copy an image into a box; pixels that it lacks are zero."""
    if image.getBBox() == bbox:
        return image
    result = type(image)(bbox)
    overlap = Box2I(bbox)
    overlap.clip(image.getBBox())
    if not overlap.isEmpty():
        result.assign(image.subset(overlap), overlap)
    return result


def computePsfImage(
    psfModels: Mapping[str, Any], position: Any, useKernelImage: bool = True
) -> MultibandImage:
    """Compute the PSF in several bands.

    Parameters
    ----------
    psfModels : `~collections.abc.Mapping` [`str`, `lsst.afw.detection.Psf`]
        PSF of each band.
    position : `lsst.geom.Point2D` or `tuple`
        Where to compute it.
    useKernelImage : `bool`, optional
        Whether to centre it on a pixel (or else on the position).

    Returns
    -------
    psf : `MultibandImage`
        The PSF on a box that holds it in all bands.

    Raises
    ------
    IncompleteDataError
        Raised if a band's PSF is not defined at the position.
    """
    if not isinstance(position, Point2D):
        position = Point2D(position[0], position[1])
    images: dict[str, Any] = {}
    for band, model in psfModels.items():
        compute = model.computeKernelImage if useKernelImage else model.computeImage
        try:
            images[band] = compute(position)
        except InvalidParameterError:
            continue
    if not images:
        raise IncompleteDataError(list(psfModels), position, None)
    bbox = Box2I()
    for image in images.values():
        bbox.include(image.getBBox())
    result = MultibandImage.fromImages(list(images), [_project(image, bbox) for image in images.values()])
    if len(images) < len(psfModels):
        raise IncompleteDataError(list(psfModels), position, result)
    return result


class MultibandExposure(_MultibandTriple):
    """Exposures in several bands.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    image, mask, variance : `MultibandBase` or `~collections.abc.Sequence`
        The planes, as multiband objects or one object per band.
    psfs : `~collections.abc.Sequence` [`lsst.afw.detection.Psf`], optional
        PSF of each band.
    """

    def __init__(
        self, bands: Sequence[Any], image: Any, mask: Any, variance: Any, psfs: Sequence[Any] | None = None
    ):
        super().__init__(bands, image, mask, variance)
        if psfs is not None:
            for psf, exposure in zip(psfs, self.singles, strict=True):
                exposure.setPsf(psf)

    def _make_single(self, i: int) -> Any:
        maskedImage = super()._make_single(i)
        return Exposure(maskedImage, dtype=maskedImage.dtype)

    @staticmethod
    def fromExposures(bands: Sequence[Any], singles: Sequence[Any]) -> MultibandExposure:
        """Make an object from (copies of) one exposure per band."""
        psfs = [single.getPsf() for single in singles]
        return _triple_from_singles(MultibandExposure, bands, singles, psfs=psfs)

    @staticmethod
    def fromArrays(
        bands: Sequence[Any], image: Any, mask: Any, variance: Any, bbox: Box2I | None = None
    ) -> MultibandExposure:
        """Make an object on arrays with axes (band, y, x)."""
        return _triple_from_arrays(MultibandExposure, bands, image, mask, variance, bbox)

    @staticmethod
    def fromKwargs(
        bands: Sequence[Any], bandKwargs: Any, singleType: type = ExposureF, **kwargs: Any
    ) -> MultibandExposure:
        """Make an object from the arguments of each band's constructor."""
        singles = _make_singles(bands, bandKwargs, singleType, kwargs)
        return _triple_from_singles(MultibandExposure, bands, singles)

    @staticmethod
    def fromButler(butler: Any, bands: Sequence[str], *args: Any, **kwargs: Any) -> MultibandExposure:
        """Make an object from the exposures of a data ID in several bands.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            Where the exposures are.
        bands : `~collections.abc.Sequence` [`str`]
            Names of the bands.
        *args, **kwargs
            Further arguments of ``butler.get``.

        Returns
        -------
        exposure : `MultibandExposure`
            The exposures.
        """
        return MultibandExposure.fromExposures(
            bands, [butler.get(*args, band=band, **kwargs) for band in bands]
        )

    def getPsfs(self) -> dict[str, Any]:
        """Return the PSF of each band."""
        return {band: single.getPsf() for band, single in zip(self.bands, self.singles, strict=True)}

    def computePsfKernelImage(self, position: Any) -> MultibandImage:
        """Compute the PSF in all bands; see `computePsfImage`."""
        return computePsfImage(psfModels=self.getPsfs(), position=position, useKernelImage=True)

    def computePsfImage(self, position: Any = None) -> MultibandImage:
        """Compute the PSF in all bands; see `computePsfImage`."""
        if position is None:
            position = next(iter(self.getPsfs().values())).getAveragePosition()
        return computePsfImage(psfModels=self.getPsfs(), position=position, useKernelImage=True)

    def _part(self, bands: tuple, image: Any, mask: Any, variance: Any) -> Any:
        psfs = self.getPsfs()
        return type(self)(bands, image, mask, variance, psfs=[psfs[band] for band in bands])
