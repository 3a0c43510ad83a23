# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The PSF of images of which nothing is known but their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from .background import BoolArray, FloatArray
from .sky import blur
from .units import FWHM_PER_SIGMA

_HALF_SIZES = (12, 24, 44)
"""Half widths of the stamps on which sources are measured (px), tried in turn."""

_MOST_CANDIDATES = 300
_MOST_FITTED = 25
_FEWEST_STARS = 3
_LEAST_SNR = 20.0
_LEAST_FWHM = 1.1
"""Width (px) below which a source is a cosmic ray, a hot pixel or a star that is hardly sampled."""

_UNDERSAMPLED, _NARROWER = (1.3, 2.2), 0.25
"""Widths (px) that galaxies may have among stars too narrow to be measured; so many of these for one that is
chosen are too many. Of smaller sizes, the stars are the narrow ones themselves."""

_PEAK_SHARE = 0.85
"""Light of a hot pixel in that pixel, of the three by three about it; a star has less, but in its middle."""

_LEAST_GOOD = 0.9
"""Share of the pixels of a star that must be good."""

_BLUR = 0.6
"""Width (px) of the Gaussian with which undersampled images are blurred, or moments depend on the phase."""

_SIZE_SCATTER = 0.015
"""Relative scatter of the sizes of bright stars: the PSF is not quite the same everywhere."""


@dataclass(frozen=True)
class StarPsf:
    """PSF of stars: a round Moffat profile, the pixel's own response in it."""

    fwhm: float
    """Full width at half maximum (px)."""

    error: float
    """Standard error of it (px)."""

    n_stars: int
    """Stars on which it was measured."""

    beta: float
    """Exponent of the profile."""

    def image(self) -> npt.NDArray[np.float64]:
        """Draw the PSF about the middle pixel of an image (y, x) that sums to one."""
        scale = _moffat_scale(self.fwhm, self.beta)
        # Out to where 0.3 per cent of the flux is missing.
        reach = scale * math.sqrt(0.003 ** (1.0 / (1.0 - self.beta)) - 1.0)
        half = math.ceil(min(max(reach, 8.0), 40.0))
        offset = np.arange(-half, half + 1)
        image = (1.0 + (offset**2 + offset[:, None] ** 2) / scale**2) ** -self.beta
        return np.asarray(image / image.sum())


@dataclass(frozen=True)
class _Source:
    """A round source, measured in one band."""

    stamp: FloatArray
    """Its pixels (y, x) without neighbours."""

    good: BoolArray
    center: tuple[float, float]
    """Position (y, x) in the stamp (px)."""

    fwhm: float
    """Of the Gaussian with its adaptive moments (px)."""

    snr: float
    error: float
    """Relative error of the width."""

    @property
    def narrow(self) -> bool:
        """Whether it is too narrow to be measured."""
        return self.fwhm <= _LEAST_FWHM


