# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connections and configuration of the training task."""

from __future__ import annotations

__all__ = ["MaskRcnnTrainConfig", "MaskRcnnTrainConnections"]

import re
from collections.abc import Iterable
from typing import Any

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT

from ..catalogs.exposures import InputError
from ..train.augment import AugmentSettings
from ..train.stages import TrainSettings
from .connections import BAND, PATCH, SKYMAP, deferred_input, named_output
from .normalize import normalizeRegistry
from .train_config import (
    AugmentConfig,
    CropConfig,
    EngineConfig,
    NetworkConfig,
    StageConfig,
    ValidationConfig,
    published_stages,
)

# An item of a field, as in stages['heads'].
_ITEM = re.compile(r"""(?P<field>\w+)\[(?P<quote>['"])(?P<key>.+)(?P=quote)\]""")


class TrainingDivergedError(InputError):
    """The loss of a step on crops of some images is not finite.

    The checkpoint is the last good state; empty if there is none that lasts.
    """

    def __init__(self, message: str, step: int, images: Iterable[str], checkpoint: str) -> None:
        self.step = step
        self.images = list(images)
        self.checkpoint = checkpoint
        super().__init__(message, step=step, images=" ".join(self.images), checkpoint=checkpoint)


class MaskRcnnTrainConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=SKYMAP,
    defaultTemplates={"coaddName": "deep", "outputName": "maskRcnnTraining"},
):
    """Inputs and outputs of `MaskRcnnTrainTask`.

    The model has no dimensions, so that a pipeline that finds sources takes it
    from the collection where this one has put it. The model to start from is
    a dataset of another name, as a pipeline cannot make what it needs before.
    Inputs that the configuration does not want are left out.
    """

    exposures = deferred_input(
        "Coadds of all patches, in the bands of the model; other bands are not read.",
        "{coaddName}Coadd_calexp",
        "ExposureF",
        BAND,
    )
    truth = deferred_input(
        "The sources of the patches: classes, fluxes, and masks as footprints.",
        "maskRcnn_truth",
        "SourceCatalog",
        PATCH,
    )
    truthImages = deferred_input(
        "The light of the sources alone, without noise.", "maskRcnn_truthImage", "ExposureF", BAND
    )
    initialModel = cT.PrerequisiteInput(
        doc="Model to start from.", name="maskRcnnInitialModel", storageClass="MaskRcnnModel", dimensions=()
    )
    model = cT.Output(
        doc="The trained network and how to use it.",
        name="maskRcnnModel",
        storageClass="MaskRcnnModel",
        dimensions=(),
    )
    steps = named_output("steps", "Losses and learning rate of the steps.")
    epochs = named_output(
        "epochs", "Means of the losses over epochs, and the average precision on the validation patches."
    )
    plot = named_output("plot", "Losses, learning rate and average precision against the step.", "Plot")

    def __init__(self, *, config: MaskRcnnTrainConfig) -> None:
        super().__init__(config=config)
        if not config.use_truth_images:
            del self.truthImages
        if not config.use_initial_model:
            del self.initialModel
        if not config.do_plot:
            del self.plot


