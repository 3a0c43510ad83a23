# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision of models on simulated scenes that they have not seen.

    python tests/benchmarks/bench_accuracy.py [MODEL ...] [--count 14] [--seed 1000]

Pooled all-point AP of masks, ranked by the probability of the class, with bootstrap
errors over the scenes. Truth are sources of at least 12 pixels in the mask and, where
there is noise, a peak of at least ``--min-peak-snr`` in some band and a matched-filter
S/N of at least ``--min-snr`` in all together; fainter ones are neither hits nor misses.
Models for any bands get z, r and g as the others do; sources above their default threshold are as the
deblender gives them, with the widths of the joint fit. This goes around the Butler;
MaskRcnnEvaluateTask is the way for data in a repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rst_table import print_table
from tqdm import tqdm

from lsst.meas.maskrcnn.deblend.any_band import detect_any_band, image_wavelengths
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.images.normalize import normalize
from lsst.meas.maskrcnn.metrics.average_precision import ap_statistic, collect_outcomes
from lsst.meas.maskrcnn.metrics.bootstrap import bootstrap
from lsst.meas.maskrcnn.metrics.matching import ImagePairs
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, detect
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, load_model
from lsst.meas.maskrcnn.scenes.presets import PRESETS, preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.train.training_scene import TrainingScene
from lsst.meas.maskrcnn.train.training_set import to_training_scene
from lsst.meas.maskrcnn.train.validation import LOWEST_SCORE, asked_sources, realize_scene

BANDS = ("z", "r", "g")
"""Of models for any bands."""

CLASSES = {"star": 1, "galaxy": 2}

PresetScene = tuple[TrainingScene, list[np.ndarray]]
"""A scene and images of its PSFs."""


def make_scenes(
    preset: str, count: int, seed: int, bands: tuple[str, ...], min_snr: float = 0.0
) -> list[PresetScene]:
    """Simulate scenes of a preset."""
    config = preset_config(preset, bands=bands)
    scenes: list[PresetScene] = []
    for number in range(count):
        scene = simulate_scene(config, np.random.default_rng([seed, number]))
        snr = np.sqrt(sum(scene.sources[f"snr_{band}"] ** 2 for band in bands))
        kept = to_training_scene(scene, keep_image=True)
        faint = snr[scene.sources["area"] >= 1] < min_snr
        kept = replace(kept, ignore=kept.ignore | faint if kept.noisy else kept.ignore)
        scenes.append((kept, [psf.image(41, scene.pixel_scale) for psf in scene.psfs]))
    return scenes


def find(
    model: MaskRcnnModel,
    preset_scene: PresetScene,
    min_peak_snr: float,
    rng: np.random.Generator,
    pixel_scale: float,
) -> tuple[Detections, np.ndarray]:
    """Find the sources of a scene; which truths count."""
    scene, psf = preset_scene
    flux, variance, sky_sigma = realize_scene(scene, rng)
    asked = asked_sources(scene, sky_sigma, 12, min_peak_snr)
    settings, network = DetectionSettings(score_threshold=LOWEST_SCORE), model.build().eval()
    if model.takes_any_bands:
        valid = scene.valid
        image = MultibandImage(flux, BANDS, pixel_scale, variance, usable=valid, psf=psf)
        wavelengths, calibration = image_wavelengths(image), model.metadata.calibration
        faint = detect_any_band(network, image, wavelengths, settings, calibration=calibration)[0]
        threshold = model.metadata.architecture.detection_score
        above = DeblendSettings(detection=DetectionSettings(score_threshold=threshold))
        found = find_sources(image, model, above).detections
        return Detections.concatenate([found, faint.take(faint.scores < threshold)]), asked
    network.roi_heads.detections_per_img = 2000
    item = normalize(model.metadata.normalization, flux, variance, scene.valid, overwrite=True)
    return detect(network, item.image, item.valid, settings, psf_fwhm=scene.psf_fwhm), asked


def precision(
    model: MaskRcnnModel,
    scenes: Sequence[PresetScene],
    min_peak_snr: float = 5.0,
    seed: int = 0,
    pixel_scale: float = 0.168,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return AP50, AP75 and AP[.5:.95] of each class with their errors."""
    images = []
    for number, scene in enumerate(scenes):
        found, asked = find(model, scene, min_peak_snr, np.random.default_rng([seed, number]), pixel_scale)
        truth = scene[0]
        star = found.p_star >= 0.5
        images.append(
            ImagePairs.from_spans(
                SpanMasks.from_masks(found.masks, found.origins),
                found.scores,
                np.where(star, 1, 2),
                SpanMasks.from_masks(truth.masks, truth.origins),
                truth.labels,
                name=str(number),
                class_scores=found.scores * np.where(star, found.p_star, 1.0 - found.p_star),
                truth_ignored=~asked,
            )
        )
    result = {}
    for name, label in CLASSES.items():
        statistic = ap_statistic(collect_outcomes(images, label), "pooled")
        figures = bootstrap(statistic, np.random.default_rng(seed), 500)
        value, error = np.asarray(figures.value), np.asarray(figures.error)
        result[name] = {
            "AP50": (float(value[0]), float(error[0])),
            "AP75": (float(value[5]), float(error[5])),
            "AP": (float(value.mean()), float(error.mean())),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["lite"], help="names or files (default: lite)")
    parser.add_argument("--count", type=int, default=14, help="scenes per preset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--presets", nargs="+", default=sorted(PRESETS))
    parser.add_argument("--min-peak-snr", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--min-snr", type=float, default=0.0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for path in arguments.models:
        model = load_model(path)
        rows = []
        for preset in tqdm(arguments.presets, unit="preset"):
            bands = model.metadata.bands or BANDS
            scenes = make_scenes(preset, arguments.count, arguments.seed, bands, arguments.min_snr)
            scale = PRESETS[preset].pixel_scale
            figures = precision(model, scenes, arguments.min_peak_snr, arguments.seed, scale)
            for name, values in figures.items():
                cells = [f"{values[key][0]:.3f} ± {values[key][1]:.3f}" for key in ("AP50", "AP75", "AP")]
                rows.append([preset, name, *cells])
        print(path)
        print_table(["preset", "class", "AP50", "AP75", "AP"], rows, arguments.out)


if __name__ == "__main__":
    main()
