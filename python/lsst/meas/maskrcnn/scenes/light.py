# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Noise-free images of single stars and galaxies in several bands at once.

Stars are the PSF evaluated in real space. Galaxies are built in Fourier space
from radial profiles that are tabulated once per process: the geometry is
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

from ..images.units import FWHM_PER_SIGMA

_STAMP_SIZES = np.array([32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536])
# Where profiles of an index above 2 fade out, in half-light radii of the endless profile: beyond,
# real galaxies lack the light that a Sersic law would still predict.
_TRUNCATION = (4.5, 9.5)
_EXPONENTIAL_SCALE = 1.6783469900166605  # half-light radius / scale length
_INDEX_STEP = 0.1
_LOG_STEP = 0.009
_LOG_R = _LOG_STEP * np.arange(-2048, 2048)  # 1e-8 to 1e8


@dataclass(frozen=True)
class _SersicProfile:
    """Numbers of a Sersic profile that may fade out, and its transform.

    The endless profile is exp(-scale * ((r / endless) ** (1 / index) - 1))
    with ``endless`` its half-light radius in units of that of the faded one,
    and ``flux`` the flux of the faded one in units of endless^2.
    """

    index: float
    scale: float
    endless: float
    flux: float
    k: np.ndarray
    value: np.ndarray

    def transform(self, k2: np.ndarray) -> np.ndarray:
        """Fourier transform of unit flux and half-light radius."""
        if self.index == 1.0:
            k2 = k2 / _EXPONENTIAL_SCALE**2
            return 1.0 / ((1.0 + k2) * np.sqrt(1.0 + k2))
        return np.interp(np.sqrt(k2), self.k, self.value, right=0.0)


def _sersic(index: float) -> _SersicProfile:
    return _tabulate_sersic(round(index / _INDEX_STEP))


@functools.cache
def _tabulate_sersic(step: int) -> _SersicProfile:
    """Tabulate the profile of an index given in units of the grid's step."""
    index = round(step * _INDEX_STEP, 6)
    if not 0.5 <= index <= 6.0:
        raise ValueError(f"A Sersic index is {index}; it must lie in [0.5, 6].")
    r = np.exp(_LOG_R)
    # Ciotti & Bertin 1999, A&A 352, 447
    scale = 2 * index - 1 / 3 + 4 / (405 * index) + 46 / (25515 * index**2) + 131 / (1148175 * index**3)
    brightness = np.exp(-scale * (r ** (1.0 / index) - 1.0))
    if index > 2.0:
        # One sharp edge would show on the sky as a rim.
        low, high = _TRUNCATION
        brightness *= np.clip((high - r) / (high - low), 0.0, 1.0)
    ring = 2 * math.pi * brightness * r * r * _LOG_STEP
    flux = float(ring.sum())
    half_light = float(np.exp(np.interp(0.5 * flux, np.cumsum(ring) - 0.5 * ring, _LOG_R)))
    k, value = _radial_transform(brightness / flux)
    used = (k > 1e-3) & (k < 500.0)
    return _SersicProfile(
        index=index,
        scale=scale,
        endless=1.0 / half_light,
        flux=flux,
        k=np.concatenate([[0.0], k[used] * half_light]),
        value=np.concatenate([[1.0], value[used]]),
    )


