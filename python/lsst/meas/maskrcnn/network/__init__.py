# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mask R-CNN, its model file, inference and training; torch, no LSST package."""
