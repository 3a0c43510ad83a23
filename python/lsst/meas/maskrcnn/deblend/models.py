# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Models of the sources of an image: what the joint fit is given."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..images.background import mesh_background
from ..images.pixels import usable_pixels
from ..network.memory import release_memory
from ..profiles.blend import BlendSource, trusted_peaks
from ..profiles.fit import UNKNOWN_ERROR, WINDOW_HALVES, fit_profiles
from ..profiles.model import FitSources, ProfileFit, add_stamp
from ..profiles.psf import PsfMixture, fit_psf
from .image import MultibandImage
from .outlines import GALAXY_LEVEL
from .parents import Parent, grow_pixels

MARGIN = 6.0
"""How far beyond their parents sources are fitted (px)."""

_FAINTEST = 0.5
"""Part of the noise of a pixel down to which bright sources are drawn."""

_SKY_CELL, _SKY_DISTANCE, _LEAST_SKY = 256, 10.0, 10_000
"""Side of the cells in which what is left of the sky is measured, how far their pixels are from all parents
(px), and the least number of pixels."""

_LARGE = 48
"""Half side of the window (px) from which on a source is fitted to all of it that is in no other parent; no
pixel of one 1.5 times as large is taken for sky."""

_HALO_RINGS, _RING_STEP, _LEAST_RING = 15, 1.12, 50
"""Most rings beyond the window of a large source in which its halo is measured, the ratio of their radii, and
the least number of their pixels."""
_FAINTEST_HALO = 0.1
"""Part of the noise of a pixel at which a halo ends."""

_MODEL_ERROR = 0.01
"""Error of models and PSFs in units of the flux of a pixel. Without it, cores of S/N 1000 would decide about
the wings: de Vaucouleurs profiles would come out 2 to 8 % too bright, as sums of Gaussians are no better."""

PSF_CELL = 256
"""Side of the cells in which the PSF is taken to be the same (px)."""

_HALF_OF_LAGS = np.array([(dy, dx) for dy in range(4) for dx in range(-3, 4) if dy or dx > 0])
"""Rows and columns between pixels whose noise may be correlated; the others are on the opposite side."""
_NOISE_SIDE, _LEAST_PIXELS = 500, 20_000
"""Half side of the part of the image in which that is measured (px), and the least number of pixels."""

_SAME_PLACE = 0.3
"""Distance up to which sources are at one place (px): they share a model."""

_SIGMA_TO_RADIUS = 1.18
"""Half-light radius of a Gaussian over its standard deviation."""

_STAR_SIZE = 0.25
"""Half-light radius in units of the PSF's width with which a source that is taken for a star starts if it is
fitted as a galaxy."""


