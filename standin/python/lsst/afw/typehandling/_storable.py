# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""`Storable`, the base of exposure components."""

from __future__ import annotations

__all__ = ["Storable"]

from lsst.afw.table.io import Persistable


class Storable(Persistable):
    """An object that an `lsst.afw.image.ExposureInfo` can hold."""
