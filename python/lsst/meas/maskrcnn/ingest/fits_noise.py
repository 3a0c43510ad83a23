# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky and noise of FITS images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..images.background import clip_sorted
from ..images.sky import SkyEstimate, estimate_sky

if TYPE_CHECKING:
    from .fits_images import FitsOptions

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

_LEAST_VARIANCE_RATIO = 0.25
"""Variances that are smaller than that of the sky by more than this are relative."""

_MOST_VARIANCE_RATIO = 30.0
"""So are those that are larger by more than this; the noise of stacked images is
correlated, and the scatter of their pixels smaller than the noise of a source."""

_MOST_OFF = 2.0
"""Times the variance in the sky by which weights may be off, and still be inverse variances."""

_LEAST_SPREAD, _LEAST_PIXELS = 1.3, 500
"""Ratio of high and low variances, and number of empty pixels with each, that tell whether they rise with
the noise."""

_HOT, _HOT_SHARE = 20.0, 0.85
"""Light of a hot pixel in units of the noise, and its share of that of the three by three about it; a star
of ``_SAMPLED`` (px) has less than one half."""

_SAMPLED = 1.6
"""Width of a PSF (px) from which single pixels of light are no stars."""

_SHARP = (
    ((0, 1), 0.25, 2.3),
    ((1, 0), 0.25, 2.3),
    ((1, 1), 0.1, 3.0),
    ((1, -1), 0.1, 3.0),
    ((0, 2), 0.1, 5.0),
    ((2, 0), 0.1, 5.0),
)
"""Steps (y, x), shares of the light of a pixel, and least widths of the PSF (px). Whatever a PSF has blurred
has, a step before or after a pixel, at least the share of its light that a star in that pixel has: several
times this share for stars of the least width, and more for stars of 0.6 of it, if the width is too large."""

_SHARP_ROUNDS = 3
"""Times that pixels are sought, each without those found before: cosmic rays are up to five pixels wide."""


def find_sharp_pixels(pixels: FloatArray, good: BoolArray, sigma: float, fwhm: float) -> BoolArray:
    """Find pixels (y, x) whose light no PSF of a width (px) has blurred: hot ones, and cosmic rays.

    These have nearly all of the light about them, or are brighter than both pixels beside them in some
    direction. Pixels between cosmic rays and the sky are found when those were.
    """
    values = np.where(good, pixels, 0.0)
    sharp = np.zeros(good.shape, bool)
    if fwhm < _SAMPLED or np.diff(np.quantile(values[good], [0.02, 0.16, 0.5, 0.84])).min() < 0.5 * sigma:
        # Where photons are few, each is as sharp.
        return sharp
    # Dead pixels, far below the sky, and holes tell nothing.
    dead = (values < -5.0 * sigma) | (values == 0.0)
    values[dead] = 0.0
    about = 9.0 * ndimage.uniform_filter(values, 3, mode="constant")
    whole = ndimage.minimum_filter(good, 3, mode="constant")
    bright = whole & (values > _HOT * sigma)
    sharp |= bright & (values > _HOT_SHARE * about)
    rest = np.pad(np.where(dead, np.inf, values), 2, constant_values=np.inf)
    places = np.stack(np.nonzero(bright)) + 2
    light = values[bright]
    for _ in range(_SHARP_ROUNDS):
        rest[2:-2, 2:-2][sharp] = 0.0
        for step, share, least in _SHARP:
            if fwhm >= least:
                before, after = (rest[tuple(places + sign * np.array(step)[:, None])] for sign in (-1, 1))
                sharp[bright] |= np.maximum(before, after) < share * light
    return sharp


def subtract_sky(
    pixels: FloatArray,
    good: BoolArray,
    options: FitsOptions,
    noise: float | None,
    note: Callable[[str], None],
) -> tuple[FloatArray, float, SkyEstimate]:
    """Subtract the sky, if there is one; returns the image, and the noise of an empty pixel (above 0)."""
    values = np.where(good, pixels, 0.0)
    estimate = estimate_sky(values, good, mesh_size=options.mesh_size, subtracted=options.sky == "none")
    sigma = estimate.sigma
    level = float(np.median(estimate.level))
    scatter = float(np.std(values[good]))
    # Without noise, the medians of counted photons are still blurred a little.
    if options.sky == "subtract" or (options.sky == "auto" and abs(level) > max(sigma, 1e-2 * scatter)):
        pixels = pixels - estimate.level
        note(f"a sky of {level:.4g} counts was subtracted.")
    if noise is not None:
        sigma = noise
    elif not sigma > 0.0:
        sigma = max(1e-3 * scatter, 1e-6 * max(abs(level), 1.0))
        note(f"no noise is found in the sky; {sigma:.3g} counts are put; --noise sets them.")
    elif estimate.correlation > 0.85:
        note(
            f"what is taken for noise is smooth (correlation {estimate.correlation:.2f}), as light or an "
            "uneven sky is; noise and depth may be wrong: --noise and --sky-mesh set them."
        )
    elif estimate.correlation > 0.2:
        note(
            f"the noise of neighbouring pixels is correlated ({estimate.correlation:.2f}), "
            "as in stacked or resampled images; the variance is that of single pixels."
        )
    return pixels, sigma, estimate


def check_variance(
    variance: FloatArray,
    good: BoolArray,
    sigma: float,
    estimate: SkyEstimate,
    relative: bool | None,
    source: str,
    note: Callable[[str], None],
) -> tuple[FloatArray, str]:
    """Compare a given variance with the noise in the sky; returns what to use, and where it is from.

    It may be relative, and is scaled then; of weights this is `None`, not known, and the noise tells.
    """
    ratio = float(np.median(variance[good])) / sigma**2
    low, high = _LEAST_VARIANCE_RATIO, _MOST_VARIANCE_RATIO
    if relative is None and estimate.sum_sigma > 0.0:
        # Between the noise of neighbours and that of sums, which differ where it is correlated.
        low = max(low, min(1.0 - estimate.correlation, 1.0) / _MOST_OFF)
        high = min(high, max(estimate.sum_sigma / estimate.sigma, 1.0) ** 2 * _MOST_OFF)
    if relative or not low < ratio < high:
        if not relative:
            note(
                f"the variance of {source} is {ratio:.2g} times the one found in the sky: it is taken for "
                "relative and scaled to the noise in the sky."
            )
        return variance / ratio, f"{source}, scaled to the sky"
    if not 0.5 < ratio < 5.0:
        note(
            f"the variance of {source} is {ratio:.2g} times the one found in the sky; --rescale makes them "
            "agree."
        )
    return variance, f"{source}, inverse variances" if relative is None else source


def falls_with_noise(variance: FloatArray, pixels: FloatArray, empty: BoolArray) -> bool:
    """Whether the pixels (y, x) of a sky-subtracted image have less noise where their variance is larger.

    The empty ones are compared.
    """
    variances, values = variance[empty], pixels[empty]
    if not values.size:
        return False
    low, high = np.quantile(variances, [0.25, 0.75])
    groups = variances <= low, variances >= high
    if min(map(np.count_nonzero, groups)) < _LEAST_PIXELS or not high > _LEAST_SPREAD * low:
        return False
    (less, more), (quiet, noisy) = (
        [float(np.median(variances[group])) for group in groups],
        [clip_sorted(np.sort(values[group]), 3.0, 5).sigma ** 2 for group in groups],
    )
    return noisy < quiet * (less / more) ** 0.5
