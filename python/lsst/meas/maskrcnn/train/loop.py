# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training loop: from a source of crops to a model file.

A step is a function of the weights, the seed and the number of the step alone:
crops come from the source by number, and what is sampled in them follows from
the seed and that number (`~.losses.LossNetwork`). So a run that was killed goes
on from its checkpoint as if nothing had been, on a CPU bit for bit.

Under ``torchrun`` batches are cut into equal parts, one for each process, and
every image has its own mean of the losses. On GPUs the batch normalisation uses
the statistics of all processes, so that a step does not depend on their number
but for rounding; on CPUs each process uses those of its own part, until the
statistics are frozen.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from ..images.files import write_atomically
from ..network.any_band import AnyBandNetwork, AnyBandSpec
from ..network.model_file import MaskRcnnModel, ModelMetadata, make_network, model_from_bytes, model_to_bytes
from ..network.psf import widen_input
from .any_band_loss import BandLossNetwork
from .batches import StageCrops, crop_numbers, make_batches
from .checkpoint import TrainingState, differences, read_checkpoint, write_checkpoint
from .dataset import BatchSource
from .distributed import make_fabric
from .losses import Crops, LossNetwork
from .provenance import describe_result, describe_run, with_threshold
from .stages import (
    BAND_WEIGHT_DECAY,
    GRADIENT_CLIP,
    LARGEST_ADAM_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    StageSettings,
    TrainSettings,
    learning_rate,
    set_trainable,
)
from .training_log import TrainingLog

_LOG = logging.getLogger(__name__)

# A checkpoint at the end of an epoch must not come sooner than this many times the time it takes.
_WRITE_SHARE = 20.0

_MOMENTA = "optimizer."
"""Begins the names of the optimizer's tensors in a checkpoint."""

Progress = Callable[[int, int, Mapping[str, Any]], None]
Validate = Callable[[Any], Mapping[str, float]]


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is no longer finite.

    ``crops`` are the numbers of those whose loss is not finite, or all of the
    step if only the gradient is not; ``images`` the names of what they were
    cut from, and ``checkpoint`` the last good one, as far as there are any.
    """

    def __init__(
        self,
        message: str,
        step: int,
        stage: str,
        crops: Sequence[int],
        images: Sequence[str],
        checkpoint: str | None,
    ):
        super().__init__(message)
        self.step, self.stage, self.checkpoint = step, stage, checkpoint
        self.crops, self.images = list(crops), list(images)


@dataclass
class TrainResult:
    """What a training made."""

    model: MaskRcnnModel  # the running average of the weights, rounded as they are in the file
    # A row every `TrainSettings.log_every` steps and at the end of a stage: ``step`` and ``epoch`` (those
    # done), ``stage`` (name), ``learning_rate``, ``elapsed`` (s), and means over the steps since the last
    # row: ``loss``, its parts ``loss_...``, ``gradient_norm`` (before the clip), ``seconds`` per step, and
    # ``data_seconds`` of these that were spent waiting for crops.
    history: list[dict[str, Any]]
    epochs: list[dict[str, Any]]  # the same for each epoch, with what the validation said
    steps: int  # those done
    elapsed: float  # wall time (s), over all interruptions


def best_model_file(output: Path) -> Path:
    """Return the file of the model that was best at a validation, beside that of the last one."""
    return output.with_name(f"{output.name.removesuffix('.safetensors')}.best.safetensors")


def output_files(output: Path) -> list[Path]:
    """Return the files that a training writes: model, history, best model, and last the checkpoint."""
    history = [output.with_name(f"{output.name}.history.{kind}") for kind in ("json", "csv")]
    return [output, *history, best_model_file(output), output.with_name(f"{output.name}.checkpoint")]


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
    keep_checkpoint: bool = False,
) -> TrainResult:
    """Train a network, or go on with an interrupted training; the result is the same in every process.

    The metadata are the header of the model to make; what was done is added to its ``training``. Without an
    initial model weights are random.

    Beside the model file ``output``, ``<output>.checkpoint`` holds the state of an unfinished run and is
    removed at the end, unless ``keep_checkpoint``: then the same call returns at once with the same result.
    ``<output>.history.json`` and ``<output>.history.csv`` hold the history, and `best_model_file` the model
    with the highest AP50 of the validation. All nodes must see the folder.

    At the end of an epoch ``validate`` is called with a network in evaluation mode that has the running
    average of the weights; its figures go into the row of the epoch. ``progress`` is called with the number
    of steps done, that of all steps, and the row of the history that was just made; its ``kind`` is ``step``
    or ``epoch``.

    Raises
    ------
    TrainingDiverged
        Raised if the loss is not finite; the last checkpoint stays.
    CheckpointError
        Raised if the checkpoint is of another run: other settings, data,
        architecture or initial model.
    FileNotFoundError
        Raised if there is no folder for the output.
    ValueError
        Raised if a batch cannot be divided evenly among the processes, no
        layer is to learn, a learning rate is too large for the network, the
        initial model does not fit, or the device is not there.
    """
    output = Path(output)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {output.absolute().parent} for the model; make it first."
        )
    fabric = make_fabric(str(device), settings.precision)
    _check_stages(settings, metadata, fabric.world_size)
    fabric.launch()
    run = _Run(fabric, source, metadata, settings, output, initial, validate, progress, keep_checkpoint)
    return run.run()


def _check_stages(settings: TrainSettings, metadata: ModelMetadata, processes: int) -> None:
    """Refuse batches that cannot be divided, and learning rates that are not for the network."""
    for stage in settings.stages:
        if stage.batch_size % (processes * stage.accumulate):
            raise ValueError(
                f"batch_size {stage.batch_size} of stage '{stage.name}' is no multiple of "
                f"{processes} processes x {stage.accumulate} parts to accumulate; change one of them"
            )
        if isinstance(metadata.architecture, AnyBandSpec) and stage.learning_rate > LARGEST_ADAM_RATE:
            raise ValueError(
                f"learning_rate {stage.learning_rate:g} of stage '{stage.name}' is one for stochastic "
                "gradient descent; networks of any bands, which learn by AdamW, want at most "
                f"{LARGEST_ADAM_RATE:g}, and 5e-4 from random weights"
            )


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], network: torch.nn.Module, decay: float) -> None:
    """Move the running average of the weights towards those of the network."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1.0 - decay)
        else:
            average[name].copy_(value)


