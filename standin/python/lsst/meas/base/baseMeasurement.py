# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tasks of single-frame and forced measurement share."""

from __future__ import annotations

__all__ = (
    "BaseMeasurementConfig",
    "BaseMeasurementPlugin",
    "BaseMeasurementPluginConfig",
    "BaseMeasurementTask",
    "SourceSlotConfig",
)

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lsst.afw.detection import InvalidPsfError
from lsst.daf.base import PropertyList
from lsst.pex.config import Config, ConfigField, Field, FieldValidationError
from lsst.pipe.base import Task

from ._batch import Batch
from ._exceptions import FatalAlgorithmError, MeasurementError
from .noiseReplacer import DummyNoiseReplacer, NoiseReplacer, NoiseReplacerConfig
from .pluginRegistry import PluginMap
from .pluginsBase import BasePlugin, BasePluginConfig

if TYPE_CHECKING:
    from lsst.afw.detection import Footprint
    from lsst.afw.image import ExposureF, ImageF
    from lsst.afw.table import Schema, SourceCatalog, SourceRecord

FATAL_EXCEPTIONS = (MemoryError, FatalAlgorithmError)
"""What ends the measurement of all sources."""


class BaseMeasurementPluginConfig(BasePluginConfig):
    """Base of the settings of measurement plugins."""

    doMeasure = Field[bool](default=True, doc="whether to run this plugin in single-object mode")

    doMeasureN: Any = False


class BaseMeasurementPlugin(BasePlugin):
    """Base of measurement plugins."""


class SourceSlotConfig(Config):
    """Which measurements count as the centroid, flux, ... of a source."""

    centroid = Field[str](
        default="base_SdssCentroid",
        optional=True,
        doc="the name of the centroiding algorithm used to set source x,y",
    )
    shape = Field[str](
        default="base_SdssShape",
        optional=True,
        doc="the name of the algorithm used to set source moments parameters",
    )
    psfShape = Field[str](
        default="base_SdssShape_psf",
        optional=True,
        doc="the name of the algorithm used to set PSF moments parameters",
    )
    apFlux = Field[str](
        default="base_CircularApertureFlux_12_0",
        optional=True,
        doc="the name of the algorithm used to set the source aperture instFlux slot",
    )
    modelFlux = Field[str](
        default="base_GaussianFlux",
        optional=True,
        doc="the name of the algorithm used to set the source model instFlux slot",
    )
    psfFlux = Field[str](
        default="base_PsfFlux",
        optional=True,
        doc="the name of the algorithm used to set the source psf instFlux slot",
    )
    gaussianFlux = Field[str](
        default="base_GaussianFlux",
        optional=True,
        doc="the name of the algorithm used to set the source Gaussian instFlux slot",
    )
    calibFlux = Field[str](
        default="base_CircularApertureFlux_12_0",
        optional=True,
        doc="the name of the instFlux measurement algorithm used for calibration",
    )

    def setupSchema(self, schema: Schema) -> None:
        """Set the aliases of the slots.

        Parameters
        ----------
        schema : `lsst.afw.table.Schema`
            Schema to change.
        """
        aliases = schema.getAliasMap()
        for slot in ("centroid", "shape", "psfShape", "apFlux", "modelFlux", "psfFlux", "gaussianFlux"):
            self._set_alias(aliases, slot)
        self._set_alias(aliases, "calibFlux")

    def _set_alias(self, aliases: Any, slot: str) -> None:
        target = getattr(self, slot)
        if target is not None:
            aliases.set(f"slot_{slot[0].upper()}{slot[1:]}", target)


class SimpleBaseMeasurementConfig(Config):
    """Base of the settings of all measurement tasks."""

    plugins: Any

    slots = ConfigField[SourceSlotConfig](doc="Mapping from algorithms to special column aliases.")

    def validate(self) -> None:
        """Check that the slots have their plugins."""
        super().validate()
        names = self.plugins.names
        for slot in ("centroid", "shape"):
            target = getattr(self.slots, slot)
            if target is not None and target not in names:
                raise FieldValidationError(
                    type(self).slots, self, f"source {slot} slot algorithm '{target}' is not being run."
                )
        for slot in ("psfFlux", "apFlux", "modelFlux", "gaussianFlux", "calibFlux"):
            target = getattr(self.slots, slot)
            if target is not None and not any(target.startswith(name) for name in names):
                raise FieldValidationError(
                    type(self).slots,
                    self,
                    f"Source instFlux algorithm '{target}' is not being run, required from "
                    f"non-None slots in: {self.slots}.",
                )


