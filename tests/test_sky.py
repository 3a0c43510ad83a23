# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky, noise and seeing of images of which nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.meas.maskrcnn.images.sky import blur, estimate_sky, find_plateau
from lsst.meas.maskrcnn.images.stars import measure_psfs

SHAPE = (300, 380)


def add_sources(image, rng, number, fwhm, low=2.0, high=3.5):
    """Round Gaussians of a width, at random places; returns their total."""
    sigma = fwhm / 2.3548
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    for _ in range(number):
        y0, x0 = rng.uniform(20, image.shape[0] - 20), rng.uniform(20, image.shape[1] - 20)
        image += 10 ** rng.uniform(low, high) * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2)


@pytest.mark.parametrize("sky", [0.0, 40.0, 900.0])
def test_sky_and_noise_under_sources(rng, sky):
    light = np.zeros(SHAPE)
    add_sources(light, rng, 60, 4.0)
    image = sky + light + rng.normal(0.0, 5.0, SHAPE)
    good = np.ones(SHAPE, bool)
    good[10:20, 30:60] = False
    image[~good] = 1e6
    estimate = estimate_sky(image, good)
    assert estimate.sigma == pytest.approx(5.0, rel=0.02)
    assert np.abs(estimate.level - sky).max() < 1.0
    assert abs(estimate.level.mean() - sky) < 0.25
    assert abs(estimate.correlation) < 0.03
    assert estimate.sources[light > 20.0].all() and estimate.sources.mean() < 0.7


def test_counted_photons(rng):
    """Integers: medians and quantiles of them would be integers as well."""
    for mean in (12.4, 53.3):
        image = rng.poisson(mean, SHAPE).astype(float)
        estimate = estimate_sky(image, np.ones(SHAPE, bool))
        assert estimate.level.mean() == pytest.approx(mean, abs=0.02 * mean**0.5)
        assert estimate.sigma == pytest.approx(mean**0.5, rel=0.015)


def test_slope(rng):
    slope = np.linspace(0.0, 30.0, SHAPE[1]) + np.linspace(0.0, -10.0, SHAPE[0])[:, None]
    estimate = estimate_sky(slope + rng.normal(0.0, 2.0, SHAPE), np.ones(SHAPE, bool), mesh_size=32)
    inner = (slice(20, -20), slice(20, -20))
    assert np.abs(estimate.level - slope)[inner].max() < 1.0
    assert estimate.sigma == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("steepness", [20.0, 300.0, 1000.0])
