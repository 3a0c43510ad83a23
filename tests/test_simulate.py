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
from few_sources import EMPTY, star

from lsst.meas.maskrcnn.scenes import populations
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import (
    ArtefactConfig,
    BandConditions,
    MaskRule,
    PopulationConfig,
    PsfConfig,
    SceneConfig,
)
from lsst.meas.maskrcnn.scenes.light import BandPsf, Painter
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import draw_scene, simulate_scene

CONDITIONS = (
    BandConditions("g", 0.77, 2.5, 60.0, 1.5e4),
    BandConditions("r", 0.72, 3.6, 60.0, 1.5e4),
    BandConditions("i", 0.60, 4.4, 90.0, 1.5e4),
    BandConditions("z", 0.68, 10.0, 45.0, 3.0e4),
)


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


def plain(**changes):
    """Return a configuration without artefacts and with smooth galaxies, which are symmetric."""
    changes.setdefault("population", PopulationConfig(structure_size=100.0))
    return SceneConfig(conditions=CONDITIONS, **changes)


def noiseless(population, shape=(200, 240), **changes):
    """Draw sources without noise."""
    config = plain(shape=shape, noise=False, **changes)
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


@pytest.mark.parametrize("make", [star, galaxy])
def test_photometry_unbiased_in_noise(make):
    """Over 200 draws the flux in an aperture and in the PSF scatters around the true one."""
    config = plain(shape=(72, 80), bands=("r",))
    rng = np.random.default_rng(77)
    pulls, psf_pulls = [], []
    for _ in range(200):
        x, y = rng.uniform(34, 42, 2)
        scene = draw_scene(config, make(x, y, 22.0), rng)
        flux = scene.sources["flux_r"][0]
        yy, xx = np.mgrid[:72, :80]
        aperture = np.hypot(xx - x, yy - y) < 30.0
        error = math.sqrt(scene.variance[0][aperture].sum(dtype=float))
        pulls.append((scene.images[0][aperture].sum(dtype=float) - flux) / error)
        psf = scene.psfs[0].draw((xx - x) * 0.168, (yy - y) * 0.168) * 0.168**2
        weight = psf / scene.variance[0]
        measured = (weight * scene.images[0]).sum() / (weight * psf).sum()
        psf_pulls.append((measured - flux) * (weight * psf).sum() ** 0.5)
    # A galaxy is not a PSF.
    for values in (pulls, psf_pulls) if make is star else (pulls,):
        assert abs(np.mean(values)) < 3.0 / math.sqrt(200)
        assert np.std(values) == pytest.approx(1.0, abs=3.0 / math.sqrt(400))


def centroid(plane, x0, y0):
    """Return the centroid under a Gaussian window that follows it."""
    y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
    plane = plane.astype(float)
    for _ in range(200):
        weight = plane * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / 3.0**2)
        x0 += 2.0 * (weight * (x - x0)).sum() / weight.sum()
        y0 += 2.0 * (weight * (y - y0)).sum() / weight.sum()
    return x0, y0


@pytest.mark.parametrize("make", [star, galaxy])
def test_positions(make):
    """x counts columns, y rows, and 0 is the centre of the first pixel."""
    scene = noiseless(make(117.3, 88.6, 21.0))
    for plane in scene.noiseless:
        assert centroid(plane, 118.0, 88.0) == pytest.approx((117.3, 88.6), abs=0.003)


