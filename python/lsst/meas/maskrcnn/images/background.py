# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky level and sky noise of an image by sigma clipping; numpy only.

Every estimate is made of order statistics, so that it follows a change of the
unit (a positive factor) and of the sky level (a constant) exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

# Interquartile range of a Gaussian of unit variance.
_IQR_SIGMA = 1.3489795003921634
# Statistics are taken on a regular grid of about this many pixels: the error
# of the median is then 0.2 per cent of the noise, and sorting stays cheap.
_SAMPLE_SIZE = 500_000
# Pixels sampled in a mesh cell, and the fewest that give a level.
_CELL_SAMPLE = 4096
_CELL_MINIMUM = 16


@dataclass(frozen=True)
class ClippedStatistics:
    """Median and scatter of a clipped sample; zeros for an empty one."""

    median: float
    sigma: float


def _quantile(values: FloatArray, first: int, last: int, fraction: float) -> float:
    """Quantile of the sorted ``values[first:last]`` by interpolation."""
    position = first + fraction * (last - first - 1)
    low = math.floor(position)
    high = min(low + 1, last - 1)
    below, above = float(values[low]), float(values[high])
    return below + (position - low) * (above - below)


def clip_sorted(values: FloatArray, clip_sigma: float = 3.0, iterations: int = 10) -> ClippedStatistics:
    """Sigma-clip a sorted sample of finite values, (N,), about its median; no rounds for no clipping.

    Returns median and normalised interquartile range (IQR / 1.349) of the values that are left.
    """
    first, last = 0, len(values)
    if last == 0:
        return ClippedStatistics(0.0, 0.0)
    for n in range(iterations + 1):
        median = _quantile(values, first, last, 0.5)
        quartiles = _quantile(values, first, last, 0.25), _quantile(values, first, last, 0.75)
        sigma = (quartiles[1] - quartiles[0]) / _IQR_SIGMA
        if n == iterations or not sigma > 0:
            break
        # The sample is sorted, so that a clipped one is a range of indices.
        # The bounds have the type of the values, or numpy would convert them
        # all.
        bounds = np.array([median - clip_sigma * sigma, median + clip_sigma * sigma]).astype(values.dtype)
        new_first = max(first, int(np.searchsorted(values, bounds[0], side="left")))
        new_last = min(last, int(np.searchsorted(values, bounds[1], side="right")))
        if new_last <= new_first or (new_first, new_last) == (first, last):
            break
        first, last = new_first, new_last
    return ClippedStatistics(median, max(sigma, 0.0))


@dataclass(frozen=True)
class Background:
    """A constant sky level, or one on a mesh that is interpolated linearly."""

    level: float
    """The constant, or the median of the mesh."""
    mesh: npt.NDArray[np.float64] | None = None
    """Levels (ny, nx) of the cells, which divide the image evenly; `None` for a constant."""

    def rows(self, shape: tuple[int, ...], rows: slice) -> float | npt.NDArray[np.float64]:
        """Level in some rows of an image of a shape (y, x): a number if it is constant, else (row, x)."""
        return self.level if self.mesh is None else self.on_grid(shape, (rows, slice(None)))

    def on_grid(self, shape: tuple[int, ...], steps: tuple[slice, slice]) -> npt.NDArray[np.float64]:
        """Level at the pixels that slices in y and x cut from an image of a shape (y, x)."""
        y = np.arange(shape[0], dtype=np.float64)[steps[0]]
        x = np.arange(shape[1], dtype=np.float64)[steps[1]]
        if self.mesh is None:
            return np.full((y.size, x.size), self.level)
        low_y, high_y, part_y = _between(y, shape[0], self.mesh.shape[0])
        low_x, high_x, part_x = _between(x, shape[1], self.mesh.shape[1])
        along = self.mesh[:, low_x] + (self.mesh[:, high_x] - self.mesh[:, low_x]) * part_x
        return along[low_y] + (along[high_y] - along[low_y]) * part_y[:, np.newaxis]


def _between(position: FloatArray, length: int, cells: int) -> tuple[Any, Any, Any]:
    """Cells before and after each pixel, and its place between their centres.

    Outside the outermost centres the level stays constant.
    """
    place = np.clip((position + 0.5) * cells / length - 0.5, 0, cells - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, cells - 1), place - low


def constant_background(sample: FloatArray, clip_sigma: float, iterations: int) -> Background:
    """Sigma-clipped median of a sample of valid pixels, (N,), in any order; 0 for an empty one."""
    return Background(clip_sorted(np.sort(sample), clip_sigma, iterations).median)


