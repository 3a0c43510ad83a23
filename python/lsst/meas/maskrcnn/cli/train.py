# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``bin/train``: train a model on simulated scenes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..imaging.normalize import default_settings
from ..network.dataset import CropSettings, CropSource
from ..network.inference import select_device
from ..network.model_file import (
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    NormalizationMetadata,
    read_model,
)
from ..network.psf import widen_input
from ..network.spec import NetworkSpec
from ..network.train import TrainSettings, train
from ..scenes.training_set import make_training_set

__all__ = ["main"]

_BANDS = ("z", "r", "g")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train",
        description="Train the light network on simulated scenes of mixed surveys and depths. "
        "Interrupted, the same command goes on where it was.",
    )
    parser.add_argument("output", type=Path, help="model file to write (.safetensors)")
    parser.add_argument("--scenes", type=Path, required=True, help="folder for the simulated scenes")
    parser.add_argument("--count", type=int, default=600, help="number of scenes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="number of steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="end after this wall time at the latest")
    parser.add_argument("--batch-size", type=int, default=4, help="crops per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="processes and threads (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--initial", type=Path, help="model file to start from")
    parser.add_argument("--name", default="lite", help="name of the model (default: %(default)s)")
    return parser


def _check(arguments: argparse.Namespace) -> MaskRcnnModel | None:
    """Refuse what would fail after hours, and read the model to start from."""
    for name in ("count", "steps", "batch_size", "jobs"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {getattr(arguments, name)} is not possible; give 1 or more.")
    folder = arguments.output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} for the model; make it first.")
    if arguments.initial is None:
        return None
    initial = read_model(arguments.initial)
    initial.check_bands(_BANDS)
    # Thresholds of the architecture may differ, layers may not.
    spec = NetworkSpec.light(len(_BANDS), psf_channels=True)
    light = initial.metadata.model_copy(update={"architecture": spec})
    try:
        MaskRcnnModel(light, widen_input(initial.state, spec.input_planes)).build()
    except (ModelFileError, ValueError, KeyError) as error:
        raise ModelFileError(
            f"Model '{initial.metadata.name}' in {arguments.initial} has another architecture than the light "
            "one that is trained here; start from a model that this command made."
        ) from error
    return initial


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : `~collections.abc.Sequence` [`str`], optional
        Arguments, by default those of the process.

    Returns
    -------
    status : `int`
        0, or 1 if something was refused.
    """
    arguments = _parser().parse_args(argv)
    try:
        initial = _check(arguments)
        device = select_device(arguments.device)
    except (ModelFileError, OSError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.jobs)
    scenes = list(
        tqdm(
            make_training_set(arguments.scenes, arguments.count, arguments.seed, arguments.jobs),
            total=arguments.count,
            desc="scenes",
            unit="scene",
        )
    )
    settings = default_settings("lupton")
    metadata = ModelMetadata(
        name=arguments.name,
        description="Stars and galaxies in ground-based images of 0.5 to 1.5 arcsec seeing, shallow to deep.",
        architecture=NetworkSpec.light(len(_BANDS), psf_channels=True),
        bands=_BANDS,
        normalization=NormalizationMetadata(name="lupton", settings=settings),
        pixel_scale=0.168,
        training={"data": "simulated scenes of this package (random_scene_config)", "seed": arguments.seed},
    )
    source = CropSource(scenes, "lupton", settings, CropSettings(), seed=arguments.seed, psf_channels=True)
    schedule = TrainSettings(
        steps=arguments.steps,
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    with tqdm(total=arguments.steps, desc="training", unit="step") as bar:

        def report(step: int, steps: int, losses: Mapping[str, float]) -> None:
            bar.update(step - bar.n)
            names = {k.removeprefix("loss_"): v for k, v in losses.items() if k.startswith("loss_")}
            bar.set_postfix({k: f"{v:.3f}" for k, v in names.items()})

        train(
            source,
            metadata,
            schedule,
            arguments.output,
            initial=initial,
            device=device,
            progress=report,
        )
    print(f"The model is in {arguments.output}")
    return 0
