# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures and truth catalogues as scenes to train on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog

from ..deblend.masks import clean_masks
from ..images.pixels import usable_pixels
from ..scenes.config import MaskRule
from ..train.training_scene import TrainingScene
from ..train.training_set import MIN_PEAK_SHARE, mask_levels
from .exposures import check_exposures, flagged_pixels, psf_fwhm, to_nanojansky
from .truth import TruthArrays, read_truth

_LEAST_NOISE = 0.1
"""Share of the noise that the variance predicts below which an image has none.
Resampled images have half of it at least."""


def make_training_scene(
    exposures: Mapping[str, ExposureF],
    truth: SourceCatalog,
    bands: Sequence[str] | None = None,
    *,
    truth_images: Mapping[str, ExposureF] | None = None,
    bad_mask_planes: Sequence[str] = ("BAD", "NO_DATA"),
) -> TrainingScene:
    """Make a scene to train on, in nJy, from the datasets of a patch.

    ``exposures`` are calibrated coadds by band, on one pixel grid; ``bands`` those of the model in its order,
    by default all as they come; ``truth_images`` the noise-free light of the sources by band, like the
    dataset ``maskRcnn_truthImage``, which is used if it is there in all the bands. Pixels with one of
    ``bad_mask_planes`` are not usable.

    Sources that are flagged as masked, or drowned by a neighbour, are ignored; those with no pixel on the
    image are left out. Whether the exposures have noise is measured on their pixels. Where one is saturated,
    its own pixels take the place of the noise-free light's.

    A ValueError is raised if a band is missing, truth images are of another patch, or the catalogue holds no
    truth; other errors are those of `~.exposures.check_exposures`.
    """
    bands = tuple(exposures if bands is None else bands)
    missing = [band for band in bands if band not in exposures]
    if missing:
        raise ValueError(
            f"There is no exposure in band {', '.join(map(repr, missing))}; wanted are {list(bands)}, given "
            f"{list(exposures)}."
        )
    chosen = {band: exposures[band] for band in bands}
    check_exposures(chosen)
    box = chosen[bands[0]].getBBox()
    image, variance, valid, sky_sigma = _read_pixels(list(chosen.values()), bad_mask_planes)
    noisy = any(_has_noise(plane, sigma, valid) for plane, sigma in zip(image, sky_sigma, strict=True))
    noiseless = None if noisy else image
    if noisy and truth_images is not None and all(band in truth_images for band in bands):
        noiseless = _noise_free_light({band: truth_images[band] for band in bands}, chosen, image)

    arrays = read_truth(truth, box)
    masks, origins, kept = clean_masks(arrays.masks, arrays.origins, valid.shape)
    with np.errstate(invalid="ignore"):
        drowned = arrays.columns["peak_share"][kept] < MIN_PEAK_SHARE
    detection = image if noiseless is None else noiseless
    widths = psf_fwhm(chosen).astype(np.float32)
    return TrainingScene(
        noiseless=noiseless,
        variance=variance,
        valid=valid,
        labels=np.where(arrays.is_star[kept], 1, 2).astype(np.int64),
        peak_flux=_peaks(arrays, kept, bands, sky_sigma, detection, masks, origins),
        origins=origins.astype(np.int32),
        masks=[np.array(mask, bool) for mask in masks],
        noisy=noisy,
        psf_fwhm=widths if np.isfinite(widths).any() else None,
        image=image if noisy else None,
        ignore=arrays.flags["masked"][kept] | drowned,
        positions=np.stack([arrays.y[kept], arrays.x[kept]], axis=1).astype(np.float32),
        mask_levels=mask_levels(MaskRule()),
    )


def _read_pixels(
    exposures: Sequence[ExposureF], bad_mask_planes: Sequence[str]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return finite image and variance (nJy), the usable pixels, and the noise of the sky in each band."""
    pixels = [to_nanojansky(exposure) for exposure in exposures]
    image, variance = np.stack([flux for flux, _ in pixels]), np.stack([plane for _, plane in pixels])
    masked = [flagged_pixels(exposure, bad_mask_planes) for exposure in exposures]
    usable = usable_pixels(image, variance, ~np.any(masked, axis=0))
    valid: npt.NDArray[np.bool_] = np.logical_and.reduce(usable, axis=0)
    sky_sigma = np.ones(len(exposures))
    for k, plane in enumerate(variance):
        if valid.any():
            sky_sigma[k] = math.sqrt(float(np.median(plane[valid])))
        plane[~usable_pixels(plane, plane)] = sky_sigma[k] ** 2
    image[~np.isfinite(image)] = 0.0
    return image, variance, valid, sky_sigma


def _has_noise(plane: npt.NDArray[np.float32], sigma: float, valid: npt.NDArray[np.bool_]) -> bool:
    """Return whether pixels differ from their neighbours as noise does.

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


def _noise_free_light(
    truth_images: Mapping[str, ExposureF], exposures: Mapping[str, ExposureF], image: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the noise-free light, with the saturated pixels of the exposures."""
    light = np.empty_like(image)
    for k, (band, exposure) in enumerate(exposures.items()):
        if truth_images[band].getBBox() != exposure.getBBox():
            raise ValueError(
                f"The truth image in band {band!r} covers {truth_images[band].getBBox()}, its exposure "
                f"{exposure.getBBox()}; they must be of one patch."
            )
        light[k], _ = to_nanojansky(truth_images[band])
        replaced = ~np.isfinite(light[k]) | flagged_pixels(exposure, ["SAT"])
        light[k][replaced] = image[k][replaced]
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
        # Without a measured peak, the brightest pixel within the mask stands in.
        mask, (y0, x0) = masks[row], origins[row].tolist()
        part = image[:, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
        peaks[row] = part[:, mask].max(axis=1)
    return np.nan_to_num(peaks, nan=0.0).astype(np.float32)
