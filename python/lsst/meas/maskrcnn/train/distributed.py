# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Device, precision and processes of a training, by Lightning Fabric."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from ..network.inference import autocast, select_device

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(days=2)
"""Longest time that processes wait for each other: one may make the scenes of all."""


def make_fabric(device: str, precision: str = "auto") -> Fabric:
    """Set up where and how to compute; it is not launched yet.

    The device is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, the precision
    ``float32``, ``bfloat16`` or ``auto`` (what the device does fast). Under
    ``torchrun`` the fabric has the processes that were started, with a device each,
    which communicate by NCCL on GPUs and by gloo on CPUs.
    """
    chosen = select_device(device)
    several = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    if several:
        per_node, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if chosen.index is not None:
            raise ValueError(f"device is '{device}', which is one; give 'cuda' for {total} processes")
        if chosen.type == "cuda" and per_node > torch.cuda.device_count():
            raise ValueError(
                f"torchrun started {per_node} processes here, but torch finds {torch.cuda.device_count()} "
                "GPU; start fewer, or choose device 'cpu'"
            )
    mixed = autocast(chosen, precision)._enabled  # type: ignore[attr-defined]
    plan: Any = "bf16-mixed" if mixed else "32-true"
    if not several:
        devices = [chosen.index or 0] if chosen.type == "cuda" else 1
        return Fabric(accelerator=chosen.type, devices=devices, precision=plan)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    nodes = total // per_node
    strategy = DDPStrategy(process_group_backend=backend, timeout=_TIMEOUT)
    return Fabric(
        accelerator=chosen.type, strategy=strategy, devices=per_node, num_nodes=nodes, precision=plan
    )


def on_first_process(function: Callable[[], T], device: str) -> T:
    """Call a function in the first process alone, and return its result in every process."""
    fabric = make_fabric(device)
    fabric.launch()
    result = function() if fabric.global_rank == 0 else None
    return cast(T, fabric.broadcast(result))
