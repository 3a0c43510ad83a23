# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection, classification and deblending of sources with Mask R-CNN.

Everything is imported on first use, so that what needs no LSST package, such
as `find_sources`, can be imported without one. The names in ``__all__`` of the
modules are the public interface; modules without it are internal.
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
    "MultibandImage",
    "SimulateScenesConfig",
    "SimulateScenesConnections",
    "SimulateScenesTask",
    "SourceList",
    "ZScoreNormalizeConfig",
    "ZScoreNormalizeTask",
    "find_sources",
    "load_model",
    "normalizeRegistry",
    "read_images",
]

_HOMES = {
    "CompareDeblendersConfig": "tasks.compare",
    "CompareDeblendersConnections": "tasks.compare",
    "CompareDeblendersTask": "tasks.compare",
    "LuptonNormalizeConfig": "tasks.normalize",
    "LuptonNormalizeTask": "tasks.normalize",
    "MaskRcnnDeblendConfig": "tasks.deblend",
    "MaskRcnnDeblendConnections": "tasks.deblend",
    "MaskRcnnDeblendTask": "tasks.deblend",
    "MaskRcnnEvaluateConfig": "tasks.evaluate",
    "MaskRcnnEvaluateConnections": "tasks.evaluate",
    "MaskRcnnEvaluateTask": "tasks.evaluate",
    "MaskRcnnTrainConfig": "tasks.train",
    "MaskRcnnTrainConnections": "tasks.train",
    "MaskRcnnTrainTask": "tasks.train",
    "SimulateScenesConfig": "tasks.simulate",
    "SimulateScenesConnections": "tasks.simulate",
    "SimulateScenesTask": "tasks.simulate",
    "ZScoreNormalizeConfig": "tasks.normalize",
    "ZScoreNormalizeTask": "tasks.normalize",
    "normalizeRegistry": "tasks.normalize",
    "MultibandImage": "deblend.image",
    "SourceList": "deblend.sources",
    "find_sources": "deblend.deblend",
    "load_model": "network.model_file",
    "read_images": "ingest.read_images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
