# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the camera adds to simulated scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from few_sources import EMPTY, star

from lsst.meas.maskrcnn.scenes import artefacts
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig, BandConditions, SceneConfig
from lsst.meas.maskrcnn.scenes.simulate import draw_scene, simulate_scene

CONDITIONS = (
    BandConditions("g", 0.77, 2.5, 60.0, 1.5e4),
    BandConditions("r", 0.72, 3.6, 60.0, 1.5e4),
    BandConditions("z", 0.68, 10.0, 45.0, 3.0e4),
)


def draw_star(x, y, mag, shape=(200, 240), **changes):
    """Draw a star without noise."""
    config = SceneConfig(shape=shape, noise=False, conditions=CONDITIONS, **changes)
    return draw_scene(config, star(x, y, mag), np.random.default_rng(5))


def test_saturation_and_bleeding():
    plain = draw_star(100.0, 90.0, 15.0)
    level = plain.config.band_conditions()[1].saturation
    for axis in ("x", "y"):
        scene = draw_star(
            100.0,
            90.0,
            15.0,
            artefacts=ArtefactConfig(
                saturation=True, bleed=True, bleed_axis=axis, bleed_level=0.5, saturation_fill=0.7
            ),
        )
        flagged = scene.mask[1] & MASK_BITS["SAT"] > 0
        core = plain.noiseless[1] > level
        assert flagged[core].all()
        # Streaky and domed, not more.
        assert scene.noiseless[1][core].mean() == pytest.approx(0.75 * level, rel=0.15)
        assert 0.5 * level < scene.noiseless[1][core].min() < scene.noiseless[1][core].max() < 1.2 * level
        trail = flagged & ~core
        rows, columns = np.nonzero(trail)
        long, short = (np.ptp(columns), np.ptp(rows)) if axis == "x" else (np.ptp(rows), np.ptp(columns))
        assert long > 2 * short
        added = scene.noiseless[1] - plain.noiseless[1]
        assert (added[trail] >= 0).all()
        # Trails begin at their level and fade away from the star.
        distance = np.abs(columns - 100 if axis == "x" else rows - 90)
        values = scene.noiseless[1][trail]
        assert values[distance == distance.max()].max() < 0.5 * level * 0.6
        assert 0.4 * level < values.max() < 1.0 * level
        np.testing.assert_array_equal(added[~flagged], 0.0)
        # Truth is not touched by what the camera does.
        np.testing.assert_array_equal(scene.light, plain.light)
        np.testing.assert_array_equal(scene.masks[0], plain.masks[0])
    faint = draw_star(100.0, 90.0, 21.0, artefacts=ArtefactConfig(saturation=True, bleed=True))
    assert not faint.mask.any()


@pytest.mark.parametrize("kind", ["spikes", "halo"])
def test_spikes_and_halo_are_the_stars_own(kind):
    """They take their share of the flux, and are part of the star's stamp."""
    mag, share = 14.0, 0.03
    plain = draw_star(400.0, 390.0, mag, shape=(800, 801), keep_models=True)
    settings = ArtefactConfig(**{kind: share})
    scene = draw_star(400.0, 390.0, mag, shape=(800, 801), keep_models=True, artefacts=settings)
    flux = scene.sources["flux_r"][0]
    difference = (scene.light - plain.light)[1].astype(float)
    # The core gives what the wings get; what is beyond the cut at the sky's level is not drawn.
    lost = -difference.sum() / flux
    assert -0.001 < lost < 0.6 * share
    y, x = np.mgrid[:800, :801]
    radius = np.hypot(x - 400, y - 390)
    assert difference[radius < 4].sum() < -0.3 * share * flux
    assert difference[radius > 30].sum() > 0.15 * share * flux
    model = scene.models[0]
    np.testing.assert_array_equal(scene.noiseless, scene.light)
    part = scene.light[
        :, model.y0 : model.y0 + model.pixels.shape[1], model.x0 : model.x0 + model.pixels.shape[2]
    ]
    np.testing.assert_array_equal(model.pixels, part)
    assert model.pixels.shape[1] > plain.models[0].pixels.shape[1]
    assert scene.light.sum(dtype=float) == pytest.approx(model.pixels.sum(dtype=float), rel=1e-9)
    # Little of it is above half a per cent of the peak: the mask remains that of the core.
    assert 1.0 <= scene.sources["area"][0] / plain.sources["area"][0] < 1.06
    ring = np.abs(radius - 60) < 3
    brightness = difference[ring]
    if kind == "spikes":
        # Four narrow lines at right angles.
        lit = brightness > 0.3 * brightness.max()
        assert lit.mean() < 0.15
        angle = np.arctan2(y[ring] - 390, x[ring] - 400)[lit]
        assert abs(np.exp(4j * angle).mean()) > 0.95
        assert abs(np.exp(2j * angle).mean()) < 0.2
    else:
        assert brightness.std() < 0.25 * brightness.mean()
    # Faint stars have none that could be seen.
    faint = draw_star(100.0, 90.0, 21.0, artefacts=settings)
    np.testing.assert_array_equal(faint.light, draw_star(100.0, 90.0, 21.0).light)


def test_wings_of_a_star_off_the_image():
    settings = ArtefactConfig(spikes=0.02, halo=0.02)
    scene = draw_star(-15.0, 100.0, 12.0, keep_models=True, artefacts=settings)
    assert scene.light[1].max() > 100 * scene.sky_sigma[1]
    assert scene.models[0].x0 == 0
    assert scene.sources["area"][0] == 0 or scene.sources["visible"][0] < 0.5
    np.testing.assert_allclose(scene.models[0].pixels.sum(dtype=float), scene.light.sum(dtype=float))


