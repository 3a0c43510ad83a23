# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Statistics, bounded fields, kernels and random numbers."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._chebyshev import (  # noqa: E402
    BoundedField,
    ChebyshevBoundedField,
)
from ._kernel import (  # noqa: E402
    FixedKernel,
    Kernel,
)
from ._random import Random, randomGaussianImage  # noqa: E402
from ._statistics import (  # noqa: E402
    ERRORS,
    IQRANGE,
    MAX,
    MEAN,
    MEANCLIP,
    MEANSQUARE,
    MEDIAN,
    MIN,
    NCLIPPED,
    NMASKED,
    NOTHING,
    NPOINT,
    ORMASK,
    STDEV,
    STDEVCLIP,
    SUM,
    VARIANCE,
    VARIANCECLIP,
    Property,
    Statistics,
    StatisticsControl,
    makeStatistics,
    stringToStatisticsProperty,
)

__all__ = [
    "ERRORS",
    "IQRANGE",
    "MAX",
    "MEAN",
    "MEANCLIP",
    "MEANSQUARE",
    "MEDIAN",
    "MIN",
    "NCLIPPED",
    "NMASKED",
    "NOTHING",
    "NPOINT",
    "ORMASK",
    "STDEV",
    "STDEVCLIP",
    "SUM",
    "VARIANCE",
    "VARIANCECLIP",
    "BoundedField",
    "ChebyshevBoundedField",
    "FixedKernel",
    "Kernel",
    "Property",
    "Random",
    "Statistics",
    "StatisticsControl",
    "makeStatistics",
    "randomGaussianImage",
    "stringToStatisticsProperty",
]
