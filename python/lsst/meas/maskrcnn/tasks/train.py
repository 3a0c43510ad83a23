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
]

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch

import lsst.pipe.base as pipeBase
from lsst.daf.butler import DataCoordinate
from lsst.resources import ResourcePath
from lsst.utils.logging import PeriodicLogger

from ..catalogs.exposures import IncompatibleExposuresError, UncalibratedExposureError
from ..catalogs.training_patches import (
    PatchDatasets,
    SceneSummary,
    TrainingDataError,
    TrainingPatch,
    check_scenes,
    check_widths,
    file_name,
    group_datasets,
    split_patches,
    write_patch,
)
from ..images.normalize import BandNoiseSettings
from ..network.any_band import AnyBandSpec
from ..network.inference import select_device
from ..network.model_file import MaskRcnnModel, ModelFileError, ModelMetadata, read_model
from ..report.training_curves import history_table, plot_training
from ..train.band_crops import BandCropSource
from ..train.checkpoint import CheckpointError
from ..train.dataset import CropSource
from ..train.distributed import on_first_process
from ..train.loop import TrainingDiverged, TrainResult, output_files, train
from ..train.scene_sources import SceneFiles, SceneSource
from .failures import say_where
from .normalize import NormalizeBaseTask
from .train_connections import MaskRcnnTrainConfig, MaskRcnnTrainConnections, TrainingDivergedError
from .train_sources import make_source, make_validator

Progress = Callable[[int, int, Mapping[str, Any]], None]

_BANDS = ("z", "r", "g")

# Trainings take hours: a line a minute is enough.
_LOG_INTERVAL = 60.0


