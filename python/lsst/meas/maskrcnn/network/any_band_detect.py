# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection with an `~.any_band.AnyBandNetwork`: normalised bands, tiles, seams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ..images.background import clip_sorted
from ..images.binning import bin_psf_fwhm, sum_squares
from ..images.classes import GALAXY, STAR
from ..images.tiles import Tile
from .any_band import AnyBandNetwork, BandProposals
from .band_layers import Field, pack_bands
from .detections import Detections
from .masks import SoftMasks, paste_soft_masks
from .psf import USUAL_FWHM
from .tile_detection import detect_in_tiles, tiles_at_once, unique_sources

_LEAST_PEAK = 0.02
"""Smallest probability of a source at a peak that is classified."""

_NARROW, _WIDE = 2.6, 8.0
"""FWHM (px) below which an image is oversampled, and above which it is binned to `USUAL_FWHM`."""

LEARNED_FWHM = 2.0, _WIDE
"""Widths of the PSF on which networks are trained (px)."""

_BRIGHT_SNR, _BRIGHT_LEVEL, _FLANK = 300.0, 20.0, 0.1
"""Flux over its noise, and brightness in units of the noise of a pixel, from which light is surely no noise,
and the part of its peak down to which it may not lead to something brighter. Where no source has such light,
networks are not sure of a bright star with an unusual PSF or a large galaxy; of fainter light, knots of
spirals are as many."""

_SHARP, _SHARPEST, _CLEAR_PEAK, _FEWEST_PEAKS = 0.2, 0.85, 20.0, 5
"""Part of the light of the 3 x 3 pixels about a peak that is in its pixel, by which the stars of an image are
narrower than networks know, 2 px, and by which it is a hot pixel; the least height of the peaks (sigma), and
their least number."""

_SAMPLE = 400_000
"""Pixels from which sky and noise are measured, at most."""

_ZOOM_NOISE = 0.87
"""Standard deviation of white noise after cubic interpolation to half the pixels."""


@dataclass(frozen=True, eq=False)
class BandImage:
    """Bands in units of their noise."""

    pixels: npt.NDArray[np.float32]
    """Flux without the sky in units of the noise, (band, y, x); 0 where it is not known."""
    valid: npt.NDArray[np.bool_]
    """Known pixels, (band, y, x)."""
    fwhm: npt.NDArray[np.float32]
    """FWHM of the PSF (px), (band,), as what follows."""
    noise: npt.NDArray[np.float32]
    """Noise of an empty pixel in the unit of the flux."""
    wavelength: npt.NDArray[np.float32]
    """Effective wavelength (nm)."""
    wings: npt.NDArray[np.float32]
    """Radius at 0.02 of the peak of the PSF (FWHM)."""
    field: Field = Field()
    """Depth and seeing."""

    @property
    def mean_fwhm(self) -> float:
        """Median over the bands of the widths that are known (px)."""
        known = self.fwhm[np.isfinite(self.fwhm) & (self.fwhm > 0)]
        return float(np.median(known)) if len(known) else USUAL_FWHM

    @property
    def snr(self) -> npt.NDArray[np.float32]:
        """All bands that have data in a pixel together, in units of the noise, (y, x)."""
        count = np.maximum(self.valid.sum(axis=0, dtype=np.uint8), 1)
        return np.asarray(self.pixels.sum(axis=0) / np.sqrt(count.astype(np.float32)), np.float32)


