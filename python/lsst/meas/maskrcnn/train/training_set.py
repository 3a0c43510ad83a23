# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes for the training loop; needs no LSST package."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..images.pixels import usable_pixels
from ..scenes.artefacts import MASK_BITS
from ..scenes.config import MaskRule
from ..scenes.presets import PRESETS, preset_config
from ..scenes.simulate import Scene, simulate_scene
from .training_scene import TrainingScene, write_scene

MIN_PEAK_SHARE = 0.05
"""Sources that make up less of the light at their own peak cannot be found
beside their neighbour; they are ignored in the loss (`float`)."""


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


def _make_one(
    number: int,
    folder: Path,
    seed: int,
    presets: tuple[str, ...],
    shape: tuple[int, int],
    bands: tuple[str, ...],
) -> Path:
    """Make the file of scene ``number``; what is on disk already stays."""
    preset = presets[number % len(presets)]
    path = folder / f"{preset}_{seed}_{number:05d}.npz"
    if not path.exists():
        config = preset_config(preset, shape=shape, bands=bands)
        scene = simulate_scene(config, np.random.default_rng([seed, number]))
        write_scene(to_training_scene(scene), path)
    return path


def make_training_set(
    folder: str | os.PathLike[str],
    count: int,
    seed: int,
    jobs: int = 1,
    *,
    presets: Sequence[str] = tuple(PRESETS),
    shape: tuple[int, int] = (512, 512),
    bands: tuple[str, ...] = ("z", "r", "g"),
) -> Iterator[Path]:
    """Simulate scenes of presets, in turn, and yield their files in order, as they get ready.

    The folder is made if it is not there; an interrupted call can be repeated and makes
    only what is missing. The seed and the number of a scene decide everything in it,
    whatever the number of processes, ``jobs``. The shape is (y, x) in px, and bands are
    in the order of the arrays.
    """
    folder = Path(folder)
    unknown = sorted(set(presets) - set(PRESETS))
    if unknown:
        raise ValueError(f"There is no preset {', '.join(unknown)}; known are {', '.join(PRESETS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_make_one, folder=folder, seed=seed, presets=tuple(presets), shape=shape, bands=bands)
    if jobs == 1:
        yield from map(make, range(count))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(make, range(count))