def measure_psfs(
    planes: Sequence[FloatArray], good: Sequence[BoolArray], sigmas: Sequence[float]
) -> list[StarPsf | None]:
    """Measure the PSF of sky-subtracted images (y, x) of one field on its stars.

    ``good`` are the pixels to use, finite and not saturated, and ``sigmas`` the
    noise of a pixel in each band. Returns `None` for bands with too few stars.

    Round maxima are measured with moments of an adaptive Gaussian weight
    (Bernstein & Jarvis 2002). A star has the same size as the other stars in
    every band; galaxies are larger, and each has its own. The smallest size in
    which several sources agree within their errors is that of the stars. To
    these a Moffat profile is fitted.
    """
    usable = [index for index, sigma in enumerate(sigmas) if sigma > 0 and good[index].any()]
    result: list[StarPsf | None] = [None] * len(planes)
    if not usable:
        return result
    pad = _HALF_SIZES[-1]
    padded = {index: np.pad(_fill_holes(planes[index], good[index]), pad) for index in usable}
    blurred = {index: blur(padded[index], _BLUR) for index in usable}
    masks = {index: np.pad(good[index], pad) for index in usable}
    combined = np.sum([padded[index] / sigmas[index] for index in usable], axis=0) / math.sqrt(len(usable))
    found: dict[tuple[int, int], dict[int, _Source]] = {}
    for y, x in _maxima(combined):
        sources = {}
        for index in usable:
            source = _measure(padded[index], blurred[index], masks[index], y, x, sigmas[index])
            if source is not None:
                sources[index] = source
        if sources:
            best = max(sources.values(), key=lambda source: source.snr)
            half = len(best.stamp) // 2
            place = round(y + best.center[0] - half), round(x + best.center[1] - half)
            # The noise makes several maxima of one wide source.
            if not any(math.dist(place, other) < 0.5 * best.fwhm for other in found):
                found[place] = sources
    wide = [{band: one for band, one in source.items() if not one.narrow} for source in found.values()]
    stars = _choose_stars([source for source in wide if source], wide.count({}))
    for index in usable:
        members = sorted(
            (star[index] for star in stars if index in star), key=lambda source: source.snr, reverse=True
        )
        # What is a star in one band is one in all.
        if members:
            result[index] = _fit(members, sigmas[index])
    return result


def _fill_holes(plane: FloatArray, good: BoolArray) -> FloatArray:
    """Fill pixels that are not good with the mean of good ones about them, or 0 where there are few."""
    values, weight = np.where(good, plane, 0.0), blur(good.astype(float), 1.0)
    near = ~good & (weight > 0.4)
    values[near] = blur(values, 1.0)[near] / weight[near]
    return values


def _maxima(combined: FloatArray) -> list[tuple[int, int]]:
    """Places (y, x) of the brightest local maxima of an image in units of its noise."""
    smooth = blur(combined, 1.0)
    highest = (smooth == ndimage.maximum_filter(smooth, 5, mode="constant")) & (smooth > 5.0)
    ys, xs = np.nonzero(highest)
    order = np.argsort(-smooth[ys, xs], kind="stable")[:_MOST_CANDIDATES]
    return list(zip(ys[order].tolist(), xs[order].tolist()))


def _measure(
    plane: FloatArray, smooth: FloatArray, good: BoolArray, y: int, x: int, sigma: float
) -> _Source | None:
    """Measure a source, if it is round, bright enough and whole; the images have wide margins."""
    for half in _HALF_SIZES:
        box = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
        if box[0].start < 0 or box[1].start < 0:
            return None
        stamp, usable = plane[box], good[box]
        if stamp.shape != (2 * half + 1, 2 * half + 1):
            return None
        first = _moments(smooth[box], half)
        if first is not None and FWHM_PER_SIGMA * first[2] < 0.5 * half:
            break
    if first is None:
        return None
    foreign, mirrored = _neighbours(stamp, first, sigma)
    cleaned = np.where(foreign, mirrored, stamp)
    cleaned_smooth = np.where(foreign, mirrored, smooth[box])
    center_y, center_x, width = _moments(cleaned_smooth, half) or (math.nan,) * 3
    fwhm = FWHM_PER_SIGMA * math.sqrt(max(width**2 - _BLUR**2, 0.0))
    offset = math.hypot(center_y - half, center_x - half)
    if not (fwhm < 0.7 * half and offset < max(1.5, 0.5 * fwhm)):
        return None
    narrow = fwhm <= _LEAST_FWHM
    if narrow and stamp[half, half] > _PEAK_SHARE * stamp[half - 1 : half + 2, half - 1 : half + 2].sum():
        return None
    dy, dx = np.mgrid[: 2 * half + 1, : 2 * half + 1] - np.array([center_y, center_x])[:, None, None]
    # Single bad pixels, of cosmic rays for instance, do no harm but in the core.
    radius = np.hypot(dy, dx)
    if not usable[radius < 0.6 * fwhm + 0.5].all() or usable[radius < 1.2 * fwhm + 1.0].mean() < _LEAST_GOOD:
        return None
    weight = np.exp(-0.5 * (dy**2 + dx**2) / width**2)
    snr = float((cleaned * weight).sum() / (sigma * math.sqrt((weight**2).sum())))
    xx, yy, xy = ((cleaned_smooth * weight * product).sum() for product in (dx * dx, dy * dy, dx * dy))
    noise = 1.5 / max(snr, 1e-3)
    # What the blurring leaves of the subpixel position.
    phase = 0.03 * min(1.0, (1.4 / max(fwhm, _LEAST_FWHM)) ** 6)
    round_enough = math.hypot(xx - yy, 2.0 * xy) <= (0.2 + 2.0 * noise) * (xx + yy)
    if snr < _LEAST_SNR or not (narrow or round_enough):
        return None
    return _Source(cleaned, usable, (center_y, center_x), fwhm, snr, math.hypot(noise, phase, _SIZE_SCATTER))