def _radial_transform(brightness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fourier transform of a round image that is given at exp(_LOG_R).

    It is a Hankel transform of order 0 between logarithmic grids (FFTLog,
    Hamilton 2000, MNRAS 312, 257, without bias and with k r = 1 in the middle).
    """
    r = np.exp(_LOG_R)
    transform = np.fft.irfft(np.fft.rfft(brightness * r) * _hankel_kernel(), r.size)[::-1]
    return 1.0 / r[::-1], 2 * math.pi * transform * r[::-1]


@functools.lru_cache(maxsize=1)
def _hankel_kernel() -> np.ndarray:
    y = math.pi / (_LOG_R.size * _LOG_STEP) * np.arange(_LOG_R.size // 2 + 1)
    # The phase of Gamma(1/2 + iy), by recurrence and Stirling's series.
    z = 0.5 + 1j * y
    far = z + 8
    log_gamma = (far - 0.5) * np.log(far) - far + 1 / (12 * far) - 1 / (360 * far**3)
    log_gamma -= np.log(z[:, None] + np.arange(8)).sum(axis=1)
    kernel = np.exp(2j * (log_gamma.imag + math.log(2.0) * y))
    kernel[-1] = kernel[-1].real
    return kernel


@functools.lru_cache(maxsize=64)
def _psf_transform(profile: str, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Fourier transform of a PSF of unit FWHM."""
    if profile == "moffat":
        k, value = _radial_transform(BandPsf(1.0, "moffat", beta).surface_brightness(np.exp(_LOG_R)))
        used = (k > 3e-3) & (k < 40.0)
        return np.concatenate([[0.0], k[used]]), np.concatenate([[1.0], value[used]])
    source = galsim.Kolmogorov(fwhm=1.0)
    k = np.concatenate([[0.0], np.geomspace(0.02, 40.0, 400)])
    return k, np.array([source.kValue(value, 0.0).real for value in k])


@functools.lru_cache(maxsize=1)
def _kolmogorov_profile() -> tuple[np.ndarray, np.ndarray]:
    """Surface brightness of a Kolmogorov PSF of unit FWHM."""
    source = galsim.Kolmogorov(fwhm=1.0)
    r = np.concatenate([[0.0], np.geomspace(0.01, 40.0, 1500)])
    return r, np.array([source.xValue(value, 0.0) for value in r])


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

    def moments_fwhm(self, pixel_scale: float) -> float:
        """Return the FWHM of the Gaussian with the PSF's adaptive moments, px.

        That is what ``computeShape`` of an afw PSF leads to; wings make it
        wider than the FWHM of the PSF, by 5 to 15 per cent.

        Parameters
        ----------
        pixel_scale : `float`
            Pixel size, arcsec.
        """
        size = 2 * math.ceil(4.0 * self.fwhm / pixel_scale) + 1
        image = galsim.Image(self.image(size, pixel_scale), scale=1.0)
        return FWHM_PER_SIGMA * galsim.hsm.FindAdaptiveMom(image).moments_sigma

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
        How much more of a structured disc's flux is in its young stars, by
        band; they are blue. Its square is how much more dust dims.
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
        disc_sersic: np.ndarray | float = 1.0,
        bulge_sersic: np.ndarray | float = 4.0,
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
        disc_sersic, bulge_sersic : `numpy.ndarray`, (N,), or `float`
            Sersic indices, from 0.5 to 6.

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
        disc = _brightness(half, disc_sersic, disc_radius, disc_axis_ratio)
        bulge = _brightness(half, bulge_sersic, bulge_radius, bulge_axis_ratio)
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
        disc_sersic: float = 1.0,
        bulge_sersic: float = 4.0,
        irregular: bool = False,
    ) -> Stamp:
        """Draw a galaxy of a disc and a bulge, both Sersic profiles.

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
            Draw structure into the disc, by this generator.
        disc_sersic, bulge_sersic : `float`
            Sersic indices, from 0.5 to 6; rounded to 0.1. Profiles of an
            index above 2 fade out between 4.5 and 9.5 half-light radii, and
            the radius given holds half of the light that is left.
        irregular : `bool`
            With ``structure``: a lopsided disc with clumps, in place of arms,
            bar and dust lane.
        """
        x0, y0 = round(x) - size // 2, round(y) - size // 2
        kx, ky, psf = self._grid(size)
        offset_x, offset_y = (x - x0) * self.pixel_scale, (y - y0) * self.pixel_scale
        phase = np.exp(-1j * offset_y * ky) * np.exp(-1j * offset_x * kx)

        disc_matrix = _ellipse(*disc_shape, position_angle)
        profile = _sersic(disc_sersic)
        disc = profile.transform(_transformed_square(disc_matrix, kx, ky)) * phase
        parts: _Structure | None = None
        if structure is not None:
            plane = _Plane.of_stamp(
                size, self.pixel_scale, (offset_x, offset_y), disc_matrix, position_angle, profile, disc_shape
            )
            if irregular:
                parts = _irregular(disc, plane, kx, ky, structure)
            elif disc_shape[1] < 0.35:
                resolved = disc_shape[0] * disc_shape[1] > self.psfs[0].fwhm
                parts = _edge_on(disc, plane, kx, ky, structure, lane=resolved)
            else:
                parts = _spiral(disc, plane, kx, ky, structure)
        bulge: np.ndarray | None = None
        if bulge_flux.any():
            k2 = _transformed_square(_ellipse(*bulge_shape, position_angle), kx, ky)
            bulge = _sersic(bulge_sersic).transform(k2) * phase
        pixels = np.empty((len(self.psfs), size, size), np.float32)
        for band in range(len(self.psfs)):
            total = disc_flux[band] * (disc if parts is None else parts.mix(self.clump_boost[band]))
            if bulge is not None:
                total = total + bulge_flux[band] * bulge
            pixels[band] = np.fft.irfft2(total * psf[band], s=(size, size))
        return Stamp(pixels, y0, x0)

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


