# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bits of the mask that sources have in their footprints and centres."""

from __future__ import annotations

__all__ = ["PixelFlagsAlgorithm", "PixelFlagsControl"]

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.pex.exceptions as pexExceptions

from ._algorithm import Control, SimpleAlgorithm
from ._exceptions import FatalAlgorithmError
from ._inputs import slot_keys

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord

    from ._batch import Batch
    from ._exceptions import MeasurementError

_PLANES = "List of mask planes to be searched for which occur "
_FOUND = "If any of the planes are found they will have a corresponding pixel flag set."

# Plane, name of the flag, and what it means: anywhere in the footprint.
_ANY = (
    ("EDGE", "edge", "Pixel in source outside usable exposure region (masked EDGE or centroid off image)."),
    ("NO_DATA", "nodata", "NO_DATA pixel in the source footprint."),
    ("INTRP", "interpolated", "Interpolated pixel in the Source footprint"),
    ("SAT", "saturated", "Saturated pixel in the Source footprint"),
    ("CR", "cr", "Cosmic ray in the Source footprint"),
    ("BAD", "bad", "Bad pixel in the Source footprint"),
    ("SUSPECT", "suspect", "Source's footprint includes suspect pixels"),
)
_AROUND = "in the 3x3 region around the centroid"
# In any of the central pixels.
_CENTER = (
    ("EDGE", "edgeCenter", f"EDGE pixel {_AROUND}."),
    ("NO_DATA", "nodataCenter", f"NO_DATA pixel {_AROUND}."),
    ("INTRP", "interpolatedCenter", f"Interpolated pixel {_AROUND}."),
    ("SAT", "saturatedCenter", f"Saturated pixel {_AROUND}."),
    ("CR", "crCenter", f"Cosmic ray {_AROUND}."),
    ("BAD", "badCenter", f"Bad pixel {_AROUND}"),
    ("SUSPECT", "suspectCenter", f"Suspect pixel {_AROUND}."),
)
# In all of the central pixels.
_CENTER_ALL = (
    ("EDGE", "edgeCenterAll", f"All pixels {_AROUND} are marked EDGE."),
    ("NO_DATA", "nodataCenterAll", f"All pixels {_AROUND} are marked NO_DATA"),
    ("INTRP", "interpolatedCenterAll", f"All pixels {_AROUND} are interpolated."),
    ("SAT", "saturatedCenterAll", f"All pixels {_AROUND} are saturated."),
    ("CR", "crCenterAll", f"All pixels {_AROUND} have the cosmic ray mask bit."),
    ("BAD", "badCenterAll", f"All pixels {_AROUND} are bad."),
    ("SUSPECT", "suspectCenterAll", f"All pixels {_AROUND} are suspect."),
)


class PixelFlagsControl(Control):
    """Settings of `PixelFlagsAlgorithm`."""

    FIELDS: ClassVar = {
        "masksFpCenter": ("std::vector<std::string>", f"{_PLANES}in the center of a footprint. {_FOUND}"),
        "masksFpAnywhere": ("std::vector<std::string>", f"{_PLANES}anywhere within a footprint. {_FOUND}"),
    }

    masksFpCenter: ClassVar[list[str]] = []
    masksFpAnywhere: ClassVar[list[str]] = []


