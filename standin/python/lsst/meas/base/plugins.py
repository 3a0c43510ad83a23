# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plugins."""

from __future__ import annotations

__all__ = (
    "ForcedPeakCentroidConfig",
    "ForcedPeakCentroidPlugin",
    "ForcedTransformedCentroidConfig",
    "ForcedTransformedCentroidPlugin",
    "ForcedTransformedShapeConfig",
    "ForcedTransformedShapePlugin",
    "SingleFrameClassificationSizeExtendednessConfig",
    "SingleFrameClassificationSizeExtendednessPlugin",
    "SingleFramePeakCentroidConfig",
    "SingleFramePeakCentroidPlugin",
    "SingleFrameSkyCoordConfig",
    "SingleFrameSkyCoordPlugin",
)

import math
from typing import TYPE_CHECKING, Any, ClassVar

import lsst.afw.geom
from lsst.afw.table import CoordKey, Point2DKey, QuadrupoleKey, updateSourceCoords
from lsst.geom import Point2D
from lsst.pex.config import Field

from ._aperture_flux import ApertureFluxControl, CircularApertureFluxAlgorithm
from ._blendedness import BlendednessAlgorithm, BlendednessControl
from ._exceptions import MeasurementError
from ._gaussian_flux import GaussianFluxAlgorithm, GaussianFluxControl
from ._local_background import LocalBackgroundAlgorithm, LocalBackgroundControl
from ._pixel_flags import PixelFlagsAlgorithm, PixelFlagsControl
from ._psf_flux import PsfFluxAlgorithm, PsfFluxControl
from ._sdss_centroid import SdssCentroidAlgorithm, SdssCentroidControl
from ._sdss_shape import SdssShapeAlgorithm, SdssShapeControl
from .forcedMeasurement import ForcedPlugin, ForcedPluginConfig
from .pluginRegistry import register
from .pluginsBase import BasePlugin
from .sfm import SingleFramePlugin, SingleFramePluginConfig
from .wrappers import wrapSimpleAlgorithm

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SchemaMapper, SourceRecord

    from ._batch import Batch

wrapSimpleAlgorithm(
    PsfFluxAlgorithm,
    Control=PsfFluxControl,
    executionOrder=BasePlugin.FLUX_ORDER,
    shouldApCorr=True,
    hasLogName=True,
)
wrapSimpleAlgorithm(
    GaussianFluxAlgorithm,
    Control=GaussianFluxControl,
    executionOrder=BasePlugin.FLUX_ORDER,
    shouldApCorr=True,
)
wrapSimpleAlgorithm(
    SdssCentroidAlgorithm, Control=SdssCentroidControl, executionOrder=BasePlugin.CENTROID_ORDER
)
wrapSimpleAlgorithm(PixelFlagsAlgorithm, Control=PixelFlagsControl, executionOrder=BasePlugin.FLUX_ORDER)
wrapSimpleAlgorithm(SdssShapeAlgorithm, Control=SdssShapeControl, executionOrder=BasePlugin.SHAPE_ORDER)
wrapSimpleAlgorithm(
    CircularApertureFluxAlgorithm,
    needsMetadata=True,
    Control=ApertureFluxControl,
    executionOrder=BasePlugin.FLUX_ORDER,
)
wrapSimpleAlgorithm(BlendednessAlgorithm, Control=BlendednessControl, executionOrder=BasePlugin.SHAPE_ORDER)
wrapSimpleAlgorithm(
    LocalBackgroundAlgorithm, Control=LocalBackgroundControl, executionOrder=BasePlugin.FLUX_ORDER
)


class SingleFramePeakCentroidConfig(SingleFramePluginConfig):
    """Settings of `SingleFramePeakCentroidPlugin`."""


