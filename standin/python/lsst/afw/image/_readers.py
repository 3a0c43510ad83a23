# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Readers of images, masks, masked images and exposures in FITS files."""

from __future__ import annotations

__all__ = [
    "ExposureFitsReader",
    "ImageFitsReader",
    "MaskFitsReader",
    "MaskedImageFitsReader",
    "bboxFromMetadata",
]

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from astropy.io import fits

from lsst.afw.fits._fits import (
    DEFAULT_HDU,
    FitsError,
    FitsTypeError,
    default_hdu,
    fits_errors,
    has_hdu,
    open_fits,
    read_hdu_metadata,
    read_header,
    source_name,
)
from lsst.afw.fits._pixels import image_dtype, image_shape, read_pixels
from lsst.geom import Box2I, Extent2D, Extent2I, Point2I
from lsst.pex.exceptions import InvalidParameterError, LengthError, NotFoundError
from lsst.pex.exceptions import TypeError as PexTypeError

from ._exposure import Exposure
from ._exposureInfo import ExposureInfo
from ._filterLabel import FilterLabel
from ._image import Image, ImageF
from ._mask import MaskDict, MaskX
from ._maskedImage import MaskedImage
from ._photoCalib import PhotoCalib, makePhotoCalibFromMetadata
from ._slicing import LOCAL, PARENT, ImageOrigin
from ._visitInfo import VisitInfo, stripVisitInfoKeywords

if TYPE_CHECKING:
    from lsst.afw.geom import SkyWcs
    from lsst.afw.table.io import InputArchive
    from lsst.daf.base import PropertyList

_LOG = logging.getLogger("lsst.afw.image.fits")

SERIALIZATION_VERSION = 2
"""Newest layout of exposures that can be read, and the one written."""

SERIALIZATION_KEY = "EXPINFO_V"

_ARCHIVED = (
    ExposureInfo.KEY_PSF,
    ExposureInfo.KEY_COADD_INPUTS,
    ExposureInfo.KEY_AP_CORR_MAP,
    ExposureInfo.KEY_VALID_POLYGON,
    ExposureInfo.KEY_TRANSMISSION_CURVE,
    ExposureInfo.KEY_DETECTOR,
)
"""Components that are in the archive only, in every layout."""

_WCS_KEYS = (
    "CRPIX1",
    "CRPIX2",
    "CRVAL1",
    "CRVAL2",
    "CTYPE1",
    "CTYPE2",
    "CUNIT1",
    "CUNIT2",
    "CD1_1",
    "CD1_2",
    "CD2_1",
    "CD2_2",
    "WCSAXES",
)

_BANDS = frozenset({"u", "g", "r", "i", "z", "y", "SH", "PH", "VR", "white"})

_OLD_FILTERS = {
    "r2": ("r", "HSC-R2"),
    "i2": ("i", "HSC-I2"),
    "SOLID": (None, "solid plate 0.0 0.0"),
}


def xy0_from_metadata(metadata: Any, strip: bool = False) -> Point2I:
    """Read the position of the first pixel from the WCS "A" of a header.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet`
        The header.
    strip : `bool`, optional
        Whether to remove the keys.

    Returns
    -------
    xy0 : `lsst.geom.Point2I`
        The position; (0, 0) where the keys are missing.
    """
    x0 = y0 = 0
    keys = ("CRPIX1A", "CRPIX2A", "CRVAL1A", "CRVAL2A")
    if all(metadata.exists(key) for key in keys):
        pix1, pix2, val1, val2 = (float(metadata.getScalar(key)) for key in keys)
        if pix1 == 1 and pix2 == 1:
            x0, y0 = int(val1), int(val2)
            if strip:
                for key in _WCS_KEYS:
                    if metadata.exists(key + "A"):
                        metadata.remove(key + "A")
    return Point2I(x0, y0)


