# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sources of a blend and the pixels in which each may have flux."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from .psf import draw_psf, prepare_psf

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Box = tuple[slice, slice]

REACH = 8.0
"""How far beyond its soft mask a source has flux (px): isolated galaxies lose
less than a hundredth of their flux there (`tests/benchmarks/bench_pairs.py`)."""

_LEAST_WEIGHT = 1e-12
"""Weight of a source however far away, so that each pixel has a source."""

_HALO, _HALO_SCALE = 1.0, 6.0
"""Least weight of a source in the core of its mask, where the soft mask is at
least one half, and the distance over which it falls by a factor of e outside
(px). With 1 the template alone decides in the core."""

_MASK_HALO, _MASK_HALO_SCALE = 0.05, 2.0
"""The same where masks alone decide: what is outside of one must count little."""


def mask_centers(soft: Sequence[npt.NDArray[np.uint8]], origins: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Find the middle of each soft mask, uint8, (y, x), whose first pixel is (y0, x0), (source, 2), px.

    Returns (y, x) of the mean with the squared mask as weight, (source, 2), px. A ValueError is raised if
    there are not as many origins as masks.
    """
    corners = np.asarray(origins, np.float64).reshape(-1, 2)
    if len(corners) != len(soft):
        raise ValueError(f"got {len(soft)} masks and {len(corners)} origins")
    centers = corners.copy()
    for index, mask in enumerate(soft):
        if mask.size == 0:
            continue
        weight = mask.astype(np.float64) ** 2
        rows, columns = weight.sum(axis=1), weight.sum(axis=0)
        mass = rows.sum()
        if mass > 0:
            centers[index, 0] += rows @ np.arange(len(rows)) / mass
            centers[index, 1] += columns @ np.arange(len(columns)) / mass
        else:
            centers[index] += (np.array(mask.shape) - 1) / 2
    return centers


@dataclass(frozen=True)
class BlendSource:
    """A source of a blend."""

    soft: npt.NDArray[np.uint8]
    """Probability that a pixel belongs to the source, times 255, uint8, (y, x)."""
    y0: int
    x0: int
    """First pixel of ``soft`` in the parent's box; it may reach beyond."""
    peak_y: float
    peak_x: float
    """Position of the peak in the parent's box, px. The centre of the mask replaces one that is not finite,
    or nearer to the centre of another source's mask than to that of its own."""
    is_star: bool = False
    """Whether it is taken for a point source."""

    def moved(self, dy: int, dx: int) -> BlendSource:
        """Add (dy, dx), px, to all coordinates."""
        return BlendSource(
            self.soft, self.y0 + dy, self.x0 + dx, self.peak_y + dy, self.peak_x + dx, self.is_star
        )


@dataclass
class Blend:
    """A parent and its sources, prepared for templates."""

    images: FloatArray
    variances: FloatArray
    """Pixels, float32, (band, y, x)."""
    parent: BoolArray
    """Pixels of the parent, (y, x)."""
    good: BoolArray
    """Pixels of which templates may be made, (band, y, x)."""
    sources: Sequence[BlendSource]
    peaks: npt.NDArray[np.float64]
    """(y, x) of the peaks, (source, 2)."""
    boxes: list[Box]
    """Rows and columns in which each source may have flux."""
    masks: list[FloatArray]
    """Soft masks on the boxes, 0 to 1, raised to the least weight of a source; 0 outside the parent."""
    psfs: list[FloatArray] | None
    """PSF in each band, as coefficients of a cubic spline."""

    @classmethod
    def make(
        cls,
        images: npt.ArrayLike,
        variances: npt.ArrayLike,
        parent: npt.ArrayLike,
        sources: Sequence[BlendSource],
        psf_images: Sequence[npt.ArrayLike] | None,
        good: npt.ArrayLike | None = None,
        *,
        masks_only: bool = False,
        reach: float = REACH,
    ) -> Blend:
        """Check and prepare the input of `lsst.meas.maskrcnn.deblend.shares.share_flux`.

        With ``masks_only`` masks alone decide; the others are as of that function. A ValueError is raised if
        shapes do not fit or there is no source.
        """
        images = np.asarray(images, np.float32)
        variances = np.asarray(variances, np.float32)
        parent = np.asarray(parent, bool)
        if images.ndim != 3 or variances.shape != images.shape or parent.shape != images.shape[1:]:
            raise ValueError(
                f"images have shape {images.shape}, variances {variances.shape}, the parent {parent.shape}; "
                "wanted (band, y, x) twice and (y, x)"
            )
        if not sources:
            raise ValueError("the parent has no source; give at least one")
        if not parent.size:
            raise ValueError(f"the parent has shape {parent.shape}; wanted at least one pixel")
        if psf_images is not None and len(psf_images) != len(images):
            raise ValueError(f"got {len(psf_images)} PSFs for {len(images)} bands")
        for number, source in enumerate(sources):
            if source.soft.ndim != 2 or source.soft.dtype != np.uint8:
                raise ValueError(
                    f"the soft mask of source {number} is {source.soft.dtype} of shape {source.soft.shape}; "
                    "wanted uint8, probability times 255, (y, x)"
                )
        usable = np.isfinite(images) & np.isfinite(variances) & (variances > 0)
        if good is not None:
            chosen = np.asarray(good, bool)
            if chosen.shape not in (images.shape, parent.shape):
                raise ValueError(f"good has shape {chosen.shape}; wanted {images.shape} or {parent.shape}")
            usable &= chosen
        psfs = None if psf_images is None else [prepare_psf(psf) for psf in psf_images]
        peaks = trusted_peaks(sources)
        boxes = _boxes(parent, sources, peaks, reach)
        masks = [
            _weigh(parent, source, peak, box, masks_only)
            for source, peak, box in zip(sources, peaks, boxes, strict=True)
        ]
        return cls(images, variances, parent, usable, sources, peaks, boxes, masks, psfs)

    def psf_on_box(self, index: int, y: float, x: float) -> FloatArray:
        """Draw the PSF with its centre at (y, x) of the parent's box (px) on the box of a source.

        At least 0, float32, (band, y, x). Beyond the image of the PSF it falls with the third power of the
        distance.
        """
        if self.psfs is None:
            raise ValueError("this blend has no PSF")
        rows, columns = self.boxes[index]
        dy = np.arange(rows.start, rows.stop, dtype=np.float64) - y
        dx = np.arange(columns.start, columns.stop, dtype=np.float64) - x
        return np.stack([draw_psf(psf, dy, dx) for psf in self.psfs])


def trusted_peaks(sources: Sequence[BlendSource]) -> npt.NDArray[np.float64]:
    """Give the peaks (y, x), (N, 2), px, or the middle of the mask of those that cannot be the source's own.

    A ValueError is raised if a source has neither a mask nor a finite peak.
    """
    peaks = np.array([(source.peak_y, source.peak_x) for source in sources], np.float64)
    corners = [(source.y0, source.x0) for source in sources]
    centers = mask_centers([source.soft for source in sources], corners)
    empty = np.array([not source.soft.any() for source in sources])
    unknown = ~np.isfinite(peaks).all(axis=1)
    if (empty & unknown).any():
        index = int(np.flatnonzero(empty & unknown)[0])
        raise ValueError(f"source {index} has neither a mask nor a finite peak; give it one of the two")
    centers[empty] = peaks[empty]
    peaks[unknown] = centers[unknown]
    distance = np.hypot(*(peaks - centers).T)
    nearest = cKDTree(centers).query(peaks)[0]
    return np.where((distance > nearest + 1e-9)[:, None], centers, peaks)


def _boxes(
    parent: BoolArray, sources: Sequence[BlendSource], peaks: npt.NDArray[np.float64], reach: float
) -> list[Box]:
    """Rows and columns in which each source may have flux; together they hold the parent."""
    height, width = parent.shape
    margin = int(np.ceil(reach))
    boxes: list[Box] = []
    covered = np.zeros(parent.shape, bool)
    for source, (y, x) in zip(sources, peaks.tolist(), strict=True):
        y0, x0 = source.y0, source.x0
        y1, x1 = y0 + source.soft.shape[0], x0 + source.soft.shape[1]
        if source.soft.size == 0:
            y0, x0 = round(y), round(x)
            y1, x1 = y0 + 1, x0 + 1
        # A source outside of the parent keeps its place in the list, with a pixel at the edge.
        top, left = min(max(y0 - margin, 0), height - 1), min(max(x0 - margin, 0), width - 1)
        box = (
            slice(top, max(min(y1 + margin, height), top + 1)),
            slice(left, max(min(x1 + margin, width), left + 1)),
        )
        boxes.append(box)
        covered[box] = True
    rows, columns = np.nonzero(parent & ~covered)
    if not len(rows):
        return boxes
    owner = cKDTree(peaks).query(np.column_stack([rows, columns]))[1]
    for index in np.unique(owner).tolist():
        mine = owner == index
        old = boxes[index]
        boxes[index] = (
            slice(min(old[0].start, int(rows[mine].min())), max(old[0].stop, int(rows[mine].max()) + 1)),
            slice(
                min(old[1].start, int(columns[mine].min())), max(old[1].stop, int(columns[mine].max()) + 1)
            ),
        )
    return boxes


def _weigh(
    parent: BoolArray, source: BlendSource, peak: npt.NDArray[np.float64], box: Box, masks_only: bool
) -> FloatArray:
    """Soft mask on a box, raised to the least weight that the source has there."""
    rows, columns = box
    soft = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    _paste(soft, source, rows.start, columns.start)
    halo, scale = (_MASK_HALO, _MASK_HALO_SCALE) if masks_only else (_HALO, _HALO_SCALE)
    core = soft >= 0.5
    if core.any():
        distance = distance_transform_edt(~core)
    else:
        y, x = np.ogrid[rows, columns]
        distance = np.hypot(y - peak[0], x - peak[1])
    least = np.maximum(halo * np.exp(-distance / scale), _LEAST_WEIGHT)
    return np.asarray(np.maximum(soft, least) * parent[rows, columns], np.float32)


def _paste(target: FloatArray, source: BlendSource, y0: int, x0: int) -> None:
    """Write a soft mask into an array whose first pixel is (y0, x0)."""
    height, width = target.shape
    top, left = source.y0 - y0, source.x0 - x0
    rows = slice(max(top, 0), min(top + source.soft.shape[0], height))
    columns = slice(max(left, 0), min(left + source.soft.shape[1], width))
    if rows.start < rows.stop and columns.start < columns.stop:
        part = source.soft[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        target[rows, columns] = part.astype(np.float32) / np.float32(255.0)
