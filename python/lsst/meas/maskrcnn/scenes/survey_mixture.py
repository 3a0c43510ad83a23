# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenes of surveys that do not exist: any bands, depths, seeing and pixel scale.

Networks that are to work on every survey learn from these. A kind of scene is
drawn by `random_survey_config`, and `draw_survey_scene` makes a scene of it with
close pairs and with the faint light that pipelines leave and do not leave.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from ..images.units import AB_ZERO_POINT
from .config import (
    ALL_BANDS,
    ArtefactConfig,
    BandConditions,
    MaskRule,
    PopulationConfig,
    PsfConfig,
    SceneConfig,
)
from .populations import draw_population
from .simulate import Scene, draw_scene

_DEPTH_OF_BAND = {"u": -1.0, "g": 0.1, "r": 0.0, "i": -0.4, "z": -1.1, "y": -1.9}
"""Typical depth of a survey's bands against its r band, mag."""

_SKY = {"u": 22.6, "g": 22.1, "r": 21.1, "i": 20.4, "z": 19.5, "y": 18.6}
"""Brightness of a dark sky, AB mag per arcsec^2."""

_LARGE_DISCS = 0.3
"""Of the scenes, those with a large disc."""

_ODD_COLOURS = 0.35
"""Of the scenes, those whose sources have colours beside the loci, as quasars, emission lines, variables and
bands of wrong zero points have."""

_WAVELENGTH = {"u": 370.0, "g": 480.0, "r": 620.0, "i": 760.0, "z": 880.0, "y": 980.0}


def random_survey_config(rng: np.random.Generator, shape: tuple[int, int] = (288, 288)) -> SceneConfig:
    """Draw a survey and a kind of field, for scenes of a shape (y, x).

    It has a FWHM of 2 to 8 px, pixels of 0.05 to 0.5 arcsec and 2 to 6 bands, and no
    pairs, which `draw_survey_scene` adds.
    """
    from_space = rng.random() < 0.12
    seeing = float(np.clip(rng.lognormal(math.log(0.15 if from_space else 0.8), 0.25), 0.1, 1.7))
    width = float(np.clip(rng.lognormal(math.log(4.0), 0.32), 2.0, 8.0))
    scale = float(np.clip(seeing / width, 0.05, 0.5))
    profile: Literal["moffat", "kolmogorov"] = "moffat" if rng.random() < 0.75 else "kolmogorov"
    psf = PsfConfig(profile, (2.4, 5.0), float(rng.uniform(0.0, 0.05)), 0.0, 0.0)
    count = int(rng.choice([2, 3, 4, 5, 6], p=[0.05, 0.35, 0.15, 0.15, 0.3]))
    chosen = set(rng.choice(ALL_BANDS, count, replace=False).tolist())
    bands = tuple(band for band in ALL_BANDS if band in chosen)
    depth = float(rng.uniform(23.0, 27.3)) + (0.5 if from_space else 0.0)
    saturated = float(rng.uniform(depth - 9.5, depth - 5.5))
    conditions = tuple(_draw_conditions(band, depth, seeing, scale, saturated, rng) for band in bands)
    # The faint limit goes by the bands that there are.
    red = max(0.0, *(_DEPTH_OF_BAND[band] for band in bands)) if count > 2 else 0.0
    return SceneConfig(
        shape=shape,
        bands=bands,
        pixel_scale=scale,
        noise=False,
        conditions=conditions,
        psf=psf,
        population=_draw_field(shape, scale, depth + red, rng),
        artefacts=_draw_artefacts(rng),
        mask_rule=MaskRule(band=min(bands, key=lambda band: abs(_WAVELENGTH[band] - 650.0))),
        misregistration=float(rng.uniform(0.0, 0.12)),
        keep_models=True,
        name="survey",
    )


def _draw_conditions(
    band: str, depth: float, seeing: float, scale: float, saturated: float, rng: np.random.Generator
) -> BandConditions:
    fwhm = seeing * (_WAVELENGTH[band] / 620.0) ** -0.2 * float(rng.lognormal(0.0, 0.08))
    fwhm = max(fwhm, 1.7 * scale)
    limit = depth + _DEPTH_OF_BAND[band] + float(rng.normal(0.0, 0.4))
    # Noise-equivalent area of a PSF with moderate wings.
    area = 2.8 * (fwhm / scale) ** 2
    sigma = 10.0 ** (0.4 * (AB_ZERO_POINT - limit)) / 5.0 / math.sqrt(area)
    sky = 10.0 ** (0.4 * (AB_ZERO_POINT - _SKY[band])) * scale**2
    peak = 10.0 ** (0.4 * (AB_ZERO_POINT - saturated)) / (1.3 * (fwhm / scale) ** 2)
    return BandConditions(band, fwhm, sigma, sky / sigma**2, peak * float(rng.lognormal(0.0, 0.3)))


