# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metadata containers and dates."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._date_time import (  # noqa: E402
    DateTime,
)
from ._property_container import (  # noqa: E402
    PropertyList,
    PropertySet,
    TypeInfo,
    getPropertyListState,
    getPropertySetState,
    setPropertyListState,
    setPropertySetState,
)

__all__ = [
    "DateTime",
    "PropertyList",
    "PropertySet",
    "TypeInfo",
    "getPropertyListState",
    "getPropertySetState",
    "setPropertyListState",
    "setPropertySetState",
]
