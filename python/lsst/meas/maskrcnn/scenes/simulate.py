# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated multi-band scenes of stars and galaxies, with exact truth.

Needs numpy and GalSim only.

Examples
--------
>>> import numpy as np
>>> from lsst.meas.maskrcnn.scenes.simulate import preset_config, simulate_scene
>>> scene = simulate_scene(preset_config("hsc_wide", shape=(64, 64)), np.random.default_rng(1))
>>> scene.images.shape
(3, 64, 64)
"""

from __future__ import annotations

__all__ = [
    "MASK_BITS",
    "PRESETS",
    "ArtefactConfig",
    "BandConditions",
    "MaskRule",
    "PopulationConfig",
    "PsfConfig",
    "Scene",
    "SceneConfig",
    "draw_scene",
    "preset_config",
    "random_scene_config",
    "simulate_scene",
    "truth_selection",
]

import math
from dataclasses import dataclass

import numpy as np

from . import artefacts as art
from .artefacts import MASK_BITS
from .config import (
    ALL_BANDS,
    ArtefactConfig,
    BandConditions,
    MaskRule,
    PopulationConfig,
    PsfConfig,
    SceneConfig,
)
from .light import BandPsf, Painter, Stamp
from .populations import draw_population, galaxy_colours, star_colours
from .presets import PRESETS, preset_config, random_scene_config
from .truth import peak_fraction_mask, tight, truth_selection

_REDDENING = np.array([2.0, 1.0, 0.0, -0.6, -1.0, -1.2])
"""Change of m_band - m_r per magnitude of g - r, in `ALL_BANDS`."""

_AB_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy, to 4e-5 mag (3631 Jy is magnitude 0)."""


@dataclass
class Scene:
    """A simulated scene and its truth.

    Parameters
    ----------
    config : `SceneConfig`
        What it was made from.
    bands : `tuple` [`str`, ...]
        Bands in the order of the arrays.
    images : `numpy.ndarray`, (band, y, x), `numpy.float32`
        Sky-subtracted images, nJy; with noise if the configuration says so.
    noiseless : `numpy.ndarray`, (band, y, x), `numpy.float32`
        The same without noise, but with saturation, spikes, background and
        whatever else the configuration adds.
    variance : `numpy.ndarray`, (band, y, x), `numpy.float32`
        Variance of sky and source photons, nJy^2, whether the noise is in the
        images or not.
    mask : `numpy.ndarray`, (band, y, x), `numpy.uint8`
        Bits of `MASK_BITS`.
    psfs : `list` [`BandPsf`]
        The PSFs.
    pixel_scale : `float`
        Pixel size, arcsec.
    sky_sigma : `numpy.ndarray`, (band,)
        Standard deviation of the sky noise of a pixel, nJy.
    sources : `numpy.ndarray`, (N,)
        Structured array, brightest in r first: ``id`` (from 1), ``x``, ``y``
        (px; 0 is the centre of the first pixel), ``is_star``, ``group`` (1
        for members of a cluster), ``mag`` (AB, r), ``redshift``,
        ``half_light_radius`` (arcsec, major axis), ``bulge_fraction`` (r),
        ``axis_ratio``, ``position_angle`` (rad), ``area`` (pixels of the mask
        on the image), ``visible`` (share of the mask that is on the image),
        ``peak_share`` (of the light at the brightest pixel that is its own,
        first band), ``blendedness`` (1 - sum m^2 / sum B m with the model m
        and the blend B, first band), and per band ``flux_<band>`` (nJy),
        ``snr_<band>`` (of a matched filter against the sky noise) and
        ``peak_snr_<band>`` (of the brightest pixel).
    masks : `list` [`numpy.ndarray`]
        Truth mask of each source in its own bounding box, `bool`; shape
        (0, 0) where it has no pixel on the image.
    origins : `numpy.ndarray`, (N, 2), `numpy.int32`
        (y0, x0) of the masks.
    models : `list` [`Stamp`] or `None`
        Each source's own light on the image, with ``keep_models``.
    """

    config: SceneConfig
    bands: tuple[str, ...]
    images: np.ndarray
    noiseless: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    psfs: list[BandPsf]
    pixel_scale: float
    sky_sigma: np.ndarray
    sources: np.ndarray
    masks: list[np.ndarray]
    origins: np.ndarray
    models: list[Stamp] | None = None

    @property
    def psf_fwhm(self) -> np.ndarray:
        """FWHM of the PSF in each band, (band,), arcsec."""
        return np.array([p.fwhm for p in self.psfs])

    @property
    def electrons_per_njy(self) -> np.ndarray:
        """Electrons per nJy in each band, (band,)."""
        conditions = self.config.band_conditions()
        return np.array([c.electrons_per_njy for c in conditions]) * self.config.exposure_factor


