# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn simulate``: simulated scenes with their truth in a Butler
repository.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetIdGenEnum,
    DatasetRef,
    DatasetType,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.pipe.base.configOverrides import ConfigOverrides

from ..images.files import locked
from ..ingest.repo import check_collection, open_repo, patch_data_id, register_datasets
from ..ingest.scenes import SceneGrid, ingest_scene, missing_scenes, scene_dataset_types
from ..scenes.presets import PRESETS, expected_sources
from ..tasks.simulate import SimulateScenesConfig, SimulateScenesTask
from .command import Arguments, CommandError, add_overrides, check_limits, command, first_line, split_shares

_LOG = logging.getLogger(__name__)
_CONFIG_TYPE = "simulateScenes_config"
_STAGING = ".simulate_scenes"
_SPLIT_TOTAL = 10


def _print_presets() -> None:
    print(f"{'preset':20} {'pixel':>6} {'limit':>6} {'noise':>5} {'sources':>8}  bands")
    print(f"{'':20} {'arcsec':>6} {'r mag':>6} {'':5} {'expected':>8}")
    for name, config in PRESETS.items():
        noise = "yes" if config.noise else "no"
        print(
            f"{name:20} {config.pixel_scale:6.3f} {config.population.mag_limit:6.1f} {noise:>5} "
            f"{expected_sources(config):8.0f}  {' '.join(config.bands)}"
        )


@dataclass(frozen=True)
class _Series:
    """The scenes of one preset: what, and where to."""

    preset: str
    config: SimulateScenesConfig
    grid: SceneGrid
    prefix: str
    seed: int
    split: tuple[str, ...]

    def run(self, split: str) -> str:
        return f"{self.prefix}/seed{self.seed}/{split}"

    def run_of(self, number: int) -> str:
        return self.run(self.split[number % len(self.split)])

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(self.split))

    def staging(self, repo: Path) -> Path:
        """Folder for temporary files."""
        name = f"{self.prefix}/seed{self.seed}".replace("/", "-")
        return repo / f"{_STAGING}-{name}"