def bboxFromMetadata(metadata: Any) -> Box2I:
    """Read the bounding box of an image from its header.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet`
        A header with NAXIS1 and NAXIS2 (or ZNAXIS1 and ZNAXIS2).

    Returns
    -------
    bbox : `lsst.geom.Box2I`
        The box.
    """
    prefix = "ZNAXIS" if metadata.exists("ZNAXIS1") and metadata.exists("ZNAXIS2") else "NAXIS"
    size = [int(metadata.getScalar(f"{prefix}{axis}")) for axis in (1, 2)]
    return Box2I(xy0_from_metadata(metadata), Extent2I(*size))


class _PlaneReader:
    """One image HDU of an open file.

    Parameters
    ----------
    hdus : `astropy.io.fits.HDUList`
        The open file.
    hdu : `int`
        Index of the HDU.
    source : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    """

    def __init__(self, hdus: fits.HDUList, hdu: int, source: Any):
        self._hdus, self.index, self._source = hdus, hdu, source
        self._name = source_name(source)
        self._metadata: PropertyList | None = None
        self._bbox = Box2I()

    @property
    def exists(self) -> bool:
        """Whether the file has the HDU."""
        return has_hdu(self._hdus, self.index)

    @property
    def _hdu(self) -> Any:
        if not self.exists:
            raise FitsError("FitsReader not initialized; desired HDU is probably missing.")
        return self._hdus[self.index]

    def metadata(self) -> PropertyList:
        """Read the header, and the position of the image from it."""
        if self._metadata is None:
            shape = image_shape(self._hdu)
            if len(shape) == 3 and shape[0] == 1:
                shape = shape[1:]
            if len(shape) != 2:
                raise FitsError(f"Error reading {self._name}: HDU {self.index} has {len(shape)} dimensions")
            metadata = read_hdu_metadata(self._hdus, self.index, strip=True)
            xy0 = xy0_from_metadata(metadata, strip=True)
            self._bbox = Box2I(xy0, Extent2I(shape[1], shape[0]))
            self._metadata = metadata
        return self._metadata

    def bbox(self, origin: ImageOrigin = PARENT) -> Box2I:
        """Return the bounding box."""
        self.metadata()
        if origin == LOCAL:
            return Box2I(Point2I(0, 0), self._bbox.getDimensions())
        return Box2I(self._bbox)

    def xy0(self, bbox: Box2I | None, origin: ImageOrigin) -> Point2I:
        """Return the position of the first pixel of a part."""
        full = self.bbox().getMin()
        if bbox is None or bbox.isEmpty():
            return full
        if origin == PARENT:
            return bbox.getMin()
        return Point2I(full.getX() + bbox.getMinX(), full.getY() + bbox.getMinY())

    def dtype(self) -> np.dtype:
        """Return the type of the pixels on disk."""
        return image_dtype(self._hdu)

    def array(
        self, bbox: Box2I | None, origin: ImageOrigin, allowUnsafe: bool, dtype: Any = None
    ) -> np.ndarray:
        """Read (part of) the pixels (default: type as on disk)."""
        full = self.bbox(origin)
        part = full if bbox is None or bbox.isEmpty() else bbox
        if not full.contains(part):
            raise LengthError(
                f"Subimage box ({part.getMinX()},{part.getMinY()}) {part.getWidth()}x{part.getHeight()} "
                f"doesn't fit in image ({full.getMinX()},{full.getMinY()}) "
                f"{full.getWidth()}x{full.getHeight()} in HDU {self.index}"
            )
        found = self.dtype()
        wanted = found if dtype is None else np.dtype(dtype)
        if not allowUnsafe and not _is_safe(found, wanted):
            raise FitsTypeError(
                f"Incompatible type for FITS image: on disk is {found.name} (HDU {self.index}), in-memory is "
                f"{wanted.name}. Read with allowUnsafe=True to permit conversions that may overflow."
            )
        y0 = part.getMinY() - full.getMinY()
        x0 = part.getMinX() - full.getMinX()
        try:
            pixels = read_pixels(
                self._hdus,
                self.index,
                slice(y0, y0 + part.getHeight()),
                slice(x0, x0 + part.getWidth()),
                lambda: open_fits(self._source, decompress=True),
            )
        except (OSError, TypeError, ValueError, fits.VerifyError) as error:
            # Of these, TypeError is what numpy says of a file that ends early.
            raise FitsError(f"Error reading pixels of {self._name}, HDU {self.index}: {error}") from error
        return np.ascontiguousarray(pixels, dtype=wanted)

    def pixels(self, cls: Any, bbox: Box2I | None, origin: ImageOrigin, allowUnsafe: bool) -> Any:
        """Read (part of) the HDU as an image or mask."""
        array = self.array(bbox, origin, allowUnsafe, cls.dtype)
        xy0 = self.xy0(bbox, origin)
        return cls._wrap(array, xy0.getX(), xy0.getY())


