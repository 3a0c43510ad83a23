# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sersic profiles as sums of Gaussians."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

FloatArray = npt.NDArray[np.float64]

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
    """Give Sersic profiles as sums of circular Gaussians, by the logarithms of N indices from 0.6 to 6.

    Returns variances, in units of the squared half-light radius, parts of the flux, and the derivatives of
    the logarithm of the former and of the latter by ``log_index``, (N, 8) each.

    After Hogg & Lang (2013, PASP 125, 719), with an index that is free: the Gaussians of 12 indices, and
    cubic splines between them.
    """
    value, slope = _SERSIC(log_index), _SERSIC_SLOPE(log_index)
    return np.exp(value[:, :8]), value[:, 8:], slope[:, :8], slope[:, 8:]
