# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky, noise and seeing of an image of which nothing is known but its pixels."""

from __future__ import annotations

__all__ = ["blur", "estimate_fwhm", "estimate_sky", "find_plateau"]

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .background import Background, BoolArray, FloatArray, clip_sorted, mesh_background
from .units import FWHM_PER_SIGMA

_CLIP_SIGMA = 3.0
_ITERATIONS = 10
# Lag (px) at which the noise of stacked images is no longer correlated.
_FAR = 8
_FEWEST_PAIRS = 500
_ONE_SIGMA_BELOW = 0.15865525393145707
# Half width of the stamps on which sizes are measured.
_STAMP = 15
_FEWEST_STARS = 4


@dataclass(frozen=True)
class SkyEstimate:
    """Sky and noise of an image."""

    level: npt.NDArray[np.float64]
    """The sky, (y, x)."""

    sigma: float
    """Standard deviation of an empty pixel; 0 for an image without noise."""

    correlation: float
    """Correlation of the noise of neighbouring pixels; about 0 for white noise."""

    sources: BoolArray
    """Pixels (y, x) that were left out, because they hold sources."""


def estimate_sky(
    plane: FloatArray, good: BoolArray, *, mesh_size: int = 128, subtracted: bool = False
) -> SkyEstimate:
    """Estimate the sky level and the noise between the sources.

    Parameters
    ----------
    plane : `numpy.ndarray`
        Image (y, x).
    good : `numpy.ndarray`
        Bool (y, x), the pixels to use; they must be finite.
    mesh_size : `int`
        Side of the cells of the sky's mesh (px). Light of galaxies larger
        than that is taken for sky.
    subtracted : `bool`
        The sky was subtracted before: it is zero, and only the noise is
        wanted.

    Returns
    -------
    estimate : `SkyEstimate`
        Sky, noise, and where the sources are.

    Raises
    ------
    ValueError
        Raised if shapes differ, if no pixel is good, or if ``mesh_size`` is
        not positive.

    Notes
    -----
    Sky and sources are found in turn: medians of the cells, then pixels that
    stand out of the smoothed difference, and again without these. The noise
    is the scatter of differences between pixels eight apart in what is left,
    where the noise of stacked images is no longer correlated: with
    neighbouring pixels it would come out too small. Values of integers are
    blurred by their step for the medians, which would be integers otherwise.
    """
    plane = np.asarray(plane, dtype=np.float64)
    if plane.ndim != 2 or plane.shape != good.shape:
        raise ValueError(f"Image and good pixels must be (y, x), got {plane.shape} and {good.shape}.")
    if not good.any():
        raise ValueError("No pixel of the image is good; give an image of the sky.")
    if mesh_size < 1:
        raise ValueError(f"mesh_size is {mesh_size}; it must be at least 1.")
    filled = np.where(good, plane, 0.0)
    smooth_values = filled
    if np.array_equal(filled, np.rint(filled)):
        smooth_values = filled + np.random.default_rng(0).uniform(-0.5, 0.5, plane.shape)
    sources = np.zeros(plane.shape, dtype=bool)
    level = np.zeros(plane.shape)
    for _ in range(3):
        used = good & ~sources
        if not subtracted:
            level = _continued(
                mesh_background(smooth_values, used, mesh_size, _CLIP_SIGMA, _ITERATIONS), plane.shape
            )
        difference = np.where(good, filled - level, 0.0)
        sources = _stand_out(difference, good)
    used = good & ~sources
    if np.count_nonzero(used) < 0.05 * np.count_nonzero(good):
        used = good
    if not subtracted:
        # Medians lie below the mean of counted photons.
        residual = difference[used]
        scatter = clip_sorted(np.sort(residual), _CLIP_SIGMA, _ITERATIONS)
        kept = residual[np.abs(residual - scatter.median) <= 4.0 * scatter.sigma]
        level = level + (float(kept.mean()) if kept.size else 0.0)
    far = _difference_sigma(difference, used, min(_FAR, max(1, min(plane.shape) // 4)))
    near = _difference_sigma(difference, used, 1)
    correlation = 1.0 - (near / far) ** 2 if far > 0 else 0.0
    return SkyEstimate(level, far, correlation, sources)


def find_plateau(plane: FloatArray, fewest: int = 5) -> float | None:
    """Level at which an image is saturated, if it can be seen.

    Parameters
    ----------
    plane : `numpy.ndarray`
        Image (y, x).
    fewest : `int`
        Pixels that must have the highest value exactly.

    Returns
    -------
    level : `float` or `None`
        The highest value, if so many pixels have it and it is far above the
        others.
    """
    finite = plane[np.isfinite(plane)]
    if not finite.size:
        return None
    level = float(finite.max())
    count = np.count_nonzero(finite == level)
    statistics = clip_sorted(np.sort(finite[:: max(1, finite.size // 100_000)]))
    high = level > statistics.median + 1000.0 * statistics.sigma and statistics.sigma > 0
    return level if high and fewest <= count < 0.05 * finite.size else None


def estimate_fwhm(plane: FloatArray, good: BoolArray, sigma: float) -> tuple[float, int] | None:
    """Estimate the width of the PSF from stars.

    Parameters
    ----------
    plane : `numpy.ndarray`
        Sky-subtracted image (y, x).
    good : `numpy.ndarray`
        Bool (y, x), the pixels to use: finite and not saturated.
    sigma : `float`
        Noise of a pixel.

    Returns
    -------
    estimate : `tuple` [`float`, `int`] or `None`
        Full width at half maximum (px) and the number of stars, or `None` if
        there are too few.

    Notes
    -----
    Bright, round and lonely maxima are measured with moments of an adaptive
    Gaussian weight (Bernstein & Jarvis 2002). Stars have one size, galaxies
    are larger and cosmic rays smaller: the size in which most agree within
    10 % is that of the stars.
    """
    if not sigma > 0:
        return None
    filled = np.where(good, plane, 0.0)
    smooth = blur(filled, 1.0)
    height, width = plane.shape
    inside = (slice(_STAMP, height - _STAMP), slice(_STAMP, width - _STAMP))
    if min(height, width) <= 2 * _STAMP:
        return None
    highest = smooth == ndimage.maximum_filter(smooth, 3, mode="constant")
    peaks = (smooth[inside] > 10.0 * sigma) & good[inside] & highest[inside]
    ys, xs = np.nonzero(peaks)
    order = np.argsort(-smooth[inside][ys, xs], kind="stable")[:1000]
    sizes = []
    for y, x in zip(ys[order], xs[order]):
        stamp = slice(y, y + 2 * _STAMP + 1), slice(x, x + 2 * _STAMP + 1)
        size = _round_size(filled[stamp], good[stamp], sigma)
        if size is not None:
            sizes.append(size)
    if len(sizes) < _FEWEST_STARS:
        return None
    ordered = np.sort(sizes)
    counts = np.searchsorted(ordered, 1.1 * ordered, side="right") - np.arange(ordered.size)
    first = int(np.argmax(counts))
    if counts[first] < max(_FEWEST_STARS, 0.15 * ordered.size):
        return None
    return float(np.median(ordered[first : first + counts[first]])), int(counts[first])


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


def blur(plane: FloatArray, sigma: float) -> FloatArray:
    """Convolve an image with a Gaussian.

    Parameters
    ----------
    plane : `numpy.ndarray`
        Image (y, x); zeros are taken to lie beyond its edge.
    sigma : `float`
        Standard deviation (px), above 0.

    Returns
    -------
    smooth : `numpy.ndarray`
        Of the same shape.
    """
    return ndimage.gaussian_filter(
        np.asarray(plane, np.float64), sigma, mode="constant", radius=math.ceil(3.0 * sigma)
    )


def _stand_out(difference: FloatArray, good: BoolArray) -> BoolArray:
    """Pixels in which a smoothed image stands out, and those around them."""
    found = _far_from_level(blur(difference, 2.0), good, 3.0)
    found = _grow(found, 3)
    # Haloes are faint but wide: they show in means of many pixels.
    step = 4
    height, width = (length // step * step for length in difference.shape)
    if min(height, width) >= 16 * step:
        blocks = difference[:height, :width].reshape(height // step, step, width // step, step)
        full = good[:height, :width].reshape(height // step, step, width // step, step)
        full = np.asarray(full.any(axis=(1, 3)))
        wide = _grow(_far_from_level(blur(blocks.mean(axis=(1, 3)), 2.0), full, 3.0), 1)
        wide = wide.repeat(step, axis=0).repeat(step, axis=1)
        missing = [(0, length - have) for length, have in zip(difference.shape, wide.shape)]
        wide = np.pad(wide, missing, mode="edge")
        # Where nearly all stands out, it is the level that is wrong, not the sky that is full.
        if np.count_nonzero(wide | found) < 0.8 * found.size:
            found = found | wide
    return found


def _far_from_level(smooth: FloatArray, good: BoolArray, threshold: float) -> BoolArray:
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
    return np.abs(smooth - median) > threshold * (median - low)


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


def _round_size(stamp: FloatArray, good: BoolArray, sigma: float) -> float | None:
    """FWHM of a round lonely source in the middle of a stamp, or nothing."""
    if not good.all():
        return None
    y, x = np.mgrid[-_STAMP : _STAMP + 1, -_STAMP : _STAMP + 1].astype(float)
    radius = np.hypot(x, y)
    pixels = stamp - np.median(stamp[radius > _STAMP - 3.0])
    peak = pixels[_STAMP - 1 : _STAMP + 2, _STAMP - 1 : _STAMP + 2].max()
    if peak < 20.0 * sigma or pixels[radius > 0.55 * _STAMP].max() > max(0.2 * peak, 6.0 * sigma):
        return None
    center_x = center_y = 0.0
    width = 2.0
    for _ in range(40):
        dx, dy = x - center_x, y - center_y
        weighted = pixels * np.exp(-0.5 * (dx * dx + dy * dy) / width**2)
        total = weighted.sum()
        if not total > 0:
            return None
        # The weight halves an offset and the variance of a Gaussian source.
        step_x, step_y = 2.0 * (weighted * dx).sum() / total, 2.0 * (weighted * dy).sum() / total
        xx, yy = (weighted * dx * dx).sum() / total, (weighted * dy * dy).sum() / total
        xy = (weighted * dx * dy).sum() / total
        new = math.sqrt(max(xx + yy, 0.1))
        center_x, center_y = center_x + step_x, center_y + step_y
        if math.hypot(center_x, center_y) > 3.0 or not 0.4 < new < 0.5 * _STAMP:
            return None
        done = abs(new - width) < 1e-3 * width
        width = new
        if done:
            break
    if math.hypot(xx - yy, 2.0 * xy) > 0.25 * (xx + yy):
        return None
    fwhm = FWHM_PER_SIGMA * width
    return fwhm if fwhm > 1.5 else None
