# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exceptions of the LSST Science Pipelines, with upstream's class tree."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._exceptions import (  # noqa: E402
    DomainError,
    Exception,
    InvalidParameterError,
    IoError,
    LengthError,
    LogicError,
    NotFoundError,
    OutOfRangeError,
    OverflowError,
    RangeError,
    RuntimeError,
    TypeError,
    UnderflowError,
)

__all__ = [
    "DomainError",
    "Exception",
    "InvalidParameterError",
    "IoError",
    "LengthError",
    "LogicError",
    "NotFoundError",
    "OutOfRangeError",
    "OverflowError",
    "RangeError",
    "RuntimeError",
    "TypeError",
    "UnderflowError",
]