def _is_safe(found: np.dtype, wanted: np.dtype) -> bool:
    """Tell whether pixels can be converted without overflow."""
    if wanted.kind == "f":
        return True
    if found.kind == "f":
        return False
    return np.can_cast(found, wanted, casting="safe")


class _FitsReader:
    """A FITS file that is opened on construction.

    Parameters
    ----------
    fileName : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    hdu : `int`, optional
        Index of the first image HDU to read (default: the first with pixels).

    Raises
    ------
    lsst.afw.fits.FitsError
        Raised if the file cannot be opened or the HDU is missing.
    """

    def __init__(self, fileName: Any, hdu: int | None = DEFAULT_HDU):
        self._source = fileName
        self._hdus: fits.HDUList = open_fits(fileName)
        with fits_errors(self.getFileName()):
            self._plane = self._open_plane(default_hdu(self._hdus, hdu))
        if not self._plane.exists:
            self._close()
            raise FitsError(f"'{self.getFileName()}' has no HDU {self._plane.index}.")

    def _open_plane(self, hdu: int) -> _PlaneReader:
        return _PlaneReader(self._hdus, hdu, self._source)

    def getFileName(self) -> str:
        """Return the name of the file."""
        return source_name(self._source)

    fileName = property(getFileName)

    def readBBox(self, origin: ImageOrigin = PARENT) -> Box2I:
        """Read the bounding box."""
        return self._plane.bbox(origin)

    def readXY0(self, bbox: Box2I | None = None, origin: ImageOrigin = PARENT) -> Point2I:
        """Read the position of the first pixel (of a part)."""
        return self._plane.xy0(bbox, origin)

    def _close(self) -> None:
        self._hdus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._close()

    def __del__(self) -> None:
        if "_hdus" in self.__dict__:
            self._close()


