# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plugins that measure at a position, for new sources and for those of a reference catalogue alike."""

from __future__ import annotations

__all__ = (
    "ForcedInputCountPlugin",
    "ForcedVariancePlugin",
    "GenericPlugin",
    "InputCountConfig",
    "InputCountPlugin",
    "SingleFrameInputCountPlugin",
    "SingleFrameVariancePlugin",
    "VarianceConfig",
    "VariancePlugin",
)

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.afw.detection
import lsst.afw.geom
from lsst.pex.config import Field, ListField

from ._exceptions import MeasurementError
from .baseMeasurement import BaseMeasurementPluginConfig
from .forcedMeasurement import ForcedPlugin, ForcedPluginConfig
from .pluginRegistry import register
from .pluginsBase import BasePlugin
from .sfm import SingleFramePlugin, SingleFramePluginConfig

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord
    from lsst.geom import Point2D


class GenericPlugin:
    """What measures at a position.

    Parameters
    ----------
    config, name, schema, metadata
        See `SingleFramePlugin`.
    """

    ConfigClass: ClassVar[Any] = None

    FAILURE_BAD_CENTROID = 1
    """Bit of the error of a position that is not finite."""

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        self.config = config
        self._failKey = schema.addField(name + "_flag", type="Flag", doc="Set for any fatal failure")
        # The alias could be changed after the measurement.
        schema.getAliasMap().set(
            name + "_flag_badCentroid", schema.getAliasMap().apply("slot_Centroid_flag")
        )

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return BasePlugin.SHAPE_ORDER

    def measure(self, measRecord: SourceRecord, exposure: ExposureF, center: Point2D) -> None:
        """Measure at a position."""
        raise NotImplementedError()

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flag of a failure."""
        measRecord.set(self._failKey, True)

    @classmethod
    def makeSingleFramePlugin(cls, name: str) -> Any:
        """Make the plugin for new sources, and register it."""
        generic = cls
        bases = cls.ConfigClass, SingleFramePluginConfig
        config = type(f"SingleFrame{cls.ConfigClass.__name__}", bases, {})

        @register(name)
        class SingleFrameFromGenericPlugin(SingleFramePlugin):
            ConfigClass: ClassVar[Any] = config

            def __init__(self, config: Any, name: str, schema: Schema, metadata: Any, logName: Any = None):
                super().__init__(config, name, schema, metadata)
                self._generic = generic(config, name, schema, metadata)

            @classmethod
            def getExecutionOrder(cls) -> float:
                return generic.getExecutionOrder()

            def measure(self, measRecord: Any, exposure: Any) -> None:
                self._generic.measure(measRecord, exposure, measRecord.getCentroid())

            def fail(self, measRecord: Any, error: MeasurementError | None = None) -> None:
                self._generic.fail(measRecord, error)

        return SingleFrameFromGenericPlugin

    @classmethod
    def makeForcedPlugin(cls, name: str) -> Any:
        """Make the plugin for sources of a reference catalogue, and register it."""
        generic = cls
        config = type(f"Forced{cls.ConfigClass.__name__}", (cls.ConfigClass, ForcedPluginConfig), {})

        @register(name)
        class ForcedFromGenericPlugin(ForcedPlugin):
            ConfigClass: ClassVar[Any] = config

            def __init__(self, config: Any, name: str, schemaMapper: Any, metadata: Any, logName: Any = None):
                super().__init__(config, name, schemaMapper, metadata)
                self._generic = generic(config, name, schemaMapper.editOutputSchema(), metadata)

            @classmethod
            def getExecutionOrder(cls) -> float:
                return generic.getExecutionOrder()

            def measure(self, measRecord: Any, exposure: Any, refRecord: Any, refWcs: Any) -> None:
                self._generic.measure(measRecord, exposure, measRecord.getCentroid())

            def fail(self, measRecord: Any, error: MeasurementError | None = None) -> None:
                self._generic.fail(measRecord, error)

        return ForcedFromGenericPlugin


class InputCountConfig(BaseMeasurementPluginConfig):
    """Settings of `InputCountPlugin`."""


class InputCountPlugin(GenericPlugin):
    """Number of images in a coadd that cover a position."""

    ConfigClass = InputCountConfig

    FAILURE_NO_INPUTS = 2
    """Bit of the error of an exposure without CoaddInputs."""

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name, schema, metadata)
        self.numberKey = schema.addField(
            name + "_value",
            type="I",
            doc="Number of images contributing at center, not including anyclipping",
        )
        self.noInputsFlag = schema.addField(
            name + "_flag_noInputs", type="Flag", doc="No coadd inputs available"
        )

    def measure(self, measRecord: SourceRecord, exposure: ExposureF, center: Point2D) -> None:
        """Count at a position."""
        inputs = exposure.getInfo().getCoaddInputs()
        if not inputs:
            raise MeasurementError("No coadd inputs defined.", self.FAILURE_NO_INPUTS)
        if not np.isfinite([center.getX(), center.getY()]).all():
            raise MeasurementError("Source has a bad centroid.", self.FAILURE_BAD_CENTROID)
        measRecord.set(self.numberKey, len(inputs.subset_containing_ccds(center, exposure.getWcs())))

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flags of a failure."""
        if error is not None and error.getFlagBit() == self.FAILURE_NO_INPUTS:
            measRecord.set(self.noInputsFlag, True)
        super().fail(measRecord, error)


