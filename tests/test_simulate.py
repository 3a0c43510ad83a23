# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scene simulator: its light, its noise, its populations and its truth."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import galsim
import numpy as np
import pytest

from lsst.meas.maskrcnn.scenes import artefacts, populations
from lsst.meas.maskrcnn.scenes.light import BandPsf, Painter
from lsst.meas.maskrcnn.scenes.simulate import (
    MASK_BITS,
    PRESETS,
    ArtefactConfig,
    BandConditions,
    MaskRule,
    PopulationConfig,
    PsfConfig,
    SceneConfig,
    draw_scene,
    preset_config,
    random_scene_config,
    simulate_scene,
    truth_selection,
)

EMPTY = PopulationConfig(
    galaxy_density=0.0,
    star_density=0.0,
    bright_star_density=0.0,
    large_galaxy_density=0.0,
    cluster_probability=0.0,
)


def star(x, y, mag):
    """Return a population of one star."""
    population = np.zeros(1, populations.POPULATION_DTYPE)
    population["x"], population["y"], population["mag"] = x, y, mag
    population["is_star"] = True
    population["locus"] = 0.5
    population["disc_axis_ratio"] = population["bulge_axis_ratio"] = 1.0
    return population


def galaxy(x, y, mag, radius=0.8, bulge=0.3):
    """Return a population of one galaxy."""
    population = star(x, y, mag)
    population["is_star"] = False
    population["redshift"] = 0.4
    population["bulge_fraction"] = bulge
    population["disc_radius"], population["bulge_radius"] = radius, 0.5 * radius
    population["disc_axis_ratio"], population["bulge_axis_ratio"] = 0.6, 0.8
    population["position_angle"] = 0.7
    return population


def noiseless(population, shape=(200, 240), **changes):
    """Draw sources without noise; galaxies are smooth, hence symmetric."""
    changes.setdefault("population", PopulationConfig(structure_size=100.0))
    config = preset_config("hsc_wide", shape=shape, noise=False, **changes)
    return draw_scene(config, population, np.random.default_rng(5))


@pytest.mark.parametrize("profile", ["moffat", "kolmogorov"])
@pytest.mark.parametrize("mag", [17.0, 21.0, 26.0])
def test_star_photometry(profile, mag):
    """The pixels of an isolated star sum to its flux; r is its magnitude."""
    scene = noiseless(star(117.3, 88.6, mag), psf=PsfConfig(profile=profile))
    for band, name in enumerate(scene.bands):
        assert scene.noiseless[band].sum() == pytest.approx(scene.sources[f"flux_{name}"][0], rel=0.01)
    # 1 nJy is 10^-9 Jy and AB magnitude 0 is 3631 Jy
    assert scene.sources["flux_r"][0] == pytest.approx(3631e9 * 10 ** (-0.4 * mag), rel=1e-3)


@pytest.mark.parametrize("bulge", [0.0, 0.4, 1.0])
def test_galaxy_photometry(bulge):
    scene = noiseless(galaxy(117.3, 88.6, 21.0, bulge=bulge))
    for band, name in enumerate(scene.bands):
        assert scene.noiseless[band].sum() == pytest.approx(scene.sources[f"flux_{name}"][0], rel=0.01)


def test_photometry_unbiased_in_noise():
    """Over 200 draws the matched-filter flux scatters around the true one."""
    config = preset_config("hsc_wide", shape=(48, 56), bands=("r",))
    rng = np.random.default_rng(77)
    pulls = []
    for _ in range(200):
        x, y = rng.uniform(20, 28, 2)
        scene = draw_scene(config, star(x, y, 23.0), rng)
        yy, xx = np.mgrid[:48, :56]
        psf = scene.psfs[0].draw((xx - x) * 0.168, (yy - y) * 0.168) * 0.168**2
        weight = psf / scene.variance[0]
        measured = (weight * scene.images[0]).sum() / (weight * psf).sum()
        error = (weight * psf).sum() ** -0.5
        pulls.append((measured - scene.sources["flux_r"][0]) / error)
    assert abs(np.mean(pulls)) < 3.0 / math.sqrt(200)
    assert np.std(pulls) == pytest.approx(1.0, abs=3.0 / math.sqrt(400))


