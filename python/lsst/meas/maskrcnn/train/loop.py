# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training loop: from a source of crops to a model file.

A step is a function of the weights, the seed and the number of the step alone:
crops come from the source by number, and what is sampled in them follows from
the seed and that number (`~.losses.LossNetwork`). So a run that was killed goes
on from its checkpoint as if nothing had been, on a CPU bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
import torch.utils.data
import torchvision
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from ..images.files import write_atomically
from ..network.build import build_network
from ..network.model_file import (
    MaskRcnnModel,
    ModelMetadata,
    model_from_bytes,
    model_to_bytes,
    read_model,
)
from ..network.psf import widen_input
from .checkpoint import (
    CheckpointMismatch,
    TrainingState,
    differences,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from .dataset import BatchSource
from .distributed import make_fabric, share_norm
from .losses import LOSS_NAMES, Crops, LossNetwork
from .stages import StageSettings, learning_rate, published_stages, set_trainable

__all__ = ["TrainResult", "TrainSettings", "TrainingDiverged", "train"]

_LOG = logging.getLogger(__name__)

# A checkpoint at the end of an epoch must not come sooner than this many times the time it takes.
_WRITE_SHARE = 20.0

_AHEAD = 3

Progress = Callable[[int, int, Mapping[str, Any]], None]
Validate = Callable[[MaskRCNN], Mapping[str, float]]


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is no longer finite.

    Parameters
    ----------
    message : `str`
        What happened and what to do.
    step : `int`
        The step, counted from 0.
    stage : `str`
        Name of the stage.
    crops : `~collections.abc.Sequence` [`int`]
        Numbers of the crops whose loss is not finite, or of all crops of the
        step if only the gradient is not.
    images : `~collections.abc.Sequence` [`str`]
        Names of the images that they were cut from, as far as the source
        knows them.
    checkpoint : `str`, optional
        The last good checkpoint, if there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int = 0,
        stage: str = "",
        crops: Sequence[int] = (),
        images: Sequence[str] = (),
        checkpoint: str | None = None,
    ):
        super().__init__(message)
        self.step = step
        self.stage = stage
        self.crops = list(crops)
        self.images = list(images)
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class TrainSettings:
    """A training by stochastic gradient descent in stages.

    Raises
    ------
    ValueError
        Raised if a setting is out of range.
    """

    stages: tuple[StageSettings, ...] = published_stages()
    """The stages in their order."""

    seed: int = 1
    """Seed of the initial weights and of what is sampled in a crop."""

    precision: str = "auto"
    """``float32``, ``bfloat16`` or ``auto`` (what the device does fast)."""

    average_decay: float = 0.998
    """Largest decay per step of the running average of the weights that is
    saved; in the first n steps of a run it reaches over the last tenth of
    them. 0 saves the weights of the last step."""

    freeze_norm_after: float = 0.6
    """Part of the schedule after which the statistics of the batch
    normalisation stay as they are. Before, every batch is normalised by its own
    statistics, which a network must not come to rely on: those of a noise-free
    and of a noisy image differ."""

    steps_per_epoch: int | None = None
    """Steps in an epoch; by default as many as it takes to see as many crops as
    the source has images."""

    minutes: float | None = None
    """Wall time after which to end at the latest. Where it is nearer than the
    last step, the schedule is pressed together to fit, so that it is the speed
    of the machine that decides the learning rates."""

    checkpoint_minutes: float = 5.0
    """Time between checkpoints. There is one at the end of each epoch too, unless
    writing takes more than a twentieth of the time."""

    validation_every: int = 1
    """Epochs from one validation to the next; 0 for none."""

    log_every: int = 20
    """Steps that make a row of the history."""

    devices: int = 1
    """Processes per node, with a device each; under ``torchrun`` its own number
    holds instead."""

    num_nodes: int = 1
    """Nodes, likewise."""

    workers: int = 0
    """Processes that make crops, per device, started anew for each stage; with 0
    a thread does, which is enough for a CPU."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages is empty; give at least one")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages have the names {names}; give each its own")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay must be at least 0 and below 1, given {self.average_decay}")
        if self.minutes is not None and not self.minutes > 0.0:
            raise ValueError(f"minutes must be positive, given {self.minutes}")
        for name in ("steps_per_epoch", "log_every", "devices", "num_nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, given {value}")
        for name in ("seed", "checkpoint_minutes", "validation_every", "workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, given {getattr(self, name)}")

    def stage_steps(self, n_images: int) -> list[int]:
        """Count the steps of each stage.

        Parameters
        ----------
        n_images : `int`
            Images in an epoch.

        Returns
        -------
        steps : `list` [`int`]
        """
        return [
            stage.steps
            if stage.steps is not None
            else cast(int, stage.epochs) * (self.steps_per_epoch or stage.steps_per_epoch(n_images))
            for stage in self.stages
        ]


@dataclass
class TrainResult:
    """What a training made.

    Parameters
    ----------
    model : `MaskRcnnModel`
        The running average of the weights, rounded as they are in the file.
    history : `list` [`dict`]
        A row every `TrainSettings.log_every` steps and at the end of a stage:
        ``step`` and ``epoch`` (those done), ``stage`` (name),
        ``learning_rate``, ``elapsed`` (s), and means over the steps since the
        last row: ``loss``, its parts ``loss_...``, ``gradient_norm`` (before
        the clip), ``seconds`` per step, and ``data_seconds`` of these that
        were spent waiting for crops.
    epochs : `list` [`dict`]
        The same for each epoch, with what the validation said.
    steps : `int`
        Steps done.
    elapsed : `float`
        Wall time (s), over all interruptions.
    """

    model: MaskRcnnModel
    history: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    steps: int
    elapsed: float


def train(
    source: BatchSource,
    metadata: ModelMetadata,
    settings: TrainSettings,
    output: str | os.PathLike[str],
    *,
    initial: MaskRcnnModel | None = None,
    device: torch.device | str = "auto",
    validate: Validate | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a network, or go on with an interrupted training.

    Parameters
    ----------
    source : `BatchSource`
        Where crops come from.
    metadata : `ModelMetadata`
        Header of the model to make; what was done is added to its
        ``training``.
    settings : `TrainSettings`
        The schedule.
    output : `str` or `os.PathLike`
        Model file to write. ``<output>.checkpoint`` beside it holds the state
        of an unfinished run and is removed at the end;
        ``<output>.history.json`` holds the history. All nodes must see the
        folder.
    initial : `MaskRcnnModel`, optional
        Model to start from; without it weights are random.
    device : `torch.device` or `str`
        Where to compute: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    validate : callable, optional
        Called at the end of an epoch with a network in evaluation mode that
        has the running average of the weights; its figures go into the row of
        the epoch.
    progress : callable, optional
        Called with the number of steps done, that of all steps, and the row of
        the history that was just made; it has the key ``kind``, ``step`` or
        ``epoch``.

    Returns
    -------
    result : `TrainResult`
        The same in every process.

    Raises
    ------
    TrainingDiverged
        Raised if the loss is not finite; the last checkpoint stays.
    CheckpointMismatch
        Raised if the checkpoint is of another run: other settings, data,
        architecture or initial model.
    FileNotFoundError
        Raised if there is no folder for the output.
    ValueError
        Raised if a batch cannot be spread evenly over the processes, no
        layer is to learn, the initial model does not fit, or the device is
        not there.

    Notes
    -----
    With ``devices`` or ``num_nodes`` above 1 and outside of ``torchrun`` and
    SLURM, the processes are started from here: then the source and
    ``validate`` must be objects that can be sent to another process.

    Batches are cut into equal parts, one for each process, every image has its
    own mean of the losses, and batch normalisation uses the statistics of all
    processes; so a step does not depend on the number of processes but for
    rounding.
    """
    output = Path(output)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {output.absolute().parent} for the model; make it first."
        )
    fabric = make_fabric(str(device), settings.precision, settings.devices, settings.num_nodes)
    work = _Work(source, metadata, settings, output, initial, validate, progress)
    parts = fabric.world_size
    for stage in settings.stages:
        if stage.batch_size % (parts * stage.accumulate):
            raise ValueError(
                f"batch_size {stage.batch_size} of stage '{stage.name}' is no multiple of {parts} processes "
                f"x {stage.accumulate} parts to accumulate; change one of them"
            )
    if getattr(fabric.strategy, "_start_method", None) == "spawn":
        return _launch(fabric, work)
    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    fabric.launch()
    result = _Run(fabric, work).run()
    if not before and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return result


