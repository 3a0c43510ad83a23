# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Single-plane images: `ImageF`, `ImageD`, `ImageI`, `ImageL`, `ImageU`."""

from __future__ import annotations

__all__ = ["Image", "ImageBase", "ImageD", "ImageF", "ImageI", "ImageL", "ImageU"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.pex.exceptions import InvalidParameterError, LengthError
from lsst.utils import TemplateMeta

from ._common import (
    ImageLike,
    NoTemporaries,
    given_box,
    given_source,
    is_set,
    is_source,
    register_members,
)
from ._overload import Signature, choose, is_int, is_real
from ._slicing import LOCAL, PARENT, ImageOrigin

if TYPE_CHECKING:
    from lsst.afw.fits import CompressionOptions, MemFileManager


def check_box_fits(bbox: Box2I, origin: ImageOrigin, x0: int, y0: int, width: int, height: int) -> Box2I:
    """Return a box in local coordinates after checking that it fits.

    Parameters
    ----------
    bbox : `lsst.geom.Box2I`
        Box of a sub-image.
    origin : `ImageOrigin`
        Coordinate system of ``bbox``.
    x0, y0, width, height : `int`
        Position and size of the image.

    Returns
    -------
    local : `lsst.geom.Box2I`
        The box in local coordinates.

    Raises
    ------
    lsst.pex.exceptions.LengthError
        Raised if part of the box is outside the image.
    """
    min_x, min_y = bbox.getMinX(), bbox.getMinY()
    if origin == PARENT:
        min_x -= x0
        min_y -= y0
    box_width, box_height = bbox.getWidth(), bbox.getHeight()
    local = Box2I(Point2I(min_x, min_y), Extent2I(box_width, box_height))
    if min_x < 0 or min_y < 0 or min_x + box_width > width or min_y + box_height > height:
        raise LengthError(
            f"Box2I(Point2I({min_x},{min_y}),lsst::geom::Extent2I({box_width},{box_height})) "
            f"doesn't fit in image {width}x{height}"
        )
    return local


class ImageBase(ImageLike):
    """A two-dimensional array of pixels with the position of its first pixel.

    Notes
    -----
    ``array`` has axes (y, x) and is a view of the pixels. Sub-images share
    the pixels of their parent. ``image[x, y]`` is in parent coordinates.
    """

    dtype: Any = np.float64
    _array: np.ndarray
    _x0: int
    _y0: int

    # ------------------------------------------------------------ construct

    @classmethod
    def _wrap(cls, array: np.ndarray, x0: int, y0: int) -> Self:
        """Make an instance on an array without checks."""
        self = cls.__new__(cls)
        self._array = array
        self._x0 = int(x0)
        self._y0 = int(y0)
        return self

    @classmethod
    def _accepts_array(cls, value: Any) -> bool:
        """Tell whether an array can back the pixels without conversion."""
        return (
            isinstance(value, np.ndarray)
            and value.ndim == 2
            and value.dtype == np.dtype(cls.dtype)
            and value.dtype.isnative
            and value.flags.writeable
            and (value.shape[1] <= 1 or value.strides[1] == value.itemsize)
        )

    def _allocate(self, width: int, height: int, x0: int = 0, y0: int = 0, value: Any = 0) -> None:
        if width < 0 or height < 0:
            raise LengthError(f"Image dimensions must not be negative, got {width}x{height}.")
        pixel = self._to_pixel(value)
        if pixel == 0:
            self._array = np.zeros((height, width), dtype=self.dtype)
        else:
            self._array = np.full((height, width), pixel, dtype=self.dtype)
        self._x0, self._y0 = x0, y0

    def _from_array(self, array: np.ndarray, deep: bool, xy0: Point2I | None) -> None:
        self._array = array.copy() if deep else array
        self._x0, self._y0 = (0, 0) if xy0 is None else (xy0.getX(), xy0.getY())

    def _from_image(
        self, other: ImageBase, bbox: Box2I | None = None, origin: ImageOrigin = PARENT, deep: bool = False
    ) -> None:
        if bbox is None:
            array, x0, y0 = other._array, other._x0, other._y0
        else:
            local = check_box_fits(bbox, origin, other._x0, other._y0, other.getWidth(), other.getHeight())
            array = other._array[local.getBeginY() : local.getEndY(), local.getBeginX() : local.getEndX()]
            x0, y0 = other._x0 + local.getMinX(), other._y0 + local.getMinY()
        if other._array.dtype != np.dtype(self.dtype):
            if not deep:
                raise InvalidParameterError(
                    f"Only deep copies are permitted between pixel types: {other._array.dtype} given, "
                    f"{np.dtype(self.dtype)} wanted; pass deep=True."
                )
            array = array.astype(self.dtype)
        elif deep:
            array = array.copy()
        self._array, self._x0, self._y0 = array, x0, y0

    def _construct(self, label: str, given: dict[str, Any], value: Any) -> None:
        """Fill a new object from the arguments of a constructor.

        Parameters
        ----------
        label : `str`
            Which signature fits.
        given : `dict` [`str`, `object`]
            Arguments by name.
        value : `int` or `float`
            Initial value of new pixels.
        """
        match label:
            case "size":
                self._allocate(int(given["width"]), int(given["height"]), value=value)
            case "extent":
                dimensions = given.get("dimensions", Extent2I(0, 0))
                self._allocate(dimensions.getX(), dimensions.getY(), value=value)
            case "box":
                box = given["bbox"]
                self._allocate(box.getWidth(), box.getHeight(), box.getMinX(), box.getMinY(), value)
            case "array":
                self._from_array(given["array"], is_set(given, "deep"), given.get("xy0"))
            case "copy" | "cast" | "sub":
                source = given["rhs"] if "rhs" in given else given["src"]
                origin = given.get("origin", PARENT)
                self._from_image(source, given.get("bbox"), origin, is_set(given, "deep"))
            case _:
                self._read(given)

    def _read(self, given: dict[str, Any]) -> None:
        """Fill a new object from a FITS file."""
        raise NotImplementedError

    def _read_with(self, make_reader: Any, given: dict[str, Any], **options: Any) -> None:
        """Read pixels, and metadata where wanted, into a new object."""
        with make_reader(given_source(given), given.get("hdu")) as reader:
            other = reader.read(*given_box(given), allowUnsafe=is_set(given, "allowUnsafe"), **options)
            metadata = given.get("metadata")
            if metadata is not None:
                metadata.combine(reader.readMetadata())
        self.__dict__.update(other.__dict__)

    @classmethod
    def _to_pixel(cls, value: Any) -> Any:
        """Convert a scalar to the pixel type.

        Raises
        ------
        TypeError
            Raised if the value is no number, or no integer where the pixels
            are integers.
        """
        if isinstance(value, bool | np.bool_):
            value = int(value)
        if np.issubdtype(cls.dtype, np.integer):
            if not is_int(value):
                raise TypeError(f"{cls.__name__} pixels are integers, got {value!r} of {type(value)}.")
            info = np.iinfo(cls.dtype)
            if not info.min <= int(value) <= info.max:
                raise TypeError(f"{value} does not fit in a {cls.__name__} pixel [{info.min}, {info.max}].")
            return cls.dtype(int(value))
        if not is_real(value):
            raise TypeError(f"{cls.__name__} pixels are numbers, got {value!r} of {type(value)}.")
        with np.errstate(over="ignore"):
            return cls.dtype(value)

    # -------------------------------------------------------------- geometry

    def getWidth(self) -> int:
        """Return the number of columns."""
        return self._array.shape[1]

    def getHeight(self) -> int:
        """Return the number of rows."""
        return self._array.shape[0]

    def getX0(self) -> int:
        """Return the parent column of the first pixel."""
        return self._x0

    def getY0(self) -> int:
        """Return the parent row of the first pixel."""
        return self._y0

    def getXY0(self) -> Point2I:
        """Return the parent position of the first pixel."""
        return Point2I(self._x0, self._y0)

    def setXY0(self, xy0: Point2I | int, y0: int | None = None) -> None:
        """Set the parent position of the first pixel.

        Parameters
        ----------
        xy0 : `lsst.geom.Point2I` or `int`
            The position, or its x.
        y0 : `int`, optional
            The y where ``xy0`` is x.
        """
        if isinstance(xy0, Point2I):
            self._x0, self._y0 = xy0.getX(), xy0.getY()
        elif is_int(xy0) and is_int(y0):
            self._x0, self._y0 = int(xy0), int(y0)  # type: ignore[arg-type]
        else:
            raise TypeError(f"setXY0 wants a Point2I or two integers, got {xy0!r}, {y0!r}.")

    def getDimensions(self) -> Extent2I:
        """Return width and height."""
        return Extent2I(self.getWidth(), self.getHeight())

    def getBBox(self, origin: ImageOrigin = PARENT) -> Box2I:
        """Return the bounding box.

        Parameters
        ----------
        origin : `ImageOrigin`, optional
            Coordinate system of the box.

        Returns
        -------
        bbox : `lsst.geom.Box2I`
            The box.
        """
        corner = Point2I(0, 0) if origin == LOCAL else self.getXY0()
        return Box2I(corner, self.getDimensions())

    # ---------------------------------------------------------------- pixels

    def getArray(self) -> np.ndarray:
        """Return a view of the pixels, axes (y, x)."""
        return self._array

    @property
    def array(self) -> np.ndarray:
        """View of the pixels, axes (y, x); assignment copies values in."""
        return self._array

    @array.setter
    def array(self, value: Any) -> None:
        if value is None:
            raise TypeError("Cannot assign None to an array.")
        if value is not self._array:
            self._array[...] = value

    def set(self, value: Any) -> None:
        """Set every pixel to a value."""
        self._array[...] = self._to_pixel(value)

    def _check_index(self, index: Point2I, origin: ImageOrigin) -> tuple[int, int]:
        x, y = index.getX(), index.getY()
        dx, dy = (self._x0, self._y0) if origin == PARENT else (0, 0)
        if not (0 <= x - dx < self.getWidth() and 0 <= y - dy < self.getHeight()):
            message = (
                f"Index ({x}, {y}) outside image bounds ({dx}, {dy}) to "
                f"({dx + self.getWidth() - 1}, {dy + self.getHeight() - 1})."
            )
            if x < 0 or y < 0:
                message += (
                    "  Note that negative indices are only interpreted as relative to the upper bound "
                    "when LOCAL coordinates are used."
                )
            raise IndexError(message)
        return y - dy, x - dx

    def _get(self, index: Point2I, origin: ImageOrigin) -> Any:
        return self._array[self._check_index(index, origin)].item()

    def _set(self, index: Point2I, value: Any, origin: ImageOrigin) -> None:
        self._array[self._check_index(index, origin)] = self._to_pixel(value)

    def assign(self, rhs: ImageBase, bbox: Box2I | None = None, origin: ImageOrigin = PARENT) -> None:
        """Copy the pixels of another image into (part of) this one.

        Parameters
        ----------
        rhs : `ImageBase`
            Image of the same pixel type and of the size of ``bbox``.
        bbox : `lsst.geom.Box2I`, optional
            Where to put the pixels; an empty box is the whole image.
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.

        Raises
        ------
        lsst.pex.exceptions.LengthError
            Raised if sizes disagree or the box is partly outside.
        """
        if not isinstance(rhs, ImageBase) or rhs._array.dtype != self._array.dtype:
            raise TypeError(f"Cannot assign {type(rhs).__name__} to {type(self).__name__} pixels.")
        target = self if bbox is None or bbox.isEmpty() else self.subset(bbox, origin)
        if target._array.shape != rhs._array.shape:
            raise LengthError(
                f"Dimension mismatch: {target.getWidth()}x{target.getHeight()} v. "
                f"{rhs.getWidth()}x{rhs.getHeight()}"
            )
        target._array[...] = rhs._array

    def subset(self, bbox: Box2I, origin: ImageOrigin = PARENT) -> Self:
        """Return a sub-image that shares pixels.

        Parameters
        ----------
        bbox : `lsst.geom.Box2I`
            Box of the sub-image.
        origin : `ImageOrigin`, optional
            Coordinate system of ``bbox``.

        Returns
        -------
        image : `ImageBase`
            The view.

        Raises
        ------
        lsst.pex.exceptions.LengthError
            Raised if the box is partly outside.
        """
        result = type(self).__new__(type(self))
        result._from_image(self, bbox, origin)
        return result

    def _set_part(self, bbox: Box2I, origin: ImageOrigin, rhs: Any) -> None:
        if isinstance(rhs, ImageBase):
            self.assign(rhs, bbox, origin)
        else:
            self.subset(bbox, origin=origin).set(rhs)

    # ----------------------------------------------------------------- copies

    def clone(self) -> Self:
        """Return a deep copy."""
        result = type(self).__new__(type(self))
        result._from_image(self, deep=True)
        return result

    def __copy__(self) -> Self:
        return self.Factory(self, deep=False)

    def __str__(self) -> str:
        return f"{self.array}, bbox={self.getBBox()}"

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}={self}"

    def swap(self, rhs: Self) -> None:
        """Exchange pixels and position with another image."""
        self.__dict__, rhs.__dict__ = rhs.__dict__, self.__dict__

    def _check_same_size(self, other: ImageBase) -> None:
        if self._array.shape != other._array.shape:
            raise LengthError(
                f"Images are of different size, {self.getWidth()}x{self.getHeight()} v "
                f"{other.getWidth()}x{other.getHeight()}"
            )

    def _write(
        self, filename: str | MemFileManager, options: Any, mode: str, header: Any, metadata: Any
    ) -> None:
        """Write to FITS; the options may also be a header's keys."""
        from lsst.daf.base import PropertySet

        from ._writers import write_single

        if isinstance(options, PropertySet):
            options, metadata = None, options
        write_single(self, filename, options, mode, header if header is not None else metadata)

    def _write_recipe(self, dest: str, options: Mapping[str, Any] | None, item: Any) -> None:
        """Write to FITS, compressed as an entry of a recipe says."""
        from lsst.afw.fits import CompressionOptions

        write: Any = self.writeFits  # type: ignore[attr-defined]
        if options is None or options[item] is None:
            write(dest)
        else:
            write(dest, CompressionOptions.from_mapping(options[item]))