@pytest.mark.parametrize("make", [star, galaxy])
def test_positions(make):
    """x counts columns, y rows, and 0 is the centre of the first pixel."""
    scene = noiseless(make(117.3, 88.6, 21.0))
    y, x = np.mgrid[:200, :240]
    for plane in scene.noiseless.astype(float):
        x0, y0 = 118.0, 88.0
        # The centroid under a Gaussian window that follows it.
        for _ in range(200):
            weight = plane * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / 3.0**2)
            x0 += 2.0 * (weight * (x - x0)).sum() / weight.sum()
            y0 += 2.0 * (weight * (y - y0)).sum() / weight.sum()
        assert (x0, y0) == pytest.approx((117.3, 88.6), abs=0.003)


@pytest.mark.parametrize("profile", ["moffat", "kolmogorov"])
def test_pixels_as_galsim_draws_them(profile):
    """The Painter's pixels are GalSim's to 5e-4 of the peak."""
    scale, beta = 0.168, 3.1
    psf = BandPsf(0.7, profile, beta, 0.03, -0.02)
    painter = Painter([psf], scale, np.array([1.0]))
    unit = galsim.Moffat(beta=beta, fwhm=0.7) if profile == "moffat" else galsim.Kolmogorov(fwhm=0.7)
    reference_psf = unit.shear(g1=0.03, g2=-0.02)

    def draw(profile, stamp):
        size = stamp.pixels.shape[1]
        image = galsim.Image(size, size, xmin=stamp.x0, ymin=stamp.y0, scale=scale)
        centre = galsim.PositionD(50.4, 47.7)
        return profile.drawImage(image=image, method="no_pixel", center=centre).array

    stamp = painter.draw_star(50.4, 47.7, np.array([100.0]), 64)
    reference = draw(reference_psf * 100.0, stamp)
    np.testing.assert_allclose(stamp.pixels[0], reference, atol=2e-5 * reference.max())

    radius, ratio, angle = 0.9, 0.4, 0.6
    stamp = painter.draw_galaxy(
        50.4, 47.7, np.array([100.0]), np.array([0.0]), (radius, ratio), (0.3, 1.0), angle, 128
    )
    # The half-light radius is the major axis's, GalSim's that of the circle.
    disc = galsim.Exponential(half_light_radius=radius * math.sqrt(ratio), flux=100.0)
    disc = disc.shear(q=ratio, beta=angle * galsim.radians)
    reference = draw(galsim.Convolve(disc, reference_psf), stamp)
    np.testing.assert_allclose(stamp.pixels[0], reference, atol=5e-4 * reference.max())

    stamp = painter.draw_galaxy(
        50.4, 47.7, np.array([0.0]), np.array([100.0]), (0.3, 1.0), (radius, ratio), angle, 192
    )
    # Ours fades where GalSim's has an edge: close, not the same.
    bulge = galsim.DeVaucouleurs(half_light_radius=radius * math.sqrt(ratio), trunc=4.5, flux=100.0)
    bulge = bulge.shear(q=ratio, beta=angle * galsim.radians)
    reference = draw(galsim.Convolve(bulge, reference_psf), stamp)
    np.testing.assert_allclose(stamp.pixels[0], reference, atol=0.05 * reference.max())


def test_bulge_half_light_radius():
    """Half the flux of a round bulge lies inside its half-light radius."""
    painter = Painter([BandPsf(0.4)], 0.2, np.array([1.0]))
    stamp = painter.draw_galaxy(256, 256, np.array([0.0]), np.array([1.0]), (1.0, 1.0), (4.0, 1.0), 0.0, 512)
    y, x = np.mgrid[:512, :512]
    inside = np.hypot(x - 256, y - 256) * 0.2 < 4.0
    assert stamp.pixels[0][inside].sum() == pytest.approx(0.5, abs=0.01)