def fit_models(
    image: MultibandImage,
    parents: Sequence[Parent],
    sources: Sequence[BlendSource],
    p_star: npt.ArrayLike | None = None,
    local_sky: bool = False,
    device: torch.device | str = "cpu",
    by_width: bool = False,
) -> ProfileFit | None:
    """Fit all N sources of an image that has a variance.

    Each source is in exactly one parent, and the sources of one are fitted together; their positions are in
    pixels of the image. Those with a probability of being a star, (N,), between 0.1 and 0.9 are fitted as
    star and as galaxy; with ``by_width`` it takes in their widths first (`~..profiles.classes`). What is
    left of the sky far from all parents is subtracted first, where there are enough pixels; with
    ``local_sky`` a constant is fitted to each parent and band, too. Pixels are computed on ``device``.

    Fluxes in bands without a PSF and of sources without a pixel that can be fitted are NaN. Returns `None` if
    there is no PSF in any band, or no source.
    """
    # In one order, so that rounding of the sums over bands does not depend on it.
    order = sorted(range(len(image.bands)), key=lambda band: image.bands[band])
    middle = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    known = np.array([_valid_psf(image, band, *middle) is not None for band in order])
    if not known.any() or not sources:
        return None
    covered = np.zeros(image.shape, bool)
    groups = np.zeros(len(sources), np.int64)
    for number, parent in enumerate(parents):
        covered[parent.box] |= parent.pixels
        groups[parent.members] = number
    psfs = _PsfMixtures(image, order, known)
    sigma = float(np.mean([_width(psf) for psf in psfs(*middle)]))
    chosen = _start(sources, groups, sigma, image)
    flux, weight, noise = _fit_input(image, order, known, covered, chosen)
    del covered
    peaks = chosen.positions
    first, rows = _merge(peaks, groups)
    chosen = FitSources(*(getattr(chosen, item.name)[first] for item in dataclasses.fields(chosen)))
    p = None if p_star is None else np.asarray(p_star, np.float64)[first]
    release_memory(image.shape)
    fwhm = image.fwhm if by_width else None
    factors = functools.partial(noise.factors, psfs=psfs(*middle))
    fit = fit_profiles(flux, weight, chosen, psfs, image.pixel_scale, p, fwhm, device, local_sky, factors)
    del flux
    near_bad = _near_bad(weight > 0, peaks)
    del weight
    fit.flux[~(fit.flux_errors < UNKNOWN_ERROR)] = np.nan
    fit = fit if len(first) == len(rows) else fit.share(rows)
    fit.core = near_bad
    on_edge = (peaks < 2.35 * sigma) | (peaks > np.array(image.shape) - 1 - 2.35 * sigma)
    fit.edge = np.asarray(on_edge.any(axis=1))
    return fit if order == sorted(order) else fit.select(np.argsort(order).tolist())


@dataclasses.dataclass
class _Middle:
    """The middle of the image, in which the noise is measured when the sources are fitted."""

    y0: int
    x0: int
    pixels: npt.NDArray[np.float32]
    """Flux without the sky, (band, y, x)."""
    variances: list[npt.NDArray[np.float32]]
    """By band, (y, x)."""
    good: npt.NDArray[np.bool_]
    noise: list[npt.NDArray[np.float32] | None]
    """Realisations of the noise by band, (y, x), where there are any."""

    def factors(self, fit: ProfileFit, psfs: Sequence[PsfMixture]) -> npt.NDArray[np.float64]:
        """Measure what `_noise_factors` tells of the pixels, from which the models are subtracted.

        A realisation of the noise takes the place of the pixels.
        """
        self.pixels[~self.good] = 0.0
        for y0, x0, pixels in fit.windows:
            add_stamp(self.pixels, y0 - self.y0, x0 - self.x0, pixels, -1.0)
        scale = np.ones(len(self.pixels))
        for row, (plane, variance) in enumerate(zip(self.pixels, self.variances, strict=True)):
            if (noise := self.noise[row]) is not None:
                drawn = self.good[row] & np.isfinite(noise) & (noise != 0)
                if np.count_nonzero(drawn) >= _LEAST_PIXELS:
                    plane[:], self.good[row] = np.where(drawn, noise, np.float32(0.0)), drawn
                    # As there is no source in it, it may be far from the variance.
                    scale[row] = np.mean(np.square(plane[drawn]) / variance[drawn], dtype=float)
            plane /= np.sqrt(np.where(self.good[row], variance * np.float32(scale[row]), np.float32(1.0)))
        return scale * _noise_factors(self.pixels, self.good, psfs)