def _is_box(value: Any) -> bool:
    return isinstance(value, Box2I)


def _is_image(value: Any) -> bool:
    return isinstance(value, _TypedImage)


_SIGNATURE_CACHE: dict[type, tuple[Signature, ...]] = {}


class _TypedImage(NoTemporaries, ImageBase):
    """Common part of the images of all pixel types."""

    def __init__(self, *args: Any, **kwargs: Any):
        cls = type(self)
        label, given = choose(cls, cls._signatures(), args, kwargs)
        # Of one signature, the name is misspelled upstream too.
        value = given.get("intialValue", given.get("initialValue", 0))
        self._construct(label, given, value)

    @classmethod
    def _signatures(cls) -> tuple[Signature, ...]:
        if cls not in _SIGNATURE_CACHE:
            origin = {"origin": lambda v: isinstance(v, ImageOrigin)}
            read = ("hdu", "metadata", "bbox", "origin", "allowUnsafe")
            _SIGNATURE_CACHE[cls] = (
                Signature("size", ("width", "height", "intialValue"), {"width": is_int, "height": is_int}, 2),
                Signature("box", ("bbox", "initialValue"), {"bbox": _is_box}, 1),
                Signature(
                    "extent",
                    ("dimensions", "initialValue"),
                    {"dimensions": lambda v: isinstance(v, Extent2I)},
                ),
                Signature("array", ("array", "deep", "xy0"), {"array": cls._accepts_array}, 1),
                Signature(
                    "sub",
                    ("rhs", "bbox", "origin", "deep"),
                    {"rhs": lambda v: type(v) is cls, "bbox": _is_box, **origin},
                    2,
                ),
                Signature("copy", ("rhs", "deep"), {"rhs": _is_image, "deep": _is_flag}, 1),
                Signature("cast", ("src", "deep"), {"src": _is_image, "deep": _is_flag}, 1),
                Signature("file", ("fileName", *read), {"fileName": is_source, **origin}, 1),
                Signature("memory", ("manager", *read), {"manager": is_source, **origin}, 1),
            )
        return _SIGNATURE_CACHE[cls]

    def _read(self, given: dict[str, Any]) -> None:
        from ._readers import ImageFitsReader

        self._read_with(ImageFitsReader, given, dtype=self.dtype)

    @classmethod
    def readFits(cls, filename: str | MemFileManager, hdu: int | None = None) -> Self:
        """Read an image from a FITS file.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            File to read.
        hdu : `int`, optional
            Index of the HDU (default: the first with pixels).

        Returns
        -------
        image
            The image.
        """
        return cls(filename, hdu=hdu) if hdu is not None else cls(filename)

    def writeFits(
        self,
        filename: str | MemFileManager,
        options: CompressionOptions | Any = None,
        mode: str = "w",
        header: Any = None,
        mask: Any = None,
        *,
        metadata: Any = None,
    ) -> None:
        """Write the image to a FITS file.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            Where to write.
        options : `lsst.afw.fits.CompressionOptions`, optional
            How to compress; `None` does not compress.
        mode : `str`, optional
            "w" replaces the file, "a" appends.
        header : `lsst.daf.base.PropertySet`, optional
            Header keys to write.
        mask : `Mask`, optional
            Not used for lossless compression.
        metadata : `lsst.daf.base.PropertySet`, optional
            Header keys to write (the form without compression).
        """
        self._write(filename, options, mode, header, metadata)

    def writeFitsWithOptions(self, dest: str, options: Mapping[str, Any] | None, item: str = "image") -> None:
        """Write to FITS, compressed as a recipe says.

        Parameters
        ----------
        dest : `str`
            File name.
        options : `~collections.abc.Mapping` or `None`
            Recipe; its entry ``item`` is used.
        item : `str`, optional
            Entry of the recipe.
        """
        self._write_recipe(dest, options, item)

    # ------------------------------------------------------------- arithmetic

    def _operand(self, other: Any) -> Any:
        """Return what numpy needs for an operand, or NotImplemented."""
        if isinstance(other, _TypedImage):
            if type(other) is not type(self):
                return NotImplemented
            self._check_same_size(other)
            return other._array
        if is_int(other) or is_real(other) or isinstance(other, bool | np.bool_):
            return self._to_pixel(other)
        return NotImplemented

    def _in_place(self, function: np.ufunc, other: Any) -> Any:
        operand = self._operand(other)
        if operand is NotImplemented:
            return NotImplemented
        with np.errstate(all="ignore"):
            function(self._array, operand, out=self._array)
        return self

    def __iadd__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._in_place(np.add, other)

    def __isub__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._in_place(np.subtract, other)

    def __imul__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._in_place(np.multiply, other)

    def __itruediv__(self, other: Any) -> Self:  # type: ignore[misc]
        operand = self._operand(other)
        if operand is NotImplemented:
            return NotImplemented
        with np.errstate(all="ignore"):
            if np.issubdtype(self.dtype, np.integer):
                # Integer pixels truncate towards zero, as in C.
                self._array[...] = np.trunc(self._array / operand).astype(self.dtype)
            else:
                np.divide(self._array, operand, out=self._array)
        return self

    def scaledPlus(self, c: float, rhs: Self) -> None:
        """Add ``c`` times another image."""
        self._check_same_size(rhs)
        self._array += (c * rhs._array).astype(self.dtype)

    def scaledMinus(self, c: float, rhs: Self) -> None:
        """Subtract ``c`` times another image."""
        self._check_same_size(rhs)
        self._array -= (c * rhs._array).astype(self.dtype)

    def scaledMultiplies(self, c: float, rhs: Self) -> None:
        """Multiply by ``c`` times another image."""
        self._check_same_size(rhs)
        self._array[...] = (self._array * (c * rhs._array)).astype(self.dtype)

    def scaledDivides(self, c: float, rhs: Self) -> None:
        """Divide by ``c`` times another image."""
        self._check_same_size(rhs)
        with np.errstate(all="ignore"):
            self._array[...] = (self._array / (c * rhs._array)).astype(self.dtype)

    def sqrt(self) -> None:
        """Replace each pixel by its square root."""
        with np.errstate(invalid="ignore"):
            self._array[...] = np.sqrt(self._array).astype(self.dtype)

    def _convert(self, kind: str) -> Any:
        return Image[kind](self, deep=True)

    def convertI(self) -> ImageI:
        """Return a copy with int32 pixels."""
        return self._convert("I")

    def convertF(self) -> ImageF:
        """Return a copy with float32 pixels."""
        return self._convert("F")

    def convertD(self) -> ImageD:
        """Return a copy with float64 pixels."""
        return self._convert("D")

    def convertU(self) -> ImageU:
        """Return a copy with uint16 pixels."""
        return self._convert("U")

    def convertL(self) -> ImageL:
        """Return a copy with uint64 pixels."""
        return self._convert("L")

    convertFloat = convertF
    convertDouble = convertD


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


class ImageF(_TypedImage):
    """Image with float32 pixels."""

    dtype = np.float32


class ImageD(_TypedImage):
    """Image with float64 pixels."""

    dtype = np.float64


class ImageI(_TypedImage):
    """Image with int32 pixels."""

    dtype = np.int32


class ImageU(_TypedImage):
    """Image with uint16 pixels."""

    dtype = np.uint16


class ImageL(_TypedImage):
    """Image with uint64 pixels."""

    dtype = np.uint64


if TYPE_CHECKING:
    # The metaclass makes objects of other classes, by ``dtype``.
    Image: Any
else:

    class Image(metaclass=TemplateMeta):
        """Family of images; ``Image(..., dtype=np.float32)`` makes an `ImageF`."""


register_members(Image, {"I": ImageI, "F": ImageF, "D": ImageD, "U": ImageU, "L": ImageL})


def point_in_box(point: Point2D, bbox: Box2I) -> bool:
    """Tell whether a position lies on a pixel of a box."""
    x, y = point.getX(), point.getY()
    return (
        bbox.getMinX() - 0.5 <= x < bbox.getMaxX() + 0.5 and bbox.getMinY() - 0.5 <= y < bbox.getMaxY() + 0.5
    )
