# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of the fluxes that aperture corrections are made for."""

from __future__ import annotations

__all__ = ("addApCorrName", "getApCorrNameSet")

_NAMES: set[str] = set()


def addApCorrName(name: str) -> None:
    """Add the prefix of a flux that aperture corrections are made for.

    Parameters
    ----------
    name : `str`
        What the names of the fields of the flux begin with.
    """
    _NAMES.add(str(name))


def getApCorrNameSet() -> set[str]:
    """Return a copy of the prefixes."""
    return _NAMES.copy()