def simulate_scene(config: SceneConfig, rng: np.random.Generator) -> Scene:
    """Draw sources at random and make a scene of them.

    Parameters
    ----------
    config : `SceneConfig`
        The kind of scene.
    rng : `numpy.random.Generator`
        The only source of chance: the same state gives the same scene.

    Returns
    -------
    scene : `Scene`
        Images, noise and truth.
    """
    population = draw_population(config.population, config.shape, config.pixel_scale, rng)
    return draw_scene(config, population, rng)


def draw_scene(config: SceneConfig, population: np.ndarray, rng: np.random.Generator) -> Scene:
    """Make a scene of given sources.

    Parameters
    ----------
    config : `SceneConfig`
        The kind of scene; its ``population`` is not used.
    population : `numpy.ndarray`, (N,), `POPULATION_DTYPE`
        The sources.
    rng : `numpy.random.Generator`
        Chance for PSF, structure, artefacts and noise.

    Returns
    -------
    scene : `Scene`
        Images, noise and truth.
    """
    conditions = config.band_conditions()
    sky_sigma = np.array([c.sky_sigma for c in conditions]) / math.sqrt(config.exposure_factor)
    electrons = np.array([c.electrons_per_njy for c in conditions]) * config.exposure_factor
    psfs = _draw_psfs(config, rng)
    # 0.9 in z to 1.5 in u
    boost = np.array([1.5 - 0.12 * ALL_BANDS.index(b) for b in config.bands])
    # Where there is no noise to hide them, a stamp's edges must be fainter.
    tolerance = 0.02 if config.noise else 0.005
    painter = Painter(psfs, config.pixel_scale, sky_sigma, tolerance, boost)
    disc_flux, bulge_flux = _fluxes(population, config.bands)
    sources = _source_table(population, disc_flux + bulge_flux, config.bands)

    height, width = config.shape
    noiseless = np.zeros((len(config.bands), height, width))
    masks: list[np.ndarray] = []
    origins = np.zeros((population.size, 2), np.int32)
    stamps: list[Stamp] = []
    sizes = np.where(
        population["is_star"],
        painter.star_stamp_sizes(disc_flux + bulge_flux),
        painter.galaxy_stamp_sizes(
            disc_flux,
            bulge_flux,
            np.maximum(population["disc_radius"], 1e-3),
            np.maximum(population["bulge_radius"], 1e-3),
            population["disc_axis_ratio"],
            population["bulge_axis_ratio"],
        ),
    )
    structure_radius = config.population.structure_size * painter.psfs[0].fwhm
    for i, source in enumerate(population):
        if source["is_star"]:
            stamp = painter.draw_star(source["x"], source["y"], disc_flux[i], sizes[i])
            fraction = config.mask_rule.star_fraction
        else:
            # A galaxy's structure takes one number from the scene's stream,
            # however much chance it needs itself.
            structured = source["disc_radius"] > structure_radius and not source["is_red"]
            stamp = painter.draw_galaxy(
                source["x"],
                source["y"],
                disc_flux[i],
                bulge_flux[i],
                (source["disc_radius"], source["disc_axis_ratio"]),
                (source["bulge_radius"], source["bulge_axis_ratio"]),
                source["position_angle"],
                sizes[i],
                np.random.default_rng(rng.integers(2**63)) if structured else None,
            )
            fraction = config.mask_rule.galaxy_fraction
        mask, y0, x0 = peak_fraction_mask(stamp.pixels[0], fraction)
        full_area = int(mask.sum())
        mask, y0, x0 = _crop_mask(mask, y0 + stamp.y0, x0 + stamp.x0, height, width)
        masks.append(mask)
        origins[i] = y0, x0
        sources["area"][i] = mask.sum()
        sources["visible"][i] = sources["area"][i] / max(full_area, 1)
        stamp = _crop_stamp(stamp, height, width)
        h, w = stamp.pixels.shape[1:]
        noiseless[:, stamp.y0 : stamp.y0 + h, stamp.x0 : stamp.x0 + w] += stamp.pixels
        if stamp.pixels.size:
            for band, name in enumerate(config.bands):
                plane = stamp.pixels[band]
                sources[f"snr_{name}"][i] = math.sqrt(float(np.vdot(plane, plane))) / sky_sigma[band]
                sources[f"peak_snr_{name}"][i] = plane.max() / sky_sigma[band]
        # Only the first band is needed further on.
        stamps.append(stamp if config.keep_models else Stamp(stamp.pixels[:1].copy(), stamp.y0, stamp.x0))
    _measure_blending(sources, stamps, noiseless[0])

    mask_plane = np.zeros(noiseless.shape, np.uint8)
    _add_artefacts(config, population, disc_flux, psfs, sky_sigma, noiseless, mask_plane, rng)
    variance = (sky_sigma[:, None, None] ** 2 + np.maximum(noiseless, 0.0) / electrons[:, None, None]).astype(
        np.float32
    )
    light = noiseless.astype(np.float32)
    images = light.copy()
    if config.noise:
        noise = art.correlated_noise(images.shape, config.artefacts.correlation, rng)
        noise *= np.sqrt(variance)
        images += noise
        images[mask_plane & art.DEAD > 0] = 0.0
    return Scene(
        config=config,
        bands=config.bands,
        images=images,
        noiseless=light,
        variance=variance,
        mask=mask_plane,
        psfs=psfs,
        pixel_scale=config.pixel_scale,
        sky_sigma=sky_sigma,
        sources=sources,
        masks=masks,
        origins=origins,
        models=stamps if config.keep_models else None,
    )


