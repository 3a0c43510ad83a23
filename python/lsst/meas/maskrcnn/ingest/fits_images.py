# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain FITS images, one per band, as calibrated exposures."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales

from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF
from lsst.daf.base import PropertyList
from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.pex.exceptions import Exception as PexError

from ..images.sky import blur, estimate_fwhm, estimate_sky, find_plateau
from ..images.units import AB_ZERO_POINT
from .repo import gaussian_psf, make_exposure

__all__ = [
    "FITS_SUFFIXES",
    "BandFiles",
    "FitsImageError",
    "FitsImages",
    "FitsOptions",
    "find_fits",
    "read_field",
    "read_fits_images",
]

_BAND_KEYS = ("BAND", "BANDS", "BAND0", "FILTER", "FILTNAM", "FILTNAME")
_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG_ZP", "ZP", "ZEROPNT", "ZPT")
_BANDS = ("u", "g", "r", "i", "z", "y")

FITS_SUFFIXES = ("", ".gz", ".fz")
"""What may follow the name of a FITS file: nothing, or that it is compressed (`tuple` [`str`])."""

# Magnitudes of one count by unit: AB is 31.4 for one nJy.
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
# Extensions beside the image, by what they usually are called.
_COMPANIONS = {
    "variance": ("VAR", "VARIANCE"),
    "rms": ("ERR", "RMS", "SIGMA", "UNCERT", "STDDEV"),
    "weight": ("WHT", "WEIGHT", "IVAR", "INVVAR"),
    "mask": ("DQ", "MASK", "FLAGS"),
}
_IMAGE_NAMES = ("SCI", "IMAGE", "SCIENCE", "DATA")
_READ_ERRORS = (OSError, ValueError, TypeError, EOFError, IndexError, KeyError, zlib.error, PexError)


class FitsImageError(ValueError):
    """FITS images cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class FitsImages:
    """Exposures of one field, and what had to be assumed about them."""

    exposures: dict[str, ExposureF]
    """By band, in the order of the files."""

    notes: list[str] = field(default_factory=list)
    """Sentences for the user: what was assumed."""

    sky_sigma: dict[str, float] = field(default_factory=dict)
    """Noise of an empty pixel by band (counts), where it was estimated."""

    psf_fwhm: dict[str, float] = field(default_factory=dict)
    """Full width at half maximum of the PSF by band (arcsec), for plain
    images."""


@dataclass(frozen=True)
class BandFiles:
    """The files of one band; at most one of variance, weight and RMS."""

    image: Path
    """The image."""

    variance: Path | None = None
    """Variance of the pixels (counts^2)."""

    weight: Path | None = None
    """Inverse variance (counts^-2); 0 where there is no data."""

    rms: Path | None = None
    """Standard deviation of the pixels (counts)."""

    mask: Path | None = None
    """Integers; what they mean is `FitsOptions.mask_bits`."""

    def __post_init__(self) -> None:
        given = [name for name in ("variance", "weight", "rms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise FitsImageError(
                f"{self.image.name}: {' and '.join(given)} were given; give one of variance, weight and RMS."
            )


@dataclass(frozen=True)
class FitsOptions:
    """How to read plain images. Afw's own files say all this themselves."""

    zero_points: Mapping[str, float] | None = None
    """AB magnitude of one count by band; by default from the headers."""

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

    assign_bands: bool = False
    """Whether a header's word about the band wins over the given one."""

    def __post_init__(self) -> None:
        if self.sky not in ("auto", "subtract", "none"):
            raise FitsImageError(f"sky is {self.sky!r}; use 'auto', 'subtract' or 'none'.")
        for name in ("psf_fwhm", "gain", "noise", "zero_points", "saturation", "pixel_scale"):
            value = getattr(self, name)
            for number in value.values() if isinstance(value, Mapping) else [value]:
                good = number is None or (math.isfinite(number) and (number > 0 or name == "zero_points"))
                if not good:
                    raise FitsImageError(f"{name} is {number}; give a positive number.")


