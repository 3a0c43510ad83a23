# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Training from random weights. Use as
#   pipetask run ... -C maskRcnnTrain:$MEAS_MASKRCNN_DIR/config/train_from_scratch.py

from lsst.meas.maskrcnn.tasks.train_config import scratch_stage
from lsst.meas.maskrcnn.train.augment import AugmentSettings

# The published schedule starts from weights trained on photographs, and its
# small steps would leave random ones where they are. One stage of all layers
# takes its place: 10,000 steps of four crops, with a warm-up to a learning
# rate of 0.02 that falls to zero like a cosine, and augmentations for images
# of varied depth and seeing.
config.stages["scratch"] = scratch_stage()
config.stage_order = ["scratch"]
config.augment.set_from(AugmentSettings.mixture())
