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
from ._batch import dot, parts
from ._exceptions import FatalAlgorithmError, PixelValueError
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import SafeCentroidExtractor
from ._results import FluxResult, FluxResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord

    from ._batch import Batch
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
        flux, error, area, chi2 = map(float, _fit(model, data, variance))
        self._area.set(measRecord, area)
        self._n_pixels.set(measRecord, model.size)
        if not (math.isfinite(flux) and math.isfinite(error)):
            raise PixelValueError("Invalid pixel value detected in image.")
        self._key.set(measRecord, FluxResult(flux, error))
        self._chi2.set(measRecord, chi2)

    def measureBatch(self, batch: Batch) -> list[int]:
        """Measure sources together; return those that were left out."""
        psf = batch.exposure.getPsf()
        rows, x, y, _ = batch.locate(self._centroid, self._flags)
        made = None if psf is None or self._ctrl.badMaskPlanes else psf._imagesAt(x, y)
        if made is None:
            return batch.others()
        models, y0, x0 = made
        shape = models.shape[1:]
        y0, x0 = y0 - batch.pixels.y0, x0 - batch.pixels.x0
        inside = batch.fits(y0, x0, shape)
        done = [rows[:0]]
        for part in parts(np.flatnonzero(inside)):
            stamps = batch.stamps(rows[part], y0[part], x0[part], shape)
            variance = batch.windows(batch.pixels.variance, y0[part], x0[part], shape)
            model, data, variance = (
                plane.reshape(part.size, -1).astype(np.float64) for plane in (models[part], stamps, variance)
            )
            flux, error, area, chi2 = _fit(model, data, variance)
            good = np.isfinite(flux) & np.isfinite(error)
            done.append(rows[part[good]])
            instFlux, instFluxErr = self._key.getInstFlux(), self._key.getInstFluxErr()
            for key, values in (
                (instFlux, flux), (instFluxErr, error), (self._area, area), (self._chi2, chi2)
            ):  # fmt: skip
                batch.put(done[-1], key, values[good])
            batch.put(done[-1], self._n_pixels, np.full(good.sum(), model.shape[1]))
        return batch.others(np.concatenate(done))

    def _no_good_pixels(self, record: SourceRecord) -> None:
        self._flags.setValue(record, self.NO_GOOD_PIXELS.number, True)
        self._flags.setValue(record, self.FAILURE.number, True)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._flags.handleFailure(measRecord, error)


def _fit(model: np.ndarray, data: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fit PSFs to pixels, (N, k) or one of (k,); return flux, error, effective area and chi2."""
    alpha = dot(model, model)
    with np.errstate(all="ignore"):
        flux = dot(model, data) / alpha
        error = np.sqrt(dot(model * model, variance)) / alpha
        residual = data - flux[..., None] * model
        chi2 = (residual * residual / variance).sum(axis=-1)
        return flux, error, model.sum(axis=-1) ** 2 / alpha, chi2
