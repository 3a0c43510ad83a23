# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSFs as images, and as sums of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import least_squares

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

_N_PSF_GAUSSIANS = 4
# Those of a Moffat profile with an exponent of 3.2; widths in units of that of the Gaussian of the same peak.
_START_WEIGHT = np.array([0.17, 0.50, 0.28, 0.05])
_START_SIGMA = np.array([0.68, 1.0, 1.57, 2.9])


def prepare_psf(psf: npt.ArrayLike) -> Float32Array:
    """Make the coefficients, float32, (y, x), of a cubic spline of sum 1 through an image of a PSF.

    The image, (y, x), has odd sides and the centre in the middle pixel. A ValueError is raised if it has not,
    is not finite, or its sum is not above 0.
    """
    pixels = np.asarray(psf, np.float32)
    if pixels.ndim != 2 or pixels.shape[0] % 2 == 0 or pixels.shape[1] % 2 == 0:
        raise ValueError(f"a PSF has shape {pixels.shape}; wanted (y, x) with odd sides")
    if not (np.isfinite(pixels).all() and pixels.sum() > 0):
        raise ValueError("a PSF is not finite, or its sum is not above 0")
    return np.asarray(spline_filter(pixels / pixels.sum(), 3, output=np.float32, mode="constant"))


def draw_psf(spline: Float32Array, dy: FloatArray, dx: FloatArray) -> Float32Array:
    """Draw a PSF, as `prepare_psf` makes it, on rows and columns from its centre (px).

    At least 0, float32, (y, x). Beyond the image of the PSF it falls with the third power of the distance.
    """
    plane = np.zeros((len(dy), len(dx)), np.float32)
    half = (spline.shape[0] // 2, spline.shape[1] // 2)
    i, j = np.flatnonzero(np.abs(dy) <= half[0]), np.flatnonzero(np.abs(dx) <= half[1])
    if i.size and j.size:
        grid = np.meshgrid(dy[i] + half[0], dx[j] + half[1], indexing="ij")
        part = map_coordinates(spline, grid, order=3, mode="constant", prefilter=False)
        plane[i[0] : i[-1] + 1, j[0] : j[-1] + 1] = np.maximum(part, 0.0)
    if i.size < len(dy) or j.size < len(dx):
        _add_wings(plane, spline, dy, dx)
    return plane


def _add_wings(plane: Float32Array, spline: Float32Array, dy: npt.NDArray[Any], dx: npt.NDArray[Any]) -> None:
    """Continue a PSF beyond the circle that its image holds, with the mean there."""
    half = min(spline.shape) // 2
    angle = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
    ring = [spline.shape[0] // 2 + half * np.sin(angle), spline.shape[1] // 2 + half * np.cos(angle)]
    level = max(float(map_coordinates(spline, ring, order=3, mode="nearest", prefilter=False).mean()), 0.0)
    radius = np.hypot(dy[:, None], dx)
    outside = radius > half
    plane[outside] = level * (half / radius[outside]) ** 3


@dataclass(frozen=True)
class PsfMixture:
    """A PSF as a sum of Gaussians with one centre."""

    weight: FloatArray
    """Parts of the flux, (4,)."""
    covariance: FloatArray
    """Covariances in the order y, x, (4, 2, 2), px^2."""
    center: FloatArray
    """(y, x) of the centre from the middle pixel of the image, px."""
    flux_error: float
    """Relative error of the flux of a bright star that is fitted with the
    mixture in place of the PSF."""
    spline: Float32Array
    """The PSF itself, as `prepare_psf` makes it."""


class PsfStack(NamedTuple):
    """PSFs of N sources in B bands, four Gaussians each."""

    weight: FloatArray
    """Parts of the flux, (N, B, 4)."""
    covariance: FloatArray
    """Elements yy, yx and xx of the covariances, (3, N, B, 4), px^2."""
    center: FloatArray
    """(y, x) of the centres, (N, B, 2), px."""

    @classmethod
    def make(cls, psfs: Sequence[Sequence[PsfMixture]]) -> PsfStack:
        """Put the PSFs of each source in each band together."""
        # Most of them are the same objects.
        number: dict[int, int] = {}
        rows = np.array([[number.setdefault(id(psf), len(number)) for psf in bands] for bands in psfs])
        different = {id(psf): psf for bands in psfs for psf in bands}
        known = [different[key] for key in number]
        weight = np.array([psf.weight for psf in known])
        covariance = np.array([psf.covariance for psf in known])
        elements = np.stack([covariance[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1))])
        return cls(weight[rows], elements[:, rows], np.array([psf.center for psf in known])[rows])

    def take(self, rows: npt.NDArray[np.int64]) -> PsfStack:
        """Take those of some sources."""
        return PsfStack(self.weight[rows], self.covariance[:, rows], self.center[rows])


def fit_psf(image: npt.ArrayLike, start: PsfMixture | None = None) -> PsfMixture:
    """Fit four Gaussians to the image of a PSF, which is as for `prepare_psf`; their weights add up to 1.

    The fit may start from one of nearly the same shape.
    """
    spline = prepare_psf(image)
    pixels = np.asarray(image, np.float64)
    y, x = (axis.ravel() - (axis.max() // 2) for axis in np.mgrid[: pixels.shape[0], : pixels.shape[1]])
    data = pixels.ravel() / pixels.sum()
    # Wings count for more than their flux, as they decide on the flux of large sources.
    scale = (np.maximum(data, 0.0) / data.max() + 1e-3) ** -0.25 / data.max()
    sigma = np.sqrt(1.0 / (2.0 * np.pi * data.max())) * _START_SIGMA
    first = np.zeros((_N_PSF_GAUSSIANS, 4))
    first[:, 0], first[:, 1] = np.log(_START_WEIGHT), np.log(sigma)
    first[:, 3] = first[:, 1]
    if start is not None:
        lower = np.linalg.cholesky(start.covariance)
        weight = np.maximum(start.weight, 1e-6)
        parts = np.log(weight), np.log(lower[:, 0, 0]), lower[:, 1, 0], np.log(lower[:, 1, 1])
        first = np.stack(parts, axis=1)

    def misfit(p: FloatArray) -> FloatArray:
        gaussians = _psf_gaussians(p, y, x)[0]
        return np.append(
            scale * (gaussians.sum(axis=1) - data), _SUM_WEIGHT * (np.exp(np.minimum(p[2::4], 3.0)).sum() - 1)
        )

    def slope(p: FloatArray) -> FloatArray:
        gaussians, (u, v, a, b, c) = _psf_gaussians(p, y, x)
        jacobian = np.zeros((len(y) + 1, len(p)))
        rows = jacobian[:-1]
        rows[:, 0] = (gaussians * (u - v * b / c) / a).sum(axis=1)
        rows[:, 1] = (gaussians * v / c).sum(axis=1)
        rows[:, 2::4] = gaussians
        rows[:, 3::4] = gaussians * (u * u - u * v * b / c - 1.0)
        rows[:, 4::4] = gaussians * u * v / c
        rows[:, 5::4] = gaussians * (v * v - 1.0)
        rows *= scale[:, None]
        jacobian[-1, 2::4] = _SUM_WEIGHT * np.exp(np.minimum(p[2::4], 3.0))
        return jacobian

    found = least_squares(
        misfit, np.append([0.0, 0.0], first), jac=slope, method="lm", max_nfev=20, xtol=1e-6, ftol=1e-6
    ).x
    # Libraries of linear algebra do not give the same last digits in each run.
    found = found.round(6)
    model = _psf_gaussians(found, y, x)[0].sum(axis=1)
    parts = found[2:].reshape(-1, 4)
    lower = np.zeros((_N_PSF_GAUSSIANS, 2, 2))
    lower[:, 0, 0], lower[:, 1, 1] = np.exp(np.clip(parts[:, [1, 3]], *_LOG_SIGMA)).T
    lower[:, 1, 0] = np.clip(parts[:, 2], *_SKEW)
    # Nothing holds the shape of a Gaussian without flux.
    lower[parts[:, 0] < np.log(1e-6)] = lower[parts[:, 0].argmax()]
    return PsfMixture(
        np.exp(np.minimum(parts[:, 0], 3.0)),
        lower @ lower.transpose(0, 2, 1),
        found[:2],
        float(model @ data / (model @ model) - 1.0),
        spline,
    )


_LOG_SIGMA = -2.0, 5.0  # logarithms of the smallest and the largest standard deviation, px
_SKEW = -20.0, 20.0  # limits of the element below the diagonal of the root of a covariance, px
_SUM_WEIGHT = 30.0  # of the condition that weights add up to 1, in units of the PSF's peak


def _psf_gaussians(p: FloatArray, y: FloatArray, x: FloatArray) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    """Gaussians with covariance L L^T, (pixel, Gaussian), and L^-1 d and L = ((a, 0), (b, c))."""
    parts = p[2:].reshape(-1, 4)
    a, c = np.exp(np.clip(parts[:, [1, 3]], *_LOG_SIGMA)).T
    b = np.clip(parts[:, 2], *_SKEW)
    u = (y - p[0])[:, None] / a
    v = ((x - p[1])[:, None] - b * u) / c
    weight = np.minimum(parts[:, 0], 3.0)
    return np.exp(weight - 0.5 * (u * u + v * v)) / (2.0 * np.pi * a * c), (u, v, a, b, c)
