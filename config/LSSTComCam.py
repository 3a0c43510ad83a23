# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# LSST Commissioning Camera (Data Preview 1): the sensors and names of LSSTCam. Use as
#   pipetask run ... -C maskRcnnDeblend:$MEAS_MASKRCNN_DIR/config/LSSTComCam.py

import os

config.load(os.path.join(os.path.dirname(__file__), "LSSTCam.py"))
