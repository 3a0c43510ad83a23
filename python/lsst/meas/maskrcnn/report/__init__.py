# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drawing: overlays, plots, galleries and the report page."""
