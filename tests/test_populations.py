# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Catalogues of sources: what the configuration asks for is what is drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from few_sources import EMPTY

from lsst.meas.maskrcnn.scenes import populations
from lsst.meas.maskrcnn.scenes.config import ALL_BANDS, PopulationConfig
from lsst.meas.maskrcnn.scenes.populations import draw_population, sersic_indices, source_fluxes, star_colours

SCALE = 0.2
BARE = replace(EMPTY, pair_fraction=0.0)


def draw(shape=(3000, 3300), seed=1, **changes):
    """Draw a population and the sky area it covers, arcmin^2."""
    config = replace(BARE, **changes)
    margin = 4.0
    population = draw_population(config, shape, SCALE, np.random.default_rng(seed), margin)
    height, width = (n * SCALE + 2 * margin for n in shape)
    return population, height * width / 3600.0


def magnitudes(population, bands=("g", "r", "z")):
    """Return the sources' magnitudes in bands, (N, band)."""
    disc, bulge = source_fluxes(population, bands)
    return 31.4 - 2.5 * np.log10(disc + bulge)


def test_number_counts_of_galaxies():
    """Counts by magnitude follow both slopes and the density, to Poisson errors."""
    config = replace(BARE, galaxy_density=700.0)
    population, area = draw(galaxy_density=700.0)
    expected = 700.0 * area
    assert population.size > 60_000
    assert population.size == pytest.approx(expected, abs=4 * math.sqrt(expected))
    bins = np.linspace(config.mag_bright, config.mag_limit, 18)
    assert config.counts_break in bins
    counts = np.histogram(population["mag"], bins)[0]
    assert counts.sum() == population.size

    def integral(low, high):
        slope = np.where(low < config.counts_break, config.counts_slope_bright, config.counts_slope_faint)
        low, high = low - config.counts_break, high - config.counts_break
        return (10.0 ** (slope * high) - 10.0 ** (slope * low)) / slope

    shape = integral(bins[:-1], bins[1:])
    model = shape / shape.sum() * expected
    chi2 = ((counts - model) ** 2 / model).sum()
    # 17 degrees of freedom: 41 is exceeded once in a thousand.
    assert chi2 < 41.0


@pytest.mark.parametrize("density", [5.0, 400.0])
def test_number_counts_of_stars(density):
    """Also in the crowded regime, hundreds per arcmin^2."""
    population, area = draw(star_density=density, star_counts_slope=0.2, star_mag_range=(16.0, 24.0))
    assert population["is_star"].all()
    expected = density * area
    assert population.size == pytest.approx(expected, abs=4 * math.sqrt(expected))
    bins = np.linspace(16.0, 24.0, 9)
    counts = np.histogram(population["mag"], bins)[0]
    model = 10.0 ** (0.2 * bins[1:]) - 10.0 ** (0.2 * bins[:-1])
    model *= expected / model.sum()
    assert ((counts - model) ** 2 / model).sum() < 26.1  # 8 degrees of freedom, once in a thousand


def test_star_fraction_and_places():
    population, area = draw(galaxy_density=100.0, star_density=50.0)
    stars = population["is_star"].mean()
    assert stars == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / population.size))
    # Spread evenly over image and margin.
    for axis, length in (("x", 3300), ("y", 3000)):
        share = (population[axis] + 20.5) / (length + 40)
        assert share.min() >= 0 and share.max() <= 1
        ordered = np.sort(share)
        steps = np.arange(1, population.size + 1) / population.size
        assert np.abs(ordered - steps).max() < 1.95 / math.sqrt(population.size)
    assert (np.diff(population["mag"]) >= 0).all()


def test_bright_stars_and_large_galaxies():
    population, area = draw(bright_star_density=8.0, large_galaxy_density=6.0)
    stars, galaxies = population[population["is_star"]], population[~population["is_star"]]
    assert stars.size == pytest.approx(8.0 * area, abs=4 * math.sqrt(8.0 * area))
    assert galaxies.size == pytest.approx(6.0 * area, abs=4 * math.sqrt(6.0 * area))
    assert 14.0 <= stars["mag"].min() < 14.1 and 17.9 < stars["mag"].max() <= 18.0
    assert np.median(galaxies["disc_radius"]) > 2.0
    # None has a mean surface brightness inside its half-light radius below 24 mag/arcsec^2.
    brightness = galaxies["mag"] + 2.5 * np.log10(2 * math.pi * galaxies["disc_radius"] ** 2)
    assert brightness.max() < 24.0 + 0.4 * 0.5 + 1e-6