class BaseMeasurementConfig(SimpleBaseMeasurementConfig):
    """Base of the settings of the tasks that replace sources with noise.

    Subclasses define the registry fields ``plugins`` and ``undeblended``.
    """

    _ignoreSlotPluginChecks: bool

    def __new__(cls, *args: Any, ignoreSlotPluginChecks: bool = False, **kwargs: Any) -> Any:
        """Make a config; ``ignoreSlotPluginChecks`` is for tests."""
        instance = super().__new__(cls, *args, **kwargs)
        if ignoreSlotPluginChecks:
            warnings.warn(
                "ignoreSlotPluginChecks is deprecated and should only be used in tests.",
                category=FutureWarning,
                stacklevel=2,
            )
        object.__setattr__(instance, "_ignoreSlotPluginChecks", ignoreSlotPluginChecks)
        return instance

    doReplaceWithNoise = Field[bool](
        default=True, optional=False, doc="When measuring, replace other detected footprints with noise?"
    )
    noiseReplacer = ConfigField[NoiseReplacerConfig](
        doc="configuration that sets how to replace neighboring sources with noise"
    )
    undeblendedPrefix = Field[str](default="undeblended_", doc="Prefix to give undeblended plugins")

    def validate(self) -> None:
        """Check that the slots have their plugins."""
        if not self._ignoreSlotPluginChecks:
            super().validate()


