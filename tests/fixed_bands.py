# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small network of the bands r and g that has learned one scene, and scenes of such sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, normalize
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, ModelMetadata
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.augment import AugmentSettings
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.loop import train
from lsst.meas.maskrcnn.train.scene_sources import SceneFiles
from lsst.meas.maskrcnn.train.stages import StageSettings, TrainSettings
from lsst.meas.maskrcnn.train.training_scene import TrainingScene, write_scene

POSITIONS = [(20, 30), (24, 100), (60, 62), (95, 20), (100, 96), (64, 114)]
"""(y, x) of the sources of the scene."""


def toy_scene(
    height: int = 128, width: int = 128, positions: Sequence[tuple[float, float]] = POSITIONS
) -> TrainingScene:
    """Draw round and elongated Gaussians (stars and galaxies) in two bands, on noise of 1."""
    y, x = np.mgrid[:height, :width]
    noiseless = np.zeros((2, height, width), dtype=np.float32)
    masks, origins, labels, peaks = [], [], [], []
    for number, (y0, x0) in enumerate(positions):
        star = number % 2 == 0
        sigma_x, sigma_y = (2.0, 2.0) if star else (6.0, 3.5)
        profile = np.exp(-0.5 * (((x - x0) / sigma_x) ** 2 + ((y - y0) / sigma_y) ** 2))
        flux = 100.0 * np.array([1.0, 1.5 if star else 0.5])
        noiseless += (flux[:, None, None] * profile).astype(np.float32)
        mask = profile > 0.08
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        masks.append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        origins.append((rows[0], columns[0]))
        labels.append(1 if star else 2)
        peaks.append(flux)
    return TrainingScene(
        noiseless=noiseless,
        variance=np.full_like(noiseless, 1.0),
        valid=np.ones((height, width), dtype=bool),
        labels=np.array(labels, dtype=np.int64),
        peak_flux=np.array(peaks, dtype=np.float32),
        origins=np.array(origins, dtype=np.int32),
        masks=masks,
    )


def grid(height: int, width: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Positions (y, x) about 45 px apart."""
    return [
        (y + rng.integers(-4, 5), x + rng.integers(-4, 5))
        for y in range(24, height - 20, 44)
        for x in range(26, width - 20, 48)
    ]


def observe(scene: TrainingScene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw noise on a scene and normalise it; the usable pixels as well."""
    result = normalize(LuptonSettings(), noisy(scene, rng), scene.variance, scene.valid)
    return result.image, result.valid


def noisy(scene: TrainingScene, rng: np.random.Generator) -> np.ndarray:
    """Draw noise on a scene."""
    flux = scene.noiseless + np.sqrt(scene.variance) * rng.standard_normal(scene.variance.shape)
    return flux.astype(np.float32)


def toy_image(scene: TrainingScene, rng: np.random.Generator) -> MultibandImage:
    """Make an image of a scene, with noise."""
    fwhm = 2.0 * 2.3548
    return MultibandImage(noisy(scene, rng), ("r", "g"), 0.2, scene.variance, psf_fwhm=[fwhm, fwhm])


def learn(folder: Path) -> MaskRcnnModel:
    """Train on one scene until the network knows it; takes some ten seconds."""
    write_scene(toy_scene(), folder / "scene.npz")
    augment = AugmentSettings(depth_probability=1.0, depth_range=(0.5, 2.0))
    crops = CropSettings(size=128, crops_per_scene=4)
    source = CropSource(SceneFiles([folder / "scene.npz"]), LuptonSettings(), crops, seed=5, augment=augment)
    stage = StageSettings("all", steps=150, batch_size=2, learning_rate=0.02, warmup_steps=20, decay="cosine")
    schedule = TrainSettings(stages=(stage,), average_decay=0.9, seed=5)
    metadata = ModelMetadata(
        name="toy",
        architecture=NetworkSpec.light(2),
        bands=("r", "g"),
        normalization=LuptonSettings(),
        pixel_scale=0.2,
    )
    return train(source, metadata, schedule, folder / "toy.safetensors").model