@dataclass(frozen=True)
class _Content:
    """What a file holds."""

    pixels: np.ndarray
    header: fits.Header
    whole: ExposureF | None = None
    companions: dict[str, np.ndarray] = field(default_factory=dict)


def find_fits(path: Path) -> Path | None:
    """Find a FITS file that may be compressed.

    Parameters
    ----------
    path : `pathlib.Path`
        Its name without the suffix of a compressed file.

    Returns
    -------
    found : `pathlib.Path` or `None`
        The first of `FITS_SUFFIXES` with which there is a file.
    """
    paths = [Path(f"{path}{suffix}") for suffix in FITS_SUFFIXES]
    return next((found for found in paths if found.is_file()), None)


def read_fits_images(
    paths: Sequence[str | os.PathLike[str]],
    bands: Sequence[str] = ("g", "r", "z"),
    *,
    zero_points: Sequence[float] | None = None,
    pixel_scale: float | None = None,
    psf_fwhm: float = 1.0,
) -> FitsImages:
    """Read images of one field, one per band.

    Parameters
    ----------
    paths : `~collections.abc.Sequence` [`str` or `os.PathLike`]
        Files. The first HDU with a two-dimensional image is read; files that
        afw wrote (ExposureF) are read whole.
    bands : `~collections.abc.Sequence` [`str`]
        Bands in the order of the files. A header that names another of these
        bands wins, with a note.
    zero_points : `~collections.abc.Sequence` [`float`], optional
        AB magnitude of one count per second or whatever the images count,
        one per file or one for all; by default from the headers (MAGZERO and
        similar keywords, BUNIT, known surveys), else 31.4, one nJy.
    pixel_scale : `float`, optional
        Pixel scale (arcsec) where a header has no world coordinates; 0.2 by
        default.
    psf_fwhm : `float`
        Full width at half maximum of the PSF (arcsec), for plain images.

    Returns
    -------
    images : `FitsImages`
        Exposures with WCS, PhotoCalib, variance, FilterLabel and PSF. Pixels
        that are not finite have mask plane NO_DATA. The sky is subtracted
        where it is far from zero.

    Raises
    ------
    FitsImageError
        Raised if a file is missing or holds no image, if shapes differ, if a
        band comes twice, or if the numbers of files, bands and zero points
        do not fit.
    """
    if len(paths) != len(bands):
        raise FitsImageError(
            f"{len(paths)} images were given, {len(bands)} are wanted, one for each of the bands "
            f"{', '.join(bands)}; name one file per band."
        )
    if zero_points is not None and len(zero_points) not in (1, len(paths)):
        raise FitsImageError(
            f"{len(zero_points)} zero points were given for {len(paths)} images; give one, or one each."
        )
    files = [(band, BandFiles(Path(path))) for band, path in zip(bands, paths)]
    options = FitsOptions(pixel_scale=pixel_scale, psf_fwhm=psf_fwhm, assign_bands=True)
    by_file = None
    if zero_points is not None:
        by_file = [zero_points[index % len(zero_points)] for index in range(len(paths))]
    return _read_field(files, options, by_file)


def read_field(files: Mapping[str, BandFiles], options: FitsOptions | None = None) -> FitsImages:
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
    images : `FitsImages`
        Exposures with WCS, PhotoCalib, variance, FilterLabel, PSF and mask
        planes NO_DATA (not finite, or without weight), SAT and those of the
        mask images.

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
    return _read_field(list(files.items()), options if options is not None else FitsOptions(), None)


