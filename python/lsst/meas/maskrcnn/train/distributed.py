# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices, precision and processes of a training, by Lightning Fabric."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from ..network.inference import autocast, select_device

__all__ = ["make_fabric", "share_norm"]


def make_fabric(
    device: str = "auto", precision: str = "auto", devices: int = 1, num_nodes: int = 1
) -> Fabric:
    """Set up where and how to compute.

    Parameters
    ----------
    device : `str`
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision : `str`
        ``float32``, ``bfloat16`` or ``auto`` (what the device does fast).
    devices : `int`
        Processes per node, with a device each. Under ``torchrun`` its own
        numbers hold instead.
    num_nodes : `int`
        Nodes.

    Returns
    -------
    fabric : `lightning_fabric.Fabric`
        Not launched yet. Several processes talk by NCCL on GPUs and by gloo
        on CPUs.

    Raises
    ------
    ValueError
        Raised if a device is not there, or a name or number is not possible.
    """
    for name, value in (("devices", devices), ("num_nodes", num_nodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, given {value}")
    chosen = select_device(device)
    under_torchrun = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    launched = under_torchrun or SLURMEnvironment.detect()
    if under_torchrun:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    several = devices * num_nodes > 1
    if several and chosen.index is not None:
        raise ValueError(f"device is '{device}', which is one; give 'cuda' for {devices} of them")
    if chosen.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"{devices} devices were asked for, but torch sees {torch.cuda.device_count()} GPU; give fewer"
        )
    half = autocast(chosen, precision)._enabled  # type: ignore[attr-defined]
    indices: Any = devices
    if chosen.type == "cuda" and not several:
        indices = [chosen.index or 0]
    strategy: Any = "auto"
    if several:
        # "popen" would run this program's command again, unless a launcher has started the processes.
        strategy = DDPStrategy(
            process_group_backend="nccl" if chosen.type == "cuda" else "gloo",
            start_method="popen" if launched else "spawn",
        )
    return Fabric(
        accelerator=chosen.type,
        devices=indices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision="bf16-mixed" if half else "32-true",
    )


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous().clone()
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient


class _SharedNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes.

    torch's ``SyncBatchNorm`` does this, but on GPUs only.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        x = input.float()
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _SumOverProcesses.apply(torch.cat([x.sum(dim=(0, 2, 3)), count]))
        n = total[-1].detach()
        mean = total[:-1] / n
        centred = x - mean[:, None, None]
        var = _SumOverProcesses.apply(centred.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = torch.rsqrt(var + self.eps)
        result = centred * scale[:, None, None]
        if self.affine:
            result = result * self.weight[:, None, None] + self.bias[:, None, None]
        return result.to(input.dtype)


def share_norm(network: nn.Module) -> None:
    """Let all batch normalisations use the statistics of all processes.

    Parameters
    ----------
    network : `torch.nn.Module`
        The network, changed in place; the names of its state stay.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                shared = _SharedNorm(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                shared.__dict__.update(child.__dict__)
                setattr(parent, name, shared)