def _moments(stamp: FloatArray, half: int) -> tuple[float, float, float] | None:
    """Position (y, x) and standard deviation of the Gaussian with the adaptive moments of a source."""
    grid = np.arange(2 * half + 1.0)
    center_y = center_x = float(half)
    width = 2.0
    for _ in range(40):
        dy, dx = grid - center_y, grid - center_x
        across, along = np.exp(-0.5 * (dy / width) ** 2), np.exp(-0.5 * (dx / width) ** 2)
        rows, columns = stamp @ along, across @ stamp
        total = across @ rows
        if not total > 0:
            return None
        # The weight halves an offset and the variance of a Gaussian source.
        square = (across * dy * dy) @ rows + (along * dx * dx) @ columns
        new = math.sqrt(max(float(square / total), 0.05))
        center_y += 2.0 * float((across * dy) @ rows / total)
        center_x += 2.0 * float((along * dx) @ columns / total)
        if math.hypot(center_y - half, center_x - half) > 0.3 * half or not 0.3 < new < 0.5 * half:
            return None
        done = abs(new - width) < 1e-3 * width
        width = new
        if done:
            break
    return center_y, center_x, width


def _neighbours(
    stamp: FloatArray, place: tuple[float, float, float], sigma: float
) -> tuple[BoolArray, FloatArray]:
    """Find light that is not there on the other side of a source, and what is there."""
    y, x = np.indices(stamp.shape)
    center_y, center_x, width = place
    opposite = ndimage.map_coordinates(
        stamp, [2.0 * center_y - y, 2.0 * center_x - x], order=1, mode="constant"
    )
    outside = np.hypot(y - center_y, x - center_x) > 0.5 * FWHM_PER_SIGMA * width + 1.0
    foreign = outside & (stamp > 1.5 * np.maximum(opposite, 0.0) + 3.0 * sigma)
    return outside & ndimage.binary_dilation(foreign), np.minimum(stamp, opposite)


def _choose_stars(sources: list[dict[int, _Source]], n_narrow: int) -> list[dict[int, _Source]]:
    """Choose the sources of the smallest size in which several agree, in all bands in which they are seen.

    Beside these, there are sources too narrow to be measured.
    """
    if not sources:
        return []
    bands = sorted({band for source in sources for band in source})
    sizes, errors = np.full((2, len(sources), len(bands)), np.nan)
    for row, source in enumerate(sources):
        for column, band in enumerate(bands):
            if band in source:
                sizes[row, column], errors[row, column] = math.log(source[band].fwhm), source[band].error
    # By source, other source and band.
    error = np.hypot(errors[:, None], errors)
    common = np.isfinite(error)
    distance = np.where(common, np.abs(sizes[:, None] - sizes) / error, 0.0).max(axis=2)
    distance[~common.any(axis=2)] = np.inf
    agree = distance < 2.0
    density = (np.exp(-0.5 * distance**2) / np.where(common, error, np.inf).min(axis=2)).sum(axis=1)
    density[np.count_nonzero(agree, axis=1) < _FEWEST_STARS] = 0.0
    if not density.max() > 0.0:
        return []
    mean = np.nanmean(sizes, axis=1)
    likely = np.flatnonzero(density >= 0.5 * density.max())
    chosen = likely[mean[likely].argmin()]
    members = np.flatnonzero(agree[chosen]).tolist()
    # Stars are not larger than other sources: then these are galaxies that happen to agree.
    smaller = np.count_nonzero(mean < mean[chosen] - 0.15)
    low, high = _UNDERSAMPLED
    if low < math.exp(mean[chosen]) < high and smaller + n_narrow > _NARROWER * len(members):
        return []
    return [sources[index] for index in members] if smaller <= 0.5 * len(members) else []


