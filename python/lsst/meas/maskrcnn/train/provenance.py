# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a training was: its identity, and what the header of a model says of it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torchvision
from lightning_fabric import Fabric

from ..network.any_band import AnyBandSpec
from ..network.model_file import MaskRcnnModel, ModelMetadata
from .checkpoint import TrainingState
from .dataset import BatchSource
from .stages import TrainSettings


def describe_run(
    source: BatchSource, metadata: ModelMetadata, settings: TrainSettings, initial: MaskRcnnModel | None
) -> dict[str, Any]:
    """Describe what decides a run, so that no other one goes on from its state."""
    schedule = asdict(settings)
    for name in ("checkpoint_minutes", "validation_every", "log_every", "workers"):
        del schedule[name]
    return {
        **schedule,
        "source": source.describe(),
        "architecture": metadata.architecture.model_dump(mode="json"),
        "normalization": asdict(metadata.normalization),
        "bands": list(metadata.bands),
        "initial": None if initial is None else describe_model(initial),
    }


def describe_model(model: MaskRcnnModel) -> dict[str, str]:
    """Give the name of a model and the digest of its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return {"name": model.metadata.name, "sha256": digest.hexdigest()}


def describe_result(
    metadata: ModelMetadata,
    settings: TrainSettings,
    source: BatchSource,
    state: TrainingState,
    fabric: Fabric,
    initial: dict[str, str] | None,
) -> ModelMetadata:
    """Make the header of a trained model."""
    done = {
        "schedule": json.loads(json.dumps(asdict(settings))),
        "source": source.describe(),
        "initial": initial,
        "steps": state.step,
        "epochs": state.epoch,
        "crops": state.crops,
        "wall_time_s": round(state.elapsed, 1),
        "last_epoch": state.epochs[-1] if state.epochs else {},
        "machine": {
            "device": _device_name(fabric.device),
            "processes": fabric.world_size,
            "threads": torch.get_num_threads(),
        },
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
    }
    made = with_threshold(metadata, done["last_epoch"])
    return made.model_copy(update={"training": {**metadata.training, **done}})


def with_threshold(metadata: ModelMetadata, figures: Mapping[str, Any]) -> ModelMetadata:
    """Take the threshold of the validation for that of a network for any bands."""
    score = float(figures.get("score_97", math.nan))
    if not (isinstance(metadata.architecture, AnyBandSpec) and math.isfinite(score)):
        return metadata
    changed = {"detection_score": round(min(score, 0.99), 4)}
    return metadata.model_copy(update={"architecture": metadata.architecture.model_copy(update=changed)})


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
