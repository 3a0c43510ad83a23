# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Models of blended sources: the PSF for stars, elliptical profiles for galaxies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .blend import Blend
from .symmetry import symmetric_part

__all__ = ["fit_profiles"]

FloatArray = npt.NDArray[np.float32]

_LARGEST_ELLIPTICITY = 0.9  # an axis ratio of 0.23
_LARGEST_SHIFT = 1.5  # px from the peak that was given
# Widths of the priors on one step, for what the pixels do not constrain.
_ELLIPTICITY_PRIOR = 0.5
_POSITION_PRIOR = 0.5  # px
_SMALLEST_RADIUS = 0.3  # px; the slope of a profile has no direction at its centre
_LEAST_SHARE = 0.01  # so that a model that was 0 once can grow again
_POWER = 2.0  # pixels count by the source's share in them to this power, so that unblended ones decide
_SETTLED = 1e-3  # a model has settled if it changes by less than this part of its flux,
_SIGNIFICANCE = 1.0  # or by less than this many standard deviations of the noise
_MAX_SWEEPS = 60


@dataclass
class _Model:
    """Parameters of a source, and its pixels on its box.

    The ellipse is that of r^2 = ((1 + e1) dy^2 + 2 e2 dy dx + (1 - e1) dx^2) / sqrt(1 - e^2),
    which has the area of a circle of radius r whatever the ellipticity.
    """

    y: float
    x: float
    pixels: FloatArray
    is_star: bool
    e1: float = 0.0
    e2: float = 0.0


def fit_profiles(blend: Blend) -> list[FloatArray]:
    """Fit models to the sources of a blend, each to what the others leave.

    Parameters
    ----------
    blend : `Blend`
        The blend.

    Returns
    -------
    models : `list` [`numpy.ndarray`]
        Models, at least 0, float32, (band, y, x) on each source's box.

    Notes
    -----
    A star is the PSF, with a flux in each band. A galaxy is an ellipse, the
    same in all bands, with a profile in each: its values at radii that lie a
    pixel apart near the centre, never rising outwards. Sources are fitted in
    turn, brightest first, to the image less the models of the others, in
    which pixels count by their inverse variance and by the source's own share
    of them, so that the unblended ones decide. After each fit, position and
    ellipse make one Gauss-Newton step. The first models are the symmetric
    parts.
    """
    inverse = np.where(blend.good, 1.0 / np.where(blend.good, blend.variances, 1.0), 0.0).astype(np.float32)
    inverse *= blend.parent
    images = np.where(blend.good, blend.images, np.float32(0.0))
    models = []
    for index, source in enumerate(blend.sources):
        # Without a PSF a star is fitted as galaxies are.
        star = source.is_star and blend.psfs is not None
        start = symmetric_part(blend, index)
        y, x = blend.peaks[index].tolist()
        models.append(_Model(y, x, start, star))
    total = np.zeros(images.shape, np.float32)
    for box, model in zip(blend.boxes, models, strict=True):
        total[(slice(None), *box)] += model.pixels
    # Where the first guesses are more than there is, all give way alike.
    excess = np.minimum(np.maximum(images, np.float32(0.0)) / np.maximum(total, np.float32(1e-30)), 1.0)
    np.copyto(excess, 1.0, where=~blend.good)
    total *= excess
    for box, model in zip(blend.boxes, models, strict=True):
        model.pixels *= excess[(slice(None), *box)]
    brightness = [float(model.pixels.max()) if model.pixels.size else 0.0 for model in models]
    order = sorted(range(len(models)), key=lambda index: (-brightness[index], index))
    boxes = np.array([[s.start for s in box] + [s.stop for s in box] for box in blend.boxes])[order]
    starts, stops = boxes[:, :2], boxes[:, 2:]
    overlap = np.logical_and.reduce(starts[:, None] < stops[None], axis=2)
    overlap &= overlap.T
    waiting = np.ones(len(order), dtype=bool)
    for _ in range(_MAX_SWEEPS):
        # A model that has settled is fitted again when one that it overlaps has changed.
        for place in np.flatnonzero(waiting).tolist():
            waiting[place] = False
            if _improve(blend, order[place], models[order[place]], images, inverse, total):
                waiting |= overlap[place]
        if not waiting.any():
            break
    return [model.pixels for model in models]


