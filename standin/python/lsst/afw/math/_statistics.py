# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Statistics of pixels, with clipping."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.pex.exceptions import InvalidParameterError

__all__ = ["Property", "Statistics", "StatisticsControl", "makeStatistics", "stringToStatisticsProperty"]

_IQ_TO_STDEV = 0.741301109252802
"""Standard deviation of a Gaussian in units of its inter-quartile range."""

_PART = 1_000_000
"""How many pixels are in memory in double precision at once."""


class Property(enum.IntFlag):
    """What to compute; members combine with ``|``."""

    NOTHING = 0x0
    ERRORS = 0x1
    NPOINT = 0x2
    MEAN = 0x4
    STDEV = 0x8
    VARIANCE = 0x10
    MEDIAN = 0x20
    IQRANGE = 0x40
    MEANCLIP = 0x80
    STDEVCLIP = 0x100
    VARIANCECLIP = 0x200
    MIN = 0x400
    MAX = 0x800
    SUM = 0x1000
    MEANSQUARE = 0x2000
    ORMASK = 0x4000
    NCLIPPED = 0x8000
    NMASKED = 0x10000


NOTHING = Property.NOTHING
ERRORS = Property.ERRORS
NPOINT = Property.NPOINT
MEAN = Property.MEAN
STDEV = Property.STDEV
VARIANCE = Property.VARIANCE
MEDIAN = Property.MEDIAN
IQRANGE = Property.IQRANGE
MEANCLIP = Property.MEANCLIP
STDEVCLIP = Property.STDEVCLIP
VARIANCECLIP = Property.VARIANCECLIP
MIN = Property.MIN
MAX = Property.MAX
SUM = Property.SUM
MEANSQUARE = Property.MEANSQUARE
ORMASK = Property.ORMASK
NCLIPPED = Property.NCLIPPED
NMASKED = Property.NMASKED
# The members are public by their bare names too.
__all__ += Property.__members__

_CLIPPED = MEANCLIP | STDEVCLIP | VARIANCECLIP


def stringToStatisticsProperty(property: str) -> Property:
    """Return the property of a name."""
    if property not in Property.__members__:
        raise InvalidParameterError(f"Property string not recognized: {property}")
    return Property[property]


class StatisticsControl:
    """How statistics are computed.

    Parameters
    ----------
    numSigmaClip : `float`, optional
        Where to clip, in standard deviations.
    numIter : `int`, optional
        Iterations of clipping.
    andMask : `int`, optional
        Mask bits of pixels to leave out.
    isNanSafe : `bool`, optional
        Leave out pixels that are not finite.
    """

    def __init__(
        self, numSigmaClip: float = 3.0, numIter: int = 3, andMask: int = 0, isNanSafe: bool = True
    ) -> None:
        self.setNumSigmaClip(numSigmaClip)
        self.setNumIter(numIter)
        self._and_mask, self._nan_safe = int(andMask), bool(isNanSafe)

    def getNumSigmaClip(self) -> float:
        """Return where to clip."""
        return self._n_sigma

    def setNumSigmaClip(self, numSigmaClip: float) -> None:
        """Set where to clip."""
        if not numSigmaClip > 0:
            raise InvalidParameterError(f"numSigmaClip must be positive; given {numSigmaClip}.")
        self._n_sigma = float(numSigmaClip)

    def getNumIter(self) -> int:
        """Return the iterations of clipping."""
        return self._n_iter

    def setNumIter(self, numIter: int) -> None:
        """Set the iterations of clipping."""
        if not numIter > 0:
            raise InvalidParameterError(f"numIter must be positive; given {numIter}.")
        self._n_iter = int(numIter)

    def getAndMask(self) -> int:
        """Return the mask bits of pixels to leave out."""
        return self._and_mask

    def setAndMask(self, andMask: int) -> None:
        """Set the mask bits of pixels to leave out."""
        self._and_mask = int(andMask)

    def getNanSafe(self) -> bool:
        """Tell whether pixels that are not finite are left out."""
        return self._nan_safe

    def setNanSafe(self, isNanSafe: bool) -> None:
        """Set whether pixels that are not finite are left out."""
        self._nan_safe = bool(isNanSafe)