@register("base_PeakCentroid")
class SingleFramePeakCentroidPlugin(SingleFramePlugin):
    """Position of the first peak of the footprint.

    Parameters
    ----------
    config, name, schema, metadata
        See `SingleFramePlugin`.
    """

    ConfigClass: ClassVar[Any] = SingleFramePeakCentroidConfig
    needs_pixels = False

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return cls.CENTROID_ORDER

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name, schema, metadata)
        self.keyX = schema.addField(name + "_x", type="D", doc="peak centroid", units="pixel")
        self.keyY = schema.addField(name + "_y", type="D", doc="peak centroid", units="pixel")
        self.flag = schema.addField(name + "_flag", type="Flag", doc="Centroiding failed")

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        """Measure a source."""
        peak = measRecord.getFootprint().getPeaks()[0]
        measRecord.set(self.keyX, peak.getFx())
        measRecord.set(self.keyY, peak.getFy())

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flag of a failure."""
        measRecord.set(self.flag, True)


class SingleFrameSkyCoordConfig(SingleFramePluginConfig):
    """Settings of `SingleFrameSkyCoordPlugin`."""


@register("base_SkyCoord")
class SingleFrameSkyCoordPlugin(SingleFramePlugin):
    """Sky position of the centroid, with uncertainties.

    Parameters
    ----------
    config, name, schema, metadata
        See `SingleFramePlugin`.
    """

    ConfigClass: ClassVar[Any] = SingleFrameSkyCoordConfig
    needs_pixels = False

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return cls.SHAPE_ORDER

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name, schema, metadata)
        if "coord_raErr" not in schema:
            CoordKey.addErrorFields(schema)

    def measure(self, measRecord: Any, exposure: Any) -> None:
        """Measure a source."""
        if not exposure.hasWcs():
            raise RuntimeError(f"Wcs not attached to exposure.  Required for {self.name} algorithm")
        measRecord.updateCoord(exposure.getWcs())

    def measureBatch(self, batch: Batch) -> list[int]:
        """Measure sources together; return those that were left out."""
        if not batch.exposure.hasWcs():
            return batch.others()
        updateSourceCoords(batch.exposure.getWcs(), [batch.records[row] for row in batch.chosen])
        return []

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Do nothing: there is no flag."""


class SingleFrameClassificationSizeExtendednessConfig(SingleFramePluginConfig):
    """Settings of `SingleFrameClassificationSizeExtendednessPlugin`."""

    exponent = Field[float](
        doc="Exponent to raise the PSF size squared (Ixx + Iyy) to, in the likelihood normalization",
        default=0.5,
    )


@register("base_ClassificationSizeExtendedness")
class SingleFrameClassificationSizeExtendednessPlugin(SingleFramePlugin):
    """How much larger a source is than the PSF.

    ``1 - exp(-chi^2 / 2)`` with ``chi = (T - T_psf) / T_psf^exponent`` and T
    the sum of the moments xx and yy.

    Parameters
    ----------
    config, name, schema, metadata
        See `SingleFramePlugin`.
    """

    ConfigClass: ClassVar[Any] = SingleFrameClassificationSizeExtendednessConfig
    needs_pixels = False

    FAILURE_BAD_SHAPE: ClassVar[int] = 1

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return cls.FLUX_ORDER

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name, schema, metadata)
        self.key = schema.addField(
            name + "_value", type="D", doc="Measure of being a galaxy based on trace of second order moments"
        )
        self.flag = schema.addField(name + "_flag", type="Flag", doc="Moments-based classification failed")

    def measure(self, measRecord: Any, exposure: Any) -> None:
        """Measure a source."""
        if measRecord.getShapeFlag():
            raise MeasurementError(
                f"Shape flag is set.  Required for {self.name} algorithm", self.FAILURE_BAD_SHAPE
            )
        size = measRecord.getIxx() + measRecord.getIyy()
        psf_size = measRecord.getPsfIxx() + measRecord.getPsfIyy()
        chi = (size - psf_size) / psf_size**self.config.exponent
        measRecord.set(self.key, -math.expm1(-0.5 * chi * chi))

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flag of a failure."""
        measRecord.set(self.key, math.nan)
        measRecord.set(self.flag, True)


class ForcedPeakCentroidConfig(ForcedPluginConfig):
    """Settings of `ForcedPeakCentroidPlugin`."""


@register("base_PeakCentroid")
class ForcedPeakCentroidPlugin(ForcedPlugin):
    """Position of the first peak of the reference source's footprint.

    Parameters
    ----------
    config, name, schemaMapper, metadata
        See `ForcedPlugin`.
    """

    ConfigClass: ClassVar[Any] = ForcedPeakCentroidConfig
    needs_pixels = False

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return cls.CENTROID_ORDER

    def __init__(self, config: Any, name: str, schemaMapper: SchemaMapper, metadata: Any):
        super().__init__(config, name, schemaMapper, metadata)
        schema = schemaMapper.editOutputSchema()
        self.keyX = schema.addField(name + "_x", type="D", doc="peak centroid", units="pixel")
        self.keyY = schema.addField(name + "_y", type="D", doc="peak centroid", units="pixel")

    def measure(self, measRecord: Any, exposure: Any, refRecord: Any, refWcs: Any) -> None:
        """Measure a source."""
        peak = refRecord.getFootprint().getPeaks()[0]
        position = Point2D(peak.getFx(), peak.getFy())
        position = exposure.getWcs().skyToPixel(refWcs.pixelToSky(position))
        measRecord.set(self.keyX, position.getX())
        measRecord.set(self.keyY, position.getY())


class _WcsComparison:
    """Whether the image has the coordinate system of the reference.

    Two systems are compared once: it takes longer than to measure a source.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, Any, bool] = (None, None, True)

    def __call__(self, reference: Any, target: Any) -> bool:
        if reference is not self._last[0] or target is not self._last[1]:
            self._last = (reference, target, reference is target or reference == target)
        return self._last[2]