def test_spiral_structure_keeps_the_flux():
    psfs = [BandPsf(0.7), BandPsf(0.7)]
    painter = Painter(psfs, 0.168, np.array([1.0, 1.0]), clump_boost=np.array([0.9, 1.4]))
    arguments = (
        128.2, 128.4, np.array([100.0, 50.0]), np.array([10.0, 2.0]), (3.0, 0.7), (0.8, 0.8), 0.3, 256,
    )  # fmt: skip
    smooth = painter.draw_galaxy(*arguments)
    arms = painter.draw_galaxy(*arguments, np.random.default_rng(3))
    np.testing.assert_allclose(arms.pixels.sum(axis=(1, 2)), [110.0, 52.0], rtol=1e-5)
    assert np.abs(arms.pixels - smooth.pixels).max() > 0.02 * smooth.pixels.max()
    assert arms.pixels.min() > -0.02 * smooth.pixels.max()


def test_psf_image():
    image = BandPsf(0.8, "moffat", 3.0).image(41, 0.1)
    assert image.shape == (41, 41)
    assert image.sum() == pytest.approx(1.0)
    assert image[20, 24] == pytest.approx(0.5 * image[20, 20], rel=1e-6)
    with pytest.raises(ValueError, match="odd"):
        BandPsf(0.8).image(40, 0.1)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_empty_sky_has_the_variance_of_the_plane(correlation):
    config = preset_config(
        "hsc_wide",
        shape=(300, 400),
        population=EMPTY,
        exposure_factor=2.0,
        artefacts=ArtefactConfig(correlation=correlation),
    )
    scene = simulate_scene(config, np.random.default_rng(11))
    assert len(scene.sources) == len(scene.masks) == 0
    expected = np.broadcast_to(scene.sky_sigma[:, None, None] ** 2, (3, 300, 400))
    np.testing.assert_allclose(scene.variance, expected)
    np.testing.assert_allclose(scene.images.std(axis=(1, 2)), scene.sky_sigma, rtol=0.02)
    np.testing.assert_allclose(scene.sky_sigma, np.array([10.0, 3.6, 2.5]) / math.sqrt(2.0))
    neighbours = np.mean(scene.images[:, :, 1:] * scene.images[:, :, :-1], axis=(1, 2)) / scene.sky_sigma**2
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / max(correlation, 0.01)) ** 2)
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    np.testing.assert_allclose(neighbours, expected, atol=0.02)


def test_poisson_noise_of_the_sources():
    """Noise around bright stars is as large as the variance plane says."""
    config = preset_config("hsc_wide", shape=(40, 40), bands=("g", "r"))
    rng = np.random.default_rng(3)
    scenes = [draw_scene(config, star(20.0, 20.0, 18.0), rng) for _ in range(100)]
    pulls = np.array([(s.images - s.noiseless) / np.sqrt(s.variance) for s in scenes])
    assert scenes[0].variance[0, 20, 20] > 5 * scenes[0].sky_sigma[0] ** 2
    assert pulls[:, :, 17:24, 17:24].std() == pytest.approx(1.0, abs=0.03)
    expected = scenes[0].sky_sigma[1] ** 2 + scenes[0].noiseless[1] / scenes[0].electrons_per_njy[1]
    np.testing.assert_allclose(scenes[0].variance[1], expected, rtol=1e-5)


def test_without_noise():
    scene = simulate_scene(preset_config("hsc_noiseless", shape=(128, 100)), np.random.default_rng(2))
    np.testing.assert_array_equal(scene.images, scene.noiseless)
    assert (scene.variance >= (scene.sky_sigma**2 * 0.999)[:, None, None]).all()
    assert scene.images.dtype == scene.variance.dtype == np.float32
    assert scene.images.shape == scene.mask.shape == (3, 128, 100)


