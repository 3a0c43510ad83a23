# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plugins made of algorithms."""

from __future__ import annotations

__all__ = (
    "wrapAlgorithm",
    "wrapAlgorithmControl",
    "wrapForcedAlgorithm",
    "wrapSimpleAlgorithm",
    "wrapSingleFrameAlgorithm",
)

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from lsst.pex.config import makeConfigClass

from .forcedMeasurement import ForcedPlugin
from .pluginRegistry import generateAlgorithmName
from .sfm import SingleFramePlugin

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SchemaMapper, SourceRecord

    from ._exceptions import MeasurementError


class WrappedSingleFramePlugin(SingleFramePlugin):
    """Plugin for single images made of an algorithm, which is ``cpp``."""

    factory: ClassVar[Callable[..., Any]]
    hasLogName: ClassVar[bool] = False

    def __init__(self, config: Any, name: str, schema: Schema, metadata: Any, logName: str | None = None):
        super().__init__(config, name, schema, metadata, logName=logName)
        log = {"logName": logName} if self.hasLogName and logName is not None else {}
        self.cpp = self.factory(config, name, schema, metadata, **log)

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        """Measure a source."""
        self.cpp.measure(measRecord, exposure)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flags of a failure."""
        self.cpp.fail(measRecord, error)


class WrappedForcedPlugin(ForcedPlugin):
    """Plugin for forced measurement made of an algorithm."""

    factory: ClassVar[Callable[..., Any]]
    hasLogName: ClassVar[bool] = False

    def __init__(
        self,
        config: Any,
        name: str,
        schemaMapper: SchemaMapper,
        metadata: Any,
        logName: str | None = None,
    ):
        super().__init__(config, name, schemaMapper, metadata, logName=logName)
        log = {"logName": logName} if self.hasLogName and logName is not None else {}
        self.cpp = self.factory(config, name, schemaMapper, metadata, **log)

    def measure(
        self, measRecord: SourceRecord, exposure: ExposureF, refRecord: SourceRecord, refWcs: Any
    ) -> None:
        """Measure a source."""
        self.cpp.measureForced(measRecord, exposure, refRecord, refWcs)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flags of a failure."""
        self.cpp.fail(measRecord, error)


def wrapAlgorithmControl(Base: Any, Control: Any) -> Any:
    """Make a config class of the settings of an algorithm.

    Parameters
    ----------
    Base : `type`
        Config class to derive from.
    Control : `type`
        Class of the settings.
    """
    return makeConfigClass(Control, base=Base)


def wrapAlgorithm(
    Base: Any,
    AlgClass: Any,
    factory: Callable[..., Any],
    executionOrder: float,
    name: str | None = None,
    Control: Any = None,
    ConfigClass: Any = None,
    doRegister: bool = True,
    shouldApCorr: bool = False,
    hasLogName: bool = False,
) -> Any:
    """Make a class of plugins of an algorithm and register it.

    Parameters
    ----------
    Base : `type`
        `WrappedSingleFramePlugin` or `WrappedForcedPlugin`.
    AlgClass : `type`
        The algorithm.
    factory : callable
        Makes the algorithm of (config, name, schema or mapper, metadata).
    executionOrder : `float`
        When to run.
    name : `str`, optional
        Name of the plugin; by default that of the algorithm.
    Control, ConfigClass : `type`, optional
        Settings of the algorithm, or a config class for them.
    doRegister : `bool`, optional
        Whether to register the class.
    shouldApCorr : `bool`, optional
        Whether aperture corrections are made for its flux.
    hasLogName : `bool`, optional
        Whether the algorithm takes the name of a log.
    """
    if ConfigClass is None:
        ConfigClass = wrapAlgorithmControl(Base.ConfigClass, AlgClass.Control if Control is None else Control)
    attributes = {
        "AlgClass": AlgClass,
        "ConfigClass": ConfigClass,
        "factory": staticmethod(factory),
        "getExecutionOrder": staticmethod(lambda: executionOrder),
        "hasLogName": hasLogName,
    }
    PluginClass = type(AlgClass.__name__ + Base.__name__, (Base,), attributes)
    if doRegister:
        name = generateAlgorithmName(AlgClass) if name is None else name
        Base.registry.register(name, PluginClass, shouldApCorr=shouldApCorr)
    return PluginClass


def _make_factory(AlgClass: Any, needsMetadata: bool, extract: Callable[[Any], Any]) -> Callable[..., Any]:
    def factory(config: Any, name: str, schema: Any, metadata: Any, **kwargs: Any) -> Any:
        extra = (metadata,) if needsMetadata else ()
        return AlgClass(config.makeControl(), name, extract(schema), *extra, **kwargs)

    return factory


def wrapSingleFrameAlgorithm(
    AlgClass: Any, executionOrder: float, name: str | None = None, needsMetadata: bool = False, **kwds: Any
) -> Any:
    """Make a plugin for single images of an algorithm.

    Parameters
    ----------
    AlgClass : `type`
        The algorithm; made of (control, name, schema).
    executionOrder : `float`
        When to run.
    name : `str`, optional
        Name of the plugin.
    needsMetadata : `bool`, optional
        Whether the algorithm takes the metadata too.
    **kwds
        Arguments of `wrapAlgorithm`.
    """
    factory = _make_factory(AlgClass, needsMetadata, lambda schema: schema)
    return wrapAlgorithm(WrappedSingleFramePlugin, AlgClass, factory, executionOrder, name, **kwds)


def wrapForcedAlgorithm(
    AlgClass: Any,
    executionOrder: float,
    name: str | None = None,
    needsMetadata: bool = False,
    needsSchemaOnly: bool = False,
    **kwds: Any,
) -> Any:
    """Make a plugin for forced measurement of an algorithm.

    Parameters
    ----------
    AlgClass : `type`
        The algorithm; made of (control, name, mapper).
    executionOrder : `float`
        When to run.
    name : `str`, optional
        Name of the plugin.
    needsMetadata : `bool`, optional
        Whether the algorithm takes the metadata too.
    needsSchemaOnly : `bool`, optional
        Whether the algorithm takes a schema instead of the mapper.
    **kwds
        Arguments of `wrapAlgorithm`.
    """

    def extract(mapper: Any) -> Any:
        return mapper.editOutputSchema() if needsSchemaOnly else mapper

    factory = _make_factory(AlgClass, needsMetadata, extract)
    return wrapAlgorithm(WrappedForcedPlugin, AlgClass, factory, executionOrder, name, **kwds)


def wrapSimpleAlgorithm(
    AlgClass: Any, executionOrder: float, name: str | None = None, needsMetadata: bool = False, **kwds: Any
) -> tuple[Any, Any]:
    """Make plugins of both kinds of an algorithm.

    Parameters
    ----------
    AlgClass : `type`
        The algorithm; made of (control, name, schema).
    executionOrder : `float`
        When to run.
    name : `str`, optional
        Name of the plugins.
    needsMetadata : `bool`, optional
        Whether the algorithm takes the metadata too.
    **kwds
        Arguments of `wrapAlgorithm`.

    Returns
    -------
    singleFramePlugin, forcedPlugin : `type`
        The classes.
    """
    return (
        wrapSingleFrameAlgorithm(AlgClass, executionOrder, name, needsMetadata, **kwds),
        wrapForcedAlgorithm(AlgClass, executionOrder, name, needsMetadata, needsSchemaOnly=True, **kwds),
    )
