# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Schedule of a training: which layers learn, how long, and how fast."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ..images.settings import settings

MOMENTUM = 0.9
"""Momentum of the gradient descent, as in Astro R-CNN (Burke et al. 2019, MNRAS
490, 3952) (`float`)."""

WEIGHT_DECAY = 1e-4
"""Weight decay, on every parameter that learns; from the same work (`float`)."""

GRADIENT_CLIP = 5.0
"""Largest norm of the gradient over all parameters; from the same work
(`float`)."""

# All but the residual network are heads: the feature pyramid, the proposals, the boxes and the masks, as in
# Astro R-CNN and the Mask R-CNN that it was made with. The others are those of networks for any bands.
_RESIDUAL_NETWORK = ("backbone.body.", "stem.", "norm.", "body.")

BAND_WEIGHT_DECAY = 0.01
"""Weight decay of networks for any bands."""

LARGEST_ADAM_RATE = 5e-3
"""Learning rate of these above which nothing is learned: ten times that of the model of the package."""

# Where a stage with decay "step" lowers the learning rate tenfold, as parts of the stage: the schedule of
# Detectron (60,000 and 80,000 of 90,000 steps).
_DROPS = (2 / 3, 8 / 9)


@settings
class StageSettings:
    """One stage of a training by stochastic gradient descent.

    With gradient g (clipped, then with the weight decay added) a step is
    z <- momentum z + g, theta <- theta - learning_rate z. Every stage starts
    with z = 0. Networks for any bands take steps of AdamW (Loshchilov & Hutter
    2019, ICLR), for which learning rates are a tenth and less of those.
    """

    name: Annotated[str, Field(min_length=1, description="Name of the stage in the history.")] = "stage"
    trainable: Annotated[
        str,
        Field(
            description="Layers that learn: 'all', 'heads' (all but the residual network), or a regular "
            "expression that is searched in the names of the parameters, such as "
            "'^rpn|^roi_heads|layer3'. The statistics of the batch normalisation of other layers do not "
            "change either."
        ),
    ] = "all"
    epochs: Annotated[int, Field(ge=1, description="Length of the stage in epochs.")] = 10
    steps: Annotated[
        int | None, Field(ge=1, description="Length of the stage in steps; None takes the epochs.")
    ] = None
    learning_rate: Annotated[float, Field(gt=0, description="Largest learning rate of the stage.")] = 1e-3
    warmup_steps: Annotated[
        int, Field(ge=0, description="Steps over which the learning rate rises linearly from zero.")
    ] = 0
    decay: Annotated[
        Literal["constant", "cosine", "step"],
        Field(
            description="Shape of the learning rate within the stage.",
            json_schema_extra={
                "constant": "It stays.",
                "cosine": "It falls to zero at the end of the stage like a cosine.",
                "step": "A tenth of it after two thirds of the stage, a hundredth after eight ninths.",
            },
        ),
    ] = "constant"
    batch_size: Annotated[
        int, Field(ge=1, description="Crops per step, of all processes and parts together.")
    ] = 16
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            description="Parts in which the crops of a step are computed one after another, to need less "
            "memory; a batch normalisation that learns uses the statistics of a part.",
        ),
    ] = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate is {self.accumulate}, of which batch_size {self.batch_size} of stage "
                f"'{self.name}' is no multiple"
            )
        if self.trainable not in ("heads", "all"):
            try:
                re.compile(self.trainable)
            except re.error as error:
                raise ValueError(
                    f"trainable is '{self.trainable}', wanted 'heads', 'all' or a regular expression: {error}"
                ) from error

    def steps_per_epoch(self, n_images: int) -> int:
        """Count the steps in which the images of an epoch are used."""
        return -(-n_images // self.batch_size)


def published_stages() -> tuple[StageSettings, ...]:
    """Make the schedule of Astro R-CNN (Burke et al. 2019, MNRAS 490, 3952).

    It expects a network that was trained before, on anything: the first stage
    leaves the residual network as it is.
    """
    return (
        StageSettings("heads", trainable="heads", epochs=15, learning_rate=1e-3),
        StageSettings("all1", epochs=10, learning_rate=1e-4),
        StageSettings("all2", epochs=10, learning_rate=1e-5),
        StageSettings("all3", epochs=15, learning_rate=1e-6),
    )


@settings
class TrainSettings:
    """A training by stochastic gradient descent in stages."""

    stages: Annotated[
        tuple[StageSettings, ...], Field(min_length=1, description="The stages in their order.")
    ] = published_stages()
    seed: Annotated[
        int, Field(ge=0, description="Random seed of weights, of crops, and of what is sampled in a crop.")
    ] = 1
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="Arithmetic of the network.",
            json_schema_extra={
                "auto": "bfloat16 where the device has it in hardware, else float32.",
                "float32": "Single precision.",
                "bfloat16": "Mixed precision.",
            },
        ),
    ] = "auto"
    average_decay: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Largest decay per step of the running average of the weights that is saved; in the "
            "first n steps it reaches over the last tenth of them. 0 saves the weights of the last step.",
        ),
    ] = 0.998
    freeze_norm_after: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Part of the schedule after which the statistics of the batch normalisation stay as "
            "they are. Before, every batch is normalised by its own, on which a network must not come to "
            "rely: those of a noise-free and of a noisy image differ.",
        ),
    ] = 0.6
    steps_per_epoch: Annotated[
        int | None, Field(ge=1, description="Steps in an epoch; None takes as many as use all images once.")
    ] = None
    minutes: Annotated[
        float | None,
        Field(
            gt=0,
            description="Wall time after which to end at the latest (min). Where it is nearer than the last "
            "step, the whole schedule is shortened to fit, so that the speed of the machine decides the "
            "learning rates.",
        ),
    ] = None
    checkpoint_minutes: Annotated[
        float,
        Field(
            ge=0,
            description="Time between checkpoints (min). There is one at the end of each epoch too, unless "
            "writing takes more than a twentieth of the time.",
        ),
    ] = 5.0
    validation_every: Annotated[
        int, Field(ge=0, description="Epochs from one validation to the next; 0 for none.")
    ] = 1
    patience: Annotated[
        int | None,
        Field(
            ge=1,
            description="Validations without a higher AP50 after which the training ends; None for never.",
        ),
    ] = None
    log_every: Annotated[int, Field(ge=1, description="Steps that make a row of the history.")] = 20
    workers: Annotated[
        int,
        Field(
            ge=0,
            description="Processes that make crops, per device, started anew for each stage; with 0 a thread "
            "does, which is enough for a CPU.",
        ),
    ] = 0

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages have the names {names}; give each its own")

    def stage_steps(self, n_images: int) -> list[int]:
        """Count the steps of each stage."""
        return [
            stage.steps or stage.epochs * (self.steps_per_epoch or stage.steps_per_epoch(n_images))
            for stage in self.stages
        ]


