# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exposures: masked images with WCS, PSF, calibration and metadata."""

from __future__ import annotations

__all__ = [
    "Exposure",
    "ExposureD",
    "ExposureF",
    "ExposureI",
    "ExposureL",
    "ExposureU",
    "bbox_contains_sky_coords",
    "bbox_to_convex_polygon",
    "makeExposure",
]

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lsst.geom import Box2D, Box2I, Extent2D, Extent2I, Point2D, Point2I, SpherePoint
from lsst.pex.exceptions import InvalidParameterError, LogicError
from lsst.sphgeom import ConvexPolygon
from lsst.utils import TemplateMeta

from ._common import COMMON_CHECKS, PlanesLike, given_box, given_source, is_set, register_members
from ._exposureInfo import ExposureInfo
from ._mask import MaskX
from ._maskedImage import MaskedImage
from ._overload import Signature, choose
from ._slicing import PARENT, ImageOrigin

if TYPE_CHECKING:
    from lsst.afw.fits import CompressionOptions, MemFileManager
    from lsst.afw.geom import SkyWcs


def _is_wcs(value: Any) -> bool:
    return value is None or hasattr(value, "pixelToSky")


class _ExposureBase(PlanesLike):
    """Common part of the exposures of all pixel types.

    Notes
    -----
    Made from ``width, height``, ``dimensions``, ``bbox`` or ``maskedImage``
    (each with an optional ``wcs``), from ``maskedImage, exposureInfo``, from
    another exposure (sharing pixels unless ``deep``) or from a FITS file.
    """

    dtype: Any = np.float32
    _maskedImage: Any
    _info: ExposureInfo

    def __init__(self, *args: Any, **kwargs: Any):
        label, given = choose(type(self), self._signatures(), args, kwargs)
        planes = MaskedImage[self.dtype]
        if label in ("size", "extent", "box", "image"):
            if label == "size":
                self._maskedImage = planes(int(given["width"]), int(given["height"]))
            elif label == "extent":
                self._maskedImage = planes(given.get("dimensions", Extent2I(0, 0)))
            elif label == "box":
                self._maskedImage = planes(given["bbox"])
            else:
                self._maskedImage = planes(given["maskedImage"])
            self._info = ExposureInfo(wcs=given.get("wcs"))
        elif label == "info":
            self._maskedImage = planes(given["maskedImage"])
            self._info = given["exposureInfo"]
        elif label in ("copy", "cast", "sub"):
            other = given["src"] if label == "cast" else given["other"]
            deep = is_set(given, "deep")
            if label == "sub":
                box, origin = given["bbox"], given.get("origin", PARENT)
                self._maskedImage = planes(other._maskedImage, box, origin, deep)
            else:
                self._maskedImage = planes(other._maskedImage, deep)
            self._info = ExposureInfo(other=other._info, copyMetadata=deep)
        else:
            self._read(given)

    @classmethod
    def _signatures(cls) -> tuple[Signature, ...]:
        if cls not in _SIGNATURES:
            checks: dict[str, Callable[[Any], bool]] = {
                **COMMON_CHECKS,
                "wcs": _is_wcs,
                "maskedImage": lambda v: isinstance(v, MaskedImage[cls.dtype]),
                "exposureInfo": lambda v: isinstance(v, ExposureInfo),
                "other": lambda v: isinstance(v, cls),
                "src": lambda v: isinstance(v, _ExposureBase),
            }
            read = ("bbox", "origin", "conformMasks", "allowUnsafe")
            _SIGNATURES[cls] = (
                Signature("size", ("width", "height", "wcs"), checks, 2),
                Signature("extent", ("dimensions", "wcs"), checks),
                Signature("box", ("bbox", "wcs"), checks, 1),
                Signature("image", ("maskedImage", "wcs"), checks, 1),
                Signature("info", ("maskedImage", "exposureInfo"), checks, 2),
                Signature("file", ("fileName", *read), checks, 1),
                Signature("memory", ("manager", *read), checks, 1),
                Signature("sub", ("other", "bbox", "origin", "deep"), checks, 2),
                Signature("copy", ("other", "deep"), checks, 1),
                Signature("cast", ("src", "deep"), checks, 2),
            )
        return _SIGNATURES[cls]

    def _read(self, given: dict[str, Any]) -> None:
        from ._readers import ExposureFitsReader

        with ExposureFitsReader(given_source(given)) as reader:
            flags: dict[str, Any] = {name: is_set(given, name) for name in ("conformMasks", "allowUnsafe")}
            other = reader.read(*given_box(given), **flags, dtype=self.dtype)
        self._maskedImage, self._info = other._maskedImage, other._info

    # ----------------------------------------------------------------- planes

    def getMaskedImage(self) -> Any:
        """Return a masked image that shares the planes."""
        return MaskedImage[self.dtype](self._maskedImage)

    def setMaskedImage(self, maskedImage: Any) -> None:
        """Replace the planes by those of a masked image (shared)."""
        if not isinstance(maskedImage, MaskedImage[self.dtype]):
            raise TypeError(f"{type(self).__name__} cannot hold a {type(maskedImage).__name__}.")
        self._maskedImage = MaskedImage[self.dtype](maskedImage)

    def getImage(self) -> Any:
        """Return the image plane (shared)."""
        return self._maskedImage.getImage()

    def setImage(self, image: Any) -> None:
        """Copy the pixels of an image into the image plane."""
        self._maskedImage.setImage(image)

    def getMask(self) -> MaskX:
        """Return the mask plane (shared)."""
        return self._maskedImage.getMask()

    def setMask(self, mask: MaskX) -> None:
        """Copy the pixels of a mask into the mask plane."""
        self._maskedImage.setMask(mask)

    def getVariance(self) -> Any:
        """Return the variance plane (shared)."""
        return self._maskedImage.getVariance()

    def setVariance(self, variance: Any) -> None:
        """Copy the pixels of an image into the variance plane."""
        self._maskedImage.setVariance(variance)

    maskedImage = property(getMaskedImage, setMaskedImage, doc="The planes (shared).")
    image = property(getImage, setImage, doc="Image plane; assignment copies pixels.")
    mask = property(getMask, setMask, doc="Mask plane; assignment copies pixels.")
    variance = property(getVariance, setVariance, doc="Variance plane; assignment copies pixels.")

    # --------------------------------------------------------------- geometry

    @property
    def _grid(self) -> Any:
        return self._maskedImage

    def setXY0(self, xy0: Point2I) -> None:
        """Move the exposure in the parent coordinate system.

        Parameters
        ----------
        xy0 : `lsst.geom.Point2I`
            New parent position of the first pixel. The WCS moves along, so
            that a pixel stays where it is on the sky.
        """
        old = self.getXY0()
        wcs = self._info.getWcs()
        if wcs is not None:
            shift = Extent2D(xy0.getX() - old.getX(), xy0.getY() - old.getY())
            self._info.setWcs(wcs.copyAtShiftedPixelOrigin(shift))
        self._maskedImage.setXY0(xy0)

    # ------------------------------------------------------------- components

    def getInfo(self) -> ExposureInfo:
        """Return the components (shared)."""
        return self._info

    def setInfo(self, exposureInfo: ExposureInfo) -> None:
        """Replace the components."""
        self._info = exposureInfo

    def getMetadata(self) -> Any:
        """Return the FITS keys (shared)."""
        return self._info.getMetadata()

    def setMetadata(self, metadata: Any) -> None:
        """Set the FITS keys."""
        self._info.setMetadata(metadata)

    def getWcs(self) -> SkyWcs | None:
        """Return the WCS, or `None`."""
        return self._info.getWcs()

    def setWcs(self, wcs: SkyWcs | None) -> None:
        """Set the WCS."""
        self._info.setWcs(wcs)

    def hasWcs(self) -> bool:
        """Tell whether there is a WCS."""
        return self._info.hasWcs()

    def getPsf(self) -> Any:
        """Return the PSF, or `None`."""
        return self._info.getPsf()

    def setPsf(self, psf: Any) -> None:
        """Set the PSF."""
        self._info.setPsf(psf)

    def hasPsf(self) -> bool:
        """Tell whether there is a PSF."""
        return self._info.hasPsf()

    def getDetector(self) -> Any:
        """Return the detector, or `None`."""
        return self._info.getComponent(ExposureInfo.KEY_DETECTOR)

    def setDetector(self, detector: Any) -> None:
        """Set the detector."""
        self._info.setComponent(ExposureInfo.KEY_DETECTOR, detector)

    def getFilter(self) -> Any:
        """Return the filter label, or `None`."""
        return self._info.getComponent(ExposureInfo.KEY_FILTER)

    def setFilter(self, filterLabel: Any) -> None:
        """Set the filter label."""
        self._info.setComponent(ExposureInfo.KEY_FILTER, filterLabel)

    def getPhotoCalib(self) -> Any:
        """Return the photometric calibration, or `None`."""
        return self._info.getComponent(ExposureInfo.KEY_PHOTO_CALIB)

    def setPhotoCalib(self, photoCalib: Any) -> None:
        """Set the photometric calibration."""
        self._info.setComponent(ExposureInfo.KEY_PHOTO_CALIB, photoCalib)

    def setApCorrMap(self, apCorrMap: Any) -> None:
        """Set the aperture corrections."""
        self._info.setComponent(ExposureInfo.KEY_AP_CORR_MAP, apCorrMap)

    metadata = property(getMetadata, setMetadata, doc="FITS keys (shared).")
    info = property(getInfo, doc="The components (shared).")
    wcs = property(getWcs, doc="WCS or `None`.")
    psf = property(getPsf, doc="PSF or `None`.")
    detector = property(getDetector, doc="Detector or `None`.")
    filter = property(getFilter, doc="Filter label or `None`.")
    photoCalib = property(getPhotoCalib, doc="Photometric calibration or `None`.")

    @property
    def visitInfo(self) -> Any:
        """Facts about the observation, or `None`."""
        return self._info.getVisitInfo()

    @property
    def apCorrMap(self) -> Any:
        """Aperture corrections, or `None`."""
        return self._info.getComponent(ExposureInfo.KEY_AP_CORR_MAP)

    # ----------------------------------------------------------------- pixels

    def _get(self, index: Point2I, origin: ImageOrigin) -> tuple[Any, int, float]:
        return self._maskedImage._get(index, origin)

    def _set(self, index: Point2I, value: Any, origin: ImageOrigin) -> None:
        self._maskedImage._set(index, value, origin)

    def subset(self, bbox: Box2I, origin: ImageOrigin = PARENT) -> Self:
        """Return a part that shares pixels.

        Parameters
        ----------
        bbox : `lsst.geom.Box2I`
            Box of the part.
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.

        Returns
        -------
        exposure : `Exposure`
            The view, with its own `ExposureInfo`.
        """
        result = type(self).__new__(type(self))
        result._maskedImage = self._maskedImage.subset(bbox, origin)
        result._info = ExposureInfo(other=self._info)
        return result

    def _set_part(self, bbox: Box2I, origin: ImageOrigin, rhs: Any) -> None:
        self._maskedImage[bbox, origin] = rhs._maskedImage if isinstance(rhs, _ExposureBase) else rhs

    def getCutout(
        self, center: Any = None, size: Extent2I | None = None, *, box: Box2I | None = None
    ) -> Self:
        """Return a copy of the pixels around a position.

        Parameters
        ----------
        center : `lsst.geom.SpherePoint`, `lsst.geom.Point2D` or \
                `lsst.geom.Box2I`
            Position on the sky or in parent pixels; or a box.
        size : `lsst.geom.Extent2I`, optional
            Width and height of the cutout (not with a box).
        box : `lsst.geom.Box2I`, optional
            Box of the cutout.

        Returns
        -------
        cutout : `Exposure`
            Exposure of the requested size; pixels that the exposure lacks
            are NaN (zero for integers), with NO_DATA set.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Raised for a sky position without a WCS.
        lsst.pex.exceptions.InvalidParameterError
            Raised if the position is outside, or the size not positive.
        """
        if isinstance(center, Box2I):
            box = center
        if box is not None:
            center, size = box.getCenter(), box.getDimensions()
        if isinstance(center, SpherePoint):
            wcs = self._info.getWcs()
            if wcs is None:
                raise LogicError("Cannot look up source position without WCS.")
            center = wcs.skyToPixel(center)
        if not isinstance(center, Point2D) or not isinstance(size, Extent2I):
            raise TypeError(f"getCutout wants (position, Extent2I) or a Box2I, got {center!r}, {size!r}.")
        if not Box2D(self.getBBox()).contains(center):
            raise InvalidParameterError(
                f"Point {center} lies at pixel {center}, which lies outside Exposure {self.getBBox()}"
            )
        if size.getX() <= 0 or size.getY() <= 0:
            raise InvalidParameterError(f"Cannot create bounding box with dimensions {size}")
        bbox = Box2I.makeCenteredBox(center, size)
        blank = MaskedImage[self.dtype](bbox)
        # Same values as upstream gives to pixels beyond the edge.
        floating = np.issubdtype(self.dtype, np.floating)
        blank.image.array[...] = np.nan if floating else 0
        blank.mask.array[...] = MaskX.getPlaneBitMask("NO_DATA")
        blank.variance.array[...] = np.inf
        overlap = Box2I(bbox)
        overlap.clip(self.getBBox())
        if not overlap.isEmpty():
            blank.assign(self._maskedImage.subset(overlap), overlap)
        return type(self)(blank, ExposureInfo(other=self._info))

    # ----------------------------------------------------------------- copies

    def convertF(self) -> ExposureF:
        """Return a deep copy with float32 pixels."""
        return ExposureF(self, deep=True)

    def convertD(self) -> ExposureD:
        """Return a deep copy with float64 pixels."""
        return ExposureD(self, deep=True)

    # -------------------------------------------------------------------- sky

    def getConvexPolygon(self, padding: int = 10) -> ConvexPolygon | None:
        """Return the exposure's outline on the sky.

        Parameters
        ----------
        padding : `int`, optional
            Pixels to add on each side.

        Returns
        -------
        polygon : `lsst.sphgeom.ConvexPolygon` or `None`
            The outline; `None` without a WCS.
        """
        if self.wcs is None:
            return None
        return bbox_to_convex_polygon(self.getBBox(), self.wcs, padding=padding)

    @property
    def convex_polygon(self) -> ConvexPolygon | None:
        """The exposure's outline on the sky, 10 pixels padded."""
        return self.getConvexPolygon()

    def containsSkyCoords(self, ra: Any, dec: Any, padding: int = 10) -> np.ndarray:
        """Tell which sky positions are on the exposure.

        Parameters
        ----------
        ra, dec : `astropy.units.Quantity`
            Positions, of shape (N,).
        padding : `int`, optional
            Pixels to add on each side in the first, coarse step.

        Returns
        -------
        contained : `numpy.ndarray`
            Booleans of shape (N,).

        Raises
        ------
        ValueError
            Raised without a WCS.
        """
        if self.wcs is None:
            raise ValueError("Exposure does not have a valid WCS.")
        return bbox_contains_sky_coords(self.getBBox(), self.wcs, ra, dec, padding=padding)

    # --------------------------------------------------------------------- io

    def writeFits(
        self,
        filename: str | MemFileManager,
        imageOptions: CompressionOptions | None = None,
        maskOptions: CompressionOptions | None = None,
        varianceOptions: CompressionOptions | None = None,
    ) -> None:
        """Write the exposure to a FITS file.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            Where to write.
        imageOptions, maskOptions, varianceOptions \
                : `lsst.afw.fits.CompressionOptions`, optional
            How to compress the planes; `None` does not compress.
        """
        from ._writers import write_exposure

        write_exposure(self, filename, (imageOptions, maskOptions, varianceOptions))


