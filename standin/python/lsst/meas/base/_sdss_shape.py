# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Adaptive moments of sources and of the PSF."""

from __future__ import annotations

__all__ = ["SdssShapeAlgorithm", "SdssShapeControl", "SdssShapeResult", "SdssShapeResultKey"]

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.pex.exceptions as pexExceptions
from lsst.afw.geom.ellipses import Quadrupole
from lsst.afw.table import QuadrupoleKey
from lsst.geom import Point2D

from ._algorithm import Control, SimpleAlgorithm, is_negative
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import SafeCentroidExtractor
from ._moments import Moments, adaptive_moments, adaptive_moments_batch, fixed_moments_flux
from ._results import NO_UNCERTAINTY, SIGMA_ONLY, CentroidResultKey, FluxResult, FluxResultKey, ShapeResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import BaseRecord, Schema, SourceRecord

    from ._batch import Batch
    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()


class SdssShapeControl(Control):
    """Settings of `SdssShapeAlgorithm`."""

    FIELDS: ClassVar = {
        "background": ("double", "Additional value to add to background"),
        "maxIter": ("int", "Maximum number of iterations"),
        "maxShift": ("double", "Maximum centroid shift, limited to 2-10"),
        "tol1": ("float", "Convergence tolerance for e1,e2"),
        "tol2": ("float", "Convergence tolerance for FWHM"),
        "doMeasurePsf": ("bool", "Whether to also compute the shape of the PSF model"),
    }

    background = 0.0
    maxIter = 100
    maxShift = 0.0
    tol1 = float(np.float32(1e-5))
    tol2 = float(np.float32(1e-4))
    doMeasurePsf = True


@dataclasses.dataclass
class SdssShapeResult:
    """Moments, centroid and flux of a source, with their uncertainties."""

    xx: float = math.nan
    yy: float = math.nan
    xy: float = math.nan
    xxErr: float = math.nan
    yyErr: float = math.nan
    xyErr: float = math.nan
    x: float = math.nan
    y: float = math.nan
    instFlux: float = math.nan
    instFluxErr: float = math.nan
    instFlux_xx_Cov: float = math.nan
    instFlux_yy_Cov: float = math.nan
    instFlux_xy_Cov: float = math.nan
    flags: list[bool] = dataclasses.field(default_factory=lambda: [False] * len(_FLAGS))

    def getShape(self) -> Quadrupole:
        """Return the moments."""
        return Quadrupole(self.xx, self.yy, self.xy)

    def getCentroid(self) -> Point2D:
        """Return the centroid."""
        return Point2D(self.x, self.y)

    def getFlag(self, index: int | str) -> bool:
        """Return a flag by number or name."""
        return self.flags[_FLAGS.getDefinition(index).number]


class SdssShapeResultKey:
    """Columns of an `SdssShapeResult`; `addFields` makes it."""

    @staticmethod
    def addFields(schema: Schema, name: str, doMeasurePsf: bool) -> SdssShapeResultKey:
        """Add the columns to a schema and return their key."""
        key = SdssShapeResultKey()
        doc = "elliptical Gaussian adaptive moments"
        key._parts = [
            ShapeResultKey.addFields(schema, name, doc, SIGMA_ONLY),
            CentroidResultKey.addFields(schema, name, doc, NO_UNCERTAINTY),
            FluxResultKey.addFields(schema, name, doc),
        ]
        key._psf = None
        if doMeasurePsf:
            key._psf = QuadrupoleKey.addFields(
                schema, schema.join(name, "psf"), "adaptive moments of the PSF model at the object position"
            )
        flux = schema.join(name, "instFlux")
        key._covariances = []
        for moment in ("xx", "yy", "xy"):
            field = schema.addField(
                schema.join(name, "instFlux", moment, "Cov"),
                type="F",
                doc=f"uncertainty covariance between {flux} and {schema.join(name, moment)}",
                units="count*pixel^2",
            )
            key._covariances.append((field, f"instFlux_{moment}_Cov"))
        excluded = FlagDefinitionList(() if doMeasurePsf else [SdssShapeAlgorithm.PSF_SHAPE_BAD])
        key._flag_handler = FlagHandler.addFields(schema, name, _FLAGS, excluded)
        return key

    _parts: list[Any]
    _psf: QuadrupoleKey | None
    _covariances: list[tuple[Any, str]]
    _flag_handler: FlagHandler

    def set(self, record: BaseRecord, value: SdssShapeResult) -> None:
        """Write a result to a record, all its flags too."""
        for part in self._parts:
            part.set(record, value)
        for key, name in self._covariances:
            key.set(record, getattr(value, name))
        for number, flag in enumerate(value.flags):
            if number != SdssShapeAlgorithm.PSF_SHAPE_BAD.number or self._psf is not None:
                self._flag_handler.setValue(record, number, flag)

    def setPsfShape(self, record: BaseRecord, value: Quadrupole) -> None:
        """Write the moments of the PSF."""
        if self._psf is None:
            raise pexExceptions.LogicError("There are no columns for the shape of the PSF.")
        self._psf.set(record, value)

    def getFlagHandler(self) -> FlagHandler:
        """Return the keys of the flags."""
        return self._flag_handler


