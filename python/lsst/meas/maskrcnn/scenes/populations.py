# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random catalogues of stars and galaxies: counts, sizes, shapes, colours."""

from __future__ import annotations

import math

import numpy as np

from ..images.units import AB_ZERO_POINT
from .config import ALL_BANDS, PopulationConfig

POPULATION_DTYPE = np.dtype(
    [
        ("x", "f8"),  # px, 0 at the centre of the first pixel
        ("y", "f8"),
        ("is_star", "?"),
        ("is_red", "?"),  # early type
        ("group", "i4"),  # 0 field, 1 cluster member
        ("mag", "f8"),  # AB in r
        ("redshift", "f8"),
        ("locus", "f8"),  # place of a star on the locus, 0 blue to 1 red
        ("reddening", "f8"),  # scatter about the colours, mag in g-r
        ("colour_offset", "f8", (len(ALL_BANDS),)),  # mag in each band beside that
        ("is_irregular", "?"),  # a disc that has clumps only, no arms, if it is large enough for either
        ("old_fraction", "f8"),  # of the disc's flux in r, from an old population
        ("bulge_fraction", "f8"),  # of the flux in r
        ("disc_sersic", "f8"),  # Sersic indices in steps of 0.1; 0 stands for 1 of discs and 4 of bulges
        ("bulge_sersic", "f8"),
        ("disc_radius", "f8"),  # half-light, major axis, arcsec
        ("bulge_radius", "f8"),
        ("disc_axis_ratio", "f8"),
        ("bulge_axis_ratio", "f8"),
        ("position_angle", "f8"),  # rad, from +x towards +y
    ]
)

# Colours u-g, g-r, r-i, i-z, z-y. Rounded from published template and
# locus colours (Fukugita et al. 1995 for galaxies of type E and Scd by
# redshift; Covey et al. 2007 for the stellar locus); a simulator needs the
# trends, not the hundredths.
_REDSHIFTS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4])
_RED = np.array(
    [
        [1.7, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8],
        [0.75, 1.15, 1.6, 1.75, 1.75, 1.6, 1.2],
        [0.38, 0.45, 0.62, 0.95, 1.1, 1.15, 1.2],
        [0.28, 0.32, 0.35, 0.42, 0.55, 0.75, 0.9],
        [0.15, 0.18, 0.2, 0.25, 0.3, 0.4, 0.6],
    ]
)
_BLUE = np.array(
    [
        [0.9, 0.7, 0.5, 0.4, 0.4, 0.4, 0.3],
        [0.4, 0.5, 0.58, 0.52, 0.4, 0.3, 0.2],
        [0.14, 0.16, 0.2, 0.28, 0.3, 0.25, 0.14],
        [0.04, 0.06, 0.06, 0.08, 0.11, 0.18, 0.2],
        [0.02, 0.05, 0.05, 0.05, 0.1, 0.15, 0.2],
    ]
)
_LOCUS = np.array([0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0])
_STAR = np.array(
    [
        [0.9, 1.0, 1.4, 2.2, 2.5, 2.5, 2.5, 2.6],
        [0.2, 0.4, 0.65, 1.1, 1.36, 1.42, 1.46, 1.55],
        [0.02, 0.13, 0.23, 0.43, 0.6, 0.85, 1.3, 1.9],
        [0.0, 0.03, 0.1, 0.22, 0.33, 0.47, 0.71, 1.05],
        [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45],
    ]
)

_REDDENING = np.array([2.0, 1.0, 0.0, -0.6, -1.0, -1.2])
"""Change of m_band - m_r per magnitude of g - r, in `ALL_BANDS`."""


def _relative_to_r(colours: np.ndarray) -> np.ndarray:
    """Turn neighbouring colours (5, N) into m_band - m_r (6, N)."""
    magnitudes = np.concatenate([np.zeros((1, colours.shape[1])), -np.cumsum(colours, axis=0)])
    return magnitudes - magnitudes[ALL_BANDS.index("r")]


def _interpolate(x: np.ndarray, grid: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(x, grid, row) for row in table])


def galaxy_colours(redshift: np.ndarray, red: bool) -> np.ndarray:
    """Return m_band - m_r at redshifts (N,), in the order of `ALL_BANDS`, (6, N), of old or young stars."""
    return _relative_to_r(_interpolate(np.asarray(redshift), _REDSHIFTS, _RED if red else _BLUE))


def star_colours(locus: np.ndarray) -> np.ndarray:
    """Return m_band - m_r of stars at places on the locus (N,), 0 turn-off to 1 late M dwarf, (6, N)."""
    return _relative_to_r(_interpolate(np.asarray(locus), _LOCUS, _STAR))