def test_counts_slopes():
    rng = np.random.default_rng(8)
    mag = populations.draw_magnitudes(rng, 200_000, 19.0, 25.0, 0.45, 0.3, 22.0)
    counts, edges = np.histogram(mag, np.arange(19.0, 25.1, 0.5))
    middle = edges[:-1] + 0.25
    bright = np.polyfit(middle[:6], np.log10(counts[:6]), 1, w=np.sqrt(counts[:6]))[0]
    faint = np.polyfit(middle[6:], np.log10(counts[6:]), 1, w=np.sqrt(counts[6:]))[0]
    assert bright == pytest.approx(0.45, abs=0.02)
    assert faint == pytest.approx(0.3, abs=0.01)
    single = populations.draw_magnitudes(rng, 200_000, 19.0, 25.0, 0.2)
    counts = np.histogram(single, np.arange(19.0, 25.1, 1.0))[0]
    np.testing.assert_allclose(np.diff(np.log10(counts)), 0.2, atol=0.03)


def test_population_is_as_configured():
    config = PopulationConfig(
        galaxy_density=80.0,
        star_density=10.0,
        cluster_probability=0.0,
        large_galaxy_density=0.0,
        bright_star_density=0.0,
    )
    shape, scale = (3000, 4000), 0.2
    drawn = populations.draw_population(config, shape, scale, np.random.default_rng(4), margin=0.0)
    area = 3000 * 4000 * (scale / 60) ** 2
    stars, galaxies = drawn[drawn["is_star"]], drawn[~drawn["is_star"]]
    # A few of those moved next to another leave the field.
    assert len(stars) == pytest.approx(10 * area, rel=0.05)
    assert len(galaxies) == pytest.approx(80 * area, rel=0.03)
    assert (np.diff(drawn["mag"]) >= 0).all()
    at_22 = galaxies[abs(galaxies["mag"] - 22.0) < 0.3]
    at_25 = galaxies[abs(galaxies["mag"] - 25.0) < 0.1]
    assert np.median(at_22["disc_radius"]) == pytest.approx(config.size_at_22, rel=0.25)
    shrunk = np.log10(np.median(at_25["disc_radius"]) / np.median(at_22["disc_radius"])) / 3.0
    assert shrunk == pytest.approx(config.size_slope, abs=0.02)
    assert (galaxies["disc_axis_ratio"] <= 1).all()
    assert (galaxies["disc_axis_ratio"] > 0.1).all()

    def star_share(low, high):
        part = drawn[(drawn["mag"] > low) & (drawn["mag"] < high)]
        return part["is_star"].mean()

    assert star_share(17, 19.5) > 0.35
    assert star_share(24, 25) < 0.15


def test_pairs_and_clusters_crowd_the_sources():
    def near_neighbours(**changes):
        config = dataclasses.replace(EMPTY, galaxy_density=40.0, **changes)
        drawn = populations.draw_population(config, (1000, 1000), 0.2, np.random.default_rng(1))
        distance = np.hypot(
            drawn["x"][:, None] - drawn["x"], drawn["y"][:, None] - drawn["y"]
        ) + 1e9 * np.eye(len(drawn))
        return (distance.min(axis=1) < 2.0 / 0.2).mean(), drawn

    plain, _ = near_neighbours(pair_fraction=0.0)
    paired, _ = near_neighbours(pair_fraction=0.5)
    assert paired > plain + 0.2
    _, drawn = near_neighbours(cluster_probability=1.0, cluster_richness=(30, 30))
    members = drawn[drawn["group"] == 1]
    assert 5 < len(members) <= 30
    assert np.ptp(members["redshift"]) == 0.0


def test_colours():
    """Old galaxies redden with redshift; the locus runs from blue to red."""
    g, r, z = (("u", "g", "r", "i", "z", "y").index(b) for b in "grz")
    red = populations.galaxy_colours(np.array([0.0, 0.4]), red=True)
    blue = populations.galaxy_colours(np.array([0.0, 0.4]), red=False)
    np.testing.assert_array_equal(red[r], 0.0)
    assert red[g, 1] > red[g, 0] > blue[g, 0]
    stars = populations.star_colours(np.linspace(0, 1, 20))
    assert (np.diff(stars[g]) > 0).all()
    assert (np.diff(stars[z]) < 0).all()