def normalize_bands(
    flux: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    fwhm: npt.ArrayLike,
    wavelength: npt.ArrayLike,
    variance: npt.NDArray[np.float32] | None = None,
    wings: npt.ArrayLike | None = None,
    *,
    calibrated: bool = False,
    pixel_scale: float | None = None,
) -> BandImage:
    """Subtract the sky from each band, (band, y, x), and divide by its noise.

    The flux is in one unit of flux density for all bands, ``calibrated`` if in nJy. By band there are the
    FWHM of the PSF (px; NaN where it is not known), the effective wavelength (nm) and the radius at which the
    PSF has 0.02 of its peak (FWHM; NaN where it is not known). Without a variance the noise is the scatter of
    the sky. The side of a pixel is in arcsec. Bands without data are left out.
    """
    pixels = np.zeros(flux.shape, np.float32)
    known = valid & np.isfinite(flux)
    noise = np.ones(len(flux), np.float32)
    for band, plane in enumerate(flux):
        sample = plane[known[band]]
        if not len(sample):
            continue
        step = max(1, len(sample) // _SAMPLE)
        sky = clip_sorted(np.sort(sample[::step]))
        noise[band] = sky.sigma
        if variance is not None:
            values = variance[band][known[band]][::step]
            values = values[np.isfinite(values) & (values > 0)]
            # Sources have photon noise of their own; half of the pixels are sky.
            if len(values):
                noise[band] = np.sqrt(np.quantile(values, 0.25))
        np.subtract(plane, sky.median, out=pixels[band], where=known[band])
        pixels[band] /= noise[band] if noise[band] > 0 else 1.0
    there = known.any(axis=(1, 2))
    # A slice takes no copy.
    rows = slice(None) if there.all() else there
    widths, nm = np.asarray(fwhm, np.float32), np.asarray(wavelength, np.float32)
    reach = np.full(len(flux), np.nan, np.float32) if wings is None else np.asarray(wings, np.float32)
    field = Field.of(noise[there] if calibrated else np.nan, widths[there], pixel_scale)
    return BandImage(pixels[rows], known[rows], widths[there], noise[there], nm[there], reach[there], field)


def learned_scale(image: BandImage) -> tuple[BandImage, float]:
    """Bin or oversample an image so that its PSF has a width that networks know.

    Where no width is known, it is oversampled if its peaks are too sharp. Returns the image, and the pixels
    of the given image per pixel of it.
    """
    width = image.mean_fwhm
    if width > _WIDE:
        factor = max(2, round(width / USUAL_FWHM))
        counts = sum_squares(image.valid.astype(np.float32), factor)
        pixels = sum_squares(image.pixels, factor)
        # The mean of the known pixels, with the noise of one of the new ones.
        pixels = np.where(counts > 0, pixels / np.sqrt(np.maximum(counts, 1.0)), 0.0).astype(np.float32)
        widths = bin_psf_fwhm(image.fwhm, factor).astype(np.float32)
        return replace(image, pixels=pixels, valid=2 * counts >= factor**2, fwhm=widths), float(factor)
    if width < _NARROW or (not (image.fwhm > 0).any() and _is_sharp(image)):
        pixels = ndimage.zoom(image.pixels, (1, 2, 2), order=3, mode="nearest", grid_mode=True) / _ZOOM_NOISE
        valid = image.valid.repeat(2, axis=1).repeat(2, axis=2)
        return replace(image, pixels=pixels.astype(np.float32), valid=valid, fwhm=2.0 * image.fwhm), 0.5
    return image, 1.0


def _is_sharp(image: BandImage) -> bool:
    """Whether a quarter of the peaks of an image, or more, have too much of their light in one pixel."""
    snr, known = image.snr, image.valid.any(axis=0)
    peak = (snr > _CLEAR_PEAK) & (snr == ndimage.maximum_filter(snr, 3)) & ndimage.minimum_filter(known, 3)
    share = snr[peak] / (9.0 * ndimage.uniform_filter(snr, 3)[peak])
    share = share[(share > 0) & (share < _SHARPEST)]
    return len(share) >= _FEWEST_PEAKS and bool(np.quantile(share, 0.75) > _SHARP)


def find_in_bands(
    network: AnyBandNetwork,
    image: BandImage,
    *,
    tile_size: int = 512,
    tile_overlap: int = 64,
    least: float = 0.05,
    least_star: float = 0.5,
    least_bright: float = 1.0,
    together: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Find the sources of an image of any size, each once; see `~.tile_detection.detect_in_tiles`.

    The image is one of `normalize_bands` and `learned_scale`. ``least`` is the smallest score, ``least_star``
    the probability of a star from which box and mask are those of one, ``least_bright`` the smallest score of
    bright light that is in no other source. The network takes so many tiles ``together``; by default one on a
    CPU, and on a GPU as many as half of its free memory holds. ``progress`` is called with the number of
    tiles done and the number of tiles.
    """
    fwhm = image.mean_fwhm

    def detect(tiles: list[Tile]) -> list[Detections]:
        return _detect_tiles(
            network, image, tiles, fwhm, least=least, least_star=least_star, least_bright=least_bright
        )

    return detect_in_tiles(
        detect,
        (image.pixels.shape[1], image.pixels.shape[2]),
        fwhm,
        size=tile_size,
        overlap=tile_overlap,
        align=network.spec.divisor,
        together=together or tiles_at_once(network.classes.weight.device),
        progress=progress,
    )


def _detect_tiles(
    network: AnyBandNetwork,
    image: BandImage,
    tiles: list[Tile],
    fwhm: float,
    *,
    least: float,
    least_star: float,
    least_bright: float,
) -> list[Detections]:
    """Find the sources of some tiles, in pixels of the image."""
    results = [Detections.empty()] * len(tiles)
    packed: dict[int, Tensor] = {}
    lights: list[npt.NDArray[np.float32]] = []
    for number, tile in enumerate(tiles):
        window = np.s_[:, tile.y0 : tile.y1, tile.x0 : tile.x1]
        there = image.valid[window].any(axis=(1, 2))
        if there.any():
            packed[number] = pack_bands(
                image.pixels[window][there],
                image.valid[window][there],
                image.fwhm[there],
                image.noise[there],
                image.wavelength[there],
                image.wings[there],
                image.field,
            )
            snr = replace(image, pixels=image.pixels[window], valid=image.valid[window]).snr
            lights.append(ndimage.uniform_filter(snr, 3, mode="nearest"))
    lowest = [
        np.where(light > _BRIGHT_LEVEL, min(least, least_bright), least).astype(np.float32)
        for light in lights
    ]
    found = detect_bands(network, list(packed.values()), fwhm, least=lowest, least_star=least_star)
    for number, item, light in zip(packed, found, lights):
        item = item.take((item.scores >= least) | _missed_light(item, light, item.scores >= least))
        results[number] = item.moved(tiles[number].y0, tiles[number].x0)
    return results


def _missed_light(
    found: Detections, light: npt.NDArray[np.float32], likely: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Mark sources that are not likely but hold bright light, which is in no other one.

    The light, (y, x), is in units of the noise of a pixel. Such a source has the brightest pixel of what is
    around it: parts of another one do not count.
    """
    windows = [
        np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
        for mask, (y, x) in zip(found.masks, found.origins.tolist())
    ]
    flux = np.array([light[window][mask].sum() for window, mask in zip(windows, found.masks)])
    covered, missed = np.zeros(light.shape, bool), np.zeros(len(found), bool)
    for index in np.lexsort((-flux * found.scores, ~likely)).tolist():
        mask, window = found.masks[index], windows[index]
        if not likely[index]:
            own = mask & ~covered[window]
            count = np.count_nonzero(own)
            if 2 * count <= np.count_nonzero(mask) or light[window][own].sum() < _BRIGHT_SNR * count**0.5:
                continue
            missed[index] = _is_peak(light, covered, mask, window)
        if likely[index] or missed[index]:
            covered[window] |= mask
    return missed


def _is_peak(
    light: npt.NDArray[np.float32],
    covered: npt.NDArray[np.bool_],
    mask: npt.NDArray[np.bool_],
    window: tuple[slice, slice],
) -> bool:
    """Whether a mask holds the brightest pixel of the light around it, most of which is not covered."""
    reach = 2 * max(mask.shape)
    around = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in window)
    near, own = light[around], np.zeros(light[around].shape, bool)
    y, x = (part.start - outer.start for part, outer in zip(window, around))
    own[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    peak = np.unravel_index(int(np.argmax(np.where(own, near, -np.inf))), near.shape)
    regions, _ = ndimage.label(near >= _FLANK * near[peak])
    region = regions == regions[peak]
    taken = covered[around]
    return bool(near[region].max() == near[peak] and not taken[peak] and taken[region].mean() < 0.5)


@torch.inference_mode()
def detect_bands(
    network: AnyBandNetwork,
    images: list[Tensor],
    fwhm: float,
    *,
    least: float | Sequence[npt.NDArray[np.float32]] = 0.05,
    least_star: float = 0.5,
    masks: bool = True,
) -> list[Detections]:
    """Find the sources of tiles of `~.band_layers.pack_bands`, which the network takes together.

    ``fwhm`` is that of the PSF (px), ``least`` the smallest score, or that in each pixel, (y, x), of each
    tile, ``least_star`` the probability of a star from which box and mask are those of one. Masks are empty
    unless they are wanted.
    """
    if not images:
        return []
    device = network.classes.weight.device
    features = network.features([image.to(device) for image in images])
    if isinstance(least, float):
        least = [np.full(image.shape[-2:], least, np.float32) for image in images]
    # The score is at most the square root of the probability of the peak.
    chances = [torch.from_numpy(np.maximum(_LEAST_PEAK, 0.99 * item**2)).to(device) for item in least]
    peaks = network.propose(features, chances, network.spec.proposals)
    counts = [len(item.scores) for item in peaks]
    outputs = network.classify(features, [item.boxes for item in peaks], [item.positions for item in peaks])
    found = []
    for lowest, proposals, *parts in zip(
        least, peaks, *(part.float().cpu().split(counts) for part in outputs)
    ):
        proposals = BandProposals(*(part.cpu() for part in proposals))
        some = _rate_proposals(network, proposals, parts, lowest, least_star)
        some.flag_limited[:] = len(proposals.scores) >= network.spec.proposals
        found.append(some.take(unique_sources(some.boxes, some.positions, fwhm)))
    if not masks:
        return found
    shapes = network.masks(features, [torch.from_numpy(item.boxes).to(device) for item in found])
    results = []
    for image, item, shape in zip(
        images, found, shapes.float().cpu().split([len(item.boxes) for item in found])
    ):
        labels = torch.from_numpy(np.where(item.p_star >= least_star, STAR, GALAXY))
        soft = shape[torch.arange(len(labels)), labels].sigmoid()
        size = image.shape[-2], image.shape[-1]
        item = replace(item, **paste_soft_masks(soft, torch.from_numpy(item.boxes), size)._asdict())
        results.append(item.take(np.array([mask.size > 0 for mask in item.masks], bool)))
    return results


def _rate_proposals(
    network: AnyBandNetwork,
    proposals: BandProposals,
    outputs: list[Tensor],
    least: npt.NDArray[np.float32],
    least_star: float,
) -> Detections:
    """Give the proposals of a tile their scores, classes and boxes, the best first.

    ``least`` is the smallest score in each pixel, (y, x).
    """
    logits, deltas, blend = outputs
    chances = torch.softmax(logits, dim=1)
    scores = (proposals.scores * (1.0 - chances[:, 0])).sqrt()
    p_star = chances[:, 1] / chances[:, 1:].sum(dim=1).clamp_min(1e-9)
    labels = torch.where(p_star >= least_star, STAR, GALAXY)
    decoded = network.box_coder.decode_single(deltas, proposals.boxes)
    boxes = decoded.reshape(*logits.shape, 4)[torch.arange(len(labels)), labels]
    boxes = torch.minimum(boxes.clamp_min(0.0), boxes.new_tensor([*least.shape[::-1]] * 2))
    columns, rows = proposals.positions.round().long().T
    lowest = torch.from_numpy(least)[rows.clamp(0, least.shape[0] - 1), columns.clamp(0, least.shape[1] - 1)]
    good = torch.where((scores >= lowest) & (boxes[:, 2:] - boxes[:, :2] >= 1.0).all(dim=1))[0]
    good = good[scores[good].argsort(descending=True, stable=True)]
    return Detections(
        boxes[good].numpy(),
        scores[good].numpy(),
        p_star[good].numpy(),
        **SoftMasks.empty(len(good))._asdict(),
        positions=proposals.positions[good].flip(1).numpy(),
        p_blend=blend[good].sigmoid().numpy(),
    )