def _moffat_scale(fwhm: float, beta: float) -> float:
    return 0.5 * fwhm / math.sqrt(2.0 ** (1.0 / beta) - 1.0)


def _fit(stars: list[_Source], sigma: float) -> StarPsf | None:
    """Fit one Moffat profile to stars, each with its flux and sky."""
    start = float(np.median([star.fwhm for star in stars]))
    parts = []
    for star in stars[:_MOST_FITTED]:
        dy, dx = np.indices(star.stamp.shape) - np.array(star.center)[:, None, None]
        square = dy**2 + dx**2
        used = star.good & (square < (2.5 * start) ** 2)
        pixels = star.stamp[used]
        # Photons and what is not a Moffat profile count beside the noise of the sky.
        weight = 1.0 / np.hypot(sigma, 0.03 * np.maximum(pixels, 0.0))
        parts.append((square[used], pixels, weight))

    def residuals(parameters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        fwhm, beta = start * math.exp(parameters[0]), 1.0 / parameters[1]
        scale = _moffat_scale(fwhm, beta)
        result = []
        for square, pixels, weight in parts:
            profile = (1.0 + square / scale**2) ** -beta
            design = np.stack([profile, np.ones_like(profile)], axis=1) * weight[:, None]
            solution = np.linalg.solve(design.T @ design, design.T @ (pixels * weight))
            result.append(pixels * weight - design @ solution)
        return np.concatenate(result)

    bounds = ([-0.7, 0.01], [0.4, 0.5])
    fit = optimize.least_squares(residuals, [-0.07, 0.3], bounds=bounds, loss="soft_l1", x_scale=[0.1, 0.1])
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac)
    sizes = np.log([star.fwhm for star in stars])
    scatter = float(np.std(sizes)) / math.sqrt(max(len(stars) - 1, 1))
    relative = math.hypot(math.sqrt(covariance[0, 0]), scatter)
    fwhm = start * math.exp(fit.x[0])
    # Three galaxies agree by chance more often than ten.
    relative = math.hypot(relative, 0.1 / len(stars))
    return StarPsf(fwhm, fwhm * relative, len(stars), 1.0 / float(fit.x[1]))


def gaussian_image(fwhm: float) -> FloatArray:
    """Draw a round Gaussian of a FWHM (px) that sums to one, out to five sigma."""
    sigma = max(fwhm / FWHM_PER_SIGMA, 0.3)
    reach = math.ceil(5.0 * sigma)
    profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    image = np.outer(profile, profile)
    return np.asarray(image / image.sum())


def image_fwhm(psf: FloatArray) -> float:
    """Measure the FWHM (px) of a PSF (y, x): of the circle as large as the area above half its peak.

    That is what is measured on stars and what headers say; moments make wings count (``gaussian_fwhm``).
    """
    fine = ndimage.zoom(np.asarray(psf, np.float64), 5, order=3)
    steps = [(side - 1) / (samples - 1) for side, samples in zip(psf.shape, fine.shape)]
    return 2.0 * math.sqrt(np.count_nonzero(fine > 0.5 * fine.max()) * math.prod(steps) / math.pi)