class MaskRcnnTrainTask(pipeBase.PipelineTask):
    """Train a network on the patches of a sky map whose sources are known.

    Under ``torchrun`` each process runs the same task; the first one reads the
    patches for all.
    """

    ConfigClass: ClassVar[type[MaskRcnnTrainConfig]] = MaskRcnnTrainConfig
    _DefaultName: ClassVar[str] = "maskRcnnTrain"

    config: MaskRcnnTrainConfig
    normalize: NormalizeBaseTask

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.makeSubtask("normalize")

    @say_where
    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Sort the inputs by patch, train, and store the results.

        The state of the training stays in ``config.checkpoint_dir`` until the
        next other one of this sky map.
        """
        config = self.config
        initialModel = butlerQC.get(inputRefs.initialModel) if config.use_initial_model else None
        truth_images = inputRefs.truthImages if config.use_truth_images else ()
        datasets = group_datasets(inputRefs.exposures, inputRefs.truth, truth_images)
        training, validation = self.select(datasets)
        label = str(cast(DataCoordinate, butlerQC.quantum.dataId)["skymap"])
        stored = self._stored(label)
        # pipetask limits every process to one thread unless told otherwise.
        n_threads = torch.get_num_threads()
        torch.set_num_threads(butlerQC.resources.num_cores)
        try:
            run = functools.partial(
                self.run,
                patches=[item.load(butlerQC.get) for item in training],
                validation=[item.load(butlerQC.get) for item in validation],
                initialModel=initialModel,
                label=label,
            )
            try:
                outputs = run()
            except pipeBase.InvalidQuantumError as error:
                if not isinstance(error.__cause__, CheckpointError) or stored is None or not stored.exists():
                    raise
                self.log.info("The state of an earlier training, whose results are stored, is removed.")
                self.remove_state(label)
                outputs = run()
        finally:
            torch.set_num_threads(n_threads)
        butlerQC.put(outputs, outputRefs)
        if stored is not None:
            # The state stays: the metadata are stored after this, and without them pipetask begins anew.
            stored.touch()

    def run(
        self,
        *,
        patches: Sequence[TrainingPatch],
        validation: Sequence[TrainingPatch] = (),
        initialModel: MaskRcnnModel | None = None,
        label: str = "training",
        progress: Progress | None = None,
    ) -> pipeBase.Struct:
        """Train a network.

        Parameters
        ----------
        patches : `~collections.abc.Sequence` [`TrainingPatch`]
            Patches to train on, which are read one at a time.
        validation : `~collections.abc.Sequence` [`TrainingPatch`], optional
            Patches on which the average precision is computed.
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`,\
                optional
            Model to start from; by default the one that
            ``config.initial_model_uri`` names, if it does.
        label : `str`, optional
            Name of the training in ``config.checkpoint_dir``, where its state
            stays, finished or not, until `remove_state` is called.
        progress : callable, optional
            Called with the number of steps done, that of all, and the row of
            the history that was just made.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            With ``model``
            (`~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`), the
            histories ``steps`` and ``epochs`` (`astropy.table.Table`), and
            ``plot`` (`matplotlib.figure.Figure`, or `None` without
            ``config.do_plot``).

        Raises
        ------
        TrainingDataError
            Raised if there is no patch, a patch lacks a band or cannot be
            used, or there is no source in any.
        TrainingDivergedError
            Raised if the loss is not finite.
        lsst.pipe.base.InvalidQuantumError
            Raised if the initial model does not fit the configuration, if an
            unfinished training in ``config.checkpoint_dir`` is another one,
            or if the device is not there.
        """
        self._check_device()
        initialModel = self.initial_model(initialModel)
        bands = self.bands(initialModel, patches)
        with self._workspace(label) as folder:
            chosen = [("training", patches), ("validation", validation)]
            training, validated = on_first_process(
                lambda: [self._write_scenes(items, folder / name, bands) for name, items in chosen],
                self.config.engine.device,
            )
            check_scenes(training, bands)
            if self.takes_any_bands(initialModel):
                check_widths([*training, *validated])
            counts = {
                "patches": len({item.name for item in training}),
                "sources": sum(item.n_sources for item in training),
                "validation_patches": len({item.name for item in validated}),
            }
            for name, count in counts.items():
                self.metadata[f"n_{name}"] = count
            return self.train(
                SceneFiles([item.path for item in training]),
                SceneFiles([item.path for item in validated]) if validated else None,
                bands=bands,
                pixel_scale=float(np.median([item.pixel_scale for item in training])),
                n_pixels=float(np.mean([item.n_pixels for item in training])),
                initialModel=initialModel,
                provenance={"label": label, **counts},
                output=self._output(label, folder),
                keep_checkpoint=True,
                progress=progress,
            )

    def select(self, datasets: Sequence[PatchDatasets]) -> tuple[list[PatchDatasets], list[PatchDatasets]]:
        """Choose the patches for training and for validation, as `split_patches` does.

        Parameters
        ----------
        datasets : `~collections.abc.Sequence` [`PatchDatasets`]
            All patches.

        Raises
        ------
        TrainingDataError
            Raised if there is none to train on.
        """
        wanted = self.config.validation
        training, validation = split_patches(
            datasets,
            validation_runs=wanted.runs,
            excluded_runs=wanted.excluded_runs,
            fraction=wanted.fraction,
            max_validation=wanted.max_patches,
        )
        if not training:
            runs = sorted({item.run for item in datasets})
            raise TrainingDataError(
                f"Of {len(datasets)} patches with a truth, none is left to train on: validation.runs is "
                f"{list(wanted.runs)}, validation.excluded_runs {list(wanted.excluded_runs)}, and the "
                f"patches are in {runs}. Add a collection of training patches to the inputs, or change the "
                "patterns.",
                [item.name for item in datasets],
            )
        self.log.info("Training on %d patches, validating on %d.", len(training), len(validation))
        return training, validation

    def initial_model(self, given: MaskRcnnModel | None = None) -> MaskRcnnModel | None:
        """Find the model to start from; `None` for random weights.

        Parameters
        ----------
        given : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`, optional
            The one that was given, which is preferred to the configured one.

        Raises
        ------
        lsst.pipe.base.InvalidQuantumError
            Raised if the file cannot be used.
        """
        uri = self.config.initial_model_uri
        if given is not None or uri is None:
            return given
        try:
            with ResourcePath(uri, forceDirectory=False).as_local() as local:
                return read_model(local.ospath)
        except (OSError, ModelFileError) as error:
            raise pipeBase.InvalidQuantumError(
                f"config.initial_model_uri is {uri!r}, which cannot be read: {error}"
            ) from error

    def bands(
        self, initialModel: MaskRcnnModel | None = None, patches: Sequence[TrainingPatch] = ()
    ) -> tuple[str, ...]:
        """Find the bands, in the order of the network's input.

        Parameters
        ----------
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`,\
                optional
            Model to start from.
        patches : `~collections.abc.Sequence` [`TrainingPatch`], optional
            Patches, whose common bands are those of a network of any bands.

        Raises
        ------
        lsst.pipe.base.InvalidQuantumError
            Raised if the model is for another number of bands.
        """
        bands = tuple(self.config.bands or ())
        if self.takes_any_bands(initialModel) and not bands and patches:
            bands = tuple(sorted(set.intersection(*(set(patch.exposures) for patch in patches))))
            if not bands:
                raise TrainingDataError(
                    "There is no band that every patch has; set config.bands and config.skip_incomplete.",
                    [patch.name for patch in patches],
                )
        if initialModel is None or initialModel.takes_any_bands:
            return bands or _BANDS
        own = initialModel.metadata.bands
        if bands and len(bands) != len(own):
            raise pipeBase.InvalidQuantumError(
                f"config.bands is {list(bands)}, but model {initialModel.metadata.name!r} to start from has "
                f"{list(own)}; give as many bands as it has, or start from another model."
            )
        return bands or own

    def remove_state(self, label: str) -> None:
        """Remove the state of a training whose results are stored.

        Parameters
        ----------
        label : `str`
            Name of the training.
        """
        if (stored := self._stored(label)) is not None:
            # The checkpoint goes last: as long as it is there, this can be repeated.
            output = self._output(label, Path())
            for end in ("pictures", "tensorboard"):
                shutil.rmtree(output.with_name(f"{output.name}.{end}"), ignore_errors=True)
            *files, checkpoint = output_files(output)
            for path in (*files, stored, checkpoint):
                path.unlink(missing_ok=True)

    def _stored(self, label: str) -> Path | None:
        """Return the file beside a state whose results are stored; `None` where states do not last."""
        lasts = self.config.checkpoint_dir is not None
        return self._output(label, Path()).with_suffix(".stored") if lasts else None

    def train(
        self,
        scenes: SceneSource,
        validation: SceneSource | None = None,
        *,
        bands: Sequence[str],
        pixel_scale: float,
        n_pixels: float,
        initialModel: MaskRcnnModel | None,
        provenance: Mapping[str, Any],
        output: Path,
        keep_checkpoint: bool = False,
        progress: Progress | None = None,
    ) -> pipeBase.Struct:
        """Train on scenes, wherever they come from; the results are those of `run`.

        Parameters
        ----------
        scenes : `~lsst.meas.maskrcnn.train.scene_sources.SceneSource`
            Scenes to train on.
        validation : `~lsst.meas.maskrcnn.train.scene_sources.SceneSource`,\
                optional
            Scenes on which the average precision is computed.
        bands : `~collections.abc.Sequence` [`str`]
            Bands of the scenes.
        pixel_scale : `float`
            Size of a pixel (arcsec).
        n_pixels : `float`
            Number of pixels of a scene.
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`\
                or `None`
            Model to start from.
        provenance : `~collections.abc.Mapping`
            Where the scenes come from, for the header of the model; plain
            values.
        output : `pathlib.Path`
            Model file to write. The state of an unfinished training is beside
            it, under a name that begins with that of the file.
        keep_checkpoint : `bool`
            Keep the state of the finished training too.
        progress : callable, optional
            As in `run`.

        Raises
        ------
        TrainingDivergedError
            Raised if the loss is not finite.
        lsst.pipe.base.InvalidQuantumError
            Raised if the unfinished training is another one, or without the device.
        ValueError
            Raised if a stage does not fit the network or the processes.
        """
        config = self.config
        self._check_device()
        metadata = self._make_metadata(bands, pixel_scale, initialModel, provenance)
        source = make_source(config, scenes, metadata, bands, n_pixels)
        validate = None
        if validation is not None:
            pictures = output.with_name(f"{output.name}.pictures") if config.do_plot else None
            validate = make_validator(config, validation, metadata, bands, pictures)
        self.metadata["n_scenes"] = len(scenes)
        self.metadata["n_scenes_validation"] = 0 if validation is None else len(validation)
        self.metadata["bands"] = list(bands)
        options = {"initial": initialModel, "validate": validate, "keep_checkpoint": keep_checkpoint}
        result = self._run_engine(source, metadata, output, progress=self._report(progress), **options)
        steps, epochs = history_table(result.history), history_table(result.epochs)
        self._summarize(result)
        plot = plot_training(steps, epochs, list(config.stage_order)) if config.do_plot else None
        return pipeBase.Struct(model=result.model, steps=steps, epochs=epochs, plot=plot)

    def takes_any_bands(self, initialModel: MaskRcnnModel | None) -> bool:
        """Say whether the network takes any bands.

        Parameters
        ----------
        initialModel : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel` or `None`
            Model to start from.
        """
        if initialModel is None:
            return bool(self.config.architecture.preset == "any")
        return initialModel.takes_any_bands

    def _run_engine(
        self, source: CropSource | BandCropSource, metadata: ModelMetadata, output: Path, **options: Any
    ) -> TrainResult:
        """Train, and translate the errors of the engine."""
        config = self.config
        try:
            return train(source, metadata, config.settings(), output, device=config.engine.device, **options)
        except TrainingDiverged as error:
            lasting = error.checkpoint if config.checkpoint_dir is not None else None
            advice = " It goes with this quantum; set config.checkpoint_dir to keep such states."
            raise TrainingDivergedError(
                str(error) if lasting or error.checkpoint is None else f"{error}{advice}",
                error.step,
                error.images,
                lasting or "",
            ) from error
        except CheckpointError as error:
            raise pipeBase.InvalidQuantumError(str(error)) from error

    def _check_device(self) -> None:
        try:
            select_device(self.config.engine.device)
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(
                f"config.engine.device cannot be used on this machine: {error}."
            ) from error

    def _make_metadata(
        self,
        bands: Sequence[str],
        pixel_scale: float,
        initialModel: MaskRcnnModel | None,
        provenance: Mapping[str, Any],
    ) -> ModelMetadata:
        """Make the header of the model."""
        if initialModel is None:
            architecture = self.config.architecture.spec(len(bands))
            normalization = self.normalize.config.settings()
        else:
            architecture = initialModel.metadata.architecture
            normalization = initialModel.metadata.normalization
        if isinstance(architecture, AnyBandSpec):
            bands, normalization = (), BandNoiseSettings()
        return ModelMetadata(
            name=self.config.name,
            description=self.config.description,
            architecture=architecture,
            bands=tuple(bands),
            normalization=normalization,
            pixel_scale=pixel_scale,
            training=dict(provenance),
        )

    def _report(self, progress: Progress | None) -> Progress:
        """Make a function that logs how far the training is."""
        periodic = PeriodicLogger(self.log, _LOG_INTERVAL)

        def report(step: int, total: int, row: Mapping[str, Any]) -> None:
            if progress is not None:
                progress(step, total, row)
            words = {**row, "step": step, "total": total}
            if row["kind"] == "epoch" and "ap50" in row:
                self.log.info(
                    "Epoch %(epoch)d (%(stage)s, step %(step)d of %(total)d): loss %(loss).4f, validation "
                    "AP50 %(ap50_star).3f stars, %(ap50_galaxy).3f galaxies.",
                    words,
                )
            else:
                text = "Step %(step)d of %(total)d (%(stage)s): loss %(loss).4f, %(seconds).3g s a step."
                periodic.log(text, words)

        return report

    def _output(self, label: str, folder: Path) -> Path:
        """Return the model file of a training, in a folder or in that of the checkpoints."""
        parent = folder if self.config.checkpoint_dir is None else Path(self.config.checkpoint_dir)
        return parent / f"{file_name(label)}.safetensors"

    @contextlib.contextmanager
    def _workspace(self, label: str) -> Iterator[Path]:
        """Make an empty folder for the patches as the training reads them, which is removed at the end."""
        parent = self.config.checkpoint_dir

        def make() -> str:
            if parent is None:
                return tempfile.mkdtemp(prefix=f"{file_name(label)}-")
            folder = Path(parent) / f"{file_name(label)}.scenes"
            # A training that was killed leaves its own behind.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            return str(folder)

        device = self.config.engine.device
        folder = Path(on_first_process(make, device))
        try:
            yield folder
            # Others may still read from it.
            on_first_process(lambda: None, device)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_scenes(
        self, patches: Sequence[TrainingPatch], folder: Path, bands: Sequence[str]
    ) -> list[SceneSummary]:
        """Bring patches into the form in which the training reads them."""
        config = self.config
        folder.mkdir(parents=True, exist_ok=True)
        periodic = PeriodicLogger(self.log, _LOG_INTERVAL)
        summaries = []
        for number, patch in enumerate(patches, 1):
            missing = patch.missing(bands, config.use_truth_images)
            if missing and config.skip_incomplete:
                self.log.warning("Patch %s is skipped: it has no %s.", patch.name, missing)
                continue
            if missing:
                raise TrainingDataError(
                    f"Patch {patch.name} has no {missing}: wanted {list(bands)}. Add the missing coadds, "
                    "change config.bands, or set config.skip_incomplete.",
                    [patch.name],
                )
            try:
                summaries += write_patch(patch, folder, bands, list(config.unusable_planes))
            except (ValueError, UncalibratedExposureError, IncompatibleExposuresError) as error:
                raise TrainingDataError(
                    f"Patch {patch.name} cannot be trained on: {error}", [patch.name]
                ) from error
            periodic.log("Prepared %d of %d patches.", number, len(patches))
        return summaries

    def _summarize(self, result: TrainResult) -> None:
        """Write the main figures into the task's metadata."""
        self.metadata["n_steps"] = result.steps
        self.metadata["n_epochs"] = len(result.epochs)
        self.metadata["seconds_train"] = float(result.elapsed)
        for name, value in sorted(result.history[-1].items() if result.history else ()):
            if name.startswith("loss"):
                self.metadata[f"final_{name}"] = float(value)
        validated = [row for row in result.epochs if np.isfinite(row.get("ap50", np.nan))]
        if validated:
            for name in ("ap50", "ap50_star", "ap50_galaxy"):
                self.metadata[f"validation_{name}"] = float(validated[-1][name])
            best = max(validated, key=lambda row: float(row["ap50"]))
            self.metadata["validation_best_ap50"] = float(best["ap50"])
            self.metadata["validation_best_step"] = int(best["step"])
        self.log.info(
            "Trained %d steps in %.1f min%s.",
            result.steps,
            result.elapsed / 60.0,
            f"; validation AP50 {validated[-1]['ap50']:.3f}" if validated else "",
        )
