# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks to footprints, the output schema and the stored model: the side that faces afw and the Butler."""