class _SingleReader(_FitsReader):
    """Common part of the readers of one image HDU."""

    def getHdu(self) -> int:
        """Return the index of the HDU (from 0)."""
        return self._plane.index

    hdu = property(getHdu)

    def readMetadata(self) -> PropertyList:
        """Read the header."""
        return self._plane.metadata()

    def readDType(self) -> np.dtype:
        """Read the type of the pixels on disk."""
        return self._plane.dtype()

    def readArray(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> np.ndarray:
        """Read (part of) the pixels; see `ImageFitsReader.read`."""
        return self._plane.array(bbox, origin, allowUnsafe, dtype)


class ImageFitsReader(_SingleReader):
    """Reader of an image."""

    def read(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> Any:
        """Read (part of) the image.

        Parameters
        ----------
        bbox : `lsst.geom.Box2I`, optional
            The part (default or empty: all).
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.
        allowUnsafe : `bool`, optional
            Whether to allow conversions of pixels that may overflow.
        dtype : `numpy.dtype`, optional
            Type of the pixels (default: as on disk).

        Returns
        -------
        image : `Image`
            The image.

        Raises
        ------
        lsst.pex.exceptions.LengthError
            Raised if the box is partly outside.
        lsst.afw.fits.FitsTypeError
            Raised for a conversion that may overflow.
        """
        return _read_image(self._plane, bbox, origin, allowUnsafe, dtype)


def _read_image(
    plane: _PlaneReader, bbox: Box2I | None, origin: ImageOrigin, allowUnsafe: bool, dtype: Any
) -> Any:
    """Read an image plane."""
    wanted = np.dtype(plane.dtype() if dtype is None else dtype)
    if wanted.type not in Image:
        raise FitsTypeError(
            f"No image type has {wanted.name} pixels; give one of float32, float64, int32, ..."
        )
    return plane.pixels(Image[wanted.type], bbox, origin, allowUnsafe)


def _read_mask(
    plane: _PlaneReader, bbox: Box2I | None, origin: ImageOrigin, conformMasks: bool, allowUnsafe: bool
) -> MaskX:
    """Read a mask plane and move its bits to where this process has them."""
    mask = plane.pixels(MaskX, bbox, origin, allowUnsafe)
    planes = MaskX.parseMaskPlaneMetadata(plane.metadata())
    if not planes or planes == MaskDict.default().planes:
        return mask
    if conformMasks:
        # The process takes over the file's bits.
        adopted = MaskDict(planes)
        MaskDict._default = adopted
        mask._maskDict = adopted
    mask.conformMaskPlanes(planes)
    return mask


class MaskFitsReader(_SingleReader):
    """Reader of a mask."""

    def read(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        conformMasks: bool = False,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> MaskX:
        """Read (part of) the mask.

        Parameters
        ----------
        bbox : `lsst.geom.Box2I`, optional
            The part (default or empty: all).
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.
        conformMasks : `bool`, optional
            Whether this process takes over the file's bits; otherwise the
            pixels are moved to this process's bits.
        allowUnsafe : `bool`, optional
            Whether to allow conversions of pixels that may overflow.
        dtype : `numpy.dtype`, optional
            Type of the pixels (int32).

        Returns
        -------
        mask : `MaskX`
            The mask.
        """
        return _read_mask(self._plane, bbox, origin, conformMasks, allowUnsafe)


class MaskedImageFitsReader(_FitsReader):
    """Reader of a masked image.

    Parameters
    ----------
    fileName : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    hdu : `int`, optional
        Index of the image's HDU (default: the first with pixels). Mask and
        variance are in the next two.
    """

    def __init__(self, fileName: Any, hdu: int | None = DEFAULT_HDU):
        super().__init__(fileName, hdu)
        self._image = self._plane
        self._mask, self._variance = (self._open_plane(self._plane.index + offset) for offset in (1, 2))

    def readImageDType(self) -> np.dtype:
        """Read the type of the image's pixels on disk."""
        return self._image.dtype()

    def readMaskDType(self) -> np.dtype:
        """Read the type of the mask's pixels on disk."""
        return self._mask.dtype()

    def readVarianceDType(self) -> np.dtype:
        """Read the type of the variance's pixels on disk."""
        return self._variance.dtype()

    def readPrimaryMetadata(self) -> PropertyList:
        """Read the header of the primary HDU."""
        return read_header(self._hdus[0].header, strip=True)

    def readImageMetadata(self) -> PropertyList:
        """Read the header of the image."""
        return self._checked_metadata(self._image, "IMAGE")

    def readMaskMetadata(self) -> PropertyList:
        """Read the header of the mask."""
        return self._checked_metadata(self._mask, "MASK")

    def readVarianceMetadata(self) -> PropertyList:
        """Read the header of the variance."""
        return self._checked_metadata(self._variance, "VARIANCE")

    def _checked_metadata(self, plane: _PlaneReader, expected: str) -> PropertyList:
        metadata = plane.metadata()
        if metadata.exists("EXTTYPE"):
            found = str(metadata.getScalar("EXTTYPE")).rstrip()
            if found not in ("", expected):
                raise InvalidParameterError(
                    f'Reading {self.getFileName()} (hdu {plane.index}) Expected EXTTYPE=="{expected}", '
                    f'saw "{found}"'
                )
            metadata.remove("EXTTYPE")
        return metadata

    def readImage(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> Any:
        """Read (part of) the image; see `ImageFitsReader.read`."""
        return _read_image(self._image, bbox, origin, allowUnsafe, dtype)

    def readImageArray(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> np.ndarray:
        """Read (part of) the image's pixels."""
        return self._image.array(bbox, origin, allowUnsafe, dtype)

    def readMask(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        conformMasks: bool = False,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> MaskX:
        """Read (part of) the mask; see `MaskFitsReader.read`."""
        return _read_mask(self._mask, bbox, origin, conformMasks, allowUnsafe)

    def readMaskArray(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> np.ndarray:
        """Read (part of) the mask's pixels, bits as on disk."""
        return self._mask.array(bbox, origin, allowUnsafe, np.int32 if dtype is None else dtype)

    def readVariance(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> ImageF:
        """Read (part of) the variance."""
        return _read_image(self._variance, bbox, origin, allowUnsafe, np.float32 if dtype is None else dtype)

    def readVarianceArray(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> np.ndarray:
        """Read (part of) the variance's pixels."""
        return self._variance.array(bbox, origin, allowUnsafe, np.float32 if dtype is None else dtype)

    def read(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        conformMasks: bool = False,
        needAllHdus: bool = False,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> Any:
        """Read (part of) the masked image.

        Parameters
        ----------
        bbox : `lsst.geom.Box2I`, optional
            The part (default or empty: all).
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.
        conformMasks : `bool`, optional
            Whether this process takes over the file's mask bits.
        needAllHdus : `bool`, optional
            Whether a missing mask or variance is an error.
        allowUnsafe : `bool`, optional
            Whether to allow conversions of pixels that may overflow.
        dtype : `numpy.dtype`, optional
            Type of the image's pixels (default: as on disk).

        Returns
        -------
        maskedImage : `MaskedImage`
            The masked image; a plane that is missing is zero.
        """
        if needAllHdus and self._image.index > 1:
            raise FitsError("Cannot read all HDUs starting from non-default")
        image = self.readImage(bbox, origin, allowUnsafe, dtype)
        planes: list[Any] = [None, None]
        # Other planes only count where an image file keeps them.
        if self._image.index == 1:
            readers: tuple[tuple[str, _PlaneReader, Callable[[], Any]], ...] = (
                ("Mask", self._mask, lambda: self.readMask(bbox, origin, conformMasks, allowUnsafe)),
                ("Variance", self._variance, lambda: self.readVariance(bbox, origin, allowUnsafe)),
            )
            for i, (label, plane, read) in enumerate(readers):
                if not plane.exists:
                    if needAllHdus:
                        raise NotFoundError(f"No {label.lower()} extensions found")
                    continue
                try:
                    planes[i] = read()
                except FitsError as error:
                    if needAllHdus:
                        raise
                    _LOG.warning("%s unreadable (%s); using default", label, error)
        return MaskedImage[image.dtype](image, *planes)


class ExposureFitsReader(MaskedImageFitsReader):
    """Reader of an exposure and of its parts.

    Parameters
    ----------
    fileName : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    """

    def __init__(self, fileName: Any):
        super().__init__(fileName)
        self._parsed: _ParsedHeader | None = None
        self._archive: InputArchive | None = None

    def _header(self) -> _ParsedHeader:
        if self._parsed is None:
            with fits_errors(f"the headers of {self.getFileName()}"):
                self._parsed = _ParsedHeader(
                    self.readPrimaryMetadata(), MaskedImageFitsReader.readImageMetadata(self), self.readXY0()
                )
        return self._parsed

    def _component(self, name: str) -> Any:
        """Read an object of the archive; `None` where it is unknown."""
        header = self._header()
        archive_id = header.ids.get(name, 0)
        if archive_id == 0 or header.archive_hdu is None:
            return None
        if self._archive is None:
            from lsst.afw.table.io import InputArchive

            with fits_errors(f"the archive of {self.getFileName()}"):
                self._archive = InputArchive.from_hdus(self._hdus, header.archive_hdu)
        with fits_errors(f"{name} in the archive of {self.getFileName()}"):
            return self._archive.get(archive_id)

    def readSerializationVersion(self) -> int:
        """Read the version of the layout."""
        return self._header().version

    def readExposureId(self) -> int | None:
        """Read the exposure ID."""
        return self._header().exposure_id

    def readMetadata(self) -> PropertyList:
        """Read the keys that belong to no component."""
        return self._header().metadata

    def readWcs(self) -> SkyWcs | None:
        """Read the WCS, from the archive or else from the header."""
        wcs = self._component(ExposureInfo.KEY_WCS)
        return self._header().wcs if wcs is None else wcs

    def readFilter(self) -> FilterLabel | None:
        """Read the filter label."""
        header = self._header()
        return header.filter_label if header.version < 2 else self._component(ExposureInfo.KEY_FILTER)

    def readPhotoCalib(self) -> PhotoCalib | None:
        """Read the photometric calibration."""
        header = self._header()
        return header.photo_calib if header.version == 0 else self._component(ExposureInfo.KEY_PHOTO_CALIB)

    def readPsf(self) -> Any:
        """Read the PSF."""
        return self._component(ExposureInfo.KEY_PSF)

    def readValidPolygon(self) -> Any:
        """Read the polygon of valid pixels."""
        return self._component(ExposureInfo.KEY_VALID_POLYGON)

    def readApCorrMap(self) -> Any:
        """Read the aperture corrections."""
        return self._component(ExposureInfo.KEY_AP_CORR_MAP)

    def readCoaddInputs(self) -> Any:
        """Read the inputs of a coadd."""
        return self._component(ExposureInfo.KEY_COADD_INPUTS)

    def readVisitInfo(self) -> VisitInfo:
        """Read the facts about the observation."""
        return self._header().visit_info

    def readTransmissionCurve(self) -> Any:
        """Read the throughput."""
        return self._component(ExposureInfo.KEY_TRANSMISSION_CURVE)

    def readDetector(self) -> Any:
        """Read the detector."""
        return self._component(ExposureInfo.KEY_DETECTOR)

    def readComponent(self, componentName: str) -> Any:
        """Read a component by its key."""
        return self._component(componentName)

    def readExposureInfo(self) -> ExposureInfo:
        """Read all components."""
        header = self._header()
        info = ExposureInfo()
        info.setMetadata(header.metadata)
        info.setComponent(ExposureInfo.KEY_PHOTO_CALIB, self.readPhotoCalib())
        info.setVisitInfo(header.visit_info)
        info.setId(header.exposure_id)
        for key in _ARCHIVED:
            info.setComponent(key, self._known_component(key))
        wcs = self._known_component(ExposureInfo.KEY_WCS)
        info.setWcs(header.wcs if wcs is None else wcs)
        done = {*_ARCHIVED, ExposureInfo.KEY_WCS, ExposureInfo.KEY_PHOTO_CALIB}
        for key in sorted(set(header.ids) - done):
            info.setComponent(key, self._known_component(key))
        if header.version < 2 and not info.hasComponent(ExposureInfo.KEY_FILTER):
            info.setComponent(ExposureInfo.KEY_FILTER, header.filter_label)
        return info

    def _known_component(self, key: str) -> Any:
        """Read a component; say so where it exists but is unknown."""
        value = self._component(key)
        if value is None and self._header().ids.get(key, 0) != 0:
            _LOG.warning("Could not read %s; setting to None.", key)
        return value

    def readMaskedImage(
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        conformMasks: bool = False,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> Any:
        """Read (part of) the planes."""
        return MaskedImageFitsReader.read(
            self, bbox, origin, conformMasks, allowUnsafe=allowUnsafe, dtype=dtype
        )

    def read(  # type: ignore[override]
        self,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        conformMasks: bool = False,
        allowUnsafe: bool = False,
        dtype: Any = None,
    ) -> Any:
        """Read (part of) the exposure; see `MaskedImageFitsReader.read`."""
        with fits_errors(f"the pixels of {self.getFileName()}"):
            planes = self.readMaskedImage(bbox, origin, conformMasks, allowUnsafe, dtype)
        return Exposure[planes.dtype](planes, self.readExposureInfo())


class _ParsedHeader:
    """What an exposure keeps in header keys.

    Parameters
    ----------
    primary, image : `lsst.daf.base.PropertyList`
        Headers of the primary and the image HDU.
    xy0 : `lsst.geom.Point2I`
        Position of the first pixel.
    """

    def __init__(self, primary: PropertyList, image: PropertyList, xy0: Point2I):
        from lsst.afw.geom import makeSkyWcs

        self.version = int(primary.getScalar(SERIALIZATION_KEY)) if primary.exists(SERIALIZATION_KEY) else 0
        if self.version > SERIALIZATION_VERSION:
            raise PexTypeError(f"Cannot read Exposure FITS version > {SERIALIZATION_VERSION}")
        # The image's header inherits the keys of the primary one.
        metadata = image
        self.wcs: SkyWcs | None = None
        if metadata.exists("CTYPE1") or metadata.exists("CRVAL1"):
            try:
                self.wcs = makeSkyWcs(metadata, strip=True)
            except PexTypeError:
                _LOG.debug("No WCS found in FITS metadata")
        if self.wcs is not None and (xy0.getX() != 0 or xy0.getY() != 0):
            self.wcs = self.wcs.copyAtShiftedPixelOrigin(Extent2D(xy0.getX(), xy0.getY()))
        _remove(metadata, "LTV1", "LTV2")
        self.filter_label: FilterLabel | None = None
        if self.version < 2 and metadata.exists("FILTER"):
            self.filter_label = _old_filter(str(metadata.getScalar("FILTER")).rstrip())
        self.exposure_id = int(metadata.getScalar("EXPID")) if metadata.exists("EXPID") else None
        self.visit_info = VisitInfo(metadata)
        stripVisitInfoKeywords(metadata)
        _remove(metadata, "EXPID")
        self.photo_calib = makePhotoCalibFromMetadata(metadata, True) if self.version == 0 else None
        _remove(metadata, "MJD-OBS", "DATE-OBS", "DETNAME", "DETSER")
        self.archive_hdu, self.ids = _archive_ids(metadata)
        self.metadata = metadata


def _remove(metadata: Any, *keys: str) -> None:
    for key in keys:
        if metadata.exists(key):
            metadata.remove(key)


def _archive_ids(metadata: Any) -> tuple[int | None, dict[str, int]]:
    """Take the archive's position and the components' IDs from a header.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertyList`
        The header, from which the keys are removed.

    Returns
    -------
    hdu : `int` or `None`
        Index of the archive's first HDU (from 0).
    ids : `dict` [`str`, `int`]
        Archive ID of each component.
    """
    hdu = int(metadata.getScalar("AR_HDU")) - 1 if metadata.exists("AR_HDU") else None
    _remove(metadata, "AR_HDU")
    ids: dict[str, int] = {}
    for name in (*_ARCHIVED, ExposureInfo.KEY_WCS, ExposureInfo.KEY_PHOTO_CALIB):
        key = f"{name}_ID"
        if metadata.exists(key):
            ids[name] = int(metadata.getScalar(key))
            metadata.remove(key)
    prefix = "ARCHIVE_ID_"
    for key in [name for name in metadata.getOrderedNames() if name.startswith(prefix)]:
        name = key[len(prefix) :]
        ids[name] = int(metadata.getScalar(key))
        _remove(metadata, key, f"{name}_ID")
    return hdu, ids


def _old_filter(name: str) -> FilterLabel | None:
    """Make a label from the filter's name in old files.

    Short standard names, narrow bands (N and digits) and intermediate bands
    (I and at least two digits) are bands; everything else is physical.
    """
    if name == "_unknown_":
        return None
    if name in _OLD_FILTERS:
        return FilterLabel(*_OLD_FILTERS[name])
    if name in _BANDS or re.fullmatch(r"N\d+|I\d{2,}", name):
        return FilterLabel.fromBand(name)
    return FilterLabel.fromPhysical(name)