def _read_field(
    files: Sequence[tuple[str, BandFiles]], options: FitsOptions, by_file: Sequence[float] | None
) -> FitsImages:
    """Read images; zero points may be by file instead of by band."""
    notes: list[str] = []
    bands = [band for band, _ in files]
    paths = [entry.image for _, entry in files]
    shared = [path for path in paths if paths.count(path) > 1]
    contents = [
        _read(path, options.hdu, (band, bands if path in shared else ())) for path, band in zip(paths, bands)
    ]
    headers = [content.header for content in contents]
    names = bands
    if options.assign_bands:
        names = _assign_bands(paths, headers, bands, notes)
    shapes = {path.name: content.pixels.shape for path, content in zip(paths, contents)}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} is {shape[1]} x {shape[0]}" for name, shape in shapes.items())
        raise FitsImageError(
            f"The images must be on one pixel grid, but {listed}; resample them to one grid."
        )

    if options.common_saturation and options.saturation is None:
        levels = [find_plateau(content.pixels) for content in contents if "SATURATE" not in content.header]
        highest = max((level for level in levels if level is not None), default=None)
        if highest is not None:
            notes.append(f"Many pixels have {highest:g} counts exactly: this is taken for saturation.")
            options = dataclasses.replace(options, saturation=highest)

    wcs: SkyWcs | None = None
    images = FitsImages({}, notes)
    guessed: list[str] = []
    for index, ((_, entry), band, content) in enumerate(zip(files, names, contents)):
        name = entry.image.name
        if content.whole is not None:
            images.exposures[band] = content.whole
            wcs = content.whole.getWcs()
            continue
        if wcs is None:
            # One WCS for all: the images are on one grid by definition.
            wcs = _make_wcs(content.header, content.pixels.shape, options, name, notes)
        zero_point = by_file[index] if by_file is not None else (options.zero_points or {}).get(band)
        if zero_point is None:
            zero_point = _find_zero_point(content.header, name, notes)
        _add_plain(images, band, entry, content, options, wcs, zero_point, guessed)
    if guessed:
        both = "Variance is estimated from the pixel noise"
        # The demonstration says this in one line.
        notes.append(f"{both}, and the PSF is a guess." if options.assign_bands else f"{both}.")
    return images


def _add_plain(
    images: FitsImages,
    band: str,
    entry: BandFiles,
    content: _Content,
    options: FitsOptions,
    wcs: SkyWcs,
    zero_point: float,
    guessed: list[str],
) -> None:
    """Make the exposure of a plain image."""
    name = entry.image.name
    notes = images.notes
    shape = content.pixels.shape
    variance = _given_variance(entry, content, shape)
    flags = _given_mask(entry, content, shape)
    finite = np.isfinite(content.pixels)
    if variance is not None:
        finite &= variance > 0.0
    if not finite.any():
        raise FitsImageError(f"{name} has no pixel with a finite value; give an image of the sky.")
    level = _saturation(content, options, band, name, notes)
    saturated = finite & (content.pixels >= level) if level is not None else np.zeros(shape, bool)
    good = finite & ~saturated & (flags == 0)
    if np.count_nonzero(good) < 0.1 * np.count_nonzero(finite):
        good = finite
    pixels, sigma, sources = _subtract_sky(
        content.pixels, good, options, _of_band(options.noise, band), name, notes
    )
    images.sky_sigma[band] = sigma
    if variance is None:
        guessed.append(band)
        gain = _of_band(options.gain, band)
        variance = np.full(shape, sigma**2)
        if gain is not None:
            variance += _source_light(pixels, finite, sources | ~good, sigma) / gain
    else:
        variance = _check_variance(variance, good, sigma, options, name, notes)
    scale = wcs.getPixelScale().asArcseconds()
    fwhm = _of_band(options.psf_fwhm, band)
    if fwhm is None:
        found = estimate_fwhm(pixels, good, sigma)
        fwhm = found[0] * scale if found is not None else 1.0
        words = f"from {found[1]} stars" if found is not None else "a guess, for want of stars"
        notes.append(f"{name}: PSF of {fwhm:.2f} arcsec ({words}).")
    exposure = make_exposure(
        np.where(finite, pixels, np.nan),
        np.where(finite, variance, np.nan),
        bbox=Box2I(Point2I(0, 0), Extent2I(shape[1], shape[0])),
        wcs=wcs,
        nanojansky_per_count=10.0 ** (-0.4 * (zero_point - AB_ZERO_POINT)),
        band=band,
    )
    exposure.setPsf(gaussian_psf(fwhm / scale))
    images.psf_fwhm[band] = fwhm
    plane_bits = {"SAT": saturated}
    if options.mask_bits is None:
        plane_bits["BAD"] = flags != 0
    known = exposure.mask.getMaskPlaneDict()
    for plane, pattern in (options.mask_bits or {}).items():
        if plane not in known:
            raise FitsImageError(f"There is no mask plane {plane!r}; use one of {', '.join(sorted(known))}.")
        plane_bits[plane] = plane_bits.get(plane, np.zeros(shape, bool)) | (flags & pattern != 0)
    for plane, selected in plane_bits.items():
        exposure.mask.array[selected] |= exposure.mask.getPlaneBitMask(plane)
    images.exposures[band] = exposure