@pytest.mark.parametrize("rule", [MaskRule(), MaskRule(star_fraction=0.05, galaxy_fraction=0.2)])
def test_truth_masks(rule):
    """Masks are the published rule, recomputed from each source's pixels."""
    config = preset_config("hsc_wide", shape=(180, 260), bands=("r", "g"), keep_models=True, mask_rule=rule)
    scene = simulate_scene(config, np.random.default_rng(21))
    assert len(scene.sources) == len(scene.masks) == len(scene.models) == len(scene.origins)
    assert scene.origins.dtype == np.int32
    seen_edge = 0
    for i, source in enumerate(scene.sources):
        mask, (y0, x0), model = scene.masks[i], scene.origins[i], scene.models[i]
        assert mask.dtype == bool
        assert mask.sum() == source["area"]
        own = np.zeros(config.shape)
        h, w = model.pixels.shape[1:]
        own[model.y0 : model.y0 + h, model.x0 : model.x0 + w] = model.pixels[0]
        if not (0 < source["x"] < 259 and 0 < source["y"] < 179):
            # The peak is off the image, out of this test's sight.
            seen_edge += 1
            continue
        fraction = rule.star_fraction if source["is_star"] else rule.galaxy_fraction
        expected = own > fraction * own.max()
        rows, columns = np.nonzero(expected)
        assert (y0, x0) == (rows.min(), columns.min())
        np.testing.assert_array_equal(
            mask, expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        )
        assert source["peak_snr_r"] == pytest.approx(own.max() / scene.sky_sigma[0], rel=1e-5)
        assert source["snr_r"] == pytest.approx(math.sqrt((own**2).sum()) / scene.sky_sigma[0], rel=1e-4)
    assert seen_edge < len(scene.sources) / 2


def test_models_sum_to_the_image():
    config = preset_config("hsc_noiseless", shape=(200, 150), keep_models=True)
    scene = simulate_scene(config, np.random.default_rng(13))
    total = np.zeros(scene.images.shape)
    for model in scene.models:
        h, w = model.pixels.shape[1:]
        total[:, model.y0 : model.y0 + h, model.x0 : model.x0 + w] += model.pixels
    np.testing.assert_allclose(scene.noiseless, total, rtol=1e-6, atol=1e-6)
    lean = dataclasses.replace(config, keep_models=False)
    assert simulate_scene(lean, np.random.default_rng(13)).models is None


def test_source_at_the_edge():
    whole = noiseless(star(100.0, 100.0, 21.0))
    half = noiseless(star(0.0, 100.0, 21.0))
    off = noiseless(star(-60.0, 100.0, 21.0))
    assert whole.sources["visible"][0] == 1.0
    assert half.sources["visible"][0] == pytest.approx(0.5, abs=0.1)
    assert half.origins[0, 1] == 0
    assert off.sources["area"][0] == 0
    assert off.masks[0].shape == (0, 0)
    assert not truth_selection(off)[0]


def test_blending_measures():
    """Two equal stars on one spot share the light evenly; far ones do not."""
    pair = np.concatenate([star(100.0, 90.0, 21.0), star(100.0, 90.0, 21.0), star(30.0, 30.0, 21.0)])
    scene = noiseless(pair)
    np.testing.assert_allclose(scene.sources["peak_share"], [0.5, 0.5, 1.0], atol=1e-3)
    np.testing.assert_allclose(scene.sources["blendedness"], [0.5, 0.5, 0.0], atol=1e-3)


