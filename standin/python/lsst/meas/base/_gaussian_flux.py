# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fluxes with a Gaussian weight of the shape of the source."""

from __future__ import annotations

__all__ = ["GaussianFluxAlgorithm", "GaussianFluxControl"]

from typing import TYPE_CHECKING, ClassVar

from ._algorithm import Control, SimpleAlgorithm
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import SafeCentroidExtractor, SafeShapeExtractor
from ._moments import fixed_moments_flux
from ._results import FluxResult, FluxResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord

    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()


class GaussianFluxControl(Control):
    """Settings of `GaussianFluxAlgorithm`."""

    FIELDS: ClassVar = {"background": ("double", "FIXME! NEVER DOCUMENTED!")}

    background = 0.0


class GaussianFluxAlgorithm(SimpleAlgorithm):
    """Flux of a Gaussian that has the moments of the shape slot.

    Parameters
    ----------
    ctrl : `GaussianFluxControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    """

    Control: ClassVar = GaussianFluxControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()

    def __init__(self, ctrl: GaussianFluxControl, name: str, schema: Schema):
        self._ctrl = ctrl
        self._key = FluxResultKey.addFields(schema, name, "instFlux from Gaussian Flux algorithm")
        self._centroid = SafeCentroidExtractor(schema, name)
        self._shape = SafeShapeExtractor(schema, name)
        self._flags = FlagHandler.addFields(schema, name, _FLAGS)

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        center = self._centroid(measRecord, self._flags)
        moments = self._shape(measRecord, self._flags)
        image = exposure.image
        flux, error = fixed_moments_flux(
            image.array,
            exposure.variance.array,
            center.getX() - image.getX0(),
            center.getY() - image.getY0(),
            moments,
        )
        self._key.set(measRecord, FluxResult(flux, error))
        # Upstream forgets what the extractors said about their inputs.
        self._flags.setValue(measRecord, self.FAILURE.number, False)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._flags.handleFailure(measRecord, error)