def _source_light(pixels: np.ndarray, finite: np.ndarray, sources: np.ndarray, sigma: float) -> np.ndarray:
    """Light of the sources in noisy pixels, at least 0.

    Faint light is smoothed: the positive half of the noise is no light.
    """
    filled = np.where(finite, pixels, 0.0)
    faint = np.clip(blur(filled, 2.0), 0.0, 4.0 * sigma)
    return np.where(sources & finite, np.where(filled > 4.0 * sigma, filled, faint), 0.0)


def _of_band(value: Mapping[str, float] | float | None, band: str) -> float | None:
    """Value for a band of what may be one for all."""
    return value.get(band) if isinstance(value, Mapping) else value


def _read(path: Path, hdu: str | int | None, plane: tuple[str, Sequence[str]] | None = None) -> _Content:
    """Read an image.

    Parameters
    ----------
    path : `pathlib.Path`
        The file.
    hdu : `str`, `int` or `None`
        Which HDU.
    plane : `tuple`, optional
        The band that is wanted of a cube, and all that are wanted of it;
        without these, its header must name them.

    Returns
    -------
    content : `_Content`
    """
    if not path.is_file():
        raise FitsImageError(f"There is no file {path}; check the name.")
    try:
        with warnings.catch_warnings():
            # Files that were cut short are read with zeros and a warning.
            warnings.filterwarnings("error", message=".*truncated.*")
            with fits.open(path, memmap=False) as hdus:
                # Made to read all headers, or names further on are not known.
                names = [entry.name for entry in hdus]
                if any(
                    entry.header.get("EXTTYPE") == "ARCHIVE_INDEX" or entry.name == "ARCHIVE_INDEX"
                    for entry in hdus
                ):
                    exposure = ExposureF.readFits(str(path))
                    return _Content(exposure.image.array, hdus[0].header, exposure)
                return _read_hdus(path, hdus, names, hdu, plane)
    except Warning as warning:
        raise FitsImageError(f"{path} is cut short ({warning}); get the whole file.") from warning
    except FitsImageError:
        raise
    except _READ_ERRORS as error:
        raise FitsImageError(
            f"{path} is not a FITS file that can be read ({error}); give a FITS image."
        ) from error


def _read_hdus(
    path: Path, hdus: fits.HDUList, names: list[str], wanted: str | int | None, plane: tuple | None
) -> _Content:
    """Find the image among the HDUs, and what belongs to it."""
    if wanted is not None:
        number = int(wanted) if str(wanted).isdigit() else None
        if number is None and str(wanted).upper() not in names:
            raise FitsImageError(f"{path} has no HDU {wanted!r}; it has {', '.join(map(repr, names))}.")
        if number is not None and number >= len(hdus):
            raise FitsImageError(f"{path} has no HDU {number}; its last is {len(hdus) - 1}.")
        candidates = [hdus[number if number is not None else str(wanted)]]
    else:
        companions = {name for group in _COMPANIONS.values() for name in group}
        candidates = [entry for entry in hdus if entry.name in _IMAGE_NAMES]
        candidates += [entry for entry in hdus if entry.name not in companions]
    for entry in candidates:
        data = _image_of(entry, plane)
        if data is None:
            continue
        header = hdus[0].header.copy()
        header.update(entry.header)
        found = {}
        for kind, group in _COMPANIONS.items():
            for other in hdus:
                if other.name in group and other.ver == entry.ver and kind not in found:
                    values = _image_of(other, plane)
                    if values is not None and values.shape == data.shape:
                        found[kind] = values
        return _Content(np.asarray(data, dtype=np.float64), header, None, found)
    raise FitsImageError(f"{path} holds no two-dimensional image; give a FITS image.")


