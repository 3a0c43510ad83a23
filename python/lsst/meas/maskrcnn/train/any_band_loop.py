# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training of an `~..network.any_band.AnyBandNetwork`.

The learning rate rises, stays, and falls in the last steps. The checkpoint from
before that fall is kept, so that a run can be made longer.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..images.normalize import BandNoiseSettings
from ..images.settings import settings as settings_class
from ..network.any_band import AnyBandNetwork, AnyBandSpec, start_from
from ..network.inference import select_device
from ..network.model_file import MaskRcnnModel, ModelMetadata, write_model
from .any_band_loss import LOSS_NAMES, any_band_losses
from .any_band_validation import validate_any_band
from .band_scenes import draw_crop, read_band_scene
from .checkpoint import TrainingState, read_checkpoint, write_checkpoint
from .loop import update_average
from .stages import GRADIENT_CLIP

_LOG = logging.getLogger(__name__)

_WEIGHTS = {"centre": 1.0, "offset": 0.5, "side": 0.3, "class": 1.0, "box": 0.5, "mask": 1.0, "blend": 0.5}
_WEIGHT_DECAY = 0.01
_AVERAGE = 0.9985
"""Decay of the running mean of the weights, per step."""

_ROW = 50
"""Steps whose mean losses are a row of ``losses.csv``."""

_PIXEL_SCALE = 0.2
"""Of the header, arcsec: the middle of those of the scenes."""


@settings_class
class AnyBandTrainSettings:
    """How long, how fast and on what a network for any bands is trained."""

    steps: Annotated[int, Field(ge=1, description="Steps in all.")] = 30_000
    decay_steps: Annotated[
        int, Field(ge=1, description="Last steps, in which the learning rate falls to 1 % like a cosine.")
    ] = 6000
    warmup_steps: Annotated[
        int, Field(ge=1, description="First steps, in which the learning rate rises linearly.")
    ] = 300
    learning_rate: Annotated[float, Field(gt=0, description="Largest learning rate, of AdamW.")] = 5e-4
    batch_size: Annotated[int, Field(ge=1, description="Crops in a step.")] = 4
    crop_size: Annotated[int, Field(ge=32, description="Side of a crop (px).")] = 192
    seed: Annotated[int, Field(ge=0, description="Random seed of crops, noise and samples.")] = 1
    device: Annotated[str, Field(description="cpu, cuda, or auto: a GPU if there is one.")] = "auto"
    workers: Annotated[
        int, Field(ge=0, description="Processes that draw crops; 0: the training itself does.")
    ] = 0
    save_interval: Annotated[float, Field(gt=0, description="Time between checkpoints (s).")] = 300.0

    def rate(self, step: int) -> float:
        """Compute the learning rate of a step."""
        rate = self.learning_rate * min(1.0, (step + 1) / self.warmup_steps)
        share = max(0.0, 1.0 - (self.steps - step) / self.decay_steps)
        return rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


def train_any_band(
    scenes: Path, valid: Path, out: Path, settings: AnyBandTrainSettings, initial: MaskRcnnModel | None = None
) -> MaskRcnnModel:
    """Train a network for any bands on the scenes of a folder.

    The score threshold is chosen on those of the folder ``valid``, for a purity
    of 0.97. In the folder ``out``, made if it is not there, are
    ``model.safetensors`` (the running mean of the weights), ``losses.csv``,
    ``checkpoint.safetensors``, from which an interrupted run goes on, and
    ``before_decay.safetensors``, from which a longer run can, in the place of
    the former. The weights of the initial model are taken: all of one that takes
    any bands, those that fit of one that takes g, r and z.
    """
    files, valid_files = _scene_files(scenes), _scene_files(valid)
    out.mkdir(parents=True, exist_ok=True)
    training = _Training(settings, files, out, initial)
    training.run()
    figures = validate_any_band(training.network.eval(), [read_band_scene(path) for path in valid_files])
    model = training.model(figures)
    write_model(model, out / "model.safetensors", half=True)
    _LOG.info("Wrote %s: %s", out / "model.safetensors", model.metadata.training)
    return model


def _scene_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"there are no scenes (*.npz) in {folder}; make some with 'scenes'")
    return files