@pytest.mark.parametrize("make", [star, galaxy])
def test_misregistration(make):
    """Bands after the first are off by the shifts of the scene."""
    still = noiseless(make(117.3, 88.6, 21.0))
    np.testing.assert_array_equal(still.shifts, 0.0)
    scene = noiseless(make(117.3, 88.6, 21.0), misregistration=0.4)
    assert scene.shifts.shape == (3, 2)
    np.testing.assert_array_equal(scene.shifts[0], 0.0)
    assert (np.abs(scene.shifts[1:]) > 0.01).all()
    for plane, (shift_y, shift_x) in zip(scene.noiseless, scene.shifts):
        expected = (117.3 + shift_x, 88.6 + shift_y)
        assert centroid(plane, 118.0, 88.0) == pytest.approx(expected, abs=0.003)
    # Light is moved, not lost.
    sums = still.noiseless.sum(axis=(1, 2), dtype=float)
    np.testing.assert_allclose(scene.noiseless.sum(axis=(1, 2), dtype=float), sums, rtol=1e-3)
    assert (scene.sources["x"][0], scene.sources["y"][0]) == (117.3, 88.6)
    drawn = [
        draw_scene(plain(shape=(16, 16), misregistration=0.2), star(8.0, 8.0, 22.0), rng).shifts[1:]
        for rng in [np.random.default_rng(8)]
        for _ in range(300)
    ]
    assert np.std(drawn) == pytest.approx(0.2, rel=0.1)


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
    config = plain(shape=(180, 260), bands=("r", "g"), keep_models=True, mask_rule=rule)
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


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("hsc-wide", (260, 300)), ("crowded", (200, 150)), ("hsc-500s-noiseless", (200, 150))],
)
def test_models_sum_to_the_light(preset, shape):
    """Whatever the camera adds, each source's own pixels sum to the light."""
    config = preset_config(preset, shape=shape, keep_models=True, mask_rule=MaskRule(band="r"))

    def draw(config):
        rng = np.random.default_rng(13)
        drawn = populations.draw_population(config.population, shape, config.pixel_scale, rng)
        # One that is saturated in any case.
        return draw_scene(config, np.concatenate([star(70.2, 65.9, 12.0), drawn]), rng)

    scene = draw(config)
    total = np.zeros(scene.images.shape)
    for model in scene.models:
        h, w = model.pixels.shape[1:]
        assert model.pixels.dtype == np.float32
        total[:, model.y0 : model.y0 + h, model.x0 : model.x0 + w] += model.pixels
    np.testing.assert_array_equal(scene.light, total.astype(np.float32))
    if config.artefacts.saturation:
        # There is something to see of what does not belong to the sources.
        assert (scene.mask & MASK_BITS["SAT"]).any()
        widest = max(min(model.pixels.shape[1:]) for model in scene.models)
        assert widest == min(shape)
    else:
        np.testing.assert_array_equal(scene.noiseless, scene.light)
    lean = draw(dataclasses.replace(config, keep_models=False))
    assert lean.models is None
    np.testing.assert_array_equal(lean.images, scene.images)
    np.testing.assert_array_equal(lean.sources, scene.sources)


@pytest.mark.parametrize("kind", ["isophote", "fluxFraction"])
def test_masks_by_other_rules(kind):
    """The rule looks at its own band, and at the noise or the flux there."""
    rule = MaskRule(kind=kind, band="g", isophote=2.0, flux_fraction=0.7)
    population = np.concatenate([star(120.0, 90.0, 19.0), galaxy(60.2, 100.7, 20.0)])
    scene = noiseless(population, mask_rule=rule, keep_models=True, bands=("z", "g"))
    for source, model, mask in zip(scene.sources, scene.models, scene.masks):
        own = model.pixels[1].astype(float)
        if kind == "isophote":
            assert mask.sum() == (own > 2.0 * scene.sky_sigma[1]).sum()
        else:
            held = np.sort(own.ravel())[::-1].cumsum() / source["flux_g"]
            assert mask.sum() == (held < 0.7).sum() + 1
    ratio = scene.sources["flux_g"][1] / scene.sources["flux_g"][0]
    np.testing.assert_allclose(scene.sources["neighbor_flux_ratio"], [ratio, 1 / ratio])


