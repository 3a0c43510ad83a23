# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""`Detector`, the type of an exposure's component."""

from __future__ import annotations

__all__ = ["Detector"]

from lsst.afw.typehandling import Storable


class Detector(Storable):
    """A sensor of a camera.

    Notes
    -----
    Cannot be made here: detectors in files read as `None`. The type exists
    because a Butler looks it up to fetch the component.

    Raises
    ------
    NotImplementedError
        Raised always.
    """

    def __init__(self) -> None:
        raise NotImplementedError("Detectors need the LSST Science Pipelines.")

    def getName(self) -> str:
        """Return the name."""
        raise NotImplementedError("Detectors need the LSST Science Pipelines.")

    def getSerial(self) -> str:
        """Return the serial number."""
        raise NotImplementedError("Detectors need the LSST Science Pipelines.")
