# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn train --dry-run``: what the data of a training hold, and how long it would take."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..network.inference import select_device
from ..network.model_file import ModelMetadata
from ..tasks.train import MaskRcnnTrainTask
from ..train.band_crops import BandCropSource
from ..train.dataset import CropSource
from ..train.loop import TrainResult, train
from ..train.scene_sources import SceneSource

_MOST_SCENES = 100
_STEPS = 3


class DryRunDone(Exception):
    """All was said, and nothing is to be trained."""


class DryRunTask(MaskRcnnTrainTask):
    """Says what the data hold and times a few steps, in place of a training."""

    def _run_engine(
        self, source: CropSource | BandCropSource, metadata: ModelMetadata, output: Path, **options: Any
    ) -> TrainResult:
        bands = self.metadata.getArray("bands")
        print("\n".join(describe_scenes(source.scenes, bands, metadata.pixel_scale)))
        settings = self.config.settings()
        first = dataclasses.replace(settings.stages[0], steps=_STEPS)
        short = dataclasses.replace(settings, stages=(first,), minutes=None)
        device = self.config.engine.device
        with tempfile.TemporaryDirectory() as folder:
            initial = options["initial"]
            done = train(source, metadata, short, Path(folder) / "model", initial=initial, device=device)
        steps = sum(settings.stage_steps(source.n_images))
        seconds = done.history[-1]["seconds"]
        minutes = steps * seconds / 60.0
        if settings.minutes is not None and settings.minutes < minutes:
            steps, minutes = round(60.0 * settings.minutes / seconds), settings.minutes
        print(
            f"A step of {first.batch_size} crops takes {seconds:.2g} s on {select_device(device)}: {steps:,} "
            f"steps, about {int(minutes // 60)} h {minutes % 60:.0f} min and the time of the validations. "
            "Nothing was trained."
        )
        raise DryRunDone


def describe_scenes(scenes: SceneSource, bands: Sequence[str], pixel_scale: float) -> list[str]:
    """Say in a few lines what scenes hold."""
    numbers = np.unique(np.linspace(0, len(scenes) - 1, min(len(scenes), _MOST_SCENES)).astype(int))
    some = [scenes.scene(int(number)) for number in numbers]
    labels = np.concatenate([scene.labels for scene in some])
    ignored = sum(0 if scene.ignore is None else int(scene.ignore.sum()) for scene in some)
    sigma = np.array([np.sqrt(np.median(scene.variance, axis=(1, 2))) for scene in some])
    peaks = np.concatenate([(one.peak_flux / noise).max(axis=1) for one, noise in zip(some, sigma)])
    areas = np.array([np.count_nonzero(mask) for scene in some for mask in scene.masks], float)
    unknown = np.full(len(bands), np.nan)
    fwhm = pixel_scale * np.array([unknown if one.psf_fwhm is None else one.psf_fwhm for one in some])
    shapes = sorted({scene.valid.shape for scene in some})
    sides = " and ".join(f"{width} x {height}" for height, width in shapes[:3])
    n_star = int((labels == 1).sum())
    return [
        f"{len(scenes)} scenes of {sides}{' and other' if len(shapes) > 3 else ''} px, {pixel_scale:g} "
        f"arcsec per pixel; what follows is of {len(some)} of them.",
        f"{len(labels)} sources: {n_star} stars, {len(labels) - n_star} galaxies; {ignored} of them are "
        "ignored in the loss.",
        f"S/N of the brightest pixel in the best band: {_percentiles(peaks)}.",
        f"Diameter of a circle of the mask's area (px): {_percentiles(2.0 * np.sqrt(areas / np.pi))}.",
        *(
            f"Band {band}: FWHM of the PSF (arcsec) {_percentiles(fwhm[:, k])}; noise of a pixel (nJy) "
            f"{_percentiles(sigma[:, k])}."
            for k, band in enumerate(bands)
        ),
    ]


def _percentiles(values: npt.NDArray[np.floating]) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "not known"
    low, middle, high = np.percentile(known, [10, 50, 90])
    return f"median {middle:.3g}, 10 to 90 % from {low:.3g} to {high:.3g}"
