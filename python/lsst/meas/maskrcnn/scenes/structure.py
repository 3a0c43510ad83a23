# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Structure of discs: spiral arms, bars, clumps and dust lanes, in Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .sersic import EXPONENTIAL_SCALE, SersicProfile


def ellipse_matrix(radius: float, axis_ratio: float, angle: float) -> np.ndarray:
    """Return the matrix that takes the unit circle to an ellipse at an angle (rad) from +x towards +y."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, -s], [s, c]])
    return rotation @ np.diag([radius, radius * axis_ratio]) @ rotation.T


def transformed_square(matrix: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Return the square of M k, of which the components (kx, ky) are broadcast."""
    a = matrix[0, 0] ** 2 + matrix[1, 0] ** 2
    b = matrix[0, 1] ** 2 + matrix[1, 1] ** 2
    c = 2 * (matrix[0, 0] * matrix[0, 1] + matrix[1, 0] * matrix[1, 1])
    return a * kx**2 + b * ky**2 + c * kx * ky


@dataclass(frozen=True)
class _Plane:
    """A disc's own coordinates at the pixels of a stamp.

    ``u`` and ``v`` run along its major and minor axis in units of its
    half-light radius; ``profile`` is the smooth disc's flux in each pixel, as
    a share. ``matrix`` takes them to the sky (arcsec), ``centre`` is the place
    of the disc in the stamp (arcsec).
    """

    u: np.ndarray
    v: np.ndarray
    r: np.ndarray
    profile: np.ndarray
    matrix: np.ndarray
    centre: np.ndarray
    pixel: float


@dataclass
class DiscStructure:
    """Transforms of the parts of a structured disc, each of unit flux."""

    # Old stars, and young ones with their clumps.
    old: np.ndarray
    young: np.ndarray
    share: float  # share of the young part in the flux where the boost of a band is 1
    lane: np.ndarray | None = None  # old light behind dust; its flux is the share of the old part's
    depth: float = 0.0  # how much of that the dust takes where the boost is 1

    def mix(self, boost: float) -> np.ndarray:
        """Return the transform of the disc in a band, with that much more of the flux in young stars."""
        old = self.old
        if self.lane is not None:
            # Dust dims blue light more, and young stars are blue.
            depth = min(self.depth * boost * boost, 0.75)
            old = old - depth * self.lane
            old = old / old[0, 0].real
        share = min(self.share * boost, 0.9)
        return (1.0 - share) * old + share * self.young


def draw_structure(
    disc: np.ndarray,
    kx: np.ndarray,
    ky: np.ndarray,
    pixel_scale: float,
    centre: tuple[float, float],
    shape: tuple[float, float],
    angle: float,
    profile: SersicProfile,
    rng: np.random.Generator,
    *,
    irregular: bool,
    resolved: bool,
) -> DiscStructure:
    """Draw the structure of a disc.

    Given are the transform of the smooth disc, (size, size // 2 + 1), the wave numbers of
    the stamp (1/arcsec), the position (x, y) of the disc in the stamp (arcsec), its
    half-light radius along the major axis (arcsec) and axis ratio, the angle of the major
    axis from +x towards +y (rad), and its profile. An irregular disc is lopsided with
    clumps, in place of arms, bar and dust lane. A disc that is seen from the side shows a
    dust lane if it is thick enough: ``resolved``.
    """
    c, s = math.cos(angle), math.sin(angle)
    matrix = ellipse_matrix(*shape, angle) @ np.array([[c, -s], [s, c]])
    inverse = np.linalg.inv(matrix)
    size = len(disc)
    dx = np.arange(size) * pixel_scale - centre[0]
    dy = (np.arange(size) * pixel_scale - centre[1])[:, None]
    u = inverse[0, 0] * dx + inverse[0, 1] * dy
    v = inverse[1, 0] * dx + inverse[1, 1] * dy
    r = np.sqrt(u * u + v * v)
    # The pixel size as seen in the disc, along the mean of its axes.
    pixel = pixel_scale / (shape[0] * math.sqrt(shape[1]))
    exponent = -profile.scale * ((r / profile.endless) ** (1.0 / profile.index) - 1.0)
    light = np.exp(exponent) * (pixel / profile.endless) ** 2 / profile.flux
    plane = _Plane(u, v, r, light, matrix, np.array(centre), pixel)
    if irregular:
        return _irregular(disc, plane, kx, ky, rng)
    if shape[1] < 0.35:
        return _edge_on(disc, plane, kx, ky, rng, lane=resolved)
    return _spiral(disc, plane, kx, ky, rng)


