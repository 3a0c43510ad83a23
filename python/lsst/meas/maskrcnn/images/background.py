# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky level and scatter of an image by sigma clipping; numpy only.

Every estimate is made of order statistics, so that it follows a change of the
unit (a positive factor) and of the sky level (a constant) exactly.
"""

from __future__ import annotations

__all__ = ["Background", "ClippedStatistics", "clip_sorted", "constant_background", "mesh_background"]

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

# Interquartile range of a Gaussian of unit variance.
_IQR_SIGMA = 1.3489795003921634
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
    """Sigma-clip a sorted sample about its median.

    Parameters
    ----------
    values : `numpy.ndarray`
        Sorted, finite values (N,).
    clip_sigma : `float`
        Threshold in units of the scatter.
    iterations : `int`
        Largest number of rounds; 0 for no clipping.

    Returns
    -------
    statistics : `ClippedStatistics`
        Median and normalised interquartile range (IQR / 1.349) of the values
        that are left.
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
    """A constant sky level, or one on a mesh that is interpolated linearly.

    Attributes
    ----------
    level : `float`
        The constant, or the median of the mesh.
    mesh : `numpy.ndarray` or `None`
        Levels (ny, nx) of the cells, which divide the image evenly.
    """

    level: float
    mesh: npt.NDArray[np.float64] | None = None

    def rows(self, shape: tuple[int, ...], rows: slice) -> float | npt.NDArray[np.float64]:
        """Level in some rows of an image.

        Parameters
        ----------
        shape : `tuple`
            Of the image, (y, x).
        rows : `slice`
            The rows.

        Returns
        -------
        level : `float` or `numpy.ndarray`
            A number for a constant level, else an array (rows, x).
        """
        return self.level if self.mesh is None else self.on_grid(shape, (rows, slice(None)))

    def on_grid(self, shape: tuple[int, ...], steps: tuple[slice, slice]) -> npt.NDArray[np.float64]:
        """Level at the pixels of a rectangular grid.

        Parameters
        ----------
        shape : `tuple`
            Of the image, (y, x).
        steps : `tuple` [`slice`]
            Slices in y and x.

        Returns
        -------
        level : `numpy.ndarray`
            Float64, of the shape that the slices cut from the image.
        """
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
    """Sigma-clipped median of a sample of valid pixels.

    Parameters
    ----------
    sample : `numpy.ndarray`
        Valid pixels (N,), in any order.
    clip_sigma, iterations : `float`, `int`
        Of the clipping.

    Returns
    -------
    background : `Background`
        A constant level; 0 for an empty sample.
    """
    return Background(clip_sorted(np.sort(sample), clip_sigma, iterations).median)


def mesh_background(
    plane: FloatArray, good: BoolArray, mesh_size: int, clip_sigma: float, iterations: int
) -> Background:
    """Sigma-clipped medians on a coarse mesh, median-filtered 3 x 3.

    Parameters
    ----------
    plane : `numpy.ndarray`
        Image (y, x).
    good : `numpy.ndarray`
        Bool (y, x), the pixels to use.
    mesh_size : `int`
        Approximate side of a cell in pixels.
    clip_sigma, iterations : `float`, `int`
        Of the clipping.

    Returns
    -------
    background : `Background`
        Level on the mesh; a constant 0 if there is no valid pixel.
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
