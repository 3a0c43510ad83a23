# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Replacement of sources with noise while others are measured."""

from __future__ import annotations

__all__ = ("DummyNoiseReplacer", "NoiseReplacer", "NoiseReplacerConfig")

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.afw.math as afwMath
from lsst.afw.detection import makeHeavyFootprint
from lsst.afw.image import ImageF
from lsst.pex.config import ChoiceField, Config, Field

if TYPE_CHECKING:
    from lsst.afw.detection import Footprint
    from lsst.afw.geom import SpanSet
    from lsst.afw.image import ExposureF


class NoiseReplacerConfig(Config):
    """Settings of `NoiseReplacer`."""

    noiseSource = ChoiceField[str](
        doc="How to choose mean and variance of the Gaussian noise we generate?",
        allowed={
            "measure": "Measure clipped mean and variance from the whole image",
            "meta": 'Mean = 0, variance = the "BGMEAN" metadata entry',
            "variance": "Mean = 0, variance = the image's variance",
            "variance_median": "Mean = 0, variance = median(variance plane)",
        },
        default="measure",
        optional=False,
    )
    noiseOffset = Field[float](doc="Add ann offset to the generated noise.", optional=False, default=0.0)
    noiseSeedMultiplier = Field[int](
        default=1,
        doc="The seed multiplier value to use for random number generation:\n"
        ">= 1: set the seed deterministically based on exposureId\n"
        "0: fall back to the afw.math.Random default constructor (which uses a seed value of 1)",
    )


class _GivenNoise:
    """Noise that is cut out of an image."""

    def __init__(self, image: ImageF):
        self._image = image

    def draw(self, sources: Mapping[int, tuple[SpanSet, _Pixels]]) -> dict[int, np.ndarray]:
        """Return the noise in the pixels of sources by id."""
        array, xy0 = self._image.array, self._image.getXY0()
        return {id: array[spans._indices_in(array.shape, xy0)] for id, (spans, _) in sources.items()}


class _GaussianNoise:
    """Noise of a mean and a width, or of the width of each pixel.

    A box about the footprint is drawn, so that the random numbers are those
    that upstream draws.
    """

    def __init__(self, mean: float, std: float | None, rand: afwMath.Random, variance: ImageF | None = None):
        self._mean, self._std = mean, std
        self._rand = rand
        self._variance = None if variance is None else variance.array

    def draw(self, sources: Mapping[int, tuple[SpanSet, _Pixels]]) -> dict[int, np.ndarray]:
        """Return the noise in the pixels of sources by id."""
        result = {}
        drawn, at = np.empty(0), 0
        for id, (spans, (y, x)) in sources.items():
            if not y.size:
                result[id] = np.empty(0, np.float32)
                continue
            box = spans.getBBox()
            first, width = box.minX - int(spans._x0[0]) + x[0], box.width
            area = (int(y[-1]) - int(y[0]) + 1) * width
            if at + area > drawn.size:
                # Many at once, as each call takes its time.
                drawn, at = np.concatenate([drawn[at:], self._rand._gaussian(max(area, _DRAWN))]), 0
            noise = drawn[at + (y - y[0]) * width + (x - first)].astype(np.float32)
            at += area
            noise *= np.float32(self._std) if self._variance is None else np.sqrt(self._variance[y, x])
            if self._mean:
                noise += np.float32(self._mean)
            result[id] = noise
        return result


_Pixels = tuple[np.ndarray, np.ndarray]
"""y and x of some pixels in the array."""

_DRAWN = 100_000
"""How many random numbers are drawn at once."""


