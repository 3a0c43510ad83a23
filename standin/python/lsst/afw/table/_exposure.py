# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records of the images that went into a coadd, with their WCS, PSF, and so on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lsst.geom
import lsst.pex.exceptions as pexExceptions

from ._base import BaseTable, link_classes
from ._catalog import BaseCatalog, BaseColumnView, Catalog
from ._functor_keys import Box2IKey
from ._mapper import SchemaMapper
from ._schema import Schema
from ._simple import IdRecord

if TYPE_CHECKING:
    from .io import InputArchive, OutputArchiveHandle

__all__ = ["ExposureCatalog", "ExposureColumnView", "ExposureRecord", "ExposureTable"]

_MINIMAL = Schema()
_ID_KEY = _MINIMAL.addField("id", type="L", doc="unique ID")
_BBOX_KEY = Box2IKey.addFields(_MINIMAL, "bbox", "bounding box", "pixel")

# Names of the columns of archives, classes in their descriptions.
_COMPONENTS = {
    "wcs": "Wcs",
    "psf": "Psf",
    "photoCalib": "PhotoCalib",
    "apCorrMap": "ApCorrMap",
    "validPolygon": "Polygon",
    "visitInfo": "VisitInfo",
    "transmissionCurve": "TransmissionCurve",
    "detector": "Detector",
}


def _accessors(name: str) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    def get(self: ExposureRecord) -> Any:
        return self._block.attached.get(self._row, {}).get(name)

    def set_(self: ExposureRecord, value: Any) -> None:
        # A new dictionary: copies of the record keep the old one.
        self._block.attached[self._row] = {**self._block.attached.get(self._row, {}), name: value}

    get.__doc__ = f"Return the {name} of the image, or `None`."
    set_.__doc__ = f"Set the {name} of the image."
    return get, set_


class ExposureRecord(IdRecord):
    """Record of an image: its id, its box, and objects such as its WCS."""

    __slots__ = ()

    def getBBox(self) -> lsst.geom.Box2I:
        """Return the box of the image."""
        return _BBOX_KEY.get(self)

    def setBBox(self, bbox: lsst.geom.Box2I) -> None:
        """Set the box of the image."""
        _BBOX_KEY.set(self, bbox)

    def contains(self, place: Any, *args: Any, includeValidPolygon: bool = False) -> bool:
        """Tell whether a place is on the image.

        Parameters
        ----------
        place : `lsst.geom.SpherePoint` or `lsst.geom.Point2D`
            The place; a point is followed by its WCS.
        *args
            The WCS of a point, and ``includeValidPolygon``.
        includeValidPolygon : `bool`
            Must it be in the valid polygon, if there is one?
        """
        rest = list(args)
        if isinstance(place, lsst.geom.Point2D):
            place = rest.pop(0).pixelToSky(place)
        within = rest.pop(0) if rest else includeValidPolygon
        objects = self._block.attached.get(self._row, {})
        wcs, polygon = objects.get("wcs"), objects.get("validPolygon")
        if wcs is None:
            raise pexExceptions.LogicError("ExposureRecord does not have a Wcs; cannot call contains()")
        point = wcs.skyToPixel(place)
        inside = lsst.geom.Box2D(self.getBBox()).contains(point)
        return bool(inside and (not within or polygon is None or polygon.contains(point)))


for _name in _COMPONENTS:
    setattr(ExposureRecord, _name, property(*_accessors(_name)))
    for _verb, _method in zip(("get", "set"), _accessors(_name), strict=True):
        _method.__name__ = f"{_verb}{_name[0].upper()}{_name[1:]}"
        setattr(ExposureRecord, _method.__name__, _method)


class ExposureTable(BaseTable):
    """Maker of records of images.

    Parameters
    ----------
    schema : `Schema`
        Schema that begins with that of `makeMinimalSchema`.
    """

    _keeps_attached = True
    _fits_type = None

    def __init__(self, schema: Schema) -> None:
        if not self.checkSchema(schema):
            raise pexExceptions.InvalidParameterError(
                "Schema for Exposure must contain at least the keys defined by makeMinimalSchema()."
            )
        super().__init__(schema)

    @classmethod
    def makeMinimalSchema(cls) -> Schema:
        """Return a schema of id and bbox."""
        schema = Schema(_MINIMAL)
        schema.disconnectAliases()
        return schema

    @classmethod
    def checkSchema(cls, schema: Schema) -> bool:
        """Return whether a schema has the minimal fields."""
        return bool(schema.contains(_MINIMAL))

    @staticmethod
    def getIdKey() -> Any:
        """Return the key of the id."""
        return _ID_KEY

    @staticmethod
    def getBBoxKey() -> Box2IKey:
        """Return the key of the box."""
        return _BBOX_KEY


class ExposureColumnView(BaseColumnView):
    """Columns of an `ExposureCatalog`."""


class ExposureCatalog(BaseCatalog):
    """Catalogue of images; it is in files as a part of other objects alone."""

    def isSorted(self, key: Any = None) -> bool:
        """Return whether records ascend in a column, by default the id."""
        return super().isSorted(_ID_KEY if key is None else key)

    def sort(self, key: Any = None) -> None:
        """Sort by a column, by default the id."""
        super().sort(_ID_KEY if key is None else key)

    def find(self, value: Any, key: Any = None) -> Any:
        """Return a record by its value in a sorted column, by default id."""
        return super().find(value, _ID_KEY if key is None else key)

    def subsetContaining(self, *args: Any, includeValidPolygon: bool = False) -> Any:
        """Return the images that a place is on; see `ExposureRecord.contains` for the arguments."""
        chosen = type(self)(self.getTable())
        for record in self:
            if record.contains(*args, includeValidPolygon=includeValidPolygon):
                chosen.append(record)
        return chosen

    def writeToArchive(self, handle: OutputArchiveHandle, permissive: bool = False) -> None:
        """Save the catalogue and its objects as a part of another object."""
        mapper = SchemaMapper.join([_archive_schema(), self.schema])[-1]
        catalog = handle.makeCatalog(mapper.getOutputSchema())
        for record in self:
            row = catalog.addNew()
            row.assign(record, mapper)
            for name, value in (self._objects(record)).items():
                row[name] = handle.put(value, permissive)
        handle.saveCatalog(catalog)

    @classmethod
    def readFromArchive(cls, archive: InputArchive, catalog: BaseCatalog) -> Any:
        """Read what `writeToArchive` has saved."""
        names = [name for name in _COMPONENTS if name in catalog.schema]
        mapper = SchemaMapper.removeMinimalSchema(catalog.schema, _archive_schema(names))
        found = cls(mapper.getOutputSchema())
        for row in catalog:
            record = found.addNew()
            record.assign(row, mapper)
            record._block.attached[record._row] = {name: archive.get(int(row[name])) for name in names}
        return found

    @staticmethod
    def _objects(record: ExposureRecord) -> dict[str, Any]:
        return {name: record._block.attached.get(record._row, {}).get(name) for name in _COMPONENTS}


def _archive_schema(names: Any = _COMPONENTS) -> Schema:
    schema = Schema()
    for name in names:
        schema.addField(name, type="I", doc=f"archive ID for {_COMPONENTS[name]} object")
    return schema


link_classes(ExposureRecord, ExposureTable, ExposureColumnView, ExposureCatalog)
Catalog.register("Exposure", ExposureCatalog)
