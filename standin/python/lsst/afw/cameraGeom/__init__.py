# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detectors, as far as the type of an exposure's component needs them."""

from __future__ import annotations

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._detector import Detector  # noqa: E402

__all__ = ["Detector"]