def _draw_field(
    shape: tuple[int, int], scale: float, depth: float, rng: np.random.Generator
) -> PopulationConfig:
    area = shape[0] * shape[1] * (scale / 60.0) ** 2
    kind = str(rng.choice(["field", "crowded", "cluster"], p=[0.82, 0.09, 0.09]))
    count = float(10.0 ** rng.uniform(math.log10(18.0), math.log10(110.0)))
    stars = float(rng.choice([0.1, 0.25, 0.5], p=(0.45, 0.35, 0.2)) * rng.uniform(0.6, 1.4))
    if rng.random() < 0.75:
        stars = _star_fraction(depth + 0.9, float(rng.lognormal(math.log(1.8), 0.7)))
    slope = float(rng.uniform(0.12, 0.33))
    if kind == "crowded":
        count, stars = float(rng.uniform(60.0, 170.0)), float(rng.uniform(0.7, 0.95))
    return PopulationConfig(
        galaxy_density=count * (1.0 - stars) / area,
        star_density=count * stars / area,
        mag_limit=depth + 0.9,
        mag_bright=depth - 8.0,
        counts_slope_bright=slope,
        counts_slope_faint=slope,
        star_mag_range=(depth - 8.5, depth + 0.6),
        star_counts_slope=float(rng.uniform(0.03, 0.22)),
        dust_reddening=float(rng.choice([0.0, rng.uniform(0.0, 1.0)])),
        size_at_22=0.55 * float(rng.lognormal(0.08, 0.28)),
        size_scatter=float(rng.uniform(0.15, 0.3)),
        pair_fraction=0.0,
        cluster_probability=1.0 if kind == "cluster" else 0.06,
        cluster_richness=(15, 50) if kind == "cluster" else (6, 20),
        cluster_core=(15.0 * scale, 60.0 * scale),
        bright_star_density=float(rng.choice([0.0, 0.3, 1.5], p=(0.4, 0.4, 0.2))) / area,
        bright_star_mags=(depth - 11.0, depth - 7.0),
        large_galaxy_density=float(rng.choice([0.2, 0.8, 2.0], p=(0.4, 0.4, 0.2))) / area,
        large_galaxy_mags=(max(depth - 9.5, 14.5), max(depth - 5.5, 18.0)),
        disc_sersic=(0.7, 1.4) if rng.random() < 0.6 else (1.0, 1.0),
        bulge_sersic=(2.0, 5.0) if rng.random() < 0.6 else (4.0, 4.0),
        structure_size=float(rng.choice([0.6, 1.0, 2.0])),
        irregular_fraction=float(rng.uniform(0.2, 0.6)),
    )


def _star_fraction(limit: float, density: float) -> float:
    """Return the part of stars among the sources of the sky down to a magnitude.

    Of red bands at middle galactic latitudes, where ``density`` is 1: 2.5 stars per
    arcmin^2 to magnitude 22 and 8 to 26, 2 galaxies to 22 and 55 to 26.
    """
    stars = density * 10.0 ** (0.4 + 0.13 * (limit - 22.0))
    galaxies = 10.0 ** (1.1 + 0.36 * (limit - 24.0) - 0.02 * (limit - 24.0) ** 2)
    return stars / (stars + galaxies)


def _draw_artefacts(rng: np.random.Generator) -> ArtefactConfig:
    return ArtefactConfig(
        saturation=True,
        bleed=bool(rng.random() < 0.5),
        bleed_axis="x" if rng.random() < 0.5 else "y",
        bleed_level=float(10.0 ** rng.uniform(-2.5, 0.0)),
        saturation_fill=float(rng.choice([1.0, rng.uniform(0.0, 1.0)])),
        spikes=float(rng.uniform(0.0, 0.03)),
        halo=float(rng.uniform(0.0, 0.03)),
        gradient=float(rng.exponential(0.1)),
        cosmic_rays=float(rng.choice([0.0, 1.5], p=(0.85, 0.15))),
        dead_columns=float(rng.choice([0.0, 0.7], p=(0.8, 0.2))),
        masked_regions=float(rng.choice([0.0, 0.2], p=(0.85, 0.15))),
    )


def draw_survey_scene(config: SceneConfig, rng: np.random.Generator) -> Scene:
    """Make a scene of `random_survey_config` with pairs, sky residuals and diffuse light, without noise."""
    population = draw_population(config.population, config.shape, config.pixel_scale, rng)
    fwhm = float(np.median([c.fwhm for c in config.conditions])) / config.pixel_scale
    _move_to_pairs(population, fwhm, float(rng.uniform(0.05, 0.4)), rng)
    if rng.random() < _LARGE_DISCS:
        _make_large_disc(population, config, rng)
    if rng.random() < _ODD_COLOURS:
        offsets = population["colour_offset"]
        offsets += rng.normal(0.0, rng.uniform(0.1, 0.7), offsets.shape)
    scene = draw_scene(config, population[np.argsort(population["mag"], kind="stable")], rng)
    sigma = scene.sky_sigma[:, None, None].astype(np.float32)
    if rng.random() < 0.5:
        _add_diffuse_light(scene, sigma, rng)
    if rng.random() < 0.45:
        # Large-scale light that was taken for sky.
        size, share = float(rng.uniform(8.0, 40.0)), float(rng.uniform(0.3, 1.2))
        for plane, level in zip(scene.noiseless, sigma):
            plane -= share * gaussian_filter(np.clip(plane, 0.0, 20.0 * level), size)
    return scene


