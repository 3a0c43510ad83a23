# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fluxes of point sources."""

from __future__ import annotations

__all__ = ["PsfFluxAlgorithm", "PsfFluxControl"]

import logging
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ._algorithm import Control, SimpleAlgorithm, get_pixels
from ._exceptions import FatalAlgorithmError, PixelValueError
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import SafeCentroidExtractor
from ._results import FluxResult, FluxResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord

    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()


class PsfFluxControl(Control):
    """Settings of `PsfFluxAlgorithm`."""

    FIELDS: ClassVar = {
        "badMaskPlanes": (
            "std::vector<std::string>",
            "Mask planes that indicate pixels that should be excluded from the fit",
        )
    }

    badMaskPlanes: ClassVar[list[str]] = []


class PsfFluxAlgorithm(SimpleAlgorithm):
    """Least squares fit of the PSF, every pixel with the same weight.

    Parameters
    ----------
    ctrl : `PsfFluxControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    logName : `str`, optional
        Name of the log.
    """

    Control: ClassVar = PsfFluxControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()
    NO_GOOD_PIXELS: ClassVar = _FLAGS.add(
        "flag_noGoodPixels", "not enough non-rejected pixels in data to attempt the fit"
    )
    EDGE: ClassVar = _FLAGS.add(
        "flag_edge", "object was too close to the edge of the image to use the full PSF model"
    )

    def __init__(self, ctrl: PsfFluxControl, name: str, schema: Schema, logName: str = ""):
        self._ctrl = ctrl
        self._log = logging.getLogger(logName or name)
        self._key = FluxResultKey.addFields(
            schema, name, "instFlux derived from linear least-squares fit of PSF model"
        )
        self._area = schema.addField(name + "_area", type="F", doc="effective area of PSF", units="pixel")
        self._chi2 = schema.addField(name + "_chi2", type="F", doc="chi2 of the fitted PSF")
        self._n_pixels = schema.addField(
            name + "_npixels",
            type="I",
            doc="number of pixels that were included in the PSF fit",
            units="pixel",
        )
        self._centroid = SafeCentroidExtractor(schema, name)
        self._flags = FlagHandler.addFields(schema, name, _FLAGS)

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        psf = exposure.getPsf()
        if psf is None:
            self._log.error("PsfFlux: no psf attached to exposure")
            raise FatalAlgorithmError("PsfFlux algorithm requires a Psf with every exposure")
        position = self._centroid(measRecord, self._flags)
        psf_image = psf.computeImage(position)
        model = psf_image.array
        pixels = get_pixels(exposure)
        y0, x0 = psf_image.getY0() - pixels.y0, psf_image.getX0() - pixels.x0
        height, width = pixels.image.shape
        # What is on the image, counted from the corner of the PSF's image.
        y, x = (
            slice(max(-low, 0), max(min(size, full - low), 0))
            for low, size, full in ((y0, model.shape[0], height), (x0, model.shape[1], width))
        )
        model = model[y, x]
        if model.shape != psf_image.array.shape:
            self._flags.setValue(measRecord, self.FAILURE.number, True)
            self._flags.setValue(measRecord, self.EDGE.number, True)
        where = slice(y.start + y0, y.stop + y0), slice(x.start + x0, x.stop + x0)
        if model.size == 0:
            self._no_good_pixels(measRecord)
            return
        model = model.ravel()
        data = pixels.image[where].astype(np.float64).ravel()
        variance = pixels.variance[where].astype(np.float64).ravel()
        if self._ctrl.badMaskPlanes:
            bits = exposure.mask.getPlaneBitMask(self._ctrl.badMaskPlanes)
            good = (pixels.mask[where].ravel() & np.int32(bits)) == 0
            model, data, variance = model[good], data[good], variance[good]
            if model.size == 0:
                self._no_good_pixels(measRecord)
                return
        square = model * model
        alpha = float(model @ model)
        flux = float(model @ data) / alpha
        noise = float(square @ variance)
        error = math.sqrt(noise) / alpha if noise >= 0 else math.nan
        self._area.set(measRecord, float(model.sum()) ** 2 / alpha)
        self._n_pixels.set(measRecord, model.size)
        if not (math.isfinite(flux) and math.isfinite(error)):
            raise PixelValueError("Invalid pixel value detected in image.")
        self._key.set(measRecord, FluxResult(flux, error))
        residual = data - flux * model
        with np.errstate(divide="ignore", invalid="ignore"):
            self._chi2.set(measRecord, float((residual * residual / variance).sum()))

    def _no_good_pixels(self, record: SourceRecord) -> None:
        self._flags.setValue(record, self.NO_GOOD_PIXELS.number, True)
        self._flags.setValue(record, self.FAILURE.number, True)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._flags.handleFailure(measRecord, error)
