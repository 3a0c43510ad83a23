# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records of sources: parents, footprints and slots.

A slot is an alias, such as ``slot_Centroid``, that names the algorithm whose
results count as the centroid (flux, shape, ...) of a source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import lsst.geom
import lsst.pex.exceptions as pexExceptions

from ._base import link_classes
from ._catalog import Catalog
from ._fields import Key
from ._functor_keys import CoordKey, CovarianceMatrix2fKey, CovarianceMatrix3fKey, Point2DKey, QuadrupoleKey
from ._schema import Schema
from ._simple import SimpleCatalog, SimpleColumnView, SimpleRecord, SimpleTable

if TYPE_CHECKING:
    from lsst.afw.geom import SkyWcs

__all__ = [
    "SOURCE_IO_NO_FOOTPRINTS",
    "SOURCE_IO_NO_HEAVY_FOOTPRINTS",
    "SourceCatalog",
    "SourceColumnView",
    "SourceRecord",
    "SourceTable",
    "updateSourceCoords",
]

SOURCE_IO_NO_FOOTPRINTS = 0x1
SOURCE_IO_NO_HEAVY_FOOTPRINTS = 0x2

_MINIMAL = SimpleTable.makeMinimalSchema()
_PARENT_KEY = _MINIMAL.addField("parent", type="L", doc="unique ID of parent source")

_FLUX_SLOTS = ("Psf", "Model", "Ap", "Gaussian", "Calib")


def _slot(table: Any, name: str) -> Any:
    """Return the key of a name that begins with a slot.

    Raises
    ------
    lsst.pex.exceptions.LogicError
        Raised if the slot is not defined.
    """
    key = table._slot_key(name)
    if key is None:
        raise pexExceptions.LogicError(
            "Key is not valid (if this is a SourceRecord, make sure slot aliases have been set up): "
            f"there is no field '{name}'."
        )
    return key


def _getter(name: str, doc: str) -> Callable[[SourceRecord], Any]:
    def get(self: SourceRecord) -> Any:
        return _slot(self._block.table, name).get(self)

    get.__doc__ = doc
    return get


def _column_getter(name: str, doc: str) -> Callable[[SourceColumnView], np.ndarray]:
    def get(self: SourceColumnView) -> np.ndarray:
        return self[_slot(self._table, name)]

    get.__doc__ = doc
    return get


class SlotDefinition:
    """What a slot stands for."""

    def __init__(self, table: SourceTable, name: str) -> None:
        self._table = table
        self._name = name

    def getName(self) -> str:
        """Return the name without "slot_"."""
        return self._name

    def getAlias(self) -> str:
        """Return the alias."""
        return f"slot_{self._name}"

    def _parts(self) -> tuple[Any, Any]:
        prefix = self._table._schema[self.getAlias()]
        if self._name.endswith("Flux"):
            return (lambda: prefix["instFlux"].asKey()), (lambda: prefix["instFluxErr"].asKey())
        if self._name == "Centroid":
            return (lambda: Point2DKey(prefix)), (lambda: CovarianceMatrix2fKey(prefix, ["x", "y"]))
        return (lambda: QuadrupoleKey(prefix)), (lambda: CovarianceMatrix3fKey(prefix, ["xx", "yy", "xy"]))

    def _empty(self) -> tuple[Any, Any]:
        if self._name.endswith("Flux"):
            return Key["D"](), Key["D"]()
        if self._name == "Centroid":
            return Point2DKey(), CovarianceMatrix2fKey()
        return QuadrupoleKey(), CovarianceMatrix3fKey()

    def getMeasKey(self) -> Any:
        """Return the key of the measurement, invalid if undefined."""
        try:
            return self._parts()[0]()
        except pexExceptions.NotFoundError:
            return self._empty()[0]

    def getErrKey(self) -> Any:
        """Return the key of the uncertainty, invalid if undefined."""
        try:
            return self._parts()[1]()
        except pexExceptions.NotFoundError:
            return self._empty()[1]

    def getFlagKey(self) -> Any:
        """Return the key of the flag, invalid if undefined."""
        key = self._table._slot_key(f"{self.getAlias()}_flag")
        return Key["Flag"]() if key is None else key

    def isValid(self) -> bool:
        """Return whether the slot is defined."""
        return self.getMeasKey().isValid()


