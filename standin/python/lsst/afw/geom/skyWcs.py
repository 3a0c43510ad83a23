# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""`SkyWcs` at the path where a Butler's configuration looks for it."""

from __future__ import annotations

from ._sky_wcs import SkyWcs

__all__ = ["SkyWcs"]
