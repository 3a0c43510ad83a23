# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From exposures of several bands to arrays."""

from __future__ import annotations

__all__ = [
    "IncompatibleExposuresError",
    "MissingBandError",
    "UncalibratedExposureError",
    "UnusableExposureError",
    "to_multiband_image",
]

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import lsst.geom as geom
import lsst.pipe.base as pipeBase
from lsst.afw.geom import SkyWcs
from lsst.afw.image import ExposureF
from lsst.pex.exceptions import Exception as PexError

from ..deblend.image import MultibandImage, gaussian_fwhm
from ..images.pixels import usable_pixels
from ..images.units import FWHM_PER_SIGMA
from .mask_planes import defined_plane_bits, undefined_planes, warn_of_planes

if TYPE_CHECKING:
    from ..network.model_file import ModelMetadata

_LOG = logging.getLogger(__name__)

NO_ZERO_POINT = "NOZEROPT"
"""Keyword of exposures whose PhotoCalib stands for a zero point that is not known."""

_LEAST_FWHM = 1.6
"""Width of a PSF (px) below which its adaptive moments tell nothing."""

_BLOCK_SIZE = 262_144
"""Pixels converted to nJy at once, which bounds the memory for coordinates."""


class InputError(pipeBase.AlgorithmError):
    """A failure that would repeat; its details are for the task's metadata."""

    def __init__(self, message: str, /, **details: Any) -> None:
        self._details = details
        super().__init__(message)

    @property
    def metadata(self) -> dict[str, Any]:
        """What failed, for the task's metadata (`dict`)."""
        return self._details


class UnusableExposureError(InputError):
    """An exposure is of another filter than it should be, or has no valid pixel."""


class IncompatibleExposuresError(InputError):
    """Exposures of two bands do not cover the same pixels of the sky."""

    def __init__(self, quantity: str, bands: tuple[str, str], values: tuple[Any, Any], advice: str) -> None:
        super().__init__(
            f"The {quantity} of the exposures disagrees: {values[0]} in band {bands[0]!r}, "
            f"{values[1]} in band {bands[1]!r}. {advice}",
            quantity=quantity,
            bands=" ".join(bands),
            first=str(values[0]),
            second=str(values[1]),
        )


class MissingBandError(InputError):
    """Some bands that the model needs are not among the inputs."""

    def __init__(self, missing: Iterable[str], available: Iterable[str], metadata: ModelMetadata) -> None:
        missing, available = sorted(missing), sorted(available)
        super().__init__(
            f"No exposure in band {', '.join(map(repr, missing))}: model {metadata.name!r} needs "
            f"{list(metadata.bands) or 'them'}, found {available}. Add the missing coadds, map its bands "
            "to those of the data with config.bands, or choose another model.",
            missing=" ".join(missing),
            available=" ".join(available),
            model=metadata.name,
        )


class UncalibratedExposureError(InputError):
    """An exposure lacks a component, a calibration that the task needs."""

    def __init__(self, band: str, component: str) -> None:
        super().__init__(
            f"The exposure in band {band!r} has no {component}; calibrate it before this task, which works "
            "in nJy on a common grid of the sky.",
            band=band,
            component=component,
        )


