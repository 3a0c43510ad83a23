# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that went into a coadd."""

from __future__ import annotations

__all__ = ["CoaddInputs"]

from typing import Any

from lsst.afw.typehandling import Storable


class CoaddInputs(Storable):
    """The images that went into a coadd.

    Parameters
    ----------
    visits, ccds : `lsst.afw.table.BaseCatalog`, optional
        A record for each visit and for each detector's image.

    Notes
    -----
    Not read from files nor written to them: there it is `None`.
    """

    def __init__(self, visits: Any = None, ccds: Any = None):
        self.visits = visits
        self.ccds = ccds
