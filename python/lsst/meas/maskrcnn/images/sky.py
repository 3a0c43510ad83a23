# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky, noise and fill values of an image of which nothing is known but its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial.polynomial import polygrid2d, polyvander2d
from scipy import ndimage

from .background import Background, BoolArray, FloatArray, clip_sorted, mesh_background

_CLIP_SIGMA = 3.0
_ITERATIONS = 10
# Lag (px) at which the noise of stacked images is no longer correlated.
_FAR = 8
_FEWEST_PAIRS = 500
_ONE_SIGMA_BELOW = 0.15865525393145707
# Pixels in a row, and in all, that must have one value to be no data.
_FILL_RUN = 6
_FEWEST_FILLED = 32
_FEWEST_SATURATED = 5
# Pixels of a hole that may be the core of a star: fewer are bad pixels.
_CORE_AREA = 4, 5000
# Different values of most pixels up to which their steps are coarse.
_MOST_STEPS = 64
# Fits of a steep sky, each to what the ones before leave.
_TREND_FITS = 5


@dataclass(frozen=True)
class SkyEstimate:
    """Sky and noise of an image."""

    level: npt.NDArray[np.float64]
    """The sky, (y, x)."""

    sigma: float
    """Standard deviation of an empty pixel; 0 for an image without noise."""

    correlation: float
    """Correlation of the noise of neighbouring pixels; about 0 for white noise."""

    sum_sigma: float
    """Standard deviation of sums over eight by eight empty pixels, over eight: that of a pixel for white
    noise, and larger where the noise is correlated; 0 if there are no such sums."""

    sources: BoolArray
    """Pixels (y, x) that were left out, because they hold sources."""


def estimate_sky(
    plane: FloatArray, good: BoolArray, *, mesh_size: int = 128, subtracted: bool = False
) -> SkyEstimate:
    """Estimate the sky level and the noise between the sources of an image (y, x); good pixels are finite.

    Light of galaxies larger than the cells of the sky's mesh, ``mesh_size`` (px), is taken for sky. If the
    sky was subtracted before, it is zero, and only the noise is wanted. A ValueError is raised if shapes
    differ, no pixel is good, or ``mesh_size`` is not positive.

    Sky and sources are found in turn: medians of the cells, then pixels that stand out of the smoothed
    difference, and again without these. The noise is the scatter of differences between pixels eight apart in
    what is left, where the noise of stacked images is no longer correlated: with neighbouring pixels it would
    come out too small. Values in steps, such as integers, are blurred by their step for the medians, which
    would be in steps otherwise, and for noise that is smaller than a step.
    """
    plane = np.asarray(plane, dtype=np.float64)
    if plane.ndim != 2 or plane.shape != good.shape:
        raise ValueError(f"Image and good pixels must be (y, x), got {plane.shape} and {good.shape}.")
    if not good.any():
        raise ValueError("No pixel of the image is good; give an image of the sky.")
    if mesh_size < 1:
        raise ValueError(f"mesh_size is {mesh_size}; it must be at least 1.")
    filled = np.where(good, plane, 0.0)
    step = _step_of(filled[good])
    dither = step * np.random.default_rng(0).uniform(-0.5, 0.5, plane.shape) if step > 0.0 else 0.0
    smooth_values = filled + dither
    sources = np.zeros(plane.shape, dtype=bool)
    level = np.zeros(plane.shape)
    trend = None if subtracted else _steep_trend(smooth_values, good, mesh_size)
    if trend is not None:
        filled, smooth_values = filled - trend, smooth_values - trend
    for _ in range(3):
        used = good & ~sources
        if not subtracted:
            # What a steep sky leaves within the cells is taken off before it is measured again.
            before = 0.0 if trend is None else level
            rest = mesh_background(smooth_values - before, used, mesh_size, _CLIP_SIGMA, _ITERATIONS)
            level = before + _continued(rest, plane.shape)
        difference = np.where(good, filled - level, 0.0)
        sources = _stand_out(difference, good)
    used = good & ~sources
    if np.count_nonzero(used) < 0.05 * np.count_nonzero(good):
        used = good
    lags = _far_lag(plane), 1
    far, near = (_difference_sigma(difference, used, lag) for lag in lags)
    coarse = 0.0 < far < step
    if coarse:
        # Differences of values with few steps in the noise are mostly zero.
        blurred = [_difference_sigma(difference + dither, used, lag) for lag in lags]
        far, near = (math.sqrt(max(sigma**2 - step**2 / 12.0, 0.0)) for sigma in blurred)
    if not subtracted:
        # Medians lie below the mean of counted photons.
        residual = difference[used]
        scatter = clip_sorted(np.sort(residual), _CLIP_SIGMA, _ITERATIONS)
        reach = 4.0 * max(scatter.sigma, far) + step if coarse else 4.0 * scatter.sigma
        kept = residual[np.abs(residual - scatter.median) <= reach]
        level = level + (float(kept.mean()) if kept.size else 0.0)
    if trend is not None:
        level = level + trend
    correlation = 1.0 - (near / far) ** 2 if far > 0 else 0.0
    return SkyEstimate(level, far, correlation, _sum_sigma(difference, used), sources)


