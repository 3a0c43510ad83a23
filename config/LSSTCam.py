# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# LSST Camera: 0.2 arcsec per pixel, names of datasets as in the pipeline of the data releases. Use as
#   pipetask run ... -C maskRcnnDeblend:$MEAS_MASKRCNN_DIR/config/LSSTCam.py

config.connections.exposures = "deep_coadd"
config.connections.catalog = "object_maskrcnn"
config.connections.bandCatalogs = "object_maskrcnn_deblended"
config.connections.modelImages = "object_maskrcnn_model"
config.connections.objectTable = "object_maskrcnn_patch"
config.connections.blendStatistics = "object_maskrcnn_parent_patch"
config.connections.outputSchema = "object_maskrcnn_schema"
config.connections.bandSchema = "object_maskrcnn_deblended_schema"

# Satellite trails and vignetted corners survive in coadds of few visits. CR does not: it is set where one of the
# visits had a cosmic ray, whose pixels were interpolated.
config.bad_planes = ["BAD", "NO_DATA", "SAT", "STREAK", "VIGNETTED"]

# Patches are not all observed in all bands, but their tables are put together to that of a tract.
config.output_bands = ["u", "g", "r", "i", "z", "y"]
