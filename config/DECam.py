# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Dark Energy Camera: 0.263 arcsec per pixel. Use as
#   pipetask run ... -C maskRcnnDeblend:$MEAS_MASKRCNN_DIR/config/DECam.py

# Pixels near saturation or otherwise doubtful in the community pipeline.
config.bad_planes = ["BAD", "CR", "NO_DATA", "SAT", "SUSPECT"]
