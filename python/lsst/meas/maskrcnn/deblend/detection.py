# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection at several pixel sizes.

A network that is trained on tiles misses galaxies that fill a good part of a
tile, or detects their clumps. On an image of larger pixels the same galaxy is
an ordinary source.
"""

from __future__ import annotations

__all__ = ["DetectionImages", "combine_bands", "detect", "detect_binnings"]

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torchvision.models.detection import MaskRCNN

from ..images.binning import bin_image, bin_psf_fwhm
from ..images.detection_image import detection_image
from ..images.normalize import NormalizedImage
from ..images.tiles import make_tiles
from ..network.calibration import Calibration
from ..network.detections import Detections
from ..network.inference import DetectionSettings, detect_tiles
from ..network.masks import MASK_THRESHOLD
from .image import MultibandImage
from .merging import MIN_SIDE
from .suppression import make_suppression

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Normalize = Callable[[npt.NDArray[np.float32], "npt.NDArray[np.float32] | None", BoolArray], NormalizedImage]
"""Takes flux (band, y, x), variance (band, y, x) or None, and valid (y, x)."""

_SOFT_FLOOR = 0.05 * 255.0
"""Smallest value of a pixel of a soft mask."""

_CONFIDENT = 0.5
"""Probability from which a detection on a binned image is kept: fainter sources
are found on the finer image."""

_UNKNOWN_FWHM = 4.0
"""Width of a PSF that is not known (px): that of 0.7 arcsec seeing with the
pixels of HSC."""


def _resolve_settings(settings: DetectionSettings, network: MaskRCNN) -> DetectionSettings:
    """Put the defaults of a model in the place of settings that are None."""
    heads: Any = network.roi_heads
    score, overlap = settings.score_threshold, settings.nms_threshold
    return replace(
        settings,
        score_threshold=float(heads.score_thresh if score is None else score),
        nms_threshold=float(heads.nms_thresh if overlap is None else overlap),
    )


def detect(
    network: MaskRCNN,
    image: npt.NDArray[np.float32],
    valid: BoolArray | None = None,
    settings: DetectionSettings | None = None,
    *,
    calibration: Calibration | None = None,
    psf_fwhm: npt.ArrayLike | None = None,
    split_crowded: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Find the sources of a normalised image at its own pixel size.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `MaskRcnnModel.build` returns it.
    image : `numpy.ndarray`
        Normalised image, float32, (band, y, x), finite.
    valid : `numpy.ndarray`, optional
        Usable pixels, bool, (y, x).
    settings : `~lsst.meas.maskrcnn.network.inference.DetectionSettings`, optional
        How to detect.
    calibration, psf_fwhm, split_crowded, progress
        As in `~lsst.meas.maskrcnn.network.inference.detect_tiles`.

    Returns
    -------
    detections : `~lsst.meas.maskrcnn.network.detections.Detections`
        By descending score; equal scores by y, then x.
    """
    chosen = _resolve_settings(settings or DetectionSettings(), network)
    return detect_tiles(
        network,
        image,
        valid,
        chosen,
        make_suppression(chosen.suppression, float(chosen.nms_threshold or 0.0), _mean_width(psf_fwhm)),
        calibration=calibration,
        psf_fwhm=psf_fwhm,
        split_crowded=split_crowded,
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class DetectionImages:
    """The image without binning, the bands of the model together."""

    snr: npt.NDArray[np.float32]
    """Detection image: flux above the sky in units of its noise, (y, x)."""
    mean: npt.NDArray[np.float32]
    """Mean of the normalised bands, (y, x)."""
    valid: BoolArray
    """Pixels that hold data in all bands, (y, x)."""
    bad: BoolArray
    saturated: BoolArray
    """Pixels that are bad or saturated in any band, (y, x)."""
    noise: npt.NDArray[np.float64]
    """Noise of the sky in each band of the image, (band,), nJy; NaN for bands that the model does not use."""
    fwhm: float
    """FWHM of the PSF, px."""


def combine_bands(
    image: MultibandImage, bands: MultibandImage, normalized: NormalizedImage
) -> DetectionImages:
    """Combine the bands that the model uses.

    Parameters
    ----------
    image, bands : `~.image.MultibandImage`
        The image with all bands, and with those of the model.
    normalized : `~lsst.meas.maskrcnn.images.normalize.NormalizedImage`
        The latter, normalised.

    Returns
    -------
    images : `DetectionImages`
    """
    noise = np.full(len(image.bands), np.nan)
    noise[[tuple(image.bands).index(band) for band in bands.bands]] = normalized.noise
    return DetectionImages(
        detection_image(bands.flux, normalized.minimum, normalized.noise, normalized.valid),
        normalized.image.mean(axis=0),
        normalized.valid,
        np.logical_or.reduce(np.asarray(bands.bad), axis=0),
        np.logical_or.reduce(np.asarray(bands.saturated), axis=0),
        noise,
        bands.fwhm if math.isfinite(bands.fwhm) else _UNKNOWN_FWHM,
    )


@dataclass(frozen=True, eq=False)
class Level:
    """An image at one pixel size, and what was detected in it."""

    detections: Detections
    """In pixels of the whole image."""
    binning: int
    """Pixels per binned pixel and axis."""
    image: NormalizedImage
    """The normalised image."""


def detect_binnings(
    network: MaskRCNN,
    normalize: Normalize,
    flux: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32] | None,
    valid: BoolArray,
    settings: DetectionSettings,
    *,
    calibration: Calibration | None = None,
    psf_fwhm: npt.ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Level]:
    """Find the sources of an image at several pixel sizes.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `MaskRcnnModel.build` returns it.
    normalize : callable
        Normalises flux, variance and mask of usable pixels at each binning.
        It must not change its arguments.
    flux, variance : `numpy.ndarray`
        Flux per pixel and its variance or `None`, float32, (band, y, x).
    valid : `numpy.ndarray`
        Usable pixels, bool, (y, x).
    settings : `~lsst.meas.maskrcnn.network.inference.DetectionSettings`
        How to detect.
    calibration, psf_fwhm, progress
        As in `detect`; the width of the PSF is that of the image without
        binning, and ``progress`` counts the tiles of all binnings.

    Yields
    ------
    level : `Level`
        One for each binning. Detections on binned images are those of a
        probability of at least one half.

    Notes
    -----
    Binnings 2 and 4 cost 1/4 and 1/16 of the forward passes of binning 1.
    """
    shape = (flux.shape[1], flux.shape[2])
    settings = _resolve_settings(settings, network)
    coarse = replace(settings, score_threshold=max(_CONFIDENT, float(settings.score_threshold or 0.0)))
    widths = None if psf_fwhm is None else np.asarray(psf_fwhm, dtype=float)
    tiles = [_count_tiles(shape, factor, settings) for factor in settings.binnings]
    for number, factor in enumerate(settings.binnings):
        clock = time.perf_counter()
        if factor == 1:
            image = normalize(flux, variance, valid)
        else:
            binned = bin_image(flux, variance, valid, factor)
            image = normalize(binned.flux, binned.variance, binned.valid)
            del binned
        seconds = time.perf_counter() - clock
        found = detect(
            network,
            image.image,
            image.valid,
            settings if factor == 1 else coarse,
            calibration=calibration,
            psf_fwhm=None if widths is None else bin_psf_fwhm(widths, factor),
            # Crowded sources are small, and found without binning.
            split_crowded=factor == 1,
            progress=_part_of(progress, sum(tiles[:number]), sum(tiles[number + 1 :])),
        )
        if factor > 1:
            found = to_full_pixels(found, factor, shape, MIN_SIDE)
        found.timings["normalize"] = seconds
        yield Level(found, factor, image)


