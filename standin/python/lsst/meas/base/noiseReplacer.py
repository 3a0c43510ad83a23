# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Replacement of sources with noise while others are measured."""

from __future__ import annotations

__all__ = ("DummyNoiseReplacer", "NoiseReplacer", "NoiseReplacerConfig")

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.afw.math as afwMath
from lsst.afw.detection import makeHeavyFootprint
from lsst.afw.image import ImageF
from lsst.pex.config import ChoiceField, Config, Field

if TYPE_CHECKING:
    from lsst.afw.detection import Footprint
    from lsst.afw.image import ExposureF
    from lsst.geom import Box2I


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

    def draw(self, footprint: Footprint) -> np.ndarray:
        """Return the noise in the pixels of a footprint."""
        spans = footprint.getSpans()
        return self._image.array[spans._indices_in(self._image.array.shape, self._image.getXY0())]


class _GaussianNoise:
    """Noise of a mean and a width, or of the width of each pixel.

    A box about the footprint is drawn, so that the random numbers are those
    that upstream draws.
    """

    def __init__(self, mean: float, std: float | None, rand: afwMath.Random, variance: ImageF | None = None):
        self._mean, self._std = mean, std
        self._rand = rand
        self._variance = variance

    def _draw_box(self, box: Box2I) -> np.ndarray:
        shape = (box.getHeight(), box.getWidth())
        image = self._rand._gaussian(shape[0] * shape[1]).reshape(shape).astype(np.float32)
        if self._variance is not None:
            x0, y0 = self._variance.getXY0()
            part = self._variance.array[
                box.getMinY() - y0 : box.getMaxY() - y0 + 1, box.getMinX() - x0 : box.getMaxX() - x0 + 1
            ]
            image *= np.sqrt(part)
        else:
            image *= np.float32(self._std)
        if self._mean:
            image += np.float32(self._mean)
        return image

    def draw(self, footprint: Footprint) -> np.ndarray:
        """Return noise for the pixels of a footprint."""
        box = footprint.getBBox()
        return self._draw_box(box)[footprint.getSpans()._pixels(box.getMinX(), box.getMinY())]


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
        self._inserted: tuple[int, Any] | None = None
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
        self._noise = {id: generator.draw(footprints[id][1]) for id in self.heavies}
        for id, noise in self._noise.items():
            where = self._pixels(id)
            image.array[where] = noise
            mask.array[where] |= np.int32(self.otherbitmask)

    def _pixels(self, id: int) -> Any:
        """Return where the pixels of a source are in the arrays."""
        image = self.exposure.image
        return self.footprints[id][1].getSpans()._indices_in(image.array.shape, image.getXY0())

    def _find_heavy(self, id: int) -> int:
        """Return the source itself or the nearest parent with pixels."""
        while id not in self.heavies and self.footprints[id][0] != 0:
            id = self.footprints[id][0]
        return id

    def insertSource(self, id: int) -> None:
        """Put a source back.

        Parameters
        ----------
        id : `int`
            Its id.
        """
        used = self._find_heavy(id)
        where = self._pixels(used)
        self.exposure.image.array[where] = self.heavies[used].getImageArray()
        mask = self.exposure.mask.array
        mask[where] = (mask[where] | np.int32(self.thisbitmask)) & np.int32(~self.otherbitmask)
        # Most often the next thing is to remove it again.
        self._inserted = (used, where)

    def removeSource(self, id: int) -> None:
        """Replace a source with noise again, the same as before.

        Parameters
        ----------
        id : `int`
            Its id.
        """
        used = self._find_heavy(id)
        inserted, self._inserted = self._inserted, None
        where = inserted[1] if inserted is not None and inserted[0] == used else self._pixels(used)
        self.exposure.image.array[where] = self._noise[used]
        mask = self.exposure.mask.array
        mask[where] = (mask[where] | np.int32(self.otherbitmask)) & np.int32(~self.thisbitmask)

    def end(self) -> None:
        """Make the image what it was, and forget all about it."""
        image, mask = self.exposure.image, self.exposure.mask
        for id, (parent, _) in self.footprints.items():
            if parent == 0:
                self.heavies[id].insert(image)
        for name in self.removeplanes:
            mask.removeAndClearMaskPlane(name, True)
        self._inserted = None
        del self.removeplanes, self.thisbitmask, self.otherbitmask, self.heavies, self._noise

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

    def insertSource(self, id: int) -> None:
        """Do nothing."""

    def removeSource(self, id: int) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""
