# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Noise of simulated scenes: the pixels have the variance that the plane says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from few_sources import EMPTY, star

from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig, BandConditions, PopulationConfig, SceneConfig
from lsst.meas.maskrcnn.scenes.simulate import draw_scene, simulate_scene
from lsst.meas.maskrcnn.train.training_set import to_training_scene

CONDITIONS = (
    BandConditions("g", 0.77, 2.5, 60.0, 1.5e4, read_noise=20.0, exposures=9),
    BandConditions("r", 0.72, 3.6, 60.0, 1.5e4),
    BandConditions("z", 0.68, 10.0, 0.5, 3.0e4, read_noise=3.0, exposures=4),
)
# sqrt(2.5^2 + 9 (20 / 60)^2), and so on
NOISE = np.array([math.sqrt(100.0 + 4.0 * 36.0), 3.6, math.sqrt(6.25 + 1.0)])


def make_config(**changes):
    changes.setdefault("shape", (300, 400))
    changes.setdefault("population", EMPTY)
    changes.setdefault("conditions", CONDITIONS)
    return SceneConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"exposure_factor": 2.0},
        {"artefacts": ArtefactConfig(correlation=0.6)},
        {"artefacts": ArtefactConfig(chip_gaps=3.0, chip_gap_depth=0.5)},
        {"artefacts": ArtefactConfig(chip_gaps=3.0, chip_gap_depth=0.5, correlation=0.4)},
        {"artefacts": ArtefactConfig(chip_gaps=3.0)},
        {"artefacts": ArtefactConfig(sky_left=1.0, gradient=2.0)},
        {"artefacts": ArtefactConfig(masked_regions=6.0)},
        {"poisson": True},
        {"poisson": True, "exposure_factor": 0.5},
        {
            "poisson": True,
            "artefacts": ArtefactConfig(sky_left=0.3, chip_gaps=3.0, chip_gap_depth=0.7, masked_regions=3.0),
        },
    ],
)
def test_empty_sky_has_the_variance_of_the_plane(changes):
    scene = simulate_scene(make_config(**changes), np.random.default_rng(11))
    assert len(scene.sources) == len(scene.masks) == 0
    assert scene.images.dtype == scene.variance.dtype == scene.noiseless.dtype == np.float32
    assert not scene.light.any()
    np.testing.assert_allclose(scene.sky_sigma, NOISE / math.sqrt(changes.get("exposure_factor", 1.0)))
    pulls = (scene.images - scene.noiseless) / np.sqrt(scene.variance)
    assert np.isfinite(scene.noiseless).all()
    np.testing.assert_array_equal(np.isfinite(scene.images), np.isfinite(scene.variance))
    for band in range(3):
        good = np.isfinite(pulls[band])
        assert abs(pulls[band][good].mean(dtype=float)) < 0.02
        assert pulls[band][good].var(dtype=float) == pytest.approx(1.0, abs=0.02)
        # Where exposures are lost as well.
        depth = changes.get("artefacts", ArtefactConfig()).chip_gap_depth
        for noisier in np.unique(np.round(scene.variance[band][good] / scene.sky_sigma[band] ** 2, 3)):
            where = good & (np.abs(scene.variance[band] / scene.sky_sigma[band] ** 2 - noisier) < 1e-3)
            if where.sum() > 20_000:
                # No gap, one, or two that cross.
                assert min(abs(noisier - (1.0 - depth) ** -n) for n in range(3 if depth < 1 else 1)) < 0.002
                assert pulls[band][where].var(dtype=float) == pytest.approx(1.0, abs=0.025)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_correlation(correlation):
    config = make_config(artefacts=ArtefactConfig(correlation=correlation))
    scene = simulate_scene(config, np.random.default_rng(11))
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / max(correlation, 0.01)) ** 2)
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    for axis in (1, 2):
        image = np.moveaxis(scene.images, axis, 1)
        neighbours = np.mean(image[:, 1:] * image[:, :-1], axis=(1, 2)) / scene.sky_sigma**2
        np.testing.assert_allclose(neighbours, expected, atol=0.02)