def _move_to_pairs(population: np.ndarray, fwhm: float, share: float, rng: np.random.Generator) -> None:
    """Move sources next to others, from half a FWHM to four, in place."""
    n = population.size
    moved = (rng.random(n) < share) & (population["group"] == 0)
    if moved.all() or not moved.any():
        return
    partner = rng.choice(np.flatnonzero(~moved), n)
    distance = np.exp(rng.uniform(math.log(0.5), math.log(4.0), n)) * fwhm
    angle = rng.uniform(0.0, 2.0 * math.pi, n)
    population["x"][moved] = (population["x"][partner] + distance * np.cos(angle))[moved]
    population["y"][moved] = (population["y"][partner] + distance * np.sin(angle))[moved]
    alike = moved & (rng.random(n) < 0.6)
    population["mag"][alike] = (population["mag"][partner] + rng.uniform(-1.0, 2.5, n))[alike]


def _make_large_disc(population: np.ndarray, config: SceneConfig, rng: np.random.Generator) -> None:
    """Turn one of the galaxies into a large disc with little or no bulge, most often a smooth one, in place.

    Its central surface brightness is 3 to 100 times the noise of a pixel, as of dwarfs
    and of discs of low surface brightness nearby.
    """
    height, width = config.shape
    x, y = population["x"], population["y"]
    inside = (x > 0) & (x < width) & (y > 0) & (y < height)
    galaxies = np.flatnonzero(~population["is_star"] & inside)
    if not len(galaxies):
        return
    one = rng.choice(galaxies)
    radius = math.exp(rng.uniform(math.log(8.0), math.log(45.0)))  # half-light, px
    ratio = float(rng.uniform(0.25, 1.0))
    noise = next(c.sky_sigma for c in config.conditions if c.band == config.mask_rule.band)
    centre = math.exp(rng.uniform(math.log(3.0), math.log(100.0))) * noise
    # Of an exponential disc, whose half-light radius is 1.678 scale lengths.
    flux = 2.0 * math.pi * ratio * (radius / 1.678) ** 2 * centre
    population["mag"][one] = AB_ZERO_POINT - 2.5 * math.log10(flux)
    population["is_red"][one] = rng.random() < 0.7  # those have no arms or clumps
    population["is_irregular"][one] = rng.random() < 0.5
    population["bulge_fraction"][one] = 0.0 if rng.random() < 0.6 else rng.uniform(0.0, 0.15)
    population["disc_sersic"][one] = round(float(rng.uniform(0.6, 1.3)), 1)
    population["disc_radius"][one] = radius * config.pixel_scale
    population["bulge_radius"][one] = rng.uniform(0.1, 0.3) * radius * config.pixel_scale
    population["disc_axis_ratio"][one] = ratio
    population["bulge_axis_ratio"][one] = max(ratio, 0.6)


def _add_diffuse_light(scene: Scene, sigma: np.ndarray, rng: np.random.Generator) -> None:
    """Add tidal arcs, shells and intracluster light around bright galaxies, in place."""
    sources = scene.sources
    snr = np.max([sources[f"snr_{band}"] for band in scene.bands], axis=0)
    hosts = np.flatnonzero(~sources["is_star"] & (snr > 60.0))[:6]
    height, width = scene.noiseless.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    colour = np.exp(rng.normal(0.0, 0.2, len(scene.bands))).astype(np.float32)
    for host in hosts.tolist():
        dx, dy = x - np.float32(sources["x"][host]), y - np.float32(sources["y"][host])
        radius = max(float(sources["half_light_radius"][host]) / scene.pixel_scale, 3.0)
        r = np.hypot(dx, dy)
        light = np.zeros_like(r)
        if rng.random() < 0.4:
            around, at = rng.uniform(-math.pi, math.pi), radius * rng.uniform(1.8, 4.5)
            off = np.angle(np.exp(1j * (np.arctan2(dy, dx) - around)))
            ridge = r - at * (1.0 + rng.uniform(-0.5, 0.5) * off)
            light += rng.uniform(0.3, 2.5) * np.exp(
                -0.5 * (ridge / (radius * rng.uniform(0.15, 0.5) + 1.0)) ** 2
                - 0.5 * (off / rng.uniform(0.3, 1.2)) ** 2
            )
        if rng.random() < 0.3:
            light += rng.uniform(0.2, 2.0) * np.exp(-r / (radius * rng.uniform(2.0, 5.0)))
        if light.any():
            scene.noiseless += sigma * colour[:, None, None] * light.astype(np.float32)
