# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain FITS images of one field, one per band: sky, noise, PSF, calibration.

Needs no LSST package.
"""

from __future__ import annotations

__all__ = ["FitsField", "FitsOptions", "read_field"]

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from ..images.sky import blur, estimate_fwhm, estimate_sky, find_plateau
from ..images.units import AB_ZERO_POINT
from .fits_files import BandFiles, FitsContent, FitsImageError, read_fits

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG_ZP", "ZP", "ZEROPNT", "ZPT")
# AB magnitudes of one count by unit.
_UNITS = {
    "nanomaggy": 22.5,
    "nanomaggies": 22.5,
    "nmgy": 22.5,
    "njy": AB_ZERO_POINT,
    "ujy": 23.9,
    "microjansky": 23.9,
}
# Surveys whose images are in nanomaggies but often lack BUNIT.
_NANOMAGGY_SURVEYS = ("decals", "legacysurvey", "sdss")


@dataclass(frozen=True)
class FitsOptions:
    """How to read plain images. Afw's own files say all this themselves."""

    zero_points: Mapping[str, float] | None = None
    """AB magnitude of one count by band; by default from the headers
    (MAGZERO and similar keywords, BUNIT, known surveys), else 31.4, one nJy."""

    pixel_scale: float | None = None
    """Pixel scale (arcsec) where a header has no world coordinates; 0.2 by
    default."""

    psf_fwhm: Mapping[str, float] | float | None = None
    """Full width at half maximum of the PSF (arcsec); `None` to measure it on
    stars."""

    hdu: str | int | None = None
    """Name or number of the HDU with the image; by default the first one that
    holds one, or SCI."""

    mask_bits: Mapping[str, int] | None = None
    """Which bits of a mask image become which mask plane, as a pattern of
    bits by plane; by default all are BAD."""

    saturation: Mapping[str, float] | float | None = None
    """Count at and above which pixels are saturated; by default the header's
    SATURATE, or a plateau that many pixels share."""

    common_saturation: bool = False
    """Whether a plateau in one band is the saturation of all."""

    gain: Mapping[str, float] | float | None = None
    """Electrons per count, for the Poisson noise of the sources; without it,
    the estimated variance is that of the sky alone."""

    noise: Mapping[str, float] | float | None = None
    """Standard deviation of an empty pixel (counts), for the variance; by
    default it is measured. For simulated images without noise."""

    sky: str = "auto"
    """``"subtract"``, ``"none"``, or ``"auto"``: subtract it if it is further
    than one standard deviation of a pixel from zero."""

    mesh_size: int = 128
    """Side of the cells of the sky's mesh (px)."""

    rescale: bool = False
    """Scale variances that were given to the noise that is found in the sky,
    for relative weights."""

    sky_center: tuple[float, float] = (150.0, 0.0)
    """Where to put images without world coordinates (RA, Dec, deg)."""

    def __post_init__(self) -> None:
        if self.sky not in ("auto", "subtract", "none"):
            raise FitsImageError(f"sky is {self.sky!r}; use 'auto', 'subtract' or 'none'.")
        for name in ("psf_fwhm", "gain", "noise", "zero_points", "saturation", "pixel_scale"):
            value = getattr(self, name)
            for number in value.values() if isinstance(value, Mapping) else [value]:
                good = number is None or (math.isfinite(number) and (number > 0 or name == "zero_points"))
                if not good:
                    raise FitsImageError(f"{name} is {number}; give a positive number.")

    def for_band(self, name: str, band: str) -> float | None:
        """Value of a number that may be one for all bands.

        Parameters
        ----------
        name : `str`
            Name of the option.
        band : `str`
            The band.

        Returns
        -------
        value : `float` or `None`
        """
        value = getattr(self, name)
        return value.get(band) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class PlainImage:
    """The image of one band and what is known of it."""

    pixels: FloatArray
    """Sky-subtracted image (y, x), counts; NaN where there is no data."""

    variance: FloatArray
    """Its variance (y, x), counts^2; NaN where there is no data."""

    planes: dict[str, BoolArray]
    """Pixels (y, x) by mask plane, SAT and those of the mask image."""

    nanojansky_per_count: float
    """Calibration."""

    sky_sigma: float
    """Standard deviation of an empty pixel (counts)."""

    psf_fwhm: float
    """Full width at half maximum of the PSF (arcsec)."""