@pytest.mark.parametrize("power", [1, 2])
def test_steep_slope_under_sources(rng, steepness, power):
    """A sky that changes by many times the noise within a cell of the mesh."""
    shape = (600, 700)
    light = np.zeros(shape)
    add_sources(light, rng, 170, 5.0, 0.5, 3.0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    sky = 1000.0 + steepness * ((x / shape[1]) ** power - 0.3 * y / shape[0])
    sky[:, :90] = np.nan
    good = np.isfinite(sky)
    image = np.where(good, sky + light + rng.normal(0.0, 1.0, shape), 0.0)
    estimate = estimate_sky(image, good)
    assert np.abs((estimate.level - sky)[good]).max() < 1.0
    assert estimate.sigma == pytest.approx(1.0, rel=0.01)
    # As without the slope.
    flat = estimate_sky(np.where(good, image - sky, 0.0), good)
    assert (estimate.sources != flat.sources).mean() < 0.15


def test_correlated_noise(rng):
    """The noise of single pixels, not of differences of neighbours."""
    noise = blur(rng.normal(0.0, 1.0, SHAPE), 0.8)
    estimate = estimate_sky(noise, np.ones(SHAPE, bool), subtracted=True)
    assert estimate.sigma == pytest.approx(noise.std(), rel=0.03)
    expected = np.mean(noise[:, 1:] * noise[:, :-1]) / noise.var()
    assert estimate.correlation == pytest.approx(expected, abs=0.05)
    assert estimate.level.max() == 0.0


def test_blur_is_a_gaussian():
    image = np.zeros((41, 61))
    image[20, 30] = 1.0
    y, x = np.mgrid[-20:21, -30:31]
    expected = np.exp(-0.5 * (x**2 + y**2) / 9.0) / (2.0 * np.pi * 9.0)
    np.testing.assert_allclose(blur(image, 3.0), expected, atol=2e-4)
    assert blur(image, 3.0).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("fwhm", [2.8, 4.0, 6.5])
def test_stars_among_galaxies_and_cosmic_rays(rng, fwhm):
    image = rng.normal(0.0, 2.0, (400, 500))
    add_sources(image, rng, 25, fwhm)
    for width in rng.uniform(1.4, 3.0, 12) * fwhm:
        add_sources(image, rng, 1, width)
    ys, xs = rng.integers(20, 380, 20), rng.integers(20, 480, 20)
    image[ys, xs] += 800.0
    (found,) = measure_psfs([image], [np.ones(image.shape, bool)], [2.0])
    assert found is not None
    assert found.fwhm == pytest.approx(fwhm, rel=0.04)
    assert abs(found.fwhm - fwhm) < 4.0 * found.error < 0.2 * fwhm
    assert 5 <= found.n_stars <= 37


def test_no_stars(rng):
    noise = rng.normal(0.0, 1.0, SHAPE)
    good = np.ones(SHAPE, bool)
    assert measure_psfs([noise, noise[::-1]], [good, good], [1.0, 1.0]) == [None, None]
    assert measure_psfs([noise[:20, :20]], [good[:20, :20]], [1.0]) == [None]
    assert measure_psfs([noise, noise], [good, ~good], [0.0, 1.0]) == [None, None]


def test_plateau(rng):
    image = rng.normal(100.0, 3.0, SHAPE)
    assert find_plateau(image) is None
    image[40:43, 50:53] = 60000.0
    assert find_plateau(image) == 60000.0
    image[100, 100] = 61000.0
    assert find_plateau(image) is None
    assert find_plateau(np.full(SHAPE, np.nan)) is None


def test_unusual_images():
    good = np.ones((30, 50), bool)
    flat = estimate_sky(np.full((30, 50), 7.0), good)
    assert flat.level == pytest.approx(np.full((30, 50), 7.0), abs=0.02) and flat.sigma == 0.0
    with pytest.raises(ValueError, match="No pixel"):
        estimate_sky(np.zeros((30, 50)), ~good)
    with pytest.raises(ValueError, match=r"\(30, 50\)"):
        estimate_sky(np.zeros((50, 30)), good)
    with pytest.raises(ValueError, match="mesh_size"):
        estimate_sky(np.zeros((30, 50)), good, mesh_size=0)


@pytest.mark.parametrize("step", [1.0, 0.0457, 7.0])
@pytest.mark.parametrize("sigma", [0.35, 0.6, 1.5])
def test_values_in_coarse_steps(rng, step, sigma):
    """As of eight bits, or scaled to integers: steps are as large as the noise, to which they add."""
    image = step * np.rint(rng.normal(20.2, sigma, SHAPE)) + (0.0 if step == 1.0 else 3.3)
    estimate = estimate_sky(image.astype(np.float32), np.ones(SHAPE, bool))
    assert estimate.sigma == pytest.approx(np.std(image), rel=0.05)
    assert np.median(estimate.level) == pytest.approx(np.mean(image), abs=0.05 * step)


@pytest.mark.parametrize("mean", [0.05, 0.3, 2.0])
def test_few_photons(rng, mean):
    """Where most pixels have none, the sky is not 0."""
    estimate = estimate_sky(rng.poisson(mean, SHAPE).astype(float), np.ones(SHAPE, bool))
    assert np.median(estimate.level) == pytest.approx(mean, rel=0.25)
    assert estimate.sigma == pytest.approx(np.sqrt(mean), rel=0.12)