def test_neighbours_and_profiles():
    population = np.concatenate(
        [star(100.0, 90.0, 20.0), galaxy(103.0, 94.0, 21.0, bulge=0.2), galaxy(20.0, 20.0, 21.0, bulge=0.8)]
    )
    scene = noiseless(population)
    far = math.hypot(83.0, 74.0)
    np.testing.assert_allclose(
        scene.sources["neighbor_distance"], 0.168 * np.array([5.0, 5.0, min(far, math.hypot(80, 70))])
    )
    ratio = scene.sources["flux_z"][1] / scene.sources["flux_z"][0]
    np.testing.assert_allclose(scene.sources["neighbor_flux_ratio"][:2], [ratio, 1 / ratio])
    np.testing.assert_allclose(scene.sources["sersic_index"], [0.0, 1.0, 4.0])
    alone = noiseless(population[:1])
    assert np.isnan(alone.sources["neighbor_distance"][0])
    assert np.isnan(alone.sources["neighbor_flux_ratio"][0])


def test_flags():
    population = np.concatenate(
        [
            star(100.0, 90.0, 20.0),
            star(0.4, 30.0, 20.0),
            star(-60.0, 30.0, 20.0),
            star(150.0, 150.0, 29.5),
            galaxy(40.0, 150.0, 21.0, radius=0.05, bulge=0.0),
        ]
    )
    rule = MaskRule(galaxy_fraction=0.8)
    scene = draw_scene(plain(shape=(200, 240), mask_rule=rule), population, np.random.default_rng(1))
    flags = {
        name: list(scene.sources[f"flag_{name}"]) for name in ("empty", "small", "faint", "masked", "edge")
    }
    assert flags["empty"] == [False, False, True, False, False]
    assert flags["small"] == [False, False, True, False, True]
    assert flags["faint"] == [False, False, True, True, False]
    assert flags["masked"] == [False] * 5
    assert flags["edge"] == [False, True, False, False, False]
    assert not noiseless(population).sources["flag_faint"].any()
    # Gaps take all the data of some, whose peaks or masks lie there.
    gaps = ArtefactConfig(chip_gaps=3.0, chip_gap_width=(6.0, 12.0))
    grid = np.concatenate([star(x, y, 20.0) for x in range(10, 240, 20) for y in range(10, 200, 20)])
    scene = draw_scene(plain(shape=(200, 240), artefacts=gaps), grid, np.random.default_rng(1))
    lost = (scene.mask & MASK_BITS["NO_DATA"] > 0).any(axis=0)
    masked = scene.sources["flag_masked"]
    at_peak = lost[grid["y"].astype(int), grid["x"].astype(int)]
    assert 0 < masked.sum() < len(masked)
    assert masked[at_peak].all()
    for mask, (y0, x0) in zip([m for m, f in zip(scene.masks, masked) if not f], scene.origins[~masked]):
        assert 2 * (lost[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] & mask).sum() <= mask.sum()