def _spiral(
    disc: np.ndarray, plane: _Plane, kx: np.ndarray, ky: np.ndarray, rng: np.random.Generator
) -> DiscStructure:
    """Logarithmic arms with young stars and clumps, often a bar."""
    arms = int(rng.choice([2, 2, 2, 3, 4]))
    pitch = math.tan(math.radians(rng.uniform(12.0, 30.0))) * rng.choice([-1.0, 1.0])
    turn = rng.uniform(0.0, 2 * math.pi)
    wiggle = rng.uniform(0.0, 0.9, 2)
    phases = rng.uniform(0.0, 2 * math.pi, 4)
    angle = np.arctan2(plane.v, plane.u)
    r = plane.r
    twist = arms * (angle - np.log(np.maximum(r, 1e-3)) / pitch) + turn
    # Arms of real galaxies waver, branch and break off.
    twist += wiggle[0] * np.sin(angle + 2.5 * r + phases[0]) + wiggle[1] * np.sin(
        3.0 * angle - 3.0 * r + phases[1]
    )
    # None in the middle, nor where they would wind up below the pixels.
    width = 2 * math.pi * r * abs(pitch) / (arms * plane.pixel)
    window = r * r / (0.12 + r * r) * width**2 / (9.0 + width**2)
    strength = rng.uniform(0.1, 0.4)
    lopsided = rng.uniform(0.0, 0.2) * np.minimum(r, 1.0) * np.cos(angle - phases[2])
    old = disc + np.fft.rfft2(plane.profile * (strength * window * np.cos(twist) + lopsided))
    old /= old[0, 0].real
    if rng.random() < 0.4:
        length = rng.uniform(0.25, 0.55)
        around = rng.uniform(0.0, math.pi)
        bar = plane.matrix @ ellipse_matrix(length, rng.uniform(0.25, 0.45), around)
        share = rng.uniform(0.05, 0.2)
        position = np.exp(-1j * plane.centre[1] * ky) * np.exp(-1j * plane.centre[0] * kx)
        old = (1.0 - share) * old + share * np.exp(-0.5 * transformed_square(bar.T, kx, ky)) * position
    narrow = rng.uniform(0.5, 2.5)
    uneven = 1.0 + rng.uniform(0.2, 0.7) * np.sin(2.0 * angle + 1.5 * r + phases[3])
    arm_light = plane.profile * window * np.exp(narrow * np.cos(twist)) * uneven * (r + 0.3)
    young = np.fft.rfft2(arm_light)
    young /= young[0, 0].real
    count = int(rng.integers(10, 50))
    radius = rng.gamma(3.0, 0.6 / EXPONENTIAL_SCALE, count)
    which = 2 * math.pi * rng.integers(0, arms, count)
    theta = (which - turn) / arms + np.log(np.maximum(radius, 0.05)) / pitch
    theta += rng.normal(0.0, 0.35, count)
    clumps = _clumps(plane, radius, theta, rng.uniform(0.02, 0.06, count), kx, ky, rng)
    clumpy = rng.uniform(0.05, 0.3)
    return DiscStructure(old, (1.0 - clumpy) * young + clumpy * clumps, rng.uniform(0.15, 0.5))


def _edge_on(
    disc: np.ndarray, plane: _Plane, kx: np.ndarray, ky: np.ndarray, rng: np.random.Generator, lane: bool
) -> DiscStructure:
    """Clumps in a disc that is seen from the side, and a dust lane."""
    lopsided = rng.uniform(0.0, 0.25) * np.tanh(plane.u * rng.choice([-1.0, 1.0]))
    old = disc + np.fft.rfft2(plane.profile * lopsided * np.minimum(plane.r, 1.0))
    old /= old[0, 0].real
    count = int(rng.integers(6, 30))
    radius, theta = rng.gamma(2.0, 1.0 / EXPONENTIAL_SCALE, count), rng.uniform(0.0, 2 * math.pi, count)
    young = 0.6 * disc + 0.4 * _clumps(plane, radius, theta, rng.uniform(0.02, 0.08, count), kx, ky, rng)
    structure = DiscStructure(old, young, rng.uniform(0.05, 0.4))
    if lane and rng.random() < 0.6:
        height = rng.uniform(-0.25, 0.25)
        shade = np.exp(-0.5 * ((plane.v - height) / rng.uniform(0.12, 0.25)) ** 2)
        structure.lane = np.fft.rfft2(plane.profile * shade * np.exp(-0.5 * (plane.u / 1.3) ** 4))
        structure.depth = rng.uniform(0.2, 0.5)
    return structure


def _irregular(
    disc: np.ndarray, plane: _Plane, kx: np.ndarray, ky: np.ndarray, rng: np.random.Generator
) -> DiscStructure:
    """Star formation here and there in a lopsided disc."""
    angle = rng.uniform(0.0, 2 * math.pi)
    along = (plane.u * math.cos(angle) + plane.v * math.sin(angle)) / np.sqrt(1.0 + plane.r**2)
    old = disc + np.fft.rfft2(plane.profile * rng.uniform(0.2, 0.7) * along)
    old /= old[0, 0].real
    count = int(rng.integers(12, 60))
    radius, theta = rng.gamma(2.5, 0.5 / EXPONENTIAL_SCALE, count), rng.uniform(0.0, 2 * math.pi, count)
    # Its young stars are to one side of the old.
    where = np.stack([radius * np.cos(theta), radius * np.sin(theta)])
    where += rng.uniform(0.0, 0.4) * np.array([[math.cos(angle)], [math.sin(angle)]])
    radius, theta = np.hypot(where[0], where[1]), np.arctan2(where[1], where[0])
    clumps = _clumps(plane, radius, theta, np.exp(rng.uniform(-3.5, -1.8, count)), kx, ky, rng)
    clumpy = rng.uniform(0.2, 0.6)
    return DiscStructure(old, (1.0 - clumpy) * old + clumpy * clumps, rng.uniform(0.25, 0.6))


def _clumps(
    plane: _Plane,
    radius: np.ndarray,
    angle: np.ndarray,
    sigma: np.ndarray,
    kx: np.ndarray,
    ky: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the transform of round Gaussians at places in the disc.

    Their ``sigma`` is in units of the disc's (mean) half-light radius.
    """
    where = plane.matrix @ np.stack([radius * np.cos(angle), radius * np.sin(angle)]) + plane.centre[:, None]
    weight = rng.exponential(1.0, radius.size) * (sigma / sigma.max())
    weight /= weight.sum()
    spread = 0.5 * sigma**2 * abs(np.linalg.det(plane.matrix))
    columns = np.exp(-ky * (1j * where[1] + ky * spread)) * weight
    rows = np.exp(-kx.T * (1j * where[0] + kx.T * spread))
    return columns @ rows.T
