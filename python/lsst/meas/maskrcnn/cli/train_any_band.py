# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn train-any-band``: make scenes for a network that takes any bands, and
train it on them. No LSST package is needed.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

import torch
from tqdm import tqdm

from ..images.normalize import BandNoiseSettings
from ..network.any_band import AnyBandSpec
from ..network.model_file import ModelMetadata, load_model
from ..train.any_band_validation import BandSceneValidator
from ..train.band_crops import BandSceneFiles
from ..train.band_scenes import make_scenes, read_band_scene
from ..train.loop import TrainingDiverged, output_files, train
from ..train.stages import StageSettings, TrainSettings
from .command import Arguments, CommandError, check_unfinished, command, keep_out_others, training_bar

_PIXEL_SCALE = 0.2
"""Of the header, arcsec: the middle of those of the scenes."""

_WARMUP, _EPOCH = 300, 500
"""Steps in which the learning rate rises, and from one validation to the next."""


@command(ValueError)
def run_scenes(arguments: Arguments) -> None:
    """Make scenes."""
    shape = (arguments.size, arguments.size)
    made = make_scenes(arguments.folder, range(arguments.count), arguments.seed, shape)
    deque(tqdm(made, total=arguments.count, unit="scene"), 0)


@command(ValueError, TrainingDiverged, advice="; run it again to go on")
def run(arguments: Arguments) -> None:
    """Train."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    files, valid = _scene_files(arguments.scenes), _scene_files(arguments.valid)
    initial = load_model(arguments.initial)
    if not initial.takes_any_bands:
        raise CommandError(f"Model {arguments.initial} is one of fixed bands; start from one of any bands.")
    stage = StageSettings(
        "main",
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        warmup_steps=min(_WARMUP, arguments.steps),
        decay="cosine",
        batch_size=arguments.batch_size,
    )
    settings = TrainSettings(
        stages=(stage,),
        seed=arguments.seed,
        average_decay=0.9985,
        freeze_norm_after=1.0,
        steps_per_epoch=min(_EPOCH, arguments.steps),
        workers=arguments.workers,
    )
    metadata = ModelMetadata(
        name=arguments.out.name,
        description="Any one to eight bands and any pixel scale.",
        architecture=AnyBandSpec(),
        bands=(),
        normalization=BandNoiseSettings(),
        pixel_scale=_PIXEL_SCALE,
        training={"start": initial.metadata.training},
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    output = arguments.out / "model.safetensors"
    with keep_out_others(arguments.out / ".lock", str(output)), training_bar() as report:
        check_unfinished(output, output_files(output)[-1])
        result = train(
            BandSceneFiles(files, arguments.crop_size, arguments.seed),
            metadata,
            settings,
            output,
            initial=initial,
            device=arguments.device,
            validate=BandSceneValidator(lambda number: read_band_scene(valid[number]), len(valid)),
            progress=report,
        )
    figures = {name: round(value, 3) for name, value in result.epochs[-1].items() if isinstance(value, float)}
    print(f"The model is in {output}, its history beside it: {figures}")


def _scene_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise CommandError(f"There are no scenes (*.npz) in {folder}; make some with 'scenes'.")
    return files
