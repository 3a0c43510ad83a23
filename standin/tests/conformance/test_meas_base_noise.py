# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random numbers, and the replacement of sources with noise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lsst.afw.detection import Footprint, makeHeavyFootprint
from lsst.afw.image import ExposureF, ImageF, MaskedImageF
from lsst.afw.math import Random, randomGaussianImage
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.meas.base import DummyNoiseReplacer, NoiseReplacer, NoiseReplacerConfig
from lsst.pex.config import FieldValidationError

sys.path.append(str(Path(__file__).parent))
from meas_base_images import BBOX, gaussian, make_exposure, make_footprint

NOISE = 3.0
LEVEL = 7.0


def test_uniform_numbers_are_those_of_the_twister() -> None:
    # The first output of MT19937 for the seed of its authors.
    assert Random(Random.MT19937, 5489).uniform() == 3499211612 / 2**32
    assert Random("MT19937", 5489).uniform() == 3499211612 / 2**32
    # What follows is what follows in the C++ standard library as well.
    rand = Random(Random.MT19937, 5489)
    numbers = [rand.uniform() for _ in range(10000)]
    assert numbers[-1] == 4123659995 / 2**32
    # Ids of images have more bits than it takes for a seed.
    assert Random(Random.MT19937, 2**32 + 5489).uniform() == 3499211612 / 2**32


def test_gaussian_numbers() -> None:
    rand = Random(Random.MT19937, 17)
    image = ImageF(700, 500)
    randomGaussianImage(image, rand)
    values = image.array.astype(float)
    n = values.size
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96 / n)
    # In the tail, where the method changes, at 3.44.
    for threshold, probability in ((1.0, 0.31731051), (3.0, 2.69980e-3), (3.4, 6.7385e-4), (3.6, 3.1822e-4)):
        expected = n * probability
        assert abs((np.abs(values) > threshold).sum() - expected) < 4.5 * np.sqrt(expected)
    # Neighbours do not know of each other.
    assert abs((values[:, 1:] * values[:, :-1]).mean()) < 4 / np.sqrt(n)


def test_gaussian_numbers_do_not_depend_on_how_many_are_drawn() -> None:
    whole = ImageF(60, 50)
    randomGaussianImage(whole, Random(Random.MT19937, 3))
    rand = Random(Random.MT19937, 3)
    parts = []
    for height in (1, 7, 30, 12):
        part = ImageF(60, height)
        randomGaussianImage(part, rand)
        parts.append(part.array)
    assert np.array_equal(np.concatenate(parts), whole.array)
    one_by_one = Random(Random.MT19937, 3)
    np.testing.assert_allclose([one_by_one.gaussian() for _ in range(60)], whole.array[0], rtol=1e-6)
    other = ImageF(60, 50)
    randomGaussianImage(other, Random(Random.MT19937, 4))
    assert not np.array_equal(other.array, whole.array)


@pytest.fixture
def exposure(rng: np.random.Generator) -> ExposureF:
    """Three sources on noise."""
    exposure = make_exposure(variance=NOISE**2)
    exposure.image.array[:, :] = rng.normal(LEVEL, NOISE, exposure.image.array.shape)
    for x, y in ((0.0, 1340.0), (60.0, 1400.0), (66.0, 1400.0)):
        exposure.image.array += gaussian(x, y, 5e4).astype(np.float32)
    return exposure


def make_footprints(exposure: ExposureF, heavy: bool = True) -> dict[int, tuple[int, Footprint]]:
    """Return an isolated source, and a parent with two children."""
    parent = make_footprint(63.0, 1400.0, 20)
    footprints = {11: (0, make_footprint(0.0, 1340.0)), 12: (0, parent)}
    for number, x in ((21, 60.0), (22, 66.0)):
        child = make_footprint(x, 1400.0, 12)
        child.setSpans(child.getSpans().intersect(parent.getSpans()))
        if heavy:
            light = MaskedImageF(BBOX)
            light.image.array[:, :] = gaussian(x, 1400.0, 5e4)
            child = makeHeavyFootprint(child, light)
        footprints[number] = (12, child)
    return footprints


def covered(footprints: dict[int, tuple[int, Footprint]], *numbers: int) -> np.ndarray:
    """Return which pixels the footprints have."""
    shape = (BBOX.getHeight(), BBOX.getWidth())
    result = np.zeros(shape, bool)
    for number in numbers or footprints:
        spans = footprints[number][1].getSpans()
        result |= spans.asArray(shape, BBOX.getMin())
    return result


def test_all_is_noise_and_comes_back(exposure: ExposureF) -> None:
    image, mask = exposure.image.array.copy(), exposure.mask.array.copy()
    variance = exposure.variance.array.copy()
    planes = set(exposure.mask.getMaskPlaneDict())
    footprints = make_footprints(exposure)
    replacer = NoiseReplacer(NoiseReplacerConfig(), exposure, footprints)
    sources = covered(footprints)
    assert np.array_equal(exposure.image.array[~sources], image[~sources])
    noise = exposure.image.array[sources]
    assert sources.sum() > 1000
    # The clipped mean and width of the whole image.
    assert noise.mean() == pytest.approx(LEVEL, abs=5 * NOISE / np.sqrt(sources.sum()) + 0.2)
    assert noise.std() == pytest.approx(NOISE, rel=0.15)
    other = exposure.mask.getPlaneBitMask("OTHERDET")
    assert np.array_equal((exposure.mask.array & other) != 0, sources)
    replacer.end()
    assert np.array_equal(exposure.image.array, image)
    assert np.array_equal(exposure.mask.array, mask)
    assert np.array_equal(exposure.variance.array, variance)
    assert set(exposure.mask.getMaskPlaneDict()) == planes