_SIGNATURES: dict[type, tuple[Signature, ...]] = {}


class ExposureF(_ExposureBase):
    """Exposure with float32 pixels."""

    dtype = np.float32


class ExposureD(_ExposureBase):
    """Exposure with float64 pixels."""

    dtype = np.float64


class ExposureI(_ExposureBase):
    """Exposure with int32 pixels."""

    dtype = np.int32


class ExposureU(_ExposureBase):
    """Exposure with uint16 pixels."""

    dtype = np.uint16


class ExposureL(_ExposureBase):
    """Exposure with uint64 pixels."""

    dtype = np.uint64


if TYPE_CHECKING:
    # The metaclass makes objects of other classes, by ``dtype``.
    Exposure: Any
else:

    class Exposure(metaclass=TemplateMeta):
        """Family of exposures; ``dtype`` chooses the member."""


register_members(Exposure, {"I": ExposureI, "F": ExposureF, "D": ExposureD, "U": ExposureU, "L": ExposureL})


def makeExposure(maskedImage: Any, wcs: SkyWcs | None = None) -> Any:
    """Make the exposure that fits a masked image's pixel type.

    Parameters
    ----------
    maskedImage : `MaskedImage`
        The planes (shared).
    wcs : `lsst.afw.geom.SkyWcs`, optional
        The WCS.

    Returns
    -------
    exposure : `Exposure`
        The exposure.
    """
    return Exposure[maskedImage.dtype](maskedImage, wcs)