def half_light(population):
    bulge = population["bulge_fraction"]
    return bulge * population["bulge_radius"] + (1 - bulge) * population["disc_radius"]


@pytest.mark.parametrize("factor", [1.0, 1.4])
def test_sizes(factor):
    """The median size falls with magnitude as configured, and scatters so."""
    config = replace(BARE, size_at_22=0.55 * factor)
    population, _ = draw(galaxy_density=700.0, size_at_22=config.size_at_22)
    radius = half_light(population)
    for mag in (19.0, 20.0, 21.0, 22.0, 23.0, 24.0):
        chosen = np.abs(population["mag"] - mag) < 0.2
        expected = config.size_at_22 * 10.0 ** (config.size_slope * (mag - 22.0))
        error = 4 * 1.25 * config.size_scatter * math.log(10) / math.sqrt(chosen.sum())
        assert np.median(radius[chosen]) == pytest.approx(expected, rel=0.06 + error)
    chosen = np.abs(population["mag"] - 22.0) < 0.5
    low, high = np.percentile(np.log10(radius[chosen]), [15.87, 84.13])
    # Type and bulge add to it.
    assert config.size_scatter < 0.5 * (high - low) < 1.25 * config.size_scatter


def test_shapes():
    population, _ = draw(galaxy_density=200.0)
    for name in ("disc_axis_ratio", "bulge_axis_ratio"):
        assert population[name].min() > 0.1
        assert population[name].max() <= 1.0
    late = population[~population["is_red"]]
    # Thin discs at random inclinations: cos i is uniform.
    assert np.median(late["disc_axis_ratio"]) == pytest.approx(0.55, abs=0.05)
    assert np.median(population["disc_axis_ratio"][population["is_red"]]) > 0.7
    angle = population["position_angle"]
    assert np.abs(np.exp(2j * angle).mean()) < 4 / math.sqrt(angle.size)


def test_sersic_indices():
    config = replace(BARE, disc_sersic=(0.7, 1.2), bulge_sersic=(2.2, 4.6))
    population, _ = draw(galaxy_density=300.0, disc_sersic=(0.7, 1.2), bulge_sersic=(2.2, 4.6))
    for name, (low, high) in (("disc_sersic", config.disc_sersic), ("bulge_sersic", config.bulge_sersic)):
        assert population[name].min() == pytest.approx(low)
        assert population[name].max() == pytest.approx(high)
        np.testing.assert_allclose(population[name] * 10, np.round(population[name] * 10), atol=1e-6)
    red = population[population["is_red"]]
    near = np.abs(red["redshift"] - 0.5) < 0.1
    bright, faint = red[near & (red["mag"] < 21.0)], red[near & (red["mag"] > 22.5)]
    # At one redshift, the more luminous early types are the more concentrated ones.
    assert np.mean(bright["bulge_sersic"]) > np.mean(faint["bulge_sersic"]) + 0.4
    np.testing.assert_array_equal(sersic_indices(population)[0], np.round(population["disc_sersic"], 1))
    open_ones = np.zeros(3, populations.POPULATION_DTYPE)
    disc, bulge = sersic_indices(open_ones)
    assert disc.tolist() == [1.0] * 3
    assert bulge.tolist() == [4.0] * 3


def test_colours_beside_the_loci():
    population, _ = draw(galaxy_density=20.0, star_density=20.0)
    bands = ("g", "r", "z")
    wanted = np.where(population["is_star"], 0.5, -0.2)
    before = np.sum(source_fluxes(population, bands), axis=0)
    population["colour_offset"][:, ALL_BANDS.index("r")] = wanted
    after = np.sum(source_fluxes(population, bands), axis=0)
    change = -2.5 * np.log10(after / before)
    np.testing.assert_allclose(change[:, 1], wanted, atol=1e-9)
    np.testing.assert_allclose(change[:, [0, 2]], 0.0, atol=1e-9)


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_irregular_fraction(fraction):
    population, _ = draw(galaxy_density=200.0, irregular_fraction=fraction)
    late = population[~population["is_red"]]
    assert not population["is_irregular"][population["is_red"]].any()
    assert late["is_irregular"].mean() == pytest.approx(
        fraction, abs=4 * math.sqrt(fraction * (1 - fraction) / late.size)
    )
    if fraction:
        irregular, regular = late[late["is_irregular"]], late[~late["is_irregular"]]
        assert irregular["bulge_fraction"].mean() < 0.5 * regular["bulge_fraction"].mean()