class SdssShapeAlgorithm(SimpleAlgorithm):
    """Second moments with a Gaussian weight that adapts to the source.

    Parameters
    ----------
    ctrl : `SdssShapeControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    """

    Control: ClassVar = SdssShapeControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()
    UNWEIGHTED_BAD: ClassVar = _FLAGS.add(
        "flag_unweightedBad", "Both weighted and unweighted moments were invalid"
    )
    UNWEIGHTED: ClassVar = _FLAGS.add(
        "flag_unweighted", "Weighted moments converged to an invalid value; using unweighted moments"
    )
    SHIFT: ClassVar = _FLAGS.add("flag_shift", "centroid shifted by more than the maximum allowed amount")
    MAXITER: ClassVar = _FLAGS.add("flag_maxIter", "Too many iterations in adaptive moments")
    PSF_SHAPE_BAD: ClassVar = _FLAGS.add("flag_psf", "Failure in measuring PSF model shape")

    def __init__(self, ctrl: SdssShapeControl, name: str, schema: Schema):
        self._ctrl = ctrl
        self._key = SdssShapeResultKey.addFields(schema, name, ctrl.doMeasurePsf)
        self._centroid = SafeCentroidExtractor(schema, name)

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    @staticmethod
    def computeAdaptiveMoments(
        image: Any, position: Point2D, negative: bool = False, ctrl: SdssShapeControl | None = None
    ) -> SdssShapeResult:
        """Measure the adaptive moments of an object in an image.

        Parameters
        ----------
        image : `lsst.afw.image.Image` or `lsst.afw.image.MaskedImage`
            Image; there are uncertainties if it has a variance.
        position : `lsst.geom.Point2D`
            Position in the parent's coordinates.
        negative : `bool`, optional
            The object is a hole.
        ctrl : `SdssShapeControl`, optional
            Settings.

        Returns
        -------
        result : `SdssShapeResult`
            The result.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Raised if the moments are singular though nothing failed.
        """
        masked = hasattr(image, "variance")
        array = image.image.array if masked else image.array
        return _measure(
            array,
            image.variance.array if masked else None,
            image.getX0(),
            image.getY0(),
            position,
            negative,
            SdssShapeControl() if ctrl is None else ctrl,
        )

    @staticmethod
    def computeFixedMomentsFlux(image: Any, shape: Quadrupole, position: Point2D) -> FluxResult:
        """Measure the flux with a Gaussian weight of a given shape.

        Parameters
        ----------
        image : `lsst.afw.image.MaskedImage`
            Image.
        shape : `lsst.afw.geom.ellipses.Quadrupole`
            Moments of the weight.
        position : `lsst.geom.Point2D`
            Position in the parent's coordinates.
        """
        flux, error = fixed_moments_flux(
            image.image.array,
            image.variance.array,
            position.getX() - image.getX0(),
            position.getY() - image.getY0(),
            (shape.getIxx(), shape.getIyy(), shape.getIxy()),
        )
        return FluxResult(flux, error)

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        center = self._centroid(measRecord, self._key.getFlagHandler())
        image = exposure.image
        result = _measure(
            image.array,
            exposure.variance.array,
            image.getX0(),
            image.getY0(),
            center,
            is_negative(measRecord),
            self._ctrl,
        )
        self._write(measRecord, exposure, result)

    def measureBatch(self, batch: Batch) -> list[int]:
        """Measure sources together; return those that were left out."""
        rows, x, y, _ = batch.locate(self._centroid, self._key.getFlagHandler())
        rows, x, y = (each[[not is_negative(batch.records[row]) for row in rows]] for each in (rows, x, y))
        if self._ctrl.background:
            return batch.others()
        x0, y0 = batch.pixels.x0, batch.pixels.y0
        found = adaptive_moments_batch(
            batch,
            rows,
            x - x0,
            y - y0,
            max_iter=self._ctrl.maxIter,
            max_shift=self._ctrl.maxShift,
            tolerances=(self._ctrl.tol1, self._ctrl.tol2),
        )
        done = []
        for row, moments in found.items():
            # Singular ones are measured on their own, which says so.
            if moments.bad or not _is_singular(moments):
                self._write(batch.records[row], batch.exposure, _result(moments, x0, y0))
                done.append(row)
        return batch.others(done)

    def _write(self, record: SourceRecord, exposure: ExposureF, result: SdssShapeResult) -> None:
        if self._ctrl.doMeasurePsf:
            psf = exposure.getPsf()
            bad = psf is None
            if psf is not None:
                try:
                    self._key.setPsfShape(record, psf.computeShape(result.getCentroid()))
                except pexExceptions.Exception:
                    bad = True
            if bad:
                result.flags[self.PSF_SHAPE_BAD.number] = True
        self._key.set(record, result)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._key.getFlagHandler().handleFailure(measRecord, error)