def test_wings_end_where_they_cannot_be_seen():
    settings = {"spikes": 0.02, "halo": 0.01, "fwhm": 4.0}
    flux, limit = 1e7, 0.2
    spike_reach, halo_reach = artefacts.wings_reach(flux, limit=limit, longest=1e6, **settings)
    assert 100 < halo_reach < spike_reach
    dx = np.arange(0.0, 3000.0)
    free = artefacts.bright_star_wings(dx, np.zeros(1), 0.02, 0.0, 0.0, 4.0, (1e9, 1e9))[0] * flux
    assert free[int(spike_reach)] == pytest.approx(limit, rel=0.1)
    free = artefacts.bright_star_wings(dx, np.zeros(1), 0.0, 0.01, 0.0, 4.0, (1e9, 1e9))[0] * flux
    assert free[int(halo_reach)] == pytest.approx(limit, rel=0.1)
    cut = artefacts.bright_star_wings(dx, np.zeros(1), 0.02, 0.01, 0.0, 4.0, (spike_reach, halo_reach))[0]
    assert (cut[dx > spike_reach] == 0).all()
    assert artefacts.wings_reach(flux, limit=limit, longest=50.0, **settings) == (50.0, 50.0)
    assert artefacts.wings_reach(flux, 0.0, 0.0, 4.0, limit, 50.0) == (0.0, 0.0)


def test_marked_defects():
    config = SceneConfig(
        shape=(150, 170),
        population=EMPTY,
        conditions=CONDITIONS,
        artefacts=ArtefactConfig(cosmic_rays=100.0, dead_columns=4.0),
    )
    scene = simulate_scene(config, np.random.default_rng(12))
    hit = scene.mask & MASK_BITS["CR"] > 0
    dead = scene.mask & MASK_BITS["BAD"] > 0
    assert hit.any()
    assert dead.any()
    np.testing.assert_array_equal(scene.images[dead], 0.0)
    lit = hit & ~dead
    assert (scene.noiseless[lit] > 10 * scene.sky_sigma.min()).all()
    assert (scene.noiseless[~hit] == 0).all()
    assert not scene.light.any()


def test_masked_regions():
    """Round patches hold stray light, all of it marked, none of it the sources'."""
    config = SceneConfig(
        shape=(300, 340),
        population=EMPTY,
        conditions=CONDITIONS,
        artefacts=ArtefactConfig(masked_regions=2.0),
    )
    scenes = [simulate_scene(config, np.random.default_rng(seed)) for seed in range(8)]
    counts = []
    for scene in scenes:
        assert not scene.light.any()
        for band in range(3):
            marked = scene.mask[band] & MASK_BITS["BAD"] > 0
            np.testing.assert_array_equal(scene.noiseless[band] > 0, marked)
            counts.append(marked.any())
            if marked.any():
                peak = scene.noiseless[band].max() / scene.sky_sigma[band]
                assert 0 < peak < 200
                # Their photons make noise.
                brightest = np.unravel_index(scene.noiseless[band].argmax(), marked.shape)
                extra = scene.variance[band][brightest] - scene.sky_sigma[band] ** 2
                expected = scene.noiseless[band][brightest] / scene.electrons_per_njy[band]
                assert extra == pytest.approx(expected, rel=1e-3)
    # exp(-2) of the planes have none
    assert 0.6 < np.mean(counts) < 1.0


def test_stray_light_is_round():
    image = np.zeros((100, 120))
    mask = np.zeros(image.shape, np.uint8)
    artefacts.add_stray_light(image, mask, 1, (14.0, 14.1), 1.0, np.random.default_rng(0))
    rows, columns = np.nonzero(mask)
    y, x = np.unravel_index(image.argmax(), image.shape)
    assert np.hypot(rows - y, columns - x).max() == pytest.approx(14.0, abs=1.0)
    # This one is whole.
    assert 15 < y < 84
    assert 15 < x < 104
    assert mask.astype(bool).sum() == pytest.approx(math.pi * 14.0**2, rel=0.05)


def test_chip_gaps():
    rng = np.random.default_rng(2)
    whole = artefacts.draw_chip_gaps((50, 70), 0, (3.0, 6.0), 0.5, rng)
    np.testing.assert_array_equal(whole, 1.0)
    seen = set()
    for _ in range(40):
        share = artefacts.draw_chip_gaps((50, 70), 1, (3.0, 6.0), 0.25, rng)
        gap = share < 1
        np.testing.assert_array_equal(share[gap], 0.75)
        rows, columns = np.nonzero(gap)
        across = np.ptp(rows) + 1 if columns.size and np.ptp(columns) == 69 else np.ptp(columns) + 1
        assert 1 <= across <= 6
        seen.add(bool(np.ptp(columns) == 69))
    assert seen == {True, False}
    crossed = [artefacts.draw_chip_gaps((50, 70), 6, (3.0, 6.0), 1.0, rng) for _ in range(5)]
    assert set(np.unique(crossed)) == {0.0, 1.0}


def test_gradient():
    plane = artefacts.background((50, 70), 2.0, np.random.default_rng(4))
    assert plane.shape == (50, 70)
    assert 0.5 < np.ptp(plane) < 40
    # It is smooth: second differences are small against the slopes.
    assert np.abs(np.diff(plane, 2, axis=1)).max() < 0.2 * np.ptp(plane) / 70