class _Run:
    """One process of a training."""

    def __init__(
        self,
        fabric: Fabric,
        source: BatchSource,
        metadata: ModelMetadata,
        settings: TrainSettings,
        output: Path,
        initial: MaskRcnnModel | None,
        validate: Validate | None,
        progress: Progress | None,
        keep_checkpoint: bool,
    ):
        self.fabric, self.source, self.metadata, self.settings = fabric, source, metadata, settings
        self.validate, self.progress, self.keep_checkpoint = validate, progress, keep_checkpoint
        self.output = output
        _, self.history_file, *_, self.checkpoint = output_files(output)
        self.lengths = settings.stage_steps(source.n_images)
        self.total = sum(self.lengths)
        self.log: TrainingLog | None = None
        # Here, so that what JSON cannot hold is found before the first checkpoint.
        described = json.dumps(describe_run(source, metadata, settings, initial))
        self.description: dict[str, Any] = json.loads(described)
        self.state = TrainingState()
        self.saved = self.started = time.monotonic()
        self.write_time = 0.0
        self.evaluated: MaskRCNN | AnyBandNetwork | None = None

        # torch's initialisers know no generator but the global one: lend it, and put it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(settings.seed)
            network = make_network(metadata.architecture)
        if initial is not None:
            _load_initial(network, initial, metadata)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(fabric.device)
        learner = BandLossNetwork if isinstance(network, AnyBandNetwork) else LossNetwork
        self.losses: Any = learner(network, settings.seed)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimizer: torch.optim.Optimizer | None = None
        self.learning: dict[str, torch.nn.Parameter] = {}

    def run(self) -> TrainResult:
        """Go through the stages."""
        momenta: dict[str, dict[str, Tensor]] = {}
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
        if self.fabric.global_rank == 0:
            self.log = TrainingLog(self.output, self.state.step)
        for index in range(self.state.stage, len(self.lengths)):
            if index != self.state.stage:
                self.state.stage, self.state.stage_step, momenta = index, 0, {}
            self._run_stage(self.settings.stages[index], index, momenta)
        return self._finish()

    def _run_stage(
        self, stage: StageSettings, index: int, momenta: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Train one stage, or the rest of it."""
        state, settings = self.state, self.settings
        start, length = sum(self.lengths[:index]), self.lengths[index]
        per_epoch = settings.steps_per_epoch or stage.steps_per_epoch(self.source.n_images)
        frozen = self._position() >= settings.freeze_norm_after * self.total
        network = self._prepare_stage(stage, momenta, frozen)
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        fabric = self.fabric
        left = length - state.stage_step
        crops = StageCrops(self.source, state.crops, left, stage, fabric.global_rank, fabric.world_size)
        pin = fabric.device.type == "cuda"
        with contextlib.closing(make_batches(crops, settings.workers, pin)) as batches:
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
                for group in optimizer.param_groups:
                    group["lr"] = rate
                row = self._step(network, stage, batch.crops)
                state.crops += stage.batch_size
                state.step += 1
                state.stage_step += 1
                decay = min(settings.average_decay, state.step / (state.step + 10.0))
                update_average(self.average, self.network, decay)
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
        rate = optimizer.param_groups[0]["lr"]
        if state.sums.get("step"):
            self._end_row("step", stage, rate)
        if state.sums.get("epoch"):
            self._end_epoch(stage, rate)

    def _prepare_stage(
        self, stage: StageSettings, momenta: Mapping[str, Mapping[str, Tensor]], frozen: bool
    ) -> Any:
        """Choose what learns, and make the optimiser; returns the network to compute losses with."""
        names = set_trainable(self.network, stage.trainable, frozen)
        # The wrapper of several processes must be made anew, because it looks only once at what learns.
        network = self.fabric.setup_module(self.losses)
        parameters = dict(self.network.named_parameters())
        self.learning = {name: parameters[name] for name in names}
        rate, learning = stage.learning_rate, self.learning.values()
        if isinstance(self.network, AnyBandNetwork):
            self.optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=BAND_WEIGHT_DECAY)
        else:
            self.optimizer = torch.optim.SGD(learning, lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for kind, values in momenta.items():
            for name, value in values.items():
                parameter = self.learning[name]
                like = parameter if value.shape == parameter.shape else value
                self.optimizer.state[parameter][kind] = torch.empty_like(like).copy_(value)
        return network

    def _position(self) -> float:
        """Return how far the schedule is, in steps of it."""
        if self._is_over():
            return float(self.total)
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
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        fabric = self.fabric
        optimizer.zero_grad(set_to_none=True)
        tables = []
        parts = crops.split(stage.accumulate)
        for k, part in enumerate(parts):
            with fabric.no_backward_sync(network, enabled=fabric.world_size > 1 and k + 1 < len(parts)):
                losses = network(part.map(fabric.to_device))
                table = torch.stack([losses[name] for name in self.losses.names])
                fabric.backward(table.sum(dim=0).mean() / len(parts))
            tables.append(table.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.learning.values(), GRADIENT_CLIP)
        table = torch.cat(tables, dim=1)
        if fabric.world_size > 1:
            gathered = [torch.empty_like(table) for _ in range(fabric.world_size)]
            torch.distributed.all_gather(gathered, table.contiguous())
            table = torch.cat(gathered, dim=1)
        host = torch.cat([table.flatten(), norm.detach().float().reshape(1)]).cpu().double()
        values, length = host[:-1].view(len(self.losses.names), -1), float(host[-1])
        if not (math.isfinite(length) and bool(values.isfinite().all())):
            raise self._diverged(stage, values, length)
        optimizer.step()
        row = dict(zip(self.losses.names, values.mean(dim=1).tolist(), strict=True))
        return {"loss": sum(row.values()), **row, "gradient_norm": length}

    def _diverged(self, stage: StageSettings, values: Tensor, norm: float) -> TrainingDiverged:
        """Make the error that names the images whose loss is not finite."""
        world = self.fabric.world_size
        first = self.state.crops
        numbers = [number for rank in range(world) for number in crop_numbers(first, stage, rank, world)]
        finite = values.isfinite().all(dim=0).tolist()
        broken = [n for n, good in zip(numbers, finite, strict=True) if not good]
        what = "The loss" if broken else "The gradient of the loss"
        crops = sorted(broken or numbers)
        name_of = getattr(self.source, "names", None)
        images = sorted(set(name_of(crops))) if name_of is not None else []
        means = zip(self.losses.names, values.mean(dim=1).tolist(), strict=True)
        figures = ", ".join(f"{name} {value:g}" for name, value in means)
        good = str(self.checkpoint) if self.checkpoint.exists() else None
        places = _shorten(crops) + (f" of {_shorten(images)}" if images else "")
        return TrainingDiverged(
            f"{what} is not finite at step {self.state.step} (stage '{stage.name}') in crops {places} "
            f"({figures}, norm of the gradient {norm:g}). Look at these images, or lower the learning "
            f"rate ({stage.learning_rate}); "
            + (f"the last good state is in {good}." if good else "there is no checkpoint yet."),
            self.state.step,
            stage.name,
            crops,
            images,
            good,
        )

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
        position = self._position()
        if self.log is not None:
            self.log.write([*state.history, *state.epochs], row)
        if self.progress is not None and self.fabric.global_rank == 0:
            # Where the minutes end the training, fewer steps than the schedule has.
            self.progress(state.step, max(state.step, round(self.total * state.step / position)), row)

    def _scores(self) -> list[float]:
        """Return the average precision of each validation so far."""
        scores = (float(row.get("ap50", math.nan)) for row in self.state.epochs)
        return [score for score in scores if math.isfinite(score)]

    def _is_over(self) -> bool:
        """Say whether the validation has not become better for too long."""
        scores, patience = self._scores(), self.settings.patience
        return patience is not None and len(scores) - 1 - int(np.argmax(scores or [0.0])) >= patience

    def _end_epoch(self, stage: StageSettings, rate: float) -> None:
        """Validate, if it is time, and make the row of the epoch."""
        self.state.epoch += 1
        every = self.settings.validation_every
        figures: Mapping[str, float] = {}
        last = self.state.step == self.total
        best = max(self._scores(), default=-math.inf)
        if self.validate is not None and every and (self.state.epoch % every == 0 or last):
            if self.fabric.global_rank == 0:
                if self.evaluated is None:
                    self.evaluated = copy.deepcopy(self.network)
                self.evaluated.load_state_dict(self.average)
                self.evaluated.eval()
                with torch.inference_mode():
                    figures = {name: float(value) for name, value in self.validate(self.evaluated).items()}
                if figures.get("ap50", -math.inf) > best:
                    header = with_threshold(self.metadata, figures).model_copy(
                        update={"training": {**self.metadata.training, "step": self.state.step, **figures}}
                    )
                    model = MaskRcnnModel.from_network(self.evaluated, header)
                    write_atomically(best_model_file(self.output), model_to_bytes(model, half=True))
            figures = self.fabric.broadcast(figures)
            self.state.elapsed = time.monotonic() - self.started
        self._end_row("epoch", stage, rate, figures)

    def _save(self) -> None:
        """Write a checkpoint."""
        if self.fabric.global_rank == 0:
            began = time.monotonic()
            states = {} if self.optimizer is None else self.optimizer.state
            tensors = {"network": self.network.state_dict(), "average": self.average}
            for name, parameter in self.learning.items():
                for kind, value in states.get(parameter, {}).items():
                    tensors.setdefault(f"{_MOMENTA}{kind}", {})[name] = value
            write_checkpoint(self.checkpoint, tensors, self.description, self.state)
            self.write_time = time.monotonic() - began
        self.saved = time.monotonic()

    def _resume(self) -> dict[str, dict[str, Tensor]]:
        """Take the state of a checkpoint; its momenta are for the stage."""
        wanted = {"network": self.network.state_dict(), "average": self.average}
        tensors, self.state = read_checkpoint(self.checkpoint, self.description, wanted)
        self.network.load_state_dict(tensors["network"])
        for name, value in self.average.items():
            value.copy_(tensors["average"][name])
        _LOG.info("Going on at step %d of %d from %s", self.state.step, self.total, self.checkpoint)
        momenta = {kind: part for kind, part in tensors.items() if kind.startswith(_MOMENTA)}
        return {kind.removeprefix(_MOMENTA): part for kind, part in momenta.items()}

    def _finish(self) -> TrainResult:
        """Write the model and its history; the checkpoint goes unless it is to be kept."""
        state, settings = self.state, self.settings
        if self.keep_checkpoint:
            self._save()
        if not state.step:
            _LOG.warning(
                "The %s minutes were over before the first step: nothing was learned", settings.minutes
            )
        initial = self.description["initial"]
        made = describe_result(self.metadata, settings, self.source, state, self.fabric, initial)
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
            write_atomically(self.history_file, json.dumps(history, indent=1).encode())
            if not self.keep_checkpoint:
                self.checkpoint.unlink(missing_ok=True)
        self.fabric.barrier()
        return TrainResult(model_from_bytes(data, str(self.output)), **history)


def _load_initial(
    network: MaskRCNN | AnyBandNetwork, initial: MaskRcnnModel, metadata: ModelMetadata
) -> None:
    state = initial.state
    try:
        if not (initial.takes_any_bands or isinstance(network, AnyBandNetwork)):
            state = widen_input(state, metadata.network_spec.input_planes)
        network.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError) as error:
        there = initial.metadata.architecture.model_dump(mode="json")
        here = metadata.architecture.model_dump(mode="json")
        raise ValueError(
            f"The weights of model '{initial.metadata.name}' do not fit the network to train. Differences of "
            f"the architectures: {'; '.join(differences(there, here)) or 'none'}. Start from another model, "
            "or train its architecture."
        ) from error


def _shorten(items: Sequence[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:8])
    return shown if len(items) <= 8 else f"{shown} and {len(items) - 8} more"