class VarianceConfig(BaseMeasurementPluginConfig):
    """Settings of `VariancePlugin`."""

    scale: Field = Field(
        dtype=float, default=5.0, optional=True, doc="Scale factor to apply to shape for aperture"
    )
    mask: ListField = ListField(
        doc="Mask planes to ignore", dtype=str, default=["DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT"]
    )


class VariancePlugin(GenericPlugin):
    """Median variance of the background around a source."""

    ConfigClass = VarianceConfig

    FAILURE_EMPTY_FOOTPRINT = 2
    """Bit of the error of a place without usable pixels."""

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return BasePlugin.FLUX_ORDER

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name, schema, metadata)
        self.varValue = schema.addField(name + "_value", type="D", doc="Variance at object position")
        self.emptyFootprintFlag = schema.addField(
            name + "_flag_emptyFootprint",
            type="Flag",
            doc="Set to True when the footprint has no usable pixels",
        )

    def measure(self, measRecord: SourceRecord, exposure: ExposureF, center: Point2D) -> None:
        """Measure around a source."""
        center = measRecord.getCentroid()
        if not np.isfinite([center.getX(), center.getY()]).all():
            raise MeasurementError("Bad centroid and/or shape", self.FAILURE_BAD_CENTROID)
        aperture = lsst.afw.geom.Ellipse(measRecord.getShape(), center)
        aperture.scale(self.config.scale)
        spans = lsst.afw.geom.SpanSet.fromShape(aperture).clippedTo(exposure.getBBox())
        image, origin = exposure.getMaskedImage(), exposure.getXY0()
        ignored = image.mask.getPlaneBitMask(list(self.config.mask))
        good = (spans.flatten(image.mask.array, origin) & ignored) == 0
        if not good.any():
            message = "Footprint empty, or all pixels are masked, can't compute median"
            raise MeasurementError(message, self.FAILURE_EMPTY_FOOTPRINT)
        variance = np.asarray(spans.flatten(image.variance.array, origin))
        measRecord.set(self.varValue, float(np.median(variance[good])))

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flags of a failure."""
        if isinstance(error, MeasurementError) and error.getFlagBit() == self.FAILURE_EMPTY_FOOTPRINT:
            measRecord.set(self.emptyFootprintFlag, True)
        measRecord.set(self.varValue, np.nan)
        super().fail(measRecord, error)


SingleFrameInputCountPlugin = InputCountPlugin.makeSingleFramePlugin("base_InputCount")
ForcedInputCountPlugin = InputCountPlugin.makeForcedPlugin("base_InputCount")
SingleFrameVariancePlugin = VariancePlugin.makeSingleFramePlugin("base_Variance")
ForcedVariancePlugin = VariancePlugin.makeForcedPlugin("base_Variance")
