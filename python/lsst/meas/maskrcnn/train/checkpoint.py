# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checkpoints of a training: the whole state of a run in one safetensors
file.

The header holds, as JSON, what the run is (``run``) and where it stands
(``state``). There are no random states to keep: everything random in a step is
drawn from generators that are seeded by the seed of the run and the number of
the crop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

_FORMAT = "1"
_ABSENT = "nothing"


class CheckpointMismatch(ValueError):
    """A checkpoint is of another run; the message lists the differences."""


@dataclass
class TrainingState:
    """Where a run stands."""

    stage: int = 0
    """Index of the stage."""

    stage_step: int = 0
    """Steps of that stage that are done."""

    step: int = 0
    """Steps that are done in all."""

    epoch: int = 0
    """Epochs that are done in all."""

    crops: int = 0
    """Crops that were used; the number of the next one."""

    elapsed: float = 0.0
    """Wall time used (s), over all interruptions."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of steps."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Rows of epochs."""

    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    """Sums since the last row of each kind."""


def write_checkpoint(
    path: Path, tensors: Mapping[str, Mapping[str, Tensor]], run: Mapping[str, Any], state: TrainingState
) -> None:
    """Write tensors by kind and name, what the run is, and where it stands; whole or not at all."""
    header = {"checkpoint": _FORMAT, "run": json.dumps(run), "state": json.dumps(asdict(state))}
    # A process that was killed while it wrote leaves this name, and the next one writes over it.
    partial = _partial(path)
    try:
        # Not save_file: its own temporary file has a random name, and would stay behind after a kill.
        named = {f"{kind}/{name}": value for kind, part in tensors.items() for name, value in part.items()}
        data = safetensors.torch.save(
            {name: value.detach().cpu().contiguous() for name, value in named.items()}, header
        )
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, run: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], TrainingState]:
    """Read what `write_checkpoint` wrote, if it is of this run and this version of the code."""
    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            for key in file.keys():
                kind, _, name = key.partition("/")
                tensors.setdefault(kind, {})[name] = file.get_tensor(key)
    except safetensors.SafetensorError as error:
        raise CheckpointMismatch(
            f"{path} is no checkpoint, or damaged ({error}). Remove it to start anew."
        ) from error
    if header.get("checkpoint") != _FORMAT:
        raise CheckpointMismatch(
            f"{path} was written by another version of this code (its format is "
            f"{header.get('checkpoint', 'not given')}, wanted {_FORMAT}). Go on with the version that wrote "
            "it, or remove it to start anew."
        )
    differing = differences(json.loads(header["run"]), json.loads(json.dumps(run)))
    if differing:
        raise CheckpointMismatch(
            f"{path} is of another run. Differences: {'; '.join(differing)}. "
            "Go on with the same settings and data, or remove the checkpoint to start anew."
        )
    return tensors, TrainingState(**json.loads(header["state"]))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what a killed process may have left of one."""
    path.unlink(missing_ok=True)
    _partial(path).unlink(missing_ok=True)


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """List in what two descriptions differ, as "stages.0.steps is 2 there, 1 here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        pairs = [(str(key), there.get(key, _ABSENT), here.get(key, _ABSENT)) for key in keys]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(there, here, strict=True))]
    elif there == here:
        return []
    else:
        return [f"{name or 'the whole'} is {_short(there)} there, {_short(here)} here"]
    return [
        line
        for key, first, second in pairs
        for line in differences(first, second, f"{name}.{key}" if name else key)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