class Statistics:
    """Statistics of an image.

    Parameters
    ----------
    values : `numpy.ndarray`
        The pixels.
    mask : `numpy.ndarray` or `None`
        Their mask.
    flags : `int`
        The `Property` members to compute.
    sctrl : `StatisticsControl`
        How to compute them.
    """

    def __init__(
        self, values: np.ndarray, mask: np.ndarray | None, flags: int, sctrl: StatisticsControl
    ) -> None:
        self._flags = Property(flags)
        integers = values.dtype.kind in "iu"
        if values.size == 0:
            raise InvalidParameterError("Image contains no pixels")
        good = np.ones(values.shape, dtype=bool)
        if mask is not None:
            good &= (mask & sctrl.getAndMask()) == 0
        if sctrl.getNanSafe() and not integers:
            good &= np.isfinite(values)
        pixels = values[good]
        if pixels.dtype != np.float32:
            pixels = pixels.astype(np.float64)
        n = pixels.size
        self._or_mask = 0 if mask is None or n == 0 else int(np.bitwise_or.reduce(mask[good], axis=None))
        self._results: dict[Property, tuple[float, float]] = {
            NPOINT: (float(n), 0.0),
            NMASKED: (float(values.size - n), 0.0),
            SUM: (_sum(pixels), 0.0),
            ORMASK: (float(self._or_mask), math.nan),
        }
        mean, variance = _mean_and_variance(pixels)
        self._add_moments(MEAN, VARIANCE, STDEV, mean, variance, n)
        square = (n - 1) / n * variance + mean * mean if n > 1 else math.nan
        self._results[MEANSQUARE] = (square, math.sqrt(2.0) * abs(square) / n if n else math.nan)
        self._results[MIN] = (float(pixels.min()) if n else math.nan, 0.0)
        self._results[MAX] = (float(pixels.max()) if n else math.nan, 0.0)
        if self._flags & (MEDIAN | IQRANGE | _CLIPPED):
            self._add_quantiles(pixels, variance, integers)
        if self._flags & (_CLIPPED | NCLIPPED):
            self._add_clipped(pixels, sctrl)

    def _add_moments(
        self,
        mean_key: Property,
        variance_key: Property,
        stdev_key: Property,
        mean: float,
        variance: float,
        n: int,
    ) -> None:
        variance_error = 2.0 * (n - 1) * variance * variance / (n * n) if n > 0 else math.nan
        stdev = math.sqrt(variance) if variance >= 0 else math.nan
        error = 0.5 * math.sqrt(variance_error) / stdev if stdev > 0 else math.nan
        self._results[mean_key] = (mean, math.sqrt(variance / n) if n and variance >= 0 else math.nan)
        self._results[variance_key] = (variance, math.sqrt(variance_error) if n else math.nan)
        self._results[stdev_key] = (stdev, error)

    def _add_quantiles(self, pixels: np.ndarray, variance: float, integers: bool) -> None:
        n = pixels.size
        if n == 0:
            low = median = high = math.nan
        elif integers and n > 1:
            low, median, high = (_integer_quantile(pixels, f) for f in (0.25, 0.5, 0.75))
        else:
            low, median, high = _quantiles(pixels, (0.25, 0.5, 0.75))
        error = math.sqrt(0.5 * math.pi * variance / n) if n and variance >= 0 else math.nan
        self._results[MEDIAN] = (median, error)
        self._results[IQRANGE] = (high - low, math.nan)

    def _add_clipped(self, pixels: np.ndarray, sctrl: StatisticsControl) -> None:
        center, width = self._results[MEDIAN][0], _IQ_TO_STDEV * self._results[IQRANGE][0]
        mean = variance = math.nan
        used = 0
        for _ in range(sctrl.getNumIter()):
            if math.isnan(center) or math.isnan(width):
                mean = variance = math.nan
                used = 0
                break
            near = np.zeros(pixels.size, bool)
            for start in range(0, pixels.size, _PART):
                part = slice(start, start + _PART)
                distance = np.abs(pixels[part].astype(np.float64) - center)
                near[part] = distance <= sctrl.getNumSigmaClip() * width
            kept = pixels[near]
            used = kept.size
            mean, variance = _mean_and_variance(kept)
            center = mean
            if pixels.size > 1:
                width = math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan
        self._results[NCLIPPED] = (float(pixels.size - used), 0.0)
        self._add_moments(MEANCLIP, VARIANCECLIP, STDEVCLIP, mean, variance, used)

    def getResult(self, prop: int = NOTHING) -> tuple[float, float]:
        """Return value and error of a property."""
        wanted = Property(int(prop) or int(self._flags)) & ~ERRORS
        if not wanted & self._flags:
            raise InvalidParameterError(f"You didn't ask me to calculate {int(wanted)}")
        if wanted not in self._results:
            raise InvalidParameterError(
                "getValue() may only be called without a parameter if you asked for only one statistic"
            )
        value, error = self._results[wanted]
        return value, error if self._flags & ERRORS else math.nan

    def getValue(self, prop: int = NOTHING) -> float:
        """Return a property."""
        return self.getResult(prop)[0]

    def getError(self, prop: int = NOTHING) -> float:
        """Return the error of a property."""
        return self.getResult(prop)[1]

    def getOrMask(self) -> int:
        """Return the bits set in any pixel that was used."""
        return self._or_mask


