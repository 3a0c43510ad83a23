# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes, importers and everything that puts input into a Butler repo."""
