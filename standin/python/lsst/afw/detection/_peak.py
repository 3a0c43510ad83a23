# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Catalogues of the peaks of a footprint."""

from __future__ import annotations

__all__ = ["PeakCatalog", "PeakColumnView", "PeakRecord", "PeakTable"]

import functools
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lsst.afw.table import BaseCatalog, BaseColumnView, BaseRecord, BaseTable, Catalog, IdFactory, Schema
from lsst.afw.table._base import link_classes
from lsst.geom import Point2D, Point2I
from lsst.pex.exceptions import InvalidParameterError

if TYPE_CHECKING:
    from lsst.afw.table import Key
    from lsst.afw.table._storage import Block


@functools.cache
def _minimal() -> tuple[Schema, dict[str, Any]]:
    """Return the schema of every peak and the keys of its fields."""
    schema = Schema()
    keys = {
        "id": schema.addField("id", type=np.int64, doc="unique ID"),
        "f_x": schema.addField("f_x", type=np.float32, doc="subpixel column position", units="pixel"),
        "f_y": schema.addField("f_y", type=np.float32, doc="subpixel row position", units="pixel"),
        "i_x": schema.addField("i_x", type=np.int32, doc="column position of highest pixel", units="pixel"),
        "i_y": schema.addField("i_y", type=np.int32, doc="row position of highest pixel", units="pixel"),
        "peakValue": schema.addField(
            "peakValue",
            type=np.float32,
            doc="value of [smoothed] image at peak position",
            units="count",
        ),
    }
    return schema, keys


class PeakRecord(BaseRecord):
    """A peak: an ID, an integer and a sub-pixel position, and a height."""

    __slots__ = ()

    def getId(self) -> int:
        """Return the ID."""
        return self.get(_minimal()[1]["id"])

    def setId(self, id: int) -> None:
        """Set the ID."""
        self.set(_minimal()[1]["id"], int(id))

    def getIx(self) -> int:
        """Return the column of the highest pixel."""
        return self.get(_minimal()[1]["i_x"])

    def getIy(self) -> int:
        """Return the row of the highest pixel."""
        return self.get(_minimal()[1]["i_y"])

    def setIx(self, ix: int) -> None:
        """Set the column of the highest pixel."""
        self.set(_minimal()[1]["i_x"], ix)

    def setIy(self, iy: int) -> None:
        """Set the row of the highest pixel."""
        self.set(_minimal()[1]["i_y"], iy)

    def getI(self) -> Point2I:
        """Return the highest pixel."""
        return Point2I(self.getIx(), self.getIy())

    def getFx(self) -> float:
        """Return the sub-pixel column."""
        return self.get(_minimal()[1]["f_x"])

    def getFy(self) -> float:
        """Return the sub-pixel row."""
        return self.get(_minimal()[1]["f_y"])

    def setFx(self, fx: float) -> None:
        """Set the sub-pixel column."""
        self.set(_minimal()[1]["f_x"], fx)

    def setFy(self, fy: float) -> None:
        """Set the sub-pixel row."""
        self.set(_minimal()[1]["f_y"], fy)

    def getF(self) -> Point2D:
        """Return the sub-pixel position."""
        return Point2D(self.getFx(), self.getFy())

    def getCentroid(self, *args: bool) -> Point2I | Point2D:
        """Return the sub-pixel position; with any argument, the pixel."""
        return self.getI() if args else self.getF()

    def getPeakValue(self) -> float:
        """Return the height."""
        return self.get(_minimal()[1]["peakValue"])

    def setPeakValue(self, peakValue: float) -> None:
        """Set the height."""
        self.set(_minimal()[1]["peakValue"], peakValue)

    def __str__(self) -> str:
        return f"{self.getId()}: ({self.getIx()},{self.getIy()})  ({self.getFx():.3f},{self.getFy():.3f})"

    __repr__ = __str__


