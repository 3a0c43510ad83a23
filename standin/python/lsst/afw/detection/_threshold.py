# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Thresholds for detection."""

from __future__ import annotations

__all__ = ["Threshold", "createThreshold"]

import enum
import math
from typing import ClassVar

import numpy as np

from lsst.pex.exceptions import InvalidParameterError

# Interquartile range to standard deviation of a Gaussian.
_IQ_TO_STDEV = 0.741301109252802


class ThresholdType(enum.Enum):
    """How the value of a `Threshold` is meant."""

    VALUE = 0
    BITMASK = 1
    STDEV = 2
    VARIANCE = 3
    PIXEL_STDEV = 4


ThresholdType.__qualname__ = "Threshold.ThresholdType"


def _clipped_stdev(values: np.ndarray) -> float:
    """Standard deviation after three rounds of clipping at 3 sigma.

    The first round clips about the median by the interquartile range, the
    others about the clipped mean (``STDEVCLIP`` of ``lsst.afw.math``).
    """
    finite = np.asarray(values, np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    if finite.size < 2:
        return math.nan
    low, center, high = np.percentile(finite, [25.0, 50.0, 75.0])
    half_width = 3.0 * _IQ_TO_STDEV * (high - low)
    variance = 0.0
    for _ in range(3):
        kept = finite[np.abs(finite - center) <= half_width]
        if kept.size < 2:
            return math.nan
        center = float(kept.mean())
        variance = float(kept.var(ddof=1))
        half_width = 3.0 * math.sqrt(variance)
    return math.sqrt(variance)


class Threshold:
    """A level of detection.

    Parameters
    ----------
    value : `float`
        Level, in the units that ``type`` implies.
    type : `Threshold.ThresholdType`, optional
        ``VALUE``: pixel values; ``STDEV``, ``VARIANCE``: multiples of the
        image's standard deviation; ``PIXEL_STDEV``: multiples of each
        pixel's standard deviation, from the variance plane; ``BITMASK``:
        any of these bits.
    polarity : `bool`, optional
        True for pixels above the level, False for those below its negative.
    includeMultiplier : `float`, optional
        A footprint is only kept if one of its pixels passes the level times
        this number.
    """

    ThresholdType: ClassVar = ThresholdType
    VALUE: ClassVar = ThresholdType.VALUE
    BITMASK: ClassVar = ThresholdType.BITMASK
    STDEV: ClassVar = ThresholdType.STDEV
    VARIANCE: ClassVar = ThresholdType.VARIANCE
    PIXEL_STDEV: ClassVar = ThresholdType.PIXEL_STDEV

    def __init__(
        self,
        value: float,
        type: enum.Enum = ThresholdType.VALUE,
        polarity: bool = True,
        includeMultiplier: float = 1.0,
    ):
        if not isinstance(type, ThresholdType):
            raise TypeError(f"Threshold type must be a Threshold.ThresholdType, not {type!r}.")
        self._value = float(value)
        self._type = type
        self._polarity = bool(polarity)
        self._includeMultiplier = float(includeMultiplier)

    @staticmethod
    def parseTypeString(typeStr: str) -> enum.Enum:
        """Return the type that a lower-case name stands for."""
        try:
            return ThresholdType[typeStr.upper()] if typeStr == typeStr.lower() else ThresholdType[""]
        except KeyError:
            raise InvalidParameterError(f"Unsupported Threshold type: {typeStr}") from None

    @staticmethod
    def getTypeString(type: enum.Enum) -> str:
        """Return the name of a type (value, stdev or variance only)."""
        if type not in (ThresholdType.VALUE, ThresholdType.STDEV, ThresholdType.VARIANCE):
            raise InvalidParameterError(f"Unsupported Threshold type: {type}")
        return type.name.lower()

    def getType(self) -> enum.Enum:
        """Return the type."""
        return self._type

    def getValue(self, param: float = -1) -> float:
        """Return the level in pixel units.

        Parameters
        ----------
        param : `float`, optional
            Standard deviation or variance of the image, for those types.

        Returns
        -------
        value : `float`
            The level.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if the type needs ``param`` and it is not positive.
        """
        if self._type is ThresholdType.STDEV:
            if param <= 0:
                raise InvalidParameterError(f"St. dev. must be > 0: {param:g}")
            return self._value * param
        if self._type is ThresholdType.VARIANCE:
            if param <= 0:
                raise InvalidParameterError(f"Variance must be > 0: {param:g}")
            return self._value * math.sqrt(param)
        return self._value

    def _levelFor(self, array: np.ndarray) -> float:
        """Return the level for an image (y, x), from its own noise."""
        if self._type not in (ThresholdType.STDEV, ThresholdType.VARIANCE):
            return self.getValue()
        stdev = _clipped_stdev(array)
        return self.getValue(stdev if self._type is ThresholdType.STDEV else stdev * stdev)

    def getPolarity(self) -> bool:
        """Return True if pixels above the level are detected."""
        return self._polarity

    def setPolarity(self, polarity: bool) -> None:
        """Set whether pixels above (True) or below are detected."""
        self._polarity = bool(polarity)

    def getIncludeMultiplier(self) -> float:
        """Return the multiplier that one pixel of a footprint must pass."""
        return self._includeMultiplier

    def setIncludeMultiplier(self, includeMultiplier: float) -> None:
        """Set the multiplier that one pixel of a footprint must pass."""
        self._includeMultiplier = float(includeMultiplier)

    def __str__(self) -> str:
        sign = "positive" if self._polarity else "negative"
        text = f"{self._type.name} value={self.getValue(1.0):.8g} ({sign})"
        if self._includeMultiplier != 1.0:
            text += f" multiplier={self._includeMultiplier:.8g}"
        return text

    def __repr__(self) -> str:
        return (
            f"Threshold(value={self.getValue(1.0):.16g}, type={self._type.name}, "
            f"polarity={int(self._polarity)}, includeMultiplier={self._includeMultiplier:.16g})"
        )


def createThreshold(value: float, type: str = "value", polarity: bool = True) -> Threshold:
    """Make a `Threshold` from the name of its type.

    Parameters
    ----------
    value : `float`
        Level.
    type : `str`, optional
        "value", "stdev", "variance", "pixel_stdev" or "bitmask".
    polarity : `bool`, optional
        As in `Threshold`.

    Returns
    -------
    threshold : `Threshold`
        New threshold.
    """
    return Threshold(value, Threshold.parseTypeString(type), polarity)