class NoiseReplacer:
    """Replaces all sources with noise, and puts them back one at a time.

    A source that has a heavy footprint is put back with its pixels; one that
    has not, with those of the nearest parent that has; parents always have,
    from the image.

    Parameters
    ----------
    config : `NoiseReplacerConfig`
        Settings.
    exposure : `lsst.afw.image.Exposure`
        Image, changed in place until `end` is called. While it is, the mask
        planes THISDET and OTHERDET mark the source that was put back and the
        others.
    footprints : `dict`
        {id: (parent's id, footprint)}; 0 is the id of no parent.
    noiseImage : `lsst.afw.image.ImageF`, optional
        Where the noise is taken from, if given.
    exposureId : `int`, optional
        Number of the image, for the seed.
    log : `logging.Logger`, optional
        Log.
    """

    ConfigClass: ClassVar[Any] = NoiseReplacerConfig

    def __init__(
        self,
        config: NoiseReplacerConfig,
        exposure: ExposureF,
        footprints: dict[int, tuple[int, Footprint]],
        noiseImage: ImageF | None = None,
        exposureId: int | None = None,
        log: Any = None,
    ):
        self.noiseSource = config.noiseSource
        self.noiseOffset = config.noiseOffset
        self.noiseSeedMultiplier = config.noiseSeedMultiplier
        self.log = log
        self.exposure = exposure
        self.footprints = footprints
        image, mask = exposure.image, exposure.mask
        self.removeplanes = []
        bits = []
        for name in ("THISDET", "OTHERDET"):
            if name in mask.getMaskPlaneDict():
                plane = mask.getMaskPlane(name)
            else:
                plane = mask.addMaskPlane(name)
                self.removeplanes.append(name)
            mask.clearMaskPlane(plane)
            bits.append(mask.getPlaneBitMask(name))
        self.thisbitmask, self.otherbitmask = bits
        self.heavies: dict[int, Any] = {}
        masked_image = exposure.getMaskedImage()
        for id, (parent, footprint) in footprints.items():
            if footprint.isHeavy():
                self.heavies[id] = footprint
            elif parent == 0:
                self.heavies[id] = makeHeavyFootprint(footprint, masked_image)
        generator = self._make_generator(noiseImage, exposureId)
        shape, xy0 = image.array.shape, image.getXY0()
        spans = {id: footprints[id][1].getSpans() for id in self.heavies}
        self._pixels: dict[int, _Pixels] = {id: one._indices_in(shape, xy0) for id, one in spans.items()}
        self._noise = generator.draw({id: (one, self._pixels[id]) for id, one in spans.items()})
        for id, noise in self._noise.items():
            where = self._pixels[id]
            image.array[where] = noise
            mask.array[where] |= np.int32(self.otherbitmask)

    def _find_heavy(self, id: int) -> int:
        """Return the source itself or the nearest parent with pixels."""
        while id not in self.heavies and self.footprints[id][0] != 0:
            id = self.footprints[id][0]
        return id

    def getPixels(self, id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any]:
        """Return the pixels that `insertSource` puts back: y and x in the array, values, noise, footprint."""
        used = self._find_heavy(id)
        heavy = self.heavies[used].getImageArray()
        return (*self._pixels[used], heavy, self._noise[used], self.footprints[used][1])

    def insertSource(self, id: int) -> None:
        """Put a source back.

        Parameters
        ----------
        id : `int`
            Its id.
        """
        used = self._find_heavy(id)
        where = self._pixels[used]
        self.exposure.image.array[where] = self.heavies[used].getImageArray()
        mask = self.exposure.mask.array
        mask[where] = (mask[where] | np.int32(self.thisbitmask)) & np.int32(~self.otherbitmask)

    def removeSource(self, id: int) -> None:
        """Replace a source with noise again, the same as before.

        Parameters
        ----------
        id : `int`
            Its id.
        """
        used = self._find_heavy(id)
        where = self._pixels[used]
        self.exposure.image.array[where] = self._noise[used]
        mask = self.exposure.mask.array
        mask[where] = (mask[where] | np.int32(self.otherbitmask)) & np.int32(~self.thisbitmask)

    def end(self) -> None:
        """Make the image what it was, and forget all about it."""
        image, mask = self.exposure.image, self.exposure.mask
        for id, (parent, _) in self.footprints.items():
            if parent == 0:
                image.array[self._pixels[id]] = self.heavies[id].getImageArray()
        for name in self.removeplanes:
            mask.removeAndClearMaskPlane(name, True)
        del self.removeplanes, self.thisbitmask, self.otherbitmask, self.heavies, self._noise, self._pixels

    def _make_generator(self, noiseImage: ImageF | None, exposureId: int | None) -> Any:
        if noiseImage is not None:
            return _GivenNoise(noiseImage)
        seed = 1
        if self.noiseSeedMultiplier:
            seed = (exposureId or 1) * self.noiseSeedMultiplier
        rand = afwMath.Random(afwMath.Random.MT19937, seed)
        offset = self.noiseOffset
        if self.noiseSource == "meta":
            metadata = self.exposure.getMetadata()
            if "BGMEAN" in metadata:
                return _GaussianNoise(offset, math.sqrt(metadata.getAsDouble("BGMEAN")), rand)
            # As upstream: measured after all.
            if self.log:
                self.log.debug("Failed to get BGMEAN from exposure metadata")
        if self.noiseSource == "variance":
            return _GaussianNoise(offset, None, rand, self.exposure.variance)
        if self.noiseSource == "variance_median":
            median = afwMath.makeStatistics(self.exposure.variance, afwMath.MEDIAN).getValue()
            return _GaussianNoise(offset, math.sqrt(median), rand)
        statistics = afwMath.makeStatistics(self.exposure.image, afwMath.MEANCLIP | afwMath.STDEVCLIP)
        mean, std = statistics.getValue(afwMath.MEANCLIP), statistics.getValue(afwMath.STDEVCLIP)
        if self.log:
            self.log.debug("Measured from image: clipped mean = %g, stdev = %g", mean, std)
        return _GaussianNoise(mean + offset, std, rand)


class DummyNoiseReplacer:
    """Does nothing, where sources are not to be replaced."""

    def getPixels(self, id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any]:
        """Return no pixels: all of them are in the image."""
        none = np.empty(0, np.int64)
        return none, none, np.empty(0, np.float32), np.empty(0, np.float32), None

    def insertSource(self, id: int) -> None:
        """Do nothing."""

    def removeSource(self, id: int) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""