def _measure(
    array: np.ndarray,
    variance: np.ndarray | None,
    x0: int,
    y0: int,
    position: Point2D,
    negative: bool,
    ctrl: SdssShapeControl,
) -> SdssShapeResult:
    moments = adaptive_moments(
        array,
        position.getX() - x0,
        position.getY() - y0,
        variance,
        background=ctrl.background,
        max_iter=ctrl.maxIter,
        max_shift=ctrl.maxShift,
        tolerances=(ctrl.tol1, ctrl.tol2),
        negative=negative,
    )
    return _result(moments, x0, y0)


def _result(moments: Moments, x0: int, y0: int) -> SdssShapeResult:
    """Make the result of moments that were measured on an array with this origin."""
    # In the order in which the flags are defined.
    flags = [moments.bad, moments.unweighted_bad, moments.unweighted, moments.shift, moments.max_iter, False]
    xx, yy, xy = moments.xx, moments.yy, moments.xy
    if _is_singular(moments) and not moments.bad:
        raise pexExceptions.LogicError(
            f"The adaptive moments xx={xx}, yy={yy}, xy={xy} are singular without any flag set."
        )
    det = xx * yy - xy * xy
    # From the peak of a Gaussian to its integral.
    scale = 2 * math.pi * math.sqrt(det) if det >= 0 else math.nan
    result = SdssShapeResult(xx, yy, xy, flags=flags)
    result.x, result.y = moments.x + x0, moments.y + y0
    result.instFlux = moments.amplitude * scale
    if moments.covariance is not None:
        covariance = moments.covariance
        with np.errstate(invalid="ignore"):
            sigma = np.sqrt(np.diagonal(covariance)).tolist()
        result.instFluxErr = sigma[0] * scale
        result.xxErr, result.yyErr, result.xyErr = sigma[1:]
        result.instFlux_xx_Cov, result.instFlux_yy_Cov, result.instFlux_xy_Cov = (
            covariance[0, 1:] * scale
        ).tolist()
    return result


def _is_singular(moments: Moments) -> bool:
    return moments.xx * moments.yy < (1.0 + 1.0e-6) * moments.xy * moments.xy