class PeakTable(BaseTable):
    """Maker of peaks, with IDs counted from 1.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema of the peaks.
    idFactory : `lsst.afw.table.IdFactory`, optional
        Maker of the IDs.
    """

    # One table for all footprints whose peaks have the same schema.
    _cache: ClassVar[list[weakref.ref[PeakTable]]] = []
    _fits_type = "PEAK"

    def __init__(self, schema: Schema, idFactory: IdFactory | None = None) -> None:
        super().__init__(schema)
        self._idFactory: IdFactory | None = IdFactory.makeSimple() if idFactory is None else idFactory

    @classmethod
    def make(cls, schema: Schema, forceNew: bool = False) -> PeakTable:
        """Return a table for a schema; one that is in use, if there is one.

        Parameters
        ----------
        schema : `lsst.afw.table.Schema`
            Schema of the peaks.
        forceNew : `bool`, optional
            Make a new table in any case.

        Returns
        -------
        table : `PeakTable`
            The table.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if ``schema`` lacks a field of `makeMinimalSchema`.
        """
        if not cls.checkSchema(schema):
            raise InvalidParameterError(
                "Schema for Peak must contain at least the keys defined by makeMinimalSchema()."
            )
        if forceNew:
            return cls(schema)
        tables = [(reference, reference()) for reference in cls._cache]
        cls._cache[:] = [reference for reference, table in tables if table is not None]
        for reference, table in tables:
            if table is not None and table._schema.compare(schema, Schema.IDENTICAL) == Schema.IDENTICAL:
                if reference is not cls._cache[0]:
                    cls._cache.remove(reference)
                    cls._cache.insert(0, reference)
                return table
        table = cls(schema)
        cls._cache.insert(0, weakref.ref(table))
        return table

    @classmethod
    def makeMinimalSchema(cls) -> Schema:
        """Return a copy of the fields that every peak has."""
        return Schema(_minimal()[0])

    @staticmethod
    def checkSchema(schema: Schema) -> bool:
        """Return whether a schema has all fields that every peak has."""
        return bool(schema.contains(_minimal()[0]))

    @staticmethod
    def getIdKey() -> Key:
        """Return the key of the ID."""
        return _minimal()[1]["id"]

    @staticmethod
    def getIxKey() -> Key:
        """Return the key of the highest pixel's column."""
        return _minimal()[1]["i_x"]

    @staticmethod
    def getIyKey() -> Key:
        """Return the key of the highest pixel's row."""
        return _minimal()[1]["i_y"]

    @staticmethod
    def getFxKey() -> Key:
        """Return the key of the sub-pixel column."""
        return _minimal()[1]["f_x"]

    @staticmethod
    def getFyKey() -> Key:
        """Return the key of the sub-pixel row."""
        return _minimal()[1]["f_y"]

    @staticmethod
    def getPeakValueKey() -> Key:
        """Return the key of the height."""
        return _minimal()[1]["peakValue"]

    def getIdFactory(self) -> IdFactory | None:
        """Return the maker of the IDs."""
        return self._idFactory

    def setIdFactory(self, factory: IdFactory | None) -> None:
        """Set the maker of the IDs."""
        self._idFactory = factory

    def clone(self) -> PeakTable:
        """Return an empty table with the same schema and state of IDs."""
        other = super().clone()
        if self._idFactory is not None:
            other._idFactory = self._idFactory.clone()
        return other

    def _assign_ids(self, block: Block, start: int, n: int) -> None:
        if self._idFactory is not None:
            block.column(_minimal()[1]["id"], start, start + n)[:] = self._idFactory._many(n)


class PeakColumnView(BaseColumnView):
    """Columns of a contiguous catalogue of peaks, as views."""


class PeakCatalog(BaseCatalog):
    """Peaks of a footprint.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`, `PeakTable` or `PeakCatalog`
        Schema, table, or a catalogue whose records to share.
    """

    def _values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return ix, iy, fx, fy and the height of all peaks."""
        keys = _minimal()[1]
        return tuple(  # type: ignore[return-value]
            self._column(keys[name]) for name in ("i_x", "i_y", "f_x", "f_y", "peakValue")
        )

    def _reorder(self, index: np.ndarray) -> None:
        """Keep the records at these positions, in this order."""
        blocks, block_of, rows = self._arrays()
        self._set_arrays(list(blocks), block_of[index], rows[index])

    def _sortBrightest(self) -> None:
        """Sort by falling height, then by column and row."""
        ix, iy, _, _, height = self._values()
        self._reorder(np.lexsort((iy, ix, -height.astype(np.float64))))


link_classes(PeakRecord, PeakTable, PeakColumnView, PeakCatalog)
Catalog.register("Peak", PeakCatalog)


def make_peak_catalogs(
    schema: Schema, starts: np.ndarray, order: np.ndarray, x: np.ndarray, y: np.ndarray, height: np.ndarray
) -> list[PeakCatalog]:
    """Make the peaks of many footprints at once.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema of the peaks.
    starts : `numpy.ndarray`, (N + 1,)
        Catalogue ``i`` holds the peaks ``starts[i]:starts[i + 1]``.
    order : `numpy.ndarray`, (P,)
        When each peak gets its ID.
    x, y : `numpy.ndarray`, (P,)
        Integer positions.
    height : `numpy.ndarray`, (P,)
        Heights.

    Returns
    -------
    catalogs : `list` [`PeakCatalog`]
        N catalogues of one table.
    """
    table = PeakTable.make(schema)
    n = len(x)
    block, first = table._allocate(n)
    keys = _minimal()[1]
    ids = block.column(keys["id"], first, first + n)
    ids[:] = np.array(ids)[order]
    for name, values in (("f_x", x), ("f_y", y), ("i_x", x), ("i_y", y), ("peakValue", height)):
        block.column(keys[name], first, first + n)[:] = values
    return [
        PeakCatalog._from_range(table, block, first + a, first + b)
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
