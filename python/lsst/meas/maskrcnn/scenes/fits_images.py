# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain FITS images, one per band, as calibrated exposures."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
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

from .repo import gaussian_psf, make_exposure

__all__ = ["FitsImageError", "FitsImages", "read_fits_images"]

_BAND_KEYS = ("BAND", "BANDS", "BAND0", "FILTER", "FILTNAM", "FILTNAME")
_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG_ZP", "ZP", "ZEROPNT", "ZPT")
_BANDS = ("u", "g", "r", "i", "z", "y")
# Magnitudes of one count by unit: AB is 31.4 for one nJy.
_UNITS = {"nanomaggy": 22.5, "nanomaggies": 22.5, "nmgy": 22.5, "njy": 31.4, "ujy": 23.9, "microjansky": 23.9}
# Surveys whose images are in nanomaggies but often lack BUNIT.
_NANOMAGGY_SURVEYS = ("decals", "legacysurvey", "sdss")


class FitsImageError(ValueError):
    """FITS images cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class FitsImages:
    """Exposures of one field, and what had to be assumed about them."""

    exposures: dict[str, ExposureF]
    """By band, in the order of the files."""

    notes: list[str] = field(default_factory=list)
    """Sentences for the user: what was assumed."""


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
        that are not finite have mask plane NO_DATA. The sky (median) is
        subtracted where it is far from zero.

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
    if zero_points is not None:
        if len(zero_points) not in (1, len(paths)):
            raise FitsImageError(
                f"{len(zero_points)} zero points were given for {len(paths)} images; give one, or one each."
            )
        zero_points = [zero_points[index % len(zero_points)] for index in range(len(paths))]

    notes: list[str] = []
    contents = [_read(Path(path)) for path in paths]
    names = _assign_bands(paths, [header for _, header, _ in contents], bands, notes)
    shapes = {Path(path).name: pixels.shape for path, (pixels, _, _) in zip(paths, contents)}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} is {shape[1]} x {shape[0]}" for name, shape in shapes.items())
        raise FitsImageError(
            f"The images must be on one pixel grid, but {listed}; resample them to one grid."
        )

    wcs: SkyWcs | None = None
    exposures: dict[str, ExposureF] = {}
    for index, (path, band, (pixels, header, whole)) in enumerate(zip(paths, names, contents)):
        name = Path(path).name
        if whole is not None:
            exposures[band] = whole
            wcs = whole.getWcs()
            continue
        if wcs is None:
            # One WCS for all: the images are on one grid by definition.
            wcs = _make_wcs(header, pixels.shape, pixel_scale, name, notes)
        zero_point = zero_points[index] if zero_points is not None else _find_zero_point(header, name, notes)
        image, variance, sky = _prepare(pixels, name)
        if sky:
            notes.append(f"{name}: a sky of {sky:.4g} counts was subtracted.")
        exposure = make_exposure(
            image,
            variance,
            bbox=Box2I(Point2I(0, 0), Extent2I(pixels.shape[1], pixels.shape[0])),
            wcs=wcs,
            nanojansky_per_count=10.0 ** (-0.4 * (zero_point - 31.4)),
            band=band,
        )
        exposure.setPsf(gaussian_psf(psf_fwhm / wcs.getPixelScale().asArcseconds()))
        exposures[band] = exposure
    if any(whole is None for _, _, whole in contents):
        notes.append("Variance is estimated from the pixel noise, and the PSF is a guess.")
    return FitsImages(exposures, notes)


def _read(path: Path) -> tuple[np.ndarray, fits.Header, ExposureF | None]:
    """Read the first image of a file.

    Parameters
    ----------
    path : `pathlib.Path`
        The file.

    Returns
    -------
    pixels : `numpy.ndarray`
        The image, float64, (y, x).
    header : `astropy.io.fits.Header`
        Its header, with the primary one below.
    exposure : `lsst.afw.image.ExposureF` or `None`
        The whole exposure, if afw wrote the file.
    """
    if not path.is_file():
        raise FitsImageError(f"There is no file {path}; check the name.")
    try:
        with fits.open(path) as hdus:
            if any(
                hdu.header.get("EXTTYPE") == "ARCHIVE_INDEX" or hdu.name == "ARCHIVE_INDEX" for hdu in hdus
            ):
                exposure = ExposureF.readFits(str(path))
                return exposure.image.array, hdus[0].header, exposure
            for hdu in hdus:
                # Drizzled and other images come with axes of length one.
                data = None if hdu.data is None or hdu.data.dtype.names else np.squeeze(hdu.data)
                if data is not None and data.ndim == 2:
                    header = hdus[0].header.copy()
                    header.update(hdu.header)
                    return np.asarray(data, dtype=np.float64), header, None
    except (OSError, ValueError, TypeError, PexError) as error:
        if isinstance(error, FitsImageError):
            raise
        raise FitsImageError(
            f"{path} is not a FITS file that can be read ({error}); give a FITS image."
        ) from error
    raise FitsImageError(f"{path} holds no two-dimensional image; give a FITS image.")


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
    return 31.4


def _make_wcs(
    header: fits.Header, shape: tuple[int, int], pixel_scale: float | None, name: str, notes: list[str]
) -> SkyWcs:
    """World coordinates of an image.

    Parameters
    ----------
    header : `astropy.io.fits.Header`
        The header.
    shape : `tuple` [`int`, `int`]
        Height and width.
    pixel_scale : `float` or `None`
        Used where the header has no world coordinates (arcsec).
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
        scale = pixel_scale if pixel_scale is not None else 0.2
        notes.append(
            f"{name}: no world coordinates in the header; made up are RA 150, Dec 0 at the centre "
            f"and {scale:g} arcsec per pixel."
        )
        return makeSkyWcs(center, SpherePoint(150.0, 0.0, degrees), makeCdMatrix(scale=scale * arcseconds))
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


def _prepare(pixels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Subtract a sky that is far from zero, and estimate the noise.

    Parameters
    ----------
    pixels : `numpy.ndarray`
        The image, (y, x).
    name : `str`
        Of the file.

    Returns
    -------
    image : `numpy.ndarray`
        Sky-subtracted, (y, x).
    variance : `numpy.ndarray`
        Variance of the sky, constant, (y, x).
    sky : `float`
        What was subtracted; 0 if nothing was.

    Notes
    -----
    The noise comes from differences of neighbouring pixels, so that sources
    and a sloping sky count little: the difference has twice the variance.
    """
    finite = np.isfinite(pixels)
    if not finite.any():
        raise FitsImageError(f"{name} has no pixel with a finite value; give an image of the sky.")
    differences = np.diff(np.where(finite, pixels, np.nan), axis=1)
    differences = differences[np.isfinite(differences)]
    spread = np.median(np.abs(differences - np.median(differences))) if differences.size else 0.0
    sigma = 1.4826 * float(spread) / np.sqrt(2.0)
    median = float(np.median(pixels[finite]))
    if not sigma > 0.0:
        sigma = max(float(np.std(pixels[finite])), 1e-6 * max(abs(median), 1.0))
    sky = median if abs(median) > 3.0 * sigma else 0.0
    return pixels - sky, np.where(finite, sigma**2, np.nan), sky
