# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where and in what weather an image was taken."""

from __future__ import annotations

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._observatory import Observatory, Weather  # noqa: E402

__all__ = ["Observatory", "Weather"]
