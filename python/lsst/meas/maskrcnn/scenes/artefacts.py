# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What camera and sky add to the light of the sources."""

from __future__ import annotations

__all__ = [
    "COSMIC_RAY",
    "DEAD",
    "MASK_BITS",
    "SATURATED",
    "add_bright_star_wings",
    "add_cosmic_rays",
    "add_dead_columns",
    "background",
    "correlated_noise",
    "saturate",
]

import math

import numpy as np

SATURATED = 1
COSMIC_RAY = 2
DEAD = 4
MASK_BITS: dict[str, int] = {"SAT": SATURATED, "CR": COSMIC_RAY, "BAD": DEAD}
"""Bits of `Scene.mask`, by the names of the mask planes that afw uses."""


def background(shape: tuple[int, int], amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth background: an offset, two slopes and a bend.

    Parameters
    ----------
    shape : `tuple` [`int`, `int`]
        Height and width, px.
    amplitude : `float`
        Scale of each of the terms.
    rng : `numpy.random.Generator`
        Source of chance.
    """
    y = np.linspace(-1.0, 1.0, shape[0])[:, None]
    x = np.linspace(-1.0, 1.0, shape[1])
    a = amplitude * rng.normal(size=6)
    return 0.5 * a[0] + a[1] * x + a[2] * y + 0.5 * (a[3] * x * y + a[4] * x * x + a[5] * y * y)


def add_bright_star_wings(
    image: np.ndarray,
    x: float,
    y: float,
    flux: float,
    spikes: float,
    halo: float,
    angle: float,
    fwhm: float,
    limit: float,
) -> None:
    """Add the diffraction spikes and the aureole of a star, in place.

    Parameters
    ----------
    image : `numpy.ndarray`, (y, x)
        Pixels, nJy.
    x, y : `float`
        Position of the star, px.
    flux : `float`
        Of the star, nJy.
    spikes, halo : `float`
        Share of that in the four spikes and in the aureole.
    angle : `float`
        Of the first spike from +x, rad.
    fwhm : `float`
        Of the PSF, px; the spikes' width follows it.
    limit : `float`
        Surface brightness below which both may end, nJy per px.
    """
    # Both fall as r^-2.5 outside a core of two FWHM; a spike is a thin line
    # with a 1/(1 + (r/c)^2) profile, as a slit's diffraction averaged over a
    # broad band.
    core = 2.0 * fwhm
    reach = int(
        min(max(image.shape), core * max(2.0, (max(spikes, halo) * flux / (limit * core)) ** 0.45)) + 1
    )
    y_low, y_high = max(0, int(y) - reach), min(image.shape[0], int(y) + reach + 1)
    x_low, x_high = max(0, int(x) - reach), min(image.shape[1], int(x) + reach + 1)
    if y_low >= y_high or x_low >= x_high:
        return
    dx = np.arange(x_low, x_high) - x
    dy = (np.arange(y_low, y_high) - y)[:, None]
    r2 = dx * dx + dy * dy
    light = np.zeros(np.broadcast_shapes(dx.shape, dy.shape))
    taper = np.clip(1.0 - r2 / reach**2, 0.0, 1.0) ** 2
    if halo > 0:
        light += halo * 0.25 / (math.pi * core**2) * (1.0 + r2 / core**2) ** -1.25
    if spikes > 0:
        width = 0.35 * fwhm + 0.3
        along = 1.0 / (1.0 + r2 / (2.0 * core) ** 2)
        for turn in (angle, angle + 0.5 * math.pi):
            across = -dx * math.sin(turn) + dy * math.cos(turn)
            line = np.exp(-0.5 * (across / width) ** 2) / (math.sqrt(2 * math.pi) * width)
            light += 0.5 * spikes * line * along / (2.0 * math.pi * core)
    image[y_low:y_high, x_low:x_high] += flux * light * taper


def saturate(
    image: np.ndarray,
    level: float,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    bleed: bool = False,
    axis: str = "y",
    trail_level: float = 1.0,
    fill: float = 1.0,
) -> None:
    """Clip an image at the saturation level, in place.

    Parameters
    ----------
    image : `numpy.ndarray`, (y, x)
        Pixels, nJy.
    level : `float`
        Flux in one pixel, nJy.
    mask : `numpy.ndarray`, (y, x), `numpy.uint8`
        Clipped pixels and trails get `SATURATED`.
    rng : `numpy.random.Generator`
        Source of chance for the trails' lengths.
    bleed : `bool`
        Spread clipped charge along a line.
    axis : `str`
        ``"y"`` for trails along columns, ``"x"`` along rows.
    trail_level, fill : `float`
        Flux in the pixels of trails (at least) and in clipped pixels, in
        units of ``level``.
    """
    clipped = image > level
    if not clipped.any():
        return
    if bleed:
        trail = np.zeros_like(clipped)
        # Work along columns; transposed views write through.
        lines, core, out = (image, clipped, trail) if axis == "y" else (image.T, clipped.T, trail.T)
        for x in np.flatnonzero(core.any(axis=0)):
            rows = np.flatnonzero(core[:, x])
            # Separate runs in one column are separate stars.
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                excess = float((lines[run, x] - level).sum()) / level
                # Part of the charge is lost on the way.
                length = int(0.5 * min(0.4 * excess, 0.5 * lines.shape[0]) * rng.uniform(0.8, 1.2))
                if length > 1:
                    out[max(0, run[0] - length) : run[-1] + length + 1, x] = True
        trail &= ~clipped
        image[trail] = np.maximum(image[trail], trail_level * level)
        mask[trail] |= SATURATED
    image[clipped] = fill * level
    mask[clipped] |= SATURATED


def add_cosmic_rays(
    image: np.ndarray, mask: np.ndarray, count: int, sky_sigma: float, rng: np.random.Generator
) -> None:
    """Add straight tracks of cosmic rays, in place.

    Parameters
    ----------
    image : `numpy.ndarray`, (y, x)
        Pixels, nJy.
    mask : `numpy.ndarray`, (y, x), `numpy.uint8`
        Hit pixels get `COSMIC_RAY`.
    count : `int`
        How many.
    sky_sigma : `float`
        Sky noise of a pixel, nJy; the deposits are tens to hundreds of it.
    rng : `numpy.random.Generator`
        Source of chance.
    """
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


def add_dead_columns(image: np.ndarray, mask: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Set columns, or parts of them, to zero and mark them, in place.

    Parameters
    ----------
    image : `numpy.ndarray`, (y, x)
        Pixels, nJy.
    mask : `numpy.ndarray`, (y, x), `numpy.uint8`
        Their pixels get `DEAD`.
    count : `int`
        How many.
    rng : `numpy.random.Generator`
        Source of chance.
    """
    height, width = image.shape
    for _ in range(count):
        x = int(rng.integers(0, width))
        end = int(rng.integers(1, height + 1)) if rng.random() < 0.5 else height
        image[:end, x] = 0.0
        mask[:end, x] |= DEAD


def correlated_noise(shape: tuple[int, ...], kernel_sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of unit variance per pixel, correlated if asked.

    Parameters
    ----------
    shape : `tuple` [`int`, ...]
        (band, y, x).
    kernel_sigma : `float`
        Of the Gaussian kernel that white noise is smoothed with, px; 0 for
        white noise.
    rng : `numpy.random.Generator`
        Source of chance.

    Returns
    -------
    noise : `numpy.ndarray`, `numpy.float32`
        Of that shape.
    """
    if kernel_sigma <= 0:
        return rng.standard_normal(shape, dtype=np.float32)
    reach = max(1, math.ceil(3.0 * kernel_sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / kernel_sigma) ** 2)
    # The separable kernel's squares sum to one: the variance stays one.
    kernel = (kernel / math.sqrt((kernel**2).sum())).astype(np.float32)
    wide = rng.standard_normal((*shape[:-2], shape[-2] + 2 * reach, shape[-1] + 2 * reach), dtype=np.float32)
    rows = sum(w * wide[..., i : i + shape[-2], :] for i, w in enumerate(kernel))
    return sum(w * rows[..., i : i + shape[-1]] for i, w in enumerate(kernel))
