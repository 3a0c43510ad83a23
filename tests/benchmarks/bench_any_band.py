# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Completeness of a model for any bands, by bands, pixel scale and score threshold.

    python tests/benchmarks/bench_any_band.py bands [MODEL]
    python tests/benchmarks/bench_any_band.py scales [MODEL]
    python tests/benchmarks/bench_any_band.py thresholds [MODEL] [--scenes FOLDER]

``bands``: the same scenes of the preset lsst-1yr seen in several sets of bands. ``scales``: the same
sky, with the seeing of 0.85 arcsec and the depth of lsst-1yr in g r z, in pixels of several
sizes. ``thresholds``: scenes of the mixture of surveys, or those of maskrcnn train-any-band scenes in
FOLDER, with bands, depths and noise drawn as in training. Detections and truths are matched one
to one within a FWHM. Truths are those of a matched-filter S/N of 5 or more (of ``bands`` in r, so that all
sets have the same), not masked, with 5 % or more of the light at their peak. Purity counts
every truth of S/N 3 or more in the bands that are given. Tables are reStructuredText.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_bright import scene_image
from rst_table import print_table
from tqdm import tqdm

from lsst.meas.maskrcnn.cli.calibrate import _simulate_bands
from lsst.meas.maskrcnn.deblend.any_band import detect_any_band, image_wavelengths
from lsst.meas.maskrcnn.metrics.calibration import threshold_at_purity
from lsst.meas.maskrcnn.network.any_band_detect import detect_bands
from lsst.meas.maskrcnn.network.calibration import calibrate
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, load_model
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig, PsfConfig, SceneConfig
from lsst.meas.maskrcnn.scenes.populations import draw_population
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, draw_scene, simulate_scene
from lsst.meas.maskrcnn.train.any_band_validation import PURITY, match_places
from lsst.meas.maskrcnn.train.band_scenes import draw_crop, read_band_scene

SETS = ("zrg", "gri", "ugrizy", "r", "iy")
SCALES = (0.1, 0.2, 0.26, 0.4)
SIZE = 100.0
"""Side of a field of `SCALES`, arcsec."""


@dataclass
class Tally:
    """What was found of a scene, or of several."""

    score: np.ndarray
    real: np.ndarray
    """Whether each detection is a source of S/N 3 or more."""
    best: np.ndarray
    """Score of what was found of each truth that is asked for, or -1."""
    snr: np.ndarray

    @classmethod
    def of(
        cls, places: np.ndarray, score: np.ndarray, truths: np.ndarray, snr: np.ndarray, fwhm: float
    ) -> Tally:
        """Match detections in descending order of score; truths of a negative S/N are not asked for."""
        match = match_places(places, truths, fwhm)
        best = np.full(len(truths), -1.0)
        best[match[match >= 0]] = score[match >= 0]
        asked = snr >= 5.0
        return cls(score, match >= 0, best[asked], snr[asked])

    @classmethod
    def sum(cls, parts: Sequence[Tally]) -> Tally:
        """Put scenes together."""
        return cls(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])))

    def row(self, threshold: float | None = None) -> list[str]:
        """Threshold, purity, completeness with its error and by S/N; by default at the purity of 0.97."""
        cut = threshold_at_purity(self.score, self.real, PURITY) if threshold is None else threshold
        hit, above = self.best >= cut, self.real[self.score >= cut]
        error = np.sqrt(hit.mean() * (1.0 - hit.mean()) / len(hit))
        bins = [hit[(self.snr >= low) & (self.snr < high)] for low, high in ((5, 10), (10, 20), (20, np.inf))]
        values = [
            cut,
            above.mean() if len(above) else np.nan,
            hit.mean(),
            error,
            *(part.mean() for part in bins),
        ]
        return [f"{len(hit)}", *(f"{value:.3f}" for value in values)]


HEAD = ["truths", "threshold", "purity", "completeness", "error", "S/N 5-10", "10-20", "> 20"]


def tally_scene(model: MaskRcnnModel, scene: Scene, bands: Sequence[str], asked: Sequence[str]) -> Tally:
    """Find the sources of a scene in some bands; their S/N is that in the bands ``asked``."""
    image, sources = scene_image(scene).select(bands), scene.sources
    found, _ = detect_any_band(
        model.build().eval(),
        image,
        image_wavelengths(image),
        DetectionSettings(score_threshold=0.0),
        calibration=model.metadata.calibration,
    )
    snr, seen = (np.sqrt(sum(sources[f"snr_{band}"] ** 2 for band in some)) for some in (asked, bands))
    good = ~sources["flag_masked"] & (sources["peak_share"] >= 0.05) & (sources["area"] > 0)
    known = (seen >= 3.0) | ((snr >= 5.0) & good)
    truths = np.stack([sources["y"], sources["x"]], axis=1)[known]
    # `Tally.of` wants the best detection first.
    found = found.sorted()
    return Tally.of(found.positions, found.scores, truths, np.where(good, snr, -1.0)[known], image.fwhm)


