# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Persistence of span sets, whole columns at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._catalog import BaseCatalog
from .._schema import Schema
from ._archive import InputArchive, OutputArchiveHandle, register_factory, register_writer


def _span_schema() -> tuple[Schema, tuple[Any, Any, Any]]:
    schema = Schema()
    docs = (
        ("y", "The row of the span"),
        ("x0", "First column of span (inclusive)"),
        ("x1", "Second column of span (inclusive)"),
    )
    y, x0, x1 = (schema.addField(name, type="I", doc=doc, units="pixel") for name, doc in docs)
    return schema, (y, x0, x1)


_SPAN_SCHEMA, _SPAN_KEYS = _span_schema()


def write_span_set(spans: Any, handle: OutputArchiveHandle) -> None:
    """Save a `lsst.afw.geom.SpanSet`."""
    catalog = handle.makeCatalog(_SPAN_SCHEMA)
    n = len(spans._y)
    if n:
        catalog.resize(n)
        columns = catalog.columns
        for key, values in zip(_SPAN_KEYS, (spans._y, spans._x0, spans._x1), strict=True):
            columns[key] = values
    handle.saveCatalog(catalog)


def read_span_set(archive: InputArchive, catalogs: list[BaseCatalog]) -> Any:
    """Rebuild a `lsst.afw.geom.SpanSet`."""
    from lsst.afw.geom import SpanSet

    catalog = catalogs[0]
    if catalog._block is None:
        return SpanSet()
    y, x0, x1 = (np.array(catalog._block.column(key, catalog._start, catalog._stop)) for key in _SPAN_KEYS)
    return SpanSet._from_arrays(y, x0, x1)


register_writer("SpanSet", "lsst.afw.geom", write_span_set)
register_factory("SpanSet", read_span_set)
