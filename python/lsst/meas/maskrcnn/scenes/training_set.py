# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes on disk for the training loop; needs no LSST package."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..network.dataset import TrainingScene, write_scene
from .simulate import MASK_BITS, Scene, random_scene_config, simulate_scene
from .truth import truth_selection

__all__ = ["make_training_set", "to_training_scene"]

_MIN_PEAK_SHARE = 0.05
"""Sources with less of the light at their own peak are drowned by a neighbour
beyond recovery; asking for them would teach guessing."""


def to_training_scene(scene: Scene) -> TrainingScene:
    """Keep of a simulated scene what training needs.

    Parameters
    ----------
    scene : `lsst.meas.maskrcnn.scenes.simulate.Scene`
        The scene.

    Returns
    -------
    kept : `lsst.meas.maskrcnn.network.dataset.TrainingScene`
    """
    drawn = np.flatnonzero(
        truth_selection(scene, min_area=1, min_peak_snr=0.0, min_peak_share=_MIN_PEAK_SHARE)
    )
    sources = scene.sources[drawn]
    unusable = MASK_BITS["BAD"] | MASK_BITS["CR"] | MASK_BITS["NO_DATA"]
    # Normalisation wants a variance everywhere, though it takes no notice of it there.
    known = np.isfinite(scene.variance)
    variance = np.where(known, scene.variance, np.square(scene.sky_sigma, dtype=np.float32)[:, None, None])
    peak_snr = np.stack([sources[f"peak_snr_{band}"] for band in scene.bands], axis=1)
    return TrainingScene(
        noiseless=scene.noiseless,
        variance=variance,
        valid=~((scene.mask & unusable) != 0).any(axis=0),
        labels=np.where(sources["is_star"], 1, 2).astype(np.int64),
        peak_flux=(peak_snr * np.asarray(scene.sky_sigma)).astype(np.float32),
        origins=scene.origins[drawn],
        masks=[scene.masks[index] for index in drawn],
        noisy=scene.config.noise,
        psf_fwhm=np.array([psf.moments_fwhm(scene.pixel_scale) for psf in scene.psfs], np.float32),
    )


def _make_one(number: int, folder: Path, seed: int) -> Path:
    """Make scene ``number``; what is on disk already stays."""
    path = folder / f"scene_{seed}_{number:05d}.npz"
    if not path.exists():
        rng = np.random.default_rng([seed, number])
        write_scene(to_training_scene(simulate_scene(random_scene_config(rng), rng)), path)
    return path


def make_training_set(folder: str | os.PathLike[str], count: int, seed: int, jobs: int = 1) -> Iterator[Path]:
    """Simulate scenes of mixed surveys, depths and densities.

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

    Yields
    ------
    path : `pathlib.Path`
        Scene files, in order, as they get ready.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_make_one, folder=folder, seed=seed)
    if jobs == 1:
        yield from map(make, range(count))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(make, range(count))