def _fit_input(
    image: MultibandImage,
    order: Sequence[int],
    known: npt.NDArray[np.bool_],
    covered: npt.NDArray[np.bool_],
    sources: FitSources,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], _Middle]:
    """Make what is fitted, in the known bands of an order: flux without the sky, and its weight.

    Pixels near those that parents cover, (y, x), have a weight; the sky is that of pixels far from them.
    """
    free = ~grow_pixels(covered, _SKY_DISTANCE)
    sky = free & ~_large_windows(sources, image.shape, 1.5)
    near = grow_pixels(covered, MARGIN) | _large_windows(sources, image.shape)
    flux, weight = image.flux[order], np.zeros(image.flux.shape, np.float32)
    part = tuple(slice(max(0, side // 2 - _NOISE_SIDE), side // 2 + _NOISE_SIDE) for side in image.shape)
    variances = np.asarray(image.variance)
    good = np.zeros(flux[:, *part].shape, bool)
    # Band by band, so that no more than one band of what is in between is in memory.
    for row in np.flatnonzero(known).tolist():
        band, pixels = order[row], flux[row]
        use = usable_pixels(pixels, variances[band], np.asarray(image.usable)[band])
        use &= ~np.asarray(image.bad)[band]
        _subtract_sky(pixels, use & sky)
        _subtract_halos(pixels, variances[band], use & free, sources)
        good[row] = use[part]
        use &= near
        error = _MODEL_ERROR * np.maximum(pixels[use], 0.0)
        weight[row][use] = 1.0 / (variances[band][use] + error**2)
    corner = part[0].start, part[1].start
    variance = [variances[band][part] for band in order]
    noise = [None if image.noise is None else image.noise[band][part] for band in order]
    return flux, weight, _Middle(*corner, flux[:, *part].copy(), variance, good, noise)


def _large_windows(sources: FitSources, shape: tuple[int, int], scale: float = 1.0) -> npt.NDArray[np.bool_]:
    """Pixels in the windows of large sources, or ones so many times as large, (y, x)."""
    result = np.zeros(shape, bool)
    large = sources.halves >= _LARGE
    places, halves = np.rint(sources.positions[large]).astype(int), scale * sources.halves[large]
    for (y, x), half in zip(places, halves.astype(int), strict=True):
        result[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1] = True
    return result


def _subtract_sky(plane: npt.NDArray[np.float32], use: npt.NDArray[np.bool_]) -> None:
    """Subtract what is left of the sky from a band (y, x), by the pixels to use, if there are enough."""
    if np.count_nonzero(use) >= _LEAST_SKY:
        level = mesh_background(plane, use, _SKY_CELL, clip_sigma=3.0, iterations=10)
        for start in range(0, len(plane), _SKY_CELL):
            rows = slice(start, start + _SKY_CELL)
            plane[rows] -= np.asarray(level.rows(plane.shape, rows), np.float32)


def _subtract_halos(
    plane: npt.NDArray[np.float32],
    variance: npt.NDArray[np.floating[Any]],
    use: npt.NDArray[np.bool_],
    sources: FitSources,
) -> None:
    """Subtract the light of large sources beyond their windows, where no model has any, from a band (y, x).

    It is the median of the pixels to use in rings, as far as it falls outwards.
    """
    large = np.flatnonzero(sources.halves >= _LARGE)
    for index in large[np.argsort(-sources.halves[large], kind="stable")].tolist():
        y, x = np.rint(sources.positions[index]).astype(int).tolist()
        edges = sources.halves[index] * _RING_STEP ** np.arange(_HALO_RINGS + 2)
        levels: list[float] = []
        for inner, outer in itertools.pairwise(edges[:-1].tolist()):
            box, distance = _around(plane.shape, y, x, outer)
            ring = (distance >= inner) & (distance < outer) & use[box]
            if np.count_nonzero(ring) < _LEAST_RING:
                break
            level = min([float(np.median(plane[box][ring])), *levels[-1:]])
            if level < _FAINTEST_HALO * np.sqrt(np.median(variance[box][ring])):
                break
            levels.append(level)
        if levels:
            box, distance = _around(plane.shape, y, x, edges[len(levels) + 1])
            radii = np.sqrt(edges[: len(levels) + 1] * edges[1 : len(levels) + 2])
            halo = np.interp(distance, radii, [*levels, 0.0])
            plane[box] -= np.where(distance > sources.halves[index] + 0.5, halo, 0.0).astype(np.float32)


def _around(
    shape: tuple[int, ...], y: int, x: int, radius: float
) -> tuple[tuple[slice, slice], npt.NDArray[np.float64]]:
    """The square around a pixel, as far as it is in the image, and the distances of its pixels (px)."""
    reach = int(radius)
    box = slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)
    rows, columns = (np.arange(*part.indices(side)) for part, side in zip(box, shape, strict=True))
    return box, np.hypot(rows[:, None] - y, columns - x)


def _noise_factors(
    noise: npt.NDArray[np.float32], good: npt.NDArray[np.bool_], psfs: Sequence[PsfMixture]
) -> npt.NDArray[np.float64]:
    """Measure by how much variances of fluxes are larger than independent pixels make them, (band,).

    Only pixels below the median count, so that sources that are not fitted do not.
    Residuals in units of their standard deviation have the mean product C(d) at
    a distance d; that of a sum with the PSF P as weights is larger by
    the sum of C(d) A(d) / A(0), where A is the autocorrelation of P.
    """
    # Mean product of two numbers below 0 of a normal distribution, over the variance, by their correlation.
    correlation = np.linspace(-0.99, 0.99, 397)
    angle = 0.5 * np.pi + np.arcsin(correlation)
    negative_product = correlation + np.sqrt(1.0 - correlation**2) / angle
    factors = np.ones(len(noise))
    for band, psf in enumerate(psfs):
        use, values = good[band], noise[band]
        if np.count_nonzero(use) < _LEAST_PIXELS:
            continue
        below = values - np.median(values[use])
        below = np.where(use & (below > -4.0), np.minimum(below, np.float32(0.0)), np.float32(0.0))
        below_zero = (below < 0).astype(np.float32)
        variance = float(np.vdot(below, below) / below_zero.sum())
        both = psf.covariance[:, None] + psf.covariance
        inverse, pairs = np.linalg.inv(both), psf.weight[:, None] * psf.weight / np.sqrt(np.linalg.det(both))
        height, width = below.shape
        factor = 1.0
        for lag in _HALF_OF_LAGS:
            dy, dx = lag.tolist()
            first = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
            second = slice(dy, height), slice(max(0, dx), width - max(0, -dx))
            count = max(float(np.vdot(below_zero[first], below_zero[second])), 1.0)
            product = float(np.vdot(below[first], below[second])) / count / variance
            common = (pairs * np.exp(-0.5 * np.einsum("i,abij,j->ab", lag, inverse, lag))).sum() / pairs.sum()
            factor += 2.0 * common * float(np.interp(product, negative_product, correlation))
        factors[band] = variance * max(factor, 0.25)
    return factors


def _near_bad(good: npt.NDArray[np.bool_], peaks: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether one of the 3 x 3 pixels around each peak is not good, (source, band); outside counts as bad."""
    padded = np.pad(good, ((0, 0), (1, 1), (1, 1)))
    y, x = np.clip(np.rint(peaks).astype(np.int64), 0, np.array(good.shape[1:]) - 1).T
    near = [padded[:, y + dy, x + dx] for dy in range(3) for dx in range(3)]
    return ~np.logical_and.reduce(near).T


def _start(
    sources: Sequence[BlendSource], groups: npt.NDArray[np.int64], sigma: float, image: MultibandImage
) -> FitSources:
    """Where the fit starts; the PSF has the standard deviation ``sigma`` (px)."""
    peaks = trusted_peaks(sources).round(6)
    reach = _reach(image, peaks)
    areas = np.array([np.count_nonzero(source.soft >= 128) for source in sources])
    spread = areas / (2.0 * np.pi * np.log(1.0 / GALAXY_LEVEL)) - sigma**2
    sizes = _SIGMA_TO_RADIUS * np.sqrt(np.maximum(spread, (0.4 * sigma) ** 2))
    is_star = np.array([source.is_star for source in sources])
    return FitSources(
        positions=peaks,
        is_star=is_star,
        sizes=np.where(is_star, _STAR_SIZE * sigma, sizes),
        halves=np.array(list(map(_half, sources, *peaks.T.tolist(), reach.tolist()))),
        groups=groups,
    )


def _merge(
    peaks: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find sources of a parent at one place: the first of each place, and which of these each source has."""
    pairs = cKDTree(peaks).query_pairs(_SAME_PLACE, output_type="ndarray")
    pairs = pairs[groups[pairs[:, 0]] == groups[pairs[:, 1]]]
    near = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(peaks), len(peaks)))
    _, labels = connected_components(near, directed=False)
    _, first, rows = np.unique(labels, return_index=True, return_inverse=True)
    return first, rows


def _valid_psf(image: MultibandImage, band: int, y: float, x: float) -> npt.NDArray[np.floating[Any]] | None:
    """The image of a PSF; `None` if it is not known, not finite or has no flux."""
    pixels = image.psf_image(band, y, x)
    return pixels if pixels is not None and np.isfinite(pixels).all() and pixels.sum() > 0 else None


class _PsfMixtures:
    """The PSF of each band in the middle of cells as a sum of Gaussians; each image is fitted once.

    Bands are in an order; of some the PSF is known.
    """

    def __init__(self, image: MultibandImage, order: Sequence[int], known: npt.NDArray[np.bool_]) -> None:
        self._image, self._order, self._known = image, order, known
        self._fitted: dict[bytes, PsfMixture] = {}
        self._last: dict[int, PsfMixture] = {}
        self._cells: dict[tuple[int, int], list[PsfMixture]] = {}

    def __call__(self, y: float, x: float) -> list[PsfMixture]:
        cell = int(y // PSF_CELL), int(x // PSF_CELL)
        if cell not in self._cells:
            y, x = (
                min(max((number + 0.5) * PSF_CELL, 0.0), side - 1.0)
                for number, side in zip(cell, self._image.shape, strict=True)
            )
            for band in np.flatnonzero(self._known).tolist():
                pixels = _valid_psf(self._image, self._order[band], y, x)
                if pixels is not None:
                    key = np.ascontiguousarray(pixels).tobytes()
                    if key not in self._fitted:
                        self._fitted[key] = fit_psf(
                            pixels, self._last.get(band, next(iter(self._last.values()), None))
                        )
                    self._last[band] = self._fitted[key]
            # Bands without a PSF have no weight.
            some = next(iter(self._last.values()))
            self._cells[cell] = [self._last.get(band, some) for band in range(len(self._known))]
        return self._cells[cell]


def _width(psf: PsfMixture) -> float:
    core = psf.weight / np.linalg.det(psf.covariance) ** 0.5
    return float(np.sqrt(psf.weight.sum() / core.sum()))


def _reach(image: MultibandImage, peaks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far the light of sources reaches, in units of the radii of their masks, (source,).

    An exponential profile that has fallen to the level of masks at that radius goes on to a part of the noise
    of a pixel.
    """
    y, x = np.clip(np.rint(peaks).astype(np.int64), 0, np.array(image.shape) - 1).T
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = image.flux[:, y, x] / np.sqrt(np.asarray(image.variance)[:, y, x])
    peak = np.where(np.isfinite(snr), snr, 0.0).max(axis=0)
    levels = np.log(np.maximum(peak * GALAXY_LEVEL / _FAINTEST, 1.0)) / -np.log(GALAXY_LEVEL)
    return np.asarray(1.0 + levels)


def _half(source: BlendSource, y: float, x: float, reach: float) -> int:
    """Half side of the window that holds the mask with a margin, and the light around it."""
    height, width = source.soft.shape
    radius = max(y - source.y0, source.y0 + height - y, x - source.x0, source.x0 + width - x)
    wanted = max(radius + MARGIN, reach * radius)
    return min((half for half in WINDOW_HALVES if half >= wanted), default=WINDOW_HALVES[-1])