@command(ValueError, advice="; run it again to go on")
def run(arguments: Arguments) -> None:
    """Simulate scenes into a repository, or list the presets."""
    if arguments.list:
        _print_presets()
        return
    start = time.monotonic()
    if arguments.repo is None:
        raise CommandError("The repository is missing; give it with -b.")
    # Refuse what cannot work before anything is made.
    all_series = _make_series(arguments)
    repo = Path(arguments.repo).absolute()
    with ExitStack() as stack:
        try:
            butler = open_repo(repo)
            for series in all_series:
                stack.enter_context(_only_one(repo, series))
            # Series and number of the scenes to make.
            orders = [
                (index, number)
                for index, series in enumerate(all_series)
                for number in _prepare(butler, series, arguments.count)
            ]
        except (CommandError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise CommandError(f"The repository {repo} cannot be used: {first_line(error)}") from error
        total = arguments.count * len(all_series)
        if len(orders) < total:
            print(f"{total - len(orders)} of {total} scenes are there already.")
        prepared = time.monotonic()
        if orders:
            _simulate(repo, all_series, orders, total, arguments.jobs)
    _print_summary(arguments, all_series, len(orders), start, prepared)


def _make_series(arguments: Arguments) -> list[_Series]:
    """Read and check the arguments."""
    check_collection(arguments.collection)
    check_limits(arguments, count=(1, math.inf), jobs=(1, math.inf), seed=(0, SceneGrid.TRACT_MAX - 1))
    unknown = [name for name in arguments.preset if name not in PRESETS]
    if unknown:
        raise CommandError(
            f"There is no preset {', '.join(map(repr, unknown))}; there are {', '.join(PRESETS)}."
        )
    if len(set(arguments.preset)) != len(arguments.preset):
        raise CommandError(f"A preset was given twice: {' '.join(arguments.preset)}.")
    if arguments.skymap and len(arguments.preset) > 1:
        raise CommandError("--skymap names the sky map of one preset; give one --preset at a time with it.")
    split = _parse_split(arguments.split)
    all_series = []
    for preset in arguments.preset:
        config = _make_config(arguments, preset)
        grid = config.grid(arguments.skymap or f"maskRcnnSim-{preset}")
        if arguments.count > grid.side**2:
            raise CommandError(
                f"--count {arguments.count} is not possible: a seed has {grid.side**2} scenes of this size; "
                "use another --seed for more."
            )
        prefix = f"{arguments.collection}/{preset}"
        all_series.append(_Series(preset, config, grid, prefix, arguments.seed, split))
    return all_series


def _parse_split(text: str) -> tuple[str, ...]:
    """Return the name of the split for each last digit of a number."""
    names = split_shares(text)
    if names is None:
        raise CommandError(f"--split {text} is not understood; write it like train=7,validation=1,test=2.")
    if len(names) != _SPLIT_TOTAL:
        raise CommandError(f"--split {text} adds up to {len(names)}; it must make {_SPLIT_TOTAL}.")
    return tuple(names)


def _make_config(arguments: Arguments, preset: str) -> SimulateScenesConfig:
    """Return the complete configuration of a preset's scenes."""
    config = SimulateScenesConfig()
    config.preset = preset
    config.doTruthFlux = not arguments.no_flux
    overrides = ConfigOverrides()
    add_overrides(overrides, arguments, "population.star_density=40")
    try:
        if arguments.shape:
            config.shape = list(arguments.shape)
        if arguments.bands:
            config.bands = list(arguments.bands)
        overrides.applyTo(config)
        # These are said by options of their own.
        if config.preset != preset or config.seed is not None:
            raise CommandError("Give preset and seed with --preset and --seed.")
        config.validate()
        return config.expanded()
    except (CommandError, KeyboardInterrupt):
        raise
    # A file of changes is a program.
    except Exception as error:
        given = ", ".join([*arguments.config_file, *arguments.config]) or "the options"
        raise CommandError(f"Preset {preset!r} cannot be changed by {given}: {first_line(error)}") from error


def _prepare(butler: Butler, series: _Series, count: int) -> list[int]:
    """Write records and collections; return the numbers to make."""
    settings = series.config.scene()
    try:
        series.grid.register(butler, series.seed, range(count), settings.bands)
    except ValueError as error:
        raise CommandError(str(error)) from error
    dataset_types = scene_dataset_types(butler.dimensions, flux=series.config.doTruthFlux)
    for dataset_type in dataset_types.values():
        butler.registry.registerDatasetType(dataset_type)
    _check_splits(butler, series)
    for split in series.splits:
        run = series.run(split)
        register_datasets(butler, [], run)
        _check_config(butler, series, run)
        _extend_chain(butler, f"{series.prefix}/{split}", run)
        _extend_chain(butler, series.prefix, f"{series.prefix}/{split}")
    missing: list[int] = []
    for split in series.splits:
        numbers = [number for number in range(count) if series.split[number % _SPLIT_TOTAL] == split]
        data_ids = [patch_data_id(series.grid.name, series.seed, number) for number in numbers]
        lacking = missing_scenes(butler, series.run(split), data_ids, settings.bands, dataset_types)
        missing += [numbers[index] for index in lacking]
    return sorted(missing)


def _check_splits(butler: Butler, series: _Series) -> None:
    """Refuse to put a scene into two splits."""
    for run in butler.collections.query(f"{series.prefix}/seed{series.seed}/*"):
        found = butler.query_datasets(
            "maskRcnn_truth", collections=run, find_first=False, explain=False, limit=None
        )
        for ref in found:
            number = int(ref.dataId["patch"])
            if ref.dataId["skymap"] == series.grid.name and series.run_of(number) != run:
                raise CommandError(
                    f"Scene {number} of seed {series.seed} is in {run!r} already and would come into "
                    f"{series.run_of(number)!r} as well; give the --split of the first time, or another "
                    "--collection."
                )


def _check_config(butler: Butler, series: _Series, run: str) -> None:
    """Keep scenes of different settings out of one run."""
    dataset_type = DatasetType(_CONFIG_TYPE, (), "Config", universe=butler.dimensions)
    try:
        found = butler.find_dataset(_CONFIG_TYPE, collections=run)
    except MissingDatasetTypeError:
        butler.registry.registerDatasetType(dataset_type)
        found = None
    ref = DatasetRef(
        dataset_type,
        DataCoordinate.make_empty(butler.dimensions),
        run=run,
        id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN,
    )
    # A put that was cut short may have left the entry without the file.
    if found is None or not butler.stored(found):
        butler.put(series.config, ref)
        return
    before, now = butler.get(found).toDict(), series.config.toDict()
    # The others can be added later.
    for settings in (before, now):
        del settings["doTruthFlux"]
    different = sorted(_differences(before, now))
    if different:
        raise CommandError(
            f"The scenes in {run!r} were made with other settings ({', '.join(different[:4])}); give another "
            "--collection or --seed."
        )


def _differences(before: dict, now: dict, path: str = "") -> Iterator[str]:
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}"


def _extend_chain(butler: Butler, chain: str, child: str) -> None:
    """Add a collection to a chain, unless it is there."""
    try:
        info = butler.collections.get_info(chain)
    except MissingCollectionError:
        butler.collections.register(chain, CollectionType.CHAINED)
        info = butler.collections.get_info(chain)
    if info.type is not CollectionType.CHAINED:
        raise CommandError(
            f"Collection {chain!r} is a {info.type.name} collection, but should be a chain; give another "
            "--collection."
        )
    if child not in info.children:
        butler.collections.extend_chain(chain, child)


