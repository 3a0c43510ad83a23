# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated multi-band scenes of stars and galaxies, with exact truth.

Needs numpy, scipy and GalSim, and surveycodex for presets, but no LSST package.

Examples
--------
>>> import numpy as np
>>> from lsst.meas.maskrcnn.scenes.presets import preset_config
>>> from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
>>> scene = simulate_scene(preset_config("hsc-wide", shape=(64, 64)), np.random.default_rng(1))
>>> scene.images.shape
(3, 64, 64)
"""

from __future__ import annotations

__all__ = ["Scene", "simulate_scene"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..images.pixels import tight
from . import artefacts as art
from .config import ALL_BANDS, BandConditions, SceneConfig
from .light import BandPsf, Painter, Stamp
from .populations import draw_population, sersic_indices, source_fluxes
from .truth import flag_sources, measure_neighbors, source_dtype, source_mask

_STRAY_LIGHT_RADIUS = (3.0, 15.0)
"""Radii of masked regions with stray light, arcsec."""


@dataclass
class Scene:
    """A simulated scene and its truth."""

    config: SceneConfig
    """What it was made from."""
    bands: tuple[str, ...]
    """Bands in the order of the arrays."""
    images: np.ndarray
    """Images, float32, (band, y, x), nJy, with noise if the configuration says so; sky-subtracted unless it
    says otherwise. NaN where the mask says NO_DATA.
    """
    noiseless: np.ndarray
    """The same without noise and finite throughout, but with saturation, background and whatever else the
    configuration adds.
    """
    light: np.ndarray
    """The light of the sources alone, float32, (band, y, x), with the spikes and aureoles of stars: the sum
    of ``models``.
    """
    variance: np.ndarray
    """Variance of photons and read noise, float32, (band, y, x), nJy^2, whether the noise is in the images
    or not. NaN where the mask says NO_DATA.
    """
    mask: np.ndarray
    """Bits of `MASK_BITS`, uint8, (band, y, x)."""
    psfs: list[BandPsf]
    pixel_scale: float
    """Pixel size, arcsec."""
    sky_sigma: np.ndarray
    """Standard deviation of the noise of an empty pixel (sky and read noise), (band,), nJy."""
    sources: np.ndarray
    """Structured array, (N,), brightest in r first: ``id`` (from 1), ``x``, ``y`` (px; 0 is the centre of the
    first pixel; in the first band, from which the others are off by ``shifts``), ``is_star``, ``group`` (1
    for members of a cluster), ``mag`` (AB, r), ``redshift``, ``half_light_radius`` (arcsec, major axis),
    ``bulge_fraction`` (r), ``axis_ratio``, ``position_angle`` (rad), ``sersic_index`` (of disc or bulge,
    whichever is brighter in r; 0 for stars), ``area`` (pixels of the mask on the image), ``visible`` (share
    of the mask that is on the image), ``peak_share`` (of the light at the brightest pixel that is its own),
    ``blendedness`` (1 - sum m^2 / sum B m with the model m and the blend B), ``neighbor_distance`` (of the
    nearest other source, arcsec; NaN if there is none), ``neighbor_flux_ratio`` (its flux over the source's
    own), ``flag_empty``, ``flag_small``, ``flag_faint``, ``flag_masked``, ``flag_edge`` (see
    `~.truth.flag_sources`), and per band ``flux_<band>`` (nJy), ``snr_<band>`` (of a matched filter against
    the sky noise) and ``peak_snr_<band>`` (of the brightest pixel). Shares and ratios are those of the mask
    rule's band.
    """
    masks: list[np.ndarray]
    """Truth mask of each source in its own bounding box, bool; (0, 0) where it has no pixel on the image."""
    origins: np.ndarray
    """(y0, x0) of the masks, int32, (N, 2)."""
    shifts: np.ndarray
    """Shift (y, x) of each band's pixels against the common WCS, (band, 2), px; the first band's is 0."""
    models: Sequence[Stamp] | None = None
    """Each source's own light on the image, with ``keep_models``."""

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
        The same state gives the same scene.
    """
    population = draw_population(config.population, config.shape, config.pixel_scale, rng)
    return draw_scene(config, population, rng)


def draw_scene(config: SceneConfig, population: np.ndarray, rng: np.random.Generator) -> Scene:
    """Make a scene of a given population, whose places are px; that of the configuration is not used."""
    psfs = _draw_psfs(config, rng)
    shifts = rng.normal(0.0, 1.0, (len(config.bands), 2)) * config.misregistration
    shifts[0] = 0.0
    noise = np.array([c.noise_sigma for c in config.band_conditions()])
    sky_sigma = noise / math.sqrt(config.exposure_factor)
    fluxes = source_fluxes(population, config.bands)
    sources = _source_table(population, fluxes[0] + fluxes[1], config.bands)
    painter = _ScenePainter(config, population, fluxes, psfs, shifts, sky_sigma, rng)
    total, stamps, masks, origins = draw_sources(config, painter, sources)
    rule_band = _rule_band(config)
    measure_blending(sources, stamps, total[rule_band], rule_band if config.keep_models else 0)
    sources["neighbor_distance"], sources["neighbor_flux_ratio"] = measure_neighbors(
        sources["x"], sources["y"], sources[f"flux_{config.bands[rule_band]}"], config.pixel_scale
    )
    light = total.astype(np.float32)
    # From here on the sum of the sources becomes what the camera sees.
    images, noiseless, variance, mask = _expose(config, total, sky_sigma, rng)
    unusable = ((mask & (art.NO_DATA | art.BAD)) != 0).any(axis=0)
    flag_sources(sources, masks, origins, unusable, config.mask_rule, config.noise)
    return Scene(
        config=config,
        bands=config.bands,
        images=images,
        noiseless=noiseless,
        light=light,
        variance=variance,
        mask=mask,
        psfs=psfs,
        pixel_scale=config.pixel_scale,
        sky_sigma=sky_sigma,
        sources=sources,
        masks=masks,
        origins=origins,
        shifts=shifts,
        models=stamps if config.keep_models else None,
    )


def _rule_band(config: SceneConfig) -> int:
    return config.bands.index(config.mask_rule.band) if config.mask_rule.band else 0


def draw_sources(
    config: Any, painter: SourcePainter, sources: np.ndarray
) -> tuple[np.ndarray, list[Stamp], list[np.ndarray], np.ndarray]:
    """Draw all the sources and fill the columns that come from single ones.

    Of the configuration, shape, bands, mask rule and ``keep_models`` are used. Returns the
    sum of their light (float64), stamps, masks and their origins. Stamps hold all bands
    with ``keep_models``, else that of the mask rule.
    """
    height, width = config.shape
    rule_band = _rule_band(config)
    kept = slice(None) if config.keep_models else slice(rule_band, rule_band + 1)
    total = np.zeros((len(config.bands), height, width))
    stamps, masks = [], []
    origins = np.zeros((len(sources), 2), np.int32)
    power = np.zeros((len(sources), len(config.bands)))
    peaks = np.zeros_like(power)
    for i, source in enumerate(sources):
        stamp = painter.draw(i)
        mask, y0, x0 = source_mask(
            stamp.pixels[rule_band],
            config.mask_rule,
            bool(source["is_star"]),
            float(painter.sky_sigma[rule_band]),
            float(painter.flux[i, rule_band]),
        )
        full_area = int(np.count_nonzero(mask))
        mask, y0, x0 = _crop_mask(mask, y0 + stamp.y0, x0 + stamp.x0, height, width)
        masks.append(mask)
        origins[i] = y0, x0
        source["area"] = np.count_nonzero(mask)
        source["visible"] = source["area"] / max(full_area, 1)
        stamp = _crop_stamp(stamp, height, width)
        pixels = stamp.pixels
        if pixels.size:
            h, w = pixels.shape[1:]
            total[:, stamp.y0 : stamp.y0 + h, stamp.x0 : stamp.x0 + w] += pixels
            power[i] = np.einsum("bij,bij->b", pixels, pixels)
            peaks[i] = pixels.max(axis=(1, 2))
        # A copy: a part would keep the whole in memory.
        stamps.append(Stamp(np.array(pixels[kept], np.float32), stamp.y0, stamp.x0))
    for band, name in enumerate(config.bands):
        sources[f"snr_{name}"] = np.sqrt(power[:, band]) / painter.sky_sigma[band]
        sources[f"peak_snr_{name}"] = peaks[:, band] / painter.sky_sigma[band]
    return total, stamps, masks, origins


class SourcePainter(Protocol):
    """What draws the sources: the noise by band, their fluxes (source, band), and a stamp of each."""

    @property
    def sky_sigma(self) -> np.ndarray: ...

    @property
    def flux(self) -> np.ndarray: ...

    def draw(self, i: int) -> Stamp: ...


class _ScenePainter:
    """Draws the sources of a scene, one after the other."""

    def __init__(
        self,
        config: SceneConfig,
        population: np.ndarray,
        fluxes: tuple[np.ndarray, np.ndarray],
        psfs: list[BandPsf],
        shifts: np.ndarray,
        sky_sigma: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self.sky_sigma = sky_sigma
        self.flux = fluxes[0] + fluxes[1]
        self._config, self._population, self._shifts, self._rng = config, population, shifts, rng
        self._disc_flux, self._bulge_flux = fluxes
        # 0.9 in z to 1.5 in u
        boost = np.array([1.5 - 0.12 * ALL_BANDS.index(b) for b in config.bands])
        # Where there is no noise to hide them, a stamp's edges must be fainter.
        tolerance = 0.02 if config.noise else 0.005
        drawn_psfs: list[BandPsf] = list(psfs)
        if shifts.any():
            # Each band is drawn with a PSF that is off its centre.
            offsets = shifts * config.pixel_scale
            drawn_psfs = [_ShiftedPsf(**vars(p), offset_x=o[1], offset_y=o[0]) for p, o in zip(psfs, offsets)]
        self._painter = Painter(drawn_psfs, config.pixel_scale, sky_sigma, tolerance, boost)
        self._disc_sersic, self._bulge_sersic = sersic_indices(population)
        self._sizes = np.where(
            population["is_star"],
            self._painter.star_stamp_sizes(self.flux),
            self._painter.galaxy_stamp_sizes(
                *fluxes,
                np.maximum(population["disc_radius"], 1e-3),
                np.maximum(population["bulge_radius"], 1e-3),
                population["disc_axis_ratio"],
                population["bulge_axis_ratio"],
                self._disc_sersic,
                self._bulge_sersic,
            ),
        )
        self._structure_radius = config.population.structure_size * psfs[0].fwhm
        self._has_wings = np.zeros(population.size, bool)
        if config.artefacts.spikes > 0 or config.artefacts.halo > 0:
            # Stars near saturation.
            peak = np.array([p.surface_brightness(np.zeros(1))[0] for p in psfs]) * config.pixel_scale**2
            level = np.array([c.saturation for c in config.band_conditions()])
            self._has_wings = population["is_star"] & (self.flux * peak > 0.5 * level).any(axis=1)
        self._spike_angle = rng.uniform(0.0, 0.5 * math.pi)

    def draw(self, i: int) -> Stamp:
        """Draw the source of a number; numbers must be asked for in their order."""
        source = self._population[i]
        if self._has_wings[i]:
            return self._draw_bright_star(i)
        if source["is_star"]:
            return self._painter.draw_star(source["x"], source["y"], self.flux[i], self._sizes[i])
        # A galaxy's structure takes one number from the scene's stream, however many it needs itself.
        structured = source["disc_radius"] > self._structure_radius and not source["is_red"]
        return self._painter.draw_galaxy(
            source["x"],
            source["y"],
            self._disc_flux[i],
            self._bulge_flux[i],
            (source["disc_radius"], source["disc_axis_ratio"]),
            (source["bulge_radius"], source["bulge_axis_ratio"]),
            source["position_angle"],
            self._sizes[i],
            np.random.default_rng(self._rng.integers(2**63)) if structured else None,
            float(self._disc_sersic[i]),
            float(self._bulge_sersic[i]),
            bool(source["is_irregular"]),
        )

    def _draw_bright_star(self, i: int) -> Stamp:
        """Draw a star with spikes and aureole, these as far as they are on the image."""
        config, flux = self._config, self.flux[i]
        x, y = self._population["x"][i], self._population["y"][i]
        spikes, halo = config.artefacts.spikes, config.artefacts.halo
        core = self._painter.draw_star(x, y, flux * (1.0 - spikes - halo), self._sizes[i])
        fwhm = [p.fwhm / config.pixel_scale for p in self._painter.psfs]
        reaches = [
            art.wings_reach(f, spikes, halo, w, 0.05 * sigma, float(max(config.shape)))
            for f, w, sigma in zip(flux, fwhm, self.sky_sigma)
        ]
        reach = math.ceil(max(max(r) for r in reaches)) + 1
        h, w = core.pixels.shape[1:]
        y_low = min(core.y0, max(math.floor(y) - reach, 0))
        x_low = min(core.x0, max(math.floor(x) - reach, 0))
        y_high = max(core.y0 + h, min(math.ceil(y) + reach, config.shape[0]))
        x_high = max(core.x0 + w, min(math.ceil(x) + reach, config.shape[1]))
        pixels = np.zeros((len(flux), y_high - y_low, x_high - x_low), np.float32)
        dx, dy = np.arange(x_low, x_high) - x, np.arange(y_low, y_high) - y
        for band, (shift_y, shift_x) in enumerate(self._shifts):
            wings = art.bright_star_wings(
                dx - shift_x, dy - shift_y, spikes, halo, self._spike_angle, fwhm[band], reaches[band]
            )
            pixels[band] = flux[band] * wings
        rows = slice(core.y0 - y_low, core.y0 - y_low + h)
        pixels[:, rows, core.x0 - x_low : core.x0 - x_low + w] += core.pixels
        return Stamp(pixels, y_low, x_low)


@dataclass(frozen=True)
class _ShiftedPsf(BandPsf):
    """A PSF whose centre is off by some arcsec."""

    offset_x: float = 0.0
    offset_y: float = 0.0

    def draw(self, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return super().draw(dx - self.offset_x, dy - self.offset_y)

    def transform(self, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
        phase = np.exp(-1j * self.offset_x * kx) * np.exp(-1j * self.offset_y * ky)
        return super().transform(kx, ky) * phase


def _draw_psfs(config: SceneConfig, rng: np.random.Generator) -> list[BandPsf]:
    common = rng.normal(0.0, config.psf.seeing_scatter)
    low, high = config.psf.beta
    psfs: list[BandPsf] = []
    for condition in config.band_conditions():
        fwhm = condition.fwhm * math.exp(common + rng.normal(0.0, config.psf.band_scatter))
        beta = float(rng.uniform(low, high))
        if psfs:
            # Wings are much alike in all bands; else all stars of a scene had one colour outside.
            beta = min(max(psfs[0].beta + 0.15 * (beta - 0.5 * (low + high)), low), high)
        g1, g2 = np.clip(rng.normal(0.0, config.psf.ellipticity, 2), -0.25, 0.25)
        psfs.append(BandPsf(fwhm, config.psf.profile, beta, float(g1), float(g2)))
    return psfs


def _source_table(population: np.ndarray, flux: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    sources = np.zeros(population.size, source_dtype(bands))
    sources["id"] = np.arange(1, population.size + 1)
    for name in ("x", "y", "is_star", "group", "mag", "redshift", "bulge_fraction", "position_angle"):
        sources[name] = population[name]
    bulge = population["bulge_fraction"]
    radius = bulge * population["bulge_radius"] + (1 - bulge) * population["disc_radius"]
    sources["half_light_radius"] = radius
    ratios = population["bulge_axis_ratio"], population["disc_axis_ratio"]
    sources["axis_ratio"] = np.where(bulge > 0.5, *ratios)
    disc_sersic, bulge_sersic = sersic_indices(population)
    index = np.where(bulge > 0.5, bulge_sersic, disc_sersic)
    sources["sersic_index"] = np.where(population["is_star"], 0.0, index)
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


def measure_blending(sources: np.ndarray, stamps: list[Stamp], total: np.ndarray, band: int) -> None:
    """Fill ``peak_share`` and ``blendedness``, from one band of the stamps."""
    for i, stamp in enumerate(stamps):
        model = stamp.pixels[band]
        if model.size == 0:
            continue
        blend = total[stamp.y0 : stamp.y0 + model.shape[0], stamp.x0 : stamp.x0 + model.shape[1]]
        peak = np.unravel_index(np.argmax(model), model.shape)
        sources["peak_share"][i] = model[peak] / blend[peak] if blend[peak] > 0 else 0.0
        cross = float(np.sum(model * blend))
        if cross > 0:
            sources["blendedness"][i] = max(0.0, 1.0 - float(np.vdot(model, model)) / cross)


def _expose(
    config: SceneConfig, photons: np.ndarray, sky_sigma: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Add what camera, sky and chance do to the light, which is changed.

    Returns images, noiseless images, variance and mask.
    """
    settings = config.artefacts
    shape = config.shape
    area = shape[0] * shape[1] * (config.pixel_scale / 60.0) ** 2
    scale = config.pixel_scale
    radius = _STRAY_LIGHT_RADIUS[0] / scale, _STRAY_LIGHT_RADIUS[1] / scale
    gap_width = settings.chip_gap_width[0] / scale, settings.chip_gap_width[1] / scale
    noiseless = np.empty(photons.shape, np.float32)
    variance = np.empty(photons.shape, np.float32)
    images = np.empty(photons.shape, np.float32)
    mask = np.zeros(photons.shape, np.uint8)
    for band, condition in enumerate(config.band_conditions()):
        light = photons[band]
        electrons = condition.electrons_per_njy * config.exposure_factor
        if settings.masked_regions > 0:
            count = int(rng.poisson(settings.masked_regions))
            art.add_stray_light(light, mask[band], count, radius, sky_sigma[band], rng)
        if settings.saturation and math.isfinite(condition.saturation):
            art.saturate(
                light,
                condition.saturation,
                mask[band],
                rng,
                bleed=settings.bleed,
                axis=settings.bleed_axis,
                trail_level=settings.bleed_level,
                fill=settings.saturation_fill,
            )
        if settings.cosmic_rays > 0:
            count = int(rng.poisson(settings.cosmic_rays * area))
            art.add_cosmic_rays(light, mask[band], count, sky_sigma[band], rng)
        # What is left of the sky is in the images, but its photons are in the
        # variance whether it is subtracted or not.
        sky = np.full(shape, settings.sky_left * condition.sky_level)
        if settings.gradient > 0:
            sky += art.background(shape, settings.gradient * sky_sigma[band], rng)
        share = np.ones(shape)
        if settings.chip_gaps > 0:
            count = int(rng.poisson(settings.chip_gaps))
            share = art.draw_chip_gaps(shape, count, gap_width, settings.chip_gap_depth, rng)
        lost = share <= 0
        share[lost] = 1.0
        variance[band] = (sky_sigma[band] ** 2 + np.maximum(light, 0.0) / electrons) / share
        noiseless[band] = light + sky
        images[band] = noiseless[band]
        if config.noise and config.poisson:
            images[band] += _counted_noise(config, condition, light, share, rng)
        elif config.noise:
            noise = art.correlated_noise(shape, settings.correlation, rng)
            images[band] += noise * np.sqrt(variance[band])
        if settings.dead_columns > 0:
            dead = art.draw_dead_columns(shape, int(rng.poisson(settings.dead_columns)), rng)
            mask[band][dead] |= art.BAD
            images[band][dead] = noiseless[band][dead] = 0.0
        mask[band][lost] |= art.NO_DATA
        images[band][lost] = variance[band][lost] = np.nan
    return images, noiseless, variance, mask


def _counted_noise(
    config: SceneConfig,
    condition: BandConditions,
    light: np.ndarray,
    share: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the noise of counted photons, and normal read noise, nJy.

    ``share`` is the share of the exposures that each pixel has.
    """
    electrons = condition.electrons_per_njy * config.exposure_factor * share
    expected = (condition.sky_level + np.maximum(light, 0.0)) * electrons
    noise = (rng.poisson(expected) - expected) / electrons
    read_variance = (condition.noise_sigma**2 - condition.sky_sigma**2) / config.exposure_factor
    if read_variance > 0:
        noise += np.sqrt(read_variance / share) * rng.standard_normal(light.shape)
    return noise
