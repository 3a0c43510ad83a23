# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The crops of each step, spread over processes and made ahead."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils.data
from torch import Tensor

from .dataset import BatchSource
from .losses import Crops
from .stages import StageSettings

# Batches that a thread makes ahead: enough to level out how long single crops take.
_AHEAD = 3


class _Batch(NamedTuple):
    """What a process computes in a step."""

    crops: Crops
    """Crops of the process."""

    waited: float
    """Time spent waiting for them (s)."""


def crop_numbers(first: int, stage: StageSettings, rank: int, world_size: int) -> list[int]:
    """Choose the crops of a process in the step that begins with crop ``first``.

    The parts that are computed at the same time are neighbours in the batch, so
    that they are the same for any number of processes.
    """
    part = stage.batch_size // (stage.accumulate * world_size)
    starts = [first + (k * world_size + rank) * part for k in range(stage.accumulate)]
    return [start + i for start in starts for i in range(part)]


@dataclass(frozen=True, eq=False)
class StageCrops(torch.utils.data.Dataset[Any]):
    """The crops of a process by the step of a stage, which begins with crop ``first``."""

    source: BatchSource
    first: int
    steps: int
    stage: StageSettings
    rank: int
    world_size: int

    def __len__(self) -> int:
        return self.steps

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of the crops of a step."""
        return crop_numbers(self.first + step * self.stage.batch_size, self.stage, self.rank, self.world_size)

    def __getitem__(self, step: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        return self.source.crops(self.numbers(step))


def make_batches(crops: StageCrops, workers: int, pin: bool) -> Generator[_Batch, None, None]:
    """Give the crops of a process step by step, made ahead by as many processes, or by a thread.

    They are put into memory from which a GPU copies faster, if that is wanted.
    """
    made = _from_processes(crops, workers, pin) if workers else _from_thread(crops, pin)
    with contextlib.closing(made):
        for step in range(len(crops)):
            began = time.monotonic()
            images, targets = next(made)
            yield _Batch(Crops(images, targets, crops.numbers(step)), time.monotonic() - began)


def _from_processes(crops: StageCrops, workers: int, pin: bool) -> Generator[Any, None, None]:
    loader = torch.utils.data.DataLoader(
        crops,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else the global one is drawn from
    )
    yield from loader


def _from_thread(crops: StageCrops, pin: bool) -> Generator[Any, None, None]:
    def make(step: int) -> Any:
        images, targets = crops[step]
        if pin:
            images = [image.pin_memory() for image in images]
            targets = [{k: v.pin_memory() for k, v in target.items()} for target in targets]
        return images, targets

    pool = ThreadPoolExecutor(1, "maskrcnn-batches")
    try:
        ready = deque(pool.submit(make, step) for step in range(min(_AHEAD, len(crops))))
        for step in range(len(crops)):
            batch = ready.popleft().result()
            if step + _AHEAD < len(crops):
                ready.append(pool.submit(make, step + _AHEAD))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