@contextmanager
def _only_one(repo: Path, series: _Series) -> Iterator[None]:
    """Keep other commands from the scenes that this one makes, and give it a staging folder.

    Of two that store the same scene, the later one fails, and takes back what
    it moved into the place of the other's files.
    """
    staging = series.staging(repo)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(staging.with_name(f"{staging.name}.lock"), wait=False))
        except BlockingIOError as error:
            raise CommandError(
                f"Another command is making scenes of seed {series.seed} in {series.prefix!r}; wait for it, "
                "or use another --seed."
            ) from error
        # What is there already is from a command that was killed.
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        yield


class _Worker:
    """Makes scenes, one after the other, in this process."""

    def __init__(self, repo: Path, all_series: Sequence[_Series]) -> None:
        self._butler = Butler.from_config(str(repo), writeable=True)
        self._repo = repo
        self._all_series = all_series
        self._tasks = [SimulateScenesTask(config=series.config) for series in all_series]
        for task in self._tasks:
            task.log.setLevel(logging.WARNING)

    def make(self, index: int, number: int) -> None:
        series = self._all_series[index]
        data_id = patch_data_id(series.grid.name, series.seed, number)
        result = self._tasks[index].run(
            tract=series.seed,
            patch=number,
            idGenerator=series.config.idGenerator.apply(self._butler.registry.expandDataId(data_id)),
        )
        dataset_types = scene_dataset_types(self._butler.dimensions, flux=series.config.doTruthFlux)
        staging = series.staging(self._repo)
        ingest_scene(self._butler, series.run_of(number), data_id, result.getDict(), dataset_types, staging)


_WORKER: _Worker | None = None
"""The worker of a process that was started for this."""


def _start_worker(repo: Path, all_series: Sequence[_Series]) -> None:
    global _WORKER
    # The first process ends its children in order when it is interrupted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Without it, children of a killed process would wait for orders for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _WORKER = _Worker(repo, all_series)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _make_in_worker(order: tuple[int, int]) -> None:
    if _WORKER is None:
        raise RuntimeError("This process was not started to make scenes.")
    _WORKER.make(*order)


def _simulate(
    repo: Path, all_series: Sequence[_Series], orders: Sequence[tuple[int, int]], total: int, jobs: int
) -> None:
    """Make scenes in this process or in others."""
    try:
        with tqdm(total=total, initial=total - len(orders), desc="scenes", unit="scene") as bar:
            if jobs == 1:
                worker = _Worker(repo, all_series)
                for order in orders:
                    worker.make(*order)
                    bar.update()
                return
            executor = ProcessPoolExecutor(
                min(jobs, len(orders)),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(repo, all_series),
            )
            try:
                for future in as_completed([executor.submit(_make_in_worker, order) for order in orders]):
                    future.result()
                    bar.update()
            finally:
                executor.shutdown(wait=True, cancel_futures=True)
    except (CommandError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CommandError(
            f"A scene could not be made or stored: {first_line(error)}. What is complete stays; run the "
            "command again to go on."
        ) from error


def _print_summary(
    arguments: Arguments, all_series: Sequence[_Series], made: int, start: float, prepared: float
) -> None:
    end = time.monotonic()
    if made:
        rate = made / max(end - prepared, 1e-9)
        print(f"Made {made} scenes in {end - start:.1f} s, {rate:.2f} a second with {arguments.jobs} job(s).")
    for series in all_series:
        print(f"\n{series.preset}, seed {series.seed}, sky map {series.grid.name}, tract {series.seed}:")
        for split in series.splits:
            numbers = [n for n in range(arguments.count) if series.split[n % _SPLIT_TOTAL] == split]
            print(f"  {series.prefix}/{split:12} {len(numbers):5} scenes of this seed in {series.run(split)}")
        print(f"  {series.prefix}: all of them")
    first = all_series[0]
    inputs = f"{first.prefix}/{first.splits[-1]},models/maskRcnn"
    truth = "maskRcnn_truth, maskRcnn_truthImage" + ("" if arguments.no_flux else ", maskRcnn_truthFlux")
    print("\nUse them like this, with a model in collection models/maskRcnn:")
    print(f"  pipetask run -b {arguments.repo} -i {inputs} -o u/me/out --register-dataset-types \\")
    print("    -p $MEAS_MASKRCNN_DIR/pipelines/MaskRcnnDeblend.yaml \\")
    print(f"    -d \"skymap='{first.grid.name}' AND tract={first.seed}\"")
    print(f"The truth: {truth}.")
