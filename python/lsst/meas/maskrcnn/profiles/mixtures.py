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

_N_PSF_GAUSSIANS = 4

_SERSIC_INDEX = (0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
# Logarithm of the variances in units of the squared half-light radius, and weights, by index: least-squares
# fits to r^2 times the profile over ln r, from 0.02 to 4 + 5 n half-light radii. 1 % of the flux of a de
# Vaucouleurs profile lies beyond and is missing; half of that is given back, which makes the flux of a fit
# right to 0.2 %.
_SERSIC_LOG_VARIANCE = (
    (-4.812, -3.398, -2.365, -1.526, -0.844, -0.334, 0.017, 0.271),
    (-5.105, -3.634, -2.558, -1.676, -0.933, -0.317, 0.179, 0.589),
    (-5.066, -3.557, -2.442, -1.521, -0.727, -0.035, 0.573, 1.124),
    (-5.120, -3.577, -2.426, -1.462, -0.615, 0.151, 0.859, 1.541),
    (-5.298, -3.701, -2.490, -1.461, -0.536, 0.329, 1.169, 2.036),
    (-5.473, -3.829, -2.566, -1.480, -0.490, 0.451, 1.387, 2.387),
    (-5.759, -4.031, -2.676, -1.491, -0.395, 0.665, 1.742, 2.937),
    (-5.984, -4.184, -2.749, -1.482, -0.299, 0.857, 2.044, 3.385),
    (-6.174, -4.313, -2.811, -1.474, -0.216, 1.019, 2.296, 3.753),
    (-6.471, -4.517, -2.908, -1.457, -0.081, 1.282, 2.698, 4.331),
    (-6.685, -4.667, -2.976, -1.437, 0.032, 1.493, 3.016, 4.777),
    (-6.842, -4.777, -3.022, -1.413, 0.132, 1.673, 3.281, 5.141),
)
_SERSIC_WEIGHT = (
    (0.0001, 0.0010, 0.0062, 0.0332, 0.1513, 0.4167, 0.3550, 0.0365),
    (0.0002, 0.0019, 0.0110, 0.0498, 0.1757, 0.3823, 0.3258, 0.0532),
    (0.0008, 0.0060, 0.0289, 0.1032, 0.2593, 0.3715, 0.2071, 0.0231),
    (0.0017, 0.0109, 0.0455, 0.1362, 0.2808, 0.3373, 0.1691, 0.0183),
    (0.0034, 0.0184, 0.0642, 0.1592, 0.2764, 0.2998, 0.1568, 0.0217),
    (0.0053, 0.0251, 0.0767, 0.1687, 0.2657, 0.2758, 0.1544, 0.0281),
    (0.0096, 0.0370, 0.0947, 0.1783, 0.2490, 0.2451, 0.1481, 0.0377),
    (0.0142, 0.0471, 0.1068, 0.1823, 0.2369, 0.2258, 0.1419, 0.0438),
    (0.0187, 0.0553, 0.1149, 0.1831, 0.2269, 0.2124, 0.1377, 0.0488),
    (0.0272, 0.0677, 0.1244, 0.1809, 0.2113, 0.1944, 0.1323, 0.0570),
    (0.0347, 0.0766, 0.1292, 0.1771, 0.1996, 0.1824, 0.1288, 0.0633),
    (0.0414, 0.0832, 0.1318, 0.1730, 0.1904, 0.1735, 0.1260, 0.0683),
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
    """Parts of the flux, (4,)."""
    covariance: FloatArray
    """Covariances in the order y, x, (4, 2, 2), px^2."""
    center: FloatArray
    """(y, x) of the centre from the middle pixel of the image, px."""
    flux_error: float
    """Relative error of the flux of a bright star that is fitted with the
    mixture in place of the PSF."""


def fit_psf(image: npt.ArrayLike) -> PsfMixture:
    """Fit four Gaussians to the image of a PSF.

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
    # Wings count for more than their flux, as they decide on the flux of large sources.
    scale = (np.maximum(data, 0.0) / data.max() + 1e-3) ** -0.25 / data.max()
    sigma = np.sqrt(1.0 / (2.0 * np.pi * data.max())) * np.array([0.8, 1.3, 2.4, 5.0])
    start = np.zeros((_N_PSF_GAUSSIANS, 4))
    start[:, 0], start[:, 1] = np.log([0.55, 0.33, 0.09, 0.03]), np.log(sigma)
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
        rows *= scale[:, None]
        jacobian[-1, 2::4] = _SUM_WEIGHT * np.exp(p[2::4])
        return jacobian

    found = least_squares(misfit, np.append([0.0, 0.0], start), jac=slope, method="lm", max_nfev=60).x
    model = _psf_gaussians(found, y, x)[0].sum(axis=1)
    parts = found[2:].reshape(-1, 4)
    lower = np.zeros((_N_PSF_GAUSSIANS, 2, 2))
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