def bands_table(model: MaskRcnnModel, count: int, seed: int, out: Path | None) -> None:
    """Print the completeness by set of bands."""
    config = preset_config("lsst-1yr", shape=(384, 384), bands=tuple("zrgiuy"))
    scenes = [simulate_scene(config, np.random.default_rng([seed, number])) for number in range(count)]
    rows = []
    for bands in tqdm(SETS, unit="set"):
        tally = Tally.sum([tally_scene(model, scene, list(bands), ["r"]) for scene in scenes])
        rows.append([" ".join(bands), *tally.row()])
    print_table(["bands", *HEAD], rows, out)


def scaled_scene(config: SceneConfig, scale: float, number: int, seed: int) -> Scene:
    """Draw the sky of a scene in pixels of another size."""
    rng = np.random.default_rng([seed, number])
    population = draw_population(config.population, config.shape, config.pixel_scale, rng)
    for name in ("x", "y"):
        population[name] = (population[name] + 0.5) * config.pixel_scale / scale - 0.5
    side, area = round(SIZE / scale), (scale / config.pixel_scale) ** 2
    conditions = tuple(
        replace(one, fwhm=0.85, sky_sigma=one.sky_sigma * area**0.5, read_noise=0.0, saturation=np.inf)
        for one in config.conditions
    )
    scaled = replace(config, shape=(side, side), pixel_scale=scale, conditions=conditions)
    return draw_scene(scaled, population, rng)


def scales_table(model: MaskRcnnModel, count: int, seed: int, out: Path | None) -> None:
    """Print the completeness by pixel scale."""
    config = preset_config(
        "lsst-1yr",
        shape=(round(SIZE / 0.2),) * 2,
        pixel_scale=0.2,
        bands=tuple("grz"),
        artefacts=ArtefactConfig(),
        psf=PsfConfig(profile="kolmogorov", seeing_scatter=0.0, band_scatter=0.0),
        misregistration=0.0,
    )
    rows = []
    for scale in tqdm(SCALES, unit="scale"):
        scenes = (scaled_scene(config, scale, number, seed) for number in range(count))
        tally = Tally.sum([tally_scene(model, scene, list("grz"), list("grz")) for scene in scenes])
        rows.append([f"{scale:g}", f"{0.85 / scale:.1f}", *tally.row()])
    print_table(["arcsec/px", "FWHM (px)", *HEAD], rows, out)


def thresholds_table(
    model: MaskRcnnModel, count: int, seed: int, out: Path | None, folder: Path | None
) -> None:
    """Print completeness and purity by score threshold."""
    network, parts = model.build().eval(), []
    paths = sorted(folder.glob("*.npz"))[:count] if folder is not None else []
    makers = [partial(read_band_scene, path) for path in paths] or [
        partial(_simulate_bands, number, seed) for number in range(count)
    ]
    for number, make in enumerate(tqdm(makers, unit="scene")):
        image, target = draw_crop(make(), np.random.default_rng([seed, number]), 384)
        fwhm, ignored = float(target["fwhm"]), target["ignore_centres"].numpy()
        (found,) = detect_bands(network, [image], fwhm, masks=False)
        truths = np.concatenate([target["centres"].numpy(), ignored])[:, ::-1]
        snr = np.concatenate([target["snr"].numpy(), np.full(len(ignored), -1.0)])
        score = calibrate(found.scores, model.metadata.calibration, "score")
        parts.append(Tally.of(found.positions, score, truths, snr, fwhm))
    tally, own = Tally.sum(parts), model.metadata.architecture.detection_score
    thresholds = sorted([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, own])
    print_table(HEAD, [tally.row(threshold) for threshold in thresholds], out)
    print(f"The default threshold is {own:.3f}.")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("bands", "scales", "thresholds"))
    parser.add_argument("model", nargs="?", default="lite")
    parser.add_argument("--count", type=int, default=12, help="scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=4400, help="default: %(default)s")
    parser.add_argument("--scenes", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    if arguments.table == "thresholds":
        thresholds_table(model, arguments.count, arguments.seed, arguments.out, arguments.scenes)
    else:
        table = {"bands": bands_table, "scales": scales_table}[arguments.table]
        table(model, arguments.count, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