class SourceRecord(SimpleRecord):
    """Record of a source: id, position, parent and footprint."""

    __slots__ = ()

    def getFootprint(self) -> Any:
        """Return the footprint, or None."""
        return self._block.attached.get(self._row)

    def setFootprint(self, footprint: Any) -> None:
        """Set the footprint; it is shared, not copied."""
        if footprint is None:
            self._block.attached.pop(self._row, None)
            return
        if not hasattr(footprint, "getSpans"):
            raise TypeError(f"setFootprint wants a Footprint or None, got {type(footprint).__name__}.")
        self._block.attached[self._row] = footprint

    def getParent(self) -> int:
        """Return the id of the parent, 0 for none."""
        return _PARENT_KEY.get(self)

    def setParent(self, id: int) -> None:
        """Set the id of the parent."""
        _PARENT_KEY.set(self, id)

    def getCentroid(self) -> lsst.geom.Point2D:
        """Return the centroid of the slot."""
        return Point2DKey(*(_slot(self._block.table, f"slot_Centroid_{part}") for part in "xy")).get(self)

    def getCentroidErr(self) -> np.ndarray:
        """Return the covariance matrix of the centroid."""
        return self._error(CovarianceMatrix2fKey, "slot_Centroid", ["x", "y"])

    def getShape(self) -> Any:
        """Return the moments of the shape slot."""
        return self._moments("slot_Shape")

    def getShapeErr(self) -> np.ndarray:
        """Return the covariance matrix of the moments."""
        return self._error(CovarianceMatrix3fKey, "slot_Shape", ["xx", "yy", "xy"])

    def getPsfShape(self) -> Any:
        """Return the moments of the PSF shape slot."""
        return self._moments("slot_PsfShape")

    def _moments(self, prefix: str) -> Any:
        table = self._block.table
        return QuadrupoleKey(*(_slot(table, f"{prefix}_{part}") for part in ("xx", "yy", "xy"))).get(self)

    def _error(self, cls: Any, prefix: str, names: list[str]) -> np.ndarray:
        table = self._block.table
        for name in names:
            _slot(table, f"{prefix}_{name}Err")
        return cls(table._schema[prefix], names).get(self)

    def updateCoord(self, wcs: SkyWcs, key: Any = None, include_covariance: bool = True) -> None:
        """Set the sky position from the pixel position.

        Parameters
        ----------
        wcs : `lsst.afw.geom.SkyWcs`
            Map from pixels to the sky.
        key : `Point2DKey`, optional
            Where the pixel position is; by default the centroid slot.
        include_covariance : `bool`, optional
            Set the uncertainties of the sky position too.
        """
        if isinstance(key, bool):
            key, include_covariance = None, key
        _update_coords(wcs, [self], key, include_covariance)


def updateSourceCoords(wcs: SkyWcs, sourceList: Any, include_covariance: bool = True) -> None:
    """Set the sky positions of sources from their pixel positions.

    Parameters
    ----------
    wcs : `lsst.afw.geom.SkyWcs`
        Map from pixels to the sky.
    sourceList : `SourceCatalog` or `list` [`SourceRecord`]
        The sources.
    include_covariance : `bool`, optional
        Set the uncertainties of the sky positions too.
    """
    _update_coords(wcs, list(sourceList), None, include_covariance)


def _update_coords(wcs: SkyWcs, records: list[SourceRecord], key: Any, include_covariance: bool) -> None:
    """Set the sky positions of records, which have one table, and the covariances of these.

    A covariance is J C J^T with the Jacobian J of the map, that of ra (times cos dec) and dec, in radians
    squared; C is that of x and y, in pixels squared.
    """
    if not records:
        return
    table = records[0]._block.table
    if key is None:
        key = Point2DKey(*(_slot(table, f"slot_Centroid_{part}") for part in "xy"))
    centers = [key.get(record) for record in records]
    x, y = np.array([(center.x, center.y) for center in centers]).T
    ra, dec = wcs.pixelToSkyArray(np.concatenate([x, x + 1, x]), np.concatenate([y, y, y + 1]))
    places = zip(ra.tolist(), dec.tolist(), strict=True)
    sky = [lsst.geom.SpherePoint(*place, lsst.geom.radians) for place in places]
    for record, place in zip(records, sky, strict=False):
        record.setCoord(place)
    if not include_covariance:
        return
    for part in "xy":
        _slot(table, f"slot_Centroid_{part}Err")
    error_key = CovarianceMatrix2fKey(table._schema["slot_Centroid"], ["x", "y"])
    sky_key = CoordKey.getErrorKey(table._schema)
    n = len(records)
    for record, place, *next_ones in zip(records, sky, sky[n:], sky[2 * n :], strict=False):
        error, covariance = error_key.get(record), np.full((2, 2), np.nan, dtype=np.float32)
        if np.isfinite(error).all():
            offsets = [place.getTangentPlaneOffset(one) for one in next_ones]
            jacobian = np.array([[v.asRadians() for v in pair] for pair in offsets]).T
            covariance = (jacobian @ error.astype(np.float64) @ jacobian.T).astype(np.float32)
        sky_key.set(record, covariance)