def _improve(
    blend: Blend, index: int, model: _Model, images: FloatArray, inverse: FloatArray, total: FloatArray
) -> bool:
    """Fit one model to what the others leave, put it into the sum of all, and say whether it changed."""
    box = (slice(None), *blend.boxes[index])
    own = model.pixels
    rest = images[box] - (total[box] - own)
    # What is blended counts the less, the smaller the source's own part is.
    share = own / np.maximum(total[box], np.float32(1e-30))
    weight = np.asarray(inverse[box] * np.clip(share, _LEAST_SHARE, 1.0) ** np.float32(_POWER), np.float32)
    if model.is_star:
        new = _fit_star(blend, index, model, rest, weight)
    else:
        new = _fit_galaxy(blend, index, model, rest, weight)
    y, x = blend.peaks[index].tolist()
    model.y = min(max(model.y, y - _LARGEST_SHIFT), y + _LARGEST_SHIFT)
    model.x = min(max(model.x, x - _LARGEST_SHIFT), x + _LARGEST_SHIFT)
    change = new - own
    total[box] += change
    model.pixels = new
    significance = float(np.einsum("byx,byx,byx->", inverse[box], change, change))
    return bool(np.abs(change).sum() > _SETTLED * new.sum() and significance > _SIGNIFICANCE**2)


def _fit_star(blend: Blend, index: int, model: _Model, rest: FloatArray, weight: FloatArray) -> FloatArray:
    psf = blend.psf_on_box(index, model.y, model.x)
    weighted = weight * psf
    norm = (weighted * psf).sum(axis=(1, 2), dtype=np.float64)
    flux = (weighted * rest).sum(axis=(1, 2), dtype=np.float64)
    flux = np.where(norm > 0, np.maximum(flux, 0.0) / np.maximum(norm, 1e-300), 0.0)
    pixels = np.asarray(psf * flux[:, None, None], np.float32)
    if min(pixels.shape[1:]) > 2:
        step = _Step(np.full(2, _POSITION_PRIOR))
        for band, plane in enumerate(pixels):
            by_y, by_x = np.gradient(plane)
            step.add([-by_y, -by_x], rest[band] - plane, weight[band])
        change = step.solve()
        model.y += change[0]
        model.x += change[1]
    return pixels


def _fit_galaxy(blend: Blend, index: int, model: _Model, rest: FloatArray, weight: FloatArray) -> FloatArray:
    rows, columns = blend.boxes[index]
    dy = (np.arange(rows.start, rows.stop) - model.y).astype(np.float32)[:, None]
    dx = (np.arange(columns.start, columns.stop) - model.x).astype(np.float32)[None, :]
    e1, e2 = np.float32(model.e1), np.float32(model.e2)
    scale = np.float32(1.0) / np.sqrt(np.float32(1.0) - e1**2 - e2**2)
    along_y = scale * ((1 + e1) * dy + e2 * dx)
    along_x = scale * (e2 * dy + (1 - e1) * dx)
    radius = np.sqrt(np.maximum(along_y * dy + along_x * dx, np.float32(0.0)))
    knots = _knots(float(radius.max()))
    place = np.clip(np.searchsorted(knots, radius, side="right") - 1, 0, len(knots) - 2)
    width = np.diff(knots)[place]
    part = (radius - knots[place]) / width
    values = _fit_knots(place, part, rest, weight, len(knots))
    along_e1, along_e2 = 0.5 * scale * (dy**2 - dx**2), scale * (dy * dx)
    softened = width * np.maximum(radius, np.float32(_SMALLEST_RADIUS))
    pixels = np.empty(rest.shape, np.float32)
    step = _Step(np.array([_POSITION_PRIOR, _POSITION_PRIOR, _ELLIPTICITY_PRIOR, _ELLIPTICITY_PRIOR]))
    for band, profile in enumerate(values):
        rise = np.diff(profile)[place]
        pixels[band] = profile[place] + rise * part
        by_radius = rise / softened
        derivatives = [-by_radius * along_y, -by_radius * along_x, by_radius * along_e1, by_radius * along_e2]
        step.add(derivatives, rest[band] - pixels[band], weight[band])
    change = step.solve()
    model.y += change[0]
    model.x += change[1]
    model.e1 += change[2]
    model.e2 += change[3]
    size = float(np.hypot(model.e1, model.e2))
    if size > _LARGEST_ELLIPTICITY:
        model.e1 *= _LARGEST_ELLIPTICITY / size
        model.e2 *= _LARGEST_ELLIPTICITY / size
    return pixels


