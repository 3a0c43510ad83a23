# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision of models on simulated scenes that they have not seen.

    python tests/benchmarks/bench_accuracy.py [MODEL ...] [--count 14] [--seed 1000]

Pooled all-point AP of masks, ranked by the probability of the class, with bootstrap
errors over the scenes. Truth are sources of at least 12 pixels in the mask and, where
there is noise, a peak of at least ``--min-peak-snr`` in some band; fainter ones are
neither hits nor misses. This goes around the Butler; MaskRcnnEvaluateTask is the way
for data in a repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lsst.meas.maskrcnn.deblend.detection import detect
from lsst.meas.maskrcnn.metrics.average_precision import ap_statistic, collect_outcomes
from lsst.meas.maskrcnn.metrics.bootstrap import bootstrap
from lsst.meas.maskrcnn.metrics.matching import ImagePairs
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, default_model_path, read_model
from lsst.meas.maskrcnn.scenes.presets import PRESETS, preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.train.training_scene import TrainingScene
from lsst.meas.maskrcnn.train.training_set import to_training_scene
from lsst.meas.maskrcnn.train.validation import LOWEST_SCORE, validation_image

CLASSES = {"star": 1, "galaxy": 2}


def make_scenes(preset: str, count: int, seed: int, bands: tuple[str, ...]) -> list[TrainingScene]:
    """Simulate scenes of a preset."""
    config = preset_config(preset, bands=bands)
    return [
        to_training_scene(simulate_scene(config, np.random.default_rng([seed, number])), keep_image=True)
        for number in range(count)
    ]


def precision(
    model: MaskRcnnModel, scenes: Sequence[TrainingScene], min_peak_snr: float = 5.0, seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return AP50, AP75 and AP[.5:.95] of each class with their errors."""
    network = model.build()
    network.roi_heads.detections_per_img = 2000
    normalization = model.metadata.normalization
    images = []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, number])
        item = validation_image(scene, normalization, rng, min_peak_snr=min_peak_snr)
        settings = DetectionSettings(score_threshold=LOWEST_SCORE)
        found = detect(network, item.image, item.valid, settings, psf_fwhm=item.psf_fwhm)
        star = found.p_star >= 0.5
        images.append(
            ImagePairs.from_spans(
                SpanMasks.from_masks(found.masks, found.origins),
                found.scores,
                np.where(star, 1, 2),
                SpanMasks.from_masks(item.masks, item.origins),
                item.labels,
                name=str(number),
                class_scores=found.scores * np.where(star, found.p_star, 1.0 - found.p_star),
                truth_ignored=~item.asked,
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


def print_table(rows: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]) -> None:
    """Print figures by preset and class."""
    print(f"{'preset':20s} {'class':7s} {'AP50':>13s} {'AP75':>13s} {'AP':>13s}")
    for preset, classes in rows.items():
        for name, figures in classes.items():
            cells = [f"{figures[key][0]:.3f} ± {figures[key][1]:.3f}" for key in ("AP50", "AP75", "AP")]
            print(f"{preset:20s} {name:7s} {' '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path, default=[default_model_path()])
    parser.add_argument("--count", type=int, default=14, help="scenes per preset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--presets", nargs="+", default=sorted(PRESETS))
    parser.add_argument("--min-peak-snr", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for path in arguments.models:
        model = read_model(path)
        rows = {}
        for preset in tqdm(arguments.presets, unit="preset"):
            scenes = make_scenes(preset, arguments.count, arguments.seed, model.metadata.bands)
            rows[preset] = precision(model, scenes, arguments.min_peak_snr, arguments.seed)
        print(path)
        print_table(rows)


if __name__ == "__main__":
    main()