def neighbours(population, within):
    """Return the separations (arcsec) of all pairs closer than a limit."""
    found = []
    order = np.argsort(population["x"])
    x, y = population["x"][order] * SCALE, population["y"][order] * SCALE
    for step in range(1, x.size):
        dx = x[step:] - x[:-step]
        if dx.min() > within:
            break
        separation = np.hypot(dx, y[step:] - y[:-step])
        found.append(separation[separation < within])
    return np.concatenate(found)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.6])
def test_pairs(fraction):
    """The configured share of sources sits next to another one."""
    population, area = draw((9000, 8000), galaxy_density=4.0, pair_fraction=fraction)
    n = population.size
    close = neighbours(population, 4.0)
    density = n / (area * 3600.0)
    by_chance = 0.5 * n * density * math.pi * 4.0**2
    # Two that were moved to the same one are close to each other as well.
    sharing = 0.5 * fraction**2 / (1 - fraction) * n
    expected = fraction * n + by_chance
    error = 4 * math.sqrt(expected)
    assert expected + 0.5 * sharing - error < close.size < expected + sharing + error


def test_pair_separations():
    """Separations are uniform in the logarithm."""
    population, area = draw(
        (9000, 8000), galaxy_density=3.0, star_density=3.0, pair_fraction=0.1, pair_separation=(0.5, 5.0)
    )
    close = neighbours(population, 5.0)
    assert close.size > 500
    edges = np.array([0.0, 0.5, 0.8, 1.3, 2.0, 3.2, 5.0])
    share = np.diff(np.log(np.maximum(edges, 0.5))) / math.log(10.0)
    by_chance = 0.5 * population.size**2 / (area * 3600.0) * math.pi * np.diff(edges**2)
    # The few that share a partner, and are close to each other for it, drown in the errors.
    expected = 0.1 * population.size * share + by_chance
    found = np.histogram(close, edges)[0]
    np.testing.assert_array_less(np.abs(found - expected), 4 * np.sqrt(expected) + 5)


def test_all_in_pairs():
    population, _ = draw((400, 500), galaxy_density=20.0, pair_fraction=1.0)
    assert population.size > 20
    assert neighbours(population, 8.0).size >= population.size - 1


def test_clusters():
    sizes, radii, scatter = [], [], []
    shape = (2400, 2500)
    for seed in range(60):
        population, _ = draw(
            shape, seed, cluster_probability=1.0, cluster_richness=(20, 50), cluster_core=(10.0, 10.0)
        )
        assert (population["group"] == 1).all()
        sizes.append(population.size)
        brightest = population[0]
        assert len(np.unique(population["redshift"])) == 1
        distance = np.hypot(population["x"] - brightest["x"], population["y"] - brightest["y"])[1:] * SCALE
        central = 0.3 * shape[1] < brightest["x"] < 0.7 * shape[1]
        if central and 0.3 * shape[0] < brightest["y"] < 0.7 * shape[0]:
            radii.extend(distance)
        colours = magnitudes(population)
        red = population["is_red"]
        g_r = colours[red, 0] - colours[red, 1]
        slope, offset = np.polyfit(population["mag"][red], g_r, 1)
        scatter.append(np.std(g_r - slope * population["mag"][red] - offset))
    assert min(sizes) < 25 and max(sizes) > 42
    assert max(sizes) <= 50
    # Half of a King profile that is cut at 6 cores lies inside 2.25 cores.
    assert len(radii) > 200
    assert np.median(radii) == pytest.approx(22.5, rel=0.15)
    assert max(radii) < 60.01
    # A red sequence.
    assert 0.02 < np.median(scatter) < 0.08


def test_cluster_probability():
    with_cluster = [
        (draw((300, 300), seed, galaxy_density=3.0, cluster_probability=0.3)[0]["group"] == 1).any()
        for seed in range(300)
    ]
    assert np.mean(with_cluster) == pytest.approx(0.3, abs=0.1)