class PixelFlagsAlgorithm(SimpleAlgorithm):
    """Flags that say which bits the pixels of a source have.

    Parameters
    ----------
    ctrl : `PixelFlagsControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    """

    Control: ClassVar = PixelFlagsControl

    def __init__(self, ctrl: PixelFlagsControl, name: str, schema: Schema):
        self._ctrl = ctrl

        def add(suffix: str, doc: str) -> Any:
            return schema.addField(f"{name}_flag{suffix}", type="Flag", doc=doc)

        self._failure = add("", "General failure flag, set if anything went wrong setting flags.")
        self._off_image = add("_offimage", "Source center is off image")
        self._any = {plane: add(f"_{flag}", doc) for plane, flag, doc in _ANY}
        self._center = {plane: add(f"_{flag}", doc) for plane, flag, doc in _CENTER}
        self._center_all = {plane: add(f"_{flag}", doc) for plane, flag, doc in _CENTER_ALL}
        for plane in ctrl.masksFpCenter:
            self._center[plane] = add(
                f"_{plane.lower()}Center", f"3x3 region around the centroid has {plane} pixels"
            )
        for plane in ctrl.masksFpCenter:
            self._center_all[plane] = add(
                f"_{plane.lower()}CenterAll",
                f"All pixels in the 3x3 region around the source centroid are {plane} pixels",
            )
        for plane in ctrl.masksFpAnywhere:
            self._any[plane] = add(f"_{plane.lower()}", f"Source footprint includes {plane} pixels")

    @staticmethod
    def _set(keys: dict[str, Any], bits: int, record: SourceRecord, mask: Any) -> None:
        try:
            for plane, key in keys.items():
                if bits & mask.getPlaneBitMask(plane):
                    key.set(record, True)
        except pexExceptions.InvalidParameterError as error:
            raise FatalAlgorithmError(str(error)) from error

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        mask = exposure.mask
        array, x0, y0 = mask.array, mask.getX0(), mask.getY0()
        height, width = array.shape
        footprint = measRecord.getFootprint()
        x_key, y_key = slot_keys(measRecord, "Centroid", ("x", "y"))
        if x_key is not None and y_key is not None:
            x, y = x_key.get(measRecord), y_key.get(measRecord)
        else:
            self._failure.set(measRecord, True)
            if footprint is None or len(footprint.getPeaks()) == 0:
                raise pexExceptions.RuntimeError("No footprint, or no footprint peaks detected")
            peak = footprint.getPeaks()[0]
            x, y = peak.getFx(), peak.getFy()
        # A box of pixels reaches half a pixel further on either side.
        if not (x0 - 0.5 <= x < x0 + width - 0.5 and y0 - 0.5 <= y < y0 + height - 0.5):
            self._off_image.set(measRecord, True)
            for keys in (self._any, self._center, self._center_all):
                keys["EDGE"].set(measRecord, True)
        if footprint is None:
            raise pexExceptions.RuntimeError(f"Source id {measRecord.getId()} has no footprint.")
        spans = footprint.getSpans()
        box = footprint.getBBox()
        if box.minX < x0 or box.minY < y0 or box.maxX >= x0 + width or box.maxY >= y0 + height:
            spans = spans.clippedTo(mask.getBBox())
        bits = int(np.bitwise_or.reduce(array[spans._pixels(x0, y0)]))
        self._set(self._any, bits, measRecord, mask)
        if not (math.isfinite(x) and math.isfinite(y)):
            raise pexExceptions.RuntimeError(
                f"Centroid of source id {measRecord.getId()} passed to PixelFlags is non-finite; "
                "footprint-based flags have been set, but centroid-based flags will not be."
            )
        column, row = math.floor(x + 0.5) - x0, math.floor(y + 0.5) - y0
        center = array[max(row - 1, 0) : max(row + 2, 0), max(column - 1, 0) : max(column + 2, 0)]
        self._set(self._center, int(np.bitwise_or.reduce(center, axis=None)), measRecord, mask)
        self._set(self._center_all, int(np.bitwise_and.reduce(center, axis=None)), measRecord, mask)

    def measureBatch(self, batch: Batch) -> list[int]:
        """Measure sources together; return those that were left out."""
        mask, array = batch.exposure.mask, batch.pixels.mask
        x_key, y_key = slot_keys(batch.records[0], "Centroid", ("x", "y"))
        groups = self._any, self._center, self._center_all
        # These two are those of the source that is in the image.
        if x_key is None or y_key is None or any({"THISDET", "OTHERDET"} & set(keys) for keys in groups):
            return batch.others()
        rows, corners, in_footprint = [], [], []
        for row in batch.chosen.tolist():
            x, y = x_key.get(batch.records[row]), y_key.get(batch.records[row])
            where = batch.footprint_pixels(row)
            if where is None or not (math.isfinite(x) and math.isfinite(y)):
                continue
            corner = math.floor(y + 0.5) - batch.pixels.y0 - 1, math.floor(x + 0.5) - batch.pixels.x0 - 1
            if min(corner) >= 0 and corner[0] + 3 <= array.shape[0] and corner[1] + 3 <= array.shape[1]:
                rows.append(row)
                corners.append(corner)
                in_footprint.append(int(np.bitwise_or.reduce(array[where])))
        center = batch.windows(array, *np.array(corners, int).reshape(-1, 2).T, (3, 3))
        bits = (
            np.array(in_footprint, int),
            np.bitwise_or.reduce(center, axis=(1, 2)),
            np.bitwise_and.reduce(center, axis=(1, 2)),
        )
        try:
            wanted = [mask.getPlaneBitMask(list(keys)) for keys in groups]
        except pexExceptions.InvalidParameterError as error:
            raise FatalAlgorithmError(str(error)) from error
        for keys, planes, found in zip(groups, wanted, bits, strict=True):
            for one in np.flatnonzero(found & planes).tolist():
                self._set(keys, int(found[one]), batch.records[rows[one]], mask)
        return batch.others(rows)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._failure.set(measRecord, True)