def to_full_pixels(
    found: Detections, factor: int, shape: tuple[int, int], min_side: float = 0.0
) -> Detections:
    """Bring detections on a binned image to the pixels of the whole one, of a shape (y, x).

    Those whose mask has less than the square of ``min_side`` binned pixels, or no
    pixel on the image, are left out. Probabilities are interpolated linearly
    between the centres of the binned pixels, so that masks have smooth edges.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}, wanted 1 or more")
    area = np.array([np.count_nonzero(mask) for mask in found.masks], dtype=float)
    kept: list[int] = []
    masks, origins, soft, soft_origins = [], [], [], []
    for index in np.flatnonzero(area >= max(min_side, 1.0) ** 2).tolist():
        # One binned pixel more on each side, over which the probability ends.
        corner = (found.soft_origins[index].astype(np.int64) - 1) * factor
        first = np.maximum(-corner, 0)
        last = np.maximum(np.asarray(shape) - corner, 0)
        smooth = _enlarge(np.pad(found.soft[index], 1), factor)[first[0] : last[0], first[1] : last[1]]
        inner, outer = _tight(smooth >= 255.0 * MASK_THRESHOLD), _tight(smooth >= _SOFT_FLOOR)
        if inner is None or outer is None:
            continue
        corner += first
        kept.append(index)
        masks.append(smooth[inner] >= 255.0 * MASK_THRESHOLD)
        origins.append(corner + [axis.start for axis in inner])
        soft.append(np.where(smooth[outer] >= _SOFT_FLOOR, np.rint(smooth[outer]), 0).astype(np.uint8))
        soft_origins.append(corner + [axis.start for axis in outer])
    chosen = found.take(np.array(kept, dtype=np.int64))
    limits = np.array([shape[1], shape[0], shape[1], shape[0]], dtype=np.float32)
    return replace(
        chosen,
        boxes=np.minimum(chosen.boxes * np.float32(factor), limits),
        origins=np.array(origins, dtype=np.int32).reshape(-1, 2),
        masks=masks,
        soft=soft,
        soft_origins=np.array(soft_origins, dtype=np.int32).reshape(-1, 2),
        binning=np.full(len(kept), factor, dtype=np.int8),
        positions=(chosen.positions + np.float32(0.5)) * np.float32(factor) - np.float32(0.5),
    )


def _enlarge(pixels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.float32]:
    """Interpolate linearly between the centres of large pixels, and beyond them not at all."""
    result = pixels.astype(np.float32)
    for axis in (0, 1):
        count = result.shape[axis]
        # Centres of the small pixels, in large ones.
        place = (np.arange(count * factor) + 0.5) / factor - 0.5
        first = np.clip(np.floor(place), 0, count - 2).astype(np.int64)
        weight = np.clip(place - first, 0.0, 1.0).astype(np.float32)
        if axis == 0:
            weight = weight[:, None]
        result = np.take(result, first, axis) * (1.0 - weight) + np.take(result, first + 1, axis) * weight
    return result


def _tight(mask: BoolArray) -> tuple[slice, slice] | None:
    """Slices of the box around the pixels of a mask, `None` without any."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _count_tiles(shape: tuple[int, int], factor: int, settings: DetectionSettings) -> int:
    height, width = (-(-side // factor) for side in shape)
    return len(make_tiles(height, width, settings.tile_size, settings.tile_overlap))


def _part_of(
    progress: Callable[[int, int], None] | None, before: int, after: int
) -> Callable[[int, int], None] | None:
    """Report the tiles of one binning as some of those of all."""
    if progress is None:
        return None

    def report(done: int, total: int) -> None:
        progress(before + done, before + total + after)

    return report


def _mean_width(psf_fwhm: npt.ArrayLike | None) -> float:
    """Mean of the widths that are known, px; NaN without one."""
    widths = np.asarray([] if psf_fwhm is None else psf_fwhm, dtype=float)
    known = widths[np.isfinite(widths) & (widths > 0)]
    return float(known.mean()) if known.size else math.nan
