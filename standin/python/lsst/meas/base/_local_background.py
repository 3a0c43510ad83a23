# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backgrounds in rings about sources."""

from __future__ import annotations

__all__ = ["LocalBackgroundAlgorithm", "LocalBackgroundControl"]

import logging
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lsst.afw.math import MEANCLIP, STDEVCLIP, StatisticsControl, makeStatistics

from ._algorithm import Control, SimpleAlgorithm, ellipse_rows, get_pixels
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import SafeCentroidExtractor
from ._results import FluxResult, FluxResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord

    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()


class LocalBackgroundControl(Control):
    """Settings of `LocalBackgroundAlgorithm`."""

    FIELDS: ClassVar = {
        "badMaskPlanes": (
            "std::vector<std::string>",
            "Mask planes that indicate pixels that should be excluded from the measurement",
        ),
        "annulusInner": ("float", "Inner radius for background annulus as a multiple of the PSF sigma"),
        "annulusOuter": ("float", "Outer radius for background annulus as a multiple of the PSF sigma"),
        "bgRej": ("float", "Rejection threshold (in standard deviations) for background measurement"),
        "bgIter": ("int", "Number of sigma-clipping iterations for background measurement"),
    }

    # Not DETECTED, which would leave nothing on top of something extended.
    badMaskPlanes: ClassVar[list[str]] = ["BAD", "SAT", "NO_DATA"]
    annulusInner = 7.0
    annulusOuter = 15.0
    bgRej = 3.0
    bgIter = 3


class LocalBackgroundAlgorithm(SimpleAlgorithm):
    """Clipped mean of the pixels in a ring, per pixel.

    Parameters
    ----------
    ctrl : `LocalBackgroundControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    logName : `str`, optional
        Name of the log.
    """

    Control: ClassVar = LocalBackgroundControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()
    NO_GOOD_PIXELS: ClassVar = _FLAGS.add("flag_noGoodPixels", "no good pixels in the annulus")
    NO_PSF: ClassVar = _FLAGS.add("flag_noPsf", "no PSF provided")

    def __init__(self, ctrl: LocalBackgroundControl, name: str, schema: Schema, logName: str = ""):
        self._ctrl = ctrl
        self._log = logging.getLogger(logName or name)
        self._key = FluxResultKey.addFields(schema, name, "background in annulus around source")
        self._flags = FlagHandler.addFields(schema, name, _FLAGS)
        self._centroid = SafeCentroidExtractor(schema, name)
        self._statistics = StatisticsControl(ctrl.bgRej, ctrl.bgIter)

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        center = self._centroid(measRecord, self._flags)
        bad = np.int32(exposure.mask.getPlaneBitMask(self._ctrl.badMaskPlanes))
        psf = exposure.getPsf()
        if psf is None:
            self._flags.setValue(measRecord, self.NO_PSF.number, True)
            self._flags.setValue(measRecord, self.FAILURE.number, True)
            return
        sigma = float(np.float32(psf.computeShape(center).getDeterminantRadius()))
        pixels = get_pixels(exposure)
        x, y = center.getX() - pixels.x0, center.getY() - pixels.y0
        height, width = pixels.image.shape
        outer = float(np.float32(self._ctrl.annulusOuter * sigma)) ** 2
        rows, first, last, _ = ellipse_rows(outer, outer, 0.0, x, y)
        on_image = (rows >= 0) & (rows < height) & (last >= 0) & (first < width)
        rows, first, last = rows[on_image], np.maximum(first[on_image], 0), last[on_image]
        last = np.minimum(last, width - 1)
        if rows.size:
            where = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(first.min()), int(last.max()) + 1)
            columns = np.arange(where[1].start, where[1].stop)
            ring = (columns >= first[:, None]) & (columns <= last[:, None])
            inner = float(np.float32(self._ctrl.annulusInner * sigma)) ** 2
            hole, begin, end, _ = ellipse_rows(inner, inner, 0.0, x, y)
            used = (hole >= rows[0]) & (hole <= rows[-1])
            hole, begin, end = hole[used], begin[used, None], end[used, None]
            ring[hole - rows[0]] &= (columns < begin) | (columns > end)
            ring &= (pixels.mask[where] & bad) == 0
            values = pixels.image[where][ring]
        else:
            values = np.empty(0, np.float32)
        if values.size == 0:
            self._flags.setValue(measRecord, self.NO_GOOD_PIXELS.number, True)
            self._flags.setValue(measRecord, self.FAILURE.number, True)
            return
        result = makeStatistics(values, MEANCLIP | STDEVCLIP, self._statistics)
        self._key.set(measRecord, FluxResult(result.getValue(MEANCLIP), result.getValue(STDEVCLIP)))

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._flags.handleFailure(measRecord, error)
