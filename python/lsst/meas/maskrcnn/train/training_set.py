# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes for the training loop; needs no LSST package."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..images.pixels import usable_pixels
from ..scenes.artefacts import MASK_BITS
from ..scenes.config import MaskRule
from ..scenes.presets import PRESETS, preset_config, random_scene_config
from ..scenes.simulate import Scene, simulate_scene
from .scene_cuts import bin_scene
from .scene_sources import SceneSource
from .training_scene import TrainingScene, write_scene

MIN_PEAK_SHARE = 0.05
"""Sources that make up less of the light at their own peak cannot be found
beside their neighbour; they are ignored in the loss (`float`)."""


# Shares of scenes in which the pixels are binned, by the factor: for the search on binned images.
_BINNINGS = {1: 0.7, 2: 0.18, 4: 0.12}


def mask_levels(rule: MaskRule) -> tuple[float, float] | None:
    """Return the share of the peak of a star and of a galaxy at the edge of truth masks.

    For masks by share of flux it is that of a Gaussian source; `None` for isophotes,
    which know no peak.
    """
    if rule.kind == "peakFraction":
        return rule.star_fraction, rule.galaxy_fraction
    if rule.kind == "fluxFraction":
        return 1.0 - rule.flux_fraction, 1.0 - rule.flux_fraction
    return None


def to_training_scene(scene: Scene, *, keep_image: bool = False) -> TrainingScene:
    """Keep of a simulated scene what training needs.

    It has all sources with a pixel on the image; those that a neighbour drowns, or
    that lie on masked pixels, are ignored. The image with its noise is kept if no
    augmentation will change pixels; otherwise noise is drawn when a scene is read.
    """
    drawn = np.flatnonzero(scene.sources["area"] >= 1)
    sources = scene.sources[drawn]
    # Cosmic rays are left in: pipelines do not find all of them.
    unusable = MASK_BITS["BAD"] | MASK_BITS["NO_DATA"]
    usable = usable_pixels(scene.images, scene.variance, (scene.mask & unusable) == 0)
    # Normalisation needs a variance everywhere, though it does not use it on these pixels.
    known = usable_pixels(scene.variance, scene.variance)
    variance = np.where(known, scene.variance, np.square(scene.sky_sigma, dtype=np.float32)[:, None, None])
    peak_snr = np.stack([sources[f"peak_snr_{band}"] for band in scene.bands], axis=1)
    keep_image = keep_image and scene.config.noise
    return TrainingScene(
        noiseless=scene.noiseless,
        variance=variance,
        valid=np.logical_and.reduce(usable, axis=0),
        labels=np.where(sources["is_star"], 1, 2).astype(np.int64),
        peak_flux=(peak_snr * np.asarray(scene.sky_sigma)).astype(np.float32),
        origins=scene.origins[drawn],
        masks=[scene.masks[index] for index in drawn],
        noisy=scene.config.noise,
        psf_fwhm=np.array([psf.moments_fwhm(scene.pixel_scale) for psf in scene.psfs], np.float32),
        image=np.where(np.isfinite(scene.images), scene.images, np.float32(0.0)) if keep_image else None,
        ignore=sources["flag_masked"] | (sources["peak_share"] < MIN_PEAK_SHARE),
        positions=np.stack([sources["y"], sources["x"]], axis=1).astype(np.float32),
        mask_levels=mask_levels(scene.config.mask_rule),
    )


def _simulate(
    number: int, seed: int, presets: tuple[str, ...], shape: tuple[int, int], bands: tuple[str, ...]
) -> TrainingScene:
    """Make scene ``number``, of the mixture or of the presets in turn."""
    rng = np.random.default_rng([seed, number])
    if presets:
        config = preset_config(presets[number % len(presets)], shape=shape, bands=bands)
        return to_training_scene(simulate_scene(config, rng))
    binning = int(rng.choice(list(_BINNINGS), p=list(_BINNINGS.values())))
    config = random_scene_config(rng, (shape[0] * binning, shape[1] * binning), bands)
    if binning > 1:
        # Of so large an area, only the sources that are still visible in larger pixels.
        population = config.population
        config = replace(
            config,
            population=replace(
                population,
                galaxy_density=population.galaxy_density / binning,
                star_density=population.star_density / binning,
                mag_limit=population.mag_limit - math.log10(binning) / 0.35,
            ),
        )
    return bin_scene(to_training_scene(simulate_scene(config, rng)), binning)


def _check_presets(presets: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(presets) - set(PRESETS))
    if unknown:
        raise ValueError(f"There is no preset {', '.join(unknown)}; known are {', '.join(PRESETS)}.")
    return tuple(presets)


def _make_one(
    number: int,
    folder: Path,
    seed: int,
    presets: tuple[str, ...],
    shape: tuple[int, int],
    bands: tuple[str, ...],
) -> Path:
    """Make the file of scene ``number``; what is on disk already stays."""
    kind = presets[number % len(presets)] if presets else "scene"
    path = folder / f"{kind}_{seed}_{number:05d}.npz"
    if not path.exists():
        write_scene(_simulate(number, seed, presets, shape, bands), path)
    return path