def source_fluxes(population: np.ndarray, bands: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the fluxes of disc and bulge of a population, (N, band) each, nJy.

    The light of a star is its disc's.
    """
    index = [ALL_BANDS.index(b) for b in bands]
    total = 10.0 ** (0.4 * (AB_ZERO_POINT - population["mag"]))
    stellar = 10.0 ** (-0.4 * star_colours(population["locus"])[index].T)
    young = 10.0 ** (-0.4 * galaxy_colours(population["redshift"], red=False)[index].T)
    old = 10.0 ** (-0.4 * galaxy_colours(population["redshift"], red=True)[index].T)
    bulge = population["bulge_fraction"]
    share = population["old_fraction"][:, None]
    disc = np.where(population["is_star"][:, None], stellar, share * old + (1.0 - share) * young)
    # Dust, age and metals shift all colours together.
    shift = population["reddening"][:, None] * _REDDENING[index] + population["colour_offset"][:, index]
    shift = 10.0 ** (-0.4 * shift)
    return disc * shift * (total * (1.0 - bulge))[:, None], old * shift * (total * bulge)[:, None]


def sersic_indices(population: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Sersic indices of discs and bulges, (N,), rounded to 0.1; 1 and 4 where they are 0."""
    disc = np.where(population["disc_sersic"] > 0, population["disc_sersic"], 1.0)
    bulge = np.where(population["bulge_sersic"] > 0, population["bulge_sersic"], 4.0)
    return np.round(disc, 1), np.round(bulge, 1)


def draw_magnitudes(
    rng: np.random.Generator,
    count: int,
    bright: float,
    faint: float,
    slope_bright: float,
    slope_faint: float | None = None,
    break_mag: float | None = None,
) -> np.ndarray:
    """Draw magnitudes between two limits from counts that are one or two exponentials, in no order.

    Slopes are d log10 N / dm before and after ``break_mag``.
    """
    grid = np.linspace(bright, faint, 2049)
    middle = 0.5 * (grid[1:] + grid[:-1])
    if slope_faint is None or break_mag is None:
        log_counts = slope_bright * middle
    else:
        log_counts = np.where(middle < break_mag, slope_bright, slope_faint) * (middle - break_mag)
    cumulative = np.concatenate([[0.0], np.cumsum(10.0 ** (log_counts - log_counts.max()))])
    return np.interp(rng.random(count) * cumulative[-1], cumulative, grid)


def draw_population(
    config: PopulationConfig,
    shape: tuple[int, int],
    pixel_scale: float,
    rng: np.random.Generator,
    margin: float = 4.0,
) -> np.ndarray:
    """Draw the sources of one scene of a shape (y, x) in px, brightest first, of `POPULATION_DTYPE`.

    Sources may lie ``margin`` (arcsec) outside the image; the pixel scale is in arcsec.
    """
    pad = margin / pixel_scale
    height, width = shape[0] + 2 * pad, shape[1] + 2 * pad
    area = height * width * (pixel_scale / 60.0) ** 2
    field = _draw_galaxies(
        config,
        draw_magnitudes(
            rng,
            rng.poisson(config.galaxy_density * area),
            config.mag_bright,
            config.mag_limit,
            config.counts_slope_bright,
            config.counts_slope_faint,
            config.counts_break,
        ),
        rng,
    )
    large = _draw_galaxies(
        config, rng.uniform(*config.large_galaxy_mags, rng.poisson(config.large_galaxy_density * area)), rng
    )
    # The brightest galaxies of the sky are nearby: several arcsec across.
    growth = 10.0 ** rng.uniform(0.0, 0.45, large.size)
    growth = np.minimum(growth, _largest_radius(large["mag"]) / large["disc_radius"])
    large["disc_radius"] *= growth
    large["bulge_radius"] *= growth
    stars = _draw_stars(
        config,
        draw_magnitudes(
            rng, rng.poisson(config.star_density * area), *config.star_mag_range, config.star_counts_slope
        ),
        rng,
    )
    bright = _draw_stars(
        config, rng.uniform(*config.bright_star_mags, rng.poisson(config.bright_star_density * area)), rng
    )
    population = np.concatenate([field, stars, large, bright])
    n = population.size
    population["x"] = rng.uniform(-pad - 0.5, width - pad - 0.5, n)
    population["y"] = rng.uniform(-pad - 0.5, height - pad - 0.5, n)
    _make_pairs(config, population, pixel_scale, rng)
    if rng.random() < config.cluster_probability:
        population = np.concatenate([population, _draw_cluster(config, shape, pixel_scale, rng)])
    if config.dust_reddening > 0:
        # Galaxies are behind all of the dust.
        share = np.where(population["is_star"], rng.uniform(1.0 / 3.0, 1.0, population.size), 1.0)
        population["reddening"] += config.dust_reddening * share
    low = -pad - 0.5
    inside = (population["x"] > low) & (population["x"] < width - pad - 0.5)
    inside &= (population["y"] > low) & (population["y"] < height - pad - 0.5)
    population = population[inside]
    return population[np.argsort(population["mag"], kind="stable")]


def _draw_stars(config: PopulationConfig, mag: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    stars = np.zeros(mag.size, POPULATION_DTYPE)
    stars["is_star"] = True
    stars["mag"] = mag
    # M dwarfs take over towards the faint end at high latitude; in the crowded fields of the Milky
    # Way's plane, more of the stars are luminous and far away.
    luminous = config.star_density / (config.star_density + 100.0)
    share = np.clip(0.1 + 0.075 * (mag - 16.0), 0.1, 0.75) * (1.0 - 0.7 * luminous)
    cool = rng.random(mag.size) < share
    turn_off = np.clip(rng.normal(0.28, 0.1, mag.size), 0.05, 0.65)
    warm = np.where(rng.random(mag.size) < 0.3, rng.uniform(0.3, 0.65, mag.size), turn_off)
    # Most M dwarfs are of type M2 to M4.
    stars["locus"] = np.where(cool, rng.triangular(0.62, 0.85, 1.0, mag.size), warm)
    stars["reddening"] = rng.normal(0.0, config.star_locus_scatter, mag.size)
    for name in ("disc_axis_ratio", "bulge_axis_ratio"):
        stars[name] = 1.0
    return stars


def _draw_galaxies(
    config: PopulationConfig,
    mag: np.ndarray,
    rng: np.random.Generator,
    red: np.ndarray | None = None,
    redshift: np.ndarray | None = None,
) -> np.ndarray:
    n = mag.size
    galaxies = np.zeros(n, POPULATION_DTYPE)
    galaxies["mag"] = mag
    chance = rng.random(n)
    galaxies["is_red"] = chance < np.clip(0.5 - 0.065 * (mag - 18.0), 0.06, 0.5) if red is None else red
    is_red = galaxies["is_red"]
    median_redshift = np.clip(0.08 + 0.1 * (mag - 17.0), 0.05, 1.2)
    galaxies["reddening"] = rng.normal(0.0, np.where(is_red, 0.05, 0.12))
    # No bright galaxy is far beyond the rest, where it would be brighter than any.
    spread = np.minimum(rng.lognormal(0.0, 0.35, n), 1.8)
    drawn = np.clip(median_redshift * spread, 0.01, 1.4)
    galaxies["redshift"] = drawn if redshift is None else redshift
    radius = config.size_at_22 * 10.0 ** (
        config.size_slope * (mag - 22.0) + config.size_scatter * rng.normal(size=n)
    )
    # Field galaxies of a magnitude are larger when they are discs.
    radius *= np.where(is_red, 0.85, 1.06)
    radius = np.clip(radius, 0.04, 0.8 * _largest_radius(mag))
    galaxies["is_irregular"] = ~is_red & (rng.random(n) < config.irregular_fraction)
    # Faint late types are young and have next to no bulge.
    late_bulge = rng.beta(1.0, 5.0, n) * np.clip(1.0 - 0.14 * (mag - 19.5), 0.25, 1.0)
    late_bulge *= np.where(galaxies["is_irregular"], 0.2, 1.0)
    early_bulge = rng.uniform(0.55, 1.0, n)
    galaxies["bulge_fraction"] = np.where(is_red, early_bulge, late_bulge)
    ratio = np.where(is_red, rng.uniform(0.6, 1.0, n), rng.uniform(0.15, 0.4, n))
    bulge = galaxies["bulge_fraction"]
    galaxies["disc_radius"] = radius / (1.0 - bulge + bulge * ratio)
    galaxies["bulge_radius"] = ratio * galaxies["disc_radius"]
    # Discs hold old stars too, the more the brighter (the more massive) they are.
    mean = np.clip(0.45 - 0.085 * (mag - 18.0), 0.03, 0.45) * np.where(galaxies["is_irregular"], 0.4, 1.0)
    galaxies["old_fraction"] = np.where(is_red, 0.85, rng.beta(2.5 * mean, 2.5 * (1.0 - mean)))
    # Luminous early types are concentrated; the bulges of late types are rarely.
    luminosity = -_absolute_magnitude(mag, galaxies["redshift"])
    early = np.clip((luminosity - 18.0) / 5.0 + rng.normal(0.0, 0.2, n), 0.0, 1.0)
    low, high = config.bulge_sersic
    index = low + (high - low) * np.where(is_red, early, rng.beta(1.0, 2.5, n))
    galaxies["bulge_sersic"] = np.round(index, 1)
    low, high = config.disc_sersic
    galaxies["disc_sersic"] = np.round(rng.uniform(low, high, n), 1)
    # An oblate disc of intrinsic thickness seen at a random inclination.
    thickness = rng.uniform(0.15, 0.35, n)
    cos_i = rng.random(n)
    late_disc = np.sqrt(thickness**2 + (1 - thickness**2) * cos_i**2)
    round_ratio = np.clip(rng.normal(0.78, 0.14, n), 0.35, 1.0)
    galaxies["disc_axis_ratio"] = np.where(is_red, round_ratio, late_disc)
    late_bulge_ratio = np.maximum(late_disc, rng.uniform(0.6, 1.0, n))
    galaxies["bulge_axis_ratio"] = np.where(is_red, round_ratio, late_bulge_ratio)
    galaxies["position_angle"] = rng.uniform(0.0, np.pi, n)
    return galaxies


def _absolute_magnitude(mag: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """Return roughly absolute magnitudes (H0 = 70 km/s/Mpc, no K correction)."""
    distance = 4283.0 * redshift * (1.0 + 0.75 * redshift)  # luminosity distance, Mpc
    return mag - 25.0 - 5.0 * np.log10(distance)


def _largest_radius(mag: np.ndarray) -> np.ndarray:
    """Return half-light radii (arcsec) at a faint limit of brightness.

    The mean surface brightness of common galaxies within them is above 24
    mag/arcsec^2 for bright ones, and fades to 27 for faint ones by redshift.
    """
    faintest = 24.0 + 0.4 * np.clip(mag - 18.0, 0.0, 8.0)
    return 10.0 ** (0.2 * (faintest - mag - 2.5 * math.log10(2.0 * math.pi)))


def _make_pairs(
    config: PopulationConfig, population: np.ndarray, pixel_scale: float, rng: np.random.Generator
) -> None:
    """Move a share of the sources next to one of the others, in place."""
    n = population.size
    moved = rng.random(n) < config.pair_fraction
    if n < 2 or not moved.any():
        return
    if moved.all():
        moved[rng.integers(n)] = False
    # Chains of moved sources would drift apart from what they were moved to.
    partner = rng.choice(np.flatnonzero(~moved), n)
    low, high = (math.log10(value) for value in config.pair_separation)
    separation = 10.0 ** rng.uniform(low, high, n) / pixel_scale
    angle = rng.uniform(0.0, 2 * np.pi, n)
    population["x"][moved] = (population["x"][partner] + separation * np.cos(angle))[moved]
    population["y"][moved] = (population["y"][partner] + separation * np.sin(angle))[moved]


def _draw_cluster(
    config: PopulationConfig, shape: tuple[int, int], pixel_scale: float, rng: np.random.Generator
) -> np.ndarray:
    low, high = config.cluster_richness
    count = int(rng.integers(low, high + 1))
    redshift = 0.08 + 0.6 * rng.beta(1.3, 2.2)
    brightest = 17.0 + 5.8 * np.log10(redshift / 0.2)
    faint = max(config.mag_limit, brightest + 2.0)
    mag = np.minimum(draw_magnitudes(rng, count, brightest + 0.8, faint, 0.22), faint)
    mag[0] = brightest
    red = rng.random(count) < 0.8
    red[0] = True
    members = _draw_galaxies(config, mag, rng, red, np.full(count, redshift))
    members["group"] = 1
    # The red sequence is narrow and runs down to bluer colours.
    sequence = rng.normal(0.0, 0.03, count) - 0.025 * (mag - brightest - 2.0)
    members["reddening"] = np.where(members["is_red"], sequence, members["reddening"])
    core = rng.uniform(*config.cluster_core) / pixel_scale
    # Projected King profile: Sigma ~ 1 / (1 + r^2 / core^2), cut at 6 cores.
    radius = core * np.sqrt((1.0 + 36.0) ** rng.random(count) - 1.0)
    angle = rng.uniform(0.0, 2 * np.pi, count)
    radius[0] = 0.0
    # The brightest has a wide envelope.
    envelope = float(_largest_radius(mag[:1])[0])
    members["disc_radius"][0] = min(2.6 * members["disc_radius"][0], envelope)
    members["bulge_radius"][0] = min(2.0 * members["bulge_radius"][0], 0.8 * envelope)
    members["x"] = rng.uniform(0.1, 0.9) * shape[1] + radius * np.cos(angle)
    members["y"] = rng.uniform(0.1, 0.9) * shape[0] + radius * np.sin(angle)
    return members
