# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which detections of a tile are of one source, and which are a blend.

A detector finds each source several times. The classical suppression takes two
boxes that overlap for one source, and so loses the fainter one of a close
pair. `keep_blends` asks in addition whether the two are at one place, in units
of the width of the PSF, and of one colour.

Boxes are [x0, y0, x1, y1], half open, in pixels of the tile. All functions
take candidates in any order and return indices by descending score; equal
scores are ordered by y, then x. Scores are calibrated probabilities.
"""

from __future__ import annotations

__all__ = ["make_suppression"]

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import nms

from ..images.tiles import concentric, overlapping_pairs
from ..network.inference import Candidates, Suppression
from ..network.masks import MASK_THRESHOLD

SEPARATION = 0.5
"""Distance of the centres of two boxes from which they are two sources, in
units of the FWHM of the PSF, or of a quarter of the side of the smaller box if
that is more. Below it most pairs of detections are two of one source
(``tests/benchmarks/bench_suppression.py``)."""

_COLOR_SEPARATION = 0.35
"""The same for sources of different colours (same benchmark)."""

_COLOR_DIFFERENCE = 10.0
"""Significance from which colours differ, in standard deviations: colour
gradients of single galaxies reach several (same benchmark)."""

_MASK_OVERLAP = 0.8
"""Overlap of two masks from which they are of one source: masks of two
detections of one source overlap by 0.85 and more (same benchmark)."""

_ALIKE = 0.9
"""Box IoU over which two candidates are one, whatever their places and colours."""

_STAR_WIDTHS = 4.0
"""Side of a box in units of the PSF's FWHM over which the source is large."""

_NOISE_PIXELS = 40_000
"""Pixels from which the noise of a tile is estimated."""

_OVERLAP_CELLS = 2_000_000
"""Largest number of mask cells that are compared at once."""


def make_suppression(kind: str, overlap: float, fwhm: float = math.nan) -> Suppression:
    """Choose how `~lsst.meas.maskrcnn.network.inference.detect_tiles` drops repeated detections.

    Parameters
    ----------
    kind : `str`
        ``hard``: of two boxes that overlap the weaker is dropped; ``mask``:
        it is dropped unless the two differ in place and colour, and
        detections with the same mask are one.
    overlap : `float`
        Box IoU over which two detections may be of one source.
    fwhm : `float`, optional
        FWHM of the PSF, px; NaN where it is not known.

    Returns
    -------
    suppression : `~lsst.meas.maskrcnn.network.inference.Suppression`
    """
    hard = kind == "hard"

    def in_tile(pixels: Tensor, found: Candidates) -> npt.NDArray[np.int64]:
        boxes, scores = found.boxes.cpu().numpy(), found.scores.cpu().numpy()
        if hard:
            return keep_hard(boxes, scores, overlap)
        return keep_blends(boxes, scores, overlap, measure_colors(pixels, boxes), fwhm)

    def by_masks(cells: Tensor, found: Candidates) -> npt.NDArray[np.int64] | None:
        return None if hard else same_masks(cells, found.boxes, found.labels)

    def at_seams(
        boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], tiles: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        separation = math.inf if hard else SEPARATION
        return keep_blends(boxes, scores, overlap, None, fwhm, tiles, separation)

    return Suppression(in_tile, by_masks, at_seams)


class Colors(NamedTuple):
    """Colours at the centres of boxes."""

    values: npt.NDArray[np.float32]
    """Share of each band in the sum of the bands' absolute values, (source, band)."""
    errors: npt.NDArray[np.float32]
    """Standard deviation by the noise of the tile, (source, band)."""

    def significance(
        self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Compute how far the colours of pairs differ.

        Parameters
        ----------
        first, second : `numpy.ndarray`
            Indices of the sources, (pair,).

        Returns
        -------
        significance : `numpy.ndarray`
            Root of chi squared, float32, (pair,).
        """
        difference = self.values[first] - self.values[second]
        variance = self.errors[first] ** 2 + self.errors[second] ** 2
        chi2: npt.NDArray[np.float32] = np.sum(difference**2 / np.maximum(variance, 1e-12), axis=1)
        return np.sqrt(chi2)


def measure_colors(image: Tensor, boxes: npt.NDArray[np.float32]) -> Colors:
    """Measure the colours at the centres of boxes.

    Parameters
    ----------
    image : `torch.Tensor`
        Normalised tile, float32, (band, y, x).
    boxes : `numpy.ndarray`
        Boxes, (source, 4).

    Returns
    -------
    colors : `Colors`
        From the mean of the four nearest pixels, weighted by distance. The
        normalisation of the package changes all bands of a pixel by one
        factor, which keeps these colours.
    """
    bands, height, width = image.shape
    corners = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)).to(image.device)
    # A box that is half open in pixels has its middle at (x0 + x1) / 2 - 0.5.
    center = (corners[:, :2] + corners[:, 2:]) / 2
    scale = corners.new_tensor([width, height])
    grid = (2.0 * center / scale - 1.0)[None, :, None]
    points = functional.grid_sample(image[None], grid, align_corners=False, padding_mode="border")[0, ..., 0]
    values = points.float().cpu().numpy().T
    noise = _noise(image)
    total = np.maximum(np.abs(values).sum(axis=1, keepdims=True), 1e-6)
    # Four pixels are averaged, so that this is on the safe side.
    return Colors(values / total, np.broadcast_to(noise / total, values.shape))


def _noise(image: Tensor) -> npt.NDArray[np.float32]:
    """Estimate the noise of a pixel in each band from neighbours."""
    bands, height, width = image.shape
    step = max(1, height * width // _NOISE_PIXELS)
    rows = image[:, ::step].float().cpu().numpy()
    if width < 2:
        return np.zeros(bands, dtype=np.float32)
    difference = np.abs(rows[:, :, 1:] - rows[:, :, :-1]).reshape(bands, -1)
    middle = difference.shape[1] // 2
    # The median of |a - b| of normal noise is 0.6745 sqrt(2) sigma.
    spread: npt.NDArray[np.float32] = np.partition(difference, middle, axis=1)[:, middle]
    return (spread / np.float32(0.9539)).astype(np.float32)


def _canonical_order(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Order candidates by score, and by position where scores are equal."""
    return np.lexsort((boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1], -scores))