class SourceTable(SimpleTable):
    """Maker of source records; see `SimpleTable`."""

    _keeps_attached = True
    _fits_type = "SOURCE"

    @classmethod
    def makeMinimalSchema(cls) -> Schema:
        """Return a schema of id, coord_ra, coord_dec and parent."""
        schema = Schema(_MINIMAL)
        schema.disconnectAliases()
        return schema

    @staticmethod
    def getParentKey() -> Any:
        """Return the key of the parent's id."""
        return _PARENT_KEY


class SourceColumnView(SimpleColumnView):
    """Columns of a `SourceCatalog`, with those of the slots."""


class SourceCatalog(SimpleCatalog):
    """Catalogue of sources."""

    def getChildren(self, parent: Any, *args: Any) -> Any:
        """Return the sources that have a parent.

        Parameters
        ----------
        parent : `int` or iterable of `int`
            Id of the parent; of several, a generator is returned.
        *args : sequence
            Other catalogues or sequences to take the same slice of.

        Raises
        ------
        AssertionError
            Raised if the catalogue is not sorted by parent.
        """
        if not self.isSorted(_PARENT_KEY):
            raise AssertionError("The table is not sorted by parent, so cannot getChildren")

        def children(one: int) -> Any:
            found = self.equal_range(one, _PARENT_KEY)
            if args:
                return (self[found], *(arg[found] for arg in args))
            return self[found]

        try:
            return (children(one) for one in iter(parent))
        except TypeError:
            return children(parent)


def _define_slots() -> None:
    def add_definition(name: str) -> None:
        def define(self: SourceTable, name: str, _slot_name: str = name) -> None:
            self._schema.getAliasMap().set(f"slot_{_slot_name}", name)

        def get(self: SourceTable, _slot_name: str = name) -> SlotDefinition:
            return SlotDefinition(self, _slot_name)

        define.__doc__ = f"Let ``name`` be what slot_{name} stands for."
        get.__doc__ = f"Return what slot_{name} stands for."
        setattr(SourceTable, f"define{name}", define)
        if name != "PsfShape":
            setattr(SourceTable, f"get{name}Slot", get)

    for name in ("Centroid", "Shape", "PsfShape", *(f"{flux}Flux" for flux in _FLUX_SLOTS)):
        add_definition(name)

    fields = {
        "X": ("Centroid_x", "x of the centroid slot, in pixels"),
        "Y": ("Centroid_y", "y of the centroid slot, in pixels"),
        "Ixx": ("Shape_xx", "xx moment of the shape slot"),
        "Iyy": ("Shape_yy", "yy moment of the shape slot"),
        "Ixy": ("Shape_xy", "xy moment of the shape slot"),
        "PsfIxx": ("PsfShape_xx", "xx moment of the PSF shape slot"),
        "PsfIyy": ("PsfShape_yy", "yy moment of the PSF shape slot"),
        "PsfIxy": ("PsfShape_xy", "xy moment of the PSF shape slot"),
    }
    for flux in _FLUX_SLOTS:
        fields[f"{flux}InstFlux"] = (f"{flux}Flux_instFlux", f"flux of the {flux} slot, in counts")
        fields[f"{flux}InstFluxErr"] = (
            f"{flux}Flux_instFluxErr",
            f"uncertainty of the flux of the {flux} slot, in counts",
        )
    for method, (field, what) in fields.items():
        setattr(SourceRecord, f"get{method}", _getter(f"slot_{field}", f"Return the {what}."))
        setattr(SourceColumnView, f"get{method}", _column_getter(f"slot_{field}", f"Return the {what}."))
    flags = {"CentroidFlag": "Centroid", "ShapeFlag": "Shape", "PsfShapeFlag": "PsfShape"}
    flags |= {f"{flux}FluxFlag": f"{flux}Flux" for flux in _FLUX_SLOTS}
    for method, slot in flags.items():
        setattr(
            SourceRecord,
            f"get{method}",
            _getter(f"slot_{slot}_flag", f"Return whether the {slot} slot is flagged."),
        )


_define_slots()
link_classes(SourceRecord, SourceTable, SourceColumnView, SourceCatalog)
Catalog.register("Source", SourceCatalog)
