# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A PSF that is constant over each cell of a grid."""

from __future__ import annotations

__all__ = ["GridContainer", "StitchedPsf", "UniformGrid"]

from collections import UserDict
from typing import TYPE_CHECKING, Any

from lsst.afw.detection import InvalidPsfError
from lsst.afw.image import ImageD
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.meas.algorithms import ImagePsf
from lsst.skymap import Index2D

if TYPE_CHECKING:
    _Images = UserDict[Index2D, ImageD]
else:
    _Images = UserDict


class UniformGrid:
    """A grid of cells of one size.

    Parameters
    ----------
    cell_size : `lsst.geom.Extent2I`
        Size of a cell (px).
    shape : `lsst.skymap.Index2D`
        Number of cells along x and y.
    padding : `int`, optional
        Width of the border in which positions belong to the cells at the edge (px).
    min : `lsst.geom.Point2I`, optional
        First pixel of the first cell; (0, 0) by default.
    """

    def __init__(
        self, cell_size: Extent2I, shape: Index2D, *, padding: int = 0, min: Point2I | None = None
    ) -> None:
        self.cell_size, self.shape, self.padding = cell_size, shape, padding
        size = Extent2I(cell_size.getX() * shape.x, cell_size.getY() * shape.y)
        self.bbox = Box2I(Point2I(0, 0) if min is None else min, size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UniformGrid):
            return False
        mine, others = ((one.bbox, one.cell_size, one.padding) for one in (self, other))
        return mine == others

    __hash__ = None  # type: ignore[assignment]

    def index(self, position: Point2I) -> Index2D:
        """Return the index of the cell that holds a pixel; ValueError outside the grid."""
        outer = self.bbox.dilatedBy(self.padding)
        if not outer.contains(position):
            raise ValueError(f"Position {position} is not within outer bounding box {outer}.")
        offset = position - self.bbox.getBegin()
        x, y = offset.getX() // self.cell_size.getX(), offset.getY() // self.cell_size.getY()
        return Index2D(min(max(x, 0), self.shape.x - 1), min(max(y, 0), self.shape.y - 1))

    def bbox_of(self, index: Index2D) -> Box2I:
        """Return the box of a cell."""
        shift = Extent2I(index.x * self.cell_size.getX(), index.y * self.cell_size.getY())
        return Box2I(self.bbox.getBegin() + shift, self.cell_size)


class GridContainer(_Images):
    """What there is for each cell of a grid, by `lsst.skymap.Index2D`; cells may be missing.

    Parameters
    ----------
    shape : `lsst.skymap.Index2D`
        Number of cells along x and y.
    """

    def __init__(self, shape: Index2D) -> None:
        super().__init__()
        self.shape = shape


class StitchedPsf(ImagePsf):
    """A PSF with one image for each cell.

    Parameters
    ----------
    images : `GridContainer`
        Image by cell, each about its pixel (0, 0).
    grid : `UniformGrid`
        Where the cells are.

    Notes
    -----
    Upstream pickles it into FITS archives; here it cannot be written.
    """

    def __init__(self, images: GridContainer, grid: UniformGrid) -> None:
        super().__init__()
        self.images, self.grid = images, grid

    def getAveragePosition(self) -> Point2D:
        """Return the centre of the grid, or of some cell that has a PSF where that has none."""
        center = self.grid.bbox.getCenter()
        if self.grid.index(Point2I(center)) not in self.images:
            center = self.grid.bbox_of(next(iter(self.images))).getCenter()
        return center

    def __deepcopy__(self, memo: dict | None = None) -> StitchedPsf:
        return StitchedPsf(self.images, self.grid)

    def _doComputeKernelImage(self, position: Point2D, color: Any) -> ImageD:
        try:
            return self.images[self.grid.index(Point2I(position))]
        except (KeyError, ValueError):
            raise InvalidPsfError("No inputs exists at position.") from None

    def _doComputeBBox(self, position: Point2D, color: Any) -> Box2I:
        return self._doComputeKernelImage(position, color).getBBox()
