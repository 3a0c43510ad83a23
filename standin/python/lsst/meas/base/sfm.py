# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measurement of sources on the image that they were found on."""

from __future__ import annotations

__all__ = (
    "SingleFrameMeasurementConfig",
    "SingleFrameMeasurementTask",
    "SingleFramePlugin",
    "SingleFramePluginConfig",
)

from typing import TYPE_CHECKING, Any, ClassVar

from lsst.utils.logging import PeriodicLogger
from lsst.utils.timer import timeMethod

from ._batch import BATCH, Batch
from .baseMeasurement import (
    BaseMeasurementConfig,
    BaseMeasurementPlugin,
    BaseMeasurementPluginConfig,
    BaseMeasurementTask,
)
from .pluginRegistry import PluginRegistry

if TYPE_CHECKING:
    from lsst.afw.detection import Footprint
    from lsst.afw.image import ExposureF, ImageF
    from lsst.afw.table import Schema, SourceCatalog, SourceRecord
    from lsst.daf.base import PropertyList, PropertySet


class SingleFramePluginConfig(BaseMeasurementPluginConfig):
    """Base of the settings of plugins for single images."""


class SingleFramePlugin(BaseMeasurementPlugin):
    """Base of plugins for single images.

    Parameters
    ----------
    config : `SingleFramePluginConfig`
        Settings.
    name : `str`
        Name by which the plugin is registered.
    schema : `lsst.afw.table.Schema`
        Schema; gets the plugin's fields.
    metadata : `lsst.daf.base.PropertySet`
        Gets what the plugin has to say about itself.
    logName : `str`, optional
        Name of the log.
    """

    registry: ClassVar[Any] = PluginRegistry(SingleFramePluginConfig)

    ConfigClass: ClassVar[Any] = SingleFramePluginConfig

    def __init__(
        self,
        config: Any,
        name: str,
        schema: Schema,
        metadata: PropertySet,
        logName: str | None = None,
        **kwds: Any,
    ):
        super().__init__(config, name, logName=logName)

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        """Measure a source.

        Parameters
        ----------
        measRecord : `lsst.afw.table.SourceRecord`
            The source; gets the results.
        exposure : `lsst.afw.image.ExposureF`
            Image on which the other sources are noise.
        """
        raise NotImplementedError()


class SingleFrameMeasurementConfig(BaseMeasurementConfig):
    """Settings of `SingleFrameMeasurementTask`.

    The defaults are upstream's without base_Variance and
    base_CompensatedTophatFlux, which are not in this subset.
    """

    plugins = SingleFramePlugin.registry.makeField(
        multi=True,
        default=[
            "base_PixelFlags",
            "base_SdssCentroid",
            "base_SdssShape",
            "base_GaussianFlux",
            "base_PsfFlux",
            "base_CircularApertureFlux",
            "base_SkyCoord",
            "base_Blendedness",
            "base_LocalBackground",
            "base_ClassificationSizeExtendedness",
        ],
        doc="Plugins to be run and their configuration",
    )
    algorithms = property(lambda self: self.plugins, doc="backwards-compatibility alias for plugins")
    undeblended = SingleFramePlugin.registry.makeField(
        multi=True, default=[], doc="Plugins to run on undeblended image"
    )


class SingleFrameMeasurementTask(BaseMeasurementTask):
    """Measures sources on the image that they were found on.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields of the plugins and the aliases of the slots.
    algMetadata : `lsst.daf.base.PropertyList`, optional
        Gets what the plugins have to say about themselves.
    **kwds
        Arguments of `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = SingleFrameMeasurementConfig

    def __init__(self, schema: Schema, algMetadata: PropertyList | None = None, **kwds: Any):
        super().__init__(algMetadata=algMetadata, **kwds)
        self.schema = schema
        self.config.slots.setupSchema(self.schema)
        self.initializePlugins(schema=self.schema)
        self.addInvalidPsfFlag(self.schema)
        self.doBlendedness = "base_Blendedness" in self.plugins
        if self.doBlendedness:
            self.blendPlugin = self.plugins["base_Blendedness"]

    @timeMethod
    def run(
        self,
        measCat: SourceCatalog,
        exposure: ExposureF,
        noiseImage: ImageF | None = None,
        exposureId: int | None = None,
        beginOrder: float | None = None,
        endOrder: float | None = None,
        footprints: dict[int, tuple[int, Footprint]] | None = None,
    ) -> None:
        """Measure all sources of a catalogue.

        Parameters
        ----------
        measCat : `lsst.afw.table.SourceCatalog`
            Sources with footprints; gets the results. Its schema contains
            that of the task.
        exposure : `lsst.afw.image.ExposureF`
            Image; it is in the end what it was.
        noiseImage : `lsst.afw.image.ImageF`, optional
            Where the noise is taken from, if given.
        exposureId : `int`, optional
            Number of the image, for the seed of the noise.
        beginOrder, endOrder : `float`, optional
            Only plugins with execution orders from the former (inclusive) to
            the latter (exclusive) are run.
        footprints : `dict`, optional
            {id: (parent's id, footprint)} of what is replaced with noise; by
            default those of the catalogue.

        Raises
        ------
        AssertionError
            Raised if the catalogue does not have the task's schema.
        """
        if not measCat.getSchema().contains(self.schema):
            raise AssertionError("The schema of the catalogue does not contain that of the measurement task.")
        if footprints is None:
            footprints = self.getFootprintsFromCatalog(measCat)
        replacer = self.initNoiseReplacer(exposure, measCat, footprints, exposureId, noiseImage)
        self.runPlugins(replacer, measCat, exposure, beginOrder, endOrder)

    def runPlugins(
        self,
        noiseReplacer: Any,
        measCat: SourceCatalog,
        exposure: ExposureF,
        beginOrder: float | None = None,
        endOrder: float | None = None,
    ) -> None:
        """Measure all sources of a catalogue on an image of noise.

        Parameters
        ----------
        noiseReplacer : `NoiseReplacer`
            What puts sources back one at a time; it is ended here.
        measCat : `lsst.afw.table.SourceCatalog`
            Sources; gets the results.
        exposure : `lsst.afw.image.ExposureF`
            Image.
        beginOrder, endOrder : `float`, optional
            See `run`.
        """
        count = len(measCat)
        self.log.info("Measuring %d source%s", count, "" if count == 1 else "s")
        progress = PeriodicLogger(self.log)
        for start in range(0, count, BATCH):
            records = [measCat[row] for row in range(start, min(start + BATCH, count))]
            sources = [(record.getId(), record, (exposure,)) for record in records]
            batch = self._measure_batch(sources, noiseReplacer, beginOrder=beginOrder, endOrder=endOrder)
            if batch is None:
                batch = Batch(records, (), exposure, noiseReplacer, [record.getId() for record in records])
            if self.doBlendedness:
                self.blendPlugin.cpp.measureChildren(batch)
            batch.end()
            progress.log("Measurement complete for %d sources out of %d", start + len(records), count)
        noiseReplacer.end()
        if endOrder is None and self.undeblendedPlugins:
            for index, record in enumerate(measCat):
                for plugin in self.undeblendedPlugins.iter():
                    self.doMeasurement(plugin, record, exposure)
                progress.log("Undeblended measurement complete for %d sources out of %d", index + 1, count)
        if self.doBlendedness:
            self.blendPlugin.cpp.measureParents(exposure.getMaskedImage(), list(measCat))

    def measure(self, measCat: SourceCatalog, exposure: ExposureF) -> None:
        """Call `run`, as which this was known before."""
        self.run(measCat, exposure)
