# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records with an id and a sky position."""

from __future__ import annotations

from typing import Any

import lsst.geom
import lsst.pex.exceptions as pexExceptions

from ._base import BaseRecord, BaseTable, link_classes
from ._catalog import BaseCatalog, BaseColumnView, Catalog
from ._fields import Key
from ._functor_keys import CoordKey
from ._id_factory import IdFactory
from ._schema import Schema
from ._storage import Block

__all__ = ["SimpleCatalog", "SimpleColumnView", "SimpleRecord", "SimpleTable"]

_MINIMAL = Schema()
_ID_KEY = _MINIMAL.addField("id", type="L", doc="unique ID")
_COORD_KEY = CoordKey.addFields(_MINIMAL, "coord", "position in ra/dec")


class IdRecord(BaseRecord):
    """Record that begins with an id."""

    __slots__ = ()

    def getId(self) -> int:
        """Return the id."""
        return _ID_KEY.get(self)

    def setId(self, id: int) -> None:
        """Set the id."""
        _ID_KEY.set(self, id)


class SimpleRecord(IdRecord):
    """Record with an id and a sky position."""

    __slots__ = ()

    def getCoord(self) -> lsst.geom.SpherePoint:
        """Return the sky position."""
        return _COORD_KEY.get(self)

    def setCoord(self, coord: lsst.geom.SpherePoint) -> None:
        """Set the sky position."""
        _COORD_KEY.set(self, coord)

    def getRa(self) -> lsst.geom.Angle:
        """Return the right ascension."""
        return _COORD_KEY.getRa().get(self)

    def setRa(self, ra: lsst.geom.Angle) -> None:
        """Set the right ascension."""
        _COORD_KEY.getRa().set(self, ra)

    def getDec(self) -> lsst.geom.Angle:
        """Return the declination."""
        return _COORD_KEY.getDec().get(self)

    def setDec(self, dec: lsst.geom.Angle) -> None:
        """Set the declination."""
        _COORD_KEY.getDec().set(self, dec)


class SimpleTable(BaseTable):
    """Maker of records with an id and a sky position.

    Parameters
    ----------
    schema : `Schema`
        Schema that begins with that of `makeMinimalSchema`.
    idFactory : `IdFactory`, optional
        Gives the ids of new records; without one they are 0.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if the schema lacks the minimal fields.
    """

    _fits_type = "SIMPLE"

    def __init__(self, schema: Schema, idFactory: IdFactory | None = None) -> None:
        from lsst.daf.base import PropertyList

        if not self.checkSchema(schema):
            raise pexExceptions.InvalidParameterError(
                f"Schema for {type(self).__name__} must contain at least the fields of makeMinimalSchema(): "
                f"{self.makeMinimalSchema().getOrderedNames()}, in that order; got "
                f"{schema.getOrderedNames()[:8]}."
            )
        super().__init__(schema)
        self._metadata = PropertyList()
        self._id_factory = idFactory

    @classmethod
    def make(cls, schema: Schema, *factory: IdFactory | None, **kwargs: Any) -> Any:
        """Return a new table; see the class for the arguments. Without ``idFactory`` ids count from 1."""
        return cls(schema, *factory, **kwargs) if factory or kwargs else cls(schema, IdFactory.makeSimple())

    @classmethod
    def makeMinimalSchema(cls) -> Schema:
        """Return a schema of id, coord_ra and coord_dec."""
        schema = Schema(_MINIMAL)
        schema.disconnectAliases()
        return schema

    @classmethod
    def checkSchema(cls, schema: Schema) -> bool:
        """Return whether a schema has the minimal fields."""
        return bool(schema.contains(cls.makeMinimalSchema()))

    @staticmethod
    def getIdKey() -> Any:
        """Return the key of the id."""
        return _ID_KEY

    @staticmethod
    def getCoordKey() -> CoordKey:
        """Return the key of the sky position."""
        return _COORD_KEY

    def getIdFactory(self) -> IdFactory | None:
        """Return what gives the ids of new records."""
        return self._id_factory

    def setIdFactory(self, idFactory: IdFactory | None) -> None:
        """Set what gives the ids of new records."""
        self._id_factory = idFactory

    def clone(self) -> Any:
        """Return an empty table with the same schema and metadata."""
        other = super().clone()
        if self._id_factory is not None:
            other._id_factory = self._id_factory.clone()
        return other

    def _assign_ids(self, block: Block, start: int, n: int) -> None:
        if self._id_factory is None:
            return
        ids = self._id_factory() if n == 1 else self._id_factory._many(n)
        block.column(_ID_KEY, start, start + n)[:] = ids


class SimpleColumnView(BaseColumnView):
    """Columns of a `SimpleCatalog`."""


class SimpleCatalog(BaseCatalog):
    """Catalogue of records with an id, which it sorts and searches by."""

    def isSorted(self, key: Any = None) -> bool:
        """Return whether records ascend in a column, by default the id."""
        return super().isSorted(self._sort_key(key))

    def sort(self, key: Any = None) -> None:
        """Sort by a column, by default the id."""
        super().sort(self._sort_key(key))

    def find(self, value: Any, key: Any = None) -> Any:
        """Return a record by its value in a sorted column, by default id."""
        return super().find(value, self._sort_key(key))

    @staticmethod
    def _sort_key(key: Any) -> Any:
        return Key["L"]._make(_ID_KEY.getOffset(), 1) if key is None else key


link_classes(SimpleRecord, SimpleTable, SimpleColumnView, SimpleCatalog)
Catalog.register("Simple", SimpleCatalog)