def make_training_set(
    folder: str | os.PathLike[str],
    count: int,
    seed: int,
    jobs: int = 1,
    *,
    presets: Sequence[str] = (),
    shape: tuple[int, int] = (512, 512),
    bands: tuple[str, ...] = ("z", "r", "g"),
) -> Iterator[Path]:
    """Simulate scenes, of mixed surveys, depths and densities or of presets.

    Parameters
    ----------
    folder : `str` or `os.PathLike`
        Where to put them; made if it is not there. An interrupted call can
        be repeated and makes only what is missing.
    count : `int`
        Number of scenes.
    seed : `int`
        With the number of a scene, decides everything in it, whatever
        ``jobs`` is.
    jobs : `int`
        Processes.
    presets : `~collections.abc.Sequence` [`str`]
        Presets to take in turn; without any, kinds of scenes are drawn by
        `~.presets.random_scene_config`.
    shape : `tuple` [`int`, `int`]
        Height and width, px.
    bands : `tuple` [`str`, ...]
        Band order of the arrays.

    Yields
    ------
    path : `pathlib.Path`
        Scene files, in order, as they get ready.

    Raises
    ------
    ValueError
        Raised if a preset is not known.
    """
    folder = Path(folder)
    presets = _check_presets(presets)
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_make_one, folder=folder, seed=seed, presets=presets, shape=shape, bands=bands)
    if jobs == 1:
        yield from map(make, range(count))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(make, range(count))


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


class SimulatedSource(SceneSource):
    """Scenes straight from the simulator, each number another one.

    Parameters
    ----------
    seed : `int`
        With the number of a scene, decides everything in it.
    presets : `~collections.abc.Sequence` [`str`]
        Presets to take in turn; without any, kinds of scenes are drawn by
        `~.presets.random_scene_config`.
    shape : `tuple` [`int`, `int`]
        Height and width, px.
    bands : `tuple` [`str`, ...]
        Band order of the arrays.
    jobs : `int`
        Worker processes, started when the first scene is asked for; 0 makes
        scenes where they are asked for.
    ahead : `int`
        Scenes that are under way or waiting at most; they bound the memory.
    epoch : `int`
        Scenes that count as an epoch.

    Raises
    ------
    ValueError
        Raised if a preset is not known or a number is out of range.

    Notes
    -----
    Workers are spawned, so a script that uses this needs
    ``if __name__ == "__main__"``. Call `close`, or use it as a context
    manager, to end them. In the workers of a `torch.utils.data.DataLoader`,
    scenes are made where they are asked for.
    """

    endless = True
    """Every number has a scene of its own (`bool`)."""

    def __init__(
        self,
        seed: int,
        presets: Sequence[str] = (),
        shape: tuple[int, int] = (512, 512),
        bands: tuple[str, ...] = ("z", "r", "g"),
        jobs: int = 1,
        ahead: int = 8,
        epoch: int = 1000,
    ):
        for name, value, least in (("jobs", jobs, 0), ("ahead", ahead, 1), ("epoch", epoch, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}, wanted {least} or more")
        self.seed = seed
        self.presets = _check_presets(presets)
        self.shape = shape
        self.bands = bands
        self.jobs = jobs
        self.ahead = ahead
        self.epoch = epoch
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._pending: OrderedDict[int, Future[TrainingScene]] = OrderedDict()

    def __len__(self) -> int:
        return self.epoch

    def scene(self, number: int) -> TrainingScene:
        """Make a scene, or wait for it."""
        if not self._has_workers():
            return self._make(number)
        with self._lock:
            future = self._pending.pop(number, None) or self._submit(number)
        return future.result()

    def expect(self, numbers: Sequence[int]) -> None:
        """Start to make scenes that will be needed soon, the first needed first, at most ``ahead``."""
        if not self._has_workers():
            return
        wanted = list(numbers)[: self.ahead]
        with self._lock:
            # Scenes that are no longer needed must not fill the queue.
            for number in [number for number in self._pending if number not in wanted]:
                if len(self._pending) + len(wanted) <= self.ahead:
                    break
                self._pending.pop(number).cancel()
            for number in wanted:
                if number not in self._pending and len(self._pending) < self.ahead:
                    self._pending[number] = self._submit(number)

    def name(self, number: int) -> str:
        """Return the name of a scene for messages."""
        kind = self.presets[number % len(self.presets)] if self.presets else "mixture"
        return f"{kind} {number} of seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        """Describe what decides the scenes."""
        return {
            "kind": "simulated",
            "presets": list(self.presets) or "mixture",
            "shape": list(self.shape),
            "bands": list(self.bands),
            "seed": self.seed,
        }

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._pending.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Another process has workers of its own.
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        self._pool = None
        self._pending = OrderedDict()

    def _has_workers(self) -> bool:
        """Return whether workers make the scenes."""
        # A process that is a worker itself, of a data loader for one, may not start others.
        return self.jobs > 0 and not multiprocessing.current_process().daemon

    def _make(self, number: int) -> TrainingScene:
        return _simulate(number, self.seed, self.presets, self.shape, self.bands)

    def _submit(self, number: int) -> Future[TrainingScene]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_end_with_parent)
        return self._pool.submit(_simulate, number, self.seed, self.presets, self.shape, self.bands)
