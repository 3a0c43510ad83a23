# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Noise-free images of single stars and galaxies in several bands at once.

Stars are the PSF evaluated in real space. Galaxies are built in Fourier space
from radial profiles that GalSim tabulates once per process: the geometry is
worked out once for all bands, multiplied with each band's PSF and brought
back by an inverse FFT on the smallest stamp that holds the source. Compared
with one `galsim.GSObject.drawImage` per source, component and band this is
several times faster and gives the same pixels.
"""

from __future__ import annotations

__all__ = ["BandPsf", "Painter", "Stamp"]

import functools
import math
from dataclasses import dataclass

import galsim
import numpy as np

_STAMP_SIZES = np.array([32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536])
# Where n = 4 profiles fade out, in half-light radii of the endless profile: beyond, real galaxies
# lack the light that a de Vaucouleurs law would still predict.
_TRUNCATION = (4.5, 9.5)
_EXPONENTIAL_SCALE = 1.6783469900166605  # half-light radius / scale length
_DEVAUCOULEURS_SCALE = 7.669249442500804
_GSPARAMS = galsim.GSParams(maximum_fft_size=16384)


@functools.lru_cache(maxsize=1)
def _faded_half_light() -> float:
    """Half-light radius of a faded n = 4 profile, in that of the endless."""
    edges = _fading_edges()
    r = np.geomspace(1e-6, edges[-1], 20000)
    fading = (edges > r[:, None]).mean(axis=1)
    cumulative = np.cumsum(np.exp(-_DEVAUCOULEURS_SCALE * r**0.25) * fading * r * r)
    return float(np.interp(0.5 * cumulative[-1], cumulative, r))


def _fading_edges() -> np.ndarray:
    return np.linspace(*_TRUNCATION, 12)


@functools.lru_cache(maxsize=1)
def _devaucouleurs_transform() -> tuple[np.ndarray, np.ndarray]:
    """Fourier transform of an n = 4 profile of unit half-light radius.

    The profile fades out between two radii: one sharp edge would show on the
    sky as a rim. Fading is a mean of GalSim's sharply truncated profiles.
    """
    k = np.concatenate([[0.0], np.geomspace(1e-3, 300.0, 600)])
    total = np.zeros(k.size)
    for edge in _fading_edges():
        profile = galsim.Sersic(
            4, half_light_radius=1.0, trunc=edge, flux_untruncated=True, gsparams=_GSPARAMS
        )
        total += [profile.kValue(value, 0.0).real for value in k]
    return k * _faded_half_light(), total / total[0]


@functools.lru_cache(maxsize=64)
def _psf_transform(profile: str, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Fourier transform of a PSF of unit FWHM."""
    source = _unit_psf(profile, beta)
    k = np.concatenate([[0.0], np.geomspace(0.02, 40.0, 400)])
    return k, np.array([source.kValue(value, 0.0).real for value in k])


@functools.lru_cache(maxsize=1)
def _kolmogorov_profile() -> tuple[np.ndarray, np.ndarray]:
    """Surface brightness of a Kolmogorov PSF of unit FWHM."""
    source = _unit_psf("kolmogorov", 0.0)
    r = np.concatenate([[0.0], np.geomspace(0.01, 40.0, 1500)])
    return r, np.array([source.xValue(value, 0.0) for value in r])


def _unit_psf(profile: str, beta: float) -> galsim.GSObject:
    if profile == "moffat":
        return galsim.Moffat(beta=beta, fwhm=1.0)
    return galsim.Kolmogorov(fwhm=1.0)


def _shear_matrix(g1: float, g2: float) -> np.ndarray:
    return np.array([[1 + g1, g2], [g2, 1 - g1]]) / math.sqrt(1 - g1 * g1 - g2 * g2)


