# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings of simulated scenes: frozen dataclasses that check themselves.

Magnitudes are AB, fluxes nJy, angles on the sky arcsec unless a name says
otherwise. Magnitudes of a population are always in the reference band ``r``,
whether or not the scene is drawn in it.
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
from dataclasses import dataclass, field

ALL_BANDS: tuple[str, ...] = ("u", "g", "r", "i", "z", "y")
"""Bands for which the populations have colours."""


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be finite and above 0.")


def _check_not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be finite and >= 0.")


def _check_fraction(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must lie in [0, 1].")


def _check_range(owner: object, *names: str) -> None:
    for name in names:
        low, high = getattr(owner, name)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(
                f"{type(owner).__name__}.{name} is {(low, high)!r}; it must be (low, high) with low <= high."
            )


@dataclass(frozen=True)
class BandConditions:
    """Observing conditions of one band.

    Parameters
    ----------
    band : `str`
        One of `ALL_BANDS`.
    fwhm : `float`
        Median full width at half maximum of the effective PSF (pixel
        response included), arcsec.
    sky_sigma : `float`
        Standard deviation of the photon noise of the sky in one pixel, nJy.
    electrons_per_njy : `float`
        Electrons that 1 nJy leaves in the stack; sets the Poisson noise of
        the sources.
    saturation : `float`
        Flux in one pixel at which the detector saturates, nJy; infinite for
        none.
    read_noise : `float`
        Of one exposure, electrons per pixel.
    exposures : `int`
        Number of exposures in the stack; read noise enters with each.
    """

    band: str
    fwhm: float
    sky_sigma: float
    electrons_per_njy: float
    saturation: float = math.inf
    read_noise: float = 0.0
    exposures: int = 1

    def __post_init__(self) -> None:
        if self.band not in ALL_BANDS:
            raise ValueError(f"Band {self.band!r} is not known; the simulator has colours for {ALL_BANDS}.")
        _check_positive(self, "fwhm", "sky_sigma", "electrons_per_njy")
        _check_not_negative(self, "read_noise")
        if not self.saturation > 0:
            raise ValueError(f"BandConditions.saturation is {self.saturation!r}; it must be above 0.")
        if self.exposures < 1:
            raise ValueError(f"BandConditions.exposures is {self.exposures!r}; it must be at least 1.")

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of an empty pixel, sky and read noise, nJy."""
        read_variance = self.exposures * (self.read_noise / self.electrons_per_njy) ** 2
        return math.sqrt(self.sky_sigma**2 + read_variance)

    @property
    def sky_level(self) -> float:
        """Brightness of the sky whose photon noise ``sky_sigma`` is, nJy per pixel."""
        return self.sky_sigma**2 * self.electrons_per_njy


@dataclass(frozen=True)
class PsfConfig:
    """How the PSF varies from scene to scene and from band to band.

    Parameters
    ----------
    profile : `str`
        ``"moffat"`` or ``"kolmogorov"``.
    beta : `tuple` [`float`, `float`]
        Range of the Moffat exponent, drawn once per scene; bands differ by
        less than a tenth of it.
    ellipticity : `float`
        Scale of the PSF's reduced shear (each component is Gaussian).
    seeing_scatter, band_scatter : `float`
        Relative scatter of the FWHM common to all bands and of each band on
        its own (log-normal).
    """

    profile: str = "moffat"
    beta: tuple[float, float] = (2.6, 4.5)
    ellipticity: float = 0.02
    seeing_scatter: float = 0.08
    band_scatter: float = 0.04

    def __post_init__(self) -> None:
        if self.profile not in ("moffat", "kolmogorov"):
            raise ValueError(f"PSF profile {self.profile!r} is not known; use 'moffat' or 'kolmogorov'.")
        _check_range(self, "beta")
        if self.beta[0] < 2:
            raise ValueError(f"PsfConfig.beta begins at {self.beta[0]!r}; below 2 wings hold too much flux.")
        _check_not_negative(self, "ellipticity", "seeing_scatter", "band_scatter")
        if self.ellipticity > 0.2:
            raise ValueError(f"PsfConfig.ellipticity is {self.ellipticity!r}; it must not exceed 0.2.")


@dataclass(frozen=True)
class PopulationConfig:
    """Which stars and galaxies are in a scene.

    Densities are expected numbers per square arcminute; the number drawn is
    Poissonian.

    Parameters
    ----------
    galaxy_density : `float`
        Field galaxies brighter than ``mag_limit``, per arcmin^2.
    star_density : `float`
        Stars in ``star_mag_range``, per arcmin^2.
    mag_limit : `float`
        Faint limit of the galaxies in r.
    mag_bright : `float`
        Bright limit of the field galaxies in r.
    counts_slope_bright, counts_slope_faint, counts_break : `float`
        Slopes d log10 N / dm on both sides of the magnitude ``counts_break``.
    star_mag_range : `tuple` [`float`, `float`]
        Range of the stars in r.
    star_counts_slope : `float`
        Slope d log10 N / dm of the stars.
    star_locus_scatter : `float`
        Scatter of the stars about the stellar locus, mag in g - r.
    dust_reddening : `float`
        Reddening by the dust of the Milky Way, mag in g - r: all of it for
        galaxies, a third to all of it for stars, which lie within the dust.
        Counts and magnitudes are those seen through it.
    size_at_22, size_slope, size_scatter : `float`
        Median half-light radius (arcsec, major axis) at r = 22, its change
        in dex per magnitude and its scatter in dex.
    pair_fraction : `float`
        Share of the field sources that are moved next to another one.
    pair_separation : `tuple` [`float`, `float`]
        Range of these separations, arcsec; uniform in the logarithm.
    cluster_probability : `float`
        Chance that the scene holds a cluster of galaxies.
    cluster_richness : `tuple` [`int`, `int`]
        Range of the number of its members.
    cluster_core : `tuple` [`float`, `float`]
        Range of its core radius, arcsec.
    bright_star_density : `float`
        Further stars, uniform in ``bright_star_mags``, per arcmin^2.
    bright_star_mags : `tuple` [`float`, `float`]
        Their range in r.
    large_galaxy_density : `float`
        Further galaxies, uniform in ``large_galaxy_mags``, per arcmin^2.
    large_galaxy_mags : `tuple` [`float`, `float`]
        Their range in r.
    disc_sersic, bulge_sersic : `tuple` [`float`, `float`]
        Ranges of the Sersic indices of discs and of bulges.
    structure_size : `float`
        Discs with a half-light radius above this number of PSF FWHM get
        structure: spiral arms and clumps, or clumps alone.
    irregular_fraction : `float`
        Share of these that are irregular: lopsided and clumpy, without arms.
    """

    galaxy_density: float = 60.0
    star_density: float = 4.0
    mag_limit: float = 25.5
    mag_bright: float = 17.0
    counts_slope_bright: float = 0.42
    counts_slope_faint: float = 0.33
    counts_break: float = 22.5
    star_mag_range: tuple[float, float] = (17.0, 25.0)
    star_counts_slope: float = 0.12
    star_locus_scatter: float = 0.03
    dust_reddening: float = 0.0
    size_at_22: float = 0.55
    size_slope: float = -0.115
    size_scatter: float = 0.18
    pair_fraction: float = 0.2
    pair_separation: tuple[float, float] = (0.6, 4.0)
    cluster_probability: float = 0.1
    cluster_richness: tuple[int, int] = (8, 40)
    cluster_core: tuple[float, float] = (6.0, 20.0)
    bright_star_density: float = 0.08
    bright_star_mags: tuple[float, float] = (14.0, 18.0)
    large_galaxy_density: float = 0.06
    large_galaxy_mags: tuple[float, float] = (15.5, 18.5)
    disc_sersic: tuple[float, float] = (0.8, 1.3)
    bulge_sersic: tuple[float, float] = (2.0, 5.0)
    structure_size: float = 1.2
    irregular_fraction: float = 0.25

    def __post_init__(self) -> None:
        _check_not_negative(
            self,
            "galaxy_density",
            "star_density",
            "bright_star_density",
            "large_galaxy_density",
            "size_scatter",
            "star_locus_scatter",
            "dust_reddening",
        )
        _check_positive(self, "size_at_22", "structure_size")
        _check_fraction(self, "pair_fraction", "cluster_probability", "irregular_fraction")
        _check_range(
            self,
            "star_mag_range",
            "pair_separation",
            "cluster_richness",
            "cluster_core",
            "bright_star_mags",
            "large_galaxy_mags",
            "disc_sersic",
            "bulge_sersic",
        )
        for name in ("disc_sersic", "bulge_sersic"):
            low, high = getattr(self, name)
            if low < 0.5 or high > 6.0:
                raise ValueError(f"PopulationConfig.{name} is {(low, high)!r}; it must lie in [0.5, 6].")
        if self.mag_bright >= self.mag_limit:
            raise ValueError(
                f"PopulationConfig.mag_bright {self.mag_bright} is not below mag_limit {self.mag_limit}."
            )
        if self.pair_separation[0] <= 0 or self.cluster_core[0] <= 0 or self.cluster_richness[0] < 1:
            raise ValueError(
                "pair_separation, cluster_core and cluster_richness must begin above 0, not "
                f"{self.pair_separation[0]}, {self.cluster_core[0]}, {self.cluster_richness[0]}."
            )


@dataclass(frozen=True)
class ArtefactConfig:
    """What the camera and the sky add to the sources' light.

    All of it is off by default.

    Parameters
    ----------
    saturation : `bool`
        Clip pixels at the band's saturation level.
    bleed : `bool`
        With ``saturation``: let the clipped charge run along a line.
    bleed_axis : `str`
        ``"y"`` for trails along columns, ``"x"`` along rows (coadds are not
        always turned as the detectors were).
    bleed_level : `float`
        Flux in a pixel of a trail, in units of the saturation level; pipelines
        repair trails to some degree.
    saturation_fill : `float`
        What pipelines leave in clipped pixels, in units of the saturation
        level; below 1 the cores of bright stars are hollow.
    spikes : `float`
        Share of the flux of a star above the saturation level that goes into
        its four diffraction spikes; 0 for none.
    halo : `float`
        Share of the flux of such a star in a wide aureole; 0 for none.
    sky_left : `float`
        Share of the sky's brightness that is left in the images: 0 where it
        was subtracted, 1 where it was not.
    gradient : `float`
        Amplitude of a background left over from sky subtraction (offset and
        slopes across the scene), in units of the sky noise of a pixel.
    correlation : `float`
        Standard deviation of the Gaussian kernel that correlates the noise
        of neighbouring pixels, px; 0 for white noise.
    cosmic_rays : `float`
        Expected number of cosmic rays per arcmin^2 and band, marked in the
        mask.
    dead_columns : `float`
        Expected number of dead columns per scene and band, marked in the
        mask.
    chip_gaps : `float`
        Expected number of gaps between detectors that cross the scene, along
        rows or columns, in all bands at independent places.
    chip_gap_width : `tuple` [`float`, `float`]
        Range of their widths, arcsec.
    chip_gap_depth : `float`
        Share of the exposures of a stack that are lost in a gap: the variance
        grows by 1 / (1 - depth); at 1 nothing is left but NaN, marked as
        without data.
    masked_regions : `float`
        Expected number of round regions per scene and band that hold stray
        light and are marked in the mask.
    """

    saturation: bool = False
    bleed: bool = False
    bleed_axis: str = "y"
    bleed_level: float = 1.0
    saturation_fill: float = 1.0
    spikes: float = 0.0
    halo: float = 0.0
    sky_left: float = 0.0
    gradient: float = 0.0
    correlation: float = 0.0
    cosmic_rays: float = 0.0
    dead_columns: float = 0.0
    chip_gaps: float = 0.0
    chip_gap_width: tuple[float, float] = (2.0, 10.0)
    chip_gap_depth: float = 1.0
    masked_regions: float = 0.0

    def __post_init__(self) -> None:
        _check_fraction(
            self, "spikes", "halo", "bleed_level", "saturation_fill", "sky_left", "chip_gap_depth"
        )
        _check_range(self, "chip_gap_width")
        if self.bleed_axis not in ("x", "y"):
            raise ValueError(f"ArtefactConfig.bleed_axis is {self.bleed_axis!r}; it must be 'x' or 'y'.")
        _check_not_negative(self, "gradient", "correlation", "cosmic_rays", "dead_columns")
        _check_not_negative(self, "chip_gaps", "masked_regions")
        if self.bleed and not self.saturation:
            raise ValueError("ArtefactConfig.bleed needs saturation=True: only clipped charge bleeds.")
        if self.spikes + self.halo > 0.5:
            raise ValueError(
                f"ArtefactConfig.spikes + halo is {self.spikes + self.halo}; they must leave half the flux."
            )


@dataclass(frozen=True)
class MaskRule:
    """Which pixels are a source's truth mask, and which sources are too little.

    All rules look at the noise-free image of the single source in one band.

    Parameters
    ----------
    kind : `str`
        ``"peakFraction"``: pixels above a fraction of the source's highest
        one, as in Burke et al. 2019 (Astro R-CNN). ``"isophote"``: pixels
        above a surface brightness in units of the sky noise of a pixel.
        ``"fluxFraction"``: the brightest pixels that together hold a
        fraction of the source's flux.
    band : `str`
        Whose image decides; empty for the scene's first band.
    star_fraction, galaxy_fraction : `float`
        For ``peakFraction``: fractions of the peak.
    isophote : `float`
        For ``isophote``: limit in units of the noise of an empty pixel.
    flux_fraction : `float`
        For ``fluxFraction``: share of the flux inside the mask.
    min_area : `int`
        Sources with fewer pixels in the mask carry a flag.
    min_snr : `float`
        Sources whose best band has a lower signal to noise ratio (of a
        matched filter against the sky noise) carry a flag.
    """

    kind: str = "peakFraction"
    band: str = ""
    star_fraction: float = 0.005
    galaxy_fraction: float = 0.08
    isophote: float = 1.0
    flux_fraction: float = 0.9
    min_area: int = 12
    min_snr: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in ("peakFraction", "isophote", "fluxFraction"):
            raise ValueError(
                f"MaskRule.kind is {self.kind!r}; use 'peakFraction', 'isophote' or 'fluxFraction'."
            )
        for name in ("star_fraction", "galaxy_fraction", "flux_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"MaskRule.{name} is {getattr(self, name)!r}; it must lie between 0 and 1.")
        _check_positive(self, "isophote")
        _check_not_negative(self, "min_area", "min_snr")


def _hsc_wide() -> tuple[BandConditions, ...]:
    # The presets are made of the classes here, so this has to wait for them.
    from .presets import PRESETS

    return PRESETS["hsc-wide"].conditions


@dataclass(frozen=True)
class SceneConfig:
    """Everything that defines a kind of scene; the rest is chance.

    Parameters
    ----------
    shape : `tuple` [`int`, `int`]
        Height and width, px.
    bands : `tuple` [`str`, ...]
        Bands in the order of the arrays. Truth masks come from the first.
    pixel_scale : `float`
        Pixel size, arcsec.
    noise : `bool`
        Whether the images hold noise. Without it, the variance plane still
        says what the noise would be.
    poisson : `bool`
        Draw photon noise from Poisson distributions instead of their normal
        limit. Slower, and only for noise that is not correlated.
    exposure_factor : `float`
        Exposure time relative to ``conditions``: sky noise falls with its
        root and the electrons grow with it.
    conditions : `tuple` [`BandConditions`, ...]
        One for each of ``bands`` at least, in any order; those of the preset
        ``hsc-wide`` by default.
    psf : `PsfConfig`
        Scatter and shape of the PSF.
    population : `PopulationConfig`
        The sources.
    artefacts : `ArtefactConfig`
        Camera and sky effects.
    mask_rule : `MaskRule`
        Which pixels are a source's truth mask.
    misregistration : `float`
        Standard deviation per axis of the shift of each band but the first
        against the common WCS, px.
    keep_models : `bool`
        Keep each source's own noise-free pixels in `Scene.models`.
    name : `str`
        A label for logs and file headers.
    """

    shape: tuple[int, int] = (512, 512)
    bands: tuple[str, ...] = ("z", "r", "g")
    pixel_scale: float = 0.168
    noise: bool = True
    poisson: bool = False
    exposure_factor: float = 1.0
    conditions: tuple[BandConditions, ...] = field(default_factory=_hsc_wide)
    psf: PsfConfig = PsfConfig()
    population: PopulationConfig = PopulationConfig()
    artefacts: ArtefactConfig = ArtefactConfig()
    mask_rule: MaskRule = MaskRule()
    misregistration: float = 0.0
    keep_models: bool = False
    name: str = "custom"

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 16:
            raise ValueError(f"SceneConfig.shape is {self.shape!r}; it must be (height, width), >= 16 px.")
        _check_positive(self, "pixel_scale", "exposure_factor")
        _check_not_negative(self, "misregistration")
        if self.poisson and self.artefacts.correlation > 0:
            raise ValueError(
                "SceneConfig.poisson is for noise without correlation; "
                f"ArtefactConfig.correlation is {self.artefacts.correlation}."
            )
        if self.mask_rule.band and self.mask_rule.band not in self.bands:
            raise ValueError(f"MaskRule.band {self.mask_rule.band!r} is not one of the bands {self.bands}.")
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError(f"SceneConfig.bands is {self.bands!r}; it must name each band once.")
        known = [c.band for c in self.conditions]
        missing = [b for b in self.bands if b not in known]
        if missing:
            raise ValueError(f"SceneConfig.conditions has bands {known}; there is none for {missing}.")
        if len(set(known)) != len(known):
            raise ValueError(f"SceneConfig.conditions has bands {known}; each may be there once.")

    def band_conditions(self) -> tuple[BandConditions, ...]:
        """Return the conditions in the order of ``bands``."""
        by_band = {c.band: c for c in self.conditions}
        return tuple(by_band[b] for b in self.bands)