def test_counted_photons_are_whole():
    """Without read noise, sky and sources together are a whole number of electrons."""
    conditions = (BandConditions("r", 0.72, 3.6, 2.0),)
    artefacts = ArtefactConfig(sky_left=1.0)
    config = make_config(
        shape=(60, 50), bands=("r",), conditions=conditions, poisson=True, artefacts=artefacts
    )
    scene = draw_scene(config, star(25.0, 30.0, 22.0), np.random.default_rng(3))
    electrons = scene.images[0] * 2.0
    np.testing.assert_allclose(electrons, np.rint(electrons), atol=1e-3)
    assert np.ptp(electrons) > 100
    # The skewness of a Poisson distribution is its mean to the power -1/2.
    dark = np.random.default_rng(3)
    config = make_config(bands=("r",), conditions=conditions, poisson=True)
    noise = simulate_scene(config, dark).images[0].ravel() / scene.sky_sigma[0]
    assert np.mean(noise**3) == pytest.approx((3.6 * 2.0) ** -1, abs=0.025)


@pytest.mark.parametrize("poisson", [False, True])
def test_noise_of_the_sources(poisson):
    """Noise around bright stars is as large as the variance plane says."""
    config = make_config(shape=(40, 40), bands=("r", "z"), poisson=poisson)
    rng = np.random.default_rng(3)
    scenes = [draw_scene(config, star(20.0, 20.0, 18.0), rng) for _ in range(100)]
    pulls = np.array([(s.images - s.noiseless) / np.sqrt(s.variance) for s in scenes])
    assert scenes[0].variance[0, 20, 20] > 5 * scenes[0].sky_sigma[0] ** 2
    for band in range(2):
        assert pulls[:, band, 17:24, 17:24].std() == pytest.approx(1.0, abs=0.03)
        expected = scenes[0].sky_sigma[band] ** 2 + scenes[0].light[band] / scenes[0].electrons_per_njy[band]
        np.testing.assert_allclose(scenes[0].variance[band], expected, rtol=1e-5)


def test_without_noise():
    config = make_config(noise=False, shape=(128, 100), population=PopulationConfig())
    scene = simulate_scene(config, np.random.default_rng(2))
    np.testing.assert_array_equal(scene.images, scene.noiseless)
    np.testing.assert_array_equal(scene.images, scene.light)
    assert (scene.variance >= (scene.sky_sigma**2 * 0.999)[:, None, None]).all()
    assert scene.images.shape == scene.mask.shape == (3, 128, 100)


def test_sky_that_is_left():
    """The sky's brightness is that whose photon noise the sky noise is."""
    kept = simulate_scene(make_config(artefacts=ArtefactConfig(sky_left=0.4)), np.random.default_rng(2))
    gone = simulate_scene(make_config(), np.random.default_rng(2))
    for band, (sky_sigma, electrons) in enumerate([(10.0, 0.5), (3.6, 60.0), (2.5, 60.0)]):
        np.testing.assert_allclose(kept.noiseless[band], 0.4 * sky_sigma**2 * electrons, rtol=1e-5)
    np.testing.assert_array_equal(kept.variance, gone.variance)
    # A gradient is in the images, and no photons of its own are in the variance.
    sloped = simulate_scene(
        make_config(artefacts=ArtefactConfig(sky_left=0.4, gradient=1.0)), np.random.default_rng(2)
    )
    for band in range(3):
        assert 0.5 < np.ptp(sloped.noiseless[band]) / sloped.sky_sigma[band] < 20
    np.testing.assert_array_equal(sloped.variance, gone.variance)


def test_gaps_without_data():
    config = make_config(
        shape=(150, 170),
        population=PopulationConfig(),
        artefacts=ArtefactConfig(chip_gaps=4.0, chip_gap_width=(2.0, 4.0)),
    )
    scene = simulate_scene(config, np.random.default_rng(12))
    lost = scene.mask & MASK_BITS["NO_DATA"] > 0
    assert lost.any()
    np.testing.assert_array_equal(np.isnan(scene.images), lost)
    np.testing.assert_array_equal(np.isnan(scene.variance), lost)
    assert np.isfinite(scene.noiseless).all()
    # Each is a set of whole rows and columns of 12 to 24 px, or less at the edge.
    for plane in lost:
        rows, columns = plane.all(axis=1), plane.all(axis=0)
        np.testing.assert_array_equal(plane, rows[:, None] | columns)
    assert not np.array_equal(lost[0], lost[1])
    # Training leaves these pixels out, and meets no NaN.
    kept = to_training_scene(scene)
    np.testing.assert_array_equal(kept.valid, ~lost.any(axis=0))
    assert np.isfinite(kept.noiseless).all()
    assert (kept.variance > 0).all()
    np.testing.assert_array_equal(kept.variance[~lost], scene.variance[~lost])
