# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain FITS images of one field, one per band: sky, noise, PSF, calibration.

Needs no LSST package.
"""

from __future__ import annotations

__all__ = ["FitsField", "FitsOptions", "read_field"]

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

from ..images.sky import fill_cores, find_fill, find_plateau, is_pile, lies_on_sources, source_light
from ..images.stars import StarPsf, gaussian_image, image_fwhm, measure_psfs
from ..images.units import AB_ZERO_POINT
from .fits_files import BandFiles, FitsContent, FitsImageError, read_fits
from .fits_header import (
    colour_pattern,
    header_fwhm,
    header_saturation,
    implausible_depth,
    implausible_sky,
    zero_point,
)
from .fits_masks import mask_bits, mask_patterns
from .fits_noise import check_variance, falls_with_noise, find_sharp_pixels, subtract_sky
from .fits_resample import resample_band
from .fits_wcs import RESAMPLE_ADVICE, common_wcs, pixel_scale_of

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

_LEAST_SHARE = {"weight": 0.1, "mask": 0.5}
"""Share of the pixels that have data which weights, and masks of unknown meaning, must leave."""

_COUNT_RANGE = (1e-15, 1e15)
"""Noise (counts, nJy) whose square single precision holds well."""


_MOST_ABOVE = 3.0
"""Times their saturation that a quarter of the pixels above it may have; more are of other units."""

_WIDTH_OF_PATTERNS = 2.0
"""Of a PSF (px) for which only single pixels are sharper than stars."""


@dataclass(frozen=True)
class FitsOptions:
    """How to read plain images. Afw's own files say all this themselves."""

    zero_points: Mapping[str, float] | None = None
    """AB magnitude of one count by band; by default from the headers
    (MAGZERO and similar keywords, FLUXMAG0, PHOTFLAM, BUNIT, known surveys);
    where it is not known, fluxes are in counts."""

    pixel_scale: float | None = None
    """Pixel scale (arcsec) where a header has no world coordinates, or none
    that are plausible; by default that of other keywords, or 0.2."""

    psf_fwhm: Mapping[str, float] | float | None = None
    """Full width at half maximum of the PSF (arcsec); `None` to measure it on
    stars, or else to take it from the header. It can remain unknown."""

    hdu: str | int | None = None
    """Name or number of the HDU with the image; by default SCI or the like, else
    one with world coordinates, else the largest."""

    mask_bits: Mapping[str, int] | None = None
    """Which bits of a mask image become which mask plane, as a pattern of
    bits by plane; others mean nothing. By default as the header or the
    telescope has it, see `~.fits_masks.mask_patterns`."""

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
    for relative weights. Those that are far off are scaled anyway."""

    resample: bool = False
    """Bring plain images with world coordinates to the pixel grid of the first
    band; otherwise images on different grids are refused."""

    background: str | None = None
    """Name of the background to subtract of those that a coadd of ``lsst.images``
    carries, or ``"none"``; by default the one that is subtracted stays so."""

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
    """Full width at half maximum of the PSF (arcsec); NaN if it is not known."""

    psf: FloatArray | None
    """Image of the PSF (y, x); `None` if it is not known."""

    local_psf: Callable[[float, float], FloatArray | None] | None = None
    """Image of the PSF at a position (y, x; px), where it varies."""

    calibrated: bool = True
    """Whether the zero point is known; else fluxes are in counts."""

    noise: FloatArray | None = None
    """A realisation of the noise (y, x), nJy, where the file has one."""


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

    has_sky: bool = True
    """Whether world coordinates are those of a header, and not made up."""

    notes: list[str] = field(default_factory=list)
    """Sentences for the user: what was assumed."""

    @property
    def pixel_scale(self) -> float:
        """Pixel scale at the centre (arcsec); NaN without world coordinates."""
        if self.wcs is None:
            return math.nan
        return pixel_scale_of(self.wcs, self.shape)


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
        Raised if a file is missing or damaged, if the images do not fit
        each other or show different pieces of sky, or if some were written by
        afw and others were not.

    Notes
    -----
    A variance that is not given is the square of the noise in the sky, see
    `~lsst.meas.maskrcnn.images.sky.estimate_sky`, and with a gain the
    Poisson noise of the sources is added.
    """
    if not files:
        raise FitsImageError("No images were given; give at least one band.")
    from .rubin_images import are_rubin_images, read_rubin_field

    options = options if options is not None else FitsOptions()
    notes: list[str] = []
    paths = [entry.image for entry in files.values()]
    if are_rubin_images(paths):
        return read_rubin_field(dict(zip(files, paths)), options)
    contents = {
        band: read_fits(entry.image, options.hdu, band, tuple(files) if paths.count(entry.image) > 1 else ())
        for band, entry in files.items()
    }
    plain, exposures = _plain_or_exposures(contents)
    shape = _common_shape(contents, options.resample and not exposures)
    if exposures:
        return FitsField({}, exposures, tuple(files), shape, None, notes=notes)
    _note_same_pixels(plain, notes)
    options = _common_saturation(plain, options, notes)
    wcs, own_wcs = common_wcs(plain, shape, options, notes)
    bands = [
        _read_band(band, files[band], content, options, own_wcs.get(band, wcs))
        for band, content in plain.items()
    ]
    bands = [resample_band(entry, own_wcs.get(entry.band, wcs), wcs, shape) for entry in bands]
    measured = measure_psfs(
        [entry.pixels for entry in bands], [entry.good for entry in bands], [entry.sigma for entry in bands]
    )
    result = FitsField({}, {}, tuple(files), shape, wcs, bool(own_wcs), notes)
    for entry, stars in zip(bands, measured):
        if stars is not None:
            _mark_sharp_pixels(entry, stars.fwhm)
        fwhm, psf, source = _psf_of(entry, stars, options, result.pixel_scale)
        entry.found.append(f"PSF {source}")
        notes.append(f"{entry.name}: {entry.band}, {'; '.join(entry.found)}.")
        notes += [f"{entry.name}: {text}" for text in dict.fromkeys(entry.notes)]
        result.images[entry.band] = _plain_image(entry, fwhm, psf)
    _note_missing_area(bands, notes)
    return result