def test_truth_selection():
    faint = star(40.0, 90.0, 29.0)
    scene = draw_scene(
        preset_config("hsc_wide", shape=(200, 240)),
        np.concatenate([star(100.0, 90.0, 20.0), faint, star(0.0, 30.0, 20.0), star(100.0, 90.0, 26.0)]),
        np.random.default_rng(1),
    )
    np.testing.assert_array_equal(truth_selection(scene), [True, False, True, False])
    np.testing.assert_array_equal(truth_selection(scene, min_peak_snr=0.0), True)
    np.testing.assert_array_equal(truth_selection(scene, min_visible=0.9), [True, False, False, False])
    np.testing.assert_array_equal(
        truth_selection(scene, min_peak_snr=0.0, min_peak_share=0.1), [True, True, True, False]
    )
    np.testing.assert_array_equal(truth_selection(scene, min_area=10_000), False)
    deep = truth_selection(scene, sky_sigma=0.001 * scene.sky_sigma)
    np.testing.assert_array_equal(deep, True)
    quiet = dataclasses.replace(scene, config=dataclasses.replace(scene.config, noise=False))
    np.testing.assert_array_equal(truth_selection(quiet), True)
    np.testing.assert_array_equal(truth_selection(quiet, sky_sigma=1.0e6), False)
    with pytest.raises(ValueError, match="above 0"):
        truth_selection(scene, sky_sigma=0.0)


def test_determinism_and_no_global_state():
    # Global state is read only: the simulator must leave it alone.
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    scenes = []
    for seed in (6, 6, 7):
        rng = np.random.default_rng(seed)
        scenes.append(simulate_scene(random_scene_config(rng, shape=(100, 120)), rng))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    first, second, other = scenes
    for name in ("images", "noiseless", "variance", "mask", "sources", "origins"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.images.shape != other.images.shape or not np.array_equal(first.images, other.images)
    # The state of the generator is all that counts, not how it was made.
    rng = np.random.default_rng(0)
    rng.bit_generator.state = np.random.default_rng(6).bit_generator.state
    third = simulate_scene(random_scene_config(rng, shape=(100, 120)), rng)
    np.testing.assert_array_equal(first.images, third.images)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name):
    config = preset_config(name, shape=(96, 80))
    assert config.name == name
    scene = simulate_scene(config, np.random.default_rng(1))
    assert np.isfinite(scene.images).all()
    assert scene.bands == ("z", "r", "g")
    np.testing.assert_allclose(scene.psf_fwhm, [c.fwhm for c in config.band_conditions()], rtol=0.5)


def test_band_order_is_the_callers():
    """The same band is the same picture wherever it stands."""
    population = star(100.0, 90.0, 20.0)
    population["locus"] = 0.9
    scene = noiseless(population, bands=("g", "z"))
    # A late M dwarf is faint in g.
    assert scene.noiseless[0].sum() < 0.1 * scene.noiseless[1].sum()
    assert scene.sources["flux_g"][0] == pytest.approx(scene.noiseless[0].sum(), rel=0.01)


def test_random_configurations():
    rng = np.random.default_rng(99)
    counts, names = [], set()
    for _ in range(300):
        config = random_scene_config(rng)
        names.add(config.name)
        area = 512 * 512 * (config.pixel_scale / 60) ** 2
        counts.append((config.population.galaxy_density + config.population.star_density) * area)
    assert names == set(PRESETS)
    assert 29 < min(counts) < 40
    assert 200 < max(counts) < 251
    small = random_scene_config(rng, shape=(64, 48), bands=("r", "i"))
    assert simulate_scene(
        dataclasses.replace(small, conditions=PRESETS["lsst10"].conditions), rng
    ).images.shape == (2, 64, 48)


def test_saturation_and_bleeding():
    plain = noiseless(star(100.0, 90.0, 15.0))
    level = plain.config.band_conditions()[1].saturation
    for axis in ("x", "y"):
        scene = noiseless(
            star(100.0, 90.0, 15.0),
            artefacts=ArtefactConfig(
                saturation=True, bleed=True, bleed_axis=axis, bleed_level=0.5, saturation_fill=0.7
            ),
        )
        flagged = scene.mask[1] & MASK_BITS["SAT"] > 0
        core = plain.noiseless[1] > level
        assert flagged[core].all()
        np.testing.assert_allclose(scene.noiseless[1][core], 0.7 * level, rtol=1e-5)
        trail = flagged & ~core
        rows, columns = np.nonzero(trail)
        long, short = (np.ptp(columns), np.ptp(rows)) if axis == "x" else (np.ptp(rows), np.ptp(columns))
        assert long > 2 * short
        assert scene.noiseless[1][trail].min() >= 0.5 * level * 0.999
    # Truth is not touched by what the camera does.
    np.testing.assert_array_equal(scene.masks[0], plain.masks[0])
    faint = noiseless(star(100.0, 90.0, 21.0), artefacts=ArtefactConfig(saturation=True, bleed=True))
    assert not faint.mask.any()


