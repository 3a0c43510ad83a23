# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.skymap``: what packs a patch's data ID into an integer."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)