# No dataclass, because Lightning Fabric would look into it, and refuses what is frozen.
class _Work:
    """Arguments of `train`, as they go to another process."""

    def __init__(
        self,
        source: BatchSource,
        metadata: ModelMetadata,
        settings: TrainSettings,
        output: Path,
        initial: MaskRcnnModel | None,
        validate: Validate | None,
        progress: Progress | None,
    ):
        self.source = source
        self.metadata = metadata
        self.settings = settings
        self.output = output
        self.initial = initial
        self.validate = validate
        self.progress = progress
        self.rows: Any = None


def _launch(fabric: Fabric, work: _Work) -> TrainResult:
    """Train in processes started from here."""
    report = work.progress
    work.progress = None
    work.rows = torch.multiprocessing.get_context("spawn").SimpleQueue()

    def relay() -> None:
        while (row := work.rows.get()) is not None:
            if report is not None:
                report(*row)

    thread = threading.Thread(target=relay, name="maskrcnn-progress", daemon=True)
    thread.start()
    try:
        answer = fabric.launch(cast(Any, _run_spawned), work)
    finally:
        work.rows.put(None)
        thread.join()
    if isinstance(answer, BaseException):
        raise answer
    history = json.loads(_history_path(work.output).read_text())
    return TrainResult(read_model(work.output), **history)