@dataclass(frozen=True)
class FitsField:
    """Images of one field on one pixel grid."""

    images: dict[str, PlainImage]
    """Plain images by band."""

    exposures: dict[str, Path]
    """Files that afw wrote (ExposureF), by band."""

    bands: tuple[str, ...]
    """All bands, in the order given."""

    shape: tuple[int, int]
    """Height and width (px)."""

    wcs: WCS | None
    """World coordinates; `None` where afw wrote all files."""

    notes: list[str] = field(default_factory=list)
    """Sentences for the user: what was assumed."""

    @property
    def pixel_scale(self) -> float:
        """Pixel scale at the centre (arcsec); NaN without world coordinates."""
        if self.wcs is None:
            return math.nan
        return 3600.0 * math.sqrt(abs(float(np.linalg.det(tangent_plane(self.wcs, self.shape)[1]))))


def read_field(files: Mapping[str, BandFiles], options: FitsOptions | None = None) -> FitsField:
    """Read the images of one field with all that belongs to them.

    Parameters
    ----------
    files : `~collections.abc.Mapping` [`str`, `BandFiles`]
        Files by band. Several bands may name one file that holds a cube
        (band, y, x); its header's BANDS says which plane is which, or else
        the order of the bands.
    options : `FitsOptions`, optional
        How to read them.

    Returns
    -------
    field : `FitsField`
        The images; of files that afw wrote, the paths.

    Raises
    ------
    FitsImageError
        Raised if a file is missing or damaged, or if the images do not fit
        each other.

    Notes
    -----
    A variance that is not given is the square of the noise in the sky, see
    `~lsst.meas.maskrcnn.images.sky.estimate_sky`, and with a gain the
    Poisson noise of the sources is added.
    """
    if not files:
        raise FitsImageError("No images were given; give at least one band.")
    options = options if options is not None else FitsOptions()
    notes: list[str] = []
    paths = [entry.image for entry in files.values()]
    contents = {
        band: read_fits(entry.image, options.hdu, band, tuple(files) if paths.count(entry.image) > 1 else ())
        for band, entry in files.items()
    }
    shapes = {content.path.name: content.pixels.shape for content in contents.values()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} is {shape[1]} x {shape[0]}" for name, shape in shapes.items())
        raise FitsImageError(
            f"The images must be on one pixel grid, but {listed}; resample them to one grid."
        )
    plain = {band: content for band, content in contents.items() if not content.is_exposure}
    exposures = {band: content.path for band, content in contents.items() if content.is_exposure}
    if options.common_saturation and options.saturation is None:
        unknown = [content for content in plain.values() if "SATURATE" not in content.header]
        levels = [find_plateau(content.pixels) for content in unknown]
        highest = max((level for level in levels if level is not None), default=None)
        if highest is not None:
            notes.append(f"Many pixels have {highest:g} counts exactly: this is taken for saturation.")
            options = dataclasses.replace(options, saturation=highest)
    height, width = next(iter(shapes.values()))
    # One WCS for all: the images are on one grid by definition.
    wcs = _read_wcs(next(iter(plain.values())), options, notes) if plain else None
    result = FitsField({}, exposures, tuple(files), (height, width), wcs, notes)
    for band, content in plain.items():
        result.images[band] = _read_band(band, files[band], content, options, result.pixel_scale, notes)
    return result