def _brightness(
    radius: np.ndarray,
    index: np.ndarray | float,
    half_light: np.ndarray,
    axis_ratio: np.ndarray,
) -> np.ndarray:
    """Return brightness (N, radius) of profiles of unit flux, 1/arcsec^2."""
    steps, inverse = np.unique(np.round(np.asarray(index) / _INDEX_STEP).astype(int), return_inverse=True)
    profiles = [_tabulate_sersic(int(step)) for step in steps]
    numbers = np.array([(p.index, p.scale, p.endless, p.flux) for p in profiles]).reshape(-1, 4)
    n, scale, endless, flux = numbers[inverse.reshape(-1)].T[:, :, None]
    unit = endless * half_light[:, None]
    u = radius / unit
    low, high = _TRUNCATION
    fading = np.where(n > 2.0, np.clip((high - u) / (high - low), 0.0, 1.0), 1.0)
    value = fading * np.exp(-scale * (u ** (1.0 / n) - 1.0)) / (flux * unit**2)
    return value / axis_ratio[:, None]


@dataclass(frozen=True)
class _Plane:
    """A disc's own coordinates at the pixels of a stamp.

    ``u`` and ``v`` run along its major and minor axis in units of its
    half-light radius; ``profile`` is the smooth disc's flux in each pixel, as
    a share. ``matrix`` takes them to the sky (arcsec), ``centre`` is the place
    of the disc in the stamp (arcsec).
    """

    u: np.ndarray
    v: np.ndarray
    r: np.ndarray
    profile: np.ndarray
    matrix: np.ndarray
    centre: np.ndarray
    pixel: float

    @classmethod
    def of_stamp(
        cls,
        size: int,
        pixel_scale: float,
        centre: tuple[float, float],
        ellipse: np.ndarray,
        angle: float,
        profile: _SersicProfile,
        shape: tuple[float, float],
    ) -> _Plane:
        c, s = math.cos(angle), math.sin(angle)
        matrix = ellipse @ np.array([[c, -s], [s, c]])
        inverse = np.linalg.inv(matrix)
        dx = np.arange(size) * pixel_scale - centre[0]
        dy = (np.arange(size) * pixel_scale - centre[1])[:, None]
        u = inverse[0, 0] * dx + inverse[0, 1] * dy
        v = inverse[1, 0] * dx + inverse[1, 1] * dy
        r = np.sqrt(u * u + v * v)
        # The pixel size as seen in the disc, along the mean of its axes.
        pixel = pixel_scale / (shape[0] * math.sqrt(shape[1]))
        exponent = -profile.scale * ((r / profile.endless) ** (1.0 / profile.index) - 1.0)
        light = np.exp(exponent) * (pixel / profile.endless) ** 2 / profile.flux
        return cls(u, v, r, light, matrix, np.array(centre), pixel)


