# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn train``: train a model, on patches of a Butler repository or on scenes
that are simulated for it.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lsst.daf.butler import (
    Butler,
    ButlerUserError,
    CollectionType,
    DatasetRef,
    DatasetType,
    EmptyQueryResultError,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.pipe.base import InvalidQuantumError, Struct
from lsst.pipe.base.configOverrides import ConfigOverrides

from ..catalogs.training_patches import PatchDatasets, TrainingDataError, file_name, group_datasets
from ..images.files import write_atomically
from ..ingest.repo import check_collection, lock_repo, register_datasets, remove_broken_types
from ..network.inference import select_device
from ..scenes.presets import PRESETS
from ..tasks.train import MaskRcnnTrainTask, TrainingDivergedError
from ..tasks.train_connections import MaskRcnnTrainConfig, MaskRcnnTrainConnections
from ..train.distributed import on_first_process
from ..train.loop import best_model_file, output_files
from ..train.provenance import describe_model
from ..train.scene_sources import SceneFiles
from ..train.training_set import make_training_set
from .command import (
    Arguments,
    CommandError,
    add_overrides,
    check_folder,
    check_limits,
    check_unfinished,
    command,
    first_line,
    keep_out_others,
    training_bar,
)
from .evaluation_runs import open_butler
from .paths import package_dir, pipeline_path
from .train_dry_run import DryRunDone, DryRunTask

_LABEL = MaskRcnnTrainTask._DefaultName

# Of the scenes that are simulated; those of other surveys are brought to it by their own pixel scale.
_PIXEL_SCALE = 0.168
_SHAPE = (512, 512)

_SCHEDULES = {"four-stages": "train_four_stages.py", "fine-tune": "fine_tune.py"}


@command(
    TrainingDataError,
    TrainingDivergedError,
    InvalidQuantumError,
    ButlerUserError,
    ValueError,
    advice="; run it again to go on",
)
def run(arguments: Arguments) -> None:
    """Train."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.scenes is not None and arguments.output is None:
        # A word without an option is the file.
        arguments.output, arguments.repo = arguments.repo, None
    _check(arguments)
    task = (DryRunTask if arguments.dry_run else MaskRcnnTrainTask)(config=_make_config(arguments))
    torch.set_num_threads(arguments.jobs)
    first = int(os.environ.get("RANK", 0)) == 0
    task.log.setLevel(logging.INFO if first else logging.WARNING)
    with suppress(DryRunDone):
        (_train_in_repo if arguments.scenes is None else _train_on_scenes)(arguments, task, first)


def _check(arguments: Arguments) -> None:
    """Refuse at once what would fail only after hours."""
    positive = dict.fromkeys(("count", "steps", "batch_size", "jobs"), (1, math.inf))
    check_limits(arguments, validate=(0, math.inf), **positive)
    if arguments.device is not None:
        select_device(arguments.device)
    if arguments.scenes is None:
        names = {"repo": "-b REPO", "input": "--input", "output": "--output"}
        missing = [text for name, text in names.items() if not getattr(arguments, name)]
        if missing:
            raise CommandError(
                f"Give {' and '.join(missing)} to train in a repository, or --scenes to train on simulated "
                "scenes."
            )
        check_collection(arguments.output)
        return
    names = {"repo": "-b", "input": "--input", "data_query": "--data-query", "checkpoints": "--checkpoints"}
    given = [text for name, text in names.items() if getattr(arguments, name)]
    if given:
        raise CommandError(f"{given[0]} is for a training in a repository, --scenes for one without.")
    if arguments.output is None:
        raise CommandError("The model file to write is missing; give it with -o.")
    output = Path(arguments.output)
    check_folder(output)
    check_unfinished(output, output_files(output)[-1])


def _make_config(arguments: Arguments) -> MaskRcnnTrainConfig:
    """Make the configuration that the options describe."""
    config = MaskRcnnTrainConfig()
    schedule = arguments.schedule or ("published" if arguments.scenes is None else "fine-tune")
    if arguments.scenes is not None:
        config.name = Path(arguments.output).name.removesuffix(".safetensors")
        config.description = "Stars and galaxies in simulated images."
    overrides = ConfigOverrides()
    if schedule != "published":
        overrides.addFileOverride(str(package_dir() / "config" / _SCHEDULES[schedule]))
    add_overrides(overrides, arguments, "engine.seed=2")
    try:
        overrides.applyTo(config)
        _apply_options(arguments, config)
        if arguments.scenes is None and config.checkpoint_dir is None and Path(arguments.repo).is_dir():
            config.checkpoint_dir = str(Path(arguments.repo).absolute() / ".maskrcnn_train")
        config.validate()
    except (CommandError, KeyboardInterrupt):
        raise
    # A file of changes is a program.
    except Exception as error:
        raise CommandError(f"The configuration is not possible: {first_line(error)}") from error
    return config


def _apply_options(arguments: Arguments, config: MaskRcnnTrainConfig) -> None:
    """Set the fields that have an option of their own."""
    for option, target, field in (
        ("initial", config, "initial_model_uri"),
        ("name", config, "name"),
        ("minutes", config.engine, "minutes"),
        ("seed", config.engine, "seed"),
        ("device", config.engine, "device"),
        ("checkpoints", config, "checkpoint_dir"),
    ):
        value = getattr(arguments, option)
        if value is not None:
            setattr(target, field, str(value) if isinstance(value, Path) else value)
    for option in ("steps", "batch_size", "learning_rate"):
        value = getattr(arguments, option)
        if value is None:
            continue
        if len(config.stage_order) != 1:
            raise CommandError(
                f"--{option.replace('_', '-')} is for a schedule of one stage, but this one has "
                f"{list(config.stage_order)}; give -c \"stages['{config.stage_order[0]}'].{option}={value}\"."
            )
        stage = config.stages[config.stage_order[0]]
        setattr(stage, option, value)
        stage.warmup_steps = min(stage.warmup_steps, stage.steps or stage.warmup_steps)


def _train_on_scenes(arguments: Arguments, task: MaskRcnnTrainTask, first: bool) -> None:
    """Simulate scenes, train on them, and write a file."""
    output = Path(arguments.output).absolute()
    checkpoint = output_files(output)[-1]
    initial = task.initial_model()
    bands = task.bands(initial)
    seed = int(task.config.engine.seed)
    presets = list(arguments.presets) or list(PRESETS)

    def make_scenes() -> list[Path]:
        count = arguments.count + arguments.validate
        options: dict[str, Any] = {"presets": presets, "shape": _SHAPE, "bands": bands}
        made = make_training_set(arguments.scenes, count, seed, arguments.jobs, **options)
        return list(tqdm(made, total=count, desc="scenes", unit="scene"))

    paths = on_first_process(make_scenes, task.config.engine.device)
    with ExitStack() as stack:
        if first:
            stack.enter_context(keep_out_others(output.with_name(f".{output.name}.lock"), str(output)))
        results = task.train(
            SceneFiles(paths[: arguments.count]),
            SceneFiles(paths[arguments.count :]) if arguments.validate else None,
            bands=bands,
            pixel_scale=_PIXEL_SCALE,
            n_pixels=float(_SHAPE[0] * _SHAPE[1]),
            initialModel=initial,
            provenance={"data": "simulated scenes of this package", "presets": presets, "seed": seed},
            output=output,
            keep_checkpoint=True,
            progress=stack.enter_context(training_bar(first)),
        )
    if first:
        if results.plot is not None:
            picture = io.BytesIO()
            results.plot.savefig(picture, format="png")
            write_atomically(output.with_name(f"{output.name}.history.png"), picture.getvalue())
        checkpoint.unlink(missing_ok=True)
        print(f"The model is in {output}, its history beside it.")
        best = best_model_file(output)
        if best.exists():
            print(f"The model that was best at a validation is in {best}.")
        _print_next(str(output), task.config.name)


def _print_next(path: str, name: str) -> None:
    """Say how to go on with a model file."""
    run = "pipetask run -b REPO --register-dataset-types -p"
    print(
        f"""Next, calibrate it on scenes that it was not trained on, ingest it, and evaluate it:
  maskrcnn calibrate --model {path} -o {name}.calibrated.safetensors
  maskrcnn ingest-model -b REPO --model {name}.calibrated.safetensors -o models/{name}
  {run} {pipeline_path("MaskRcnnDeblend.yaml")} -i COLLECTION,models/{name} -o u/me/{name}
  {run} {pipeline_path("MaskRcnnEvaluate.yaml")} -i u/me/{name} -o u/me/{name}_eval
  maskrcnn evaluate-report -b REPO -i u/me/{name}_eval"""
    )


def _train_in_repo(arguments: Arguments, task: MaskRcnnTrainTask, first: bool) -> None:
    """Train on patches, and put the model into the repository."""
    config = task.config
    connections = MaskRcnnTrainConnections(config=config)
    butler = open_butler(arguments.repo, writeable=first)
    inputs = [name for text in arguments.input for name in text.split(",")]
    label = arguments.output
    with ExitStack() as stack:
        if first:
            unfinished = False
            if config.checkpoint_dir is not None:
                state = Path(config.checkpoint_dir) / f"{file_name(label)}.safetensors"
                state.parent.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_empty, state.parent)
                stack.enter_context(keep_out_others(state.with_suffix(".lock"), f"into collection {label!r}"))
                unfinished = output_files(state)[-1].exists()
            remove_broken_types(butler)
            _check_output(butler, label, connections.model.name, unfinished)
        initial = None
        if config.use_initial_model:
            initial = butler.get(connections.initialModel.name, collections=inputs)
        initial = task.initial_model(initial)
        bands = () if task.takes_any_bands(initial) else task.bands(initial)
        datasets = _find_datasets(butler, connections, inputs, bands, arguments.data_query)
        training, validation = task.select(datasets)
        with training_bar(first) as report:
            results = task.run(
                patches=[item.load(butler.getDeferred) for item in training],
                validation=[item.load(butler.getDeferred) for item in validation],
                initialModel=initial,
                label=label,
                progress=report,
            )
        if first:
            _put(butler, connections, task, results, label, datasets)
            task.remove_state(label)
            print(f"The model is {connections.model.name} in collection {label!r} of {arguments.repo}")
            stored = _find(butler, connections.model.name, [label])
            _print_next(butler.getURI(stored[0]).ospath, config.name)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _check_output(butler: Butler, collection: str, model: str, unfinished: bool) -> None:
    """Refuse a collection that cannot take the model; that of an unfinished command may hold it already."""
    try:
        kind = butler.collections.get_info(collection).type
    except MissingCollectionError:
        return
    if kind is not CollectionType.RUN:
        raise CommandError(
            f"Collection {collection!r} is a {kind.name} collection; choose the name of a RUN or a new one."
        )
    if not unfinished and _find(butler, model, [collection]):
        raise CommandError(f"Collection {collection!r} holds a model already; choose another one.")


def _find(
    butler: Butler, name: str, collections: Sequence[str], where: str = "", **bind: Any
) -> list[DatasetRef]:
    try:
        return butler.query_datasets(name, collections, where=where, limit=None, explain=False, **bind)
    except (MissingDatasetTypeError, EmptyQueryResultError):
        return []


def _find_datasets(
    butler: Butler,
    connections: MaskRcnnTrainConnections,
    inputs: Sequence[str],
    bands: Sequence[str],
    where: str,
) -> list[PatchDatasets]:
    """Find the patches that have a truth."""
    try:
        truth = _find(butler, connections.truth.name, inputs, where)
        if not truth:
            raise CommandError(
                f"There is no {connections.truth.name} in {', '.join(inputs)}"
                f"{f' where {where}' if where else ''}; name a collection of patches whose sources are known."
            )
        names = ", ".join(repr(band) for band in bands)
        wanted = [f"({where})"] if where else []
        of_bands = " AND ".join([*wanted, f"band IN ({names})"] if bands else wanted)
        exposures = _find(butler, connections.exposures.name, inputs, of_bands)
        light = getattr(connections, "truthImages", None)
        truth_images = [] if light is None else _find(butler, light.name, inputs, of_bands)
    except MissingCollectionError as error:
        raise CommandError(f"{str(error).rstrip('.')}; see `butler query-collections`.") from error
    return group_datasets(exposures, truth, truth_images)


def _put(
    butler: Butler,
    connections: MaskRcnnTrainConnections,
    task: MaskRcnnTrainTask,
    results: Struct,
    run: str,
    datasets: Sequence[PatchDatasets],
) -> None:
    """Store what a training made, as pipetask does: all at once, but for what an earlier try has stored."""
    skymaps = sorted({str(item.truth.dataId["skymap"]) for item in datasets})
    products: list[tuple[str, tuple[str, ...], str, Any]] = [
        (f"{_LABEL}_config", (), "Config", task.config),
        (f"{_LABEL}_metadata", ("skymap",), "TaskMetadata", task.getFullMetadata()),
    ]
    for name in ("model", "steps", "epochs", "plot"):
        connection = getattr(connections, name, None)
        if connection is not None:
            product = getattr(results, name)
            products.append((connection.name, connection.dimensions, connection.storageClass, product))
    with lock_repo(butler):
        types = [
            DatasetType(name, dimensions, storage, universe=butler.dimensions)
            for name, dimensions, storage, _ in products
        ]
        register_datasets(butler, types, run)
        if stored := _find(butler, connections.model.name, [run]):
            there, here = (describe_model(model) for model in (butler.get(stored[0]), results.model))
            if there != here:
                raise CommandError(
                    f"Collection {run!r} holds another model, {there['name']!r}; choose another one for "
                    f"{here['name']!r} and run the command again: the training is kept."
                )
        with butler.transaction():
            for name, dimensions, _, product in products:
                for data_id in [{"skymap": skymap} for skymap in skymaps] if dimensions else [{}]:
                    if butler.find_dataset(name, data_id, collections=run) is None:
                        butler.put(product, name, data_id, run=run)
