# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Adapting the model that comes with this package to a survey of which there
# are few labelled images, ten or so. Use as
#   pipetask run ... -C maskRcnnTrain:$MEAS_MASKRCNN_DIR/config/fine_tune.py

from lsst.meas.maskrcnn.tasks.train_config import StageConfig

# It takes the bands that all patches have; config.bands chooses some of them.
config.initial_model_uri = "resource://lsst.meas.maskrcnn/models/lite.safetensors"

# The heads first, so that their large gradients do not spoil the features;
# then everything, gently. Few images are soon overfitted: the rates are
# low, and the whole is short.
config.stages["adaptHeads"] = StageConfig()
stage = config.stages["adaptHeads"]
stage.trainable = "heads"
stage.epochs = 10
stage.batch_size = 4
stage.learning_rate = 2e-4
stage.warmup_steps = 50

config.stages["adaptAll"] = StageConfig()
stage = config.stages["adaptAll"]
stage.trainable = "all"
stage.epochs = 20
stage.batch_size = 4
stage.learning_rate = 1e-4
stage.warmup_steps = 50
stage.decay = "cosine"

config.stage_order = ["adaptHeads", "adaptAll"]

# A third of the patches for validation, to find out whether it helps.
config.validation.fraction = 0.3