class _Crops(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """Crops by their number, which decides all of a crop."""

    def __init__(self, files: list[Path], size: int, seed: int):
        self.files, self.size, self.seed = files, size, seed

    def __getitem__(self, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rng = np.random.default_rng([self.seed, number])
        scene = read_band_scene(self.files[int(rng.integers(len(self.files)))])
        return draw_crop(scene, rng, self.size)


class _Training:
    """A network, its optimizer and where they stand."""

    def __init__(
        self, settings: AnyBandTrainSettings, files: list[Path], out: Path, initial: MaskRcnnModel | None
    ):
        self.settings, self.files, self.out = settings, files, out
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(settings.seed)
            self.network = AnyBandNetwork(AnyBandSpec())
        self.start: dict[str, Any] = {"model": None}
        if initial is not None:
            self.start = {"model": initial.metadata.name, "training": initial.metadata.training}
            if initial.takes_any_bands:
                self.network.load_state_dict(initial.state)
            else:
                start_from(self.network, initial.state, initial.metadata.bands)
        self.device = select_device(settings.device)
        self.network.to(self.device)
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=_WEIGHT_DECAY)
        self.state = TrainingState()
        self.checkpoint = out / "checkpoint.safetensors"
        # What decides a step; the length of the run does not.
        names = ("learning_rate", "warmup_steps", "batch_size", "crop_size", "seed")
        self.identity = {name: getattr(settings, name) for name in names}
        self.identity["start"] = self.start["model"]
        if self.checkpoint.exists():
            self._load()

    def run(self) -> None:
        """Do the steps that are left, and put the running mean of the weights into the network."""
        self.network.train()
        began = saved = time.monotonic()
        before = self.state.elapsed
        rows: list[dict[str, float]] = []
        size = self.settings.batch_size
        batches = DataLoader(
            _Crops(self.files, self.settings.crop_size, self.settings.seed),
            batch_size=size,
            sampler=range(self.state.crops, size * self.settings.steps),
            num_workers=self.settings.workers,
            collate_fn=list,
        )
        bar = tqdm(batches, total=self.settings.steps, initial=self.state.step, unit="step", smoothing=0.02)
        for batch in bar:
            rows.append(self._step(batch))
            self.state.elapsed = before + time.monotonic() - began
            if self.state.step % _ROW == 0:
                means = {name: round(float(np.mean([row[name] for row in rows])), 5) for name in rows[0]}
                self._append({"step": self.state.step, "seconds": round(self.state.elapsed), **means})
                rows = []
                bar.set_postfix(loss=means["total"])
            if self.state.step == self.settings.steps - self.settings.decay_steps:
                self._save(self.out / "before_decay.safetensors")
            if time.monotonic() - saved > self.settings.save_interval:
                self._save(self.checkpoint)
                saved = time.monotonic()
        self._save(self.checkpoint)
        self.network.load_state_dict(self.average)

    def model(self, figures: dict[str, float]) -> MaskRcnnModel:
        """Make a model of the network."""
        training = {
            "scenes": f"{len(self.files)} of the mixture of surveys, {self.files[0].name} and others",
            "crops": self.state.crops,
            "steps": self.state.step,
            "seconds": round(self.state.elapsed),
            "settings": {**self.identity, "decay_steps": self.settings.decay_steps},
            "start": self.start,
            "validation": {name: round(value, 4) for name, value in figures.items() if math.isfinite(value)},
        }
        score = round(min(figures["score_97"], 0.99), 4)
        metadata = ModelMetadata(
            name="any",
            description="Any one to eight bands and any pixel scale.",
            architecture=self.network.spec.model_copy(update={"detection_score": score}),
            bands=(),
            normalization=BandNoiseSettings(),
            pixel_scale=_PIXEL_SCALE,
            training=training,
        )
        return MaskRcnnModel.from_network(self.network, metadata)

    def _step(self, batch: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> dict[str, float]:
        """Move the weights once."""
        state, settings = self.state, self.settings
        images = [image.to(self.device) for image, _ in batch]
        targets = [{name: value.to(self.device) for name, value in target.items()} for _, target in batch]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.step)
        losses = any_band_losses(self.network, images, targets, generator)
        total = torch.stack([_WEIGHTS[name] * losses[name] for name in LOSS_NAMES]).sum()
        rate = settings.rate(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_CLIP)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        else:
            _LOG.warning("Step %d has no finite gradient and is left out.", state.step)
        update_average(self.average, self.network, min(_AVERAGE, (1 + state.step) / (20 + state.step)))
        state.step += 1
        state.crops += settings.batch_size
        row = {name: float(losses[name].detach()) for name in LOSS_NAMES}
        return {**row, "total": float(total.detach()), "norm": float(norm), "rate": rate}

    def _save(self, path: Path) -> None:
        tensors = {"network": self.network.state_dict(), "average": self.average}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors[f"optimizer.{number}"] = moments
        write_checkpoint(path, tensors, self.identity, self.state)

    def _load(self) -> None:
        wanted = {"network": self.network.state_dict(), "average": self.average}
        tensors, self.state = read_checkpoint(self.checkpoint, self.identity, wanted)
        self.network.load_state_dict(tensors.pop("network"))
        average = tensors.pop("average")
        self.average = {name: value.to(self.device) for name, value in average.items()}
        moments = {int(kind.removeprefix("optimizer.")): value for kind, value in tensors.items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        _LOG.info("Go on from step %d.", self.state.step)

    def _append(self, row: dict[str, Any]) -> None:
        """Add a row to the table of losses."""
        path = self.out / "losses.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
