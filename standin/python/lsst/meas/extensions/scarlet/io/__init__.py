# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scarlet's models as stored by upstream: data classes, and the formatter and delegate of the Butler.

The data classes of blends, sources and components are ``lsst.scarlet.lite.io``
upstream. They stand here, so that nothing hides an installed scarlet_lite.
"""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._data import IsolatedSourceData, LsstScarletModelData  # noqa: E402
from .utils import ScarletModelDelegate, ScarletModelFormatter  # noqa: E402

__all__ = [
    "IsolatedSourceData",
    "LsstScarletModelData",
    "ScarletModelDelegate",
    "ScarletModelFormatter",
]
