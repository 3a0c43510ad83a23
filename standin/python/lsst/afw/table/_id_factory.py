# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makers of record ids."""

from __future__ import annotations

import numpy as np

import lsst.pex.exceptions as pexExceptions

__all__ = ["IdFactory"]

_MASK = 2**64 - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - 2**64 if value >> 63 else value


class IdFactory:
    """Gives a new id on every call."""

    def __call__(self) -> int:
        raise NotImplementedError

    def notify(self, id: int) -> None:
        """Tell the factory that an id was used, so that it goes on after."""
        raise NotImplementedError

    def clone(self) -> IdFactory:
        """Return a factory in the same state."""
        raise NotImplementedError

    def _many(self, n: int) -> np.ndarray:
        return np.fromiter((self() for _ in range(n)), dtype=np.int64, count=n)

    @staticmethod
    def makeSimple() -> IdFactory:
        """Return a factory of 1, 2, 3, ..."""
        return _SimpleIdFactory()

    @staticmethod
    def makeSource(expId: int, reserved: int) -> IdFactory:
        """Return a factory of ids with an exposure id in the upper bits.

        Parameters
        ----------
        expId : `int`
            Id of the exposure.
        reserved : `int`
            Number of lower bits that count sources.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if the exposure id does not fit the other bits.
        """
        return _SourceIdFactory(expId, reserved)

    @staticmethod
    def computeReservedFromMaxBits(maxBits: int) -> int:
        """Return the bits left for sources by exposure ids of ``maxBits``."""
        # One bit is the sign.
        return 63 - maxBits


class _SimpleIdFactory(IdFactory):
    def __init__(self, current: int = 0) -> None:
        self._current = current

    def __call__(self) -> int:
        self._current += 1
        return self._current

    def notify(self, id: int) -> None:
        self._current = int(id)

    def clone(self) -> IdFactory:
        return _SimpleIdFactory(self._current)

    def _many(self, n: int) -> np.ndarray:
        first = self._current + 1
        self._current += n
        return np.arange(first, first + n, dtype=np.int64)


class _SourceIdFactory(IdFactory):
    def __init__(self, expId: int, reserved: int, lower: int = 0) -> None:
        expId, reserved = int(expId), int(reserved)
        self._exp_id = expId
        self._reserved = reserved
        self._upper = _signed(expId << reserved)
        self._upper_mask = _signed((2**63 - 1) << reserved)
        self._lower = lower
        if self._upper >> reserved != expId:
            raise pexExceptions.InvalidParameterError(f"Exposure ID '{expId}' is too large.")

    def __call__(self) -> int:
        self._lower += 1
        if self._lower & self._upper_mask:
            self._lower -= 1
            raise pexExceptions.LengthError(
                f"Next ID '{self._lower + 1}' is too large for the number of reserved bits"
            )
        return self._upper | self._lower

    def notify(self, id: int) -> None:
        lower = int(id) & ~self._upper
        if lower & self._upper_mask:
            raise pexExceptions.InvalidParameterError(
                f"Explicit ID '{lower}' does not have the correct form."
            )
        self._lower = lower

    def clone(self) -> IdFactory:
        return _SourceIdFactory(self._exp_id, self._reserved, self._lower)
