# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Crops for networks that take any bands: of a survey's images, and of files of simulated scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..metrics.arrays import Float32Array
from ..network.any_band_detect import normalize_bands
from ..network.psf import USUAL_FWHM
from ..scenes.config import MaskRule
from .band_scenes import BandScene, draw_crop, read_band_scene
from .dataset import CROP_STREAM, Crops, CropSettings, SceneCache, SceneCrops
from .scene_sources import SceneFiles, SceneSource
from .training_scene import TrainingScene

_NO_PHOTON_NOISE = 1e9

_SCENES_AT_ONCE = 8
"""Scenes that are kept."""


class BandCropSource(SceneCrops):
    """Cuts crops for an `~lsst.meas.maskrcnn.network.any_band.AnyBandNetwork` from scenes.

    Crops are those of `~.band_scenes.draw_crop`: some of the bands, deeper or shallower, turned. Which
    sources are to be found goes by their S/N, not by the settings. Given are the names and effective
    wavelengths (nm) of the bands of the scenes, and the side of a pixel (arcsec); the others are as in
    `SceneCrops`.
    """

    def __init__(
        self,
        scenes: SceneSource,
        bands: Sequence[str],
        wavelengths: Sequence[float],
        pixel_scale: float,
        settings: CropSettings,
        seed: int,
        n_pixels: float | None,
    ):
        super().__init__(scenes, settings, seed, n_pixels)
        self.bands, self.wavelengths, self.pixel_scale = tuple(bands), list(wavelengths), pixel_scale
        self._band_scenes = SceneCache(_SCENES_AT_ONCE)

    def describe(self) -> dict[str, Any]:
        """Describe by plain values what decides the crops, for checkpoints and the header of a model."""
        return {
            "scenes": self.scenes.describe(),
            "bands": list(self.bands),
            "wavelengths": self.wavelengths,
            "pixel_scale": self.pixel_scale,
            "size": self.settings.size,
            "crops_per_scene": self.crops_per_scene,
            "seed": self.seed,
        }

    def band_scene(self, number: int) -> BandScene:
        """Return a scene in units of its noise."""
        return survey_scene(self.scenes.scene(number), self.wavelengths, self.pixel_scale)

    def _crop(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = self._scene_number(self._group(number))
        scene: BandScene = self._band_scenes.get(index, lambda: self.band_scene(index), lambda _: 1)
        return draw_crop(scene, self._rng(CROP_STREAM, number), self.settings.size)


class BandSceneFiles:
    """Cuts crops of ``size`` px from the files of `~.band_scenes.write_band_scene`.

    The seed, with the number of a crop, decides everything in it.
    """

    def __init__(self, paths: Sequence[Path], size: int, seed: int):
        self.paths, self.size, self.seed = list(paths), size, seed

    @property
    def n_images(self) -> int:
        """Number of crops in an epoch (`int`), one for each file."""
        return len(self.paths)

    def crops(self, numbers: Sequence[int]) -> Crops:
        """Make crops, as `~.dataset.SceneCrops.crops` does."""
        made = []
        for number in numbers:
            rng = np.random.default_rng([self.seed, int(number)])
            scene = read_band_scene(self.paths[int(rng.integers(len(self.paths)))])
            made.append(draw_crop(scene, rng, self.size))
        return [image for image, _ in made], [target for _, target in made]

    def describe(self) -> dict[str, Any]:
        """Describe by plain values what decides the crops."""
        return {"scenes": SceneFiles(self.paths).describe(), "size": self.size, "seed": self.seed}


def survey_scene(scene: TrainingScene, wavelengths: Sequence[float], pixel_scale: float) -> BandScene:
    """Bring a scene into the form from which crops for any bands are drawn.

    The light without noise is used where it is known. Effective wavelengths of the bands are in nm, the side
    of a pixel in arcsec. All bands have the same masks, and the S/N of a source is that of a Gaussian of its
    peak and width: of the PSF for stars, of the mask for galaxies.
    """
    bands = len(scene.variance)
    fwhm = np.zeros(bands, np.float32) if scene.psf_fwhm is None else np.nan_to_num(scene.psf_fwhm)
    valid = np.broadcast_to(scene.valid, scene.variance.shape)
    light, noisy = scene.noiseless, scene.noiseless is None
    if scene.image is not None and light is None and scene.valid.any():
        normalized = normalize_bands(scene.image, valid, fwhm, wavelengths, scene.variance)
        pixels, sigma = normalized.pixels, normalized.noise
    else:
        known = scene.variance[:, scene.valid] if scene.valid.any() else scene.variance.reshape(bands, -1)
        sigma = np.sqrt(np.median(known, axis=1)).astype(np.float32)
        pixels = np.zeros_like(scene.variance) if light is None else light / sigma[:, None, None]
    areas = np.array([np.count_nonzero(mask) for mask in scene.masks], float)
    width = np.where(fwhm > 0, fwhm, USUAL_FWHM) / 2.355
    # Without levels those of the published rule.
    level = MaskRule().galaxy_fraction if scene.mask_levels is None else scene.mask_levels[1]
    size = np.sqrt(areas / (2.0 * np.pi * -math.log(level)))[:, None]
    width = np.where((scene.labels == 1)[:, None], width, np.maximum(width, size))
    middles = scene.origins + [(np.array(mask.shape) - 1) / 2 for mask in scene.masks] if len(areas) else None
    return BandScene(
        pixels=pixels.astype(np.float32),
        sigma=sigma,
        gain=np.full(bands, _NO_PHOTON_NOISE, np.float32) if noisy else _gains(pixels, scene, sigma),
        fwhm=fwhm.astype(np.float32),
        wavelength=np.asarray(wavelengths, np.float32),
        wings=np.zeros(bands, np.float32),
        pixel_scale=np.array([pixel_scale], np.float32),
        unusable=~valid,
        saturated=np.zeros(scene.variance.shape, bool),
        positions=np.asarray(middles if scene.positions is None else scene.positions, np.float32).reshape(
            -1, 2
        ),
        labels=scene.labels,
        snr=(scene.peak_flux / sigma * math.sqrt(math.pi) * width).astype(np.float32),
        peak_share=np.where(False if scene.ignore is None else scene.ignore, 0.0, np.ones(len(areas))).astype(
            np.float32
        ),
        origins=scene.origins,
        masks=[np.broadcast_to(mask, (bands, *mask.shape)) for mask in scene.masks],
        noisy=noisy,
    )


def _gains(pixels: Float32Array, scene: TrainingScene, sigma: Float32Array) -> Float32Array:
    """Photons per sigma of each band, by the variance of bright pixels."""
    gains = np.full(len(sigma), _NO_PHOTON_NOISE, np.float32)
    for band, (plane, variance) in enumerate(zip(pixels, scene.variance)):
        excess = variance / sigma[band] ** 2 - 1.0
        bright = scene.valid & (plane > 5.0) & (excess > 0.01)
        if bright.any():
            gains[band] = np.median(plane[bright] / excess[bright])
    return gains
