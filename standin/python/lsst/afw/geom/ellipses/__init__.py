# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ellipses as second moments or as axes."""

from ._ellipses import Axes, BaseCore, Ellipse, Quadrupole

__all__ = ["Axes", "BaseCore", "Ellipse", "Quadrupole"]
