# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision of a model on simulated scenes that it has not seen.

    python tests/benchmarks/bench_accuracy.py [MODEL] [--count 14] [--seed 1000]

Pooled all-point AP at mask IoU 0.5 and 0.75, by the probability of the class.
Completeness and purity are at a probability of 0.5. Truth are sources of at least 12
pixels in the mask and, where there is noise, a peak of at least 5 sigma in some
band; fainter ones are neither hits nor misses.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from lsst.meas.maskrcnn.imaging.normalize import normalize
from lsst.meas.maskrcnn.metrics.average_precision import average_precision, greedy_match, mask_pairs
from lsst.meas.maskrcnn.network.inference import Detections, InferenceSettings, detect
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.presets import PRESETS, preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene
from lsst.meas.maskrcnn.scenes.truth import truth_selection

THRESHOLDS = (0.5, 0.75)


def matched(
    found: Detections, chosen: np.ndarray, scene: Scene, truth: np.ndarray, threshold: float
) -> np.ndarray:
    """Say which of the chosen detections have one of these truths."""
    pairs = mask_pairs(
        [found.masks[i] for i in chosen],
        found.origins[chosen],
        [scene.masks[i] for i in truth],
        scene.origins[truth],
    )
    return greedy_match(pairs, found.scores[chosen], len(truth), threshold) >= 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, default=default_model_path())
    parser.add_argument("--count", type=int, default=14, help="scenes per preset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--presets", nargs="+", default=sorted(PRESETS))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model = read_model(arguments.model)
    network = model.build()
    normalization = model.metadata.normalization
    settings = InferenceSettings(score_threshold=0.05)
    print(
        f"{'preset':18s} {'class':7s} {'truths':>6s} {'AP50':>6s} {'AP75':>6s} {'compl.':>6s} {'purity':>6s}"
    )
    for preset in arguments.presets:
        rows: dict[tuple[int, float], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        n_truth = {1: 0, 2: 0}
        for number in range(arguments.count):
            config = preset_config(preset, bands=model.metadata.bands)
            scene = simulate_scene(config, np.random.default_rng([arguments.seed, number]))
            unusable = MASK_BITS["BAD"] | MASK_BITS["CR"] | MASK_BITS["NO_DATA"]
            valid = ~((scene.mask & unusable) != 0).any(axis=0)
            image = normalize(
                normalization.name, scene.images, scene.variance, valid, normalization.settings
            ).image
            widths = [psf.moments_fwhm(scene.pixel_scale) for psf in scene.psfs]
            found = detect(network, image, valid, settings, psf_fwhm=widths)
            good = truth_selection(scene, min_peak_share=0.05)
            drawn = np.flatnonzero([mask.size > 0 for mask in scene.masks])
            for label in (1, 2):
                chosen = np.flatnonzero((found.p_star > 0.5) == (label == 1))
                truth = drawn[scene.sources["is_star"][drawn] == (label == 1)]
                counts = good[truth]
                for threshold in THRESHOLDS:
                    hit = matched(found, chosen, scene, truth[counts], threshold)
                    spare = np.zeros(len(chosen), dtype=bool)
                    spare[~hit] = matched(found, chosen[~hit], scene, truth[~counts], threshold)
                    chance = found.p_star if label == 1 else 1.0 - found.p_star
                    score = (found.scores * chance)[chosen]
                    rows[label, threshold].append((score[~spare], hit[~spare]))
                n_truth[label] += int(counts.sum())
        for label, name in ((1, "star"), (2, "galaxy")):
            pooled = {
                threshold: tuple(np.concatenate(part) for part in zip(*rows[label, threshold], strict=True))
                for threshold in THRESHOLDS
            }
            ap = [average_precision(*pooled[threshold], n_truth[label]) for threshold in THRESHOLDS]
            scores, hit = pooled[0.5]
            kept = scores >= 0.5
            print(
                f"{preset:18s} {name:7s} {n_truth[label]:6d} {ap[0]:6.3f} {ap[1]:6.3f} "
                f"{hit[kept].sum() / max(n_truth[label], 1):6.3f} "
                f"{hit[kept].sum() / max(kept.sum(), 1):6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