def test_one_at_a_time(exposure: ExposureF) -> None:
    before = exposure.image.array.copy()
    footprints = make_footprints(exposure)
    replacer = NoiseReplacer(NoiseReplacerConfig(), exposure, footprints, exposureId=42)
    this, other = (exposure.mask.getPlaneBitMask(name) for name in ("THISDET", "OTHERDET"))
    drawn = {}
    for number in footprints:
        noise = exposure.image.array.copy()
        replacer.insertSource(number)
        own = covered(footprints, number)
        assert np.array_equal(exposure.image.array[~own], noise[~own])
        expected = before
        if number in (21, 22):
            # A child has its own share, not what is in the image.
            expected = gaussian(60.0 if number == 21 else 66.0, 1400.0, 5e4).astype(np.float32)
        assert np.array_equal(exposure.image.array[own], expected[own])
        assert np.array_equal((exposure.mask.array & this) != 0, own)
        assert not (exposure.mask.array[own] & other).any()
        replacer.removeSource(number)
        assert not (exposure.mask.array & this).any()
        assert np.array_equal((exposure.mask.array & other) != 0, covered(footprints))
        assert abs(exposure.image.array[own].mean() - LEVEL) < 1.0
        drawn[number] = exposure.image.array[own]
    # Every time the same.
    for number in footprints:
        replacer.insertSource(number)
        replacer.removeSource(number)
        assert np.array_equal(exposure.image.array[covered(footprints, number)], drawn[number])
    replacer.end()
    assert np.array_equal(exposure.image.array, before)


def test_children_without_pixels_are_measured_in_their_parent(exposure: ExposureF) -> None:
    before = exposure.image.array.copy()
    footprints = make_footprints(exposure, heavy=False)
    replacer = NoiseReplacer(NoiseReplacerConfig(), exposure, footprints)
    replacer.insertSource(21)
    family = covered(footprints, 12)
    assert np.array_equal(exposure.image.array[family], before[family])
    replacer.removeSource(21)
    assert not np.array_equal(exposure.image.array[family], before[family])
    replacer.end()
    assert np.array_equal(exposure.image.array, before)


def draw(exposure: ExposureF, exposure_id: int | None = None, **settings: object) -> np.ndarray:
    """Return the noise that sources are replaced with."""
    config = NoiseReplacerConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    footprints = make_footprints(exposure)
    replacer = NoiseReplacer(config, exposure, footprints, exposureId=exposure_id)
    noise = exposure.image.array[covered(footprints)]
    replacer.end()
    return noise


def test_seeds(exposure: ExposureF) -> None:
    first = draw(exposure, 5)
    assert np.array_equal(first, draw(exposure, 5))
    assert not np.array_equal(first, draw(exposure, 6))
    assert np.array_equal(draw(exposure, 10), draw(exposure, 5, noiseSeedMultiplier=2))
    assert np.array_equal(draw(exposure), draw(exposure, 1))
    assert np.array_equal(draw(exposure, 5, noiseSeedMultiplier=0), draw(exposure, 1))


def test_sources_of_noise(exposure: ExposureF) -> None:
    offset = draw(exposure, noiseOffset=100.0)
    np.testing.assert_allclose(offset - 100.0, draw(exposure), atol=1e-4)
    exposure.variance.array[:, :] = 25.0
    median = draw(exposure, noiseSource="variance_median")
    assert median.mean() == pytest.approx(0.0, abs=0.6)
    assert median.std() == pytest.approx(5.0, rel=0.1)
    exposure.getMetadata().setDouble("BGMEAN", 81.0)
    assert draw(exposure, noiseSource="meta").std() == pytest.approx(9.0, rel=0.1)
    with pytest.raises(FieldValidationError):
        NoiseReplacerConfig().noiseSource = "guess"


def test_variance_as_source() -> None:
    # Upstream counts pixels from the corner of the image here.
    box = Box2I(Point2I(0, 0), Extent2I(80, 60))
    exposure = make_exposure(bbox=box)
    exposure.variance.array[:, :] = 4.0
    exposure.variance.array[:, 40:] = 400.0
    footprints = {
        1: (0, make_footprint(20, 30, 15, bbox=box)),
        2: (0, make_footprint(60, 30, 15, bbox=box)),
    }
    config = NoiseReplacerConfig()
    config.noiseSource = "variance"
    replacer = NoiseReplacer(config, exposure, footprints)
    for number, sigma in ((1, 2.0), (2, 20.0)):
        spans = footprints[number][1].getSpans()
        values = exposure.image.array[spans.asArray((60, 80), Point2I(0, 0))]
        assert values.std() == pytest.approx(sigma, rel=0.15)
    replacer.end()
    assert not exposure.image.array.any()


def test_given_noise(exposure: ExposureF) -> None:
    noise = ImageF(BBOX)
    noise.array[:, :] = np.arange(noise.array.size).reshape(noise.array.shape)
    footprints = make_footprints(exposure)
    replacer = NoiseReplacer(NoiseReplacerConfig(), exposure, footprints, noiseImage=noise)
    sources = covered(footprints)
    assert np.array_equal(exposure.image.array[sources], noise.array[sources])
    replacer.end()


def test_dummy_does_nothing() -> None:
    replacer = DummyNoiseReplacer()
    replacer.insertSource(1)
    replacer.removeSource(1)
    replacer.end()
