# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The crops of each step, spread over processes and made ahead."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator
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
    """Choose the crops of a process in a step.

    Parameters
    ----------
    first : `int`
        Number of the first crop of the batch.
    stage : `StageSettings`
        The stage.
    rank, world_size : `int`
        Number of the process, and number of all processes.

    Returns
    -------
    numbers : `list` [`int`]
        The parts that are computed at the same time are neighbours in the
        batch, so that they are the same for any number of processes.
    """
    part = stage.batch_size // (stage.accumulate * world_size)
    starts = [first + (k * world_size + rank) * part for k in range(stage.accumulate)]
    return [start + i for start in starts for i in range(part)]


class StageCrops(torch.utils.data.Dataset[Any]):
    """The crops of a process by the step of a stage.

    Parameters
    ----------
    source : `BatchSource`
        Where crops come from.
    first : `int`
        Number of the first crop.
    steps : `int`
        Number of steps.
    stage : `StageSettings`
        The stage.
    rank, world_size : `int`
        Number of the process, and number of all processes.
    """

    def __init__(
        self, source: BatchSource, first: int, steps: int, stage: StageSettings, rank: int, world_size: int
    ):
        self.source = source
        self.first = first
        self.steps = steps
        self.stage = stage
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.steps

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of the crops of a step.

        Parameters
        ----------
        step : `int`
            The step.

        Returns
        -------
        numbers : `list` [`int`]
        """
        return crop_numbers(self.first + step * self.stage.batch_size, self.stage, self.rank, self.world_size)

    def __getitem__(self, step: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        return self.source.crops(self.numbers(step))


def make_batches(crops: StageCrops, workers: int, pin: bool) -> Generator[_Batch, None, None]:
    """Give the crops of a process step by step, made ahead.

    Parameters
    ----------
    crops : `StageCrops`
        The crops.
    workers : `int`
        Processes that make them; with 0 a thread does.
    pin : `bool`
        Put them into memory from which a GPU copies faster.

    Yields
    ------
    batch : `tuple`
        ``crops``, those of a step, and ``waited``, the time spent waiting for
        them (s).
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
    ready: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for step in range(len(crops)):
                images, targets = crops[step]
                if pin:
                    images = [image.pin_memory() for image in images]
                    targets = [{k: v.pin_memory() for k, v in target.items()} for target in targets]
                put((images, targets))
                if stop.is_set():
                    return
        except BaseException as error:  # handed over to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=work, name="maskrcnn-batches", daemon=True)
    thread.start()
    try:
        for _ in range(len(crops)):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=10.0)