class _Step:
    """Gauss-Newton step, held back by the width of a prior on the change of each parameter."""

    def __init__(self, prior: npt.NDArray[np.float64]) -> None:
        self._matrix = np.diag(prior**-2.0)
        self._vector = np.zeros(len(prior))

    def add(self, derivatives: list[FloatArray], misfit: FloatArray, weight: FloatArray) -> None:
        """Take the pixels of a band into account; derivatives are by parameter."""
        flat = np.stack(derivatives).reshape(len(derivatives), -1)
        weighted = flat * weight.ravel()
        self._matrix += weighted @ flat.T
        self._vector += weighted @ misfit.ravel()

    def solve(self) -> list[float]:
        """Return the changes, each at most 0.5."""
        return [float(change) for change in np.clip(np.linalg.solve(self._matrix, self._vector), -0.5, 0.5)]


def _knots(largest: float) -> FloatArray:
    """Radii at which a profile is fitted: each pixel near the centre, wider apart outside."""
    knots = [0.0]
    while knots[-1] <= largest:
        knots.append(knots[-1] + max(1.0, 0.18 * knots[-1]))
    return np.array(knots, np.float32)


def _fit_knots(
    place: npt.NDArray[np.intp], part: FloatArray, rest: FloatArray, weight: FloatArray, n_knots: int
) -> FloatArray:
    """Fit the values of a profile at its knots, (band, knot), falling outwards and at least 0."""
    n_bands = len(rest)
    cell = place.ravel()
    outer = part.ravel().astype(np.float64)
    inner = 1.0 - outer
    values = np.zeros((n_bands, n_knots), np.float32)
    for band in range(n_bands):
        w = weight[band].ravel().astype(np.float64)
        wy = w * rest[band].ravel()
        diagonal = np.zeros(n_knots)
        vector = np.zeros(n_knots)
        diagonal[:-1] = np.bincount(cell, w * inner**2, n_knots - 1)
        diagonal[1:] += np.bincount(cell, w * outer**2, n_knots - 1)
        beside = np.bincount(cell, w * inner * outer, n_knots - 1)
        vector[:-1] = np.bincount(cell, wy * inner, n_knots - 1)
        vector[1:] += np.bincount(cell, wy * outer, n_knots - 1)
        norm = diagonal.copy()
        norm[:-1] += beside
        norm[1:] += beside
        if not norm.max() > 0:
            continue
        # Knots without pixels follow their neighbours.
        stiff = 1e-3 * np.minimum(norm[:-1], norm[1:]) + 1e-9 * norm.max()
        matrix = np.diag(diagonal) + np.diag(beside - stiff, 1) + np.diag(beside - stiff, -1)
        matrix[np.arange(n_knots - 1), np.arange(n_knots - 1)] += stiff
        matrix[np.arange(1, n_knots), np.arange(1, n_knots)] += stiff
        fitted = np.asarray(np.linalg.solve(matrix, vector), np.float64)
        values[band] = np.maximum(_falling(fitted, norm + 1e-12 * norm.max()), 0.0)
    return values


def _falling(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Closest sequence that never rises: pool adjacent violators."""
    levels: list[float] = []
    masses: list[float] = []
    counts: list[int] = []
    for value, mass in zip(values.tolist(), weights.tolist(), strict=True):
        count = 1
        while levels and levels[-1] < value:
            earlier, others = levels.pop(), masses.pop()
            value = (earlier * others + value * mass) / (others + mass)
            mass += others
            count += counts.pop()
        levels.append(value)
        masses.append(mass)
        counts.append(count)
    return np.repeat(levels, counts)