def _draw_psfs(config: SceneConfig, rng: np.random.Generator) -> list[BandPsf]:
    common = rng.normal(0.0, config.psf.seeing_scatter)
    psfs = []
    for condition in config.band_conditions():
        fwhm = condition.fwhm * math.exp(common + rng.normal(0.0, config.psf.band_scatter))
        beta = float(rng.uniform(*config.psf.beta))
        g1, g2 = np.clip(rng.normal(0.0, config.psf.ellipticity, 2), -0.25, 0.25)
        psfs.append(BandPsf(fwhm, config.psf.profile, beta, float(g1), float(g2)))
    return psfs


def _fluxes(population: np.ndarray, bands: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the fluxes of discs (and stars) and of bulges, (N, band), nJy."""
    index = [ALL_BANDS.index(b) for b in bands]
    total = 10.0 ** (0.4 * (_AB_ZERO_POINT - population["mag"]))
    stellar = 10.0 ** (-0.4 * star_colours(population["locus"])[index].T)
    young = 10.0 ** (-0.4 * galaxy_colours(population["redshift"], red=False)[index].T)
    old = 10.0 ** (-0.4 * galaxy_colours(population["redshift"], red=True)[index].T)
    bulge = population["bulge_fraction"]
    star = population["is_star"][:, None]
    red = population["is_red"][:, None]
    disc_colour = np.where(star, stellar, np.where(red, 0.85 * old + 0.15 * young, young))
    # Dust, age and metals shift all colours together.
    disc_colour = disc_colour * 10.0 ** (-0.4 * population["reddening"][:, None] * _REDDENING[index])
    return disc_colour * (total * (1.0 - bulge))[:, None], old * (total * bulge)[:, None]


def _source_table(population: np.ndarray, flux: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    columns: list[tuple[str, str]] = [
        ("id", "i8"),
        ("x", "f8"),
        ("y", "f8"),
        ("is_star", "?"),
        ("group", "i4"),
        ("mag", "f8"),
        ("redshift", "f8"),
        ("half_light_radius", "f8"),
        ("bulge_fraction", "f8"),
        ("axis_ratio", "f8"),
        ("position_angle", "f8"),
        ("area", "i4"),
        ("visible", "f4"),
        ("peak_share", "f4"),
        ("blendedness", "f4"),
    ]
    columns += [(f"{kind}_{band}", "f8") for band in bands for kind in ("flux", "snr", "peak_snr")]
    sources = np.zeros(population.size, np.dtype(columns))
    sources["id"] = np.arange(1, population.size + 1)
    for name in ("x", "y", "is_star", "group", "mag", "redshift", "bulge_fraction", "position_angle"):
        sources[name] = population[name]
    bulge = population["bulge_fraction"]
    radius = bulge * population["bulge_radius"] + (1 - bulge) * population["disc_radius"]
    sources["half_light_radius"] = radius
    sources["axis_ratio"] = np.where(
        bulge > 0.5, population["bulge_axis_ratio"], population["disc_axis_ratio"]
    )
    for i, band in enumerate(bands):
        sources[f"flux_{band}"] = flux[:, i]
    return sources


def _crop_stamp(stamp: Stamp, height: int, width: int) -> Stamp:
    """Return the part of a stamp that is on the image."""
    h, w = stamp.pixels.shape[1:]
    y_low, x_low = min(max(stamp.y0, 0), height), min(max(stamp.x0, 0), width)
    y_high, x_high = min(max(stamp.y0 + h, y_low), height), min(max(stamp.x0 + w, x_low), width)
    pixels = stamp.pixels[:, y_low - stamp.y0 : y_high - stamp.y0, x_low - stamp.x0 : x_high - stamp.x0]
    return Stamp(pixels, y_low, x_low)


def _crop_mask(mask: np.ndarray, y0: int, x0: int, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Return the part of a mask that is on the image, tight, and its origin."""
    stamp = _crop_stamp(Stamp(mask[None], y0, x0), height, width)
    part, dy, dx = tight(stamp.pixels[0])
    return part, stamp.y0 + dy, stamp.x0 + dx


def _measure_blending(sources: np.ndarray, stamps: list[Stamp], total: np.ndarray) -> None:
    for i, stamp in enumerate(stamps):
        model = stamp.pixels[0]
        if model.size == 0:
            continue
        blend = total[stamp.y0 : stamp.y0 + model.shape[0], stamp.x0 : stamp.x0 + model.shape[1]]
        peak = np.unravel_index(np.argmax(model), model.shape)
        sources["peak_share"][i] = model[peak] / blend[peak] if blend[peak] > 0 else 0.0
        cross = float(np.sum(model * blend))
        if cross > 0:
            sources["blendedness"][i] = max(0.0, 1.0 - float(np.vdot(model, model)) / cross)


def _add_artefacts(
    config: SceneConfig,
    population: np.ndarray,
    flux: np.ndarray,
    psfs: list[BandPsf],
    sky_sigma: np.ndarray,
    noiseless: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
) -> None:
    settings = config.artefacts
    scale = config.pixel_scale
    area = config.shape[0] * config.shape[1] * (scale / 60.0) ** 2
    angle = rng.uniform(0.0, 0.5 * math.pi)
    for band, condition in enumerate(config.band_conditions()):
        image = noiseless[band]
        level = condition.saturation
        if settings.spikes > 0 or settings.halo > 0:
            peak = flux[:, band] * float(psfs[band].surface_brightness(np.zeros(1))[0]) * scale**2
            for i in np.flatnonzero(population["is_star"] & (peak > 0.5 * level)):
                art.add_bright_star_wings(
                    image,
                    population["x"][i],
                    population["y"][i],
                    flux[i, band],
                    settings.spikes,
                    settings.halo,
                    angle,
                    psfs[band].fwhm / scale,
                    0.05 * sky_sigma[band],
                )
        if settings.gradient > 0:
            image += art.background(config.shape, settings.gradient * sky_sigma[band], rng)
        if settings.saturation and math.isfinite(level):
            art.saturate(
                image,
                level,
                mask[band],
                rng,
                bleed=settings.bleed,
                axis=settings.bleed_axis,
                trail_level=settings.bleed_level,
                fill=settings.saturation_fill,
            )
        if settings.cosmic_rays > 0:
            art.add_cosmic_rays(
                image, mask[band], int(rng.poisson(settings.cosmic_rays * area)), sky_sigma[band], rng
            )
        if settings.dead_columns > 0:
            art.add_dead_columns(image, mask[band], int(rng.poisson(settings.dead_columns)), rng)
