# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""FITS errors, compression options, headers and files in memory."""

from __future__ import annotations

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._compression import (  # noqa: E402
    CompressionAlgorithm,
    CompressionOptions,
    DitherAlgorithm,
    QuantizationOptions,
    ScalingAlgorithm,
)
from ._fits import (  # noqa: E402
    DEFAULT_HDU,
    FitsError,
    FitsTypeError,
    MemFileManager,
    readMetadata,
    reduceToFits,
    unreduceFromFits,
)

__all__ = [
    "DEFAULT_HDU",
    "CompressionAlgorithm",
    "CompressionOptions",
    "DitherAlgorithm",
    "FitsError",
    "FitsTypeError",
    "MemFileManager",
    "QuantizationOptions",
    "ScalingAlgorithm",
    "readMetadata",
    "reduceToFits",
    "unreduceFromFits",
]