@dataclass(frozen=True)
class BandPsf:
    """The effective PSF (pixel response included) of one band of a scene.

    Parameters
    ----------
    fwhm : `float`
        Full width at half maximum before shearing, arcsec.
    profile : `str`
        ``"moffat"`` or ``"kolmogorov"``.
    beta : `float`
        Moffat exponent; not used for Kolmogorov.
    g1, g2 : `float`
        Reduced shear.
    """

    fwhm: float
    profile: str = "moffat"
    beta: float = 3.5
    g1: float = 0.0
    g2: float = 0.0

    def surface_brightness(self, radius: np.ndarray) -> np.ndarray:
        """Return the unsheared profile of unit flux, 1/arcsec^2.

        Parameters
        ----------
        radius : `numpy.ndarray`
            Radii, arcsec.
        """
        if self.profile == "moffat":
            scale = 0.5 * self.fwhm / math.sqrt(2.0 ** (1.0 / self.beta) - 1.0)
            norm = (self.beta - 1.0) / (math.pi * scale**2)
            return norm * (1.0 + (radius / scale) ** 2) ** (-self.beta)
        r, value = _kolmogorov_profile()
        u = radius / self.fwhm
        far = value[-1] * (np.maximum(u, 1.0) / r[-1]) ** (-11 / 3)
        return np.where(u < r[-1], np.interp(u, r, value), far) / self.fwhm**2

    def missing_flux(self, radius: np.ndarray) -> np.ndarray:
        """Return the share of the flux outside circles of given radii.

        Parameters
        ----------
        radius : `numpy.ndarray`
            Radii, arcsec.
        """
        if self.profile == "moffat":
            scale = 0.5 * self.fwhm / math.sqrt(2.0 ** (1.0 / self.beta) - 1.0)
            return (1.0 + (radius / scale) ** 2) ** (1.0 - self.beta)
        # Wings of a Kolmogorov PSF fall as r^-11/3.
        return 2 * math.pi * radius**2 * self.surface_brightness(radius) * 3.0 / 5.0

    def draw(self, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Return the PSF's value at offsets from its centre, 1/arcsec^2.

        Parameters
        ----------
        dx, dy : `numpy.ndarray`
            Offsets, arcsec; they are broadcast.
        """
        inverse = _shear_matrix(-self.g1, -self.g2)
        u = inverse[0, 0] * dx + inverse[0, 1] * dy
        v = inverse[1, 0] * dx + inverse[1, 1] * dy
        return self.surface_brightness(np.sqrt(u * u + v * v))

    def image(self, size: int, pixel_scale: float) -> np.ndarray:
        """Return the PSF centred in a square image and summing to one.

        Parameters
        ----------
        size : `int`
            Side of the image, px; odd, so that there is a central pixel.
        pixel_scale : `float`
            Pixel size, arcsec.
        """
        if size < 1 or size % 2 == 0:
            raise ValueError(f"The size of a PSF image must be odd and above 0, not {size}.")
        offset = (np.arange(size) - size // 2) * pixel_scale
        image = self.draw(offset, offset[:, None])
        return image / image.sum()

    def transform(self, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
        """Return the Fourier transform, which is 1 at the origin.

        Parameters
        ----------
        kx, ky : `numpy.ndarray`
            Wave numbers, 1/arcsec; they are broadcast.
        """
        shear = _shear_matrix(self.g1, self.g2)
        u = shear[0, 0] * kx + shear[0, 1] * ky
        v = shear[1, 0] * kx + shear[1, 1] * ky
        k, value = _psf_transform(self.profile, self.beta)
        return np.interp(np.sqrt(u * u + v * v) * self.fwhm, k, value, right=0.0)


@dataclass
class Stamp:
    """Pixels of one source.

    Parameters
    ----------
    pixels : `numpy.ndarray`, (band, h, w)
        Flux in each pixel, nJy.
    y0, x0 : `int`
        Scene coordinates of ``pixels[:, 0, 0]``; may be negative.
    """

    pixels: np.ndarray
    y0: int
    x0: int


class Painter:
    """Draws sources with the PSFs of one scene.

    Parameters
    ----------
    psfs : `list` [`BandPsf`]
        One for each band.
    pixel_scale : `float`
        Pixel size, arcsec.
    sky_sigma : `numpy.ndarray`, (band,)
        Sky noise of one pixel, nJy; stamps end where a source is far below.
    tolerance : `float`
        Surface brightness at the edge of a stamp, in units of ``sky_sigma``.
    clump_boost : `numpy.ndarray`, (band,), optional
        How much more of a disc's flux is in its clumps, by band; they are
        young, hence blue.
    """

    def __init__(
        self,
        psfs: list[BandPsf],
        pixel_scale: float,
        sky_sigma: np.ndarray,
        tolerance: float = 0.02,
        clump_boost: np.ndarray | None = None,
    ) -> None:
        self.psfs = psfs
        self.pixel_scale = pixel_scale
        self.sky_sigma = np.asarray(sky_sigma, float)
        self.tolerance = tolerance
        self.clump_boost = np.ones(len(psfs)) if clump_boost is None else np.asarray(clump_boost, float)
        self._grids: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        half = 0.5 * _STAMP_SIZES * pixel_scale
        # (band, size)
        self._wings = np.stack([p.surface_brightness(half) for p in psfs]) * pixel_scale**2
        missing = np.stack([p.missing_flux(half) for p in psfs]).max(axis=0)
        self._smallest = int(np.argmax(missing < 0.003)) if (missing < 0.003).any() else len(half) - 1

    def star_stamp_sizes(self, flux: np.ndarray) -> np.ndarray:
        """Return stamp sizes for stars.

        Parameters
        ----------
        flux : `numpy.ndarray`, (N, band)
            Fluxes, nJy.

        Returns
        -------
        sizes : `numpy.ndarray`, (N,)
            Sides of the stamps, px.
        """
        limit = self.tolerance * self.sky_sigma
        bright = np.any(flux[:, :, None] * self._wings > limit[:, None], axis=1)
        return self._first_dark(bright)

    def galaxy_stamp_sizes(
        self,
        disc_flux: np.ndarray,
        bulge_flux: np.ndarray,
        disc_radius: np.ndarray,
        bulge_radius: np.ndarray,
        disc_axis_ratio: np.ndarray,
        bulge_axis_ratio: np.ndarray,
    ) -> np.ndarray:
        """Return stamp sizes for galaxies.

        Parameters
        ----------
        disc_flux, bulge_flux : `numpy.ndarray`, (N, band)
            Fluxes, nJy.
        disc_radius, bulge_radius : `numpy.ndarray`, (N,)
            Half-light radii along the major axis, arcsec.
        disc_axis_ratio, bulge_axis_ratio : `numpy.ndarray`, (N,)
            Minor over major axis.

        Returns
        -------
        sizes : `numpy.ndarray`, (N,)
            Sides of the stamps, px.
        """
        half = 0.5 * _STAMP_SIZES * self.pixel_scale
        pixel = self.pixel_scale**2
        # The light of the core that the PSF throws outwards, and the
        # profile's own light, along the major axis.
        wings = (disc_flux + bulge_flux)[:, :, None] * self._wings
        u = half / disc_radius[:, None]
        disc = _EXPONENTIAL_SCALE**2 / (2 * math.pi) * np.exp(-_EXPONENTIAL_SCALE * u)
        disc /= (disc_axis_ratio * disc_radius**2)[:, None]
        endless = bulge_radius[:, None] / _faded_half_light()
        u = half / endless
        # Flux of an n = 4 profile: 22.67 r^2 times the brightness at r.
        bulge = np.exp(-_DEVAUCOULEURS_SCALE * (u**0.25 - 1.0)) / (22.67 * endless**2)
        bulge = np.where(u < _TRUNCATION[1], bulge, 0.0) / bulge_axis_ratio[:, None]
        own = disc_flux[:, :, None] * disc[:, None] + bulge_flux[:, :, None] * bulge[:, None]
        limit = self.tolerance * self.sky_sigma
        bright = np.any(wings + pixel * own > limit[:, None], axis=1)
        # A stamp much smaller than the source would fold its light back.
        bright |= half < 2.0 * np.maximum(disc_radius, bulge_radius)[:, None] + self.psfs[0].fwhm
        return self._first_dark(bright)

    def _first_dark(self, bright: np.ndarray) -> np.ndarray:
        bright = np.logical_or.accumulate(bright[:, ::-1], axis=1)[:, ::-1]
        index = np.where(bright.all(axis=1), bright.shape[1] - 1, np.argmin(bright, axis=1))
        return _STAMP_SIZES[np.maximum(index, self._smallest)]

    def draw_star(self, x: float, y: float, flux: np.ndarray, size: int) -> Stamp:
        """Draw a star.

        Parameters
        ----------
        x, y : `float`
            Position, px.
        flux : `numpy.ndarray`, (band,)
            Fluxes, nJy.
        size : `int`
            Side of the stamp, px.
        """
        x0, y0 = round(x) - size // 2, round(y) - size // 2
        dx = (np.arange(size) + x0 - x) * self.pixel_scale
        dy = (np.arange(size) + y0 - y)[:, None] * self.pixel_scale
        pixels = np.empty((len(self.psfs), size, size), np.float32)
        for band, psf in enumerate(self.psfs):
            pixels[band] = psf.draw(dx, dy) * (flux[band] * self.pixel_scale**2)
        return Stamp(pixels, y0, x0)

    def draw_galaxy(
        self,
        x: float,
        y: float,
        disc_flux: np.ndarray,
        bulge_flux: np.ndarray,
        disc_shape: tuple[float, float],
        bulge_shape: tuple[float, float],
        position_angle: float,
        size: int,
        structure: np.random.Generator | None = None,
    ) -> Stamp:
        """Draw a galaxy of an exponential disc and an n = 4 bulge.

        Parameters
        ----------
        x, y : `float`
            Position, px.
        disc_flux, bulge_flux : `numpy.ndarray`, (band,)
            Fluxes, nJy.
        disc_shape, bulge_shape : `tuple` [`float`, `float`]
            Half-light radius along the major axis (arcsec) and axis ratio.
        position_angle : `float`
            Of the major axis from +x towards +y, rad.
        size : `int`
            Side of the stamp, px.
        structure : `numpy.random.Generator`, optional
            Draw spiral arms and clumps into the disc, by this generator.
        """
        x0, y0 = round(x) - size // 2, round(y) - size // 2
        kx, ky, psf = self._grid(size)
        offset_x, offset_y = (x - x0) * self.pixel_scale, (y - y0) * self.pixel_scale
        phase = np.exp(-1j * offset_y * ky) * np.exp(-1j * offset_x * kx)

        disc_matrix = _ellipse(*disc_shape, position_angle)
        k2 = _transformed_square(disc_matrix, kx, ky) / _EXPONENTIAL_SCALE**2
        disc = 1.0 / ((1.0 + k2) * np.sqrt(1.0 + k2))
        clumps: np.ndarray | None = None
        clump_share = 0.0
        if structure is not None:
            disc, clumps, clump_share = self._structured_disc(
                disc, disc_matrix, kx, ky, phase, (offset_x, offset_y), size, structure
            )
        else:
            disc = disc * phase
        bulge: np.ndarray | None = None
        if bulge_flux.any():
            k, value = _devaucouleurs_transform()
            radial = np.sqrt(_transformed_square(_ellipse(*bulge_shape, position_angle), kx, ky))
            bulge = np.interp(radial, k, value, right=0.0) * phase
        pixels = np.empty((len(self.psfs), size, size), np.float32)
        for band in range(len(self.psfs)):
            total = disc_flux[band] * disc
            if clumps is not None:
                share = clump_share * self.clump_boost[band]
                total = disc_flux[band] * ((1.0 - share) * disc + share * clumps)
            if bulge is not None:
                total = total + bulge_flux[band] * bulge
            pixels[band] = np.fft.irfft2(total * psf[band], s=(size, size))
        return Stamp(pixels, y0, x0)

    def _structured_disc(
        self,
        smooth: np.ndarray,
        matrix: np.ndarray,
        kx: np.ndarray,
        ky: np.ndarray,
        phase: np.ndarray,
        offset: tuple[float, float],
        size: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return transforms of a disc with arms and of its clumps.

        Both are positioned (their phase is applied) and of unit flux; the
        third value is the clumps' share of the disc's flux. Arms are a logarithmic
        spiral that modulates the exponential; clumps are points drawn from
        it.
        """
        offset_x, offset_y = offset
        inverse = np.linalg.inv(matrix)
        dx = np.arange(size) * self.pixel_scale - offset_x
        dy = (np.arange(size) * self.pixel_scale - offset_y)[:, None]
        u = inverse[0, 0] * dx + inverse[0, 1] * dy
        v = inverse[1, 0] * dx + inverse[1, 1] * dy
        r = np.sqrt(u * u + v * v)
        arms = int(rng.choice([2, 2, 3, 4]))
        pitch = math.tan(math.radians(rng.uniform(12.0, 30.0))) * rng.choice([-1.0, 1.0])
        strength = rng.uniform(0.2, 0.75)
        twist = arms * (np.arctan2(v, u) - np.log(np.maximum(r, 1e-3)) / pitch)
        twist += rng.uniform(0.0, 2 * math.pi)
        # No arms in the middle, where they would wind up below the pixels.
        window = r * r / (0.15 + r * r)
        modulation = np.exp(-_EXPONENTIAL_SCALE * r) * strength * window * np.cos(twist)
        area = abs(np.linalg.det(matrix))
        norm = _EXPONENTIAL_SCALE**2 / (2 * math.pi) * self.pixel_scale**2 / area
        disc = smooth * phase + np.fft.rfft2(modulation * norm)
        disc /= disc[0, 0].real
        count = int(rng.integers(8, 50))
        radius = rng.gamma(2.0, 1.0 / _EXPONENTIAL_SCALE, count)
        angle = rng.uniform(0.0, 2 * math.pi, count)
        where = matrix @ np.stack([radius * np.cos(angle), radius * np.sin(angle)])
        weight = rng.exponential(1.0, count)
        weight /= weight.sum()
        clumps = (np.exp(-1j * ky * (where[1] + offset_y)) * weight) @ np.exp(
            -1j * (where[0] + offset_x)[:, None] * kx
        )
        # Clumps are smooth on a twentieth of the disc's size.
        clumps = clumps * np.exp(-0.5 * 0.05**2 * area * (kx * kx + ky * ky))
        return disc, clumps, rng.uniform(0.02, 0.1)

    def _grid(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Wave numbers and PSF transforms of a stamp size, made once."""
        if size not in self._grids:
            kx = 2 * math.pi * np.fft.rfftfreq(size, self.pixel_scale)[None, :]
            ky = 2 * math.pi * np.fft.fftfreq(size, self.pixel_scale)[:, None]
            psf = np.stack([p.transform(kx, ky) for p in self.psfs])
            self._grids[size] = kx, ky, psf
        return self._grids[size]


def _ellipse(radius: float, axis_ratio: float, angle: float) -> np.ndarray:
    """Return the matrix that takes the unit circle to an ellipse."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, -s], [s, c]])
    return rotation @ np.diag([radius, radius * axis_ratio]) @ rotation.T


def _transformed_square(matrix: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Return |M k|^2 for a symmetric matrix."""
    a = matrix[0, 0] ** 2 + matrix[1, 0] ** 2
    b = matrix[0, 1] ** 2 + matrix[1, 1] ** 2
    c = 2 * (matrix[0, 0] * matrix[0, 1] + matrix[1, 0] * matrix[1, 1])
    return a * kx**2 + b * ky**2 + c * kx * ky
