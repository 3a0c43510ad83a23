# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection, classification and deblending of sources with Mask R-CNN.

The tasks are imported on first use, so that the rooms that need no LSST
package (`lsst.meas.maskrcnn.network`, `lsst.meas.maskrcnn.imaging`) can be
imported without one.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "CompareDeblendersConfig",
    "CompareDeblendersConnections",
    "CompareDeblendersTask",
    "LuptonNormalizeConfig",
    "LuptonNormalizeTask",
    "MaskRcnnDeblendConfig",
    "MaskRcnnDeblendConnections",
    "MaskRcnnDeblendTask",
    "MaskRcnnEvaluateConfig",
    "MaskRcnnEvaluateConnections",
    "MaskRcnnEvaluateTask",
    "MaskRcnnTrainConfig",
    "MaskRcnnTrainConnections",
    "MaskRcnnTrainTask",
    "SimulateScenesConfig",
    "SimulateScenesConnections",
    "SimulateScenesTask",
    "ZScoreNormalizeConfig",
    "ZScoreNormalizeTask",
    "normalizeRegistry",
]

_HOMES = {
    "CompareDeblendersConfig": "compare_task",
    "CompareDeblendersConnections": "compare_task",
    "CompareDeblendersTask": "compare_task",
    "LuptonNormalizeConfig": "normalize_task",
    "LuptonNormalizeTask": "normalize_task",
    "MaskRcnnDeblendConfig": "deblend_task",
    "MaskRcnnDeblendConnections": "deblend_task",
    "MaskRcnnDeblendTask": "deblend_task",
    "MaskRcnnEvaluateConfig": "evaluate_task",
    "MaskRcnnEvaluateConnections": "evaluate_task",
    "MaskRcnnEvaluateTask": "evaluate_task",
    "MaskRcnnTrainConfig": "train_task",
    "MaskRcnnTrainConnections": "train_task",
    "MaskRcnnTrainTask": "train_task",
    "SimulateScenesConfig": "simulate_task",
    "SimulateScenesConnections": "simulate_task",
    "SimulateScenesTask": "simulate_task",
    "ZScoreNormalizeConfig": "normalize_task",
    "ZScoreNormalizeTask": "normalize_task",
    "normalizeRegistry": "normalize_task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