def keep_hard(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], overlap: float
) -> npt.NDArray[np.int64]:
    """Keep the best of boxes that overlap, and of those with one middle.

    Parameters
    ----------
    boxes : `numpy.ndarray`
        Boxes, (source, 4).
    scores : `numpy.ndarray`
        Scores, (source,).
    overlap : `float`
        Box IoU over which the weaker of two is dropped, whatever their
        classes.

    Returns
    -------
    kept : `numpy.ndarray`
        Indices of those kept, int64, by descending score.
    """
    order = _canonical_order(boxes, scores)
    order = order[_nms(boxes[order], scores[order], overlap)]
    boxes = boxes[order]
    first, second, _ = _overlaps(boxes)
    same = concentric(boxes[first], boxes[second])
    return order[_greedy(len(boxes), first[same], second[same])]


def keep_blends(
    boxes: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    overlap: float,
    colors: Colors | None = None,
    fwhm: float = math.nan,
    groups: npt.NDArray[np.int64] | None = None,
    separation: float = SEPARATION,
) -> npt.NDArray[np.int64]:
    """Keep the best of boxes that overlap at one place.

    Parameters
    ----------
    boxes : `numpy.ndarray`
        Boxes, (source, 4).
    scores : `numpy.ndarray`
        Scores, (source,).
    overlap : `float`
        Box IoU over which two detections may be of one source; those of
        which one lies on the middle of the other may be, whatever their IoU.
    colors : `Colors`, optional
        Their colours; without them all are of one colour.
    fwhm : `float`, optional
        FWHM of the PSF, px. Where it is not known, a quarter of the side of
        the smaller box stands for it: the boxes of stars are 3 to 4 FWHM
        wide.
    groups : `numpy.ndarray`, optional
        Group of each box, int, (source,): only boxes of different groups can
        be of one source. By default all can.
    separation : `float`, optional
        Distance from which two are two sources, as `SEPARATION`.

    Returns
    -------
    kept : `numpy.ndarray`
        Indices of those kept, int64, by descending score.
    """
    order = _canonical_order(boxes, scores)
    if groups is None and overlap <= _ALIKE:
        # Most candidates are repetitions; this leaves few for the pairs.
        order = order[_nms(boxes[order], scores[order], _ALIKE)]
    boxes = boxes[order]
    first, second, ratio = _overlaps(boxes)
    same = (ratio > overlap) | concentric(boxes[first], boxes[second])
    if groups is not None:
        same &= groups[order[first]] != groups[order[second]]
    first, second = first[same], second[same]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = np.hypot(*(center[first] - center[second]).T)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    smaller = np.minimum(sides[first], sides[second])
    # The places of large sources are less certain, and where the PSF is not
    # known most boxes are those of sources of its size.
    known = fwhm if math.isfinite(fwhm) else 0.0
    distance /= np.maximum(known, np.maximum(smaller, 1e-6) / _STAR_WIDTHS)
    apart = distance >= separation
    if colors is not None and len(first):
        significance = colors.significance(order[first], order[second])
        apart |= (distance >= _COLOR_SEPARATION) & (significance >= _COLOR_DIFFERENCE)
    return order[_greedy(len(boxes), first[~apart], second[~apart])]


