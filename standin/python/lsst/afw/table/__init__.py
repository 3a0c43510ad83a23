# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables of records: schemas, catalogues and their persistence."""

# The refusal comes before everything else.
# ruff: noqa: E402

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from . import _fields
from ._base import BaseRecord, BaseTable, link_classes
from ._catalog import BaseCatalog, BaseColumnView, BitsColumn, Catalog
from ._exposure import ExposureCatalog, ExposureColumnView, ExposureRecord, ExposureTable
from ._fields import Field, Key, SchemaItem
from ._functor_keys import (
    CELESTIAL,
    PIXEL,
    ArrayDKey,
    ArrayFKey,
    ArrayKey,
    Box2DKey,
    Box2IKey,
    CoordinateType,
    CoordKey,
    CovarianceMatrix2dKey,
    CovarianceMatrix2fKey,
    CovarianceMatrix3dKey,
    CovarianceMatrix3fKey,
    CovarianceMatrix4dKey,
    CovarianceMatrix4fKey,
    CovarianceMatrixKey,
    CovarianceMatrixXdKey,
    CovarianceMatrixXfKey,
    EllipseKey,
    Point2DKey,
    Point2IKey,
    PointKey,
    QuadrupoleKey,
)
from ._id_factory import IdFactory
from ._mapper import SchemaMapper
from ._schema import AliasMap, Schema, SubSchema, makeSchemaFromFields
from ._simple import SimpleCatalog, SimpleColumnView, SimpleRecord, SimpleTable
from ._source import (
    SOURCE_IO_NO_FOOTPRINTS,
    SOURCE_IO_NO_HEAVY_FOOTPRINTS,
    SourceCatalog,
    SourceColumnView,
    SourceRecord,
    SourceTable,
    updateSourceCoords,
)

__all__ = [
    "CELESTIAL",
    "PIXEL",
    "SOURCE_IO_NO_FOOTPRINTS",
    "SOURCE_IO_NO_HEAVY_FOOTPRINTS",
    "AliasMap",
    "ArrayDKey",
    "ArrayFKey",
    "ArrayKey",
    "BaseCatalog",
    "BaseColumnView",
    "BaseRecord",
    "BaseTable",
    "BitsColumn",
    "Box2DKey",
    "Box2IKey",
    "Catalog",
    "CoordKey",
    "CoordinateType",
    "CovarianceMatrix2dKey",
    "CovarianceMatrix2fKey",
    "CovarianceMatrix3dKey",
    "CovarianceMatrix3fKey",
    "CovarianceMatrix4dKey",
    "CovarianceMatrix4fKey",
    "CovarianceMatrixKey",
    "CovarianceMatrixXdKey",
    "CovarianceMatrixXfKey",
    "EllipseKey",
    "ExposureCatalog",
    "ExposureColumnView",
    "ExposureRecord",
    "ExposureTable",
    "Field",
    "IdFactory",
    "Key",
    "Point2DKey",
    "Point2IKey",
    "PointKey",
    "QuadrupoleKey",
    "Schema",
    "SchemaItem",
    "SchemaMapper",
    "SimpleCatalog",
    "SimpleColumnView",
    "SimpleRecord",
    "SimpleTable",
    "SourceCatalog",
    "SourceColumnView",
    "SourceRecord",
    "SourceTable",
    "SubSchema",
    "link_classes",
    "makeSchemaFromFields",
    "updateSourceCoords",
]

# The classes of the field types (KeyI, FieldFlag, SchemaItemArrayF, ...),
# which are made in a loop.
for _name in dir(_fields):
    if _name.startswith(("Key", "Field", "SchemaItem")) and _name not in __all__:
        globals()[_name] = getattr(_fields, _name)
        __all__ += [_name]
del _name
