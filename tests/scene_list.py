# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training scenes in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.meas.maskrcnn.train.scene_sources import SceneSource
from lsst.meas.maskrcnn.train.training_scene import TrainingScene


class SceneList(SceneSource):
    """Scenes in memory, described by what they hold."""

    def __init__(self, scenes: Sequence[TrainingScene]):
        self.scenes = list(scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def scene(self, number: int) -> TrainingScene:
        return self.scenes[number]

    def name(self, number: int) -> str:
        return f"scene {number}"

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for scene in self.scenes:
            for value in vars(scene).values():
                for array in value if isinstance(value, list) else [value]:
                    digest.update(repr(array).encode() if array is None else np.asarray(array).tobytes())
        return {"kind": "memory", "count": len(self.scenes), "digest": digest.hexdigest()[:16]}