def _plain_or_exposures(
    contents: Mapping[str, FitsContent],
) -> tuple[dict[str, FitsContent], dict[str, Path]]:
    """Tell plain images from files that afw wrote."""
    plain = {band: content for band, content in contents.items() if not content.is_exposure}
    exposures = {band: content.path for band, content in contents.items() if content.is_exposure}
    if plain and exposures:
        raise FitsImageError(
            f"afw wrote the files of bands {', '.join(exposures)}, and those of {', '.join(plain)} are "
            "plain; give files of one kind."
        )
    return plain, exposures


def _common_shape(contents: Mapping[str, FitsContent], resample: bool) -> tuple[int, int]:
    shapes = {content.path.name: content.pixels.shape for content in contents.values()}
    if len(set(shapes.values())) > 1 and not resample:
        listed = ", ".join(f"{name} is {shape[1]} x {shape[0]}" for name, shape in shapes.items())
        raise FitsImageError(f"The images must be on one pixel grid, but {listed}; {RESAMPLE_ADVICE}.")
    height, width = next(iter(shapes.values()))
    return height, width


def _common_saturation(
    contents: Mapping[str, FitsContent], options: FitsOptions, notes: list[str]
) -> FitsOptions:
    """Make the highest plateau of all images the saturation of each, where that is asked for."""
    if options.common_saturation and options.saturation is None:
        unknown = [content for content in contents.values() if header_saturation(content.header) is None]
        levels = [find_plateau(content.pixels) for content in unknown]
        highest = max((level for level in levels if level is not None), default=None)
        if highest is not None:
            notes.append(f"Many pixels have {highest:g} counts exactly: this is taken for saturation.")
            options = dataclasses.replace(options, saturation=highest)
    return options


@dataclass
class BandImage:
    """An image while it is read."""

    band: str
    name: str
    header: fits.Header
    pixels: FloatArray
    finite: BoolArray
    good: BoolArray
    variance: FloatArray
    planes: dict[str, BoolArray]
    sigma: float
    zero_point: float
    calibrated: bool
    scale: float
    psf: FloatArray | None
    found: list[str]
    notes: list[str]


