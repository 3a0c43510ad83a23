# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures and truth catalogues as scenes to train on."""

from __future__ import annotations

__all__ = ["BAD_MASK_PLANES", "make_training_scene"]

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.pex.exceptions import Exception as PexError

from ..deblend.masks import clean_masks
from ..images.units import FWHM_PER_SIGMA
from ..scenes.config import MaskRule
from ..train.training_scene import TrainingScene
from ..train.training_set import MIN_PEAK_SHARE, mask_levels
from .mask_planes import defined_plane_bits
from .truth import TruthArrays, read_truth

BAD_MASK_PLANES = ("BAD", "NO_DATA")
"""Mask planes of pixels that are not usable, the same that the normalisation
leaves out (`tuple` [`str`, ...])."""


_BLOCK_SIZE = 1 << 20
"""Pixels that are calibrated at a time."""

_LEAST_NOISE = 0.1
"""Share of the noise that the variance tells under which an image has none.
Resampled images have half of it at least."""


def make_training_scene(
    exposures: Mapping[str, ExposureF],
    truth: SourceCatalog,
    bands: Sequence[str] | None = None,
    *,
    truth_images: Mapping[str, ExposureF] | None = None,
    noisy: bool | None = None,
    bad_mask_planes: Sequence[str] = BAD_MASK_PLANES,
    mask_rule: MaskRule | None = None,
    min_peak_share: float = MIN_PEAK_SHARE,
) -> TrainingScene:
    """Make a scene to train on from the datasets of a patch.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        Coadds by band, all with one bounding box.
    truth : `lsst.afw.table.SourceCatalog`
        Catalogue like the dataset ``maskRcnn_truth``.
    bands : `~collections.abc.Sequence` [`str`], optional
        Bands of the model in its order; by default all, as they come.
    truth_images : mapping [`str`, `lsst.afw.image.ExposureF`], optional
        Noise-free light of the sources by band, like the dataset
        ``maskRcnn_truthImage``. They are used if they are there in all the
        bands.
    noisy : `bool`, optional
        Whether the exposures have noise; by default that is seen from their
        pixels.
    bad_mask_planes : `~collections.abc.Sequence` [`str`]
        Planes of pixels that are not usable; those that an exposure does not
        define are passed over.
    mask_rule : `~lsst.meas.maskrcnn.scenes.config.MaskRule`, optional
        How the truth masks were made, for their growth with a blur; the
        published rule by default.
    min_peak_share : `float`
        Sources with less of the light at their own peak are ignored.

    Returns
    -------
    scene : `~lsst.meas.maskrcnn.train.training_scene.TrainingScene`
        In nJy. Sources that are flagged as masked, or drowned by a neighbour,
        are ignored; those with no pixel on the image are left out. Limits of
        area and S/N are applied when crops are cut.

    Raises
    ------
    ValueError
        Raised if a band is missing, if boxes differ, if an exposure has no
        PhotoCalib, or if the catalogue holds no truth.

    Notes
    -----
    The light of the sources holds no saturation: where an exposure has
    mask plane SAT, its own pixels take the place of the light's. Sky that
    subtraction left is in the exposures only.
    """
    bands = tuple(exposures if bands is None else bands)
    _check(exposures, bands, "exposure")
    first = exposures[bands[0]]
    box = first.getBBox()
    shape = (len(bands), box.getHeight(), box.getWidth())
    image, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    valid = np.ones(shape[1:], bool)
    for k, band in enumerate(bands):
        exposure = exposures[band]
        _calibrate(exposure, image[k], variance[k])
        valid &= np.isfinite(image[k]) & np.isfinite(variance[k]) & (variance[k] > 0)
        bits = defined_plane_bits(exposure.mask, bad_mask_planes)
        if bits:
            valid &= (exposure.mask.array & bits) == 0
    sky_sigma = np.ones(len(bands))
    for k in range(len(bands)):
        if valid.any():
            sky_sigma[k] = math.sqrt(float(np.median(variance[k][valid])))
        unknown = ~(np.isfinite(variance[k]) & (variance[k] > 0))
        variance[k][unknown] = sky_sigma[k] ** 2
        image[k][~np.isfinite(image[k])] = 0.0
    if noisy is None:
        noisy = any(_has_noise(image[k], sky_sigma[k], valid) for k in range(len(bands)))
    noiseless = None if noisy else image
    if noisy and truth_images is not None and all(band in truth_images for band in bands):
        noiseless = _light(truth_images, exposures, bands, image)

    arrays = read_truth(truth, box)
    masks, origins, kept = clean_masks(arrays.masks, arrays.origins, shape[1:])
    share = arrays.columns["peak_share"][kept]
    with np.errstate(invalid="ignore"):
        drowned = share < min_peak_share
    detection = image if noiseless is None else noiseless
    return TrainingScene(
        noiseless=noiseless,
        variance=variance,
        valid=valid,
        labels=np.where(arrays.is_star[kept], 1, 2).astype(np.int64),
        peak_flux=_peaks(arrays, kept, bands, sky_sigma, detection, masks, origins),
        origins=origins.astype(np.int32),
        masks=[np.array(mask, bool) for mask in masks],
        noisy=noisy,
        psf_fwhm=_psf_widths(exposures, bands),
        image=image if noisy else None,
        ignore=arrays.flags["masked"][kept] | drowned,
        positions=np.stack([arrays.y[kept], arrays.x[kept]], axis=1).astype(np.float32),
        mask_levels=mask_levels(mask_rule or MaskRule()),
    )


