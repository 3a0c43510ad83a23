# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training loop: from scenes on disk to a model file."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from .build import build_network
from .dataset import CropSource
from .inference import autocast
from .model_file import MaskRcnnModel, ModelMetadata, write_atomically, write_model
from .psf import widen_input

__all__ = ["TrainSettings", "TrainingDiverged", "train"]

_LOG = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainSettings:
    """Stochastic gradient descent with a linear warm-up and a cosine decay to
    zero.
    """

    steps: int = 10_000
    """Number of steps."""

    minutes: float | None = None
    """Wall time after which to end at the latest; the decay of the learning
    rate follows whichever of the two limits is nearer."""

    batch_size: int = 4
    """Crops per step."""

    learning_rate: float = 0.02
    """Largest learning rate."""

    warmup_steps: int = 300
    """Steps over which it rises from zero."""

    momentum: float = 0.9
    """Momentum."""

    weight_decay: float = 1e-4
    """Weight decay."""

    gradient_clip: float = 5.0
    """Largest norm of the gradient."""

    average_decay: float = 0.998
    """Decay per step of the running average of the weights that is saved."""

    freeze_norm_after: float = 0.6
    """Part of the schedule after which the statistics of the batch
    normalisation stay as they are. Before, every batch is normalised by its own
    statistics, which a network must not come to rely on: those of a noise-free
    and of a noisy image differ."""

    precision: str = "auto"
    """``float32``, ``bfloat16`` or ``auto`` (what the device does fast)."""

    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""

    seed: int = 1
    """Seed of the initial weights and of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, given {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, given {getattr(self, name)}")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay must be at least 0 and below 1, given {self.average_decay}")


@dataclass
class _State:
    """Where a run stands."""

    step: int = 0
    elapsed: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    source: CropSource,
    metadata: ModelMetadata,
    settings: TrainSettings,
    output: str | os.PathLike[str],
    *,
    initial: MaskRcnnModel | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> MaskRcnnModel:
    """Train a network, or go on with an interrupted training.

    Parameters
    ----------
    source : `CropSource`
        Where batches come from.
    metadata : `ModelMetadata`
        Header of the model to make; what was done is added to its
        ``training``.
    settings : `TrainSettings`
        The schedule.
    output : `str` or `os.PathLike`
        Model file to write. ``<output>.checkpoint`` beside it holds the state
        of an unfinished run and is removed at the end.
    initial : `MaskRcnnModel`, optional
        Model to start from; without it weights are random.
    device : `torch.device` or `str`
        Where to compute.
    progress : callable, optional
        Called every 20 steps with the step, the number of steps and the means of
        the losses since the last call.

    Returns
    -------
    model : `MaskRcnnModel`
        The running average of the weights.

    Raises
    ------
    TrainingDiverged
        Raised if the loss is not finite; the last checkpoint stays.
    FileNotFoundError
        Raised if there is no folder for the output.
    ValueError
        Raised if the checkpoint is of another run: other settings, data or
        architecture.
    """
    output = Path(output)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {output.absolute().parent} for the model; make it first."
        )
    checkpoint = output.with_name(output.name + ".checkpoint")
    # torch's initialisers know no generator but the global one: lend it, and put it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(settings.seed)
        network = build_network(metadata.architecture)
    if initial is not None:
        network.load_state_dict(widen_input(initial.state, metadata.architecture.input_planes))
    network.to(device).train()
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(
        parameters.values(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    run = _describe_run(source, metadata, settings)
    state = _State()
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint, network, average, optimizer, parameters, run)
        _LOG.info("Going on at step %d of %d from %s", state.step, settings.steps, checkpoint)

    started = time.monotonic() - state.elapsed
    saved = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    for images, targets in _prefetch(source, settings.batch_size, state.step, settings.steps):
        fraction = state.step / settings.steps
        if settings.minutes is not None:
            fraction = max(fraction, state.elapsed / (60.0 * settings.minutes))
        if fraction >= 1.0:
            break
        if fraction >= settings.freeze_norm_after:
            _freeze_norm(network)
        rate = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * fraction))
        rate *= min(1.0, (state.step + 1) / max(settings.warmup_steps, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = [image.to(device, non_blocking=True) for image in images]
        targets = [{k: v.to(device, non_blocking=True) for k, v in target.items()} for target in targets]
        with autocast(device, settings.precision):
            losses = network(images, targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        value = float(total.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"The loss is {value} at step {state.step} "
                f"({', '.join(f'{name} {float(loss.detach())}' for name, loss in losses.items())}). "
                f"Lower the learning rate ({settings.learning_rate}); the last good state is in {checkpoint}."
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimizer.step()
        state.step += 1
        _update_average(average, network, min(settings.average_decay, state.step / (state.step + 10.0)))

        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss.detach())
        count += 1
        state.elapsed = time.monotonic() - started
        if count == 20:
            row = {name: amount / count for name, amount in sums.items()}
            row.update(step=float(state.step), learning_rate=rate, elapsed=state.elapsed)
            state.history.append(row)
            if progress is not None:
                progress(state.step, settings.steps, row)
            sums, count = {}, 0
        if time.monotonic() - saved > 60.0 * settings.checkpoint_minutes:
            _write_checkpoint(checkpoint, network, average, optimizer, parameters, run, state)
            saved = time.monotonic()

    made = metadata.model_copy(
        update={
            "training": {
                **metadata.training,
                "schedule": asdict(settings),
                "crops": asdict(source.settings),
                "scenes": len(source.paths),
                "steps": state.step,
                "wall_time_s": round(state.elapsed, 1),
                "software": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "torchvision": torchvision.__version__,
                    "numpy": np.__version__,
                },
            }
        }
    )
    network.load_state_dict(average)
    model = MaskRcnnModel.from_network(network, made)
    write_model(model, output, half=True)
    write_atomically(
        output.with_name(output.name + ".history.json"), json.dumps(state.history, indent=1).encode()
    )
    checkpoint.unlink(missing_ok=True)
    return model


def _describe_run(source: CropSource, metadata: ModelMetadata, settings: TrainSettings) -> dict[str, Any]:
    """Say what decides a run, so that no other one goes on from its state."""
    return {
        **asdict(settings),
        "crops": asdict(source.settings),
        "data_seed": source.seed,
        "scenes": [path.name for path in source.paths],
        "architecture": metadata.architecture.model_dump(mode="json"),
        "normalization": metadata.normalization.model_dump(mode="json"),
    }


def _freeze_norm(network: MaskRCNN) -> None:
    """Let the batch normalisation use its running statistics from now on."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def _update_average(average: dict[str, Tensor], network: MaskRCNN, decay: float) -> None:
    """Move the running average of the weights towards the network's."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1.0 - decay)
        else:
            average[name].copy_(value)


def _prefetch(
    source: CropSource, size: int, first: int, last: int
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Make batches in a thread, a few ahead of their use."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=4)
    stop = threading.Event()

    def work() -> None:
        try:
            for number in range(first, last):
                item: Any = source.batch(number, size)
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # handed over to the consumer, who raises it
            ready.put(error)

    thread = threading.Thread(target=work, name="maskrcnn-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def _write_checkpoint(
    path: Path,
    network: MaskRCNN,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    run: Mapping[str, Any],
    state: _State,
) -> None:
    """Write the whole state of a run as one safetensors file."""
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
    tensors.update({f"average/{k}": v for k, v in average.items()})
    for name, parameter in parameters.items():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum
    header = {"run": json.dumps(run), "state": json.dumps(asdict(state))}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata=header))


def _read_checkpoint(
    path: Path,
    network: MaskRCNN,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    run: Mapping[str, Any],
) -> _State:
    """Read what `_write_checkpoint` wrote into the objects given."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    written = json.loads(header["run"])
    wanted = json.loads(json.dumps(run))
    differing = {
        key: (written.get(key), wanted.get(key))
        for key in sorted(written.keys() | wanted.keys())
        if written.get(key) != wanted.get(key)
    }
    if differing:
        raise ValueError(
            f"{path} is of another run (there, here): {differing}. "
            "Go on with the same settings and data, or remove the checkpoint to start anew."
        )
    network.load_state_dict(
        {k.removeprefix("network/"): v for k, v in tensors.items() if k[:8] == "network/"}
    )
    for name, value in average.items():
        value.copy_(tensors[f"average/{name}"])
    for name, parameter in parameters.items():
        if f"momentum/{name}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum/{name}"].to(parameter.device)
    return _State(**json.loads(header["state"]))