def _read_band(
    band: str, files: BandFiles, content: FitsContent, options: FitsOptions, wcs: WCS
) -> BandImage:
    """Calibrate one image."""
    name, scale = content.path.name, pixel_scale_of(wcs, content.pixels.shape)
    notes = list(content.notes)
    found = [f"HDU {content.names.get('image', 0)}"]
    filled = find_fill(content.pixels)
    if filled.any():
        constants = ", ".join(f"{value:g}" for value in np.unique(content.pixels[filled])[:3])
        notes.append(f"{filled.mean():.1%} of the pixels are {constants} exactly, in blocks: no data.")
    finite = np.isfinite(content.pixels) & ~filled
    if not finite.any():
        raise FitsImageError(
            f"{name} has no pixel with a finite value that is no fill value; give an image of the sky."
        )
    level = _saturation_level(content, options.for_band("saturation", band), notes.append)
    pixels, cores = fill_cores(content.pixels, finite & (content.pixels != 0.0))
    if cores.any():
        notes.append(f"{np.count_nonzero(cores)} pixels without data are the saturated cores of sources.")
        content, finite = dataclasses.replace(content, pixels=pixels), finite | cores
    saturated = cores if level is None else cores | (finite & (pixels >= level))
    planes, guessed = _mask_planes(content, files, options, saturated, found, notes)
    planes.update({plane: planes[plane] & ~cores for plane in ("BAD", "NO_DATA") if plane in planes})
    finite, variance, source, relative = _weigh(content, files, finite, planes["SAT"], notes)
    good = finite & ~np.logical_or.reduce(list(planes.values()))
    if guessed:
        advice = "give a mask of good pixels as the weight; --mask-bits (mask_bits) says what bits mean"
        _check_share("mask", finite & ~planes["BAD"], finite, f"{name}: {guessed} is 0", advice)
    if np.count_nonzero(good) < 0.1 * np.count_nonzero(finite):
        notes.append("its mask leaves less than a tenth of the pixels; noise and PSF are measured on all.")
        good = finite & ~saturated if (finite & ~saturated).any() else finite
    noise = options.for_band("noise", band)
    pixels, sigma, sky = subtract_sky(content.pixels, good, options, noise, notes.append)
    if guessed and lies_on_sources(planes["BAD"], np.where(finite & ~saturated, pixels, 0.0), sigma):
        raise FitsImageError(
            f"{name}: the pixels that are not 0 in {guessed} are those of the sources, as in a map of "
            "detections; --mask-bits (mask_bits) says which bits mean that a pixel is bad."
        )
    if variance is None:
        gain = options.for_band("gain", band)
        variance = np.full(finite.shape, sigma**2)
        if gain is not None:
            variance += source_light(pixels, finite, sky.sources | ~good, sigma) / gain
        source = "given" if noise is not None else "measured between the sources"
    else:
        if falls_with_noise(variance, pixels, good & ~sky.sources):
            variance, relative = np.median(variance[good]) ** 2 / variance, True
            notes.append(
                f"the noise falls where it should rise by {source}, which is taken the other way round."
            )
        relative = True if options.rescale else relative
        variance, source = check_variance(variance, good, sigma, sky, relative, source, notes.append)
    found.append(f"noise {float(np.sqrt(np.median(variance[finite]))):.4g} counts ({source})")
    level = float(np.median((content.pixels - pixels)[good]))
    magnitude, words, said = _zero_point_of(band, content.header, options, scale, (sigma, level))
    found.append(words)
    notes += said
    return BandImage(
        band,
        name,
        content.header,
        pixels,
        finite,
        good,
        variance,
        planes,
        sigma,
        AB_ZERO_POINT if magnitude is None else magnitude,
        magnitude is not None,
        scale,
        content.companions.get("psf"),
        found,
        notes,
    )


