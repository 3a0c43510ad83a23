# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plugins that need only the catalogue."""

from __future__ import annotations

__all__ = (
    "CatalogCalculationConfig",
    "CatalogCalculationPlugin",
    "CatalogCalculationPluginConfig",
    "CatalogCalculationTask",
)

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lsst.daf.base import PropertyList
from lsst.pex.config import Config
from lsst.pipe.base import Task
from lsst.utils.timer import timeMethod

from ._exceptions import FatalAlgorithmError, MeasurementError
from .pluginRegistry import PluginMap, PluginRegistry
from .pluginsBase import BasePlugin, BasePluginConfig

if TYPE_CHECKING:
    from lsst.afw.table import Schema, SourceCatalog


class CatalogCalculationPluginConfig(BasePluginConfig):
    """Base of the settings of catalogue plugins."""


class CatalogCalculationPlugin(BasePlugin):
    """Base of catalogue plugins.

    Parameters
    ----------
    config : `CatalogCalculationPluginConfig`
        Settings.
    name : `str`
        Name by which the plugin is registered.
    schema : `lsst.afw.table.Schema`
        Schema; gets the plugin's fields.
    metadata : `lsst.daf.base.PropertySet`
        Gets what the plugin has to say about itself.
    """

    ConfigClass: ClassVar[Any] = CatalogCalculationPluginConfig

    registry: ClassVar[Any] = PluginRegistry(CatalogCalculationPluginConfig)

    plugType: ClassVar[str] = "single"
    """"single" if `calculate` takes a record, "multi" if a catalogue."""

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any):
        super().__init__(config, name)

    def calculate(self, cat: Any, **kwargs: Any) -> None:
        """Compute the fields of a record or of a catalogue.

        Parameters
        ----------
        cat : `lsst.afw.table.SourceRecord` or `lsst.afw.table.SourceCatalog`
            What `plugType` says.
        **kwargs
            What else the plugin takes.
        """
        raise NotImplementedError()


class CatalogCalculationConfig(Config):
    """Settings of `CatalogCalculationTask`.

    The default is upstream's without base_FootprintArea, which is not in this
    subset.
    """

    plugins = CatalogCalculationPlugin.registry.makeField(
        multi=True,
        default=["base_ClassificationExtendedness"],
        doc="Plugins to be run and their configuration",
    )


class _Level(NamedTuple):
    single: list[Any]
    multi: list[Any]


class CatalogCalculationTask(Task):
    """Runs plugins that need only the catalogue.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields of the plugins.
    plugMetadata : `lsst.daf.base.PropertyList`, optional
        Gets what the plugins have to say about themselves.
    **kwargs
        Arguments of `lsst.pipe.base.Task`.

    Raises
    ------
    ValueError
        Raised if a plugin wants to run before the measurements are done.
    """

    ConfigClass: ClassVar[Any] = CatalogCalculationConfig
    _DefaultName: ClassVar[str] = "catalogCalculation"

    config: Any

    def __init__(self, schema: Schema, plugMetadata: PropertyList | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.schema = schema
        self.plugMetadata = PropertyList() if plugMetadata is None else plugMetadata
        self.plugins = PluginMap()
        self.initializePlugins()

    def initializePlugins(self) -> None:
        """Make the plugins."""
        self.executionDict: dict[float, _Level] = {}
        for order, name, config, PluginClass in sorted(self.config.plugins.apply()):
            if order < BasePlugin.DEFAULT_CATALOGCALCULATION:
                raise ValueError(
                    f"{PluginClass} has an execution order less than the minimum for a catalogCalculation "
                    f"plugin. Value {order} : Minimum {BasePlugin.DEFAULT_CATALOGCALCULATION}"
                )
            plugin = self.plugins[name] = PluginClass(config, name, self.schema, metadata=self.plugMetadata)
            level = self.executionDict.setdefault(order, _Level([], []))
            (level.multi if plugin.plugType == "multi" else level.single).append(plugin)

    @timeMethod
    def run(self, measCat: SourceCatalog) -> None:
        """Run the plugins on a catalogue.

        Parameters
        ----------
        measCat : `lsst.afw.table.SourceCatalog`
            Measured sources; gets the results.
        """
        self.callCompute(measCat)

    def callCompute(self, catalog: SourceCatalog) -> None:
        """Run the plugins on a catalogue."""
        for order in sorted(self.executionDict):
            level = self.executionDict[order]
            for plugin in level.multi:
                self._calculate(plugin, catalog)
            for record in catalog:
                for plugin in level.single:
                    self._calculate(plugin, record)

    def _calculate(self, plugin: Any, cat: Any) -> None:
        try:
            plugin.calculate(cat)
        except (MemoryError, FatalAlgorithmError):
            raise
        except MeasurementError as error:
            plugin.fail(cat, error)
        except Exception as error:
            # Whatever goes wrong with one source must not end the others.
            self.log.warning("Error in %s.calculate: %s", plugin.name, error)