class SimpleBaseMeasurementTask(Task):
    """Base of all measurement tasks.

    Parameters
    ----------
    algMetadata : `lsst.daf.base.PropertyList`, optional
        Gets what the plugins have to say about themselves.
    **kwds
        Arguments of `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = SimpleBaseMeasurementConfig
    _DefaultName: ClassVar[str] = "measurement"

    config: Any
    plugins: Any = None
    algMetadata: Any = None
    _is_batch = False
    """Whether sources are collected, to be measured together."""
    _was_called = False

    def __init__(self, algMetadata: PropertyList | None = None, **kwds: Any):
        super().__init__(**kwds)
        self.plugins = PluginMap()
        self.algMetadata = PropertyList() if algMetadata is None else algMetadata

    def _make_plugin(self, PluginClass: Any, config: Any, name: str, **kwds: Any) -> Any:
        if getattr(PluginClass, "hasLogName", False):
            kwds["logName"] = self.log.getChild(name).name
        return PluginClass(config, name, metadata=self.algMetadata, **kwds)

    def initializePlugins(self, **kwds: Any) -> None:
        """Make the plugins, the one of the centroid slot first.

        Parameters
        ----------
        **kwds
            Arguments of the plugins: the schema, or its mapper.
        """
        centroid = self.config.slots.centroid
        if centroid is not None:
            # Takes the first place, until the plugin itself is there.
            self.plugins[centroid] = None
        for _, name, config, PluginClass in sorted(self.config.plugins.apply()):
            self.plugins[name] = self._make_plugin(PluginClass, config, name, **kwds)
        if centroid is not None and self.plugins[centroid] is None:
            del self.plugins[centroid]

    def addInvalidPsfFlag(self, schema: Schema) -> None:
        """Add the flag of sources where the PSF has no value.

        Parameters
        ----------
        schema : `lsst.afw.table.Schema`
            Schema to add to.
        """
        name = "base_InvalidPsf_flag"
        if name in schema:
            self.keyInvalidPsf = schema.find(name).key
        else:
            self.keyInvalidPsf = schema.addField(name, type="Flag", doc="Invalid PSF at this location.")

    def callMeasure(self, measRecord: SourceRecord, *args: Any, **kwds: Any) -> None:
        """Run all plugins on a source.

        Parameters
        ----------
        measRecord : `lsst.afw.table.SourceRecord`
            The source.
        *args
            What else the plugins take.
        **kwds
            ``beginOrder`` (inclusive) and ``endOrder`` (exclusive), between
            which the execution orders are of plugins that run; the rest goes
            to the plugins.
        """
        self._was_called = True
        if self._is_batch:
            return
        for plugin in self._chosen(kwds.pop("beginOrder", None), kwds.pop("endOrder", None)):
            self.doMeasurement(plugin, measRecord, *args, **kwds)

    def _chosen(self, beginOrder: float | None, endOrder: float | None) -> list[Any]:
        """List the plugins that run."""
        begin = -math.inf if beginOrder is None else beginOrder
        end = math.inf if endOrder is None else endOrder
        return [plugin for plugin in self.plugins.iter() if begin <= plugin.getExecutionOrder() < end]

    def _measure_batch(
        self, sources: Sequence[tuple[int, Any, tuple[Any, ...]]], replacer: Any, **orders: float | None
    ) -> Batch | None:
        """Measure sources together, as `callMeasure` does one at a time.

        Parameters
        ----------
        sources : `~collections.abc.Sequence` [`tuple`]
            Id, record, and what else `callMeasure` takes, the exposure first.
        replacer : `NoiseReplacer`
            What puts sources back.
        **orders
            The ``beginOrder`` and ``endOrder`` of `callMeasure`.

        Returns
        -------
        batch : `Batch` or `None`
            The sources, not yet ended; None if no pixels were needed.
        """
        ids, records, extra = zip(*sources, strict=True)
        chosen = []
        for row, record in enumerate(records):
            # Somebody may have replaced this method by one that leaves out sources.
            self._was_called, self._is_batch = False, True
            self.callMeasure(record, *extra[row], **orders)
            chosen += [row] * self._was_called
        self._is_batch = False
        plugins = self._chosen(**orders)
        batch = None
        if any(plugin.needs_pixels for plugin in plugins):
            batch = Batch(records, chosen, extra[0][0], replacer, ids)
        for plugin in plugins:
            measure = plugin.getBatchMethod()
            for row in chosen if measure is None or batch is None else measure(batch):
                if batch is not None and plugin.needs_pixels:
                    with batch.inserted(row, mask=True):
                        self.doMeasurement(plugin, records[row], *extra[row])
                else:
                    self.doMeasurement(plugin, records[row], *extra[row])
        return batch

    def doMeasurement(self, plugin: Any, measRecord: SourceRecord, *args: Any, **kwds: Any) -> None:
        """Run a plugin on a source; failures become flags.

        Parameters
        ----------
        plugin : `BasePlugin`
            The plugin.
        measRecord : `lsst.afw.table.SourceRecord`
            The source.
        *args, **kwds
            What else the plugin takes.
        """
        try:
            plugin.measure(measRecord, *args, **kwds)
        except FATAL_EXCEPTIONS:
            raise
        except MeasurementError as error:
            self._log_failure("debug", "MeasurementError", plugin, measRecord, error)
            plugin.fail(measRecord, error)
        except InvalidPsfError as error:
            self._log_failure("debug", "InvalidPsfError", plugin, measRecord, error)
            measRecord.set(self.keyInvalidPsf, True)
            plugin.fail(measRecord)
        except Exception as error:
            # Whatever goes wrong with one source must not end the others.
            self._log_failure("warning", "Exception", plugin, measRecord, error)
            plugin.fail(measRecord)

    def _log_failure(self, level: str, what: str, plugin: Any, record: SourceRecord, error: Any) -> None:
        log = getattr(self.log.getChild(plugin.name), level)
        log("%s in %s.measure on record %s: %s", what, plugin.name, record.getId(), error)


class BaseMeasurementTask(SimpleBaseMeasurementTask):
    """Base of the tasks that replace sources with noise.

    Parameters
    ----------
    algMetadata : `lsst.daf.base.PropertyList`, optional
        Gets what the plugins have to say about themselves.
    **kwds
        Arguments of `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = BaseMeasurementConfig

    NOISE_SEED_MULTIPLIER: ClassVar[str] = "NOISE_SEED_MULTIPLIER"
    NOISE_SOURCE: ClassVar[str] = "NOISE_SOURCE"
    NOISE_OFFSET: ClassVar[str] = "NOISE_OFFSET"
    NOISE_EXPOSURE_ID: ClassVar[str] = "NOISE_EXPOSURE_ID"

    def __init__(self, algMetadata: PropertyList | None = None, **kwds: Any):
        super().__init__(algMetadata=algMetadata, **kwds)
        self.undeblendedPlugins = PluginMap()

    def initializePlugins(self, **kwds: Any) -> None:
        """Make the plugins, those for the whole image too."""
        super().initializePlugins(**kwds)
        for _, name, config, PluginClass in sorted(self.config.undeblended.apply()):
            undeblended = self.config.undeblendedPrefix + name
            self.undeblendedPlugins[name] = self._make_plugin(PluginClass, config, undeblended, **kwds)

    @staticmethod
    def getFootprintsFromCatalog(catalog: SourceCatalog) -> dict[int, tuple[int, Footprint]]:
        """Return {id: (parent's id, footprint)} of a catalogue."""
        return {record.getId(): (record.getParent(), record.getFootprint()) for record in catalog}

    def initNoiseReplacer(
        self,
        exposure: ExposureF,
        measCat: SourceCatalog,
        footprints: dict[int, tuple[int, Footprint]],
        exposureId: int | None = None,
        noiseImage: ImageF | None = None,
    ) -> Any:
        """Replace all sources of an image with noise.

        Parameters
        ----------
        exposure : `lsst.afw.image.ExposureF`
            Image, changed in place.
        measCat : `lsst.afw.table.SourceCatalog`
            Catalogue; its table's metadata say how the noise was made.
        footprints : `dict`
            {id: (parent's id, footprint)}.
        exposureId : `int`, optional
            Number of the image, for the seed.
        noiseImage : `lsst.afw.image.ImageF`, optional
            Where the noise is taken from, if given.

        Returns
        -------
        noiseReplacer : `NoiseReplacer` or `DummyNoiseReplacer`
            What puts sources back one at a time.
        """
        if not self.config.doReplaceWithNoise:
            return DummyNoiseReplacer()
        settings = self.config.noiseReplacer
        self._note_noise(measCat, exposureId)
        return NoiseReplacer(
            settings, exposure, footprints, log=self.log, exposureId=exposureId, noiseImage=noiseImage
        )

    def _note_noise(self, measCat: SourceCatalog, exposureId: int | None) -> None:
        """Write to the metadata of a catalogue how the noise is made."""
        settings = self.config.noiseReplacer
        metadata = measCat.getTable().getMetadata()
        if metadata is not None:
            metadata.addInt(self.NOISE_SEED_MULTIPLIER, settings.noiseSeedMultiplier)
            metadata.addString(self.NOISE_SOURCE, settings.noiseSource)
            metadata.addDouble(self.NOISE_OFFSET, settings.noiseOffset)
            if exposureId is not None:
                metadata.addLong(self.NOISE_EXPOSURE_ID, exposureId)
