# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What camera and sky add to the light of the sources."""

from __future__ import annotations

import math

import numpy as np

SATURATED = 1
COSMIC_RAY = 2
BAD = 4
NO_DATA = 8
MASK_BITS: dict[str, int] = {"SAT": SATURATED, "CR": COSMIC_RAY, "BAD": BAD, "NO_DATA": NO_DATA}
"""Bits of `Scene.mask`, by the names of the mask planes that afw uses."""


def background(shape: tuple[int, int], amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth background, (y, x): an offset, two slopes and a bend, each of this amplitude."""
    y = np.linspace(-1.0, 1.0, shape[0])[:, None]
    x = np.linspace(-1.0, 1.0, shape[1])
    a = amplitude * rng.normal(size=6)
    return 0.5 * a[0] + a[1] * x + a[2] * y + 0.5 * (a[3] * x * y + a[4] * x * x + a[5] * y * y)


def wings_reach(
    flux: float, spikes: float, halo: float, fwhm: float, limit: float, longest: float
) -> tuple[float, float]:
    """Return the radii (px) at which spikes and aureole of a star fall to a limit, 0 for what is not there.

    ``flux`` is that of the star (nJy), ``spikes`` and ``halo`` the shares of it in
    both, ``fwhm`` that of the PSF (px), ``limit`` a surface brightness (nJy per
    px), and ``longest`` the largest radius (px).
    """
    core = 2.0 * fwhm
    width = _spike_width(fwhm)
    # Where the profiles of bright_star_wings, far out, fall to the limit.
    spike = 0.5 * spikes * flux / (math.sqrt(2 * math.pi) * width * 2.0 * math.pi * core)
    aureole = 0.25 * halo * flux / (math.pi * core**2)
    spike_reach = 2.0 * core * max(1.0, math.sqrt(spike / limit)) if spikes > 0 else 0.0
    halo_reach = core * max(2.0, (aureole / limit) ** 0.4) if halo > 0 else 0.0
    return min(spike_reach, longest), min(halo_reach, longest)


def _spike_width(fwhm: float) -> float:
    return 0.35 * fwhm + 0.3


def bright_star_wings(
    dx: np.ndarray,
    dy: np.ndarray,
    spikes: float,
    halo: float,
    angle: float,
    fwhm: float,
    reach: tuple[float, float],
) -> np.ndarray:
    """Draw the diffraction spikes and the aureole of a star of unit flux, (y, x), 1/px.

    ``dx`` and ``dy`` are the offsets of columns and rows from the star (px),
    ``spikes`` and ``halo`` the shares of the flux, ``angle`` that of the first
    spike from +x (rad), ``fwhm`` that of the PSF (px), and ``reach`` is of
    `wings_reach`. A few per cent of the aureole's light, or more where it ends
    early, is beyond its reach and not drawn.
    """
    # The aureole falls as r^-2.5 outside a core of two FWHM; a spike is a thin line
    # with a 1/(1 + (r/c)^2) profile, as a slit's diffraction averaged over a
    # broad band.
    core = 2.0 * fwhm
    light = np.zeros((dy.size, dx.size))
    spike_reach, halo_reach = reach
    if halo > 0:
        rows, columns = np.abs(dy) < halo_reach, np.abs(dx) < halo_reach
        r2 = dx[columns] ** 2 + dy[rows, None] ** 2
        profile = halo * 0.25 / (math.pi * core**2) * (1.0 + r2 / core**2) ** -1.25
        profile *= np.clip(1.0 - r2 / halo_reach**2, 0.0, 1.0) ** 2
        light[np.ix_(rows, columns)] += profile
    if spikes > 0:
        width = _spike_width(fwhm)
        for turn in (angle, angle + 0.5 * math.pi):
            across = -dx * math.sin(turn) + dy[:, None] * math.cos(turn)
            y, x = np.nonzero(np.abs(across) < 4.5 * width)
            r2 = dx[x] ** 2 + dy[y] ** 2
            line = np.exp(-0.5 * (across[y, x] / width) ** 2) / (math.sqrt(2 * math.pi) * width)
            line *= 0.5 * spikes / (2.0 * math.pi * core) / (1.0 + r2 / (2.0 * core) ** 2)
            light[y, x] += line * np.clip(1.0 - r2 / spike_reach**2, 0.0, 1.0) ** 2
    return light


def saturate(
    image: np.ndarray,
    level: float,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    bleed: bool,
    axis: str,
    trail_level: float,
    fill: float,
) -> None:
    """Clip an image (y, x) at the saturation level (nJy), in place, and mark the pixels as `SATURATED`.

    Clipped pixels look as pipelines leave them that interpolate across the
    trails: streaky, a little brighter towards the middle. With ``bleed`` clipped
    charge spreads along columns (``axis`` "y") or rows ("x") in trails that fade
    to their ends. ``trail_level`` and ``fill`` are the flux in trails where they
    begin and in clipped pixels, in units of ``level``.
    """
    clipped = image > level
    if not clipped.any():
        return
    # Work along columns; transposed views write through.
    lines, core, marks = (image, clipped, mask) if axis == "y" else (image.T, clipped.T, mask.T)
    streaks = 1.0 + 0.06 * np.clip(rng.standard_normal(lines.shape[0]), -2.5, 2.5)
    if bleed:
        trail = np.zeros(lines.shape)
        for x in np.flatnonzero(core.any(axis=0)):
            rows = np.flatnonzero(core[:, x])
            # Separate runs in one column are separate stars.
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                excess = float((lines[run, x] - level).sum()) / level
                # Part of the charge is lost on the way.
                length = int(0.5 * min(0.4 * excess, 0.5 * lines.shape[0]) * rng.uniform(0.8, 1.2))
                if length > 1:
                    begin, end = int(run[0]), int(run[-1]) + 1
                    fading = np.sqrt(1.0 - np.arange(length) / length)
                    above, below = trail[max(0, begin - length) : begin, x], trail[end : end + length, x]
                    np.maximum(above, fading[: above.size][::-1], out=above)
                    np.maximum(below, fading[: below.size], out=below)
        trail[core] = 0.0
        bled = trail > 0
        lines[bled] = np.maximum(lines[bled], (trail * trail_level * level)[bled])
        marks[bled] |= SATURATED
    rows = np.nonzero(core)[0]
    lines[core] = fill * level * streaks[rows] * (1.0 + 0.08 * np.log(np.minimum(lines[core] / level, 100.0)))
    marks[core] |= SATURATED


def add_cosmic_rays(
    image: np.ndarray, mask: np.ndarray, count: int, sky_sigma: float, rng: np.random.Generator
) -> None:
    """Add straight tracks of tens to hundreds of the sky noise, in place, and mark them as `COSMIC_RAY`."""
    height, width = image.shape
    for _ in range(count):
        length = 1.0 + rng.exponential(8.0)
        angle = rng.uniform(0.0, math.pi)
        step = np.arange(0.0, length, 0.5)
        x = np.rint(rng.uniform(0, width) + step * math.cos(angle)).astype(int)
        y = np.rint(rng.uniform(0, height) + step * math.sin(angle)).astype(int)
        on = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        image[y[on], x[on]] += sky_sigma * 10.0 ** rng.uniform(1.3, 2.7)
        mask[y[on], x[on]] |= COSMIC_RAY


def add_stray_light(
    image: np.ndarray,
    mask: np.ndarray,
    count: int,
    radius: tuple[float, float],
    sky_sigma: float,
    rng: np.random.Generator,
) -> None:
    """Add round patches of stray light, as of ghosts, in place, and mark them as `BAD`.

    Their radii (px) are uniform in the logarithm; the light is 2 to 40 times the
    sky noise (nJy) in the middle.
    """
    height, width = image.shape
    low, high = (math.log(r) for r in radius)
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r = math.exp(rng.uniform(low, high))
        peak = sky_sigma * 10.0 ** rng.uniform(0.3, 1.6)
        rows = slice(max(0, math.ceil(y - r)), max(0, math.floor(y + r) + 1))
        columns = slice(max(0, math.ceil(x - r)), max(0, math.floor(x + r) + 1))
        part = image[rows, columns]
        dy = np.arange(rows.start, rows.start + part.shape[0])[:, None] - y
        dx = np.arange(columns.start, columns.start + part.shape[1]) - x
        inside = 1.0 - (dx * dx + dy * dy) / r**2
        part += peak * np.clip(inside, 0.0, 1.0) ** 2
        mask[rows, columns][inside > 0] |= BAD


def draw_dead_columns(shape: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose columns, or parts of them, that are dead: bool, (y, x)."""
    height, width = shape
    dead = np.zeros(shape, bool)
    for _ in range(count):
        x = int(rng.integers(0, width))
        end = int(rng.integers(1, height + 1)) if rng.random() < 0.5 else height
        dead[:end, x] = True
    return dead


def draw_chip_gaps(
    shape: tuple[int, int], count: int, width: tuple[float, float], depth: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the share of the exposures that is left beside chip gaps, (y, x).

    Each gap crosses the image along a row or a column, with a width (px) in the
    range given, and takes away the share ``depth``; where two cross, the second
    takes it from what the first one left.
    """
    # Rows and columns times each other are the whole plane.
    lines = [np.ones(shape[0]), np.ones(shape[1])]
    for _ in range(count):
        line = lines[int(rng.integers(2))]
        size = max(1, round(rng.uniform(*width)))
        begin = int(rng.integers(1 - size, line.size))
        line[max(0, begin) : begin + size] *= 1.0 - depth
    return lines[0][:, None] * lines[1]


def correlated_noise(shape: tuple[int, ...], kernel_sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Draw noise of unit variance per pixel, float32.

    It is white noise smoothed with a Gaussian of ``kernel_sigma`` px along the
    last two axes, or white noise where that is 0.
    """
    if kernel_sigma <= 0:
        return rng.standard_normal(shape, dtype=np.float32)
    reach = max(1, math.ceil(3.0 * kernel_sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / kernel_sigma) ** 2)
    # The separable kernel's squares sum to one: the variance stays one.
    kernel = (kernel / math.sqrt((kernel**2).sum())).astype(np.float32)
    wide = rng.standard_normal((*shape[:-2], shape[-2] + 2 * reach, shape[-1] + 2 * reach), dtype=np.float32)
    rows = kernel[0] * wide[..., : shape[-2], :]
    for i, weight in enumerate(kernel[1:], 1):
        rows += weight * wide[..., i : i + shape[-2], :]
    noise = kernel[0] * rows[..., : shape[-1]]
    for i, weight in enumerate(kernel[1:], 1):
        noise += weight * rows[..., i : i + shape[-1]]
    return noise
