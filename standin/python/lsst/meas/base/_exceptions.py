# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors that measurements raise."""

from __future__ import annotations

__all__ = ["FatalAlgorithmError", "MeasurementError", "PixelValueError"]

import lsst.pex.exceptions as pexExceptions


class FatalAlgorithmError(pexExceptions.RuntimeError):
    """A failure that ends the measurement of all sources."""


class MeasurementError(pexExceptions.RuntimeError):
    """A failure that an algorithm has a flag for.

    Parameters
    ----------
    message : `str`
        What went wrong.
    flagBit : `int`
        Number of the flag in the algorithm's list of flags.
    """

    def __init__(self, message: str, flagBit: int):
        super().__init__(message, flagBit)
        self._flag_bit = int(flagBit)

    def getFlagBit(self) -> int:
        """Return the number of the flag."""
        return self._flag_bit


class PixelValueError(pexExceptions.DomainError):
    """A pixel is not finite."""
