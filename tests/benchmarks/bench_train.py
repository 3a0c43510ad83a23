# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time of a training step with crops made on the fly, and with crops that are
in memory already.

Run as ``python tests/benchmarks/bench_train.py [--steps 20] [--size 256]
[--batch-size 4] [--workers 0] [--device auto]``. The first should not take more
than 1.15 times the second. Scenes are simulated into a temporary folder, or
into the one given with ``--scenes``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.network.model_file import ModelMetadata
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.loop import train
from lsst.meas.maskrcnn.train.losses import Crops, LossNetwork
from lsst.meas.maskrcnn.train.scene_sources import SceneFiles
from lsst.meas.maskrcnn.train.stages import StageSettings, TrainSettings
from lsst.meas.maskrcnn.train.training_set import make_training_set

BANDS = ("z", "r", "g")


class InMemory:
    """Crops of a source, made beforehand."""

    def __init__(self, source: CropSource, count: int):
        self.n_images = source.n_images
        self._crops = [source.crops([number]) for number in range(count)]

    def describe(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def crops(self, numbers: Sequence[int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        chosen = [self._crops[number] for number in numbers]
        return [images[0] for images, _ in chosen], [targets[0] for _, targets in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256, help="side of a crop (px)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--count", type=int, default=8, help="number of scenes")
    parser.add_argument("--scenes", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="processes that make crops")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--published", action="store_true", help="ResNet-50 instead of the light network")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as folder:
        scenes = SceneFiles(make_training_set(arguments.scenes or Path(folder), arguments.count, 1, 1))
        spec = NetworkSpec.published(3) if arguments.published else NetworkSpec.light(3, psf_channels=True)
        metadata = ModelMetadata(
            name="bench", architecture=spec, bands=BANDS, normalization=LuptonSettings(), pixel_scale=0.168
        )

        def new_source() -> CropSource:
            return CropSource(
                scenes,
                LuptonSettings(),
                CropSettings(size=arguments.size),
                seed=1,
                psf_channels=spec.psf_channels,
            )

        total = arguments.steps * arguments.batch_size
        began = time.perf_counter()
        memory = InMemory(new_source(), total)
        print(f"a crop takes {(time.perf_counter() - began) / total * 1e3:.1f} ms to make, one after another")
        settings = TrainSettings(
            stages=(StageSettings(steps=arguments.steps, batch_size=arguments.batch_size),),
            precision=arguments.precision,
            log_every=1,
            steps_per_epoch=10 * arguments.steps,
            workers=arguments.workers,
        )

        times: dict[str, list[float]] = {}
        waits = {}
        # Twice, because other programs may run at the same time; always with an empty cache.
        for turn in range(2):
            for name, source in (("made on the fly", new_source()), ("in memory", memory)):
                result = train(
                    source,
                    metadata,
                    replace(settings, workers=0) if source is memory else settings,
                    Path(folder) / f"{name.replace(' ', '_')}{turn}.safetensors",
                    device=arguments.device,
                )
                rows = result.history[2:]
                times.setdefault(name, []).extend(row["seconds"] for row in rows)
                waits[name] = float(np.mean([row["data_seconds"] for row in rows]))
        for name, seconds in times.items():
            print(
                f"{name}: {np.median(seconds):.4f} s a step (median), {np.mean(seconds):.4f} s (mean), "
                f"{waits[name]:.4f} s of it waiting for crops"
            )
        first, second = (np.mean(values) for values in times.values())
        print(f"ratio of the means {first / second:.3f}")

        network = LossNetwork(result.model.build().train(), seed=1)
        crops = Crops(*memory.crops(range(arguments.batch_size)), list(range(arguments.batch_size)))
        for name, run in (
            ("losses by image", lambda: sum(value.mean() for value in network(crops).values())),
            ("losses of torchvision", lambda: sum(network.network(crops.images, crops.targets).values())),
        ):
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                run().backward()
                seconds.append(time.perf_counter() - began)
            print(f"{name}: {min(seconds):.4f} s forward and backward (CPU, float32)")


if __name__ == "__main__":
    main()