def check_exposures(exposures: Mapping[str, ExposureF], max_wcs_offset: float = 0.1) -> SkyWcs:
    """Check that exposures, by band, are calibrated and on one pixel grid; return the WCS of the first.

    One sky position is at most ``max_wcs_offset`` (px) apart on the grids of two bands. Raises a ValueError
    without an exposure, `UncalibratedExposureError` without a WCS or a usable PhotoCalib,
    `UnusableExposureError` for another filter, and `IncompatibleExposuresError` if boxes or coordinate
    systems disagree.
    """
    if not exposures:
        raise ValueError("No exposure was given; one for each band of the model is needed.")
    all_wcs: dict[str, SkyWcs] = {}
    for band, exposure in exposures.items():
        label = exposure.getFilter()
        if label is not None and label.hasBandLabel() and label.bandLabel in {*exposures} - {band}:
            raise UnusableExposureError(
                f"The exposure in band {band!r} has the filter {label.bandLabel!r}. Were two bands swapped? "
                "Give each exposure under its own band.",
                band=band,
                filter=label.bandLabel,
            )
        photo_calib = exposure.getPhotoCalib()
        if photo_calib is None:
            raise UncalibratedExposureError(band, "PhotoCalib")
        mean = photo_calib.getCalibrationMean()
        if not (math.isfinite(mean) and mean > 0):
            raise UncalibratedExposureError(band, f"usable PhotoCalib ({mean} nJy per count)")
        wcs = exposure.getWcs()
        if wcs is None:
            raise UncalibratedExposureError(band, "WCS")
        all_wcs[band] = wcs
    (first, reference), *others = exposures.items()
    bbox = reference.getBBox()
    advice = "Warp all bands to one pixel grid, as coadds of one patch have it."
    for band, exposure in others:
        if exposure.getBBox() != bbox:
            raise IncompatibleExposuresError(
                "bounding box", (first, band), (bbox, exposure.getBBox()), advice
            )
    x, y = np.array([[p.getX(), p.getY()] for p in geom.Box2D(bbox).getCorners()]).T.copy()
    # The way back to pixels may be approximate: the same one is used for both.
    own_x, own_y = all_wcs[first].skyToPixelArray(*all_wcs[first].pixelToSkyArray(x, y))
    for band, _ in others:
        back_x, back_y = all_wcs[first].skyToPixelArray(*all_wcs[band].pixelToSkyArray(x, y))
        other_x, other_y = x - (back_x - own_x), y - (back_y - own_y)
        distance = np.hypot(other_x - x, other_y - y)
        # A comparison with NaN is False, so this asks for what is right.
        if not np.all(distance <= max_wcs_offset):
            worst = int(np.argmax(np.where(np.isfinite(distance), distance, np.inf)))
            raise IncompatibleExposuresError(
                "WCS",
                (first, band),
                (
                    f"pixel ({x[worst]:.2f}, {y[worst]:.2f})",
                    f"({other_x[worst]:.2f}, {other_y[worst]:.2f}) for the same position",
                ),
                f"At most {max_wcs_offset} pixel (config.max_wcs_offset) is fine. {advice}",
            )
    return all_wcs[first]


def to_nanojansky(exposure: ExposureF) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Bring the pixels of an exposure to nJy: flux (nJy) and variance (nJy^2), float32, (y, x).

    Its PhotoCalib may be constant or vary with the position.
    """
    box = exposure.getBBox()
    width, height = box.getWidth(), box.getHeight()
    photo_calib = exposure.getPhotoCalib()
    flux = np.empty((height, width), dtype=np.float32)
    variance = np.empty_like(flux)
    step = max(1, _BLOCK_SIZE // max(1, width))
    x = np.arange(box.getMinX(), box.getMinX() + width, dtype=np.float64)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        y = np.arange(rows.start, rows.stop, dtype=np.float64) + box.getMinY()
        # A constant PhotoCalib answers with a constant array.
        factor = photo_calib.getLocalCalibrationArray(np.tile(x, len(y)), np.repeat(y, width))
        factor = np.asarray(factor).reshape(len(y), width)
        # Infinite and huge pixels may overflow; they become invalid.
        with np.errstate(invalid="ignore", over="ignore"):
            flux[rows] = exposure.image.array[rows] * factor
            variance[rows] = exposure.variance.array[rows] * factor**2
    return flux, variance


def flagged_pixels(exposure: ExposureF, planes: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Find the pixels, bool, (y, x), with any of some mask planes set; undefined planes are ignored."""
    return np.asarray((exposure.mask.array & defined_plane_bits(exposure.mask, planes)) != 0)


def psf_image(exposure: ExposureF, y: float, x: float) -> npt.NDArray[np.float64] | None:
    """Draw the PSF of an exposure at a position in array pixels, (y, x), centred on its middle pixel.

    It is that of the average position where the PSF is not defined, and `None`
    without a PSF.
    """
    psf, box = exposure.getPsf(), exposure.getBBox()
    if psf is None:
        return None
    here = geom.Point2D(x + box.getMinX(), y + box.getMinY())
    for position in (here, None):
        try:
            # The PSF of a coadd is only defined where there is data.
            pixels = psf.computeKernelImage(position if position is not None else psf.getAveragePosition())
        except PexError:
            continue
        if np.isfinite(pixels.array).all():
            return np.asarray(pixels.array)
    return None