class ForcedTransformedCentroidConfig(ForcedPluginConfig):
    """Settings of `ForcedTransformedCentroidPlugin`."""


@register("base_TransformedCentroid")
class ForcedTransformedCentroidPlugin(ForcedPlugin):
    """Centroid of the reference source, on the image.

    Parameters
    ----------
    config, name, schemaMapper, metadata
        See `ForcedPlugin`.
    """

    ConfigClass: ClassVar[Any] = ForcedTransformedCentroidConfig
    needs_pixels = False

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return cls.CENTROID_ORDER

    def __init__(self, config: Any, name: str, schemaMapper: SchemaMapper, metadata: Any):
        super().__init__(config, name, schemaMapper, metadata)
        schema = schemaMapper.editOutputSchema()
        self.centroidKey = Point2DKey(
            *(
                schema.addField(
                    f"{name}_{axis}", type="D", doc=f"transformed reference centroid {what}", units="pixel"
                )
                for axis, what in (("x", "column"), ("y", "row"))
            )
        )
        self.flagKey = None
        if "slot_Centroid_flag" in schemaMapper.getInputSchema():
            self.flagKey = schema.addField(
                name + "_flag", type="Flag", doc="whether the reference centroid is marked as bad"
            )
        self._same = _WcsComparison()

    def measure(self, measRecord: Any, exposure: Any, refRecord: Any, refWcs: Any) -> None:
        """Measure a source."""
        wcs, position = exposure.getWcs(), refRecord.getCentroid()
        if not self._same(refWcs, wcs):
            position = wcs.skyToPixel(refWcs.pixelToSky(position))
        self.centroidKey.set(measRecord, position)
        if self.flagKey is not None:
            self.flagKey.set(measRecord, refRecord.getCentroidFlag())


class ForcedTransformedShapeConfig(ForcedPluginConfig):
    """Settings of `ForcedTransformedShapePlugin`."""


@register("base_TransformedShape")
class ForcedTransformedShapePlugin(ForcedPlugin):
    """Second moments of the reference source, on the image.

    Parameters
    ----------
    config, name, schemaMapper, metadata
        See `ForcedPlugin`.
    """

    ConfigClass: ClassVar[Any] = ForcedTransformedShapeConfig
    needs_pixels = False

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        return cls.SHAPE_ORDER

    def __init__(self, config: Any, name: str, schemaMapper: SchemaMapper, metadata: Any):
        super().__init__(config, name, schemaMapper, metadata)
        schema = schemaMapper.editOutputSchema()
        self.shapeKey = QuadrupoleKey(
            *(
                schema.addField(
                    f"{name}_{axes}",
                    type="D",
                    doc=f"transformed reference shape {what} moment",
                    units="pixel^2",
                )
                for axes, what in (("xx", "x^2"), ("yy", "y^2"), ("xy", "xy"))
            )
        )
        self.flagKey = None
        if "slot_Shape_flag" in schemaMapper.getInputSchema():
            self.flagKey = schema.addField(
                name + "_flag", type="Flag", doc="whether the reference shape is marked as bad"
            )
        self._same = _WcsComparison()

    def measure(self, measRecord: Any, exposure: Any, refRecord: Any, refWcs: Any) -> None:
        """Measure a source."""
        wcs, shape = exposure.getWcs(), refRecord.getShape()
        if not self._same(refWcs, wcs):
            transform = lsst.afw.geom.makeWcsPairTransform(refWcs, wcs)
            local = lsst.afw.geom.linearizeTransform(transform, refRecord.getCentroid())
            shape = shape.transform(local.getLinear())
        self.shapeKey.set(measRecord, shape)
        if self.flagKey is not None:
            self.flagKey.set(measRecord, refRecord.getShapeFlag())
