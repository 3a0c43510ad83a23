# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Constants of the units that images and catalogues are in."""

from __future__ import annotations

__all__ = ["AB_ZERO_POINT", "FWHM_PER_SIGMA"]

import math

AB_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy: 80 - 48.6, as in `lsst.afw.image.PhotoCalib`."""

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""