def learning_rate(stage: StageSettings, step: int, fraction: float) -> float:
    """Compute the learning rate after a number of steps of a stage, of which this fraction is done."""
    rate = stage.learning_rate
    if stage.decay == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
    elif stage.decay == "step":
        rate *= 0.1 ** sum(fraction >= drop for drop in _DROPS)
    return rate * min(1.0, (step + 1) / max(stage.warmup_steps, 1))


def _trainable_names(names: Sequence[str], trainable: str) -> list[str]:
    """Choose the parameters that learn; the names stay in their order."""
    if trainable == "all":
        return list(names)
    if trainable == "heads":
        return [name for name in names if not name.startswith(_RESIDUAL_NETWORK)]
    chosen = [name for name in names if re.search(trainable, name)]
    if not chosen:
        groups = sorted({".".join(name.split(".")[:3]) for name in names})
        raise ValueError(
            f"trainable is '{trainable}', which is found in the name of no parameter; their names start with "
            f"{', '.join(groups)}"
        )
    return chosen


def set_trainable(network: nn.Module, trainable: str, freeze_norm: bool = False) -> list[str]:
    """Put a network into training mode, freeze all but some layers, and return the parameters that learn.

    Frozen parameters have no gradient, and batch normalisations without a parameter
    that learns, or all with ``freeze_norm``, are put into evaluation mode.
    """
    parameters = dict(network.named_parameters())
    names = _trainable_names(list(parameters), trainable)
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
