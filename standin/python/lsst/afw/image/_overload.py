# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choice between several constructor signatures, as C++ overloads make it."""

from __future__ import annotations

__all__ = ["Signature", "choose", "is_int", "is_real"]

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def is_int(value: object) -> bool:
    """Tell whether a value is a Python or numpy integer (not a bool)."""
    return isinstance(value, numbers.Integral | np.integer) and not isinstance(value, bool | np.bool_)


def is_real(value: object) -> bool:
    """Tell whether a value is a real scalar (not a bool)."""
    return isinstance(value, numbers.Real | np.floating | np.integer) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to call a constructor.

    Parameters
    ----------
    label : `str`
        Name handed back by `choose`.
    names : `tuple` [`str`, ...]
        Argument names in positional order.
    checks : `~collections.abc.Mapping` [`str`, `~collections.abc.Callable`]
        Tests that given arguments must pass for the signature to match.
    required : `int`
        The number of leading arguments without a default.
    """

    label: str
    names: tuple[str, ...]
    checks: Mapping[str, Callable[[Any], bool]]
    required: int = 0

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Bind arguments to names, or return `None` where they do not fit."""
        if len(args) > len(self.names):
            return None
        bound = dict(zip(self.names, args, strict=False))
        for name, value in kwargs.items():
            if name in bound or name not in self.names:
                return None
            bound[name] = value
        if any(name not in bound for name in self.names[: self.required]):
            return None
        for name, value in bound.items():
            check = self.checks.get(name)
            if check is not None and not check(value):
                return None
        return bound


def choose(
    cls: type, signatures: Sequence[Signature], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Find the first signature that fits the arguments.

    Parameters
    ----------
    cls : `type`
        Class under construction, for the message.
    signatures : `~collections.abc.Sequence` [`Signature`]
        Signatures in order of preference.
    args, kwargs
        The arguments given.

    Returns
    -------
    label : `str`
        Label of the signature that fits.
    bound : `dict` [`str`, `object`]
        Arguments by name (only those that were given).

    Raises
    ------
    TypeError
        Raised if no signature fits.
    """
    for signature in signatures:
        bound = signature.bind(args, kwargs)
        if bound is not None:
            return signature.label, bound
    given = [type(a).__name__ for a in args] + [f"{k}={type(v).__name__}" for k, v in kwargs.items()]
    wanted = "; ".join(f"({', '.join(s.names)})" for s in signatures)
    raise TypeError(
        f"{cls.__name__}(): incompatible constructor arguments. Given: ({', '.join(given)}). "
        f"Supported: {wanted}. Array arguments must have exactly the pixel type of the class."
    )