def _read_band(
    band: str, files: BandFiles, content: FitsContent, options: FitsOptions, scale: float, notes: list[str]
) -> PlainImage:
    """Calibrate one image; notes get what had to be assumed."""
    name = content.path.name

    def note(text: str) -> None:
        notes.append(f"{name}: {text}")

    variance, flags = content.variance(files), content.flags(files)
    finite = np.isfinite(content.pixels)
    if variance is not None:
        finite &= variance > 0.0
    if not finite.any():
        raise FitsImageError(f"{name} has no pixel with a finite value; give an image of the sky.")
    level = _saturation_level(content, options.for_band("saturation", band), note)
    saturated = finite & (content.pixels >= level) if level is not None else np.zeros(finite.shape, bool)
    good = finite & ~saturated & (flags == 0)
    if np.count_nonzero(good) < 0.1 * np.count_nonzero(finite):
        good = finite
    pixels, sigma, sources = _subtract_sky(
        content.pixels, good, options, options.for_band("noise", band), note
    )
    if variance is None:
        text = "Variance is estimated from the pixel noise."
        notes += [text] if text not in notes else []
        gain = options.for_band("gain", band)
        variance = np.full(finite.shape, sigma**2)
        if gain is not None:
            variance += _source_light(pixels, finite, sources | ~good, sigma) / gain
    else:
        variance = _check_variance(variance, good, sigma, options.rescale, note)
    fwhm = options.for_band("psf_fwhm", band)
    if fwhm is None:
        found = estimate_fwhm(pixels, good, sigma)
        fwhm = found[0] * scale if found is not None else 1.0
        words = f"from {found[1]} stars" if found is not None else "a guess, for want of stars"
        note(f"PSF of {fwhm:.2f} arcsec ({words}).")
    planes = {"SAT": saturated}
    if options.mask_bits is None:
        planes["BAD"] = flags != 0
    for plane, pattern in (options.mask_bits or {}).items():
        planes[plane] = planes.get(plane, np.zeros(finite.shape, bool)) | (flags & pattern != 0)
    zero_point = (options.zero_points or {}).get(band)
    if zero_point is None:
        zero_point = _find_zero_point(content.header, note)
    return PlainImage(
        np.where(finite, pixels, np.nan),
        np.where(finite, variance, np.nan),
        planes,
        10.0 ** (-0.4 * (zero_point - AB_ZERO_POINT)),
        sigma,
        fwhm,
    )


def _source_light(pixels: FloatArray, finite: BoolArray, sources: BoolArray, sigma: float) -> FloatArray:
    """Light of the sources in noisy pixels, at least 0.

    Faint light is smoothed: the positive half of the noise is no light.
    """
    filled = np.where(finite, pixels, 0.0)
    faint = np.clip(blur(filled, 2.0), 0.0, 4.0 * sigma)
    return np.where(sources & finite, np.where(filled > 4.0 * sigma, filled, faint), 0.0)


def _saturation_level(content: FitsContent, given: float | None, note: Callable[[str], None]) -> float | None:
    """Count at which pixels are saturated, if any is known."""
    if given is not None:
        return given
    level = content.header.get("SATURATE")
    if isinstance(level, int | float) and math.isfinite(level) and level > 0:
        return float(level)
    level = find_plateau(content.pixels)
    if level is not None:
        note(f"many pixels have {level:g} counts exactly and are taken for saturated.")
    return level


def _subtract_sky(
    pixels: FloatArray,
    good: BoolArray,
    options: FitsOptions,
    noise: float | None,
    note: Callable[[str], None],
) -> tuple[FloatArray, float, BoolArray]:
    """Subtract the sky, if there is one, and estimate the noise.

    Returns the image, the noise of an empty pixel (above 0), and where the sources are.
    """
    values = np.where(good, pixels, 0.0)
    estimate = estimate_sky(values, good, mesh_size=options.mesh_size, subtracted=options.sky == "none")
    sigma = estimate.sigma
    level = float(np.median(estimate.level))
    scatter = float(np.std(values[good]))
    # Without noise, the medians of counted photons are still blurred a little.
    if options.sky == "subtract" or (options.sky == "auto" and abs(level) > max(sigma, 1e-2 * scatter)):
        pixels = pixels - estimate.level
        note(f"a sky of {level:.4g} counts was subtracted.")
    if noise is not None:
        sigma = noise
    elif not sigma > 0.0:
        sigma = max(1e-3 * scatter, 1e-6 * max(abs(level), 1.0))
        note(f"no noise is found in the sky; {sigma:.3g} counts are put; --noise sets them.")
    elif estimate.correlation > 0.2:
        note(
            f"the noise of neighbouring pixels is correlated ({estimate.correlation:.2f}), "
            "as in stacked or resampled images; the variance is that of single pixels."
        )
    return pixels, sigma, estimate.sources


