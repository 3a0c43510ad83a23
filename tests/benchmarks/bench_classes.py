# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars and galaxies by the network alone, and with the widths of the joint fit.

    python tests/benchmarks/bench_classes.py fit [--count 12] [--seed 63000]
    python tests/benchmarks/bench_classes.py table [--count 6] [--seed 64000] [--out FILE]

``fit`` prints the numbers of ``profiles/classes.py``: of a logistic regression on scenes of six presets, with
stars counting five times, and of the mixture of surveys, with a constant for each of the two; that of the
presets is used. ``table`` prints completeness and purity of stars among the sources found, by S/N, on scenes
of each preset. The PSFs that are given have errors of 2 % in their widths.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from bench_bright import scene_image
from rst_table import print_table
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from tqdm import tqdm

from lsst.meas.maskrcnn.deblend.deblend import find_sources
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, load_model
from lsst.meas.maskrcnn.profiles import fit as joint_fit
from lsst.meas.maskrcnn.profiles.classes import width_evidence, width_features, with_width
from lsst.meas.maskrcnn.profiles.model import ProfileFit
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene
from lsst.meas.maskrcnn.scenes.survey_mixture import draw_survey_scene, random_survey_config

PRESETS = ("decam-120s", "hsc-500s", "hsc-deep", "hsc-wide", "lsst-10yr", "lsst-1yr")
DENSE = ("crowded", "cluster")
STAR_WEIGHT = 5.0
"""That of stars in the losses of the network's classes."""
EDGES = (5.0, 10.0, 20.0, 50.0, np.inf)
PSF_ERROR = 0.02
FEWEST = 5
"""Fewest stars of a bin."""


@dataclass
class Classified:
    """Sources that are one of the truth."""

    is_star: np.ndarray
    p_star: np.ndarray
    """By the network."""
    features: np.ndarray
    evidence: np.ndarray
    snr: np.ndarray

    @classmethod
    def sum(cls, parts: list[Classified]) -> Classified:
        """Put scenes together."""
        return cls(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])))


def classify(model: MaskRcnnModel, scene: Scene, rng: np.random.Generator) -> Classified:
    """Find the sources of a scene, and match those of the truth within half a FWHM."""
    recorded: list[Classified] = []
    places: list[np.ndarray] = []

    def record(fit: ProfileFit, p_star: np.ndarray, fwhm: float) -> np.ndarray:
        snr = np.sqrt(np.nansum((fit.flux / fit.flux_errors) ** 2, axis=1))
        features, evidence = width_features(fit, p_star, fwhm), width_evidence(fit, p_star, fwhm)
        places.append(fit.parameters[:, :2].copy())
        recorded.append(Classified(np.zeros(len(snr), bool), np.asarray(p_star), features, evidence, snr))
        return evidence

    psfs = [replace(psf, fwhm=psf.fwhm * (1.0 + PSF_ERROR * rng.normal())) for psf in scene.psfs]
    image = scene_image(replace(scene, psfs=psfs))
    with mock.patch.object(joint_fit, "width_evidence", record):
        find_sources(image, model)
    truth = scene.sources[scene.sources["area"] > 0]
    distance, nearest = cKDTree(np.stack([truth["y"], truth["x"]], axis=1)).query(places[0])
    near = distance < 0.5 * image.fwhm
    recorded[0].is_star = truth["is_star"][nearest]
    return Classified(*(values[near] for values in vars(recorded[0]).values()))


def preset_scenes(name: str, count: int, seed: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Simulate scenes of a preset in z, r and g."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        config = preset_config(name, shape=(512, 512), bands=("z", "r", "g"))
        yield simulate_scene(config, rng), rng


def mixture_scenes(count: int, seed: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Simulate scenes of the mixture of surveys with noise."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        scene = draw_survey_scene(random_survey_config(rng, (384, 384)), rng)
        if np.count_nonzero(scene.sources["area"] > 0) < 2:
            continue
        gain = np.asarray(scene.electrons_per_njy)[:, None, None]
        variance = scene.sky_sigma[:, None, None] ** 2 + np.maximum(scene.noiseless, 0.0) / gain
        noise = np.sqrt(variance) * rng.normal(size=variance.shape)
        images = (scene.noiseless + noise).astype(np.float32)
        yield replace(scene, images=images, variance=variance.astype(np.float32)), rng


def fit(model: MaskRcnnModel, count: int, seed: int) -> None:
    """Print the coefficients."""
    kinds = {
        "presets": [item for name in PRESETS for item in preset_scenes(name, count, seed)],
        "mixture": list(mixture_scenes(15 * count, seed)),
    }
    rows, stars, weights = [], [], []
    for number, (kind, scenes) in enumerate(kinds.items()):
        found = Classified.sum([classify(model, *item) for item in tqdm(scenes, desc=kind)])
        good = np.isfinite(found.features).all(axis=1) & (found.snr > 3.0)
        p = np.clip(found.p_star[good], 1e-4, 1.0 - 1e-4)
        constants = np.zeros((len(p), len(kinds)))
        constants[:, number] = 1.0
        odds = np.log(p) - np.log1p(-p)
        rows.append(np.column_stack([constants, odds, found.features[good, 1:]]))
        stars.append(found.is_star[good])
        heavy = STAR_WEIGHT if kind == "presets" else 1.0
        weights.append(np.where(stars[-1], heavy, 1.0) / len(p))
    x, y, weight = np.concatenate(rows), np.concatenate(stars), np.concatenate(weights)

    def loss(b: np.ndarray) -> float:
        return float(weight @ np.logaddexp(0.0, np.where(y, -1.0, 1.0) * (x @ b)) + 1e-3 * b @ b)

    result = minimize(loss, np.zeros(x.shape[1]), method="BFGS").x
    print("weight of the odds", np.round(result[len(kinds)], 2))
    print("coefficients", np.round([result[0], *result[len(kinds) + 1 :]], 2))
    print("constants", dict(zip(kinds, np.round(result, 2).tolist())))


def table(model: MaskRcnnModel, count: int, seed: int, out: Path | None) -> None:
    """Print completeness and purity of stars."""
    rows = []
    for name in tqdm((*PRESETS, *DENSE), unit="preset"):
        found = Classified.sum([classify(model, *item) for item in preset_scenes(name, count, seed)])
        joint = with_width(found.p_star, found.evidence)
        for low, high in zip(EDGES, EDGES[1:]):
            of_bin = (found.snr >= low) & (found.snr < high)
            star = found.is_star[of_bin]
            if np.count_nonzero(star) < FEWEST:
                continue
            cells = []
            for p in (found.p_star[of_bin], joint[of_bin]):
                called = p >= 0.5
                purity = f"{star[called].mean():.2f}" if called.any() else "-"
                cells.append(f"{called[star].mean():.2f} / {purity}")
            snr = f"{low:g} to {high:g}".replace(" to inf", " and more")
            rows.append([name, snr, f"{np.count_nonzero(star)}", *cells])
    print_table(["preset", "S/N", "stars", "network", "with widths"], rows, out)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fit", "table"))
    parser.add_argument("model", nargs="?", default="lite")
    parser.add_argument("--count", type=int, default=6, help="scenes of each preset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=64000, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    if arguments.what == "fit":
        fit(model, arguments.count, arguments.seed)
    else:
        table(model, arguments.count, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
