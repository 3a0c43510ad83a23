# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings of simulated scenes.

Magnitudes are AB, fluxes nJy, angles on the sky arcsec unless a setting says
otherwise. Magnitudes of a population are in the reference band ``r``, whether
or not the scene is drawn in it. Ranges are (low, high).
"""

from __future__ import annotations

__all__ = [
    "ALL_BANDS",
    "ArtefactConfig",
    "BandConditions",
    "MaskRule",
    "PopulationConfig",
    "PsfConfig",
    "SceneConfig",
]

import math
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from ..images.settings import settings

ALL_BANDS: tuple[str, ...] = ("u", "g", "r", "i", "z", "y")
"""Bands for which the populations have colours."""


_Range = tuple[float, float]


def _check_ranges(owner: object, lowest: float, *names: str, highest: float = math.inf) -> None:
    """Check that settings are ranges (low, high) within limits."""
    for name in names:
        low, high = getattr(owner, name)
        if not lowest <= low <= high <= highest:
            limits = f"{lowest:g} <= low <= high" + ("" if math.isinf(highest) else f" <= {highest:g}")
            raise ValueError(f"{name} is {(low, high)!r}, wanted (low, high) with {limits}")


@settings
class BandConditions:
    """Observing conditions of one band."""

    band: Annotated[str, Field(description="One of the bands in `ALL_BANDS`.")]
    fwhm: Annotated[float, Field(gt=0, description="Median FWHM of the PSF, pixel included (arcsec).")]
    sky_sigma: Annotated[float, Field(gt=0, description="Photon noise of the sky in a pixel (nJy).")]
    electrons_per_njy: Annotated[float, Field(gt=0, description="Electrons of 1 nJy in the stack.")]
    saturation: Annotated[
        float, Field(gt=0, allow_inf_nan=True, description="Flux of a saturated pixel (nJy).")
    ] = math.inf
    read_noise: Annotated[float, Field(ge=0, description="Of one exposure (electrons per pixel).")] = 0.0
    exposures: Annotated[int, Field(ge=1, description="Exposures; read noise enters with each.")] = 1

    def __post_init__(self) -> None:
        if self.band not in ALL_BANDS:
            raise ValueError(f"band is {self.band!r}, and the simulator has colours for {ALL_BANDS} alone")

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of an empty pixel, sky and read noise, nJy."""
        read_variance = self.exposures * (self.read_noise / self.electrons_per_njy) ** 2
        return math.sqrt(self.sky_sigma**2 + read_variance)

    @property
    def sky_level(self) -> float:
        """Brightness of the sky whose photon noise ``sky_sigma`` is, nJy per pixel."""
        return self.sky_sigma**2 * self.electrons_per_njy


@settings
class PsfConfig:
    """How the PSF varies from scene to scene and from band to band."""

    profile: Annotated[Literal["moffat", "kolmogorov"], Field(description="Radial profile.")] = "moffat"
    beta: Annotated[_Range, Field(description="Moffat exponent, alike in all bands.")] = (2.6, 4.5)
    ellipticity: Annotated[float, Field(ge=0, le=0.2, description="Sigma of the reduced shear.")] = 0.02
    seeing_scatter: Annotated[float, Field(ge=0, description="Scatter of ln FWHM, in all bands.")] = 0.08
    band_scatter: Annotated[float, Field(ge=0, description="Scatter of ln FWHM, band by band.")] = 0.04

    def __post_init__(self) -> None:
        # Below 2, wings hold too much flux.
        _check_ranges(self, 2, "beta")


