# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parts of the configuration of a training."""

from __future__ import annotations

from typing import Any

import lsst.pex.config as pexConfig

from ..network.any_band import AnyBandSpec
from ..network.spec import NetworkSpec
from ..train.augment import AugmentSettings
from ..train.dataset import CropSettings
from ..train.stages import StageSettings, TrainSettings
from ..train.stages import published_stages as published_settings
from .config_fields import make_config

# Settings that decide how the training works inside, and not what a user can choose.
_INTERNAL = ("average_decay", "freeze_norm_after", "log_every")

_Augment: Any = make_config(AugmentSettings, "_Augment")
_Crop: Any = make_config(CropSettings, "_Crop")
_Engine: Any = make_config(TrainSettings, "_Engine", ("stages", "validation_every", *_INTERNAL))
_Stage: Any = make_config(StageSettings, "_Stage", ("name",))


class AugmentConfig(_Augment):
    """Changes of the images from one use to the next.

    ``set_from`` takes the values of a whole set, such as
    ``AugmentSettings.published()``.
    """


class CropConfig(_Crop):
    """How crops are cut from the patches, and which sources the network should find."""


class EngineConfig(_Engine):
    """How the steps are computed."""

    device = pexConfig.ChoiceField[str](
        doc="Where the network learns.",
        default="auto",
        allowed={
            "auto": "The GPU where there is one, else the CPU.",
            "cpu": "The CPU.",
            "cuda": "The GPU; an error where there is none.",
        },
    )


class StageConfig(_Stage):
    """One stage of the schedule; stochastic gradient descent with momentum."""


class NetworkConfig(pexConfig.Config):
    """The architecture of a network."""

    preset = pexConfig.ChoiceField[str](
        doc="Architecture.",
        default="light",
        allowed={
            "any": "The network of the model that comes with the package: any bands and pixel scale.",
            "light": "Fixed bands; ResNet-18 with a pyramid of 64 channels, which trains and runs on a CPU.",
            "published": "Fixed bands; that of Astro R-CNN: ResNet-50 with a pyramid of 256 channels.",
        },
    )
    backbone = pexConfig.ChoiceField[str](
        doc="Residual network under the pyramid; None takes that of the preset. For fixed bands.",
        default=None,
        optional=True,
        allowed={name: "A residual network." for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    )
    psf_channels = pexConfig.Field[bool](
        doc="Give a network of fixed bands the width of the PSF in each?", default=True
    )

    def spec(self, n_bands: int) -> NetworkSpec | AnyBandSpec:
        """Make the architecture for a number of bands."""
        if self.preset == "any":
            return AnyBandSpec()
        spec = NetworkSpec.light(n_bands) if self.preset == "light" else NetworkSpec.published(n_bands)
        changes = {"psf_channels": self.psf_channels, "backbone": self.backbone or spec.backbone}
        return spec.model_copy(update=changes)


class ValidationConfig(pexConfig.Config):
    """Which patches are for validation, and how often they are used."""

    runs = pexConfig.ListField[str](
        doc="Patterns of RUN collections, as the shell has them; their patches are for validation alone.",
        default=["*/validation"],
    )
    excluded_runs = pexConfig.ListField[str](
        doc="Patterns of RUN collections whose patches are not used at all.", default=["*/test"]
    )
    fraction = pexConfig.RangeField(
        doc="Share of the patches that is set aside for validation if no collection matches 'runs'. Which "
        "ones depends on their names alone.",
        dtype=float,
        default=0.1,
        min=0.0,
        max=1.0,
        inclusiveMax=False,
    )
    max_patches = pexConfig.RangeField(
        doc="Most patches that are used for validation; None takes all.",
        dtype=int,
        default=20,
        optional=True,
        min=1,
    )
    every = pexConfig.RangeField(doc="Validate after every so many epochs.", dtype=int, default=1, min=1)


def published_stages() -> dict[str, StageConfig]:
    """Make the stages of `~lsst.meas.maskrcnn.train.stages.published_stages`, by name and in their order."""
    return {settings.name: _stage_config(settings) for settings in published_settings()}


def _stage_config(settings: StageSettings) -> StageConfig:
    config = StageConfig()
    config.set_from(settings)
    return config