def _zero_point_of(
    band: str, header: fits.Header, options: FitsOptions, scale: float, counts: tuple[float, float]
) -> tuple[float | None, str, list[str]]:
    """Zero point, `None` if it is not known, words on it, and notes on what is odd about it.

    Pixels have a scale (arcsec), and counts of noise and of sky that was subtracted.
    """
    (sigma, sky), magnitude, source = counts, (options.zero_points or {}).get(band), "given"
    if magnitude is None:
        magnitude, source = zero_point(header, scale, band, sigma)
    if magnitude is None:
        note = f"{source}: fluxes are in counts and magnitudes instrumental; --zeropoint sets it."
        return None, "zero point not known", [note]
    notes = implausible_depth(sigma, magnitude)
    if sky > 3.0 * sigma:
        notes += implausible_sky(sky, magnitude, scale, band)
    return magnitude, f"zero point {magnitude:.2f} ({source})", notes


def _weigh(
    content: FitsContent, files: BandFiles, finite: BoolArray, saturated: BoolArray, notes: list[str]
) -> tuple[BoolArray, FloatArray | None, str, bool | None]:
    """Find the pixels (y, x) that have data and weight; returns these and `FitsContent.variance`."""
    variance, source, relative = content.variance(files)
    if relative:
        notes.append(f"{source} is of confidences, exposure times or numbers of images: it is relative.")
    if variance is not None:
        weighted = finite & (variance > 0.0)
        if weighted.any():
            # Saturated pixels have no weight in many surveys, but the light of stars.
            usable, words = weighted | (finite & saturated), f"{content.path.name}: {source} is above 0"
            _check_share("weight", usable, finite, words, "0 is for no data")
            return usable, np.where(weighted, variance, np.median(variance[weighted])), source, relative
        variance, source = None, f"{source} has no value above 0 where the image has data"
    if source:
        notes.append(f"{source}.")
    return finite, variance, source, False


def _mask_planes(
    content: FitsContent,
    files: BandFiles,
    options: FitsOptions,
    saturated: BoolArray,
    found: list[str],
    notes: list[str],
) -> tuple[dict[str, BoolArray], str]:
    """Pixels (y, x) by mask plane, saturated and of the mask image, and its name if these are a guess."""
    flags, header, name = content.flags(files)
    if not name:
        return {"SAT": saturated}, ""
    flags, (patterns, source) = mask_bits(flags, header, name), mask_patterns(header, name)
    if options.mask_bits is not None:
        patterns, source = dict(options.mask_bits), "given"
    planes = {plane: flags & pattern != 0 for plane, pattern in patterns.items()}
    guessed = name if source.startswith("every") else ""
    if guessed:
        planes["BAD"] &= ~saturated
    counts = ", ".join(f"{plane} {selected.mean():.1%}" for plane, selected in planes.items())
    found.append(f"mask {name} by {source} ({counts})")
    if guessed and planes["BAD"].mean() > 0.05:
        notes.append(
            f"{planes['BAD'].mean():.0%} of the pixels of {name} are not 0 and BAD; --mask-bits sets it."
        )
    return {**planes, "SAT": saturated | planes.get("SAT", saturated)}, guessed


def _check_share(kind: str, left: BoolArray, pixels: BoolArray, found: str, advice: str) -> None:
    """Refuse what leaves too little of the pixels of an image, as what is inverted does."""
    share = np.count_nonzero(left) / np.count_nonzero(pixels)
    if share < _LEAST_SHARE[kind]:
        raise FitsImageError(f"{found} in {share:.1%} of the pixels that have data; {advice}.")


def _psf_of(
    entry: BandImage, stars: StarPsf | None, options: FitsOptions, scale: float
) -> tuple[float, FloatArray | None, str]:
    """FWHM (arcsec) and image of the PSF, and words on them."""
    fwhm, source = options.for_band("psf_fwhm", entry.band), "given"
    if fwhm is None and entry.psf is not None:
        own = image_fwhm(entry.psf)
        # Images of PSFs may have pixels of their own.
        if stars is None or 0.6 < own / stars.fwhm < 1.6:
            words = f"{own * scale:.2f} arcsec (image of the PSF in the file)"
            return own * scale, entry.psf / entry.psf.sum(), words
    if fwhm is None and stars is not None:
        fwhm, error = stars.fwhm * scale, stars.error * scale
        count = f"{stars.n_stars} star" + "s" * (stars.n_stars != 1)
        words = f"{fwhm:.2f} +- {error:.2f} arcsec (measured on {count})"
        return fwhm, stars.image(), words
    if fwhm is None:
        said = header_fwhm(entry.header, entry.scale)
        if said is None:
            entry.notes.append("too few stars to measure the PSF, which remains unknown; --psf-fwhm sets it.")
            return math.nan, None, "not known"
        fwhm, source = said[0], f"{said[1]} of the header, too few stars"
    return fwhm, gaussian_image(fwhm / scale), f"{fwhm:.2f} arcsec ({source})"


