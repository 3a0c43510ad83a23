# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images with a mask and a variance plane."""

from __future__ import annotations

__all__ = [
    "MaskedImage",
    "MaskedImageD",
    "MaskedImageF",
    "MaskedImageI",
    "MaskedImageL",
    "MaskedImageU",
    "VariancePixel",
    "imagesOverlap",
    "makeImageFromArray",
    "makeMaskFromArray",
    "makeMaskedImage",
    "makeMaskedImageFromArrays",
]

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lsst.geom import Box2I, Extent2I, Point2I
from lsst.pex.exceptions import LengthError
from lsst.utils import TemplateMeta

from ._common import COMMON_CHECKS, PlanesLike, given_box, given_source, is_set, register_members
from ._image import Image, ImageBase, ImageF
from ._mask import Mask, MaskX
from ._overload import Signature, choose, is_int, is_real
from ._slicing import PARENT, ImageOrigin

if TYPE_CHECKING:
    from lsst.afw.fits import CompressionOptions, MemFileManager

VariancePixel = np.float32


class _MaskedImageBase(PlanesLike):
    """Common part of the masked images of all pixel types.

    Notes
    -----
    Made from ``width, height``, ``dimensions`` or ``bbox`` (with an optional
    ``planeDict``), from ``image, mask, variance``, from another masked image
    (sharing pixels unless ``deep``) or from a FITS file.
    """

    dtype: Any = np.float32
    _image: ImageBase
    _mask: MaskX
    _variance: ImageF

    def __init__(self, *args: Any, **kwargs: Any):
        label, given = choose(type(self), self._signatures(), args, kwargs)
        if label in ("size", "extent", "box"):
            if label == "size":
                box = Box2I(Point2I(0, 0), Extent2I(int(given["width"]), int(given["height"])))
            elif label == "extent":
                box = Box2I(Point2I(0, 0), given.get("dimensions", Extent2I(0, 0)))
            else:
                box = given["bbox"]
            planes = given.get("planeDict")
            self._image = Image[self.dtype](box)
            self._mask = MaskX(box, planes) if planes else MaskX(box)
            self._variance = ImageF(box)
        elif label == "planes":
            self._image = given["image"]
            self._mask = self._fitting(given.get("mask"), MaskX, "Mask")
            self._variance = self._fitting(given.get("variance"), ImageF, "Variance")
        elif label in ("copy", "cast"):
            source = given["rhs"] if "rhs" in given else given["src"]
            self._from_other(source, deep=is_set(given, "deep"))
        elif label == "sub":
            box, origin = given["bbox"], given.get("origin", PARENT)
            self._from_other(given["rhs"], box, origin, is_set(given, "deep"))
        else:
            self._read(given)

    @classmethod
    def _signatures(cls) -> tuple[Signature, ...]:
        if cls not in _SIGNATURES:
            checks: dict[str, Callable[[Any], bool]] = {
                **COMMON_CHECKS,
                "planeDict": lambda v: isinstance(v, Mapping),
                "image": lambda v: isinstance(v, Image[cls.dtype]),
                "mask": lambda v: v is None or isinstance(v, MaskX),
                "variance": lambda v: v is None or isinstance(v, ImageF),
                "rhs": lambda v: isinstance(v, cls),
                "src": lambda v: isinstance(v, _MaskedImageBase),
            }
            read = (
                "metadata",
                "bbox",
                "origin",
                "conformMasks",
                "needAllHdus",
                "imageMetadata",
                "maskMetadata",
                "varianceMetadata",
                "allowUnsafe",
            )
            _SIGNATURES[cls] = (
                Signature("size", ("width", "height", "planeDict"), checks, 2),
                Signature("extent", ("dimensions", "planeDict"), checks),
                Signature("planes", ("image", "mask", "variance"), checks, 1),
                Signature("box", ("bbox", "planeDict"), checks, 1),
                Signature("sub", ("rhs", "bbox", "origin", "deep"), checks, 2),
                Signature("copy", ("rhs", "deep"), checks, 1),
                Signature("cast", ("src", "deep"), checks, 2),
                Signature("file", ("fileName", *read), checks, 1),
                Signature("memory", ("manager", *read), checks, 1),
            )
        return _SIGNATURES[cls]

    def _fitting(self, plane: Any, cls: Any, label: str) -> Any:
        """Return a plane of the image's size, or a blank one for `None`."""
        if plane is None or plane.getWidth() == 0 or plane.getHeight() == 0:
            return cls(self._image.getBBox())
        if plane._array.shape != self._image._array.shape:
            raise LengthError(
                f"Dimension mismatch: Image {self._image.getWidth()}x{self._image.getHeight()} v. "
                f"{label} {plane.getWidth()}x{plane.getHeight()}"
            )
        return plane

    def _from_other(
        self,
        other: _MaskedImageBase,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        deep: bool = False,
    ) -> None:
        if bbox is None and not deep and type(other) is type(self):
            # A shallow copy holds the very planes of the original.
            self._image, self._mask, self._variance = other._image, other._mask, other._variance
            return
        planes: list[Any] = []
        classes: tuple[Any, ...] = (Image[self.dtype], MaskX, ImageF)
        for cls, plane in zip(classes, (other._image, other._mask, other._variance), strict=True):
            new = cls.__new__(cls)
            new._from_image(plane, bbox, origin, deep)
            planes.append(new)
        self._image, self._mask, self._variance = planes

    def _read(self, given: dict[str, Any]) -> None:
        from ._readers import MaskedImageFitsReader

        with MaskedImageFitsReader(given_source(given)) as reader:
            flags: dict[str, Any] = {
                name: is_set(given, name) for name in ("conformMasks", "needAllHdus", "allowUnsafe")
            }
            other = reader.read(*given_box(given), **flags, dtype=self.dtype)
            for name, read in (
                ("metadata", reader.readPrimaryMetadata),
                ("imageMetadata", reader.readImageMetadata),
                ("maskMetadata", reader.readMaskMetadata),
                ("varianceMetadata", reader.readVarianceMetadata),
            ):
                if given.get(name) is not None:
                    given[name].combine(read())
        self._from_other(other)

    # ----------------------------------------------------------------- planes

    def getImage(self) -> Any:
        """Return the image plane (shared)."""
        return self._image

    def setImage(self, image: Any) -> None:
        """Copy the pixels of an image into the image plane."""
        if image is not self._image:
            self._image.assign(image)

    def getMask(self) -> MaskX:
        """Return the mask plane (shared)."""
        return self._mask

    def setMask(self, mask: MaskX) -> None:
        """Copy the pixels of a mask into the mask plane."""
        if mask is not self._mask:
            self._mask.assign(mask)

    def getVariance(self) -> ImageF:
        """Return the variance plane (shared)."""
        return self._variance

    def setVariance(self, variance: ImageF) -> None:
        """Copy the pixels of an image into the variance plane."""
        if variance is not self._variance:
            self._variance.assign(variance)

    image = property(getImage, setImage, doc="Image plane; assignment copies pixels.")
    mask = property(getMask, setMask, doc="Mask plane; assignment copies pixels.")
    variance = property(getVariance, setVariance, doc="Variance plane; assignment copies pixels.")

    # --------------------------------------------------------------- geometry

    @property
    def _grid(self) -> ImageBase:
        return self._image

    def setXY0(self, *args: Any) -> None:
        """Set the parent position of the first pixel of all planes."""
        for plane in (self._image, self._mask, self._variance):
            plane.setXY0(*args)

    # ----------------------------------------------------------------- pixels

    def set(self, value: Any, mask: int | None = None, variance: float | None = None) -> None:
        """Set all pixels.

        Parameters
        ----------
        value : `float` or `tuple`
            Value of the image plane, or (value, mask, variance).
        mask : `int`, optional
            Value of the mask plane (default 0).
        variance : `float`, optional
            Value of the variance plane (default 0).
        """
        if mask is None and variance is None and isinstance(value, tuple | list):
            value, mask, variance = value
        self._image.set(value)
        self._mask.set(0 if mask is None else mask)
        self._variance.set(0.0 if variance is None else variance)

    def _get(self, index: Point2I, origin: ImageOrigin) -> tuple[Any, int, float]:
        planes = (self._image, self._mask, self._variance)
        return tuple(plane._get(index, origin) for plane in planes)  # type: ignore[return-value]

    def _set(self, index: Point2I, value: Any, origin: ImageOrigin) -> None:
        for plane, item in zip((self._image, self._mask, self._variance), value, strict=True):
            plane._set(index, item, origin)

    def assign(self, rhs: _MaskedImageBase, bbox: Box2I | None = None, origin: ImageOrigin = PARENT) -> None:
        """Copy the pixels of another masked image into (part of) this one.

        Parameters
        ----------
        rhs : `MaskedImage`
            Masked image of the same pixel type and of the size of ``bbox``.
        bbox : `lsst.geom.Box2I`, optional
            Where to put the pixels; an empty box is the whole image.
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.
        """
        self._image.assign(rhs._image, bbox, origin)
        self._mask.assign(rhs._mask, bbox, origin)
        self._variance.assign(rhs._variance, bbox, origin)

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
        maskedImage : `MaskedImage`
            The view.
        """
        result = type(self).__new__(type(self))
        result._from_other(self, bbox, origin)
        return result

    def _set_part(self, bbox: Box2I, origin: ImageOrigin, rhs: Any) -> None:
        if isinstance(rhs, _MaskedImageBase):
            self.assign(rhs, bbox, origin)
        else:
            self.subset(bbox, origin=origin).set(rhs)

    # ----------------------------------------------------------------- copies

    def swap(self, rhs: Self) -> None:
        """Exchange planes with another masked image."""
        self.__dict__, rhs.__dict__ = rhs.__dict__, self.__dict__

    def convertF(self) -> MaskedImageF:
        """Return a deep copy with float32 pixels."""
        return MaskedImageF(self, True)

    def convertD(self) -> MaskedImageD:
        """Return a deep copy with float64 pixels."""
        return MaskedImageD(self, True)

    def __str__(self) -> str:
        return (
            f"image={self._image.array},\nmask={self._mask.array}, "
            f"maskPlaneDict={self._mask.getMaskPlaneDict()}\n"
            f"variance={self._variance.array}, bbox={self.getBBox()}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}=({self})"

    # ------------------------------------------------------------- arithmetic

    def _apply(self, name: str, scale: float, other: _MaskedImageBase) -> Self:
        """Combine with ``scale`` times another masked image.

        Variances propagate as for independent errors; masks are united.
        """
        self._image._check_same_size(other._image)
        left = self._image._array
        right = other._image._array if scale == 1.0 else scale * other._image._array
        var_left = self._variance._array
        var_right = other._variance._array if scale == 1.0 else scale**2 * other._variance._array
        with np.errstate(all="ignore"):
            if name in ("add", "subtract"):
                variance = var_left + var_right
                image = left + right if name == "add" else left - right
            elif name == "multiply":
                variance = left**2 * var_right + right**2 * var_left
                image = left * right
            else:
                variance = (var_left * right**2 + var_right * left**2) / right**4
                image = left / right
                if np.issubdtype(self.dtype, np.integer):
                    image = np.trunc(image)
        self._image._array[...] = image.astype(self.dtype)
        self._mask |= other._mask
        self._variance._array[...] = variance.astype(np.float32)
        return self

    def _combine(self, name: str, other: Any) -> Any:
        if isinstance(other, _MaskedImageBase):
            return self._apply(name, 1.0, other) if type(other) is type(self) else NotImplemented
        if isinstance(other, ImageBase) and type(other) is not type(self._image):
            return NotImplemented
        if not isinstance(other, ImageBase) and not is_int(other) and not is_real(other):
            return NotImplemented
        image: Any = self._image
        if name == "add":
            image += other
        elif name == "subtract":
            image -= other
        else:
            square: Any = other._array**2 if isinstance(other, ImageBase) else float(other) ** 2
            with np.errstate(all="ignore"):
                if name == "multiply":
                    image *= other
                    self._variance._array[...] = (self._variance._array * square).astype(np.float32)
                else:
                    image /= other
                    self._variance._array[...] = (self._variance._array / square).astype(np.float32)
        return self

    def __iadd__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine("add", other)

    def __isub__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine("subtract", other)

    def __imul__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine("multiply", other)

    def __itruediv__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine("divide", other)

    def scaledPlus(self, c: float, rhs: Self) -> None:
        """Add ``c`` times another masked image."""
        self._apply("add", c, rhs)

    def scaledMinus(self, c: float, rhs: Self) -> None:
        """Subtract ``c`` times another masked image."""
        self._apply("subtract", c, rhs)

    def scaledMultiplies(self, c: float, rhs: Self) -> None:
        """Multiply by ``c`` times another masked image."""
        self._apply("multiply", c, rhs)

    def scaledDivides(self, c: float, rhs: Self) -> None:
        """Divide by ``c`` times another masked image."""
        self._apply("divide", c, rhs)

    # --------------------------------------------------------------------- io

    def writeFits(
        self,
        filename: str | MemFileManager,
        imageOptions: CompressionOptions | Any = None,
        maskOptions: CompressionOptions | Any = None,
        varianceOptions: CompressionOptions | Any = None,
        header: Any = None,
        *,
        metadata: Any = None,
        imageMetadata: Any = None,
        maskMetadata: Any = None,
        varianceMetadata: Any = None,
    ) -> None:
        """Write to a FITS file of an empty primary HDU and three planes.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            Where to write.
        imageOptions, maskOptions, varianceOptions \
                : `lsst.afw.fits.CompressionOptions`, optional
            How to compress the planes; `None` does not compress.
        header, metadata : `lsst.daf.base.PropertySet`, optional
            Keys of the primary HDU.
        imageMetadata, maskMetadata, varianceMetadata \
                : `lsst.daf.base.PropertySet`, optional
            Keys of the planes' HDUs.
        """
        from lsst.daf.base import PropertySet

        from ._writers import write_masked_image

        if isinstance(imageOptions, PropertySet):
            # The form (filename, metadata, imageMetadata, ...).
            metadata, imageMetadata, maskMetadata, varianceMetadata = (
                imageOptions,
                maskOptions,
                varianceOptions,
                header,
            )
            imageOptions = maskOptions = varianceOptions = header = None
        write_masked_image(
            self,
            filename,
            (imageOptions, maskOptions, varianceOptions),
            header if header is not None else metadata,
            (imageMetadata, maskMetadata, varianceMetadata),
        )


_SIGNATURES: dict[type, tuple[Signature, ...]] = {}


class MaskedImageF(_MaskedImageBase):
    """Masked image with float32 pixels."""

    dtype = np.float32


class MaskedImageD(_MaskedImageBase):
    """Masked image with float64 pixels."""

    dtype = np.float64


class MaskedImageI(_MaskedImageBase):
    """Masked image with int32 pixels."""

    dtype = np.int32


class MaskedImageU(_MaskedImageBase):
    """Masked image with uint16 pixels."""

    dtype = np.uint16


class MaskedImageL(_MaskedImageBase):
    """Masked image with uint64 pixels."""

    dtype = np.uint64


if TYPE_CHECKING:
    # The metaclass makes objects of other classes, by ``dtype``.
    MaskedImage: Any
else:

    class MaskedImage(metaclass=TemplateMeta):
        """Family of masked images; ``dtype`` chooses the member."""


register_members(
    MaskedImage,
    {"I": MaskedImageI, "F": MaskedImageF, "D": MaskedImageD, "U": MaskedImageU, "L": MaskedImageL},
)


def makeMaskedImage(image: Any, mask: MaskX | None = None, variance: ImageF | None = None) -> Any:
    """Make the masked image that fits an image's pixel type.

    Parameters
    ----------
    image : `Image`
        Image plane (shared).
    mask : `MaskX`, optional
        Mask plane (default: zeros).
    variance : `ImageF`, optional
        Variance plane (default: zeros).

    Returns
    -------
    maskedImage : `MaskedImage`
        The masked image.
    """
    return MaskedImage[image.dtype](image, mask, variance)


def imagesOverlap(image1: Any, image2: Any) -> bool:
    """Tell whether two images share memory.

    Parameters
    ----------
    image1, image2 : `Image`, `Mask` or `MaskedImage`
        The images.

    Returns
    -------
    overlap : `bool`
        Whether a pixel belongs to both.
    """

    def planes(image: Any) -> list[np.ndarray]:
        if isinstance(image, ImageBase):
            return [image._array]
        return [image._image._array, image._mask._array, image._variance._array]

    return any(np.shares_memory(a, b) for a in planes(image1) for b in planes(image2) if a.dtype == b.dtype)


def makeImageFromArray(array: np.ndarray | None) -> Any:
    """Make the image that fits an array's type (`None` for `None`)."""
    return None if array is None else Image(array, dtype=array.dtype.type)


def makeMaskFromArray(array: np.ndarray | None) -> Any:
    """Make the mask that fits an array's type (`None` for `None`)."""
    return None if array is None else Mask(array, dtype=array.dtype.type)


def makeMaskedImageFromArrays(
    image: np.ndarray, mask: np.ndarray | None = None, variance: np.ndarray | None = None
) -> Any:
    """Make a masked image from arrays.

    Parameters
    ----------
    image : `numpy.ndarray`
        Pixels, axes (y, x).
    mask : `numpy.ndarray`, optional
        Mask pixels (int32).
    variance : `numpy.ndarray`, optional
        Variance pixels (float32).

    Returns
    -------
    maskedImage : `MaskedImage`
        The masked image.
    """
    return MaskedImage(
        makeImageFromArray(image),
        makeMaskFromArray(mask),
        makeImageFromArray(variance),
        dtype=image.dtype.type,
    )
