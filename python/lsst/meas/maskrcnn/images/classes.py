# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The classes of sources."""

from __future__ import annotations

__all__ = ["CLASS_NAMES", "GALAXY", "IS_STAR", "STAR", "UNKNOWN"]

UNKNOWN = 0
"""Label of a source without a class; for the network, of the background."""

STAR = 1
"""Label of a star."""

GALAXY = 2
"""Label of a galaxy."""

CLASS_NAMES: tuple[str, ...] = ("star", "galaxy")
"""Names of the classes in the order of their labels 1, 2."""

IS_STAR: dict[str, bool | None] = {"all": None, "star": True, "galaxy": False}
"""Whether only stars or only galaxies are taken, by the names that figures
have."""
