# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Normalisation and tiling of multi-band images; numpy only."""
