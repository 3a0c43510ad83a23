# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the classes of this package are saved in archives."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from lsst.afw.table import Schema
from lsst.afw.table.io import register_factory
from lsst.afw.table.io._archive import register_writer
from lsst.geom import Point2D

from ._persist import wcs_from_archive_string, wcs_from_old_records
from ._sky_wcs import SkyWcs
from .polygon import Polygon

__all__: list[str] = []

_LOG = logging.getLogger(__name__)


def _write_wcs(wcs: SkyWcs, handle: Any) -> None:
    schema = Schema()
    texts = {"wcs": wcs.writeString()}
    schema.addField("wcs", type="ArrayB", doc="wcs string representation", size=0)
    approximation = wcs.getFitsApproximation()
    if approximation is not None:
        doc = "wcs string representation of FITS approximation"
        schema.addField("approx", type="ArrayB", doc=doc, size=0)
        texts["approx"] = approximation.writeString()
    catalog = handle.makeCatalog(schema)
    record = catalog.addNew()
    for name, text in texts.items():
        record.set(name, np.frombuffer(text.encode("ascii"), dtype=np.uint8).copy())
    handle.saveCatalog(catalog)


def _read_wcs(archive: Any, catalogs: list[Any]) -> SkyWcs | None:
    try:
        return _rebuild_wcs(catalogs[0][0])
    except TypeError as error:
        # The pixels are of use without sky coordinates.
        _LOG.warning("Cannot read a SkyWcs; it is left out. %s", error)
        return None


def _rebuild_wcs(record: Any) -> SkyWcs:
    wcs = wcs_from_archive_string(np.asarray(record["wcs"], dtype=np.uint8).tobytes())
    if "approx" in record.schema.getNames() and len(record["approx"]):
        text = np.asarray(record["approx"], dtype=np.uint8).tobytes()
        wcs = wcs.copyWithFitsApproximation(wcs_from_archive_string(text))
    return wcs


def _read_old_wcs(archive: Any, catalogs: list[Any]) -> SkyWcs:
    records = [{name: c[0][name] for name in c.schema.getNames()} for c in catalogs]
    return wcs_from_old_records(*records[:2])


def _write_polygon(polygon: Polygon, handle: Any) -> None:
    schema = Schema()
    keys = [
        schema.addField(f"vertices_{axis}", type=np.float64, doc="list of vertex points") for axis in "xy"
    ]
    catalog = handle.makeCatalog(schema)
    for point in polygon.getVertices():
        record = catalog.addNew()
        for key, value in zip(keys, point, strict=True):
            record.set(key, value)
    handle.saveCatalog(catalog)


def _read_polygon(archive: Any, catalogs: list[Any]) -> Polygon:
    return Polygon([Point2D(r["vertices_x"], r["vertices_y"]) for r in catalogs[0]])


register_writer("SkyWcs", "lsst.afw.geom", _write_wcs)
register_factory("SkyWcs", _read_wcs)
register_factory("TanWcs", _read_old_wcs)
register_factory("Wcs", _read_old_wcs)
register_writer("Polygon", "", _write_polygon)
register_factory("Polygon", _read_polygon)