@dataclass
class _Structure:
    """Transforms of the parts of a structured disc, each of unit flux.

    Parameters
    ----------
    old, young : `numpy.ndarray`
        Old stars, and young ones with their clumps.
    share : `float`
        Share of the young part in the flux where the boost of a band is 1.
    lane : `numpy.ndarray`, optional
        Old light behind dust; its flux is the share of the old part's.
    depth : `float`
        How much of that the dust takes where the boost is 1.
    """

    old: np.ndarray
    young: np.ndarray
    share: float
    lane: np.ndarray | None = None
    depth: float = 0.0

    def mix(self, boost: float) -> np.ndarray:
        """Return the transform of the disc in a band."""
        old = self.old
        if self.lane is not None:
            # Dust dims blue light more, and young stars are blue.
            depth = min(self.depth * boost * boost, 0.75)
            old = old - depth * self.lane
            old = old / old[0, 0].real
        share = min(self.share * boost, 0.9)
        return (1.0 - share) * old + share * self.young


def _spiral(
    disc: np.ndarray, plane: _Plane, kx: np.ndarray, ky: np.ndarray, rng: np.random.Generator
) -> _Structure:
    """Logarithmic arms with young stars and clumps, often a bar."""
    arms = int(rng.choice([2, 2, 2, 3, 4]))
    pitch = math.tan(math.radians(rng.uniform(12.0, 30.0))) * rng.choice([-1.0, 1.0])
    turn = rng.uniform(0.0, 2 * math.pi)
    wiggle = rng.uniform(0.0, 0.9, 2)
    phases = rng.uniform(0.0, 2 * math.pi, 4)
    angle = np.arctan2(plane.v, plane.u)
    r = plane.r
    twist = arms * (angle - np.log(np.maximum(r, 1e-3)) / pitch) + turn
    # Arms of real galaxies waver, branch and break off.
    twist += wiggle[0] * np.sin(angle + 2.5 * r + phases[0]) + wiggle[1] * np.sin(
        3.0 * angle - 3.0 * r + phases[1]
    )
    # None in the middle, nor where they would wind up below the pixels.
    width = 2 * math.pi * r * abs(pitch) / (arms * plane.pixel)
    window = r * r / (0.12 + r * r) * width**2 / (9.0 + width**2)
    strength = rng.uniform(0.1, 0.4)
    lopsided = rng.uniform(0.0, 0.2) * np.minimum(r, 1.0) * np.cos(angle - phases[2])
    old = disc + np.fft.rfft2(plane.profile * (strength * window * np.cos(twist) + lopsided))
    old /= old[0, 0].real
    if rng.random() < 0.4:
        length = rng.uniform(0.25, 0.55)
        around = rng.uniform(0.0, math.pi)
        bar = plane.matrix @ _ellipse(length, rng.uniform(0.25, 0.45), around)
        share = rng.uniform(0.05, 0.2)
        position = np.exp(-1j * plane.centre[1] * ky) * np.exp(-1j * plane.centre[0] * kx)
        old = (1.0 - share) * old + share * np.exp(-0.5 * _transformed_square(bar.T, kx, ky)) * position
    narrow = rng.uniform(0.5, 2.5)
    uneven = 1.0 + rng.uniform(0.2, 0.7) * np.sin(2.0 * angle + 1.5 * r + phases[3])
    arm_light = plane.profile * window * np.exp(narrow * np.cos(twist)) * uneven * (r + 0.3)
    young = np.fft.rfft2(arm_light)
    young /= young[0, 0].real
    count = int(rng.integers(10, 50))
    radius = rng.gamma(3.0, 0.6 / _EXPONENTIAL_SCALE, count)
    which = 2 * math.pi * rng.integers(0, arms, count)
    theta = (which - turn) / arms + np.log(np.maximum(radius, 0.05)) / pitch
    theta += rng.normal(0.0, 0.35, count)
    clumps = _clumps(plane, radius, theta, rng.uniform(0.02, 0.06, count), kx, ky, rng)
    clumpy = rng.uniform(0.05, 0.3)
    return _Structure(old, (1.0 - clumpy) * young + clumpy * clumps, rng.uniform(0.15, 0.5))


