# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""What images, masks, masked images and exposures have in common."""

from __future__ import annotations

__all__ = [
    "COMMON_CHECKS",
    "ImageLike",
    "NoTemporaries",
    "PlanesLike",
    "given_box",
    "given_source",
    "is_set",
    "is_source",
    "refuse_temporary",
    "register_members",
]

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from lsst.geom import Box2I, Extent2I, Point2I

from ._overload import is_int
from ._slicing import PARENT, ImageOrigin, translateSliceArgs

if TYPE_CHECKING:
    from lsst.afw.fits import MemFileManager

_TEMPORARIES = (
    "This arithmetic operation is not implemented, in order to prevent the accidental proliferation of "
    "temporaries. Please use the in-place arithmetic operations (e.g., += instead of +) or operate on the "
    "underlying arrays."
)


def refuse_temporary(self: Any, other: Any) -> Any:
    """Refuse an operator that would make a new image."""
    raise NotImplementedError(_TEMPORARIES)


class NoTemporaries:
    """Mix-in that refuses the operators that would make a new image."""

    __add__ = __sub__ = __mul__ = __truediv__ = refuse_temporary
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = refuse_temporary


def is_source(value: object) -> bool:
    """Tell whether a value names a FITS file or holds one in memory."""
    from lsst.afw.fits import MemFileManager

    return isinstance(value, str | os.PathLike | MemFileManager)


COMMON_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "width": is_int,
    "height": is_int,
    "bbox": lambda v: isinstance(v, Box2I),
    "dimensions": lambda v: isinstance(v, Extent2I),
    "origin": lambda v: isinstance(v, ImageOrigin),
    "fileName": is_source,
    "manager": is_source,
}
"""Tests of the constructor arguments that most classes take."""


def is_set(given: Mapping[str, Any], name: str) -> bool:
    """Return a flag among a constructor's arguments (default: `False`)."""
    return bool(given.get(name, False))


def given_box(given: Mapping[str, Any]) -> tuple[Box2I, ImageOrigin]:
    """Return the box to read and its origin (default: everything)."""
    return given.get("bbox", Box2I()), given.get("origin", PARENT)


def given_source(given: Mapping[str, Any]) -> Any:
    """Return the file to read from a constructor's arguments."""
    return given["fileName"] if "fileName" in given else given["manager"]


def register_members(family: Any, members: Mapping[str, Any]) -> None:
    """Register the classes of all pixel types with their family.

    Parameters
    ----------
    family : `lsst.utils.TemplateMeta`
        Class that chooses between the members by their ``dtype``.
    members : `~collections.abc.Mapping` [`str`, `type`]
        Member for each one-letter alias.
    """
    for member in members.values():
        family.register(member.dtype, member)
    for alias, member in members.items():
        family.alias(alias, member)


def _box_from_options(options: Mapping[str, Any]) -> tuple[Box2I, ImageOrigin]:
    """Extract the box of a partial read from a mapping of options.

    Parameters
    ----------
    options : `~collections.abc.Mapping`
        ``bbox`` or ``llcX``, ``llcY``, ``width``, ``height`` and
        ``imageOrigin``.

    Returns
    -------
    bbox : `lsst.geom.Box2I`
        The box (empty: everything).
    origin : `ImageOrigin`
        Its coordinate system.

    Raises
    ------
    RuntimeError
        Raised for an unknown ``imageOrigin``.
    """
    if "bbox" in options:
        return options["bbox"], PARENT
    if "llcX" not in options:
        return Box2I(), PARENT
    corner = Point2I(int(options["llcX"]), int(options["llcY"]))
    bbox = Box2I(corner, Extent2I(int(options["width"]), int(options["height"])))
    name = str(options.get("imageOrigin", "PARENT"))
    if name not in ImageOrigin.__members__:
        raise RuntimeError(f"Unknown ImageOrigin type {name}")
    return bbox, ImageOrigin[name]


