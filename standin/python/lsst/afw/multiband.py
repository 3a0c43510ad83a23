# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base class of objects that hold one image-like object per band."""

from __future__ import annotations

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from abc import ABC, abstractmethod  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from typing import Any  # noqa: E402

from lsst.geom import Box2I, Point2I  # noqa: E402

__all__ = ["MultibandBase"]


class MultibandBase(ABC):
    """One image-like object per band, on a common bounding box.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands.
    singles : `~collections.abc.Sequence`
        Object of each band.
    bbox : `lsst.geom.Box2I`, optional
        The common box (default: that of the objects).

    Raises
    ------
    ValueError
        Raised if the objects' boxes differ.
    """

    _bands: tuple
    _singles: Any
    _bbox: Box2I

    def __init__(self, bands: Sequence[Any], singles: Sequence[Any], bbox: Box2I | None = None):
        self._bands = tuple(bands)
        self._singles = tuple(singles)
        if bbox is None:
            boxes = [single.getBBox() for single in self._singles]
            if any(box != boxes[0] for box in boxes):
                raise ValueError(f"`singles` are required to have the same bounding box, received {boxes}")
            bbox = boxes[0]
        self._bbox = bbox

    @abstractmethod
    def clone(self, deep: bool = True) -> MultibandBase:
        """Return a copy.

        Parameters
        ----------
        deep : `bool`, optional
            Whether the copy has its own pixels.
        """

    @abstractmethod
    def _slice(self, bands: tuple, bandIndex: Any, indices: tuple) -> Any:
        """Return a part; see `__getitem__`."""

    @property
    def bands(self) -> tuple:
        """Names of the bands."""
        return self._bands

    @property
    def singles(self) -> Any:
        """Object of each band."""
        return self._singles

    def getBBox(self) -> Box2I:
        """Return the common bounding box."""
        return self._bbox

    def getXY0(self) -> Point2I:
        """Return the position of the first pixel."""
        return self.getBBox().getMin()

    @property
    def x0(self) -> int:
        """Column of the first pixel."""
        return self.getBBox().getMinX()

    @property
    def y0(self) -> int:
        """Row of the first pixel."""
        return self.getBBox().getMinY()

    @property
    def origin(self) -> tuple[int, int]:
        """Position of the first pixel as (y, x)."""
        return (self.y0, self.x0)

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.getBBox().getWidth()

    @property
    def height(self) -> int:
        """The number of rows."""
        return self.getBBox().getHeight()

    def setXY0(self, xy0: Point2I) -> None:
        """Set the position of the first pixel in all bands."""
        self._bbox = Box2I(xy0, self._bbox.getDimensions())
        for single in self.singles:
            single.setXY0(xy0)

    def __len__(self) -> int:
        return len(self.bands)

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self.singles))

    def __getitem__(self, args: Any) -> Any:
        indices = args if isinstance(args, tuple) else (args,)
        bands, band_index = self._bandNamesToIndex(indices[0])
        if isinstance(band_index, slice) or len(band_index) != 1:
            return self._slice(bands=bands, bandIndex=band_index, indices=indices[1:])
        single = self.singles[band_index[0]]
        if len(indices) > 2:
            return single[indices[1:]]
        return single[indices[1]] if len(indices) == 2 else single

    def _bandNamesToIndex(self, bandIndex: Any) -> tuple[tuple, Any]:
        """Convert names of bands to positions.

        Parameters
        ----------
        bandIndex : `slice`, `str` or iterable
            A slice between names, a name, or several names.

        Returns
        -------
        bands : `tuple`
            The names.
        index : `slice` or `list` [`int`]
            Their positions.
        """
        if isinstance(bandIndex, slice):
            start = None if bandIndex.start is None else self.bands.index(bandIndex.start)
            stop = None if bandIndex.stop is None else self.bands.index(bandIndex.stop)
            positions = slice(start, stop, bandIndex.step)
            return tuple(self.bands[positions]), positions
        if isinstance(bandIndex, str) or not hasattr(bandIndex, "__iter__"):
            names: tuple = (bandIndex,)
        else:
            names = tuple(bandIndex)
        return names, [self.bands.index(name) for name in names]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, bands={self.bands}, bbox={self.getBBox()!r}>"

    def __str__(self) -> str:
        return str(self.array) if hasattr(self, "array") else repr(self)