def test_colours_of_field_galaxies():
    """Median colours by magnitude are those of the sky: SDSS at the bright end, HSC at the faint."""
    population, _ = draw((6000, 6000), galaxy_density=260.0)
    colours = magnitudes(population)
    for mag, g_r, r_z in (
        (18.5, (0.75, 1.05), (0.55, 0.8)),
        (21.0, (0.75, 1.0), (0.6, 0.8)),
        (22.5, (0.5, 0.8), (0.45, 0.7)),
        (23.5, (0.4, 0.65), (0.4, 0.6)),
        (25.0, (0.25, 0.5), (0.3, 0.55)),
    ):
        chosen = np.abs(population["mag"] - mag) < 0.3
        assert chosen.sum() > 100
        medians = np.median(-np.diff(colours[chosen], axis=1), axis=0)
        assert g_r[0] < medians[0] < g_r[1]
        assert r_z[0] < medians[1] < r_z[1]
    # Two types, and early ones are redder at any redshift.
    assert np.ptp([population["is_red"][np.abs(population["mag"] - m) < 0.5].mean() for m in (19, 24)]) > 0.2
    for low in (0.1, 0.3, 0.5, 0.7):
        chosen = (population["redshift"] > low) & (population["redshift"] < low + 0.1)
        g_r = colours[:, 0] - colours[:, 1]
        red = population["is_red"]
        assert np.median(g_r[chosen & red]) > np.median(g_r[chosen & ~red]) + 0.3


@pytest.mark.parametrize("scatter", [0.0, 0.1])
def test_star_locus(scatter):
    population, _ = draw((4000, 4000), star_density=60.0, star_locus_scatter=scatter)
    relative = star_colours(population["locus"])
    index = [ALL_BANDS.index(b) for b in ("g", "r", "i", "z")]
    expected = -np.diff(relative[index].T, axis=1)
    colours = -np.diff(magnitudes(population, ("g", "r", "i", "z")), axis=1)
    difference = colours[:, 0] - expected[:, 0]
    if scatter == 0:
        np.testing.assert_allclose(colours, expected, atol=1e-6)
        # Late M dwarfs: g - r stays near 1.4 while r - z runs up to 3 (Covey et al. 2007).
        late = colours[:, 1] > 1.0
        assert late.sum() > 100
        assert ((colours[late, 0] > 1.35) & (colours[late, 0] < 1.6)).all()
        assert 2.5 < (colours[late, 1] + colours[late, 2]).max() < 3.0
        # Stars of the turn-off: blue throughout.
        early = colours[:, 0] < 0.4
        assert early.sum() > 50
        assert np.abs(colours[early, 1:]).max() < 0.2
    else:
        assert np.std(difference) == pytest.approx(scatter, rel=4 / math.sqrt(2 * population.size))
        assert np.mean(difference) == pytest.approx(0.0, abs=4 * scatter / math.sqrt(population.size))


def test_m_dwarfs_take_over_at_the_faint_end():
    shares = []
    for density in (10.0, 400.0):
        population, _ = draw((4000, 4000), star_density=density)
        cool = population["locus"] > 0.65
        bright, faint = population["mag"] < 18.5, population["mag"] > 23.5
        shares.append((cool[bright].mean(), cool[faint].mean()))
    assert shares[0][0] < 0.35
    assert shares[0][1] > 0.55
    # Less so in the crowded plane of the Milky Way.
    assert shares[1][0] < shares[1][1] < 0.4


def test_an_empty_sky_and_one_seed():
    assert draw()[0].size == 0
    first, _ = draw((300, 200), 7, galaxy_density=60.0, star_density=20.0, cluster_probability=1.0)
    again, _ = draw((300, 200), 7, galaxy_density=60.0, star_density=20.0, cluster_probability=1.0)
    np.testing.assert_array_equal(first, again)
    for name in first.dtype.names:
        assert np.isfinite(first[name]).all()


def test_dust_reddens_galaxies_more_than_stars():
    """Colours against r change; magnitudes in r and positions do not."""
    clear, _ = draw((1500, 1600), galaxy_density=20.0, star_density=20.0)
    dusty, _ = draw((1500, 1600), galaxy_density=20.0, star_density=20.0, dust_reddening=0.6)
    np.testing.assert_array_equal(clear["mag"], dusty["mag"])
    np.testing.assert_array_equal(clear["x"], dusty["x"])
    change = magnitudes(dusty) - magnitudes(clear)
    np.testing.assert_allclose(change[:, 1], 0.0, atol=1e-9)
    star = clear["is_star"]
    np.testing.assert_allclose(change[~star, 0], 0.6, atol=1e-9)
    assert 0.2 <= change[star, 0].min() < 0.22 and 0.58 < change[star, 0].max() <= 0.6
    # A_r - A_z is near A_g - A_r for the dust of the Milky Way (Schlafly & Finkbeiner 2011).
    np.testing.assert_allclose(change[:, 2], -change[:, 0], rtol=0.1)
    with pytest.raises(ValueError, match="dust_reddening is -0.1"):
        PopulationConfig(dust_reddening=-0.1)
