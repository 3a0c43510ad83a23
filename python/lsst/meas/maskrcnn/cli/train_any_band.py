# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn train-any-band``: make scenes for a network that takes any bands, and
train it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque

import torch
from tqdm import tqdm

from ..network.model_file import ModelFileError, load_model
from ..train.any_band_loop import AnyBandTrainSettings, train_any_band
from ..train.band_scenes import make_scenes
from ..train.checkpoint import CheckpointError
from .command import Arguments, run_command


def run_scenes(arguments: Arguments) -> int:
    """Make scenes; return the exit status."""
    shape = (arguments.size, arguments.size)
    made = make_scenes(arguments.folder, range(arguments.count), arguments.seed, shape)
    return run_command(lambda: deque(tqdm(made, total=arguments.count, unit="scene"), 0), (ValueError,))


def run(arguments: Arguments) -> int:
    """Train; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return run_command(lambda: _train(arguments), (ValueError, ModelFileError, CheckpointError))


def _train(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(AnyBandTrainSettings)}
    settings = AnyBandTrainSettings(**{name: value for name, value in given.items() if value is not None})
    train_any_band(arguments.scenes, arguments.valid, arguments.out, settings, load_model(arguments.initial))