def _image_of(entry: fits.hdu.base._BaseHDU, plane: tuple | None) -> np.ndarray | None:
    """Image of an HDU, or nothing."""
    if not getattr(entry, "is_image", False) or entry.data is None:
        return None
    # Drizzled and other images come with axes of length one.
    data = np.squeeze(entry.data)
    if plane is not None and data.ndim == 3:
        band, bands = plane
        named = [str(entry.header.get(f"BAND{k}", "")).strip() for k in range(len(data))]
        if not all(named):
            named = list(str(entry.header.get("BANDS", "")).strip().replace(",", ""))
        if len(named) != len(data):
            if not bands:
                return None
            named = list(bands)
        if len(named) != len(data) or band not in named:
            raise FitsImageError(
                f"A cube of {len(data)} planes has bands {', '.join(named)}, and {band!r} is wanted; "
                "name the bands of all planes in their order."
            )
        data = data[named.index(band)]
    return data if data.ndim == 2 else None


def _given_variance(entry: BandFiles, content: _Content, shape: tuple[int, int]) -> np.ndarray | None:
    """Variance from files or extensions; NaN where there is no data."""
    for kind in ("variance", "weight", "rms"):
        path = getattr(entry, kind)
        if path is not None:
            values = _matching(path, shape)
            break
    else:
        for kind in ("variance", "weight", "rms"):
            if kind in content.companions:
                values = np.asarray(content.companions[kind], dtype=np.float64)
                break
        else:
            return None
    usable = np.isfinite(values) & (values > 0.0)
    result = np.full(shape, np.nan)
    if kind == "weight":
        result[usable] = 1.0 / values[usable]
    else:
        result[usable] = values[usable] ** (2 if kind == "rms" else 1)
    return result


def _given_mask(entry: BandFiles, content: _Content, shape: tuple[int, int]) -> np.ndarray:
    """Integers (y, x) of the mask; zeros without one."""
    if entry.mask is not None:
        values = _matching(entry.mask, shape)
    elif "mask" in content.companions:
        values = content.companions["mask"]
    else:
        return np.zeros(shape, dtype=np.int64)
    return np.where(np.isfinite(values), values, 0).astype(np.int64)


