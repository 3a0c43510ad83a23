# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# LSST Camera: 0.2 arcsec per pixel. Use as
#   pipetask run ... -C maskRcnnDeblend:$MEAS_MASKRCNN_DIR/config/LSSTCam.py

# Data releases of LSST name their coadds so; the output keeps its name.
config.connections.exposures = "deep_coadd"

# Satellite trails and vignetted corners survive in coadds of few visits.
config.bad_planes = ["BAD", "CR", "NO_DATA", "SAT", "STREAK", "VIGNETTED"]
