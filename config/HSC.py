# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Hyper Suprime-Cam: 0.168 arcsec per pixel, as the packaged model's training
# images, and coadds named as the pipeline has them. Use as
#   pipetask run ... -C maskRcnnDeblend:$MEAS_MASKRCNN_DIR/config/HSC.py

# Coadds of HSC mark the halos of bright stars on a plane of their own.
config.bad_planes = ["BAD", "CR", "NO_DATA", "SAT", "BRIGHT_OBJECT"]
