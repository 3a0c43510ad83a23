# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Four stages from random weights, for a small set of images: the shape of the
# published schedule, with rates for a network that was not trained before.
# Use as
#   pipetask run ... -C maskRcnnTrain:$MEAS_MASKRCNN_DIR/config/train_four_stages.py

from lsst.meas.maskrcnn.tasks.train_config import StageConfig
from lsst.meas.maskrcnn.train.augment import AugmentSettings

config.stage_order = []
for name, steps, rate in (
    ("first", 2400, 2e-2),
    ("second", 800, 5e-3),
    ("third", 500, 1e-3),
    ("fourth", 300, 2e-4),
):
    config.stages[name] = StageConfig()
    stage = config.stages[name]
    stage.steps = steps
    stage.learning_rate = rate
    stage.batch_size = 4
    stage.warmup_steps = 300 if name == "first" else 0
    config.stage_order.append(name)

# All that makes few images look like more of them, but no noise where there is none.
config.augment.set_from(AugmentSettings(flux_probability=1.0, flux_range=(0.5, 2.0), blur_probability=0.25))