@settings
class PopulationConfig:
    """Which stars and galaxies are in a scene.

    Densities are expected numbers per arcmin^2; the number drawn is
    Poissonian. Slopes of counts are d log10 N / dm.
    """

    galaxy_density: Annotated[float, Field(ge=0, description="Galaxies to mag_limit (arcmin^-2).")] = 60.0
    star_density: Annotated[float, Field(ge=0, description="Stars in star_mag_range (arcmin^-2).")] = 4.0
    mag_limit: Annotated[float, Field(description="Faint limit of the galaxies in r (mag).")] = 25.5
    mag_bright: Annotated[float, Field(description="Bright limit of the field galaxies in r (mag).")] = 17.0
    counts_slope_bright: Annotated[float, Field(description="Of galaxies before counts_break.")] = 0.42
    counts_slope_faint: Annotated[float, Field(description="Of galaxies after counts_break.")] = 0.33
    counts_break: Annotated[float, Field(description="Where the slope of the counts changes (mag).")] = 22.5
    star_mag_range: Annotated[_Range, Field(description="Magnitudes of the stars in r.")] = (17.0, 25.0)
    star_counts_slope: Annotated[float, Field(description="Slope of the star counts.")] = 0.12
    star_locus_scatter: Annotated[float, Field(ge=0, description="Scatter of stars in g - r (mag).")] = 0.03
    dust_reddening: Annotated[
        float,
        Field(
            ge=0,
            description="Reddening in g - r by the dust of the Milky Way (mag): all of it for galaxies, a "
            "third to all of it for stars, which lie within the dust. Magnitudes are those behind it.",
        ),
    ] = 0.0
    size_at_22: Annotated[float, Field(gt=0, description="Half-light radius at r = 22 (arcsec).")] = 0.55
    size_slope: Annotated[float, Field(description="Change of that radius (dex per mag).")] = -0.115
    size_scatter: Annotated[float, Field(ge=0, description="Scatter of that radius (dex).")] = 0.18
    pair_fraction: Annotated[
        float, Field(ge=0, le=1, description="Share of field sources that are moved next to another one.")
    ] = 0.2
    pair_separation: Annotated[_Range, Field(description="Log-uniform separations (arcsec).")] = (0.6, 4.0)
    cluster_probability: Annotated[float, Field(ge=0, le=1, description="Of a cluster of galaxies.")] = 0.1
    cluster_richness: Annotated[tuple[int, int], Field(description="Number of its members.")] = (8, 40)
    cluster_core: Annotated[_Range, Field(description="Core radius of the cluster (arcsec).")] = (6.0, 20.0)
    bright_star_density: Annotated[float, Field(ge=0, description="Bright stars (arcmin^-2).")] = 0.08
    bright_star_mags: Annotated[_Range, Field(description="Their magnitudes in r, uniform.")] = (14.0, 18.0)
    large_galaxy_density: Annotated[float, Field(ge=0, description="Large galaxies (arcmin^-2).")] = 0.06
    large_galaxy_mags: Annotated[_Range, Field(description="Their magnitudes in r, uniform.")] = (15.5, 18.5)
    disc_sersic: Annotated[_Range, Field(description="Sersic indices of discs.")] = (0.8, 1.3)
    bulge_sersic: Annotated[_Range, Field(description="Sersic indices of bulges.")] = (2.0, 5.0)
    structure_size: Annotated[
        float, Field(gt=0, description="Half-light radius from which discs have arms or clumps (PSF FWHM).")
    ] = 1.2
    irregular_fraction: Annotated[
        float, Field(ge=0, le=1, description="Share of these that are lopsided and clumpy, without arms.")
    ] = 0.25

    def __post_init__(self) -> None:
        _check_ranges(self, -math.inf, "star_mag_range", "bright_star_mags", "large_galaxy_mags")
        _check_ranges(self, 0.01, "pair_separation", "cluster_core")
        _check_ranges(self, 1, "cluster_richness")
        _check_ranges(self, 0.5, "disc_sersic", "bulge_sersic", highest=6.0)
        if self.mag_bright >= self.mag_limit:
            raise ValueError(f"mag_bright is {self.mag_bright}, wanted less than mag_limit, {self.mag_limit}")


@settings
class ArtefactConfig:
    """What the camera and the sky add to the sources' light; nothing by default.

    Numbers of cosmic rays, columns, gaps and regions are expected ones.
    """

    saturation: Annotated[bool, Field(description="Clip pixels at the band's saturation level?")] = False
    bleed: Annotated[bool, Field(description="Let the clipped charge run along a line?")] = False
    bleed_axis: Annotated[Literal["x", "y"], Field(description="y: trails along columns; x: rows.")] = "y"
    bleed_level: Annotated[float, Field(ge=0, le=1, description="Flux in trails (saturation levels).")] = 1.0
    saturation_fill: Annotated[
        float,
        Field(ge=0, le=1, description="Flux in clipped pixels (saturation levels); below 1: hollow cores."),
    ] = 1.0
    spikes: Annotated[
        float, Field(ge=0, le=1, description="Share of the flux of stars near saturation in four spikes.")
    ] = 0.0
    halo: Annotated[float, Field(ge=0, le=1, description="Share of that flux in an aureole.")] = 0.0
    sky_left: Annotated[float, Field(ge=0, le=1, description="Share of the sky not subtracted.")] = 0.0
    gradient: Annotated[
        float, Field(ge=0, description="Amplitude of a residual background (sky noise of a pixel).")
    ] = 0.0
    correlation: Annotated[float, Field(ge=0, description="Sigma of the noise's kernel (px).")] = 0.0
    cosmic_rays: Annotated[float, Field(ge=0, description="Per arcmin^2 and band, masked.")] = 0.0
    dead_columns: Annotated[float, Field(ge=0, description="Per scene and band, masked.")] = 0.0
    chip_gaps: Annotated[float, Field(ge=0, description="Gaps between detectors, per scene and band.")] = 0.0
    chip_gap_width: Annotated[_Range, Field(description="Widths of the gaps (arcsec).")] = (2.0, 10.0)
    chip_gap_depth: Annotated[
        float, Field(ge=0, le=1, description="Share of the exposures lost in a gap; at 1, NaN and NO_DATA.")
    ] = 1.0
    masked_regions: Annotated[
        float, Field(ge=0, description="Regions of stray light per scene and band, masked.")
    ] = 0.0

    def __post_init__(self) -> None:
        _check_ranges(self, 0, "chip_gap_width")
        if self.bleed and not self.saturation:
            raise ValueError("bleed is set, which needs saturation=True: only clipped charge bleeds")
        if self.spikes + self.halo > 0.5:
            raise ValueError(f"spikes + halo is {self.spikes + self.halo}, wanted 0.5 at most")