class MaskRcnnTrainConfig(pipeBase.PipelineTaskConfig, pipelineConnections=MaskRcnnTrainConnections):
    """Configuration of `MaskRcnnTrainTask`.

    Stages can be named with brackets where fields are, as in
    ``-c maskRcnnTrain:stages['heads'].learning_rate=1e-4``.
    """

    name = pexConfig.Field[str](doc="Short name of the model.", default="maskRcnn")
    description = pexConfig.Field[str](doc="What the model is for, in a sentence.", default="")
    bands = pexConfig.ListField[str](
        doc="Bands in the order of the network's input. None takes those of the model to start from, or z, "
        "r, g; all that every patch has for a network of any bands.",
        default=None,
        optional=True,
    )
    wavelengths = pexConfig.DictField[str, float](
        doc="Effective wavelengths (nm) of bands whose names do not say them, for networks of any bands.",
        default={},
    )
    use_truth_images = pexConfig.Field[bool](
        doc="Read the light of the sources without noise? With it, augmentations can draw noise at any "
        "depth; otherwise they can only add to what there is.",
        default=False,
    )
    skip_incomplete = pexConfig.Field[bool](
        doc="Skip patches in which a band is missing, in place of failing?", default=False
    )
    use_initial_model = pexConfig.Field[bool](
        doc="Start from the dataset maskRcnnInitialModel in the input collections?", default=False
    )
    initial_model_uri = pexConfig.Field[str](
        doc="Path or URI of a model file (resource:// included) to start from; None starts from the dataset, "
        "if that is wanted, or from random weights.",
        default=None,
        optional=True,
    )
    architecture = pexConfig.ConfigField[NetworkConfig](
        doc="The network; that of the model to start from, if there is one, is used instead."
    )
    normalize = normalizeRegistry.makeField(
        doc="Normalisation of the images, which is stored in the model; that of the model to start from, if "
        "there is one, is used instead.",
        default="lupton",
    )
    unusable_planes = pexConfig.ListField[str](
        doc="Mask planes of pixels that are not used; those that an exposure does not define are ignored. "
        "SAT is not among them, so that stars with a saturated core are used; nor are CR and INTRP, whose "
        "pixels hold interpolated values.",
        default=["BAD", "NO_DATA"],
    )
    stages: Any = pexConfig.ConfigDictField(
        doc="Stages of the training by name; the default ones are those of Astro R-CNN.",
        keytype=str,
        itemtype=StageConfig,
        default=published_stages(),
    )
    stage_order = pexConfig.ListField[str](
        doc="Names of the stages in the order in which they come; those not named here are left out.",
        default=list(published_stages()),
        minLength=1,
    )
    augment: Any = pexConfig.ConfigField(
        doc="How the crops are changed, for networks of fixed bands; for those of any bands they always are.",
        dtype=AugmentConfig,
    )
    crops: Any = pexConfig.ConfigField(
        doc="How crops are cut, and which sources the network should find.", dtype=CropConfig
    )
    engine: Any = pexConfig.ConfigField(doc="How the steps are computed.", dtype=EngineConfig)
    validation = pexConfig.ConfigField[ValidationConfig](
        doc="Which patches are for validation, and how often they are used."
    )
    checkpoint_dir = pexConfig.Field[str](
        doc="Folder for the state of unfinished trainings, from which the same command goes on, and for "
        "patches as the training reads them. None keeps no state: an interrupted training begins anew.",
        default=None,
        optional=True,
    )
    do_plot = pexConfig.Field[bool](doc="Draw losses and average precision?", default=True)

    def setDefaults(self) -> None:
        """Take the augmentations of Astro R-CNN, as the schedule is."""
        super().setDefaults()
        self.augment.set_from(AugmentSettings.published())

    def __getattr__(self, name: str) -> Any:
        # Overrides from the command line look up every part between two dots as an attribute.
        item = _ITEM.fullmatch(name)
        if item is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        items = getattr(self, item["field"])
        if item["key"] not in items:
            raise AttributeError(
                f"{item['field']} has no {item['key']!r}, but {', '.join(map(repr, items))}; a new one is "
                "made in a file of overrides (-C)."
            )
        return items[item["key"]]

    def validate(self) -> None:
        """Check that settings of different parts fit each other."""
        super().validate()
        cls = type(self)

        def refuse(field: pexConfig.Field[Any], problem: str) -> None:
            raise pexConfig.FieldValidationError(field, self, problem)

        if self.use_initial_model and self.initial_model_uri is not None:
            refuse(
                cls.initial_model_uri,
                f"use_initial_model is True and initial_model_uri is {self.initial_model_uri!r}; the "
                "training can start from one model only.",
            )
        if self.use_initial_model and self.connections.initialModel == self.connections.model:
            refuse(
                cls.use_initial_model,
                f"connections.initialModel and connections.model are both {self.connections.model!r}, but a "
                "pipeline cannot make what it needs before; give one of them another name.",
            )
        for field, names in ((cls.bands, self.bands or ()), (cls.stage_order, self.stage_order)):
            if len(set(names)) != len(names):
                refuse(field, f"{list(names)} has a name twice.")
        if self.bands is not None and not len(self.bands):
            refuse(cls.bands, "There are no bands; give at least one.")
        unknown = [name for name in self.stage_order if name not in self.stages]
        if unknown:
            refuse(cls.stage_order, f"There are no stages {unknown}; there are {list(self.stages)}.")

    def settings(self) -> TrainSettings:
        """Put the schedule together for the engine; a ValueError if settings do not fit each other."""
        return TrainSettings(
            stages=tuple(self.stages[name].settings(name=name) for name in self.stage_order),
            validation_every=self.validation.every,
            **self.engine.values(),
        )
