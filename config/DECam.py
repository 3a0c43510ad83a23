# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Dark Energy Camera: 0.263 arcsec per pixel. Use as
#   pipetask run ... -C maskRcnnDeblend:$MEAS_MASKRCNN_DIR/config/DECam.py

# Sources have fewer pixels than on HSC, so that the smallest true ones are
# smaller, and tiles of the same area of sky hold more of them.
config.minArea = 3
config.inference.maxDetectionsPerTile = 500

# 0.263 is 1.6 times the 0.168 of the packaged model, which has learned this
# range of scales: no reason to warn.
config.maxScaleRatio = 2.0

# Pixels near saturation or otherwise doubtful in the community pipeline.
config.badMaskPlanes = ["BAD", "CR", "NO_DATA", "SAT", "SUSPECT"]
