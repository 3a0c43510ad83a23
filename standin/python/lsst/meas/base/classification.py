# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars and galaxies told apart by their fluxes."""

from __future__ import annotations

__all__ = ("CatalogCalculationClassificationConfig", "CatalogCalculationClassificationPlugin")

import math
from typing import TYPE_CHECKING, Any, ClassVar

from lsst.pex.config import Field

from .catalogCalculation import CatalogCalculationPlugin, CatalogCalculationPluginConfig
from .pluginRegistry import register

if TYPE_CHECKING:
    from lsst.afw.table import Schema, SourceRecord

    from ._exceptions import MeasurementError


class CatalogCalculationClassificationConfig(CatalogCalculationPluginConfig):
    """Settings of `CatalogCalculationClassificationPlugin`."""

    fluxRatio = Field[float](default=0.95, optional=True, doc="critical ratio of model to psf flux")
    modelErrFactor = Field[float](default=0.0, optional=True, doc="correction factor for modelFlux error")
    psfErrFactor = Field[float](default=0.0, optional=True, doc="correction factor for psfFlux error")


@register("base_ClassificationExtendedness")
class CatalogCalculationClassificationPlugin(CatalogCalculationPlugin):
    """1 for sources whose model flux is well above the PSF flux, else 0.

    Both are the fluxes of the slots.

    Parameters
    ----------
    config : `CatalogCalculationClassificationConfig`
        Settings.
    name : `str`
        Name by which the plugin is registered.
    schema : `lsst.afw.table.Schema`
        Schema; gets the plugin's fields.
    metadata : `lsst.daf.base.PropertySet`
        Not used.
    """

    ConfigClass: ClassVar[Any] = CatalogCalculationClassificationConfig

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run: after all measurements."""
        return cls.DEFAULT_CATALOGCALCULATION

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name, schema, metadata)
        self.keyProbability = schema.addField(
            name + "_value", type="D", doc="Set to 1 for extended sources, 0 for point sources."
        )
        self.keyFlag = schema.addField(name + "_flag", type="Flag", doc="Set to 1 for any fatal failure.")

    def calculate(self, measRecord: Any) -> None:  # type: ignore[override]
        """Tell whether a source is extended.

        Parameters
        ----------
        measRecord : `lsst.afw.table.SourceRecord`
            The source.
        """
        table = measRecord.table
        model, psf = measRecord.getModelInstFlux(), measRecord.getPsfInstFlux()
        flagged = (table.getModelFluxSlot().isValid() and measRecord.getModelFluxFlag()) or (
            table.getPsfFluxSlot().isValid() and measRecord.getPsfFluxFlag()
        )
        flux1, flux2 = self.config.fluxRatio * model, psf
        if self.config.modelErrFactor != 0:
            flux1 += self.config.modelErrFactor * measRecord.getModelInstFluxErr()
        if self.config.psfErrFactor != 0:
            flux2 += self.config.psfErrFactor * measRecord.getPsfInstFluxErr()
        if flagged or math.isnan(flux1) or math.isnan(flux2):
            self.fail(measRecord)
        else:
            measRecord.set(self.keyProbability, 0.0 if flux1 < flux2 else 1.0)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flag."""
        measRecord.set(self.keyFlag, True)