def _run_spawned(fabric: Fabric, work: _Work) -> BaseException | None:
    if fabric.global_rank == 0:
        work.progress = lambda *row: work.rows.put(row)
    try:
        _Run(fabric, work).run()
    except (TrainingDiverged, CheckpointMismatch) as error:  # in all processes, and to be raised by the first
        return error
    finally:
        torch.distributed.destroy_process_group()
    return None


class _Run:
    """One process of a training."""

    def __init__(self, fabric: Fabric, work: _Work):
        self.fabric = fabric
        self.source = work.source
        self.metadata = work.metadata
        self.settings = settings = work.settings
        self.output = work.output
        self.checkpoint = work.output.with_name(work.output.name + ".checkpoint")
        self.validate = work.validate
        self.progress = work.progress
        self.lengths = settings.stage_steps(self.source.n_images)
        self.total = sum(self.lengths)
        # Here, so that what JSON cannot hold is found before the first checkpoint.
        self.description: dict[str, Any] = json.loads(json.dumps(_describe_run(work)))
        self.state = TrainingState()
        self.saved = self.started = time.monotonic()
        self.write_time = 0.0
        self.evaluated: MaskRCNN | None = None

        # torch's initialisers know no generator but the global one: lend it, and put it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(settings.seed)
            network = build_network(self.metadata.architecture)
        if work.initial is not None:
            _load_initial(network, work.initial, self.metadata)
        if fabric.world_size > 1:
            share_norm(network)
        self.network = network.to(fabric.device)
        self.losses = LossNetwork(network, settings.seed)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimizer: torch.optim.SGD | None = None
        self.learning: dict[str, torch.nn.Parameter] = {}

    def run(self) -> TrainResult:
        """Go through the stages."""
        momenta: dict[str, Tensor] = {}
        first = self.settings.stages[0]
        if self.fabric.broadcast(self.checkpoint.exists()):
            momenta = self._resume()
        elif (
            first.trainable == "heads"
            and self.description["initial"] is None
            and self.fabric.global_rank == 0
        ):
            _LOG.warning(
                "Stage '%s' keeps a residual network of random weights as it is; give a model to start from",
                first.name,
            )
        self.started = time.monotonic() - self.state.elapsed
        self.saved = time.monotonic()
        for index in range(self.state.stage, len(self.lengths)):
            if index != self.state.stage:
                self.state.stage, self.state.stage_step, momenta = index, 0, {}
            self._run_stage(self.settings.stages[index], index, momenta)
        return self._finish()

    def _run_stage(self, stage: StageSettings, index: int, momenta: Mapping[str, Tensor]) -> None:
        """Train one stage, or the rest of it."""
        state, settings = self.state, self.settings
        start, length = sum(self.lengths[:index]), self.lengths[index]
        per_epoch = settings.steps_per_epoch or stage.steps_per_epoch(self.source.n_images)
        frozen = self._position() >= settings.freeze_norm_after * self.total
        names = set_trainable(self.network, stage.trainable, frozen)
        # The wrapper of several processes must be made anew, because it looks at what learns only once.
        network = self.fabric.setup_module(self.losses)
        parameters = dict(self.network.named_parameters())
        self.learning = {name: parameters[name] for name in names}
        self.optimizer = torch.optim.SGD(
            self.learning.values(),
            lr=stage.learning_rate,
            momentum=stage.momentum,
            weight_decay=stage.weight_decay,
        )
        for name, value in momenta.items():
            parameter = self.learning[name]
            self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(value)
        source = self.source if stage.augment is None else self.source.with_augmentations(stage.augment)
        shares = _Shares(source, state.crops, length - state.stage_step, stage, self.fabric)
        with contextlib.closing(self._batches(shares)) as batches:
            for batch in batches:
                began = time.monotonic()
                position = self._position()
                fraction = (position - start) / length
                if fraction >= 1.0:
                    break
                if not frozen and position >= settings.freeze_norm_after * self.total:
                    frozen = True
                    set_trainable(self.network, stage.trainable, frozen)
                rate = learning_rate(stage, state.stage_step, fraction)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                row = self._step(network, stage, batch.crops)
                state.crops += stage.batch_size
                state.step += 1
                state.stage_step += 1
                self._update_average(min(settings.average_decay, state.step / (state.step + 10.0)))
                state.elapsed = time.monotonic() - self.started
                self._count({**row, "data_seconds": batch.waited}, time.monotonic() - began + batch.waited)
                if state.stage_step % settings.log_every == 0:
                    self._end_row("step", stage, rate)
                due = False
                if state.stage_step % per_epoch == 0:
                    self._end_epoch(stage, rate)
                    due = time.monotonic() - self.saved > _WRITE_SHARE * self.write_time
                if due or time.monotonic() - self.saved > 60.0 * settings.checkpoint_minutes:
                    self._save()
        rate = self.optimizer.param_groups[0]["lr"]
        if state.sums.get("step"):
            self._end_row("step", stage, rate)
        if state.sums.get("epoch"):
            self._end_epoch(stage, rate)

    def _position(self) -> float:
        """Tell how far the schedule is, in steps of it."""
        minutes = self.settings.minutes
        if minutes is None:
            return float(self.state.step)
        elapsed = time.monotonic() - self.started
        if self.fabric.world_size > 1:  # all must take the same turn
            first = torch.tensor([elapsed], device=self.fabric.device)
            torch.distributed.broadcast(first, 0)
            elapsed = float(first)
        return max(float(self.state.step), self.total * elapsed / (60.0 * minutes))

    def _step(self, network: Any, stage: StageSettings, crops: Crops) -> dict[str, float]:
        """Move the weights once."""
        optimizer = cast(torch.optim.SGD, self.optimizer)
        fabric = self.fabric
        optimizer.zero_grad(set_to_none=True)
        tables = []
        parts = crops.split(stage.accumulate)
        for k, part in enumerate(parts):
            with fabric.no_backward_sync(network, enabled=fabric.world_size > 1 and k + 1 < len(parts)):
                losses = network(part.map(fabric.to_device))
                table = torch.stack([losses[name] for name in LOSS_NAMES])
                fabric.backward(table.sum(dim=0).mean() / len(parts))
            tables.append(table.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.learning.values(), stage.gradient_clip)
        table = torch.cat(tables, dim=1)
        if fabric.world_size > 1:
            gathered = [torch.empty_like(table) for _ in range(fabric.world_size)]
            torch.distributed.all_gather(gathered, table.contiguous())
            table = torch.cat(gathered, dim=1)
        host = torch.cat([table.flatten(), norm.detach().float().reshape(1)]).cpu().double()
        values, length = host[:-1].view(len(LOSS_NAMES), -1), float(host[-1])
        if not (math.isfinite(length) and bool(values.isfinite().all())):
            raise self._diverged(stage, values, length)
        optimizer.step()
        row = dict(zip(LOSS_NAMES, values.mean(dim=1).tolist(), strict=True))
        return {"loss": sum(row.values()), **row, "gradient_norm": length}

    def _diverged(self, stage: StageSettings, values: Tensor, norm: float) -> TrainingDiverged:
        """Say which images broke the loss."""
        world = self.fabric.world_size
        share = _share(self.state.crops, stage.batch_size, stage.accumulate, world)
        numbers = [number for rank in range(world) for number in share(rank)]
        broken = [
            n for n, good in zip(numbers, values.isfinite().all(dim=0).tolist(), strict=True) if not good
        ]
        what = "The loss" if broken else "The gradient of the loss"
        crops = sorted(broken or numbers)
        name_of = getattr(self.source, "names", None)
        images = sorted(set(name_of(crops))) if name_of is not None else []
        means = ", ".join(
            f"{name} {value:g}" for name, value in zip(LOSS_NAMES, values.mean(dim=1).tolist(), strict=True)
        )
        good = str(self.checkpoint) if self.checkpoint.exists() else None
        return TrainingDiverged(
            f"{what} is not finite at step {self.state.step} (stage '{stage.name}') in crops {_some(crops)}"
            f"{f' of {_some(images)}' if images else ''} ({means}, norm of the gradient {norm:g}). Look at "
            f"these images, or lower the learning rate ({stage.learning_rate}); "
            + (f"the last good state is in {good}." if good else "there is no checkpoint yet."),
            step=self.state.step,
            stage=stage.name,
            crops=crops,
            images=images,
            checkpoint=good,
        )

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        """Move the running average of the weights towards the network's."""
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1.0 - decay)
            else:
                self.average[name].copy_(value)

    def _count(self, row: Mapping[str, float], seconds: float) -> None:
        for kind in ("step", "epoch"):
            sums = self.state.sums.setdefault(kind, {})
            for name, value in {**row, "seconds": seconds, "count": 1.0}.items():
                sums[name] = sums.get(name, 0.0) + value

    def _end_row(
        self, kind: str, stage: StageSettings, rate: float, figures: Mapping[str, Any] | None = None
    ) -> None:
        """Make a row of the history."""
        state = self.state
        sums = state.sums.pop(kind)
        count = sums.pop("count")
        row = {
            "kind": kind,
            "step": state.step,
            "epoch": state.epoch,
            "stage": stage.name,
            "learning_rate": rate,
            "elapsed": state.elapsed,
            **{name: value / count for name, value in sums.items()},
            **(figures or {}),
        }
        (state.history if kind == "step" else state.epochs).append(row)
        if self.progress is not None and self.fabric.global_rank == 0:
            self.progress(state.step, self.total, row)

    def _end_epoch(self, stage: StageSettings, rate: float) -> None:
        """Validate, if it is time, and make the row of the epoch."""
        self.state.epoch += 1
        every = self.settings.validation_every
        figures: Mapping[str, float] = {}
        last = self.state.step == self.total
        if self.validate is not None and every and (self.state.epoch % every == 0 or last):
            if self.fabric.global_rank == 0:
                if self.evaluated is None:
                    self.evaluated = copy.deepcopy(self.network)
                self.evaluated.load_state_dict(self.average)
                self.evaluated.eval()
                with torch.inference_mode():
                    figures = {name: float(value) for name, value in self.validate(self.evaluated).items()}
            self.fabric.barrier()
            self.state.elapsed = time.monotonic() - self.started
        self._end_row("epoch", stage, rate, figures)

    def _batches(self, shares: _Shares) -> Generator[_Batch, None, None]:
        """Give the crops of this process, step by step, made ahead."""
        if self.settings.workers:
            made = _made_by_processes(shares, self.settings.workers, self.fabric.device.type == "cuda")
        else:
            made = _made_by_thread(shares, self.fabric.device.type == "cuda")
        with contextlib.closing(made):
            for k in range(len(shares)):
                began = time.monotonic()
                images, targets = next(made)
                yield _Batch(Crops(images, targets, shares.numbers(k)), time.monotonic() - began)

    def _save(self) -> None:
        """Write a checkpoint."""
        if self.fabric.global_rank == 0:
            began = time.monotonic()
            tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
            tensors.update({f"average/{name}": value for name, value in self.average.items()})
            for name, parameter in self.learning.items():
                momentum = cast(torch.optim.SGD, self.optimizer).state[parameter].get("momentum_buffer")
                if momentum is not None:
                    tensors[f"momentum/{name}"] = momentum
            write_checkpoint(self.checkpoint, tensors, self.description, self.state)
            self.write_time = time.monotonic() - began
        self.saved = time.monotonic()

    def _resume(self) -> dict[str, Tensor]:
        """Take the state of a checkpoint; its momenta are for the stage."""
        tensors, self.state = read_checkpoint(self.checkpoint, self.description)
        kinds: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "momentum": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            kinds[kind][name] = value
        self.network.load_state_dict(kinds["network"])
        for name, value in self.average.items():
            value.copy_(kinds["average"][name])
        _LOG.info("Going on at step %d of %d from %s", self.state.step, self.total, self.checkpoint)
        return kinds["momentum"]

    def _finish(self) -> TrainResult:
        """Write the model and its history, and remove the checkpoint."""
        state, settings = self.state, self.settings
        if not state.step:
            _LOG.warning(
                "The %s minutes were over before the first step: nothing was learned", settings.minutes
            )
        made = self.metadata.model_copy(
            update={
                "training": {
                    **self.metadata.training,
                    "schedule": json.loads(json.dumps(asdict(settings))),
                    "source": self.source.describe(),
                    "initial": self.description["initial"],
                    "steps": state.step,
                    "epochs": state.epoch,
                    "crops": state.crops,
                    "wall_time_s": round(state.elapsed, 1),
                    "last_epoch": state.epochs[-1] if state.epochs else {},
                    "machine": {
                        "device": _device_name(self.fabric.device),
                        "processes": self.fabric.world_size,
                        "threads": torch.get_num_threads(),
                    },
                    "software": {
                        "python": platform.python_version(),
                        "torch": torch.__version__,
                        "torchvision": torchvision.__version__,
                        "numpy": np.__version__,
                    },
                }
            }
        )
        self.network.load_state_dict(self.average)
        data = model_to_bytes(MaskRcnnModel.from_network(self.network, made), half=True)
        history: dict[str, Any] = {
            "history": state.history,
            "epochs": state.epochs,
            "steps": state.step,
            "elapsed": state.elapsed,
        }
        if self.fabric.global_rank == 0:
            write_atomically(self.output, data)
            write_atomically(_history_path(self.output), json.dumps(history, indent=1).encode())
            remove_checkpoint(self.checkpoint)
        self.fabric.barrier()
        return TrainResult(model_from_bytes(data, str(self.output)), **history)