def psf_fwhm(exposures: Mapping[str, ExposureF]) -> npt.NDArray[np.float64]:
    """Measure the width of the PSF in each band, (band,), px; NaN where it is not known.

    It is the FWHM of the Gaussian with the adaptive moments of the PSF; where these vanish, as the PSF is
    hardly sampled, that of `~lsst.meas.maskrcnn.deblend.image.gaussian_fwhm`.
    """
    widths = np.full(len(exposures), np.nan)
    for index, (band, exposure) in enumerate(exposures.items()):
        psf = exposure.getPsf()
        if psf is None:
            _LOG.warning("The exposure in band %r has no PSF; stars are classified without its width.", band)
            continue
        try:
            # A coadd's PSF is only defined where there is data: its own average position is.
            position = psf.getAveragePosition()
            widths[index] = FWHM_PER_SIGMA * psf.computeShape(position).getDeterminantRadius()
            if not widths[index] > _LEAST_FWHM:
                widths[index] = gaussian_fwhm(psf.computeKernelImage(position).array)
        except PexError as error:
            _LOG.warning("The PSF in band %r cannot be computed (%s); going on without.", band, error)
    return widths


def to_multiband_image(
    exposures: Mapping[str, ExposureF],
    *,
    names: Mapping[str, str] | None = None,
    unusable_planes: Sequence[str] = ("BAD", "NO_DATA"),
    bad_planes: Sequence[str] = ("BAD", "CR", "NO_DATA", "SAT"),
    saturated_planes: Sequence[str] = ("SAT",),
    max_wcs_offset: float = 0.1,
    noise: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> MultibandImage:
    """Put the exposures of one patch together.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        Calibrated exposures on one pixel grid by band. They are not changed.
    names : `~collections.abc.Mapping` [`str`, `str`], optional
        Other names for some of the bands.
    unusable_planes, bad_planes, saturated_planes : sequence of `str`
        Mask planes of pixels that hold no data, of which no model is made,
        and that are saturated.
    max_wcs_offset : `float`, optional
        As in `check_exposures`.
    noise : `~collections.abc.Mapping` [`str`, `numpy.ndarray`], optional
        By band, a realisation of the noise, (y, x), nJy.

    Returns
    -------
    image : `~lsst.meas.maskrcnn.deblend.image.MultibandImage`
        Its pixels are copies, its PSF is that of the exposures.

    Raises
    ------
    UncalibratedExposureError, IncompatibleExposuresError
        Raised as by `check_exposures`.
    """
    wcs = check_exposures(exposures, max_wcs_offset)
    listed, instrumental = list(exposures.values()), instrumental_bands(exposures)
    box = listed[0].getBBox()
    shape = (len(listed), box.getHeight(), box.getWidth())
    flux, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for index, exposure in enumerate(listed):
        flux[index], variance[index] = to_nanojansky(exposure)

    known = [bool(usable_pixels(plane, plane).any()) for plane in variance]
    if not all(known):
        unknown = [band for band, has_variance in zip(exposures, known) if not has_variance]
        _LOG.warning("No variance above 0 in band %s; taking it from the pixels.", ", ".join(unknown))

    named = [*unusable_planes, *bad_planes, *saturated_planes]
    if unknown_planes := undefined_planes([exposure.mask for exposure in listed], named):
        warn_of_planes(unknown_planes)

    nothing = np.broadcast_to(np.float32(np.nan), shape[1:])
    realizations = np.stack([noise.get(band, nothing) for band in exposures]) if noise else None

    def pixels(planes: Sequence[str]) -> npt.NDArray[np.bool_]:
        return np.stack([flagged_pixels(exposure, planes) for exposure in listed])

    return MultibandImage(
        flux,
        [(names or {}).get(band, band) for band in exposures],
        wcs.getPixelScale(geom.Box2D(box).getCenter()).asArcseconds(),
        variance if all(known) else None,
        usable=~pixels(unusable_planes),
        bad=pixels(bad_planes),
        saturated=pixels(saturated_planes),
        psf=lambda band, y, x: psf_image(listed[band], y, x),
        psf_fwhm=psf_fwhm(exposures),
        wcs=_ArrayWcs(wcs, box.getMinX(), box.getMinY()),
        calibrated=[band not in instrumental for band in exposures],
        noise=realizations,
    )


def instrumental_bands(exposures: Mapping[str, ExposureF]) -> list[str]:
    """Name the bands whose zero point is not known: fluxes are counts there."""
    return [band for band, exposure in exposures.items() if exposure.getMetadata().exists(NO_ZERO_POINT)]


class _ArrayWcs:
    """WCS of an exposure that takes array pixels."""

    def __init__(self, wcs: SkyWcs, x0: int, y0: int) -> None:
        self._wcs, self._corner = wcs, (x0, y0)

    def pixelToSkyArray(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], degrees: bool = False
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return self._wcs.pixelToSkyArray(x + self._corner[0], y + self._corner[1], degrees=degrees)