def bbox_to_convex_polygon(bbox: Box2I, wcs: SkyWcs, padding: int = 10) -> ConvexPolygon:
    """Project a box on the sky.

    Parameters
    ----------
    bbox : `lsst.geom.Box2I`
        The box.
    wcs : `lsst.afw.geom.SkyWcs`
        WCS of its pixels.
    padding : `int`, optional
        Pixels to add on each side.

    Returns
    -------
    polygon : `lsst.sphgeom.ConvexPolygon`
        The outline.
    """
    padded = Box2D(bbox)
    padded.grow(padding)
    return ConvexPolygon([wcs.pixelToSky(corner).getVector() for corner in padded.getCorners()])


def bbox_contains_sky_coords(bbox: Box2I, wcs: SkyWcs, ra: Any, dec: Any, padding: int = 10) -> np.ndarray:
    """Tell which sky positions are in a box of pixels.

    Parameters
    ----------
    bbox : `lsst.geom.Box2I`
        The box.
    wcs : `lsst.afw.geom.SkyWcs`
        WCS of its pixels.
    ra, dec : `astropy.units.Quantity`
        Positions, of shape (N,).
    padding : `int`, optional
        Pixels to add on each side in the first, coarse step, which keeps the
        WCS from being inverted far from where it is valid.

    Returns
    -------
    contained : `numpy.ndarray`
        Booleans of shape (N,).
    """
    lon = np.atleast_1d(ra.to_value("rad")).astype(float)
    lat = np.atleast_1d(dec.to_value("rad")).astype(float)
    near = np.asarray(bbox_to_convex_polygon(bbox, wcs, padding=padding).contains(lon, lat), dtype=bool)
    x, y = wcs.skyToPixelArray(lon[near], lat[near], degrees=False)
    contained = np.zeros(near.shape, dtype=bool)
    contained[near] = bbox.contains(x, y)
    return contained
