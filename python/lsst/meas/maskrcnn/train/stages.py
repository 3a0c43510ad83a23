# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stages of a training: which layers learn, how long, and how fast."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = [
    "DECAYS",
    "StageSettings",
    "learning_rate",
    "published_stages",
    "scratch_stages",
    "set_trainable",
    "trainable_names",
]

DECAYS = ("constant", "cosine", "step")
"""Shapes of the learning rate within a stage."""

_BODY = "backbone.body."

# Where a stage with decay "step" lowers the learning rate tenfold, as parts of the stage: the schedule of
# Detectron (60,000 and 80,000 of 90,000 steps).
_DROPS = (2 / 3, 8 / 9)


@dataclass(frozen=True)
class StageSettings:
    """One stage of a training by stochastic gradient descent.

    With gradient g (clipped, then with the weight decay added) a step is
    z <- momentum z + g, theta <- theta - learning_rate z. Every stage starts
    with z = 0.

    Raises
    ------
    ValueError
        Raised if a setting is out of range, or if not exactly one of
        ``epochs`` and ``steps`` is given.
    """

    name: str
    """Name of the stage, which appears in the history."""

    trainable: str = "all"
    """Layers that learn: ``all``; ``heads``, everything but the residual
    network (the feature pyramid, the proposals and the two heads, as in Astro
    R-CNN and the Mask R-CNN it was made with); or a regular expression that is
    searched in the names of the parameters, such as
    ``^(rpn|roi_heads)|body\\.layer3``. Parameters of the others do not change,
    nor do the statistics of their batch normalisation."""

    epochs: int | None = None
    """Length in epochs, if ``steps`` is not given."""

    steps: int | None = None
    """Length in steps."""

    learning_rate: float = 1e-3
    """Largest learning rate."""

    warmup_steps: int = 0
    """Steps over which it rises linearly to that."""

    decay: str = "constant"
    """``constant``; ``cosine``, to zero at the end of the stage; or ``step``, a
    tenth after two thirds and a hundredth after eight ninths."""

    momentum: float = 0.9
    """Momentum, beta."""

    weight_decay: float = 1e-4
    """Weight decay, on every parameter that learns."""

    gradient_clip: float = 5.0
    """Largest norm of the gradient over all parameters."""

    batch_size: int = 16
    """Crops per step, all processes and parts together."""

    accumulate: int = 1
    """Parts in which the crops of a step are computed one after another, to
    need less memory; each is normalised by its own statistics in a batch
    normalisation that learns."""

    augment: Any = None
    """`AugmentSettings` for the crops of this stage; `None` leaves the
    source's own."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a stage has no name; give it one")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"stage '{self.name}' has epochs={self.epochs} and steps={self.steps}; give one of the two"
            )
        for name in ("epochs", "steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of stage '{self.name}' must be at least 1, given {value}")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} of stage '{self.name}' must be positive, given {value}")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} of stage '{self.name}' must not be negative, given {getattr(self, name)}"
                )
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(
                f"momentum of stage '{self.name}' must be at least 0 and below 1, given {self.momentum}"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay of stage '{self.name}' is '{self.decay}', wanted one of {DECAYS}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} of stage '{self.name}' is no multiple of accumulate "
                f"{self.accumulate}"
            )
        if self.trainable not in ("heads", "all"):
            try:
                re.compile(self.trainable)
            except re.error as error:
                raise ValueError(
                    f"trainable of stage '{self.name}' is '{self.trainable}', wanted 'heads', 'all' or a "
                    f"regular expression: {error}"
                ) from error

    def steps_per_epoch(self, n_images: int) -> int:
        """Count the steps in which an epoch's images are seen.

        Parameters
        ----------
        n_images : `int`
            Images in an epoch.

        Returns
        -------
        steps : `int`
            The last batch of an epoch may reach into the next one.
        """
        return -(-n_images // self.batch_size)


def published_stages() -> tuple[StageSettings, ...]:
    """Make the schedule of Astro R-CNN (Burke et al. 2019, MNRAS 490, 3952).

    Returns
    -------
    stages : `tuple` [`StageSettings`]
        15 epochs of the heads at 1e-3, then all layers for 10 epochs at 1e-4,
        10 at 1e-5 and 15 at 1e-6. It expects a network that was trained
        before, on anything: the residual network is still in the first stage.
    """
    return (
        StageSettings("heads", trainable="heads", epochs=15, learning_rate=1e-3),
        StageSettings("all1", epochs=10, learning_rate=1e-4),
        StageSettings("all2", epochs=10, learning_rate=1e-5),
        StageSettings("all3", epochs=15, learning_rate=1e-6),
    )


def scratch_stages(steps: int = 10_000, batch_size: int = 4) -> tuple[StageSettings, ...]:
    """Make the schedule for random initial weights.

    Parameters
    ----------
    steps : `int`
        Number of steps.
    batch_size : `int`
        Crops per step.

    Returns
    -------
    stages : `tuple` [`StageSettings`]
        One stage of all layers, with a warm-up to 0.02 and a cosine decay.
    """
    return (
        StageSettings(
            "scratch",
            steps=steps,
            learning_rate=0.02,
            warmup_steps=min(300, steps),
            decay="cosine",
            batch_size=batch_size,
        ),
    )


def learning_rate(stage: StageSettings, step: int, fraction: float) -> float:
    """Find the learning rate of a step.

    Parameters
    ----------
    stage : `StageSettings`
        The stage.
    step : `int`
        Steps of the stage that are done.
    fraction : `float`
        Part of the stage that is done; step over length, or more where the
        wall time is limited.

    Returns
    -------
    rate : `float`
    """
    rate = stage.learning_rate
    if stage.decay == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
    elif stage.decay == "step":
        rate *= 0.1 ** sum(fraction >= drop for drop in _DROPS)
    return rate * min(1.0, (step + 1) / max(stage.warmup_steps, 1))


def trainable_names(names: Sequence[str], trainable: str) -> list[str]:
    """Choose the parameters that learn.

    Parameters
    ----------
    names : `~collections.abc.Sequence` [`str`]
        Names of all parameters.
    trainable : `str`
        As in `StageSettings`.

    Returns
    -------
    chosen : `list` [`str`]
        In the order given.

    Raises
    ------
    ValueError
        Raised if none is chosen.
    """
    if trainable == "all":
        return list(names)
    if trainable == "heads":
        return [name for name in names if not name.startswith(_BODY)]
    chosen = [name for name in names if re.search(trainable, name)]
    if not chosen:
        groups = sorted({".".join(name.split(".")[:3]) for name in names})
        raise ValueError(
            f"trainable is '{trainable}', which is found in the name of no parameter; their names start with "
            f"{', '.join(groups)}"
        )
    return chosen


def set_trainable(network: nn.Module, trainable: str, freeze_norm: bool = False) -> list[str]:
    """Freeze all but some layers of a network in training.

    Parameters
    ----------
    network : `torch.nn.Module`
        The network; it is put into training mode. Frozen parameters ask for
        no gradient, and batch normalisations without a parameter that learns
        are put into evaluation mode.
    trainable : `str`
        As in `StageSettings`.
    freeze_norm : `bool`
        Put every batch normalisation into evaluation mode.

    Returns
    -------
    names : `list` [`str`]
        Names of the parameters that learn.

    Raises
    ------
    ValueError
        Raised if none learns.
    """
    parameters = dict(network.named_parameters())
    names = trainable_names(list(parameters), trainable)
    chosen = set(names)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and (
            freeze_norm or not any(p.requires_grad for p in module.parameters(recurse=False))
        ):
            module.eval()
    return names
