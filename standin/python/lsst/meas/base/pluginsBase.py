# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Base classes of plugins."""

from __future__ import annotations

__all__ = ("BasePlugin", "BasePluginConfig")

from typing import TYPE_CHECKING, Any, ClassVar

from lsst.pex.config import Config

if TYPE_CHECKING:
    from lsst.afw.table import SourceRecord

    from ._exceptions import MeasurementError


class BasePluginConfig(Config):
    """Base of the settings of plugins."""


class BasePlugin:
    """Base of plugins.

    Plugins run in the order of the numbers that `getExecutionOrder` returns,
    which are usually one of the constants of this class.

    Parameters
    ----------
    config : `BasePluginConfig`
        Settings.
    name : `str`
        Name by which the plugin is registered.
    logName : `str`, optional
        Name of the log.
    """

    CENTROID_ORDER: ClassVar[float] = 0.0
    """For what needs nothing but the footprint and its peaks."""

    SHAPE_ORDER: ClassVar[float] = 1.0
    """For what needs a centroid."""

    FLUX_ORDER: ClassVar[float] = 2.0
    """For what needs a centroid and a shape."""

    APCORR_ORDER: ClassVar[float] = 3.0
    """For what needs fluxes."""

    DEFAULT_CATALOGCALCULATION: ClassVar[float] = 4.0
    """For what needs only the catalogue."""

    ConfigClass: ClassVar[Any] = BasePluginConfig

    needs_pixels: ClassVar[bool] = True
    """Whether the plugin needs more than the catalogue."""

    @classmethod
    def getExecutionOrder(cls) -> float:
        """Return when to run, relative to other plugins."""
        raise NotImplementedError("All plugins must implement getExecutionOrder()")

    def __init__(self, config: Any, name: str, logName: str | None = None):
        self.config = config
        self.name = name
        self.logName = logName

    def getBatchMethod(self) -> Any:
        """Return what measures a `Batch` and lists the rows that it left out; None if there is no such."""
        return getattr(getattr(self, "cpp", self), "measureBatch", None)

    def getLogName(self) -> str | None:
        """Return the name of the log."""
        return self.logName

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Set the flags of a failure.

        Parameters
        ----------
        measRecord : `lsst.afw.table.SourceRecord`
            The source that was being measured.
        error : `MeasurementError`, optional
            What was raised, if it was an error of this class.
        """
        raise NotImplementedError(
            f"The algorithm '{type(self).__name__}' has no fail(), but it failed; please report this bug."
        )