def test_spikes_and_halo_hold_their_share():
    mag = 14.0
    plain = noiseless(star(200.0, 190.0, mag), shape=(400, 401))
    for settings, share in ((ArtefactConfig(spikes=0.02), 0.02), (ArtefactConfig(halo=0.02), 0.02)):
        scene = noiseless(star(200.0, 190.0, mag), shape=(400, 401), artefacts=settings)
        added = (scene.noiseless - plain.noiseless)[1].sum() / scene.sources["flux_r"][0]
        # What lies beyond the cut at the sky's level is not drawn.
        assert 0.3 * share < added < 1.1 * share


def test_marked_defects():
    config = preset_config(
        "hsc_wide",
        shape=(150, 170),
        population=EMPTY,
        artefacts=ArtefactConfig(cosmic_rays=100.0, dead_columns=4.0, gradient=0.0),
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


def test_gradient():
    plane = artefacts.background((50, 70), 2.0, np.random.default_rng(4))
    assert plane.shape == (50, 70)
    assert 0.5 < np.ptp(plane) < 40
    sloped = ArtefactConfig(gradient=1.0)
    config = preset_config("hsc_noiseless", shape=(50, 70), population=EMPTY, artefacts=sloped)
    scene = simulate_scene(config, np.random.default_rng(4))
    assert np.ptp(scene.noiseless) > 0
    # A sky background that is off does not make the variance negative.
    assert (scene.variance > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SceneConfig(shape=(8, 512)), "shape"),
        (lambda: SceneConfig(bands=("z", "z")), "once"),
        (lambda: SceneConfig(bands=("z", "u")), r"none for \['u'\]"),
        (lambda: SceneConfig(pixel_scale=0.0), "pixel_scale"),
        (lambda: SceneConfig(exposure_factor=math.nan), "exposure_factor"),
        (lambda: BandConditions("q", 0.7, 1.0, 1.0), "'q'"),
        (lambda: BandConditions("r", -0.7, 1.0, 1.0), "fwhm"),
        (lambda: BandConditions("r", 0.7, 1.0, 1.0, 0.0), "saturation"),
        (lambda: PsfConfig(profile="airy"), "airy"),
        (lambda: PsfConfig(beta=(1.5, 3.0)), "wings"),
        (lambda: PsfConfig(ellipticity=0.5), "0.2"),
        (lambda: PopulationConfig(galaxy_density=-1.0), "galaxy_density"),
        (lambda: PopulationConfig(pair_fraction=1.5), "pair_fraction"),
        (lambda: PopulationConfig(star_mag_range=(25.0, 17.0)), "star_mag_range"),
        (lambda: PopulationConfig(mag_bright=26.0), "mag_limit"),
        (lambda: PopulationConfig(pair_separation=(0.0, 1.0)), "pair_separation"),
        (lambda: ArtefactConfig(bleed=True), "saturation=True"),
        (lambda: ArtefactConfig(saturation=True, bleed_axis="z"), "bleed_axis"),
        (lambda: ArtefactConfig(spikes=0.3, halo=0.3), "half the flux"),
        (lambda: MaskRule(star_fraction=0.0), "star_fraction"),
        (lambda: preset_config("hubble"), "hubble"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_runs_without_lsst_packages():
    """Machines that only train have numpy and GalSim."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        allowed = ["lsst", "meas", "maskrcnn", "scenes"]
        if parts[0] == "lsst" and parts[:4] != allowed[:len(parts[:4])]:
            raise ImportError("refused: " + name)
        if parts[0] in ("torch", "pydantic"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from lsst.meas.maskrcnn.scenes.simulate import preset_config, simulate_scene
scene = simulate_scene(preset_config("hsc_wide", shape=(64, 64)), np.random.default_rng(1))
print(scene.images.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 64, 64)"
