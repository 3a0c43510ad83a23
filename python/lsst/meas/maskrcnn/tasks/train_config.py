# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parts of the configuration of a training.

Fields that are handed on to the engine have the names that they have there.
"""

from __future__ import annotations

__all__ = [
    "AugmentConfig",
    "CropConfig",
    "EngineConfig",
    "NetworkConfig",
    "StageConfig",
    "ValidationConfig",
    "published_stages",
    "scratch_stage",
]

import dataclasses
from typing import Any

from pydantic import ValidationError

import lsst.pex.config as pexConfig

from ..network.spec import NetworkSpec
from ..train.augment import AugmentSettings
from ..train.dataset import CropSettings
from ..train.loop import TrainSettings
from ..train.stages import StageSettings, scratch_stages
from ..train.stages import published_stages as stages_of_engine
from .mirrored_config import settings_config


def _mirror(source: Any, name: str, doc: str, leave_out: tuple[str, ...] = ()) -> Any:
    """Make a configuration with the fields and defaults of a dataclass."""
    return settings_config(source, name, doc, __name__, leave_out)


AugmentConfig: Any = _mirror(
    AugmentSettings,
    "AugmentConfig",
    """Changes of the images from one use to the next.

    The fields are those of
    `~lsst.meas.maskrcnn.train.augment.AugmentSettings`; ``set_from`` takes
    those of a whole set, such as ``AugmentSettings.mixture()``.
    """,
)


_CropFields: Any = _mirror(
    CropSettings,
    "_CropFields",
    "Fields of `~lsst.meas.maskrcnn.train.dataset.CropSettings`.",
    leave_out=("crops_per_scene",),
)


class CropConfig(_CropFields):
    """How crops are cut from the patches, and which sources are asked for.

    The fields are those of
    `~lsst.meas.maskrcnn.train.dataset.CropSettings`, and ``cache_mb``.
    """

    crops_per_scene = pexConfig.RangeField(
        doc="Crops in a row that come from one patch, with one realisation of what the augmentations change. "
        "The fewer, the more a batch has to tell; the more, the less often patches are read. None takes two, "
        "or a sixteenth of the patch where that is more.",
        dtype=int,
        default=None,
        optional=True,
        min=1,
    )
    cache_mb = pexConfig.RangeField(
        doc="Memory for patches that were read or normalised (MB).", dtype=float, default=1024.0, min=0.0
    )

    def crop_settings(self, n_pixels: float) -> CropSettings:
        """Put the settings together for the engine.

        Parameters
        ----------
        n_pixels : `float`
            Number of pixels of a patch.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.train.dataset.CropSettings`
            The same for torch-only code.
        """
        crops = self.crops_per_scene
        if crops is None:
            crops = max(2, round(n_pixels / (16 * self.size**2)))
        return CropSettings(**self.values(), crops_per_scene=crops)


_EngineFields: Any = _mirror(
    TrainSettings,
    "_EngineFields",
    "Fields of `~lsst.meas.maskrcnn.train.loop.TrainSettings`.",
    leave_out=("stages", "validation_every", "num_nodes"),
)


class EngineConfig(_EngineFields):
    """How the steps are computed.

    The fields are those of
    `~lsst.meas.maskrcnn.train.loop.TrainSettings`, and ``device``.
    """

    precision = pexConfig.ChoiceField[str](
        doc="Arithmetic of the network.",
        default="auto",
        allowed={
            "auto": "bfloat16 where the device has it in hardware, else float32.",
            "float32": "Single precision.",
            "bfloat16": "Mixed precision.",
        },
    )
    device = pexConfig.ChoiceField[str](
        doc="Where the network learns.",
        default="auto",
        allowed={
            "auto": "The GPU where there is one, else the CPU.",
            "cpu": "The CPU.",
            "cuda": "The GPU; an error where there is none.",
        },
    )


class NetworkConfig(pexConfig.Config):
    """The architecture: one of those that have a name, and changes to it.

    The fields have the names of those of
    `~lsst.meas.maskrcnn.network.spec.NetworkSpec`; None takes the value that
    goes with ``preset``.
    """

    preset = pexConfig.ChoiceField[str](
        doc="Architecture before the changes that the other fields make.",
        default="light",
        allowed={
            "light": "ResNet-18 with a pyramid of 64 channels, which trains and runs on a CPU.",
            "published": "That of Astro R-CNN: ResNet-50 with a pyramid of 256 channels.",
        },
    )
    psf_channels = pexConfig.Field[bool](
        doc="Tell the network the width of the PSF in each band?",
        default=True,
    )
    backbone = pexConfig.ChoiceField[str](
        doc="Residual network under the pyramid.",
        default=None,
        optional=True,
        allowed={name: "A residual network." for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    )
    returned_layers = pexConfig.ListField[int](
        doc="Residual stages that feed the pyramid, from 1 on; stage k has a stride of 2^(k+1) pixels.",
        default=None,
        optional=True,
    )
    fpn_channels = pexConfig.Field[int](
        doc="Channels of every level of the pyramid.", default=None, optional=True
    )
    anchor_sizes = pexConfig.ListField[float](
        doc="Size of the anchors on each level of the pyramid (pixels); there is one level more than there "
        "are returned_layers.",
        default=None,
        optional=True,
    )
    anchor_ratios = pexConfig.ListField[float](
        doc="Height over width of the anchors.", default=None, optional=True
    )
    rpn_batch = pexConfig.Field[int](
        doc="Anchors per image in the loss of the proposals.", default=None, optional=True
    )
    rpn_nms = pexConfig.Field[float](
        doc="IoU of boxes over which the weaker of two proposals is dropped.", default=None, optional=True
    )
    proposals_train = pexConfig.Field[int](
        doc="Proposals kept per image in training.", default=None, optional=True
    )
    proposals_test = pexConfig.Field[int](
        doc="Proposals kept per image in inference.", default=None, optional=True
    )
    roi_batch = pexConfig.Field[int](
        doc="Proposals per image in the losses of the heads.", default=None, optional=True
    )
    roi_positive = pexConfig.Field[float](
        doc="Largest share of those that match a true source.", default=None, optional=True
    )
    roi_sampling = pexConfig.Field[int](
        doc="Points per side of a cell at which features are sampled for the heads.",
        default=None,
        optional=True,
    )
    box_features = pexConfig.Field[int](
        doc="Width of the hidden layers of the box head.", default=None, optional=True
    )
    box_pool = pexConfig.Field[int](
        doc="Side of the pooled features of the box head.", default=None, optional=True
    )
    mask_channels = pexConfig.ListField[int](
        doc="Channels of the convolutions of the mask head, one per convolution.", default=None, optional=True
    )
    mask_pool = pexConfig.Field[int](
        doc="Side of the pooled features of the mask head; masks have twice that.",
        default=None,
        optional=True,
    )
    detection_score = pexConfig.Field[float](
        doc="Smallest score that the model reports unless told otherwise.", default=None, optional=True
    )
    detection_nms = pexConfig.Field[float](
        doc="IoU of boxes over which the weaker of two detections is dropped unless told otherwise.",
        default=None,
        optional=True,
    )
    detections_per_image = pexConfig.Field[int](
        doc="Most detections in a tile unless told otherwise.", default=None, optional=True
    )

    def spec(self, n_bands: int) -> NetworkSpec:
        """Put the architecture together.

        Parameters
        ----------
        n_bands : `int`
            Number of bands.

        Returns
        -------
        spec : `~lsst.meas.maskrcnn.network.spec.NetworkSpec`
            The architecture.

        Raises
        ------
        ValueError
            Raised if the settings do not fit each other.
        """
        make = NetworkSpec.light if self.preset == "light" else NetworkSpec.published
        values = make(n_bands).model_dump()
        for name in NetworkSpec.model_fields:
            given = getattr(self, name, None)
            if name == "anchor_sizes" and given is not None:
                given = [(size,) for size in given]
            if given is not None:
                values[name] = tuple(given) if isinstance(given, pexConfig.listField.List | list) else given
        try:
            return NetworkSpec.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                ": ".join([*[".".join(map(str, e["loc"]))] * bool(e["loc"]), e["msg"]])
                for e in error.errors()
            )
            raise ValueError(f"The architecture is not possible: {problems}") from error

    def validate(self) -> None:
        """Check that the settings fit each other."""
        super().validate()
        try:
            # Nothing that can be wrong depends on the number of bands.
            self.spec(1)
        except ValueError as error:
            raise pexConfig.FieldValidationError(type(self).preset, self, str(error)) from error


class StageConfig(pexConfig.Config):
    """One stage of the schedule; stochastic gradient descent with momentum.

    With gradient g a step is z <- momentum z + g, theta <- theta -
    learning_rate z; every stage starts with z = 0. The fields have the names
    of those of `~lsst.meas.maskrcnn.train.stages.StageSettings`.
    """

    trainable = pexConfig.Field[str](
        doc="Layers that learn: 'all', 'heads' (all but the residual network), or a regular expression that "
        "is searched in the names of the parameters, such as '^rpn|^roi_heads|layer3'.",
        default="all",
    )
    epochs = pexConfig.RangeField(
        doc="Length of the stage in epochs, in each of which as many crops are seen as have the area of all "
        "patches.",
        dtype=int,
        default=10,
        min=1,
    )
    steps = pexConfig.RangeField(
        doc="Length of the stage in steps; None goes by epochs.",
        dtype=int,
        default=None,
        optional=True,
        min=1,
    )
    learning_rate = pexConfig.RangeField(
        doc="Largest learning rate of the stage.", dtype=float, default=1e-3, min=0.0, inclusiveMin=False
    )
    warmup_steps = pexConfig.RangeField(
        doc="Steps over which the learning rate rises linearly from zero.", dtype=int, default=0, min=0
    )
    decay = pexConfig.ChoiceField[str](
        doc="Shape of the learning rate within the stage.",
        default="constant",
        allowed={
            "constant": "It stays.",
            "cosine": "It falls to zero at the end of the stage like a cosine.",
            "step": "A tenth of it after two thirds of the stage, a hundredth after eight ninths.",
        },
    )
    momentum = pexConfig.RangeField(
        doc="Momentum.", dtype=float, default=0.9, min=0.0, max=1.0, inclusiveMax=False
    )
    weight_decay = pexConfig.RangeField(
        doc="Weight decay, on every parameter that learns.", dtype=float, default=1e-4, min=0.0
    )
    gradient_clip = pexConfig.RangeField(
        doc="Largest norm of the gradient.", dtype=float, default=5.0, min=0.0, inclusiveMin=False
    )
    batch_size = pexConfig.RangeField(
        doc="Crops per step, all processes and parts together.", dtype=int, default=16, min=1
    )
    accumulate = pexConfig.RangeField(
        doc="Parts in which the crops of a step are computed one after another, to need less memory.",
        dtype=int,
        default=1,
        min=1,
    )
    augment: Any = pexConfig.ConfigField(doc="How the crops of this stage are changed.", dtype=AugmentConfig)

    def settings(self, name: str) -> StageSettings:
        """Put the settings together for the engine.

        Parameters
        ----------
        name : `str`
            Name of the stage.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.train.stages.StageSettings`
            The same for torch-only code.

        Raises
        ------
        ValueError
            Raised if the settings do not fit each other.
        """
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(StageSettings)
            if field.name not in ("name", "augment")
        }
        if self.steps is not None:
            values["epochs"] = None
        return StageSettings(name, **values, augment=self.augment.settings())


def published_stages() -> dict[str, StageConfig]:
    """Make the published schedule.

    Returns
    -------
    stages : `dict` [`str`, `StageConfig`]
        The stages of
        `~lsst.meas.maskrcnn.train.stages.published_stages`, in their order,
        with the augmentations that were published.
    """
    return {
        settings.name: _stage_config(settings, AugmentSettings.published()) for settings in stages_of_engine()
    }


def scratch_stage() -> StageConfig:
    """Make a stage for random initial weights.

    Returns
    -------
    stage : `StageConfig`
        That of `~lsst.meas.maskrcnn.train.stages.scratch_stages`, with
        augmentations for varied data.
    """
    (settings,) = scratch_stages()
    return _stage_config(settings, AugmentSettings.mixture())


def _stage_config(settings: StageSettings, augment: AugmentSettings) -> StageConfig:
    config = StageConfig()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ("name", "augment") and value is not None:
            setattr(config, field.name, value)
    config.augment.set_from(augment)
    return config


class ValidationConfig(pexConfig.Config):
    """Which patches tell how good the network is, and when."""

    runs = pexConfig.ListField[str](
        doc="Patterns of RUN collections, as the shell has them; their patches are for validation alone.",
        default=["*/validation"],
    )
    excludedRuns = pexConfig.ListField[str](
        doc="Patterns of RUN collections whose patches are not used at all.",
        default=["*/test"],
    )
    fraction = pexConfig.RangeField(
        doc="Share of the patches that is set aside for validation if no collection matches 'runs'. Which "
        "ones depends on their names and 'seed'.",
        dtype=float,
        default=0.1,
        min=0.0,
        max=1.0,
        inclusiveMax=False,
    )
    seed = pexConfig.Field[int](doc="Chooses other patches for validation.", default=0)
    maxPatches = pexConfig.RangeField(
        doc="Most patches that are used for validation; None takes all.",
        dtype=int,
        default=20,
        optional=True,
        min=1,
    )
    every = pexConfig.RangeField(doc="Validate after every so many epochs.", dtype=int, default=1, min=1)
    minArea = pexConfig.RangeField(
        doc="Sources with fewer pixels in their mask need not be found.", dtype=int, default=12, min=1
    )
    minPeakSnr = pexConfig.RangeField(
        doc="Nor need those whose peak is fainter in every band, in units of the noise of a pixel, where "
        "there is noise.",
        dtype=float,
        default=5.0,
        min=0.0,
    )
    tileSize = pexConfig.RangeField(
        doc="Side of the tiles in which the network sees the image (pixels).", dtype=int, default=512, min=64
    )
    tileOverlap = pexConfig.RangeField(
        doc="Pixels that neighbouring tiles share.", dtype=int, default=128, min=0
    )

    def validate(self) -> None:
        """Check that tiles are larger than their overlap."""
        super().validate()
        if self.tileOverlap >= self.tileSize:
            raise pexConfig.FieldValidationError(
                type(self).tileOverlap,
                self,
                f"tileOverlap ({self.tileOverlap}) must be less than tileSize ({self.tileSize}).",
            )