def mesh_background(
    plane: FloatArray, good: BoolArray, mesh_size: int, clip_sigma: float, iterations: int
) -> Background:
    """Sigma-clipped medians on a coarse mesh, median-filtered 3 x 3, of the good pixels of an image (y, x).

    The side of a cell is about ``mesh_size`` (px). Without a good pixel it is a constant 0.
    """
    height, width = plane.shape
    cells = max(1, round(height / mesh_size)), max(1, round(width / mesh_size))
    edges_y = np.linspace(0, height, cells[0] + 1).astype(int)
    edges_x = np.linspace(0, width, cells[1] + 1).astype(int)
    mesh = np.full(cells, np.nan)
    for j in range(cells[0]):
        for i in range(cells[1]):
            cell = slice(edges_y[j], edges_y[j + 1]), slice(edges_x[i], edges_x[i + 1])
            ok = good[cell]
            step = max(1, math.isqrt(ok.size // _CELL_SAMPLE))
            sample = plane[cell][::step, ::step][ok[::step, ::step]]
            # A cell that is mostly masked holds the halo of what was masked.
            if sample.size >= max(_CELL_MINIMUM, 0.1 * ok.size / step**2):
                mesh[j, i] = clip_sorted(np.sort(sample), clip_sigma, iterations).median
    if np.isnan(mesh).all():
        return constant_background(plane[good], clip_sigma, iterations)
    # Continued oddly about the outermost cells, a gradient passes the filter.
    padded = mesh
    for axis in (0, 1):
        border = [(1, 1) if k == axis else (0, 0) for k in (0, 1)]
        if cells[axis] > 1:
            padded = np.pad(padded, border, mode="reflect", reflect_type="odd")
        else:
            padded = np.pad(padded, border, mode="edge")
    stack = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*cells, 9)
    level = float(np.nanmedian(mesh))
    filtered = np.full(cells, level)
    known = ~np.isnan(stack).all(axis=-1)
    filtered[known] = np.nanmedian(stack[known], axis=-1)
    return Background(level, filtered)


def sample_grid(good: BoolArray) -> tuple[slice, slice]:
    """Choose the slices in y and x, of a regular grid of pixels, on which statistics are taken."""
    step = max(1, math.ceil(math.sqrt(good.size / _SAMPLE_SIZE)))
    if step > 1 and np.count_nonzero(good[::step, ::step]) < 1000:
        step = 1  # the few valid pixels may lie between the points of the grid
    return slice(None, None, step), slice(None, None, step)


def sky_noise(
    plane: FloatArray,
    variance: FloatArray | None,
    good: BoolArray,
    residual: npt.NDArray[np.float64],
    source: str,
    clip_sigma: float,
    clip_iterations: int,
) -> tuple[float, str]:
    """Standard deviation of the sky in one band: positive, in nJy, and where it is from.

    Flux (nJy), its variance (nJy^2), which may be missing, and the pixels to use are
    (y, x); ``residual`` is the sorted sample of usable pixels minus background. The
    source "variance" is the variance plane wherever it has usable values, "pixels" the
    clipped scatter of the pixels; that of the result may be "fallback", too.

    "auto" takes the median of the variance plane if at least half of the good
    pixels have a finite, positive variance and it is not the same everywhere.
    A constant plane is often a placeholder. It is used if its sigma agrees
    with the scatter of the pixels within a factor of 2, or if the image is a
    noiseless simulation: the noise on the scale of one pixel (second
    differences) is under 0.3 of the scatter, where white noise has 1 and the
    correlated noise of coadds about 0.6. Otherwise the scatter of the pixels
    (normalised interquartile range after clipping, which equals the clipped
    MAD for symmetric noise) is used. If that is zero, it is a thousandth of
    the largest deviation from the background, and 1 nJy for a constant image.
    """
    clipped = clip_sorted(residual, clip_sigma, clip_iterations)
    scatter = clipped.sigma
    variance_sigma, constant = math.nan, False
    if variance is not None and source != "pixels":
        steps = sample_grid(good)
        values = variance[steps][good[steps]]
        with np.errstate(invalid="ignore"):
            usable = values[np.isfinite(values) & (values > 0)]
        if usable.size and 2 * usable.size >= values.size:
            variance_sigma = math.sqrt(float(np.median(usable.astype(np.float64))))
            constant = bool(usable.max() <= usable.min() * (1 + 1e-6))
    if variance_sigma > 0 and math.isfinite(variance_sigma):
        if source == "variance" or not constant:
            return variance_sigma, "variance"
        if not scatter > 0 or 0.5 <= variance_sigma / scatter <= 2.0:
            return variance_sigma, "variance"
        if _smooth_noise(plane, good) < 0.3 * scatter:
            return variance_sigma, "variance"
    if scatter > 0:
        return scatter, "pixels"
    largest = float(np.max(np.abs(residual[[0, -1]]))) if residual.size else 0.0
    return (1e-3 * largest, "fallback") if largest > 0 else (1.0, "fallback")


def _smooth_noise(plane: FloatArray, good: BoolArray) -> float:
    """Noise from second differences along x, which structure hardly changes; NaN if there are too few."""
    step = max(1, good.size // _SAMPLE_SIZE)
    rows = plane[::step].astype(np.float64)
    ok = good[::step]
    triple = ok[:, 2:] & ok[:, 1:-1] & ok[:, :-2]
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(rows[:, 2:] - 2.0 * rows[:, 1:-1] + rows[:, :-2])[triple]
    if difference.size < 16:
        return math.nan
    return float(np.median(difference)) * 1.482602218505602 / math.sqrt(6.0)