def _check_variance(
    variance: FloatArray, good: BoolArray, sigma: float, rescale: bool, note: Callable[[str], None]
) -> FloatArray:
    """Compare a given variance with the noise in the sky."""
    ratio = sigma**2 / float(np.median(variance[good]))
    if rescale:
        note(f"its variance was multiplied by {ratio:.3g} to fit the noise in the sky.")
        return variance * ratio
    if not 0.25 < ratio < 4.0:
        note(
            f"the variance given is {1.0 / ratio:.2g} times the one found in the sky; "
            "--rescale makes them agree."
        )
    return variance


def _find_zero_point(header: fits.Header, note: Callable[[str], None]) -> float:
    """AB magnitude of one count."""
    for key in _ZERO_POINT_KEYS:
        value = header.get(key)
        if isinstance(value, int | float) and np.isfinite(value) and value > 0:
            return float(value)
    unit = str(header.get("BUNIT", "")).strip().lower()
    if unit in _UNITS:
        return _UNITS[unit]
    survey = str(header.get("SURVEY", "")).strip().lower()
    if survey.startswith(_NANOMAGGY_SURVEYS):
        note(f"zero point 22.5 (nanomaggies), as survey {header['SURVEY']} has it.")
        return 22.5
    note("no zero point in the header, one count is taken for one nJy; --zeropoint sets it.")
    return AB_ZERO_POINT


def _read_wcs(content: FitsContent, options: FitsOptions, notes: list[str]) -> WCS:
    """World coordinates of an image; made up if its header has none."""
    header, name = content.header, content.path.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header, naxis=2) if header.get("CTYPE1") else None
    if wcs is None or not wcs.has_celestial:
        scale = options.pixel_scale if options.pixel_scale is not None else 0.2
        ra, dec = options.sky_center
        notes.append(
            f"{name}: no world coordinates in the header; made up are RA {ra:g}, Dec {dec:g} at the centre "
            f"and {scale:g} arcsec per pixel."
        )
        height, width = content.pixels.shape
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crpix = [0.5 * (width + 1), 0.5 * (height + 1)]
        wcs.wcs.crval = [ra, dec]
        wcs.wcs.cd = [[-scale / 3600.0, 0.0], [0.0, scale / 3600.0]]
    elif not np.isfinite(tangent_plane(wcs, content.pixels.shape)[1]).all():
        raise FitsImageError(
            f"The world coordinates of {name} are not usable; give a header that has them right."
        )
    return wcs


def tangent_plane(wcs: WCS, shape: tuple[int, ...]) -> tuple[tuple[float, float], FloatArray]:
    """Find the tangent plane that touches an image of a shape (y, x) at its centre.

    Returns right ascension and declination there (deg), and the matrix that takes
    offsets (x, y), px, to offsets to the east and north, deg.
    """
    step = 10.0
    x, y = 0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1)
    sky = wcs.pixel_to_world(np.array([x, x + step, x]), np.array([y, y, y + step])).icrs
    offsets = [sky[0].spherical_offsets_to(sky[k]) for k in (1, 2)]
    matrix = np.array([[o[0].deg for o in offsets], [o[1].deg for o in offsets]]) / step
    return (float(sky[0].ra.deg), float(sky[0].dec.deg)), matrix