def find_plateau(plane: FloatArray) -> float | None:
    """Level at which an image (y, x) is saturated, if it can be seen.

    It is the highest value, if several pixels have it and it is far above the others.
    """
    finite = plane[np.isfinite(plane)]
    if not finite.size:
        return None
    level = float(finite.max())
    count = np.count_nonzero(finite == level)
    statistics = clip_sorted(np.sort(finite[:: max(1, finite.size // 100_000)]))
    high = level > statistics.median + 1000.0 * statistics.sigma and statistics.sigma > 0
    return level if high and _FEWEST_SATURATED <= count < 0.05 * finite.size else None


def is_pile(plane: FloatArray, level: float) -> bool:
    """Whether pixels above a level pile up there, far above the sky, as those of a saturated star do."""
    finite = plane[np.isfinite(plane)]
    above = finite[finite >= level]
    low, median = np.quantile(finite, [_ONE_SIGMA_BELOW, 0.5])
    far = level > max(2.0 * median, median + 50.0 * (median - low))
    return bool(far and above.size and np.quantile(above, 0.9) < 1.5 * level)


def source_light(pixels: FloatArray, finite: BoolArray, sources: BoolArray, sigma: float) -> FloatArray:
    """Light of the sources in noisy pixels (y, x), at least 0.

    Faint light is smoothed: the positive half of the noise is no light.
    """
    filled = np.where(finite, pixels, 0.0)
    faint = np.clip(blur(filled, 2.0), 0.0, 4.0 * sigma)
    return np.where(sources & finite, np.where(filled > 4.0 * sigma, filled, faint), 0.0)


def lies_on_sources(flagged: BoolArray, pixels: FloatArray, sigma: float) -> bool:
    """Whether nearly all sources of a sky-subtracted image (y, x), and not the sky, are flagged."""
    smooth = blur(pixels, 1.5)
    labels, number = ndimage.label(smooth > 3.0 * sigma)
    peaks = ndimage.maximum_position(smooth, labels, range(1, number + 1))
    return bool(number >= 10 and np.mean([flagged[peak] for peak in peaks]) > 0.9 and flagged.mean() < 0.5)


def find_fill(plane: FloatArray) -> BoolArray:
    """Find pixels (y, x) that were filled with a constant because there are no data.

    They are connected and of exactly one value. Saturated stars and the empty sky
    of images without noise are not among them.
    """
    finite = np.isfinite(plane)
    runs = np.zeros(plane.shape, dtype=bool)
    repeats = []
    for axis in (0, 1):
        lines = np.moveaxis(plane, axis, 1)
        equal = lines[:, 1:] == lines[:, :-1]
        repeats.append(equal)
        opened = ndimage.binary_opening(equal, np.ones((1, _FILL_RUN - 1)))
        runs |= np.moveaxis(np.pad(opened, ((0, 0), (0, 1))) | np.pad(opened, ((0, 0), (1, 0))), 1, axis)
    others = finite & ~runs
    filled = np.zeros(plane.shape, dtype=bool)
    if not runs.any() or not others.any():
        return runs & finite
    values = plane[others]
    median = float(np.median(values))
    scatter = 1.4826 * float(np.median(np.abs(values - median)))
    # Counts of few photons repeat by chance, but not without holes.
    integers = np.array_equal(values, np.rint(values))
    inner = others[:, 1:] & others[:, :-1]
    chance = float(np.mean(repeats[1][inner])) if inner.any() else 0.0
    lowest, highest = float(plane[finite].min()), float(plane[finite].max())
    low, high = np.quantile(values, [0.16, 0.84])
    # Where all that is not constant is the light of sources, there is no noise.
    noiseless = high - median > 2.5 * (median - low)
    plateau = find_plateau(plane)
    labels, number = ndimage.label(runs)
    for label, box in enumerate(ndimage.find_objects(labels, number), 1):
        wide = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
        block, part = labels[wide] == label, plane[wide]
        if np.count_nonzero(block) < _FEWEST_FILLED:
            continue
        constants, counts = np.unique(part[block], return_counts=True)
        for constant in constants[counts >= _FEWEST_FILLED]:
            same = block & (part == constant)
            border = part[ndimage.binary_dilation(same) & others[wide]]
            if not border.size:
                continue
            step = float(np.median(np.abs(border - constant)))
            bright = float(np.median(border)) > median + 10.0 * scatter
            # Photographic plates and lossy compression leave constant cores of stars below the highest value.
            saturated = constant == plateau or (bright and constant >= min(highest, np.median(border)))
            likely = (chance > 0.2 or integers) and abs(constant - median) <= 5.0 * scatter + 1.0
            full = border.size < 0.1 * np.count_nonzero(same) and (step > 1.0 or not integers)
            empty = noiseless and constant == lowest
            if step > 0.1 * scatter and not (saturated or empty) and (full or not likely):
                filled[wide] |= same
    return filled


def fill_cores(plane: FloatArray, known: BoolArray) -> tuple[FloatArray, BoolArray]:
    """Find holes in bright sources, as stacks have where stars are saturated, and fill them.

    ``known`` are the pixels (y, x) with data. A hole is the core of a source if the pixels about it are
    far above the sky, and above those a little further out; it gets the highest of their values. Returns
    the image and the cores.
    """
    cores, filled = np.zeros(plane.shape, dtype=bool), plane
    if known.all() or not known.any():
        return filled, cores
    values = plane[known]
    sample = values[:: max(1, values.size // 200_000)]
    low, median, high = np.quantile(sample, [_ONE_SIGMA_BELOW, 0.5, 1.0 - _ONE_SIGMA_BELOW])
    least = median + 30.0 * max(median - low, high - median)
    bright = ndimage.maximum_filter(known & (plane > least), 3)
    labels, number = ndimage.label(~known)
    # Those about which it is bright.
    found = np.unique(labels[bright & ~known])
    places = np.zeros(number + 1, dtype=np.intp)
    places[found] = np.arange(1, found.size + 1)
    labels = places[labels]
    areas = np.bincount(labels.ravel())
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        outer = tuple(slice(part.start - 5, part.stop + 5) for part in box)
        inside = all(part.start >= 0 and part.stop <= side for part, side in zip(outer, plane.shape))
        if not (_CORE_AREA[0] <= areas[label] <= _CORE_AREA[1] and inside):
            continue
        hole, part = labels[outer] == label, plane[outer]
        rings = [_grow(hole, radius) for radius in (1, 3, 5)]
        near, far = rings[0] & known[outer], rings[2] & ~rings[1] & known[outer]
        if not near.any() or not far.any():
            continue
        height = np.median(part[near])
        if height > max(least, median + 1.5 * (np.median(part[far]) - median)):
            filled = plane.copy() if filled is plane else filled
            filled[outer][hole] = part[near].max()
            cores[outer] |= hole
    return filled, cores


def _step_of(values: FloatArray) -> float:
    """Step of which all values are multiples, where the noise has few of them, or 1 for integers; else 0."""
    if np.array_equal(values, np.rint(values)):
        return 1.0
    sample = values[:: max(1, values.size // 20_000)]
    low, high = np.quantile(sample, [0.05, 0.95])
    steps = np.diff(np.unique(sample[(sample >= low) & (sample <= high)]))
    if not 0 < steps.size < _MOST_STEPS:
        return 0.0
    multiples = steps / steps.min()
    return float(steps.min()) if (np.abs(multiples - np.rint(multiples)) < 0.02).all() else 0.0


def _continued(background: Background, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Background (y, x), continued linearly beyond the outermost cells, or a slope would stand out there."""
    if background.mesh is None:
        return np.full(shape, background.level)
    level = background.mesh
    for axis in (0, 1):
        cells = level.shape[axis]
        if cells == 1:
            level = np.repeat(level, shape[axis], axis=axis)
            continue
        place = (np.arange(shape[axis]) + 0.5) * cells / shape[axis] - 0.5
        low = np.clip(np.floor(place).astype(np.intp), 0, cells - 2)
        part = np.expand_dims(place - low, 1 - axis)
        below = np.take(level, low, axis=axis)
        level = below + part * (np.take(level, low + 1, axis=axis) - below)
    return level


def _far_lag(plane: FloatArray) -> int:
    return min(_FAR, max(1, min(plane.shape) // 4))


def _steep_trend(plane: FloatArray, good: BoolArray, mesh_size: int) -> npt.NDArray[np.float64] | None:
    """Fit a polynomial of second order to the sky of an image (y, x), if it is steep.

    Where the sky changes by more than the noise from cell to cell of the mesh, the medians of cells shift
    with where the sources hide it. It is `None` for skies that are flatter, and for images without noise.
    """
    noise = _difference_sigma(plane, good, _far_lag(plane))
    if not noise > 0.0:
        return None
    trend = None
    for _ in range(_TREND_FITS):
        rest = plane if trend is None else plane - trend
        mesh = mesh_background(rest, good, mesh_size, _CLIP_SIGMA, _ITERATIONS).mesh
        if mesh is None:
            break
        fit = _fit_polynomial(mesh, _covered(good, mesh.shape))
        cells = _draw_polynomial(fit, mesh.shape)
        if max(float(np.abs(np.diff(cells, axis=axis)).max(initial=0.0)) for axis in (0, 1)) <= noise:
            break
        drawn = _draw_polynomial(fit, plane.shape)
        trend = drawn if trend is None else trend + drawn
    return trend


def _covered(good: BoolArray, cells: tuple[int, ...]) -> BoolArray:
    """Find the cells (y, x) of a mesh over an image of which a tenth is good."""
    share = good.astype(np.float64)
    for axis in (0, 1):
        edges = np.linspace(0, good.shape[axis], cells[axis] + 1).astype(int)
        share = np.add.reduceat(share, edges[:-1], axis=axis) / np.expand_dims(np.diff(edges), 1 - axis)
    return np.asarray(share >= 0.1)


def _fit_polynomial(mesh: FloatArray, known: BoolArray) -> npt.NDArray[np.float64]:
    """Fit a polynomial of second order to the known cells of a mesh (y, x), without those that are far off.

    Returns coefficients by the powers of y and x, (3, 3), which are from -0.5 to 0.5; 0 for too few cells.
    """
    order = np.add.outer(np.arange(3), np.arange(3))
    free = (order < 3) & (np.arange(3)[:, None] < mesh.shape[0]) & (np.arange(3) < mesh.shape[1])
    y, x = map(_places, mesh.shape)
    design = polyvander2d(*np.meshgrid(y, x, indexing="ij"), [2, 2])[..., free.ravel()]
    fit = np.zeros((3, 3))
    used = known
    for _ in range(3):
        if np.count_nonzero(used) <= np.count_nonzero(free):
            break
        fit[free] = np.linalg.lstsq(design[used], mesh[used], rcond=None)[0]
        off = np.abs(mesh - design @ fit[free])
        used = known & (off <= 5.0 * np.median(off[known]))
    return fit


def _draw_polynomial(fit: FloatArray, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Draw a polynomial, coefficients by the powers of y and x, on pixels (y, x)."""
    return np.asarray(polygrid2d(_places(shape[0]), _places(shape[1]), fit))


def _places(side: int) -> npt.NDArray[np.float64]:
    """Centres of pixels along a side, from -0.5 to 0.5."""
    return (np.arange(side) + 0.5) / side - 0.5


def blur(plane: FloatArray, sigma: float) -> FloatArray:
    """Convolve an image (y, x) with a Gaussian of a standard deviation (px); beyond the edge are zeros."""
    return ndimage.gaussian_filter(
        np.asarray(plane, np.float64), sigma, mode="constant", radius=math.ceil(3.0 * sigma)
    )


def _sum_sigma(difference: FloatArray, used: BoolArray) -> float:
    """Scatter of sums over the pixels (y, x) that are used of blocks, over the root of their number."""
    height, width = (length // _FAR * _FAR for length in difference.shape)
    shape = height // _FAR, _FAR, width // _FAR, _FAR
    number = used[:height, :width].reshape(shape).sum(axis=(1, 3))
    total = np.where(used, difference, 0.0)[:height, :width].reshape(shape).sum(axis=(1, 3))
    # In whole blocks or nearly: the noise of a part is less correlated.
    return _difference_sigma(total / np.sqrt(np.maximum(number, 1)), number > 0.75 * _FAR**2, 2)


def _stand_out(difference: FloatArray, good: BoolArray) -> BoolArray:
    """Pixels in which a smoothed image stands out, and those around them."""
    found = _far_from_level(blur(difference, 2.0), good)
    found = _grow(found, 3)
    # Haloes are faint but wide: they show in means of many pixels.
    step = 4
    height, width = (length // step * step for length in difference.shape)
    if min(height, width) >= 16 * step:
        blocks = difference[:height, :width].reshape(height // step, step, width // step, step)
        full = good[:height, :width].reshape(height // step, step, width // step, step)
        full = np.asarray(full.any(axis=(1, 3)))
        wide = _grow(_far_from_level(blur(blocks.mean(axis=(1, 3)), 2.0), full), 1)
        wide = wide.repeat(step, axis=0).repeat(step, axis=1)
        missing = [(0, length - have) for length, have in zip(difference.shape, wide.shape)]
        wide = np.pad(wide, missing, mode="edge")
        # Where nearly all stands out, it is the level that is wrong, not the sky that is full.
        if np.count_nonzero(wide | found) < 0.8 * found.size:
            found = found | wide
    return found


def _far_from_level(smooth: FloatArray, good: BoolArray) -> BoolArray:
    """Pixels far from the level, on either side, as leaving out peaks of noise alone would lower the sky.

    The scatter is that below the median, which sources do not widen.
    """
    values = smooth[good]
    if not values.size:
        return np.zeros(smooth.shape, dtype=bool)
    values = np.sort(values[:: max(1, values.size // 200_000)])
    for _ in range(_ITERATIONS):
        low, median = np.quantile(values, [_ONE_SIGMA_BELOW, 0.5])
        bounds = median + _CLIP_SIGMA * (median - low) * np.array([-1.0, 1.0])
        first, last = np.searchsorted(values, bounds[0], "left"), np.searchsorted(values, bounds[1], "right")
        if last - first == values.size:
            break
        values = values[first:last]
    return np.abs(smooth - median) > 3.0 * (median - low)


def _grow(found: BoolArray, radius: int) -> BoolArray:
    return ndimage.maximum_filter(found, 2 * radius + 1, mode="constant")


def _difference_sigma(difference: FloatArray, used: BoolArray, lag: int) -> float:
    """Scatter of pixels, from differences of those a lag apart."""
    values = np.concatenate(
        [
            (difference[lag:] - difference[:-lag])[used[lag:] & used[:-lag]],
            (difference[:, lag:] - difference[:, :-lag])[used[:, lag:] & used[:, :-lag]],
        ]
    )
    if values.size < _FEWEST_PAIRS:
        values = difference[used]
        lag = 0
    if values.size < 2:
        return 0.0
    sigma = clip_sorted(np.sort(values), _CLIP_SIGMA, _ITERATIONS).sigma or float(np.std(values))
    # Quantiles of integers are integers; the second moment is not.
    for _ in range(5):
        kept = values[np.abs(values) <= 4.0 * sigma]
        if kept.size < 2:
            break
        sigma = float(np.sqrt(np.mean(kept**2)))
    return sigma / math.sqrt(2.0) if lag else sigma
