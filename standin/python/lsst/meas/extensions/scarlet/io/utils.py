# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""What upstream has in this module: how a Butler stores scarlet's models."""

from ._butler import ScarletModelDelegate, ScarletModelFormatter, read_scarlet_model, write_scarlet_model

__all__ = ["ScarletModelDelegate", "ScarletModelFormatter", "read_scarlet_model", "write_scarlet_model"]
