# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.afw.detection``: footprints, their detection, and PSFs."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._footprint import (  # noqa: E402
    Footprint,
    footprintToBBoxList,
    getFootprintIntersection,
    mergeFootprints,
    setMaskFromFootprintList,
)
from ._footprint_ctrl import FootprintControl, HeavyFootprintCtrl  # noqa: E402
from ._footprint_set import FootprintSet  # noqa: E402
from ._heavy_footprint import (  # noqa: E402
    HeavyFootprintD,
    HeavyFootprintF,
    HeavyFootprintI,
    HeavyFootprintU,
    makeHeavyFootprint,
    mergeHeavyFootprints,
)
from ._peak import PeakCatalog, PeakColumnView, PeakRecord, PeakTable  # noqa: E402
from ._psf import GaussianPsf, InvalidPsfError, Psf  # noqa: E402
from ._threshold import Threshold, createThreshold  # noqa: E402

__all__ = [
    "Footprint",
    "FootprintControl",
    "FootprintSet",
    "GaussianPsf",
    "HeavyFootprintCtrl",
    "HeavyFootprintD",
    "HeavyFootprintF",
    "HeavyFootprintI",
    "HeavyFootprintU",
    "InvalidPsfError",
    "PeakCatalog",
    "PeakColumnView",
    "PeakRecord",
    "PeakTable",
    "Psf",
    "Threshold",
    "createThreshold",
    "footprintToBBoxList",
    "getFootprintIntersection",
    "makeHeavyFootprint",
    "mergeFootprints",
    "mergeHeavyFootprints",
    "setMaskFromFootprintList",
]
