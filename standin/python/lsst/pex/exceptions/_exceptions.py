# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import builtins

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


class Exception(builtins.Exception):
    """Base of all exceptions that the C++ layers of the pipelines raise.

    Parameters
    ----------
    message : `str`
        What went wrong.
    *args
        Further arguments, kept in ``args``.
    """

    _NAMESPACE = "lsst::pex::exceptions"

    def __init__(self, message: str = "", *args: object) -> None:
        super().__init__(message, *args)
        self._message = str(message)

    def what(self) -> str:
        """Return the bare message."""
        return self._message

    def __str__(self) -> str:
        return f"{self._NAMESPACE}::{type(self).__name__}: '{self._message}'"

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self._message}')"


class LogicError(Exception):
    """An error in the logic of the caller."""


class NotFoundError(Exception, builtins.LookupError):
    """The thing asked for does not exist."""


class RuntimeError(Exception, builtins.RuntimeError):
    """An error that only shows when the program runs."""


class IoError(RuntimeError, builtins.OSError):
    """Reading or writing failed."""


class OverflowError(RuntimeError, builtins.OverflowError):
    """A number is too large for its type."""


class UnderflowError(RuntimeError, builtins.ArithmeticError):
    """A number is too small for its type."""


class RangeError(RuntimeError):
    """A result is outside its range."""


class DomainError(LogicError):
    """An argument is outside the domain of a function."""


class InvalidParameterError(LogicError):
    """An argument is not allowed."""


class LengthError(LogicError):
    """A size is wrong."""


class OutOfRangeError(LogicError):
    """An index or position is outside its range."""


class TypeError(LogicError, builtins.TypeError):
    """An object has the wrong type."""