@dataclass
class _Batch:
    """What this process computes in a step, and how long it waited (s)."""

    crops: Crops
    waited: float


def _share(first: int, size: int, accumulate: int, world: int) -> Callable[[int], list[int]]:
    """Spread a batch over the processes.

    The parts that are computed at the same time are neighbours in the batch, so
    that they are the same for any number of processes.
    """
    part = size // (accumulate * world)

    def numbers(rank: int) -> list[int]:
        starts = [first + (k * world + rank) * part for k in range(accumulate)]
        return [start + i for start in starts for i in range(part)]

    return numbers


class _Shares(torch.utils.data.Dataset[Any]):
    """The crops of this process by step."""

    def __init__(self, source: BatchSource, first: int, count: int, stage: StageSettings, fabric: Fabric):
        self.source = source
        self.first = first
        self.count = count
        self.size = stage.batch_size
        self.accumulate = stage.accumulate
        self.world = fabric.world_size
        self.rank = fabric.global_rank

    def __len__(self) -> int:
        return self.count

    def numbers(self, step: int) -> list[int]:
        return _share(self.first + step * self.size, self.size, self.accumulate, self.world)(self.rank)

    def __getitem__(self, step: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        return self.source.crops(self.numbers(step))


def _made_by_processes(shares: _Shares, workers: int, pin: bool) -> Generator[Any, None, None]:
    loader = torch.utils.data.DataLoader(
        shares,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else the global one is drawn from
    )
    yield from loader


def _made_by_thread(shares: _Shares, pin: bool) -> Generator[Any, None, None]:
    ready: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def work() -> None:
        try:
            for step in range(len(shares)):
                images, targets = shares[step]
                if pin:
                    images = [image.pin_memory() for image in images]
                    targets = [{k: v.pin_memory() for k, v in target.items()} for target in targets]
                while not stop.is_set():
                    try:
                        ready.put((images, targets), timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
        except BaseException as error:  # handed over to the consumer, who raises it
            ready.put(error)

    thread = threading.Thread(target=work, name="maskrcnn-batches", daemon=True)
    thread.start()
    try:
        for _ in range(len(shares)):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=10.0)


def _load_initial(network: MaskRCNN, initial: MaskRcnnModel, metadata: ModelMetadata) -> None:
    try:
        network.load_state_dict(widen_input(initial.state, metadata.architecture.input_planes))
    except (RuntimeError, KeyError, ValueError) as error:
        there = initial.metadata.architecture.model_dump(mode="json")
        here = metadata.architecture.model_dump(mode="json")
        raise ValueError(
            f"The weights of model '{initial.metadata.name}' do not fit the network to train. Differences of "
            f"the architectures: {'; '.join(differences(there, here)) or 'none'}. Start from another model, "
            "or train its architecture."
        ) from error


def _describe_run(work: _Work) -> dict[str, Any]:
    """Say what decides a run, so that no other one goes on from its state."""
    settings = asdict(work.settings)
    for name in ("checkpoint_minutes", "validation_every", "log_every", "devices", "num_nodes", "workers"):
        del settings[name]
    return {
        **settings,
        "source": work.source.describe(),
        "architecture": work.metadata.architecture.model_dump(mode="json"),
        "normalization": asdict(work.metadata.normalization),
        "bands": list(work.metadata.bands),
        "initial": None if work.initial is None else _describe_model(work.initial),
    }


def _describe_model(model: MaskRcnnModel) -> dict[str, str]:
    digest = hashlib.sha256()
    for name, value in sorted(model.state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return {"name": model.metadata.name, "sha256": digest.hexdigest()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"


def _history_path(output: Path) -> Path:
    return output.with_name(output.name + ".history.json")


def _some(items: Sequence[Any], limit: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
