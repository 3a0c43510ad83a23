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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from ..images.files import one_line, parse_json, write_atomically
from ..network.tensor_file import TensorFileError, pack_tensors, read_tensor_header, read_tensors

_FORMAT = "2"
_ABSENT = "nothing"


_Count = Annotated[int, Field(ge=0)]


class CheckpointError(ValueError):
    """A checkpoint is damaged or of another run; the message lists the differences."""


@dataclass
class TrainingState:
    """Where a run stands."""

    stage: _Count = 0
    """Index of the stage."""

    stage_step: _Count = 0
    """Steps of that stage that are done."""

    step: _Count = 0
    """Steps that are done in all."""

    epoch: _Count = 0
    """Epochs that are done in all."""

    crops: _Count = 0
    """Crops that were used; the number of the next one."""

    elapsed: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
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
    named = {f"{kind}/{name}": value for kind, part in tensors.items() for name, value in part.items()}
    write_atomically(path, pack_tensors(named, header))


def read_checkpoint(
    path: Path, run: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Tensor]] | None = None
) -> tuple[dict[str, dict[str, Tensor]], TrainingState]:
    """Read what `write_checkpoint` wrote, if it is of this run and this version of the code.

    ``wanted`` are tensors by kind and name that must be there in the same shapes.
    """
    advice = "Remove it to start anew."
    try:
        with path.open("rb") as stream:
            header = read_tensor_header(stream, path.stat().st_size)
    except TensorFileError as error:
        raise CheckpointError(f"{path} {error}: no checkpoint, or damaged. {advice}") from error
    if header.texts.get("checkpoint") != _FORMAT:
        raise CheckpointError(
            f"{path} was written by another version of this code (its format is "
            f"{header.texts.get('checkpoint', 'not given'):.20}, wanted {_FORMAT}). Go on with the version "
            "that wrote it, or remove it to start anew."
        )
    try:
        there = parse_json(header.texts["run"].encode())
        state = TypeAdapter(TrainingState).validate_json(header.texts["state"])
        header.check_texts()
    except (ValueError, KeyError, ValidationError) as error:
        text = error.errors()[0] if isinstance(error, ValidationError) else error
        raise CheckpointError(
            f"{path} is damaged: run or state of its header cannot be used ({one_line(text)}). {advice}"
        ) from error
    differing = differences(there, json.loads(json.dumps(run)))
    if differing:
        raise CheckpointError(
            f"{path} is of another run. Differences: {one_line('; '.join(differing), 2000)}. "
            "Go on with the same settings and data, or remove the checkpoint to start anew."
        )
    shapes = header.shapes
    for kind, part in (wanted or {}).items():
        for name, value in part.items():
            shape = shapes.get(f"{kind}/{name}")
            if shape != tuple(value.shape):
                raise CheckpointError(
                    f"{path} has {kind}/{name} in the shape {shape}, wanted {tuple(value.shape)}. {advice}"
                )
    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        for key, value in read_tensors(header, path.read_bytes(), str(path)).items():
            kind, _, name = key.partition("/")
            tensors.setdefault(kind, {})[name] = value
    except TensorFileError as error:
        raise CheckpointError(f"{path} {error}. {advice}") from error
    return tensors, state


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
