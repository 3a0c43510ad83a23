# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSFs and Sersic profiles as sums of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares

__all__ = ["PsfMixture", "fit_psf", "sersic_mixture"]

FloatArray = npt.NDArray[np.float64]

N_PSF_GAUSSIANS = 3

_SERSIC_INDEX = (0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
# Logarithm of the variances in units of the squared half-light radius, and weights, by index: least-squares
# fits to r^2 times the profile over ln r, from 0.02 to 4 + 5 n half-light radii, the total flux held.
_SERSIC_LOG_VARIANCE = (
    (-4.986, -3.567, -2.535, -1.694, -0.999, -0.459, -0.075, 0.200),
    (-5.115, -3.640, -2.562, -1.679, -0.935, -0.318, 0.179, 0.589),
    (-5.077, -3.561, -2.445, -1.522, -0.728, -0.035, 0.573, 1.123),
    (-5.137, -3.585, -2.431, -1.466, -0.618, 0.149, 0.858, 1.539),
    (-5.321, -3.713, -2.499, -1.468, -0.541, 0.325, 1.166, 2.033),
    (-5.510, -3.849, -2.579, -1.489, -0.497, 0.446, 1.383, 2.387),
    (-5.825, -4.065, -2.697, -1.504, -0.401, 0.664, 1.746, 2.951),
    (-6.076, -4.233, -2.779, -1.499, -0.306, 0.858, 2.055, 3.411),
    (-6.292, -4.377, -2.849, -1.495, -0.224, 1.023, 2.313, 3.792),
    (-6.644, -4.615, -2.967, -1.490, -0.092, 1.290, 2.730, 4.395),
    (-6.919, -4.806, -3.061, -1.485, 0.015, 1.506, 3.063, 4.869),
    (-7.149, -4.965, -3.140, -1.480, 0.107, 1.688, 3.343, 5.262),
)
_SERSIC_WEIGHT = (
    (0.0001, 0.0007, 0.0043, 0.0225, 0.1030, 0.3335, 0.4352, 0.1006),
    (0.0002, 0.0019, 0.0110, 0.0496, 0.1753, 0.3822, 0.3263, 0.0534),
    (0.0008, 0.0060, 0.0288, 0.1031, 0.2592, 0.3716, 0.2073, 0.0231),
    (0.0016, 0.0108, 0.0453, 0.1359, 0.2806, 0.3376, 0.1696, 0.0185),
    (0.0033, 0.0182, 0.0637, 0.1586, 0.2761, 0.3003, 0.1577, 0.0220),
    (0.0052, 0.0247, 0.0761, 0.1681, 0.2657, 0.2766, 0.1553, 0.0282),
    (0.0094, 0.0364, 0.0940, 0.1782, 0.2500, 0.2464, 0.1484, 0.0373),
    (0.0139, 0.0463, 0.1063, 0.1827, 0.2384, 0.2273, 0.1421, 0.0431),
    (0.0183, 0.0545, 0.1145, 0.1839, 0.2289, 0.2142, 0.1379, 0.0479),
    (0.0266, 0.0668, 0.1243, 0.1824, 0.2141, 0.1969, 0.1328, 0.0561),
    (0.0340, 0.0757, 0.1296, 0.1794, 0.2033, 0.1857, 0.1298, 0.0625),
    (0.0405, 0.0824, 0.1327, 0.1761, 0.1950, 0.1777, 0.1278, 0.0678),
)
LOG_INDEX_RANGE = float(np.log(_SERSIC_INDEX[0])), float(np.log(_SERSIC_INDEX[-1]))
"""Natural logarithms of the smallest and the largest Sersic index."""

_SERSIC = CubicSpline(np.log(_SERSIC_INDEX), np.hstack([_SERSIC_LOG_VARIANCE, _SERSIC_WEIGHT]))
_SERSIC_SLOPE = _SERSIC.derivative()


def sersic_mixture(log_index: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Give Sersic profiles as sums of circular Gaussians.

    Parameters
    ----------
    log_index : `numpy.ndarray`
        Natural logarithms of N Sersic indices, from 0.6 to 6.

    Returns
    -------
    variance, weight : `numpy.ndarray`
        Variances in units of the squared half-light radius, and parts of the
        flux, (N, 8).
    log_variance_slope, weight_slope : `numpy.ndarray`
        Derivatives of the logarithm of ``variance`` and of ``weight`` by
        ``log_index``, (N, 8).

    Notes
    -----
    After Hogg & Lang (2013, PASP 125, 719), with an index that is free: the
    Gaussians of 12 indices, and cubic splines between them.
    """
    value, slope = _SERSIC(log_index), _SERSIC_SLOPE(log_index)
    return np.exp(value[:, :8]), value[:, 8:], slope[:, :8], slope[:, 8:]


@dataclass(frozen=True)
class PsfMixture:
    """A PSF as a sum of Gaussians with one centre."""

    weight: FloatArray
    """Parts of the flux, (3,)."""
    covariance: FloatArray
    """Covariances in the order y, x, (3, 2, 2), px^2."""
    center: FloatArray
    """(y, x) of the centre from the middle pixel of the image, px."""
    flux_error: float
    """Relative error of the flux of a bright star that is fitted with the
    mixture in place of the PSF."""


def fit_psf(image: npt.ArrayLike) -> PsfMixture:
    """Fit three Gaussians to the image of a PSF.

    Parameters
    ----------
    image : array_like
        The PSF, (y, x), odd sides with the centre in the middle pixel.

    Returns
    -------
    mixture : `PsfMixture`
        The fit; its weights add up to 1 (to some 1e-4).

    Raises
    ------
    ValueError
        Raised if the image is not 2-D with odd sides, not finite, or its sum
        is not above 0.
    """
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 2 or pixels.shape[0] % 2 == 0 or pixels.shape[1] % 2 == 0:
        raise ValueError(f"a PSF has shape {pixels.shape}; wanted (y, x) with odd sides")
    if not (np.isfinite(pixels).all() and pixels.sum() > 0):
        raise ValueError("a PSF is not finite, or its sum is not above 0")
    y, x = (axis.ravel() - (axis.max() // 2) for axis in np.mgrid[: pixels.shape[0], : pixels.shape[1]])
    data = pixels.ravel() / pixels.sum()
    scale = 1.0 / data.max()
    sigma = np.sqrt(scale / (2.0 * np.pi)) * np.array([0.8, 1.3, 2.4])
    start = np.zeros((N_PSF_GAUSSIANS, 4))
    start[:, 0], start[:, 1] = np.log([0.55, 0.33, 0.12]), np.log(sigma)
    start[:, 3] = start[:, 1]

    def misfit(p: FloatArray) -> FloatArray:
        gaussians = _psf_gaussians(p, y, x)[0]
        return np.append(scale * (gaussians.sum(axis=1) - data), _SUM_WEIGHT * (np.exp(p[2::4]).sum() - 1))

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
        rows *= scale
        jacobian[-1, 2::4] = _SUM_WEIGHT * np.exp(p[2::4])
        return jacobian

    found = least_squares(misfit, np.append([0.0, 0.0], start), jac=slope, method="lm", max_nfev=60).x
    model = _psf_gaussians(found, y, x)[0].sum(axis=1)
    parts = found[2:].reshape(-1, 4)
    lower = np.zeros((N_PSF_GAUSSIANS, 2, 2))
    lower[:, 0, 0], lower[:, 1, 0], lower[:, 1, 1] = np.exp(parts[:, 1]), parts[:, 2], np.exp(parts[:, 3])
    return PsfMixture(
        np.exp(parts[:, 0]),
        lower @ lower.transpose(0, 2, 1),
        found[:2],
        float(model @ data / (model @ model) - 1.0),
    )


_SUM_WEIGHT = 30.0  # of the condition that weights add up to 1, in units of the PSF's peak


def _psf_gaussians(p: FloatArray, y: FloatArray, x: FloatArray) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    """Gaussians with covariance L L^T, (pixel, Gaussian), and L^-1 d and L = ((a, 0), (b, c))."""
    parts = p[2:].reshape(-1, 4)
    a, b, c = np.exp(parts[:, 1]), parts[:, 2], np.exp(parts[:, 3])
    u = (y - p[0])[:, None] / a
    v = ((x - p[1])[:, None] - b * u) / c
    return np.exp(parts[:, 0] - 0.5 * (u * u + v * v)) / (2.0 * np.pi * a * c), (u, v, a, b, c)
