# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What algorithms take from a record: position, shape, footprint."""

from __future__ import annotations

__all__ = ["CentroidChecker", "SafeCentroidExtractor", "SafeShapeExtractor"]

import math
from typing import TYPE_CHECKING, Any

import lsst.pex.exceptions as pexExceptions
from lsst.geom import Point2D, Point2I

from ._exceptions import FatalAlgorithmError, MeasurementError

if TYPE_CHECKING:
    from lsst.afw.table import Schema, SourceRecord

    from ._flag_handler import FlagHandler


def _slot_flag_name(schema: Schema, slot: str) -> tuple[str, bool]:
    """Return the name of the flag of a slot, and whether the slot is set.

    Aliases made of it keep pointing to the algorithm that was used, should
    somebody change the slots later.
    """
    alias = schema.join("slot", slot, "flag")
    name = schema.getAliasMap().apply(alias)
    return name, name != alias


def slot_keys(record: SourceRecord, slot: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the keys of parts of a slot, None for those without a column."""
    table = record._block.table
    return tuple(table._slot_key(f"slot_{slot}_{name}") for name in names)


class SafeCentroidExtractor:
    """Takes the position of a source, or that of its peak.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema; it gets an alias to the flag of the centroid.
    name : `str`
        Name of the algorithm that wants the position.
    isCentroider : `bool`, optional
        Whether the algorithm itself measures positions.

    Raises
    ------
    lsst.pex.exceptions.LogicError
        Raised if there is no centroid slot yet.
    """

    def __init__(self, schema: Schema, name: str, isCentroider: bool = False):
        self._name = name
        self._is_centroider = isCentroider
        target, defined = _slot_flag_name(schema, "Centroid")
        if isCentroider:
            if target != schema.join(name, "flag"):
                schema.getAliasMap().set(schema.join(name, "flag", "badInitialCentroid"), target)
            return
        if not defined:
            raise pexExceptions.LogicError(
                f"Alias for 'slot_Centroid_flag' must be defined before initializing '{name}' plugin."
            )
        schema.getAliasMap().set(schema.join(name, "flag", "badCentroid"), target)

    def __call__(self, record: SourceRecord, flags: FlagHandler) -> Point2D:
        """Return the position; the failure flag is set if it is doubtful.

        Parameters
        ----------
        record : `lsst.afw.table.SourceRecord`
            The source.
        flags : `FlagHandler`
            Flags of the algorithm.
        """
        position, doubtful = self.locate(record)
        if doubtful:
            flags.setValue(record, flags.getFailureFlagNumber(), True)
        return position

    def locate(self, record: SourceRecord) -> tuple[Point2D, bool]:
        """Return the position, and whether it is doubtful.

        Parameters
        ----------
        record : `lsst.afw.table.SourceRecord`
            The source.
        """
        x_key, y_key, flag_key = slot_keys(record, "Centroid", ("x", "y", "flag"))
        if x_key is None or y_key is None:
            if self._is_centroider:
                return self._peak(record), False
            raise FatalAlgorithmError(
                f"{self._name} requires a centroid, but the centroid slot is not defined"
            )
        x, y = x_key.get(record), y_key.get(record)
        flagged = flag_key is not None and flag_key.get(record)
        if not (math.isnan(x) or math.isnan(y)):
            return Point2D(x, y), flagged and not self._is_centroider
        if self._is_centroider:
            return self._peak(record), False
        if not flagged:
            reason = (
                "there is no Centroid slot flag" if flag_key is None else "the Centroid slot flag is not set"
            )
            raise pexExceptions.RuntimeError(
                f"{self._name}: Centroid slot value is NaN, but {reason} "
                f"(is the executionOrder for {self._name} lower than that of the slot Centroid?)"
            )
        return self._peak(record), True

    def _peak(self, record: SourceRecord) -> Point2D:
        footprint = record.getFootprint()
        if footprint is None:
            raise pexExceptions.RuntimeError(
                f"{self._name}: Centroid slot value is NaN, but no Footprint attached to record"
            )
        if len(footprint.getPeaks()) == 0:
            raise pexExceptions.RuntimeError(
                f"{self._name}: Centroid slot value is NaN, but Footprint has no Peaks"
            )
        peak = footprint.getPeaks()[0]
        return Point2D(peak.getFx(), peak.getFy())


class SafeShapeExtractor:
    """Takes the second moments of a source.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema; it gets an alias to the flag of the shape.
    name : `str`
        Name of the algorithm that wants the moments.

    Raises
    ------
    lsst.pex.exceptions.LogicError
        Raised if there is no shape slot yet.
    """

    def __init__(self, schema: Schema, name: str):
        self._name = name
        target, defined = _slot_flag_name(schema, "Shape")
        if not defined:
            raise pexExceptions.LogicError(
                f"Alias for 'slot_Shape_flag' must be defined before initializing '{name}' plugin."
            )
        schema.getAliasMap().set(schema.join(name, "flag", "badShape"), target)

    def __call__(self, record: SourceRecord, flags: FlagHandler) -> tuple[float, float, float]:
        """Return xx, yy and xy; the failure flag is set if doubtful.

        Parameters
        ----------
        record : `lsst.afw.table.SourceRecord`
            The source.
        flags : `FlagHandler`
            Flags of the algorithm.

        Raises
        ------
        MeasurementError
            Raised if the shape was not measured.
        """
        *keys, flag_key = slot_keys(record, "Shape", ("xx", "yy", "xy", "flag"))
        if None in keys:
            raise FatalAlgorithmError(f"{self._name} requires a shape, but the shape slot is not defined")
        xx, yy, xy = (key.get(record) for key in keys)
        flagged = flag_key is not None and flag_key.get(record)
        # Singular moments, but for rounding, are as bad as none.
        if math.isnan(xx) or math.isnan(yy) or math.isnan(xy) or xx * yy < (1.0 + 1.0e-6) * xy * xy:
            if not flagged:
                reason = (
                    "there is no Shape slot flag" if flag_key is None else "the Shape slot flag is not set"
                )
                raise pexExceptions.RuntimeError(
                    f"{self._name}: Shape slot value is NaN, but {reason} "
                    f"(is the executionOrder for {self._name} lower than that of the slot Shape?)"
                )
            raise MeasurementError(
                f"{self._name}: Shape needed, and Shape slot measurement failed.",
                flags.getFailureFlagNumber(),
            )
        if flagged:
            flags.setValue(record, flags.getFailureFlagNumber(), True)
        return xx, yy, xy


class CentroidChecker:
    """Puts a centroid that strayed back to the peak.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema; it gets the flags of the check.
    inputName : `str`
        Name of the algorithm that measured the centroid.
    doFootprintCheck : `bool`, optional
        Whether the centroid must be inside the footprint.
    maxDistFromPeak : `float`, optional
        The most pixels from the peak; any number of them if not positive.
    """

    def __init__(
        self,
        schema: Schema,
        inputName: str,
        doFootprintCheck: bool = True,
        maxDistFromPeak: float = -1.0,
    ):
        self._do_footprint_check = doFootprintCheck
        self._max_distance = maxDistFromPeak
        self._reset = schema.addField(
            schema.join(inputName, "flag_resetToPeak"),
            type="Flag",
            doc="set if CentroidChecker reset the centroid",
        )
        self._failure = schema.find(schema.join(inputName, "flag")).key
        self._x = schema.find(schema.join(inputName, "x")).key
        self._y = schema.find(schema.join(inputName, "y")).key
        names = [schema.join(inputName, f"{axis}Err") for axis in "xy"]
        self._errors = [schema.find(name).key for name in names if name in schema]
        if self._errors:
            self._bad_error = schema.addField(
                schema.join(inputName, "flag_badError"),
                type="Flag",
                doc="Error on x and/or y position is NaN",
            )

    def __call__(self, record: SourceRecord) -> bool:
        """Check a source and tell whether its centroid was reset."""
        x, y = self._x.get(record), self._y.get(record)
        if any(math.isnan(key.get(record)) for key in self._errors):
            self._bad_error.set(record, True)
            self._failure.set(record, True)
        if not self._do_footprint_check and self._max_distance < 0.0:
            return False
        footprint = record.getFootprint()
        if footprint is None:
            raise pexExceptions.RuntimeError("No Footprint attached to record")
        if len(footprint.getPeaks()) == 0:
            raise pexExceptions.RuntimeError("Footprint has no peaks; cannot verify centroid.")
        peak = footprint.getPeaks()[0]
        peak_x, peak_y = peak.getFx(), peak.getFy()
        strayed = 0 < self._max_distance < math.hypot(x - peak_x, y - peak_y)
        if self._do_footprint_check and not strayed:
            finite = math.isfinite(x) and math.isfinite(y)
            strayed = not (finite and footprint.contains(Point2I(math.floor(x + 0.5), math.floor(y + 0.5))))
        if strayed:
            self._x.set(record, peak_x)
            self._y.set(record, peak_y)
            self._failure.set(record, True)
            self._reset.set(record, True)
        return strayed