def _matching(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read an image that must have a shape."""
    values = _read(path, None).pixels
    if values.shape != shape:
        raise FitsImageError(
            f"{path.name} is {values.shape[1]} x {values.shape[0]}, its image {shape[1]} x {shape[0]}; "
            "they must be on one pixel grid."
        )
    return values


def _saturation(
    content: _Content, options: FitsOptions, band: str, name: str, notes: list[str]
) -> float | None:
    """Count at which pixels are saturated, if any is known."""
    level = _of_band(options.saturation, band)
    if level is not None:
        return level
    header_level = content.header.get("SATURATE")
    if isinstance(header_level, int | float) and math.isfinite(header_level) and header_level > 0:
        return float(header_level)
    level = find_plateau(content.pixels)
    if level is not None:
        notes.append(f"{name}: many pixels have {level:g} counts exactly and are taken for saturated.")
    return level


def _subtract_sky(
    pixels: np.ndarray,
    good: np.ndarray,
    options: FitsOptions,
    noise: float | None,
    name: str,
    notes: list[str],
) -> tuple[np.ndarray, float, np.ndarray]:
    """Subtract the sky, if there is one, and estimate the noise.

    Returns
    -------
    image : `numpy.ndarray`
        Sky-subtracted, (y, x).
    sigma : `float`
        Standard deviation of an empty pixel, above 0.
    sources : `numpy.ndarray`
        Pixels with light of sources, (y, x), `bool`.
    """
    values = np.where(good, pixels, 0.0)
    estimate = estimate_sky(values, good, mesh_size=options.mesh_size, subtracted=options.sky == "none")
    sigma = estimate.sigma
    level = float(np.median(estimate.level))
    scatter = float(np.std(values[good]))
    # Without noise, the medians of counted photons are still blurred a little.
    if options.sky == "subtract" or (options.sky == "auto" and abs(level) > max(sigma, 1e-2 * scatter)):
        pixels = pixels - estimate.level
        notes.append(f"{name}: a sky of {level:.4g} counts was subtracted.")
    if noise is not None:
        sigma = noise
    elif not sigma > 0.0:
        sigma = max(1e-3 * scatter, 1e-6 * max(abs(level), 1.0))
        notes.append(f"{name}: no noise is found in the sky; {sigma:.3g} counts are put; --noise sets them.")
    elif estimate.correlation > 0.2:
        notes.append(
            f"{name}: the noise of neighbouring pixels is correlated ({estimate.correlation:.2f}), "
            "as in stacked or resampled images; the variance is that of single pixels."
        )
    return pixels, sigma, estimate.sources


def _check_variance(
    variance: np.ndarray, good: np.ndarray, sigma: float, options: FitsOptions, name: str, notes: list[str]
) -> np.ndarray:
    """Compare a given variance with the noise in the sky."""
    ratio = sigma**2 / float(np.median(variance[good]))
    if options.rescale:
        notes.append(f"{name}: its variance was multiplied by {ratio:.3g} to fit the noise in the sky.")
        return variance * ratio
    if not 0.25 < ratio < 4.0:
        notes.append(
            f"{name}: the variance given is {1.0 / ratio:.2g} times the one found in the sky; "
            "--rescale makes them agree."
        )
    return variance


def _band_of(header: fits.Header) -> str | None:
    """Band that a header names, if it is one letter of ugrizy.

    Parameters
    ----------
    header : `astropy.io.fits.Header`
        The header.

    Returns
    -------
    band : `str` or `None`
    """
    for key in _BAND_KEYS:
        value = str(header.get(key, "")).strip()
        # "r", "HSC-R", "r DECam SDSS c0002 6415.0 1480.0", "decam-r", "r.MP9601", but not "H  )".
        match = re.match(r"(?:hsc|decam|lsst|sdss)?[-_ ]?([ugrizy])(?:2?$|[ ._-])", value, re.IGNORECASE)
        if match:
            return match.group(1).lower()
    return None


def _assign_bands(
    paths: Sequence[str | os.PathLike[str]],
    headers: Sequence[fits.Header],
    bands: Sequence[str],
    notes: list[str],
) -> list[str]:
    """Decide the band of each file.

    Parameters
    ----------
    paths : `~collections.abc.Sequence`
        The files.
    headers : `~collections.abc.Sequence` [`astropy.io.fits.Header`]
        Their headers.
    bands : `~collections.abc.Sequence` [`str`]
        Bands by position.
    notes : `list` [`str`]
        Takes a sentence when header and position disagree.

    Returns
    -------
    names : `list` [`str`]
    """
    named = [_band_of(header) for header in headers]
    known = [band for band in named if band in bands]
    if len(known) == len(bands) and len(set(known)) < len(known):
        listed = ", ".join(f"{Path(path).name} says {band}" for path, band in zip(paths, named))
        raise FitsImageError(
            f"Bands {', '.join(bands)} are wanted, one each, but {listed}; give one file per band."
        )
    if len(known) == len(bands):
        if list(named) != list(bands):
            listed = ", ".join(f"{Path(path).name} is {band}" for path, band in zip(paths, named))
            notes.append(f"The order of the files is not {', '.join(bands)}; the headers say: {listed}.")
        return [str(band) for band in named]
    for path, band, place in zip(paths, named, bands):
        if band is not None and band != place:
            notes.append(
                f"{Path(path).name} says that it is {band}, but is taken for {place} by its position."
            )
    return list(bands)


def _find_zero_point(header: fits.Header, name: str, notes: list[str]) -> float:
    """AB magnitude of one count.

    Parameters
    ----------
    header : `astropy.io.fits.Header`
        The header.
    name : `str`
        Of the file.
    notes : `list` [`str`]
        Takes a sentence when it is a guess.

    Returns
    -------
    zero_point : `float`
    """
    for key in _ZERO_POINT_KEYS:
        value = header.get(key)
        if isinstance(value, int | float) and np.isfinite(value) and value > 0:
            return float(value)
    unit = str(header.get("BUNIT", "")).strip().lower()
    if unit in _UNITS:
        return _UNITS[unit]
    survey = str(header.get("SURVEY", "")).strip().lower()
    if survey.startswith(_NANOMAGGY_SURVEYS):
        notes.append(f"{name}: zero point 22.5 (nanomaggies), as survey {header['SURVEY']} has it.")
        return 22.5
    notes.append(f"{name}: no zero point in the header, one count is taken for one nJy; --zeropoint sets it.")
    return AB_ZERO_POINT


def _make_wcs(
    header: fits.Header, shape: tuple[int, int], options: FitsOptions, name: str, notes: list[str]
) -> SkyWcs:
    """World coordinates of an image.

    Parameters
    ----------
    header : `astropy.io.fits.Header`
        The header.
    shape : `tuple` [`int`, `int`]
        Height and width.
    options : `FitsOptions`
        Pixel scale and position where the header has no world coordinates.
    name : `str`
        Of the file.
    notes : `list` [`str`]
        Takes a sentence when something had to be made up.

    Returns
    -------
    wcs : `lsst.afw.geom.SkyWcs`
    """
    center = Point2D(0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        astropy_wcs = WCS(header, naxis=2) if header.get("CTYPE1") else None
    if astropy_wcs is None or not astropy_wcs.has_celestial:
        scale = options.pixel_scale if options.pixel_scale is not None else 0.2
        ra, dec = options.sky_center
        notes.append(
            f"{name}: no world coordinates in the header; made up are RA {ra:g}, Dec {dec:g} at the centre "
            f"and {scale:g} arcsec per pixel."
        )
        return makeSkyWcs(center, SpherePoint(ra, dec, degrees), makeCdMatrix(scale=scale * arcseconds))
    if all(str(header.get(f"CTYPE{axis}", "")).endswith(("TAN", "TAN-SIP")) for axis in (1, 2)):
        metadata = PropertyList()
        for key, value in astropy_wcs.to_header(relax=True).items():
            if isinstance(value, int | float | str):
                metadata.set(key, value)
        try:
            return makeSkyWcs(metadata)
        except (RuntimeError, TypeError, ValueError, PexError):
            notes.append(f"{name}: its world coordinates were replaced by a tangent plane at the centre.")
    # Any other projection: the tangent plane that touches it at the centre is near enough for one image.
    step = 10.0
    xs = np.array([center.x, center.x + step, center.x])
    ys = np.array([center.y, center.y, center.y + step])
    sky = astropy_wcs.pixel_to_world(xs, ys).icrs
    offsets = [sky[0].spherical_offsets_to(sky[k]) for k in (1, 2)]
    matrix = np.array([[o[0].deg for o in offsets], [o[1].deg for o in offsets]]) / step
    if not np.isfinite(matrix).all() or not np.all(proj_plane_pixel_scales(astropy_wcs) > 0):
        raise FitsImageError(
            f"The world coordinates of {name} are not usable; give a header that has them right."
        )
    return makeSkyWcs(center, SpherePoint(sky[0].ra.deg, sky[0].dec.deg, degrees), matrix)
