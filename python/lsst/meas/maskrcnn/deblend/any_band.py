# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection with networks that take any bands, at the pixel size they were trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from ..images.pixels import tight, tight_box
from ..metrics.spans import mask_pairs
from ..network.any_band import AnyBandNetwork
from ..network.any_band_detect import BandImage, find_in_bands, learned_scale, normalize_bands
from ..network.calibration import Calibration, calibrate
from ..network.detections import Detections
from ..network.inference import DetectionSettings
from ..network.masks import MASK_THRESHOLD
from ..network.wavelengths import band_wavelength
from .detection import DetectionImages, combine_flags
from .image import MultibandImage

_LOG = logging.getLogger(__name__)

_MAX_BANDS = 8
"""Most bands that a network is given; it is trained on at most six."""

_BRIGHT, _FLANK, _FLANK_LEVEL, _INSIDE, _LEAST_EXCESS = 100.0, 3.0, 0.3, 0.8, (0.25, 0.15)
"""A source with a peak over 100 sigma is bright; its flank reaches to 3 FWHM, with less than
0.3 of its peak. What is there, or has 0.8 of its mask in that of a brighter source, is a source
if it is brighter than the other side by at least 0.25 of it on a flank, 0.15 in a mask."""

_SAME_MASK, _LARGE_AREA = 0.7, 10.0
"""Overlap (IoU) of the masks of one source that was found twice, and their least area in units of the
square of the PSF's FWHM: masks of close pairs of small sources overlap as much."""

_SOFT_FLOOR = 0.05 * 255.0
"""Smallest value of a pixel of a soft mask."""

_LEAST_SCORE = 0.05
"""Smallest score of the network, before it is calibrated."""


def image_wavelengths(image: MultibandImage, given: Mapping[str, float] | None = None) -> list[float]:
    """Look up the effective wavelengths (nm) of the bands of an image; those that are given go first.

    A ValueError is raised if one is not known, or there are more bands than networks take.
    """
    if len(image.bands) > _MAX_BANDS:
        raise ValueError(
            f"the image has {len(image.bands)} bands ({', '.join(image.bands)}), wanted at most "
            f"{_MAX_BANDS}; leave some out"
        )
    return [band_wavelength(band, given) for band in image.bands]


def detect_any_band(
    network: AnyBandNetwork,
    image: MultibandImage,
    wavelengths: Sequence[float],
    settings: DetectionSettings,
    *,
    calibration: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Detections, DetectionImages]:
    """Find the sources of an image in all bands that are given, of wavelengths as of `image_wavelengths`.

    Returns the sources, in pixels of the image and with positions, and the image with its bands together.
    ``progress`` is called with the number of tiles done and the number of tiles.
    """
    usable = np.asarray(image.usable)
    bands = normalize_bands(
        image.flux,
        usable,
        np.asarray(image.psf_fwhm),
        wavelengths,
        image.variance,
        image.psf_wings(),
        calibrated=bool(np.all(image.calibrated)),
        pixel_scale=image.pixel_scale,
    )
    scaled, scale = learned_scale(bands)
    if not (bands.fwhm > 0).any():
        _LOG.warning(
            "The width of the PSF is not known in any band: do not trust the classes; give it if you can."
        )
    threshold = settings.score_threshold
    if threshold is None:
        threshold = network.spec.detection_score
    least = max(_raw(threshold, calibration, "score"), _LEAST_SCORE)
    found = find_in_bands(
        network,
        scaled,
        tile_size=settings.tile_size,
        tile_overlap=settings.tile_overlap,
        least=least,
        least_star=_raw(0.5, calibration, "p_star"),
        # Who gives a threshold gets nothing below it.
        least_bright=_LEAST_SCORE if settings.score_threshold is None else least,
        progress=progress,
    )
    bright = found.scores < least
    found = replace(
        found,
        scores=calibrate(found.scores, calibration, "score"),
        p_star=calibrate(found.p_star, calibration, "p_star"),
        p_blend=calibrate(found.p_blend, calibration, "p_blend"),
    )
    found = found.take((found.scores >= threshold) | bright)
    found = found.take(~_doubtful_sources(found, scaled))
    if scale > 1:
        found = to_full_pixels(found, int(scale), image.shape)
    elif scale < 1:
        found = _halve(found, image.shape)
    return found, _images(image, bands)


def _raw(threshold: float, calibration: Calibration | None, kind: Literal["score", "p_star"]) -> float:
    """Return an output of the network below which none is calibrated to the threshold."""
    raw = np.linspace(0.0, 1.0, 1001)
    enough = np.flatnonzero(calibrate(raw, calibration, kind) >= threshold)
    return float(raw[enough[0]]) - 0.001 if len(enough) else 1.0


