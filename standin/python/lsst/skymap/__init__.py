# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.skymap``: what packs a patch's data ID into an integer, and indices of cells."""

from typing import NamedTuple

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

__all__ = ["Index2D"]


class Index2D(NamedTuple):
    """Place in a grid of patches or cells."""

    x: int
    y: int
