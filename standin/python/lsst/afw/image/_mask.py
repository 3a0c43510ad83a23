# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bit masks with named planes.

The names of the planes belong to a dictionary that all masks of a process
share, unless a mask was made with its own or has dropped a plane.
"""

from __future__ import annotations

__all__ = ["Mask", "MaskPixel", "MaskX"]

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lsst.geom import Box2I
from lsst.pex.exceptions import InvalidParameterError, RuntimeError
from lsst.utils import TemplateMeta

from ._common import COMMON_CHECKS, is_set, refuse_temporary
from ._image import ImageBase
from ._overload import Signature, choose, is_int
from ._slicing import PARENT, ImageOrigin

if TYPE_CHECKING:
    from lsst.afw.fits import CompressionOptions, MemFileManager
    from lsst.daf.base import PropertySet

MaskPixel = np.int32

MASK_PLANE_PREFIX = "MP_"

_MAX_PLANES = 32

_DEFAULT_PLANES = (
    "BAD",
    "SAT",
    "INTRP",
    "CR",
    "EDGE",
    "DETECTED",
    "DETECTED_NEGATIVE",
    "SUSPECT",
    "NO_DATA",
    "VIGNETTED",
    "STREAK",
)


class MaskDict:
    """Plane names and bits of one or more masks.

    Parameters
    ----------
    planes : `~collections.abc.Mapping` [`str`, `int`]
        Bit of each plane.
    """

    _lock = threading.RLock()
    _all: weakref.WeakSet[MaskDict] = weakref.WeakSet()
    _default: MaskDict

    def __init__(self, planes: Mapping[str, int]):
        self.planes = {str(name): int(bit) for name, bit in planes.items()}
        with self._lock:
            self._all.add(self)

    @classmethod
    def default(cls) -> MaskDict:
        """Return the dictionary that new masks share."""
        return cls._default

    @classmethod
    def copy_or_default(cls, planes: Mapping[str, int] | None) -> MaskDict:
        """Return a dictionary of these planes, or the default for none."""
        return cls(planes) if planes else cls._default

    @classmethod
    def detach_default(cls) -> MaskDict:
        """Make a new default dictionary; existing masks keep the old one."""
        with cls._lock:
            cls._default = cls(cls._default.planes)
            return cls._default

    @classmethod
    def add_to_all(cls, name: str, bit: int) -> None:
        """Add a plane to every dictionary where neither name nor bit is used."""
        with cls._lock:
            for item in list(cls._all):
                if bit not in item.planes.values() and name not in item.planes:
                    item.planes[name] = bit

    def clone(self) -> MaskDict:
        """Return an independent copy."""
        return MaskDict(self.planes)

    def unused_bit(self) -> int:
        """Return the lowest bit without a plane."""
        used = set(self.planes.values())
        return next(bit for bit in range(len(used) + 1) if bit not in used)


MaskDict._default = MaskDict({name: bit for bit, name in enumerate(_DEFAULT_PLANES)})


def _bit_value(bit: int) -> int:
    """Return the pixel value of a bit (bit 31 is the sign of an int32)."""
    value = 1 << bit
    return value - (1 << 32) if bit == 31 else value


class MaskX(ImageBase):
    """Mask with int32 pixels.

    Notes
    -----
    Made from ``width, height``, ``dimensions`` or ``bbox`` (each followed by
    an optional ``initialValue`` and ``planeDefs``), from an int32 array, from
    another mask (sharing pixels unless ``deep``) or from a FITS file.
    """

    dtype = np.int32
    _maskDict: MaskDict

    def __init__(self, *args: Any, **kwargs: Any):
        label, given = choose(type(self), _signatures(type(self)), args, kwargs)
        self._maskDict = MaskDict.copy_or_default(given.get("planeDefs"))
        self._construct(label.rstrip("12"), given, given.get("initialValue", 0))

    def _from_image(
        self,
        other: ImageBase,
        bbox: Box2I | None = None,
        origin: ImageOrigin = PARENT,
        deep: bool = False,
    ) -> None:
        super()._from_image(other, bbox, origin, deep)
        self._maskDict = other._maskDict if isinstance(other, MaskX) else MaskDict.default()

    @classmethod
    def _wrap(cls, array: np.ndarray, x0: int, y0: int) -> Self:
        self = super()._wrap(array, x0, y0)
        self._maskDict = MaskDict.default()
        return self

    def _read(self, given: dict[str, Any]) -> None:
        from ._readers import MaskFitsReader

        self._read_with(MaskFitsReader, given, conformMasks=is_set(given, "conformMasks"))

    # ----------------------------------------------------------------- planes

    @staticmethod
    def addMaskPlane(name: str) -> int:
        """Add a plane to all masks, or find it.

        Parameters
        ----------
        name : `str`
            Name of the plane.

        Returns
        -------
        bit : `int`
            Its bit.

        Raises
        ------
        lsst.pex.exceptions.RuntimeError
            Raised if all bits are taken.
        """
        default = MaskDict.default()
        bit = default.planes.get(name)
        if bit is None:
            bit = default.unused_bit()
        if bit >= _MAX_PLANES:
            raise RuntimeError(f"Max number of planes ({_MAX_PLANES}) already used")
        MaskDict.add_to_all(name, bit)
        return bit

    @staticmethod
    def removeMaskPlane(name: str) -> None:
        """Remove a plane from the default dictionary.

        Parameters
        ----------
        name : `str`
            Name of the plane. Existing masks keep it.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if there is no such plane.
        """
        if name not in MaskDict.default().planes:
            raise InvalidParameterError(f"Plane {name} doesn't exist in the default Mask")
        MaskDict.detach_default().planes.pop(name)

    @staticmethod
    def getMaskPlane(name: str) -> int:
        """Return the bit of a plane.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if there is no such plane.
        """
        bit = MaskDict.default().planes.get(name)
        if bit is None:
            raise InvalidParameterError(f"Invalid mask plane name: {name}")
        return bit

    @staticmethod
    def getPlaneBitMask(name: str | Iterable[str]) -> int:
        """Return the pixel value of one plane or of several together.

        Parameters
        ----------
        name : `str` or `list` [`str`]
            Name or names.

        Returns
        -------
        value : `int`
            The bits.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if a name is unknown.
        """
        names = (name,) if isinstance(name, str) else name
        value = 0
        for item in names:
            value |= _bit_value(MaskX.getMaskPlane(item))
        return value

    @staticmethod
    def getNumPlanesMax() -> int:
        """Return the number of bits of a pixel."""
        return _MAX_PLANES

    @staticmethod
    def getNumPlanesUsed() -> int:
        """Return the number of planes of the default dictionary."""
        return len(MaskDict.default().planes)

    @staticmethod
    def clearMaskPlaneDict() -> None:
        """Remove all planes from the default dictionary."""
        MaskDict.default().planes.clear()

    @staticmethod
    def interpret(value: int) -> str:
        """Return the names of the planes set in a pixel value."""
        planes = MaskDict.default().planes
        return ",".join(name for name in sorted(planes) if int(value) & _bit_value(planes[name]))

    @staticmethod
    def parseMaskPlaneMetadata(metadata: PropertySet) -> dict[str, int]:
        """Extract plane names and bits from FITS keys.

        Parameters
        ----------
        metadata : `lsst.daf.base.PropertySet`
            Header with ``MP_<name>`` keys.

        Returns
        -------
        planes : `dict` [`str`, `int`]
            Bit of each plane.

        Raises
        ------
        lsst.pex.exceptions.RuntimeError
            Raised if two planes share a bit.
        """
        planes: dict[str, int] = {}
        for key in metadata.paramNames(False):
            if not key.startswith(MASK_PLANE_PREFIX):
                continue
            name, bit = key[len(MASK_PLANE_PREFIX) :], int(metadata.getScalar(key))
            for other, used in planes.items():
                if used == bit:
                    raise RuntimeError(f"File specifies plane {name} has same value ({bit}) as {other}")
            planes[name] = bit
        return planes

    @staticmethod
    def addMaskPlanesToMetadata(metadata: PropertySet) -> None:
        """Write the default planes as ``MP_<name>`` keys.

        Parameters
        ----------
        metadata : `lsst.daf.base.PropertySet`
            Header to change; older ``MP_`` keys are removed.
        """
        for key in list(metadata.paramNames(False)):
            if key.startswith(MASK_PLANE_PREFIX):
                metadata.remove(key)
        planes = MaskDict.default().planes
        for name in sorted(planes):
            if name:
                metadata.add(MASK_PLANE_PREFIX + name, planes[name])

    @staticmethod
    def readFits(filename: str | MemFileManager, hdu: int | None = None) -> MaskX:
        """Read a mask from a FITS file.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            File to read.
        hdu : `int`, optional
            Index of the HDU (default: the first with pixels).

        Returns
        -------
        mask : `MaskX`
            The mask, its planes moved to this process's bits.
        """
        return MaskX(filename, hdu=hdu) if hdu is not None else MaskX(filename)

    def getMaskPlaneDict(self) -> dict[str, int]:
        """Return a copy of the names and bits of this mask, by name."""
        planes = self._maskDict.planes
        return {name: planes[name] for name in sorted(planes)}

    def getAsString(self, x: int, y: int) -> str:
        """Return the names of the planes of a pixel (local coordinates)."""
        return self.interpret(int(self._array[y, x]))

    def printMaskPlanes(self) -> None:
        """Print names and bits."""
        for name, bit in self.getMaskPlaneDict().items():
            print(f"Plane {bit} -> {name}")

    def clearMaskPlane(self, plane: int) -> None:
        """Clear a bit in all pixels.

        Parameters
        ----------
        plane : `int`
            The bit.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if the bit has no name.
        """
        self._array &= np.int32(~self._named_bit(plane))

    def clearAllMaskPlanes(self) -> None:
        """Set all pixels to zero."""
        self._array[...] = 0

    def setMaskPlaneValues(self, plane: int, x0: int, x1: int, y: int) -> None:
        """Set a bit on a run of pixels.

        Parameters
        ----------
        plane : `int`
            The bit.
        x0, x1 : `int`
            First and last local column (inclusive).
        y : `int`
            Local row.
        """
        self._array[y, x0 : x1 + 1] |= np.int32(self._named_bit(plane))

    def removeAndClearMaskPlane(self, name: str, removeFromDefault: bool = False) -> None:
        """Clear a plane and forget its name.

        Parameters
        ----------
        name : `str`
            Name of the plane.
        removeFromDefault : `bool`, optional
            Whether new masks forget it too.
        """
        self.clearMaskPlane(self.getMaskPlane(name))
        if not (self._maskDict is MaskDict.default() and removeFromDefault):
            self._maskDict = self._maskDict.clone()
        self._maskDict.planes.pop(name, None)
        if removeFromDefault and name in MaskDict.default().planes:
            self.removeMaskPlane(name)

    def conformMaskPlanes(self, currentPlaneDict: Mapping[str, int]) -> None:
        """Move bits to where the default dictionary has their planes.

        Parameters
        ----------
        currentPlaneDict : `~collections.abc.Mapping` [`str`, `int`]
            What the pixels' bits mean now. Planes that are not in the default
            dictionary are added to it.
        """
        current = MaskDict.copy_or_default(currentPlaneDict)
        if self._maskDict.planes == current.planes:
            if MaskDict.default().planes == self._maskDict.planes:
                return
        else:
            keep = 0
            moves: list[tuple[int, int]] = []
            for name, bit in sorted(currentPlaneDict.items()):
                canonical = MaskDict.default().planes.get(name)
                if canonical is None:
                    canonical = self.addMaskPlane(name)
                if canonical == bit:
                    keep |= _bit_value(bit)
                else:
                    moves.append((_bit_value(bit), _bit_value(canonical)))
            if moves:
                old = self._array
                new = old & np.int32(keep)
                for source, target in moves:
                    np.bitwise_or(new, np.int32(target), out=new, where=(old & np.int32(source)) != 0)
                self._array[...] = new
        self._maskDict = MaskDict.default()

    def _named_bit(self, plane: int) -> int:
        if int(plane) not in MaskDict.default().planes.values():
            raise InvalidParameterError(f"Invalid mask plane ID: {plane}")
        return _bit_value(int(plane))

    # ------------------------------------------------------------- arithmetic

    def _combine(self, function: np.ufunc, other: Any) -> Any:
        if isinstance(other, MaskX):
            if self._maskDict is not other._maskDict and self._maskDict.planes != other._maskDict.planes:
                raise RuntimeError("Mask dictionaries do not match")
            self._check_same_size(other)
            function(self._array, other._array, out=self._array)
        elif is_int(other):
            function(self._array, self._to_pixel(other), out=self._array)
        else:
            return NotImplemented
        return self

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine(np.bitwise_or, other)

    def __iand__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine(np.bitwise_and, other)

    def __ixor__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._combine(np.bitwise_xor, other)

    __or__ = __and__ = __xor__ = __ror__ = __rand__ = __rxor__ = refuse_temporary

    def __str__(self) -> str:
        return f"{self.array}, bbox={self.getBBox()}, maskPlaneDict={self.getMaskPlaneDict()}"

    # --------------------------------------------------------------------- io

    def writeFits(
        self,
        filename: str | MemFileManager,
        options: CompressionOptions | Any = None,
        mode: str = "w",
        header: Any = None,
        *,
        metadata: Any = None,
    ) -> None:
        """Write the mask to a FITS file.

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
        metadata : `lsst.daf.base.PropertySet`, optional
            Header keys to write (the form without compression).
        """
        self._write(filename, options, mode, header, metadata)

    def writeFitsWithOptions(
        self, dest: str, options: Mapping[str, Any] | None, item: str | None = None
    ) -> None:
        """Write to FITS, compressed as a recipe says.

        Parameters
        ----------
        dest : `str`
            File name.
        options : `~collections.abc.Mapping` or `None`
            Recipe; its entry ``item`` is used.
        item : `str`, optional
            Entry of the recipe (default: "mask", or "image" where missing).
        """
        if options is not None and item is None:
            item = "mask" if "mask" in options else "image"
        self._write_recipe(dest, options, item)


_SIGNATURES: dict[type, tuple[Signature, ...]] = {}


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _signatures(cls: type[MaskX]) -> tuple[Signature, ...]:
    """Return the ways to make a mask."""
    if cls not in _SIGNATURES:
        checks: dict[str, Callable[[Any], bool]] = {
            **COMMON_CHECKS,
            "initialValue": is_int,
            "planeDefs": _is_mapping,
            "array": cls._accepts_array,
            "src": lambda v: isinstance(v, MaskX),
        }
        read = ("hdu", "metadata", "bbox", "origin", "conformMasks", "allowUnsafe")
        value = ("initialValue", "planeDefs")
        plain = ("planeDefs",)
        _SIGNATURES[cls] = (
            Signature("size1", ("width", "height", *plain), checks, 2),
            Signature("size2", ("width", "height", *value), checks, 2),
            Signature("box1", ("bbox", *plain), checks, 1),
            Signature("box2", ("bbox", *value), checks, 1),
            Signature("extent1", ("dimensions", *plain), checks),
            Signature("extent2", ("dimensions", *value), checks),
            Signature("array", ("array", "deep", "xy0"), checks, 1),
            Signature("sub", ("src", "bbox", "origin", "deep"), checks, 2),
            Signature("copy", ("src", "deep"), checks, 1),
            Signature("file", ("fileName", *read), checks, 1),
            Signature("memory", ("manager", *read), checks, 1),
        )
    return _SIGNATURES[cls]


if TYPE_CHECKING:
    # The metaclass makes objects of other classes, by ``dtype``.
    Mask: Any
else:

    class Mask(metaclass=TemplateMeta):
        """Family of masks; its only member is `MaskX`."""

        TEMPLATE_PARAMS = ("dtype",)
        TEMPLATE_DEFAULTS = (MaskPixel,)


Mask.register(MaskPixel, MaskX)
Mask.alias("X", MaskX)
