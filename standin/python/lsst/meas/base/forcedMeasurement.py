# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measurement of sources that another catalogue describes."""

from __future__ import annotations

__all__ = ("ForcedMeasurementConfig", "ForcedMeasurementTask", "ForcedPlugin", "ForcedPluginConfig")

from typing import TYPE_CHECKING, Any, ClassVar, cast

from lsst.afw.detection import Footprint
from lsst.afw.geom import SpanSet
from lsst.afw.geom.ellipses import Ellipse
from lsst.afw.table import IdFactory, SchemaMapper, SourceCatalog, SourceTable
from lsst.geom import Point2I
from lsst.pex.config import DictField, Field
from lsst.utils.logging import PeriodicLogger

from ._batch import BATCH
from .baseMeasurement import (
    BaseMeasurementConfig,
    BaseMeasurementPlugin,
    BaseMeasurementPluginConfig,
    BaseMeasurementTask,
)
from .noiseReplacer import DummyNoiseReplacer
from .pluginRegistry import PluginRegistry

if TYPE_CHECKING:
    from lsst.afw.geom import SkyWcs
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord
    from lsst.daf.base import PropertyList, PropertySet


class ForcedPluginConfig(BaseMeasurementPluginConfig):
    """Base of the settings of plugins for forced measurement."""


class ForcedPlugin(BaseMeasurementPlugin):
    """Base of plugins for forced measurement.

    Parameters
    ----------
    config : `ForcedPluginConfig`
        Settings.
    name : `str`
        Name by which the plugin is registered.
    schemaMapper : `lsst.afw.table.SchemaMapper`
        Mapping from the reference catalogue; its output schema gets the
        plugin's fields.
    metadata : `lsst.daf.base.PropertySet`
        Gets what the plugin has to say about itself.
    logName : `str`, optional
        Name of the log.
    """

    registry: ClassVar[Any] = PluginRegistry(ForcedPluginConfig)

    ConfigClass: ClassVar[Any] = ForcedPluginConfig

    def __init__(
        self,
        config: Any,
        name: str,
        schemaMapper: SchemaMapper,
        metadata: PropertySet,
        logName: str | None = None,
    ):
        super().__init__(config, name, logName=logName)

    def measure(
        self, measRecord: SourceRecord, exposure: ExposureF, refRecord: SourceRecord, refWcs: SkyWcs
    ) -> None:
        """Measure a source.

        Parameters
        ----------
        measRecord : `lsst.afw.table.SourceRecord`
            The source; gets the results.
        exposure : `lsst.afw.image.ExposureF`
            Image on which the other sources are noise.
        refRecord : `lsst.afw.table.SourceRecord`
            The source in the reference catalogue.
        refWcs : `lsst.afw.geom.SkyWcs`
            Coordinate system of the reference catalogue.
        """
        raise NotImplementedError()


class ForcedMeasurementConfig(BaseMeasurementConfig):
    """Settings of `ForcedMeasurementTask`."""

    plugins = ForcedPlugin.registry.makeField(
        multi=True,
        default=[
            "base_PixelFlags",
            "base_TransformedCentroid",
            "base_SdssCentroid",
            "base_TransformedShape",
            "base_SdssShape",
            "base_GaussianFlux",
            "base_CircularApertureFlux",
            "base_PsfFlux",
            "base_LocalBackground",
        ],
        doc="Plugins to be run and their configuration",
    )
    algorithms = property(lambda self: self.plugins, doc="backwards-compatibility alias for plugins")
    undeblended = ForcedPlugin.registry.makeField(
        multi=True, default=[], doc="Plugins to run on undeblended image"
    )
    copyColumns = DictField[str, str](
        doc="Mapping of reference columns to source columns",
        default={
            "id": "objectId",
            "parent": "parentObjectId",
            "deblend_nChild": "deblend_nChild",
            "coord_ra": "coord_ra",
            "coord_dec": "coord_dec",
        },
    )
    checkUnitsParseStrict = Field[str](
        doc="Strictness of Astropy unit compatibility check, can be 'raise', 'warn' or 'silent'",
        default="raise",
    )

    def setDefaults(self) -> None:
        """Let positions and shapes be those of the reference."""
        self.slots.centroid = "base_TransformedCentroid"
        self.slots.shape = "base_TransformedShape"
        self.slots.apFlux = None
        self.slots.modelFlux = None
        self.slots.psfFlux = None
        self.slots.gaussianFlux = None
        self.slots.calibFlux = None


