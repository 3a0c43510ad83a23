# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training of a network on patches whose sources are known."""

from __future__ import annotations

__all__ = [
    "MaskRcnnTrainConfig",
    "MaskRcnnTrainConnections",
    "MaskRcnnTrainTask",
    "TrainingDataError",
    "TrainingDivergedError",
    "TrainingPatch",
]

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import DataCoordinate
from lsst.geom import Box2D
from lsst.resources import ResourcePath
from lsst.utils.logging import PeriodicLogger

from ..catalogs.training_data import BAD_MASK_PLANES, make_training_scene
from ..catalogs.training_patches import (
    PatchCropSource,
    PatchDatasets,
    SceneSummary,
    TrainingPatch,
    group_datasets,
    split_patches,
    write_patch,
)
from ..network.inference import DetectionSettings, select_device
from ..network.model_file import (
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    read_model,
)
from ..report.training_curves import history_table, plot_training
from ..train.checkpoint import CheckpointMismatch
from ..train.loop import TrainingDiverged, TrainResult, TrainSettings, train
from ..train.training_scene import SceneFiles, SceneSource
from ..train.validation import LOWEST_SCORE, SceneValidator
from .normalize import NormalizeBaseTask, normalizeRegistry
from .train_config import (
    CropConfig,
    EngineConfig,
    NetworkConfig,
    StageConfig,
    ValidationConfig,
    published_stages,
)

Progress = Callable[[int, int, Mapping[str, Any]], None]

_BANDS = ("z", "r", "g")

# Trainings take hours: a line a minute is enough.
_LOG_INTERVAL = 60.0

# An item of a field, as in stages['heads'].
_ITEM = re.compile(r"""(?P<field>\w+)\[(?P<quote>['"])(?P<key>.+)(?P=quote)\]""")


class TrainingDataError(pipeBase.AlgorithmError):
    """There is nothing to train on, or something about it is missing.

    Parameters
    ----------
    message : `str`
        What was given, what was wanted and what to do.
    patches : `~collections.abc.Iterable` [`str`], optional
        The patches that it is about.
    """

    def __init__(self, message: str, patches: Iterable[str] = ()) -> None:
        self.patches = list(patches)
        super().__init__(message)

    @property
    def metadata(self) -> dict[str, Any]:
        """What failed, for the task's metadata (`dict`)."""
        return {"message": str(self), "patches": " ".join(self.patches)}


class TrainingDivergedError(pipeBase.AlgorithmError):
    """The loss is no longer a number.

    Parameters
    ----------
    message : `str`
        What happened.
    step : `int`
        The step at which it did.
    images : `~collections.abc.Iterable` [`str`]
        The images that the crops of that step are from.
    checkpoint : `str`
        The last good state; empty if there is none that lasts.
    """

    def __init__(self, message: str, step: int, images: Iterable[str], checkpoint: str) -> None:
        self.step = step
        self.images = list(images)
        self.checkpoint = checkpoint
        super().__init__(message)

    @property
    def metadata(self) -> dict[str, Any]:
        """What failed, for the task's metadata (`dict`)."""
        return {"step": self.step, "images": " ".join(self.images), "checkpoint": self.checkpoint}


class MaskRcnnTrainConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap",),
    defaultTemplates={"coaddName": "deep", "outputName": "maskRcnnTraining"},
):
    """Inputs and outputs of `MaskRcnnTrainTask`.

    The model has no dimensions, so that a pipeline that finds sources takes it
    from the collection where this one has put it. The model to start from is
    a dataset of another name, as a pipeline cannot make what it needs before.

    Parameters
    ----------
    config : `MaskRcnnTrainConfig`
        Configuration of the task; inputs that it does not want are left out.
    """

    exposures = cT.Input(
        doc="Coadds of all patches, in the bands of the model; other bands are not read.",
        name="{coaddName}Coadd_calexp",
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    truth = cT.Input(
        doc="The sources of the patches: classes, fluxes, and masks as footprints.",
        name="maskRcnn_truth",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        multiple=True,
        deferLoad=True,
    )
    truthImages = cT.Input(
        doc="The light of the sources alone, without noise.",
        name="maskRcnn_truthImage",
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    initialModel = cT.PrerequisiteInput(
        doc="Model to start from.",
        name="maskRcnnInitialModel",
        storageClass="MaskRcnnModel",
        dimensions=(),
    )
    model = cT.Output(
        doc="The trained network and how to use it.",
        name="maskRcnnModel",
        storageClass="MaskRcnnModel",
        dimensions=(),
    )
    steps = cT.Output(
        doc="Losses and learning rate along the training.",
        name="{outputName}_steps",
        storageClass="ArrowAstropy",
        dimensions=("skymap",),
    )
    epochs = cT.Output(
        doc="Means of the losses over epochs, and the average precision on the patches of validation.",
        name="{outputName}_epochs",
        storageClass="ArrowAstropy",
        dimensions=("skymap",),
    )
    plot = cT.Output(
        doc="Losses, learning rate and average precision against the step.",
        name="{outputName}_plot",
        storageClass="Plot",
        dimensions=("skymap",),
    )

    def __init__(self, *, config: MaskRcnnTrainConfig) -> None:
        super().__init__(config=config)
        if not config.useTruthImages:
            del self.truthImages
        if not config.useInitialModel:
            del self.initialModel
        if not config.doPlot:
            del self.plot


class MaskRcnnTrainConfig(pipeBase.PipelineTaskConfig, pipelineConnections=MaskRcnnTrainConnections):
    """Configuration of `MaskRcnnTrainTask`.

    Stages can be named with brackets where fields are, as in
    ``-c maskRcnnTrain:stages['heads'].learning_rate=1e-4``.
    """

    name = pexConfig.Field[str](doc="Short name of the model.", default="maskRcnn")
    description = pexConfig.Field[str](doc="What the model is for, in a sentence.", default="")
    bands = pexConfig.ListField[str](
        doc="Bands in the order in which the network sees them. None takes those of the model to start "
        "from, or z, r, g.",
        default=None,
        optional=True,
    )
    useTruthImages = pexConfig.Field[bool](
        doc="Read the light of the sources without noise? With it, augmentations can draw noise at any "
        "depth; otherwise they can only add to what there is.",
        default=False,
    )
    skipIncomplete = pexConfig.Field[bool](
        doc="Skip patches in which a band is missing, in place of failing?", default=False
    )
    useInitialModel = pexConfig.Field[bool](
        doc="Start from the dataset maskRcnnInitialModel in the input collections?", default=False
    )
    initialModelUri = pexConfig.Field[str](
        doc="Path or URI of a model file (resource:// included) to start from; None starts from the dataset, "
        "if that is wanted, or from random weights.",
        default=None,
        optional=True,
    )
    architecture = pexConfig.ConfigField[NetworkConfig](
        doc="The network; that of the model to start from, if there is one, goes before."
    )
    useModelNormalization = pexConfig.Field[bool](
        doc="Normalise as the model to start from wants it? Otherwise, or if there is none, as 'normalize' "
        "says.",
        default=True,
    )
    normalize = normalizeRegistry.makeField(
        doc="Normalisation of the images, which goes into the model.", default="lupton"
    )
    unusable_planes = pexConfig.ListField[str](
        doc="Mask planes of pixels that are not used; those that an exposure does not define are ignored. "
        "SAT is not among them, so that stars with a saturated core are learnt; nor are CR and INTRP, whose "
        "pixels hold interpolated values.",
        default=list(BAD_MASK_PLANES),
    )
    stages: Any = pexConfig.ConfigDictField(
        doc="Stages of the training by name; the default ones are those of Astro R-CNN.",
        keytype=str,
        itemtype=StageConfig,
        default=published_stages(),
    )
    stageOrder = pexConfig.ListField[str](
        doc="Names of the stages in the order in which they come; those not named here are left out.",
        default=list(published_stages()),
        minLength=1,
    )
    crops = pexConfig.ConfigField[CropConfig](doc="How crops are cut, and which sources are asked for.")
    engine: Any = pexConfig.ConfigField(doc="How the steps are computed.", dtype=EngineConfig)
    validation = pexConfig.ConfigField[ValidationConfig](
        doc="Which patches tell how good the network is, and when."
    )
    checkpointDir = pexConfig.Field[str](
        doc="Folder for the state of unfinished trainings, from which the same command goes on, and for "
        "patches as the training reads them. None keeps no state: an interrupted training begins anew.",
        default=None,
        optional=True,
    )
    doPlot = pexConfig.Field[bool](doc="Draw how the training went?", default=True)

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
        if self.useInitialModel and self.initialModelUri is not None:
            raise pexConfig.FieldValidationError(
                cls.initialModelUri,
                self,
                f"useInitialModel is True and initialModelUri is {self.initialModelUri!r}; the training can "
                "start from one model only.",
            )
        if self.useInitialModel and self.connections.initialModel == self.connections.model:
            raise pexConfig.FieldValidationError(
                cls.useInitialModel,
                self,
                f"connections.initialModel and connections.model are both {self.connections.model!r}, but a "
                "pipeline cannot make what it needs before; give one of them another name.",
            )
        for field, names in ((cls.bands, self.bands or ()), (cls.stageOrder, self.stageOrder)):
            if len(set(names)) != len(names):
                raise pexConfig.FieldValidationError(field, self, f"{list(names)} has a name twice.")
        if self.bands is not None and not len(self.bands):
            raise pexConfig.FieldValidationError(cls.bands, self, "There are no bands; give at least one.")
        unknown = [name for name in self.stageOrder if name not in self.stages]
        if unknown:
            raise pexConfig.FieldValidationError(
                cls.stageOrder, self, f"There are no stages {unknown}; there are {list(self.stages)}."
            )
        try:
            self.settings()
        except ValueError as error:
            raise pexConfig.FieldValidationError(cls.stages, self, str(error)) from error

    def settings(self) -> TrainSettings:
        """Put the schedule together for the engine.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.train.loop.TrainSettings`
            The same for torch-only code.

        Raises
        ------
        ValueError
            Raised if settings do not fit each other.
        """
        return TrainSettings(
            stages=tuple(self.stages[name].settings(name) for name in self.stageOrder),
            validation_every=self.validation.every,
            **self.engine.values(),
        )


class MaskRcnnTrainTask(pipeBase.PipelineTask):
    """Train a network on the patches of a sky map whose sources are known.

    Parameters
    ----------
    **kwargs
        Forwarded to `lsst.pipe.base.PipelineTask`.
    """

    ConfigClass: ClassVar[type[MaskRcnnTrainConfig]] = MaskRcnnTrainConfig
    _DefaultName: ClassVar[str] = "maskRcnnTrain"

    config: MaskRcnnTrainConfig
    normalize: NormalizeBaseTask

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.makeSubtask("normalize")

    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Sort the inputs by patch, train, and store what came of it.

        Parameters
        ----------
        butlerQC : `lsst.pipe.base.QuantumContext`
            Butler restricted to this quantum.
        inputRefs : `lsst.pipe.base.InputQuantizedConnection`
            Inputs.
        outputRefs : `lsst.pipe.base.OutputQuantizedConnection`
            Outputs.

        Raises
        ------
        TrainingDataError
            Raised if there is no patch to train on.
        """
        initialModel = butlerQC.get(inputRefs.initialModel) if self.config.useInitialModel else None
        datasets = group_datasets(
            inputRefs.exposures, inputRefs.truth, inputRefs.truthImages if self.config.useTruthImages else ()
        )
        training, validation = self.select(datasets)

        def handles(items: Sequence[PatchDatasets]) -> list[TrainingPatch]:
            return [
                TrainingPatch(
                    item.name,
                    {band: butlerQC.get(ref) for band, ref in item.exposures.items()},
                    butlerQC.get(item.truth),
                    {band: butlerQC.get(ref) for band, ref in item.truth_images.items()} or None,
                )
                for item in items
            ]

        # pipetask limits every process to one thread unless told otherwise.
        n_threads = torch.get_num_threads()
        torch.set_num_threads(butlerQC.resources.num_cores)
        try:
            outputs = self.run(
                patches=handles(training),
                validation=handles(validation),
                initialModel=initialModel,
                label=str(cast(DataCoordinate, butlerQC.quantum.dataId)["skymap"]),
            )
        finally:
            torch.set_num_threads(n_threads)
        butlerQC.put(outputs, outputRefs)

    def run(
        self,
        *,
        patches: Sequence[TrainingPatch],
        validation: Sequence[TrainingPatch] = (),
        initialModel: MaskRcnnModel | None = None,
        label: str = "training",
    ) -> pipeBase.Struct:
        """Train a network.

        Parameters
        ----------
        patches : `~collections.abc.Sequence` [`TrainingPatch`]
            What to learn from. Patches are read one at a time.
        validation : `~collections.abc.Sequence` [`TrainingPatch`], optional
            What to judge by.
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`,\
                optional
            Model to start from; by default the one that
            ``config.initialModelUri`` names, if it does.
        label : `str`, optional
            Name of the training in ``config.checkpointDir``.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attributes:

            ``model``
                The trained model
                (`~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`).
            ``steps``
                History of the steps (`astropy.table.Table`).
            ``epochs``
                History of the epochs (`astropy.table.Table`).
            ``plot``
                Both as a picture (`matplotlib.figure.Figure`), or `None`
                without ``config.doPlot``.

        Raises
        ------
        TrainingDataError
            Raised if there is no patch, a patch lacks a band or cannot be
            used, or there is no source in any.
        TrainingDivergedError
            Raised if the loss is no longer a number.
        lsst.pipe.base.InvalidQuantumError
            Raised if the initial model does not fit the configuration, if an
            unfinished training in ``config.checkpointDir`` is another one,
            or if the device is not there.
        """
        initialModel = self.initial_model(initialModel)
        bands = self.bands(initialModel)
        with self.workspace(label) as folder:
            written = [
                self.write_scenes(items, folder / name, bands)
                for name, items in (("training", patches), ("validation", validation))
            ]
            return self.train_patches(
                *written, bands=bands, initialModel=initialModel, folder=folder, label=label
            )

    def select(self, datasets: Sequence[PatchDatasets]) -> tuple[list[PatchDatasets], list[PatchDatasets]]:
        """Choose the patches to learn from and those to judge by.

        Parameters
        ----------
        datasets : `~collections.abc.Sequence` [`PatchDatasets`]
            All patches.

        Returns
        -------
        training, validation : `list` [`PatchDatasets`]
            As `split_patches` has them.

        Raises
        ------
        TrainingDataError
            Raised if there is none to learn from.
        """
        wanted = self.config.validation
        training, validation = split_patches(
            datasets,
            validation_runs=wanted.runs,
            excluded_runs=wanted.excludedRuns,
            fraction=wanted.fraction,
            seed=wanted.seed,
            max_validation=wanted.maxPatches,
        )
        if not training:
            runs = sorted({item.run for item in datasets})
            raise TrainingDataError(
                f"Of {len(datasets)} patches with a truth, none is left to train on: validation.runs is "
                f"{list(wanted.runs)}, validation.excludedRuns {list(wanted.excludedRuns)}, and the patches "
                f"are in {runs}. Add a collection of training patches to the inputs, or change the patterns.",
                [item.name for item in datasets],
            )
        self.log.info("Training on %d patches, validating on %d.", len(training), len(validation))
        return training, validation

    def initial_model(self, given: MaskRcnnModel | None = None) -> MaskRcnnModel | None:
        """Find the model to start from.

        Parameters
        ----------
        given : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`, \
                optional
            The one that was given, which goes before the configured one.

        Returns
        -------
        model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel` or `None`
            The model; `None` for random weights.

        Raises
        ------
        lsst.pipe.base.InvalidQuantumError
            Raised if the file cannot be used.
        """
        uri = self.config.initialModelUri
        if given is not None or uri is None:
            return given
        try:
            with ResourcePath(uri, forceDirectory=False).as_local() as local:
                return read_model(local.ospath)
        except (OSError, ModelFileError) as error:
            raise pipeBase.InvalidQuantumError(
                f"config.initialModelUri is {uri!r}, which cannot be read: {error}"
            ) from error

    def bands(self, initialModel: MaskRcnnModel | None = None) -> tuple[str, ...]:
        """Find the bands, in the order in which the network sees them.

        Parameters
        ----------
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`,\
                optional
            Model to start from.

        Returns
        -------
        bands : `tuple` [`str`]
            The bands.

        Raises
        ------
        lsst.pipe.base.InvalidQuantumError
            Raised if the model is for another number of bands.
        """
        bands = tuple(self.config.bands or ())
        if initialModel is None:
            return bands or _BANDS
        own = initialModel.metadata.bands
        if bands and len(bands) != len(own):
            raise pipeBase.InvalidQuantumError(
                f"config.bands is {list(bands)}, but model {initialModel.metadata.name!r} to start from has "
                f"{list(own)}; give as many bands as it has, or start from another model."
            )
        return bands or own

    @contextlib.contextmanager
    def workspace(self, label: str) -> Iterator[Path]:
        """Make a folder for the patches as the training reads them.

        Parameters
        ----------
        label : `str`
            Name of the training.

        Yields
        ------
        folder : `pathlib.Path`
            Empty folder, which goes at the end.
        """
        if self.config.checkpointDir is None:
            with tempfile.TemporaryDirectory(prefix=f"{_file_name(label)}-") as name:
                yield Path(name)
            return
        folder = Path(self.config.checkpointDir) / f"{_file_name(label)}.scenes"
        # A training that was killed leaves its own behind.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_scenes(
        self, patches: Sequence[TrainingPatch], folder: Path, bands: Sequence[str]
    ) -> list[SceneSummary]:
        """Bring patches into the form in which the training reads them.

        Parameters
        ----------
        patches : `~collections.abc.Sequence` [`TrainingPatch`]
            The patches.
        folder : `pathlib.Path`
            Where to write; made if it is not there.
        bands : `~collections.abc.Sequence` [`str`]
            Bands in the order in which the network sees them.

        Returns
        -------
        summaries : `list` [`SceneSummary`]
            What was written, in the order of the patches; large ones are cut
            into pieces.

        Raises
        ------
        TrainingDataError
            Raised if a patch lacks a band or cannot be used.
        """
        complete = [patch for patch in patches if self._has_bands(patch, bands)]
        folder.mkdir(parents=True, exist_ok=True)
        periodic = PeriodicLogger(self.log, _LOG_INTERVAL)
        summaries = []
        for number, patch in enumerate(complete, 1):
            try:
                summaries += self._write_patch(patch, folder, bands)
            except ValueError as error:
                raise TrainingDataError(
                    f"Patch {patch.name} cannot be trained on: {error}", [patch.name]
                ) from error
            periodic.log("Prepared %d of %d patches.", number, len(complete))
        return summaries

    def train_patches(
        self,
        training: Sequence[SceneSummary],
        validation: Sequence[SceneSummary] = (),
        *,
        bands: Sequence[str],
        initialModel: MaskRcnnModel | None,
        folder: Path,
        label: str,
        progress: Progress | None = None,
    ) -> pipeBase.Struct:
        """Train on patches that were written before.

        Parameters
        ----------
        training, validation : `~collections.abc.Sequence` [`SceneSummary`]
            The patches.
        bands : `~collections.abc.Sequence` [`str`]
            Their bands.
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`\
                or `None`
            Model to start from.
        folder : `pathlib.Path`
            For the state of the training, if ``config.checkpointDir`` names
            none.
        label : `str`
            Name of the training.
        progress : callable, optional
            As in `train`.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            As `run` returns it.

        Raises
        ------
        TrainingDataError
            Raised if there are no patches, no sources, or no WCS.
        TrainingDivergedError
            Raised if the loss is no longer a number.
        lsst.pipe.base.InvalidQuantumError
            Raised if an unfinished training in ``config.checkpointDir`` is
            another one, or if the device is not there.
        """
        if not training:
            raise TrainingDataError(
                "There are no patches to train on; give patches with coadds in the bands "
                f"{', '.join(bands)} and with a truth."
            )
        names = list(dict.fromkeys(item.name for item in training))
        n_sources = sum(item.n_sources for item in training)
        if n_sources == 0:
            raise TrainingDataError(
                f"There is no true source in any of the {len(names)} patches to train on, of those that "
                "are not flagged; check the truth catalogues.",
                names,
            )
        scales = [item.pixel_scale for item in training if np.isfinite(item.pixel_scale)]
        if not scales:
            raise TrainingDataError(
                "No patch to train on has a WCS, so that the size of a pixel is not known; attach one.", names
            )
        self.metadata["n_sources"] = n_sources
        self.metadata["n_patches"] = len(names)
        self.metadata["n_patches_validation"] = len({item.name for item in validation})
        metadata = self.make_metadata(
            bands,
            float(np.median(scales)),
            initialModel,
            {
                "label": label,
                "patches": len(names),
                "sources": n_sources,
                "validation_patches": len({item.name for item in validation}),
            },
        )
        parent = folder if self.config.checkpointDir is None else Path(self.config.checkpointDir)
        output = parent / f"{_file_name(label)}.safetensors"
        results = self.train(
            SceneFiles([item.path for item in training]),
            SceneFiles([item.path for item in validation]) if validation else None,
            metadata=metadata,
            n_pixels=float(np.mean([item.n_pixels for item in training])),
            initialModel=initialModel,
            output=output,
            progress=progress,
        )
        # The model goes into the Butler, or to the caller.
        for path in (output, output.with_name(output.name + ".history.json")):
            path.unlink(missing_ok=True)
        return results

    def train(
        self,
        scenes: SceneSource,
        validation: SceneSource | None = None,
        *,
        metadata: ModelMetadata,
        n_pixels: float,
        initialModel: MaskRcnnModel | None,
        output: Path,
        progress: Progress | None = None,
    ) -> pipeBase.Struct:
        """Train on scenes, wherever they come from.

        Parameters
        ----------
        scenes : `~lsst.meas.maskrcnn.train.training_scene.SceneSource`
            What to learn from.
        validation : `~lsst.meas.maskrcnn.train.training_scene.SceneSource`,\
                optional
            What to judge by.
        metadata : `~lsst.meas.maskrcnn.network.model_file.ModelMetadata`
            Header of the model, as `make_metadata` makes it.
        n_pixels : `float`
            Number of pixels of a scene.
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`\
                or `None`
            Model to start from.
        output : `pathlib.Path`
            Model file to write. The state of an unfinished training is beside
            it, under a name that begins with that of the file.
        progress : callable, optional
            Called with the number of steps done, that of all, and the row of
            the history that was just made.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            As `run` returns it.

        Raises
        ------
        TrainingDivergedError
            Raised if the loss is no longer a number.
        lsst.pipe.base.InvalidQuantumError
            Raised if the unfinished training is another one, or if the device
            is not there.
        ValueError
            Raised if a stage names no layer of the network, or if its batch
            cannot be spread evenly over the processes.
        """
        config = self.config
        try:
            select_device(config.engine.device)
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(
                f"config.engine.device cannot be used on this machine: {error}."
            ) from error
        normalization = metadata.normalization
        source = PatchCropSource(
            n_pixels,
            scenes,
            normalization,
            config.crops.crop_settings(n_pixels),
            seed=config.engine.seed,
            psf_channels=metadata.architecture.psf_channels,
            cache_mb=config.crops.cache_mb,
        )
        validate = None
        if validation is not None:
            validate = SceneValidator(
                validation,
                normalization,
                DetectionSettings(
                    tile_size=config.validation.tileSize,
                    tile_overlap=config.validation.tileOverlap,
                    score_threshold=LOWEST_SCORE,
                    nms_threshold=metadata.architecture.detection_nms,
                    precision=config.engine.precision,
                ),
                min_area=config.validation.minArea,
                min_peak_snr=config.validation.minPeakSnr,
            )
        self.metadata["n_scenes"] = len(scenes)
        self.metadata["n_scenes_validation"] = 0 if validation is None else len(validation)
        self.metadata["bands"] = list(metadata.bands)
        result = self._train(source, metadata, output, initialModel, validate, progress)
        steps, epochs = history_table(result.history), history_table(result.epochs)
        self._summarize(result)
        plot = plot_training(steps, epochs, list(config.stageOrder)) if config.doPlot else None
        return pipeBase.Struct(model=result.model, steps=steps, epochs=epochs, plot=plot)

    def make_metadata(
        self,
        bands: Sequence[str],
        pixel_scale: float,
        initialModel: MaskRcnnModel | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> ModelMetadata:
        """Make the header of the model.

        Parameters
        ----------
        bands : `~collections.abc.Sequence` [`str`]
            Bands in the order in which the network sees them.
        pixel_scale : `float`
            Size of a pixel (arcsec).
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`,\
                optional
            Model to start from, whose architecture and (with
            ``config.useModelNormalization``) normalisation are taken.
        provenance : `~collections.abc.Mapping`, optional
            What else to say about the training; plain values.

        Returns
        -------
        metadata : `~lsst.meas.maskrcnn.network.model_file.ModelMetadata`
            The header.
        """
        normalization = self.normalize.config.settings()
        if initialModel is None:
            architecture = self.config.architecture.spec(len(bands))
        else:
            architecture = initialModel.metadata.architecture
            if self.config.useModelNormalization:
                normalization = initialModel.metadata.normalization
        return ModelMetadata(
            name=self.config.name,
            description=self.config.description,
            architecture=architecture,
            bands=tuple(bands),
            normalization=normalization,
            pixel_scale=pixel_scale,
            training=dict(provenance or {}),
        )

    def _train(
        self,
        source: PatchCropSource,
        metadata: ModelMetadata,
        output: Path,
        initialModel: MaskRcnnModel | None,
        validate: SceneValidator | None,
        progress: Progress | None,
    ) -> TrainResult:
        """Run the engine, and name its failures."""
        periodic = PeriodicLogger(self.log, _LOG_INTERVAL)

        def report(step: int, total: int, row: Mapping[str, Any]) -> None:
            if progress is not None:
                progress(step, total, row)
            if row["kind"] == "epoch" and "ap50" in row:
                self.log.info(
                    "Epoch %d (%s, step %d of %d): loss %.4f, validation AP50 %.3f stars, %.3f galaxies.",
                    row["epoch"],
                    row["stage"],
                    step,
                    total,
                    row["loss"],
                    row["ap50_star"],
                    row["ap50_galaxy"],
                )
            else:
                periodic.log(
                    "Step %d of %d (stage %s): loss %.4f, %.3g s a step.",
                    step,
                    total,
                    row["stage"],
                    row["loss"],
                    row["seconds"],
                )

        try:
            return train(
                source,
                metadata,
                self.config.settings(),
                output,
                initial=initialModel,
                device=self.config.engine.device,
                validate=validate,
                progress=report,
            )
        except TrainingDiverged as error:
            lasting = error.checkpoint if self.config.checkpointDir is not None else None
            raise TrainingDivergedError(
                str(error)
                if lasting or error.checkpoint is None
                else f"{error} It goes with this quantum; set config.checkpointDir to keep such states.",
                error.step,
                error.images,
                lasting or "",
            ) from error
        except CheckpointMismatch as error:
            raise pipeBase.InvalidQuantumError(str(error)) from error

    def _has_bands(self, patch: TrainingPatch, bands: Sequence[str]) -> bool:
        """Say whether a patch is complete, or fail if it has to be."""
        for what, images in (("exposure", patch.exposures), ("truth image", patch.truth_images)):
            if images is None and what == "truth image" and not self.config.useTruthImages:
                continue
            images = images or {}
            missing = [band for band in bands if band not in images]
            if missing and self.config.skipIncomplete:
                self.log.warning("Patch %s is skipped: no %s in %s.", patch.name, what, ", ".join(missing))
                return False
            if missing:
                raise TrainingDataError(
                    f"Patch {patch.name} has no {what} in band {', '.join(map(repr, missing))}: wanted "
                    f"{list(bands)}, found {sorted(images)}. Add the missing coadds, change config.bands, or "
                    "set config.skipIncomplete.",
                    [patch.name],
                )
        return True

    def _write_patch(self, patch: TrainingPatch, folder: Path, bands: Sequence[str]) -> list[SceneSummary]:
        exposures = {band: _load(patch.exposures[band]) for band in bands}
        light = patch.truth_images
        scene = make_training_scene(
            exposures,
            _load(patch.truth),
            bands,
            truth_images=None if light is None else {band: _load(light[band]) for band in bands},
            bad_mask_planes=list(self.config.unusable_planes),
        )
        first = exposures[bands[0]]
        wcs, center = first.getWcs(), Box2D(first.getBBox()).getCenter()
        pixel_scale = float("nan") if wcs is None else float(wcs.getPixelScale(center).asArcseconds())
        return write_patch(scene, patch.name, folder / f"{_file_name(patch.name)}.npz", pixel_scale)

    def _summarize(self, result: TrainResult) -> None:
        """Put the figures that matter into the task's metadata."""
        self.metadata["n_steps"] = result.steps
        self.metadata["n_epochs"] = len(result.epochs)
        self.metadata["seconds_train"] = float(result.elapsed)
        if result.history:
            last = result.history[-1]
            for name in sorted(last):
                if name.startswith("loss"):
                    self.metadata[f"final_{name}"] = float(last[name])
        judged = [row for row in result.epochs if np.isfinite(row.get("ap50", np.nan))]
        if judged:
            for name in ("ap50", "ap50_star", "ap50_galaxy"):
                self.metadata[f"validation_{name}"] = float(judged[-1][name])
            best = max(judged, key=lambda row: float(row["ap50"]))
            self.metadata["validation_best_ap50"] = float(best["ap50"])
            self.metadata["validation_best_step"] = int(best["step"])
        self.log.info(
            "Trained %d steps in %.1f min%s.",
            result.steps,
            result.elapsed / 60.0,
            f"; validation AP50 {judged[-1]['ap50']:.3f}" if judged else "",
        )


def _load(item: Any) -> Any:
    """Load what is not loaded."""
    return item.get() if hasattr(item, "get") and not isinstance(item, SourceCatalog) else item


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
