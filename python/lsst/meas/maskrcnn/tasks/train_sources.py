# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a training reads: crops, and scenes for validation, as the network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..network.any_band import AnyBandSpec
from ..network.inference import DetectionSettings
from ..network.model_file import ModelMetadata
from ..network.wavelengths import band_wavelength
from ..report.validation_picture import DrawnValidation
from ..train.any_band_validation import BandSceneValidator
from ..train.band_crops import BandCropSource
from ..train.dataset import CropSource
from ..train.loop import Validate
from ..train.scene_sources import SceneSource
from ..train.validation import LOWEST_SCORE, SceneValidator
from .train_connections import MaskRcnnTrainConfig


def make_source(
    config: MaskRcnnTrainConfig,
    scenes: SceneSource,
    metadata: ModelMetadata,
    bands: Sequence[str],
    n_pixels: float | None = None,
) -> CropSource | BandCropSource:
    """Make the source of the crops of a training, as the network takes them.

    Crops are cut from scenes in some bands, of ``n_pixels`` pixels each in the mean.
    """
    crops, seed = config.crops.settings(), config.engine.seed
    if isinstance(metadata.architecture, AnyBandSpec):
        wavelengths = [band_wavelength(band, config.wavelengths) for band in bands]
        return BandCropSource(scenes, bands, wavelengths, metadata.pixel_scale, crops, seed, n_pixels)
    psf_channels, augment = metadata.architecture.psf_channels, config.augment.settings()
    return CropSource(scenes, metadata.fixed_normalization, crops, seed, psf_channels, augment, n_pixels)


def make_validator(
    config: MaskRcnnTrainConfig,
    scenes: SceneSource,
    metadata: ModelMetadata,
    bands: Sequence[str],
    pictures: Path | None,
) -> Validate:
    """Make the validation of a training, which takes a network and returns its figures.

    If there is a folder for them, pictures of each validation are drawn.
    """
    validator: BandSceneValidator | SceneValidator
    source = make_source(config, scenes, metadata, bands)
    if isinstance(source, BandCropSource):
        validator = BandSceneValidator(source.band_scene, len(scenes))
    else:
        settings = DetectionSettings(score_threshold=LOWEST_SCORE, precision=config.engine.precision)
        validator = SceneValidator(scenes, metadata.fixed_normalization, settings)
    return validator if pictures is None else DrawnValidation(validator, pictures, metadata.pixel_scale)