class ForcedMeasurementTask(BaseMeasurementTask):
    """Measures sources where another catalogue has them.

    The schema of the results, ``schema``, is made from that of the reference
    catalogue: the columns that ``copyColumns`` names, then those of the
    plugins.

    Parameters
    ----------
    refSchema : `lsst.afw.table.Schema`
        Schema of the reference catalogue.
    algMetadata : `lsst.daf.base.PropertyList`, optional
        Gets what the plugins have to say about themselves.
    **kwds
        Arguments of `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = ForcedMeasurementConfig

    def __init__(self, refSchema: Schema, algMetadata: PropertyList | None = None, **kwds: Any):
        super().__init__(algMetadata=algMetadata, **kwds)
        self.mapper = SchemaMapper(refSchema)
        self.mapper.addMinimalSchema(SourceTable.makeMinimalSchema(), False)
        self.config.slots.setupSchema(self.mapper.editOutputSchema())
        for reference, target in self.config.copyColumns.items():
            self.mapper.addMapping(refSchema.find(reference).key, target)
        self.initializePlugins(schemaMapper=self.mapper)
        self.addInvalidPsfFlag(self.mapper.editOutputSchema())
        self.schema = self.mapper.getOutputSchema()
        self.schema.checkUnits(parse_strict=self.config.checkUnitsParseStrict)

    def run(
        self,
        measCat: SourceCatalog,
        exposure: ExposureF,
        refCat: SourceCatalog,
        refWcs: SkyWcs,
        exposureId: int | None = None,
        beginOrder: float | None = None,
        endOrder: float | None = None,
    ) -> None:
        """Measure all sources of a catalogue.

        Parameters
        ----------
        measCat : `lsst.afw.table.SourceCatalog`
            What `generateMeasCat` made, with footprints; gets the results.
        exposure : `lsst.afw.image.ExposureF`
            Image with a coordinate system; it is in the end what it was.
        refCat : `lsst.afw.table.SourceCatalog`
            Reference catalogue, in the order of ``measCat``.
        refWcs : `lsst.afw.geom.SkyWcs`
            Coordinate system of the reference catalogue.
        exposureId : `int`, optional
            Number of the image, for the seed of the noise.
        beginOrder, endOrder : `float`, optional
            Only plugins with execution orders from the former (inclusive) to
            the latter (exclusive) are run.
        """
        footprints = {
            reference.getId(): (reference.getParent(), record.getFootprint())
            for reference, record in zip(refCat, measCat, strict=False)
        }
        count = len(refCat)
        self.log.info("Performing forced measurement on %d source%s", count, "" if count == 1 else "s")
        progress = PeriodicLogger(self.log)
        replacer: Any = DummyNoiseReplacer()
        if any(plugin.needs_pixels for plugin in self._chosen(beginOrder, endOrder)):
            replacer = self.initNoiseReplacer(exposure, measCat, footprints, exposureId)
        elif self.config.doReplaceWithNoise:
            self._note_noise(measCat, exposureId)
        pairs = zip(measCat, refCat, strict=False)
        sources = [(reference.getId(), record, (exposure, reference, refWcs)) for record, reference in pairs]
        for start in range(0, count, BATCH):
            some = sources[start : start + BATCH]
            batch = self._measure_batch(some, replacer, beginOrder=beginOrder, endOrder=endOrder)
            if batch is not None:
                batch.end()
            progress.log("Forced measurement complete for %d sources out of %d", start + len(some), count)
        replacer.end()
        if endOrder is None and self.undeblendedPlugins:
            for index, (record, reference) in enumerate(zip(measCat, refCat, strict=False)):
                for plugin in self.undeblendedPlugins.iter():
                    self.doMeasurement(plugin, record, exposure, reference, refWcs)
                progress.log(
                    "Undeblended forced measurement complete for %d sources out of %d", index + 1, count
                )

    def generateMeasCat(
        self, exposure: ExposureF, refCat: SourceCatalog, refWcs: SkyWcs, idFactory: IdFactory | None = None
    ) -> SourceCatalog:
        """Make the catalogue that `run` fills, without footprints.

        Parameters
        ----------
        exposure : `lsst.afw.image.ExposureF`
            Image to be measured.
        refCat : iterable of `lsst.afw.table.SourceRecord`
            Reference catalogue.
        refWcs : `lsst.afw.geom.SkyWcs`
            Coordinate system of the reference catalogue; not used.
        idFactory : `lsst.afw.table.IdFactory`, optional
            Maker of the ids.

        Returns
        -------
        measCat : `lsst.afw.table.SourceCatalog`
            A record for each one of the reference catalogue.
        """
        if idFactory is None:
            idFactory = IdFactory.makeSimple()
        table = SourceTable.make(self.schema, idFactory)
        measCat = SourceCatalog(table)
        table = measCat.table
        table.setMetadata(self.algMetadata)
        table.preallocate(len(refCat))
        measCat.extend(refCat, mapper=self.mapper)
        return measCat

    def attachTransformedFootprints(
        self, sources: SourceCatalog, refCat: SourceCatalog, exposure: ExposureF, refWcs: SkyWcs
    ) -> None:
        """Give sources the footprints of the reference catalogue.

        Heavy footprints become ordinary ones.

        Parameters
        ----------
        sources : `lsst.afw.table.SourceCatalog`
            Sources to be measured.
        refCat : `lsst.afw.table.SourceCatalog`
            Reference catalogue, in the same order.
        exposure : `lsst.afw.image.ExposureF`
            Image to be measured.
        refWcs : `lsst.afw.geom.SkyWcs`
            Coordinate system of the reference catalogue.
        """
        wcs, region = exposure.getWcs(), exposure.getBBox()
        for record, reference in zip(sources, refCat, strict=False):
            record.setFootprint(reference.getFootprint().transform(refWcs, wcs, region))

    def attachPsfShapeFootprints(self, sources: SourceCatalog, exposure: ExposureF, scaling: int = 3) -> None:
        """Give sources footprints of the shape of the PSF.

        Parameters
        ----------
        sources : `lsst.afw.table.SourceCatalog`
            Sources to be measured, with sky positions.
        exposure : `lsst.afw.image.ExposureF`
            Image to be measured.
        scaling : `int`, optional
            Size of the footprint, in units of the width of the PSF.

        Raises
        ------
        RuntimeError
            Raised if the image has no PSF.
        """
        psf = exposure.getPsf()
        if psf is None:
            raise RuntimeError("Cannot construct Footprints from PSF shape without a PSF.")
        box, wcs = exposure.getBBox(), cast("SkyWcs", exposure.getWcs())
        for record in sources:
            position = wcs.skyToPixel(record.getCoord())
            pixel = Point2I(position)
            if not box.contains(pixel):
                raise AssertionError(f"Center for record {record.getId()} is not in exposure.")
            ellipse = Ellipse(psf.computeShape(position), position)
            ellipse.getCore().scale(scaling)
            footprint = Footprint(SpanSet.fromShape(ellipse).clippedTo(box), box)
            footprint.addPeak(pixel.getX(), pixel.getY(), float(exposure.image[pixel]))
            record.setFootprint(footprint)
