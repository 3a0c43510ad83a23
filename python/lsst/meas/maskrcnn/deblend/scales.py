# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection at several pixel sizes.

A network that learns from tiles knows sources that are small beside a tile. It
loses a galaxy that fills a good part of one, or takes its clumps for sources.
On an image of larger pixels the same galaxy is an ordinary source.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torchvision.models.detection import MaskRCNN

from ..images.binning import bin_image, bin_psf_fwhm
from ..images.tiles import make_tiles
from ..network.inference import Detections, InferenceSettings, detect
from .merging import ScaleSettings, merge_scales
from .saturated import join_saturated

__all__ = ["Normalise", "NormalizedBands", "ScaleSettings", "detect_scales", "merge_scales", "to_full_pixels"]

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

_SOFT_FLOOR = 0.05 * 255.0
"""Smallest value of a pixel of a soft mask."""

_UNKNOWN_FWHM = 4.0
"""Width of a PSF that is not known, px."""


class NormalizedBands(Protocol):
    """What a normalisation must tell.

    `~lsst.meas.maskrcnn.images.normalize.NormalizedImage` does.
    """

    @property
    def image(self) -> npt.NDArray[np.float32]:
        """Normalised image, float32, (band, y, x)."""

    @property
    def valid(self) -> BoolArray:
        """Usable pixels, bool, (y, x)."""

    @property
    def minimum(self) -> FloatArray:
        """Sky level of each band in units of the flux, (band,)."""

    @property
    def noise(self) -> FloatArray:
        """Noise of the sky in each band, (band,)."""


Normalise = Callable[
    [npt.NDArray[np.float32], "npt.NDArray[np.float32] | None", npt.NDArray[np.bool_]], NormalizedBands
]
"""Takes flux (band, y, x), variance (band, y, x) or None, and valid (y, x)."""


def detect_scales(
    network: MaskRCNN,
    normalise: Normalise,
    flux: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32] | None,
    valid: BoolArray,
    settings: InferenceSettings | None = None,
    scale_settings: ScaleSettings | None = None,
    psf_fwhm: npt.ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
    saturated: BoolArray | None = None,
) -> Detections:
    """Find the sources of an image at several pixel sizes.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `MaskRcnnModel.build` returns it.
    normalise : callable
        Normalises flux, variance and mask of usable pixels, as
        `~lsst.meas.maskrcnn.images.normalize.normalize` does; called for each
        binning, whose noise is another. It must leave its arguments as they
        are.
    flux : `numpy.ndarray`
        Flux per pixel, float32, (band, y, x).
    variance : `numpy.ndarray` or `None`
        Its variance, float32, (band, y, x).
    valid : `numpy.ndarray`
        Usable pixels, bool, (y, x).
    settings : `~.inference.InferenceSettings`, optional
        How to cut the images, and which detections to keep.
    scale_settings : `ScaleSettings`, optional
        The binnings, and how to merge.
    psf_fwhm : array_like, optional
        Widths of the PSF, (band,), px of the image; `None` or NaN where it is
        not known.
    progress : callable, optional
        Called with the number of tiles done and the number of tiles, of all
        binnings.
    saturated : `numpy.ndarray`, optional
        Saturated pixels, bool, (y, x); the pieces of a saturated star become
        one source.

    Returns
    -------
    detections : `~.inference.Detections`
        In the order of `~.inference.detect`, in pixels of the image, with the
        binning at which each was found. Sources that only a coarse binning
        found may have scores below the threshold: their light belongs to
        somebody.

    Raises
    ------
    ValueError
        Raised if shapes disagree.

    Notes
    -----
    Binnings 2 and 4 cost 1/4 and 1/16 of the forward passes of binning 1.
    `Detections.timings` are sums over the binnings; ``normalize`` has the
    binning and the normalisation, ``scales`` the merging.
    """
    settings = settings or InferenceSettings()
    scale_settings = scale_settings or ScaleSettings()
    started = time.perf_counter()
    if flux.ndim != 3:
        raise ValueError(f"flux has shape {flux.shape}; (band, y, x) is needed")
    shape = (flux.shape[1], flux.shape[2])
    for name, array, wanted in (
        ("variance", variance, flux.shape),
        ("valid", valid, shape),
        ("saturated", saturated, shape),
    ):
        if array is not None and array.shape != wanted:
            raise ValueError(f"{name} has shape {array.shape}; {wanted} is needed beside flux {flux.shape}")
    # A threshold above holds for coarse detections as well.
    confident = max(scale_settings.confident_score, settings.score_threshold)
    scale_settings = replace(scale_settings, confident_score=confident)
    coarse = replace(
        settings,
        score_threshold=min(settings.score_threshold, scale_settings.candidate_score),
        # What crowds a coarse tile is small, and binning 1 has it.
        split_crowded=False,
    )
    widths = None if psf_fwhm is None else np.asarray(psf_fwhm, dtype=float)
    tiles = [_count_tiles(shape, factor, settings) for factor in scale_settings.binnings]
    levels: list[Detections] = []
    timings = {"normalize": 0.0}
    brightness = np.zeros(shape, np.float32)
    for number, factor in enumerate(scale_settings.binnings):
        clock = time.perf_counter()
        if factor == 1:
            image = normalise(flux, variance, valid)
            brightness = _brightness(flux, image)
        else:
            binned = bin_image(flux, variance, valid, factor)
            image = normalise(binned.flux, binned.variance, binned.valid)
            del binned
        timings["normalize"] += time.perf_counter() - clock
        found = detect(
            network,
            image.image,
            image.valid,
            settings if factor == 1 else coarse,
            _part_of(progress, sum(tiles[:number]), sum(tiles[number + 1 :])),
            None if widths is None else bin_psf_fwhm(widths, factor),
        )
        del image
        for key, seconds in found.timings.items():
            timings[key] = timings.get(key, 0.0) + seconds
        if factor > 1:
            found = to_full_pixels(found, factor, shape, scale_settings.min_side, settings.mask_threshold)
        levels.append(found)
    clock = time.perf_counter()
    known = np.zeros(0) if widths is None else widths[np.isfinite(widths) & (widths > 0)]
    fwhm = float(np.median(known)) if known.size else _UNKNOWN_FWHM
    merged = merge_scales(levels, brightness, fwhm, scale_settings)
    if saturated is not None:
        merged = join_saturated(merged, saturated)
    merged = merged.sorted()
    timings["scales"] = time.perf_counter() - clock
    timings["total"] = time.perf_counter() - started
    merged.timings = timings
    return merged