def test_determinism_and_no_global_state():
    # Global state is read only: the simulator must leave it alone.
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    scenes = []
    for seed in (6, 6, 7):
        rng = np.random.default_rng(seed)
        config = preset_config("cluster", shape=(100, 120), keep_models=True, misregistration=0.1)
        scenes.append(simulate_scene(config, rng))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    first, second, other = scenes
    for name in ("images", "noiseless", "light", "variance", "mask", "sources", "origins", "shifts"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    for one, two in zip(first.models, second.models, strict=True):
        assert one.pixels.tobytes() == two.pixels.tobytes()
    for one, two in zip(first.masks, second.masks, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first.images.tobytes() != other.images.tobytes()
    # The state of the generator is all that counts, not how it was made.
    rng = np.random.default_rng(0)
    rng.bit_generator.state = np.random.default_rng(6).bit_generator.state
    third = simulate_scene(preset_config("cluster", shape=(100, 120), misregistration=0.1), rng)
    assert first.images.tobytes() == third.images.tobytes()


def test_source_at_the_edge():
    whole = noiseless(star(100.0, 100.0, 21.0))
    half = noiseless(star(0.0, 100.0, 21.0))
    off = noiseless(star(-60.0, 100.0, 21.0))
    assert whole.sources["visible"][0] == 1.0
    assert half.sources["visible"][0] == pytest.approx(0.5, abs=0.1)
    assert half.origins[0, 1] == 0
    assert off.sources["area"][0] == 0
    assert off.masks[0].shape == (0, 0)


def test_blending_measures():
    """Two equal stars on one spot share the light evenly; far ones do not."""
    pair = np.concatenate([star(100.0, 90.0, 21.0), star(100.0, 90.0, 21.0), star(30.0, 30.0, 21.0)])
    scene = noiseless(pair)
    np.testing.assert_allclose(scene.sources["peak_share"], [0.5, 0.5, 1.0], atol=1e-3)
    np.testing.assert_allclose(scene.sources["blendedness"], [0.5, 0.5, 0.0], atol=1e-3)


def test_band_order_is_the_callers():
    """The same band is the same picture wherever it stands."""
    population = star(100.0, 90.0, 20.0)
    population["locus"] = 0.9
    scene = noiseless(population, bands=("g", "z"))
    # A late M dwarf is faint in g.
    assert scene.noiseless[0].sum() < 0.1 * scene.noiseless[1].sum()
    assert scene.sources["flux_g"][0] == pytest.approx(scene.noiseless[0].sum(), rel=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SceneConfig(shape=(8, 512)), "shape"),
        (lambda: SceneConfig(bands=("z", "z")), "once"),
        (lambda: SceneConfig(bands=("z", "u")), r"not for u"),
        (lambda: SceneConfig(pixel_scale=0.0), "pixel_scale"),
        (lambda: SceneConfig(exposure_factor=math.nan), "exposure_factor"),
        (lambda: BandConditions("q", 0.7, 1.0, 1.0), "'q'"),
        (lambda: BandConditions("r", -0.7, 1.0, 1.0), "fwhm"),
        (lambda: BandConditions("r", 0.7, 1.0, 1.0, 0.0), "saturation"),
        (lambda: PsfConfig(profile="airy"), "airy"),
        (lambda: PsfConfig(beta=(1.5, 3.0)), "beta"),
        (lambda: PsfConfig(ellipticity=0.5), "0.2"),
        (lambda: PopulationConfig(galaxy_density=-1.0), "galaxy_density"),
        (lambda: PopulationConfig(pair_fraction=1.5), "pair_fraction"),
        (lambda: PopulationConfig(star_mag_range=(25.0, 17.0)), "star_mag_range"),
        (lambda: PopulationConfig(mag_bright=26.0), "mag_limit"),
        (lambda: PopulationConfig(pair_separation=(0.0, 1.0)), "pair_separation"),
        (lambda: ArtefactConfig(bleed=True), "saturation=True"),
        (lambda: ArtefactConfig(saturation=True, bleed_axis="z"), "bleed_axis"),
        (lambda: ArtefactConfig(spikes=0.3, halo=0.3), "spikes . halo is 0.6"),
        (lambda: MaskRule(star_fraction=0.0), "star_fraction"),
        (lambda: preset_config("hubble"), "hubble"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_runs_without_lsst_packages():
    """Numpy, scipy, pydantic and GalSim are enough."""
    code = """
import sys
OURS = [], ["scenes"], ["images"]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        allowed = ["lsst", "meas", "maskrcnn"]
        if parts[0] == "lsst" and (parts[:3] != allowed[:len(parts[:3])] or parts[3:4] not in OURS):
            raise ImportError("refused: " + name)
        if parts[0] == "torch":
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
scene = simulate_scene(preset_config("hsc-wide", shape=(64, 64)), np.random.default_rng(1))
print(scene.images.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 64, 64)"


def test_wings_are_alike_in_all_bands():
    """Else the stars of a scene have rims of one colour; from scene to scene they differ."""
    config = SceneConfig(
        shape=(32, 32), bands=("g", "r", "i", "z"), conditions=CONDITIONS, population=EMPTY, noise=False
    )
    low, high = config.psf.beta
    exponents = np.array(
        [[psf.beta for psf in simulate_scene(config, np.random.default_rng(seed)).psfs] for seed in range(40)]
    )
    assert np.all((exponents >= low) & (exponents <= high))
    assert 0 < np.ptp(exponents, axis=1).max() < 0.2 * (high - low)
    assert np.ptp(exponents[:, 0]) > 0.8 * (high - low)