@settings
class MaskRule:
    """Which pixels are a source's truth mask, and which sources are flagged.

    All rules use the noise-free image of the single source in one band:
    ``peakFraction`` takes pixels above a fraction of the highest one (Burke et
    al. 2019), ``isophote`` those above a surface brightness, ``fluxFraction``
    the brightest ones that together hold a fraction of the flux.
    """

    kind: Annotated[
        Literal["peakFraction", "isophote", "fluxFraction"], Field(description="Which rule is used.")
    ] = "peakFraction"
    band: Annotated[str, Field(description="Band whose image decides; empty for the scene's first.")] = ""
    star_fraction: Annotated[float, Field(gt=0, lt=1, description="Of the peak of a star.")] = 0.005
    galaxy_fraction: Annotated[float, Field(gt=0, lt=1, description="Of the peak of a galaxy.")] = 0.08
    isophote: Annotated[float, Field(gt=0, description="Limit (noise of an empty pixel).")] = 1.0
    flux_fraction: Annotated[float, Field(gt=0, lt=1, description="Of the source's flux.")] = 0.9
    min_area: Annotated[int, Field(ge=0, description="Masks with fewer pixels are flagged.")] = 12
    min_snr: Annotated[float, Field(ge=0, description="Sources with a lower S/N are flagged.")] = 5.0


def _hsc_wide() -> tuple[BandConditions, ...]:
    # The presets are made of the classes here and import this module.
    from .presets import PRESETS

    return PRESETS["hsc-wide"].conditions


@settings
class SceneConfig:
    """Everything that defines a kind of scene; the rest is random."""

    shape: Annotated[tuple[int, int], Field(description="Height and width (px).")] = (512, 512)
    bands: Annotated[tuple[str, ...], Field(description="Bands, in the order of arrays.")] = ("z", "r", "g")
    pixel_scale: Annotated[float, Field(gt=0, description="Pixel size (arcsec).")] = 0.168
    noise: Annotated[
        bool, Field(description="Do the images hold noise? The variance is the same without it.")
    ] = True
    poisson: Annotated[bool, Field(description="Poisson noise instead of its normal limit?")] = False
    exposure_factor: Annotated[float, Field(gt=0, description="Exposure time of that of conditions.")] = 1.0
    conditions: Annotated[
        tuple[BandConditions, ...],
        Field(description="One for each band at least, in any order; by default those of hsc-wide."),
    ] = field(default_factory=_hsc_wide)
    psf: Annotated[PsfConfig, Field(description="Scatter and shape of the PSF.")] = PsfConfig()
    population: Annotated[PopulationConfig, Field(description="The sources.")] = PopulationConfig()
    artefacts: Annotated[ArtefactConfig, Field(description="Effects of camera and sky.")] = ArtefactConfig()
    mask_rule: Annotated[MaskRule, Field(description="Which pixels are a source's truth mask.")] = MaskRule()
    misregistration: Annotated[
        float, Field(ge=0, description="Sigma per axis of the shift of bands after the first (px).")
    ] = 0.0
    keep_models: Annotated[bool, Field(description="Keep each source's pixels in `Scene.models`?")] = False
    name: Annotated[str, Field(description="A label for logs and file headers.")] = "custom"

    def __post_init__(self) -> None:
        if min(self.shape) < 16:
            raise ValueError(f"shape is {self.shape}, wanted (height, width) of 16 px or more")
        if self.poisson and self.artefacts.correlation > 0:
            raise ValueError(
                "poisson is for noise without correlation, and artefacts.correlation is "
                f"{self.artefacts.correlation}"
            )
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands is {self.bands}, wanted each band once")
        if self.mask_rule.band and self.mask_rule.band not in self.bands:
            raise ValueError(f"mask_rule.band is {self.mask_rule.band!r}, wanted one of {self.bands}")
        known = [c.band for c in self.conditions]
        missing = [b for b in self.bands if b not in known]
        if missing:
            raise ValueError(f"conditions are for bands {', '.join(known)}, not for {', '.join(missing)}")
        if len(set(known)) != len(known):
            raise ValueError(f"conditions name a band twice: {', '.join(known)}")

    def band_conditions(self) -> tuple[BandConditions, ...]:
        """Return the conditions in the order of ``bands``."""
        by_band = {c.band: c for c in self.conditions}
        return tuple(by_band[b] for b in self.bands)