def to_full_pixels(
    found: Detections, factor: int, shape: tuple[int, int], min_side: float = 0.0, threshold: float = 0.5
) -> Detections:
    """Bring detections on a binned image to the pixels of the whole one.

    Parameters
    ----------
    found : `~.inference.Detections`
        Detections in binned pixels, with soft masks.
    factor : `int`
        Pixels per binned pixel and axis.
    shape : `tuple` [`int`, `int`]
        Height and width of the whole image.
    min_side : `float`
        Least root of the area of a mask, in binned pixels; the others are
        left out.
    threshold : `float`
        Probability from which a pixel belongs to a source.

    Returns
    -------
    detections : `~.inference.Detections`
        The same in pixels of the image, without those that have no pixel on
        it. The probabilities are interpolated linearly between the centres
        of the binned pixels, so that masks have smooth edges.

    Raises
    ------
    ValueError
        Raised if the factor is below 1.
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
        inner, outer = _tight(smooth >= 255.0 * threshold), _tight(smooth >= _SOFT_FLOOR)
        if inner is None or outer is None:
            continue
        corner += first
        kept.append(index)
        masks.append(smooth[inner] >= 255.0 * threshold)
        origins.append(corner + [axis.start for axis in inner])
        soft.append(np.where(smooth[outer] >= _SOFT_FLOOR, np.rint(smooth[outer]), 0).astype(np.uint8))
        soft_origins.append(corner + [axis.start for axis in outer])
    chosen = found.take(np.array(kept, dtype=np.int64))
    limits = np.array([shape[1], shape[0], shape[1], shape[0]], dtype=np.float32)
    return Detections(
        boxes=np.minimum(chosen.boxes * np.float32(factor), limits),
        scores=chosen.scores,
        p_star=chosen.p_star,
        origins=np.array(origins, dtype=np.int32).reshape(-1, 2),
        masks=masks,
        timings=dict(found.timings),
        soft=soft,
        soft_origins=np.array(soft_origins, dtype=np.int32).reshape(-1, 2),
        binning=np.full(len(kept), factor, dtype=np.int8),
        flag_limited=chosen.flag_limited,
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


def _count_tiles(shape: tuple[int, int], factor: int, settings: InferenceSettings) -> int:
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


def _brightness(flux: npt.NDArray[np.float32], image: NormalizedBands) -> npt.NDArray[np.float32]:
    """Flux above the sky of the bands together, in units of the noise, not below 0."""
    total = np.zeros(flux.shape[1:], dtype=np.float32)
    scale = 1.0 / math.sqrt(len(flux))
    with np.errstate(invalid="ignore", over="ignore"):
        for plane, level, noise in zip(flux, image.minimum, image.noise, strict=True):
            total += (plane - np.float32(level)) * np.float32(scale / noise)
    total[~(image.valid & (total > 0) & np.isfinite(total))] = 0.0
    return total