def _check(exposures: Mapping[str, ExposureF], bands: Sequence[str], what: str) -> None:
    if not bands:
        raise ValueError(f"No {what} was given; one for each band of the model is wanted.")
    missing = [band for band in bands if band not in exposures]
    if missing:
        raise ValueError(
            f"There is no {what} in band {', '.join(map(repr, missing))}; wanted are {list(bands)}, given "
            f"{list(exposures)}."
        )
    box = exposures[bands[0]].getBBox()
    for band in bands:
        if exposures[band].getBBox() != box:
            raise ValueError(
                f"The {what} in band {band!r} covers {exposures[band].getBBox()}, that in {bands[0]!r} "
                f"{box}; cut or warp them to one box first."
            )
        if exposures[band].getPhotoCalib() is None:
            raise ValueError(
                f"The {what} in band {band!r} has no PhotoCalib, so its pixels cannot be brought to nJy; "
                "attach one with setPhotoCalib."
            )


def _calibrate(
    exposure: ExposureF, image: npt.NDArray[np.float32], variance: npt.NDArray[np.float32] | None = None
) -> None:
    """Write the pixels in nJy, and their variance in nJy^2, into arrays."""
    box, calibration = exposure.getBBox(), exposure.getPhotoCalib()
    height, width = image.shape
    x = np.arange(box.getMinX(), box.getMinX() + width, dtype=np.float64)
    step = max(1, _BLOCK_SIZE // max(1, width))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        y = np.arange(rows.start, rows.stop, dtype=np.float64) + box.getMinY()
        factor = calibration.getLocalCalibrationArray(np.tile(x, len(y)), np.repeat(y, width))
        factor = np.asarray(factor).reshape(len(y), width)
        with np.errstate(invalid="ignore", over="ignore"):
            image[rows] = exposure.image.array[rows] * factor
            if variance is not None:
                variance[rows] = exposure.variance.array[rows] * factor**2


def _has_noise(plane: npt.NDArray[np.float32], sigma: float, valid: npt.NDArray[np.bool_]) -> bool:
    """Say whether pixels differ from their neighbours as noise does.

    The second differences of white noise have 6 times its variance; a quarter
    of them is within 0.319 of their standard deviation. In an image without
    noise the smoothest quarter of the pixels, which is sky, hardly differs at
    all.
    """
    triple = valid[:, 2:] & valid[:, 1:-1] & valid[:, :-2]
    difference = np.abs(plane[:, 2:] - 2.0 * plane[:, 1:-1] + plane[:, :-2])[triple]
    if not difference.size:
        return True
    noise = float(np.quantile(difference, 0.25)) / (0.3186 * math.sqrt(6.0))
    return noise > _LEAST_NOISE * sigma


def _light(
    truth_images: Mapping[str, ExposureF],
    exposures: Mapping[str, ExposureF],
    bands: Sequence[str],
    image: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Return the noise-free light, with the saturated pixels of the exposures."""
    _check(truth_images, bands, "truth image")
    light = np.empty_like(image)
    for k, band in enumerate(bands):
        if truth_images[band].getBBox() != exposures[band].getBBox():
            raise ValueError(
                f"The truth image in band {band!r} covers {truth_images[band].getBBox()}, its exposure "
                f"{exposures[band].getBBox()}; they must be of one patch."
            )
        _calibrate(truth_images[band], light[k])
        bits = defined_plane_bits(exposures[band].mask, ["SAT"])
        own = ~np.isfinite(light[k])
        if bits:
            own |= (exposures[band].mask.array & bits) != 0
        light[k][own] = image[k][own]
    return light


def _peaks(
    truth: TruthArrays,
    kept: npt.NDArray[np.int64],
    bands: Sequence[str],
    sky_sigma: npt.NDArray[np.float64],
    image: npt.NDArray[np.float32],
    masks: Sequence[np.ndarray],
    origins: np.ndarray,
) -> npt.NDArray[np.float32]:
    """Brightest pixel of each source, nJy, (source, band); 0 in bands in which it is not known."""
    peaks = np.full((len(kept), len(bands)), np.nan)
    for k, band in enumerate(bands):
        if band in truth.peak_snr:
            peaks[:, k] = truth.peak_snr[band][kept] * sky_sigma[k]
    for row in np.flatnonzero(np.isnan(peaks).all(axis=1)).tolist():
        # Nothing is known of this one: whatever shines within its mask is its own.
        mask, (y0, x0) = masks[row], origins[row].tolist()
        part = image[:, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
        peaks[row] = part[:, mask].max(axis=1)
    return np.nan_to_num(peaks, nan=0.0).astype(np.float32)


def _psf_widths(exposures: Mapping[str, ExposureF], bands: Sequence[str]) -> npt.NDArray[np.float32] | None:
    """FWHM of each band's PSF, px; NaN where there is none."""
    widths = np.full(len(bands), np.nan, np.float32)
    for k, band in enumerate(bands):
        psf = exposures[band].getPsf()
        if psf is None:
            continue
        try:
            # A coadd's PSF is only defined where there is data: its own average position is.
            shape = psf.computeShape(psf.getAveragePosition())
        except PexError:
            continue
        widths[k] = FWHM_PER_SIGMA * shape.getDeterminantRadius()
    return widths if np.isfinite(widths).any() else None
