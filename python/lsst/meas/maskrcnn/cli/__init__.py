# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``maskrcnn``, which the scripts in bin/ call as well."""