class ImageLike:
    """Slicing, copying and partial reading of all image-like classes.

    Notes
    -----
    Derived classes have ``getWidth``, ``getHeight``, ``getX0``, ``getY0``,
    ``getBBox``, ``subset``, ``clone``, and for items ``_get`` (a pixel),
    ``_set`` (a pixel) and ``_set_part`` (a box).
    """

    if TYPE_CHECKING:
        getBBox: Any
        subset: Any
        clone: Any
        _get: Any
        _set: Any
        _set_part: Any

    width = property(lambda self: self.getWidth(), doc="Number of columns.")
    height = property(lambda self: self.getHeight(), doc="Number of rows.")
    x0 = property(lambda self: self.getX0(), doc="Parent column of the first pixel.")
    y0 = property(lambda self: self.getY0(), doc="Parent row of the first pixel.")

    def __getitem__(self, imageSlice: Any) -> Any:
        box, index, origin = translateSliceArgs(imageSlice, self.getBBox)
        if box is not None:
            return self.subset(box, origin=origin)
        return self._get(index, origin=origin)

    def __setitem__(self, imageSlice: Any, rhs: Any) -> None:
        box, index, origin = translateSliceArgs(imageSlice, self.getBBox)
        if box is None:
            self._set(index, origin=origin, value=rhs)
        else:
            self._set_part(box, origin, rhs)

    def Factory(self, *args: Any, **kwargs: Any) -> Self:
        """Return a new object of this type."""
        return type(self)(*args, **kwargs)

    def __deepcopy__(self, memo: Any = None) -> Self:
        return self.clone()

    def __reduce__(self) -> tuple:
        from lsst.afw.fits import reduceToFits

        return reduceToFits(self)

    @classmethod
    def readFitsWithOptions(cls, source: Any, options: Mapping[str, Any]) -> Self:
        """Read from FITS with a ``bbox`` (or llcX, llcY, width, height).

        Parameters
        ----------
        source : `str`
            File name.
        options : `~collections.abc.Mapping`
            ``bbox`` and ``origin`` are understood, or ``llcX``, ``llcY``,
            ``width``, ``height`` and ``imageOrigin``.

        Returns
        -------
        image
            What was read: the whole or a part.
        """
        bbox, origin = _box_from_options(options)
        make: Any = cls
        return make(source, bbox=bbox, origin=origin)


def _compression_from_recipe(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Convert a write recipe to the keyword arguments of ``writeFits``."""
    from lsst.afw.fits import CompressionOptions

    if options is None:
        return {}
    return {
        f"{name}Options": CompressionOptions.from_mapping(options[name])
        for name in ("image", "mask", "variance")
        if options[name] is not None
    }


class PlanesLike(NoTemporaries, ImageLike):
    """Geometry and files of objects with image, mask and variance planes.

    Notes
    -----
    Derived classes have ``_grid``, the part that knows position and size,
    and ``writeFits``.
    """

    if TYPE_CHECKING:
        writeFits: Any

    @property
    def _grid(self) -> Any:
        raise NotImplementedError

    def getWidth(self) -> int:
        """Return the number of columns."""
        return self._grid.getWidth()

    def getHeight(self) -> int:
        """Return the number of rows."""
        return self._grid.getHeight()

    def getX0(self) -> int:
        """Return the parent column of the first pixel."""
        return self._grid.getX0()

    def getY0(self) -> int:
        """Return the parent row of the first pixel."""
        return self._grid.getY0()

    def getDimensions(self) -> Extent2I:
        """Return width and height."""
        return self._grid.getDimensions()

    def getXY0(self) -> Point2I:
        """Return the parent position of the first pixel."""
        return self._grid.getXY0()

    def getBBox(self, origin: ImageOrigin = PARENT) -> Box2I:
        """Return the bounding box."""
        return self._grid.getBBox(origin)

    def clone(self) -> Self:
        """Return a deep copy."""
        make: Any = type(self)
        return make(self, True)

    @classmethod
    def readFits(cls, filename: str | MemFileManager) -> Self:
        """Read the planes, and what else there is, from a FITS file.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            File to read.

        Returns
        -------
        image : `MaskedImage` or `Exposure`
            What was read. A component of an unknown class is `None`.
        """
        make: Any = cls
        return make(filename)

    def writeFitsWithOptions(self, dest: str, options: Mapping[str, Any] | None) -> None:
        """Write to FITS, compressed as a recipe says.

        Parameters
        ----------
        dest : `str`
            File name.
        options : `~collections.abc.Mapping` or `None`
            Recipe with entries "image", "mask" and "variance".
        """
        self.writeFits(dest, **_compression_from_recipe(options))
