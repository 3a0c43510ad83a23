# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``bin/train_any_band``: make scenes for a network that takes any bands, and
train it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..network.model_file import ModelFileError, load_model
from ..train.any_band_loop import AnyBandTrainSettings, train_any_band
from ..train.band_scenes import make_scenes
from ..train.checkpoint import CheckpointError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_any_band", description="Train a network that takes any bands."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="simulate scenes; those that are there are kept")
    scenes.add_argument("folder", type=Path)
    scenes.add_argument("--count", type=int, default=2000, help="default: %(default)s")
    scenes.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    scenes.add_argument("--size", type=int, default=288, help="side of a scene, px (default: %(default)s)")
    train = commands.add_parser("train", help="train, or go on with an interrupted training")
    for name in ("scenes", "valid", "out"):
        train.add_argument(f"--{name}", type=Path, required=True)
    train.add_argument("--initial", default="any", help="model to start from (default: %(default)s)")
    train.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    for field in dataclasses.fields(AnyBandTrainSettings):
        default: Any = field.default
        option = f"--{field.name.replace('_', '-')}"
        train.add_argument(option, type=type(default), default=default, help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make scenes or train.

    Parameters
    ----------
    argv : `~collections.abc.Sequence` [`str`], optional
        Arguments; by default those of the command line.

    Returns
    -------
    status : `int`
        Exit status.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.command == "scenes":
        shape = (arguments.size, arguments.size)
        made = make_scenes(arguments.folder, range(arguments.count), arguments.seed, shape)
        for _ in tqdm(made, total=arguments.count, unit="scene"):
            pass
        return 0
    torch.set_num_threads(arguments.threads)
    names = [field.name for field in dataclasses.fields(AnyBandTrainSettings)]
    try:
        settings = AnyBandTrainSettings(**{name: getattr(arguments, name) for name in names})
        train_any_band(
            arguments.scenes, arguments.valid, arguments.out, settings, load_model(arguments.initial)
        )
    except (ValueError, FileNotFoundError, ModelFileError, CheckpointError) as error:
        print(f"train_any_band: {error}", file=sys.stderr)
        return 1
    return 0
