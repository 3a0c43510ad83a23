# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deblenders behind one interface.

Whatever gives a `DeblendedField` can be compared with whatever else does:

- `read_source_catalog`: any catalogue with parents, such as this package's;
- `read_scarlet_field`: what scarlet left in a Butler;
- `read_truth_field`: the truth;
- `BASELINES`: deblenders that run on the spot, by name;
- `deblend_with_scarlet2`: scarlet2 on the parents of one of these.
"""

from __future__ import annotations

__all__ = [
    "BASELINES",
    "DeblendedField",
    "FieldImages",
    "PixelModels",
    "deblend_with_photutils",
    "deblend_with_scarlet2",
    "deblend_with_sep",
    "field_images",
    "read_scarlet_field",
    "read_source_catalog",
    "read_truth_field",
]

from .baselines import BASELINES, deblend_with_photutils, deblend_with_sep
from .deblended_field import DeblendedField, FieldImages, PixelModels
from .deblender_readers import field_images, read_scarlet_field, read_source_catalog, read_truth_field
from .scarlet2 import deblend_with_scarlet2