def _doubtful_sources(found: Detections, image: BandImage) -> npt.NDArray[np.bool_]:
    """Mark what is a part of a brighter source, or a large one found twice.

    A part is where the light on the other side of the brighter source is as bright.

    A source of its own adds to one side alone. Parts are on the flank of a bright source, or in the mask
    of a brighter one, as spiral arms and the ends of edge-on galaxies are. On flanks, pairs of detections
    on opposite sides are left as they are.
    """
    fwhm, positions = image.mean_fwhm, found.positions
    smooth = ndimage.gaussian_filter(image.snr, 0.3 * fwhm)
    level = ndimage.map_coordinates(smooth, positions.T, order=1, mode="nearest")
    tree = cKDTree(positions)
    bright = np.flatnonzero(level > _BRIGHT)
    near = tree.query_ball_point(positions[bright], _FLANK * fwhm)
    host = np.repeat(bright, [len(item) for item in near])
    part = np.array([index for item in near for index in item], np.int64)
    flank = level[part] < _FLANK_LEVEL * level[host]
    pairs = mask_pairs(found.masks, found.origins, found.masks, found.origins)
    area = np.array([np.count_nonzero(mask) for mask in found.masks], np.int64)
    inside = (pairs.intersection > _INSIDE * area[pairs.second]) & (level[pairs.second] < level[pairs.first])
    host = np.concatenate([host[flank], pairs.first[inside]])
    on_flank = np.arange(len(host)) < np.count_nonzero(flank)
    part = np.concatenate([part[flank], pairs.second[inside]])
    mirrored = 2.0 * positions[host] - positions[part]
    visible = ((mirrored >= 0) & (mirrored <= np.array(smooth.shape) - 1)).all(axis=1)
    other = ndimage.map_coordinates(smooth, mirrored.T, order=1, mode="nearest")
    least = np.where(on_flank, *_LEAST_EXCESS)
    alike = visible & (level[part] - other < least * level[part])
    alike[on_flank] &= tree.query(mirrored[on_flank])[0] > fwhm
    doubtful = np.zeros(len(found), bool)
    doubtful[part[alike]] = True
    # Detections are sorted, the likeliest first.
    twice = (pairs.iou > _SAME_MASK) & (area[pairs.second] > _LARGE_AREA * fwhm**2)
    doubtful[pairs.second[twice & (pairs.second > pairs.first)]] = True
    return doubtful


def _images(image: MultibandImage, bands: BandImage) -> DetectionImages:
    """Bring the bands together, each pixel by the bands that have data there."""
    count = bands.valid.sum(axis=0, dtype=np.uint8)
    total = np.zeros(image.shape, np.float32)
    for plane in bands.pixels:
        total += np.arcsinh(plane / 3.0)
    share = np.maximum(count, 1).astype(np.float32)
    known = (np.asarray(image.usable) & np.isfinite(image.flux)).any(axis=(1, 2))
    noise = np.full(len(image.bands), np.nan)
    noise[known] = bands.noise
    return DetectionImages(
        snr=bands.snr,
        mean=total / share,
        flags=combine_flags(count > 0, image),
        noise=noise,
        fwhm=bands.mean_fwhm,
    )


def to_full_pixels(found: Detections, factor: int, shape: tuple[int, int]) -> Detections:
    """Bring detections on a binned image to the pixels of the whole one, of a shape (y, x).

    Those without a pixel on the image are left out. Probabilities are interpolated linearly
    between the centres of the binned pixels, so that masks have smooth edges.
    """
    kept: list[int] = []
    masks, origins, soft, soft_origins = [], [], [], []
    for index in range(len(found)):
        # One binned pixel more on each side, over which the probability ends.
        corner = (found.soft_origins[index].astype(np.int64) - 1) * factor
        first = np.maximum(-corner, 0)
        last = np.maximum(np.asarray(shape) - corner, 0)
        smooth = _enlarge(np.pad(found.soft[index], 1), factor)[first[0] : last[0], first[1] : last[1]]
        inner, outer = tight_box(smooth >= 255.0 * MASK_THRESHOLD), tight_box(smooth >= _SOFT_FLOOR)
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


def _halve(found: Detections, shape: tuple[int, int]) -> Detections:
    """Bring detections on an image of half the pixel size to the pixels of the whole one."""
    masks: list[npt.NDArray[np.bool_]] = []
    soft: list[npt.NDArray[np.uint8]] = []
    origins = np.zeros((len(found), 2), np.int32)
    for index, (values, corner) in enumerate(zip(found.soft, found.soft_origins, strict=True)):
        before = corner % 2
        after = (before + values.shape) % 2
        padded = np.pad(values.astype(np.float32), list(zip(before, after)))
        height, width = padded.shape
        mean = padded.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        origins[index] = corner // 2
        room = np.array(shape) - origins[index]
        mean = mean[: room[0], : room[1]]
        # The smallest sources keep a pixel.
        mask = mean >= min(127.5, float(mean.max(initial=0.0)))
        masks.append(mask)
        soft.append(np.rint(mean).astype(np.uint8))
    mask_origins = origins.copy()
    for index, mask in enumerate(masks):
        masks[index], y, x = tight(mask)
        mask_origins[index] += (y, x)
    return replace(
        found,
        boxes=found.boxes / np.float32(2.0),
        origins=mask_origins,
        masks=masks,
        soft=soft,
        soft_origins=origins,
        positions=(found.positions + np.float32(0.5)) / np.float32(2.0) - np.float32(0.5),
    )
