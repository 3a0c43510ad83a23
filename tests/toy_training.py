# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small network and endless small images, for the tests of the training.

Run as ``python tests/toy_training.py OUTPUT PRECISION [STEP]`` it trains in a
process of its own, or under ``torchrun`` in several (with frozen statistics of
the batch normalisation, which processes on CPUs do not share), and prints every
step; at the step given it waits to be killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.network.model_file import ModelMetadata
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.loop import train
from lsst.meas.maskrcnn.train.stages import StageSettings, TrainSettings

SPEC = NetworkSpec(
    in_channels=1,
    backbone="resnet18",
    returned_layers=(1,),
    fpn_channels=8,
    anchor_sizes=((12.0,), (24.0,)),
    rpn_batch=64,
    proposals_train=50,
    proposals_test=50,
    roi_batch=32,
    roi_sampling=1,
    box_features=16,
    mask_channels=(8,),
)

METADATA = ModelMetadata(
    name="toy", architecture=SPEC, bands=("r",), normalization=LuptonSettings(), pixel_scale=0.2
)

STAGES = (
    StageSettings("heads", trainable="heads", steps=4, learning_rate=0.01, batch_size=4),
    StageSettings("all", epochs=2, learning_rate=0.02, warmup_steps=3, decay="cosine", batch_size=4),
    StageSettings("layer", trainable="layer1|rpn", steps=3, learning_rate=0.01, batch_size=4, accumulate=2),
)


class ToySource:
    """Bright squares, small ones of class 1 and large ones of class 2."""

    def __init__(self, n_images: int = 12, seed: int = 3, broken: Sequence[int] = ()):
        self.n_images = n_images
        self.seed = seed
        self.broken = tuple(broken)

    def describe(self) -> dict[str, Any]:
        return {"kind": "toy", "seed": self.seed}

    def names(self, numbers: Sequence[int]) -> list[str]:
        return [f"image{number % self.n_images}" for number in numbers]

    def crops(self, numbers: Sequence[int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        images, targets = zip(*(self._crop(number) for number in numbers), strict=True)
        return list(images), list(targets)

    def _crop(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        height, width = 48, 64
        rng = np.random.default_rng([self.seed, number])
        image = rng.normal(0.0, 0.05, (1, height, width)).astype(np.float32)
        boxes, labels, masks = [], [], []
        for _ in range(int(rng.integers(0, 5))):
            side = int(rng.integers(8, 20))
            y, x = int(rng.integers(height - side)), int(rng.integers(width - side))
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + side, x : x + side] = 1
            image[0] += mask
            masks.append(mask)
            boxes.append([x, y, x + side, y + side])
            labels.append(1 if side < 14 else 2)
        if number in self.broken:
            image[0, 5, 7] = np.nan
        return torch.from_numpy(image), {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, height, width)),
        }


class Recorder:
    """Keeps the float32 weights at the end of each epoch.

    Parameters
    ----------
    path : `pathlib.Path`, optional
        Where to write the last ones to.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.states: list[dict[str, Tensor]] = []
        self.figures = lambda: {"ap50_star": 0.25}

    def __call__(self, network: torch.nn.Module) -> dict[str, float]:
        self.states.append(
            {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
        )
        if self.path is not None:
            safetensors.torch.save_file(self.states[-1], self.path)
        return self.figures()


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Boxes around masks, (source, y, x), none of them empty: [x0, y0, x1, y1], half open, float32."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        y, x = np.nonzero(mask)
        box[:] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return boxes


def main(output: str, precision: str, last: str = "", freeze_norm_after: float = 0.6) -> None:
    def report(step: int, steps: int, row: Mapping[str, Any]) -> None:
        print(f"{row['kind']} {step} of {steps}", flush=True)
        if str(step) == last:
            time.sleep(60.0)

    torch.set_num_threads(1)
    if "LOCAL_WORLD_SIZE" in os.environ:
        freeze_norm_after = 0.0
    settings = TrainSettings(
        stages=STAGES,
        precision=precision,
        checkpoint_minutes=0.0,
        log_every=1,
        freeze_norm_after=freeze_norm_after,
    )
    recorder = Recorder(Path(output).with_suffix(".float32"))
    train(ToySource(), METADATA, settings, output, device="cpu", validate=recorder, progress=report)


if __name__ == "__main__":
    main(*sys.argv[1:])