def _sum(pixels: np.ndarray, mean: float | None = None) -> float:
    """Sum up pixels in double precision, or their squared deviations from a mean.

    Parts are added as numpy adds those of an array, but only one is in memory.
    """
    if pixels.size > _PART:
        half = pixels.size // 2
        half -= half % 8
        return _sum(pixels[:half], mean) + _sum(pixels[half:], mean)
    values = pixels.astype(np.float64)
    if mean is not None:
        values -= mean
        values *= values
    return float(values.sum())


def _mean_and_variance(pixels: np.ndarray) -> tuple[float, float]:
    n = pixels.size
    if n == 0:
        return math.nan, math.nan
    mean = _sum(pixels) / n
    return mean, _sum(pixels, mean) / (n - 1) if n > 1 else math.nan


def _quantiles(pixels: np.ndarray, fractions: Sequence[float]) -> list[float]:
    """Return quantiles as `numpy.quantile` does, in double precision whatever the type of the pixels."""
    places = [fraction * (pixels.size - 1) for fraction in fractions]
    lows = [math.floor(place) for place in places]
    highs = [min(low + 1, pixels.size - 1) for low in lows]
    ordered = np.partition(pixels, sorted({*lows, *highs, pixels.size - 1}))
    if math.isnan(ordered[-1]):
        return [math.nan] * len(places)
    found = []
    for place, low, high in zip(places, lows, highs, strict=True):
        below, above, part = float(ordered[low]), float(ordered[high]), place - low
        step = above - below
        found.append(above - step * (1.0 - part) if part >= 0.5 else below + step * part)
    return found


def _integer_quantile(pixels: np.ndarray, fraction: float) -> float:
    """Return a quantile of integers, ties spread over one unit.

    Equal values are taken to be spread evenly from half a unit below to half
    a unit above.
    """
    n = pixels.size
    naive = float(np.partition(pixels, int(fraction * (n - 1)))[int(fraction * (n - 1))])
    below = int(np.count_nonzero(pixels < naive))
    equal = int(np.count_nonzero(pixels == naive))
    return naive - 0.5 + (fraction * n - below) / equal


def makeStatistics(image: Any, *args: Any) -> Statistics:
    """Compute statistics of an image, masked image, array or list.

    Parameters
    ----------
    image : `lsst.afw.image.Image`, `lsst.afw.image.MaskedImage` or array_like
        The pixels.
    mask : `lsst.afw.image.Mask`, optional
        Mask of an image.
    flags : `int`
        The `Property` members to compute.
    sctrl : `StatisticsControl`, optional
        How to compute them.
    """
    rest = list(args)
    mask = None
    if rest and hasattr(rest[0], "getXY0"):
        mask = rest.pop(0).array
    if not rest or len(rest) > 2:
        raise TypeError("makeStatistics takes (image, [mask], flags, [sctrl]).")
    flags = int(rest[0])
    sctrl = rest[1] if len(rest) == 2 else StatisticsControl()
    if hasattr(image, "image") and hasattr(image, "mask"):
        mask, values = image.mask.array, image.image.array
    elif hasattr(image, "getMaskPlaneDict"):
        if flags & ~(NPOINT | SUM):
            raise InvalidParameterError("Statistics<Mask> only supports NPOINT and SUM")
        # The sum of bits is all that are set anywhere.
        result = Statistics(image.array, None, flags, sctrl)
        result._results[SUM] = (float(np.bitwise_or.reduce(image.array, axis=None)), 0.0)
        return result
    elif hasattr(image, "getXY0"):
        values = image.array
    else:
        values = np.asarray(image)
        if values.dtype.kind in "iu" and not isinstance(image, np.ndarray):
            values = values.astype(float)
    return Statistics(values, mask, flags, sctrl)