def same_masks(
    cells: Tensor, boxes: Tensor, labels: Tensor, overlap: float = _MASK_OVERLAP
) -> npt.NDArray[np.int64]:
    """Keep the first of sources whose masks are the same pixels.

    Parameters
    ----------
    cells : `torch.Tensor`
        Mask probabilities, float32, (source, cell, cell).
    boxes : `torch.Tensor`
        Their boxes by descending score, float32, (source, 4).
    labels : `torch.Tensor`
        Their classes, int64, (source,).
    overlap : `float`
        IoU of two masks of one class from which they are one. The outlines
        of stars reach farther than those of galaxies, so that of masks of
        different classes on one middle it is the share of the smaller one.

    Returns
    -------
    kept : `numpy.ndarray`
        Indices of those kept, int64, ascending.

    Notes
    -----
    Masks are compared on the cells of the smaller box of each pair of boxes
    that overlap enough; memory goes with the number of such pairs.
    """
    corners = boxes.float().cpu().numpy()
    classes = labels.cpu().numpy()
    count = len(corners)
    first, second, ratio = _overlaps(corners)
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    other = classes[first] != classes[second]
    # Boxes are tight, so that masks that are mostly one have boxes that are.
    use = (ratio >= 0.5 * overlap) & (~other | concentric(corners[first], corners[second]))
    first, second, other = first[use], second[use], other[use]
    if not len(first):
        return np.arange(count)
    swap = area[first] > area[second]
    small, large = np.where(swap, second, first), np.where(swap, first, second)
    side = cells.shape[-1]
    full = ((cells >= MASK_THRESHOLD).sum(dim=(1, 2)).cpu().numpy() / side**2) * area
    shared = np.zeros(len(first))
    step = max(1, _OVERLAP_CELLS // side**2)
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        shared[part] = _shared_cells(cells, boxes, small[part], large[part]) * area[small[part]]
    union = full[small] + full[large] - shared
    smaller = np.minimum(full[small], full[large])
    share = shared / np.maximum(np.where(other, smaller, union), 1e-6)
    alike = share >= overlap
    return _greedy(count, first[alike], second[alike])


def _shared_cells(
    cells: Tensor, boxes: Tensor, small: npt.NDArray[np.int64], large: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Share of the small box that is in both masks of each pair."""
    side = cells.shape[-1]
    i, j = torch.from_numpy(small).to(cells.device), torch.from_numpy(large).to(cells.device)
    steps = (torch.arange(side, device=cells.device) + 0.5) / side
    position = []
    for axis in (0, 1):
        pixel = boxes[i, axis, None] + steps * (boxes[i, axis + 2] - boxes[i, axis])[:, None]
        position.append(
            (pixel - boxes[j, axis, None]) / (boxes[j, axis + 2] - boxes[j, axis]).clamp_min(1e-6)[:, None]
        )
    x, y = position
    grid = torch.stack(
        [(2.0 * x - 1.0)[:, None, :].expand(-1, side, -1), (2.0 * y - 1.0)[:, :, None].expand(-1, -1, side)],
        dim=-1,
    )
    other = functional.grid_sample(
        cells[j, None].float(), grid.float(), align_corners=False, padding_mode="zeros"
    )[:, 0]
    both = (cells[i] >= MASK_THRESHOLD) & (other >= MASK_THRESHOLD)
    share: npt.NDArray[np.float64] = both.double().mean(dim=(1, 2)).cpu().numpy()
    return share


def _nms(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], overlap: float
) -> npt.NDArray[np.int64]:
    """Suppress by IoU; indices ascend, so that the given order stays."""
    kept: npt.NDArray[np.int64] = (
        nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap).cpu().numpy()
    )
    return np.sort(kept)


def _overlaps(
    boxes: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs i < j of boxes that overlap, and their IoU."""
    empty = np.zeros(0, dtype=np.int64)
    if len(boxes) < 2:
        return empty, empty, np.zeros(0)
    corners = boxes.astype(np.float64)
    pairs = [(i[i < j], j[i < j]) for i, j in overlapping_pairs(corners, corners)]
    first = np.concatenate([pair[0] for pair in pairs])
    second = np.concatenate([pair[1] for pair in pairs])
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    low = np.maximum(corners[first, :2], corners[second, :2])
    high = np.minimum(corners[first, 2:], corners[second, 2:])
    both = np.prod(np.maximum(high - low, 0.0), axis=1)
    return first, second, both / np.maximum(area[first] + area[second] - both, 1e-12)


def _greedy(count: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Drop the second of each pair whose first is kept, first ones first."""
    keep = np.ones(count, dtype=bool)
    order = np.argsort(first, kind="stable")
    values, starts = np.unique(first[order], return_index=True)
    for i, seconds in zip(values.tolist(), np.split(second[order], starts[1:]), strict=False):
        if keep[i]:
            keep[seconds] = False
    return np.flatnonzero(keep)