def _edge_on(
    disc: np.ndarray, plane: _Plane, kx: np.ndarray, ky: np.ndarray, rng: np.random.Generator, lane: bool
) -> _Structure:
    """Clumps in a disc that is seen from the side, and a dust lane."""
    lopsided = rng.uniform(0.0, 0.25) * np.tanh(plane.u * rng.choice([-1.0, 1.0]))
    old = disc + np.fft.rfft2(plane.profile * lopsided * np.minimum(plane.r, 1.0))
    old /= old[0, 0].real
    count = int(rng.integers(6, 30))
    radius, theta = rng.gamma(2.0, 1.0 / _EXPONENTIAL_SCALE, count), rng.uniform(0.0, 2 * math.pi, count)
    young = 0.6 * disc + 0.4 * _clumps(plane, radius, theta, rng.uniform(0.02, 0.08, count), kx, ky, rng)
    structure = _Structure(old, young, rng.uniform(0.05, 0.4))
    if lane and rng.random() < 0.6:
        height = rng.uniform(-0.25, 0.25)
        shade = np.exp(-0.5 * ((plane.v - height) / rng.uniform(0.12, 0.25)) ** 2)
        structure.lane = np.fft.rfft2(plane.profile * shade * np.exp(-0.5 * (plane.u / 1.3) ** 4))
        structure.depth = rng.uniform(0.2, 0.5)
    return structure


def _irregular(
    disc: np.ndarray, plane: _Plane, kx: np.ndarray, ky: np.ndarray, rng: np.random.Generator
) -> _Structure:
    """Star formation here and there in a lopsided disc."""
    angle = rng.uniform(0.0, 2 * math.pi)
    along = (plane.u * math.cos(angle) + plane.v * math.sin(angle)) / np.sqrt(1.0 + plane.r**2)
    old = disc + np.fft.rfft2(plane.profile * rng.uniform(0.2, 0.7) * along)
    old /= old[0, 0].real
    count = int(rng.integers(12, 60))
    radius, theta = rng.gamma(2.5, 0.5 / _EXPONENTIAL_SCALE, count), rng.uniform(0.0, 2 * math.pi, count)
    # Its young stars are to one side of the old.
    where = np.stack([radius * np.cos(theta), radius * np.sin(theta)])
    where += rng.uniform(0.0, 0.4) * np.array([[math.cos(angle)], [math.sin(angle)]])
    radius, theta = np.hypot(where[0], where[1]), np.arctan2(where[1], where[0])
    clumps = _clumps(plane, radius, theta, np.exp(rng.uniform(-3.5, -1.8, count)), kx, ky, rng)
    clumpy = rng.uniform(0.2, 0.6)
    return _Structure(old, (1.0 - clumpy) * old + clumpy * clumps, rng.uniform(0.25, 0.6))


def _clumps(
    plane: _Plane,
    radius: np.ndarray,
    angle: np.ndarray,
    sigma: np.ndarray,
    kx: np.ndarray,
    ky: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the transform of round Gaussians at places in the disc.

    Their ``sigma`` is in units of the disc's (mean) half-light radius.
    """
    where = plane.matrix @ np.stack([radius * np.cos(angle), radius * np.sin(angle)]) + plane.centre[:, None]
    weight = rng.exponential(1.0, radius.size) * (sigma / sigma.max())
    weight /= weight.sum()
    spread = 0.5 * sigma**2 * abs(np.linalg.det(plane.matrix))
    columns = np.exp(-ky * (1j * where[1] + ky * spread)) * weight
    rows = np.exp(-kx.T * (1j * where[0] + kx.T * spread))
    return columns @ rows.T