def _mark_sharp_pixels(entry: BandImage, fwhm: float) -> None:
    # Beside a pixel of one colour are those of others, which may have no light.
    width = min(fwhm, _WIDTH_OF_PATTERNS) if colour_pattern(entry.header) else fwhm
    sharp = find_sharp_pixels(entry.pixels, entry.good, entry.sigma, width)
    if sharp.any():
        entry.planes["BAD"] = entry.planes.get("BAD", False) | sharp
        number = np.count_nonzero(sharp)
        entry.notes.append(f"{number} pixels are sharper than stars, hot ones or cosmic rays: BAD.")


def _plain_image(entry: BandImage, fwhm: float, psf: FloatArray | None) -> PlainImage:
    """Make an image of what was read; counts whose squares are too small or large become nJy."""
    scale = 10.0 ** (-0.4 * (entry.zero_point - AB_ZERO_POINT))
    least, most = _COUNT_RANGE
    if not least < entry.sigma * scale < most:
        raise FitsImageError(
            f"{entry.name}: the noise of {entry.sigma:.3g} counts is {entry.sigma * scale:.3g} nJy by a zero "
            f"point of {entry.zero_point:.4g}; give the right one with --zeropoint (zero_points)."
        )
    factor = 1.0 if least < entry.sigma < most else scale
    return PlainImage(
        np.where(entry.finite, entry.pixels * factor, np.nan),
        np.where(entry.finite, entry.variance * factor**2, np.nan),
        entry.planes,
        scale / factor,
        entry.sigma * factor,
        fwhm,
        psf,
        calibrated=entry.calibrated,
    )


def _note_same_pixels(contents: Mapping[str, FitsContent], notes: list[str]) -> None:
    """Say which bands have the same image."""
    for (band, one), (other, two) in itertools.combinations(contents.items(), 2):
        if np.array_equal(one.pixels, two.pixels, equal_nan=True):
            notes.append(f"{two.path.name}: {other} has the pixels of {band}; their colours mean nothing.")


def _note_missing_area(bands: list[BandImage], notes: list[str]) -> None:
    """Say how much of the area some bands lack."""
    usable = [entry.finite for entry in bands]
    covered = np.logical_or.reduce(usable)
    for entry, has_data in zip(bands, usable):
        lost = 1.0 - np.count_nonzero(has_data) / np.count_nonzero(covered)
        if lost > 0.03:
            notes.append(
                f"{entry.name}: {entry.band} has no data in {lost:.0%} of the area that others cover; models "
                "of fixed bands find nothing there, others go by the bands that have."
            )


def _saturation_level(content: FitsContent, given: float | None, note: Callable[[str], None]) -> float | None:
    """Count at which pixels are saturated, if any is known."""
    if given is not None:
        return given
    level = header_saturation(content.header)
    if level is not None:
        finite = content.pixels[np.isfinite(content.pixels)]
        above = finite[finite >= level]
        reached = float(np.quantile(above, 0.75)) / level if above.size else 1.0
        if is_pile(content.pixels, level) or (above.size < 0.05 * finite.size and reached < _MOST_ABOVE):
            return level
        note(
            f"{above.size / finite.size:.2%} of the pixels, a quarter of them by {reached:.2g} times, are "
            f"above the header's saturation of {level:g}: it is not believed."
        )
    level = find_plateau(content.pixels)
    if level is not None:
        note(f"many pixels have {level:g} counts exactly and are taken for saturated.")
    return level
