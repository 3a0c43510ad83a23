# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Classes of numbers that algorithms measure, and their columns."""

from __future__ import annotations

__all__ = [
    "FULL_COVARIANCE",
    "NO_UNCERTAINTY",
    "SIGMA_ONLY",
    "CentroidResult",
    "CentroidResultKey",
    "FluxResult",
    "FluxResultKey",
    "ShapeResult",
    "ShapeResultKey",
    "UncertaintyEnum",
]

import dataclasses
import enum
import math
from typing import TYPE_CHECKING, Any

from lsst.afw.geom.ellipses import Quadrupole
from lsst.afw.table import Point2DKey, QuadrupoleKey
from lsst.geom import Point2D

if TYPE_CHECKING:
    from lsst.afw.table import BaseRecord, Schema


class UncertaintyEnum(enum.Enum):
    """Which uncertainties an algorithm gives."""

    NO_UNCERTAINTY = 0
    SIGMA_ONLY = 1
    FULL_COVARIANCE = 2


NO_UNCERTAINTY = UncertaintyEnum.NO_UNCERTAINTY
SIGMA_ONLY = UncertaintyEnum.SIGMA_ONLY
FULL_COVARIANCE = UncertaintyEnum.FULL_COVARIANCE


class _ResultKey:
    """Columns of some of the attributes of a result."""

    def __init__(self) -> None:
        self._columns: tuple[tuple[Any, str], ...] = ()

    def isValid(self) -> bool:
        """Tell whether the columns are there."""
        return bool(self._columns) and all(key.isValid() for key, _ in self._columns)

    def set(self, record: BaseRecord, value: Any) -> None:
        """Write a result to a record."""
        for key, name in self._columns:
            key.set(record, getattr(value, name))

    def _fill(self, record: BaseRecord, value: Any) -> Any:
        for key, name in self._columns:
            setattr(value, name, key.get(record))
        return value


@dataclasses.dataclass
class FluxResult:
    """A flux and its uncertainty, in counts."""

    instFlux: float = math.nan
    instFluxErr: float = math.nan


class FluxResultKey(_ResultKey):
    """Columns of a `FluxResult`."""

    @staticmethod
    def addFields(schema: Schema, name: str, doc: str) -> FluxResultKey:
        """Add the columns to a schema and return their key."""
        result = FluxResultKey()
        flux = schema.addField(schema.join(name, "instFlux"), type="D", doc=doc, units="count")
        error = schema.addField(
            schema.join(name, "instFluxErr"), type="D", doc="1-sigma instFlux uncertainty", units="count"
        )
        result._columns = ((flux, "instFlux"), (error, "instFluxErr"))
        return result

    def get(self, record: BaseRecord) -> FluxResult:
        """Read a result from a record."""
        return self._fill(record, FluxResult())

    def getInstFlux(self) -> Any:
        """Return the key of the flux."""
        return self._columns[0][0]

    def getInstFluxErr(self) -> Any:
        """Return the key of the uncertainty."""
        return self._columns[1][0]


@dataclasses.dataclass
class CentroidResult:
    """A position and its uncertainties, in pixels."""

    x: float = math.nan
    y: float = math.nan
    xErr: float = math.nan
    yErr: float = math.nan

    def getCentroid(self) -> Point2D:
        """Return the position."""
        return Point2D(self.x, self.y)


class CentroidResultKey(_ResultKey):
    """Columns of a `CentroidResult`."""

    @staticmethod
    def addFields(
        schema: Schema, name: str, doc: str, uncertainty: UncertaintyEnum = SIGMA_ONLY
    ) -> CentroidResultKey:
        """Add the columns to a schema and return their key."""
        if uncertainty is FULL_COVARIANCE:
            raise NotImplementedError("Centroids with covariances are not in this subset.")
        result = CentroidResultKey()
        point = Point2DKey.addFields(schema, name, doc, "pixel")
        columns = [(point.getX(), "x"), (point.getY(), "y")]
        if uncertainty is not NO_UNCERTAINTY:
            for axis in "xy":
                error = schema.addField(
                    schema.join(name, f"{axis}Err"),
                    type="F",
                    doc=f"1-sigma uncertainty on {axis} position",
                    units="pixel",
                )
                columns.append((error, f"{axis}Err"))
        result._columns = tuple(columns)
        return result

    def get(self, record: BaseRecord) -> CentroidResult:
        """Read a result from a record."""
        return self._fill(record, CentroidResult())


@dataclasses.dataclass
class ShapeResult:
    """Second moments and their uncertainties, in pixels squared."""

    xx: float = math.nan
    yy: float = math.nan
    xy: float = math.nan
    xxErr: float = math.nan
    yyErr: float = math.nan
    xyErr: float = math.nan

    def getShape(self) -> Quadrupole:
        """Return the moments."""
        return Quadrupole(self.xx, self.yy, self.xy)


class ShapeResultKey(_ResultKey):
    """Columns of a `ShapeResult`."""

    @staticmethod
    def addFields(
        schema: Schema, name: str, doc: str, uncertainty: UncertaintyEnum = SIGMA_ONLY
    ) -> ShapeResultKey:
        """Add the columns to a schema and return their key."""
        if uncertainty is FULL_COVARIANCE:
            raise NotImplementedError("Shapes with covariances are not in this subset.")
        result = ShapeResultKey()
        moments = QuadrupoleKey.addFields(schema, name, doc)
        columns = [(moments.getIxx(), "xx"), (moments.getIyy(), "yy"), (moments.getIxy(), "xy")]
        if uncertainty is not NO_UNCERTAINTY:
            for axes in ("xx", "yy", "xy"):
                error = schema.addField(
                    schema.join(name, f"{axes}Err"),
                    type="F",
                    doc=f"Standard deviation of {axes} moment",
                    units="pixel^2",
                )
                columns.append((error, f"{axes}Err"))
        result._columns = tuple(columns)
        return result

    def get(self, record: BaseRecord) -> ShapeResult:
        """Read a result from a record."""
        return self._fill(record, ShapeResult())
