# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bright stars and large galaxies: how many are found, and how many in one piece.

    python tests/benchmarks/bench_bright.py [MODEL] [--count 5] [--seed 7700]

Simulated scenes with more bright sources than the presets have. Asked for are
sources brighter than magnitude 18 in r whose centre is on the image, whose
peak is not drowned by a neighbour (5 % of the light there is their own) and
that are not masked out. One is found if a detection, which is not that of
another source, has its centre and either a mask IoU above 0.3 or more than
half of its flux. It is shredded if two or more detections have more than 10 %
of its flux each and are no other source. Beside that: completeness of all sources
of a peak of 5 sigma and 12 pixels, and detections without a source.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.deblend.shares import ShareSettings
from lsst.meas.maskrcnn.metrics.spans import mask_pairs
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, load_model
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import PopulationConfig
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene

PRESETS = ("hsc-wide", "hsc-500s", "lsst-1yr", "decam-120s")


@dataclass
class Count:
    """What was counted, over all scenes."""

    bright: int = 0
    found: int = 0
    shredded: int = 0
    asked: int = 0
    hit: int = 0
    detections: int = 0
    false: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, other: Count) -> None:
        """Add the counts of another scene."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def row(self, name: str) -> str:
        """Format as a line of the table."""
        return (
            f"{name:24s} {self.bright:6d} {100 * self.found / max(self.bright, 1):6.1f} % "
            f"{100 * self.shredded / max(self.bright, 1):6.1f} % {self.hit / max(self.asked, 1):8.4f} "
            f"{self.detections:10d} {self.false:8d}"
        )


def with_bright(population: PopulationConfig) -> PopulationConfig:
    """Add bright stars and large galaxies."""
    return replace(population, bright_star_density=0.8, large_galaxy_density=0.8)


def simulate(preset: str, number: int, seed: int, size: int, bands: Sequence[str]) -> Scene:
    """Make a scene with many bright stars and large galaxies."""
    config = preset_config(preset, shape=(size, size), bands=tuple(bands), keep_models=True)
    return simulate_scene(
        replace(config, population=with_bright(config.population)), np.random.default_rng([seed, number])
    )


def scene_image(scene: Scene) -> MultibandImage:
    """Make an image of a scene."""
    unusable = MASK_BITS["BAD"] | MASK_BITS["CR"] | MASK_BITS["NO_DATA"]
    return MultibandImage(
        scene.images,
        scene.bands,
        scene.pixel_scale,
        scene.variance,
        usable=(scene.mask & unusable) == 0,
        saturated=(scene.mask & MASK_BITS["SAT"]) != 0,
        psf=[
            psf.image(2 * math.ceil(4.0 * psf.fwhm / scene.pixel_scale) + 1, scene.pixel_scale)
            for psf in scene.psfs
        ],
    )


def find(model: MaskRcnnModel, scene: Scene) -> Detections:
    """Find the sources of a scene."""
    # Fluxes are not asked for.
    shares = ShareSettings(template="mask", parent_grow=0.0)
    return find_sources(scene_image(scene), model, DeblendSettings(shares=shares)).detections


def flux_shares(scene: Scene, truth: int, found: Detections, boxes: np.ndarray) -> np.ndarray:
    """Share of a source's flux (in r) in the mask of each detection."""
    stamp = scene.models[truth]
    pixels = np.asarray(stamp.pixels[scene.bands.index("r")], dtype=float)
    low, high = np.array([stamp.y0, stamp.x0]), np.array([stamp.y0, stamp.x0]) + pixels.shape
    shares = np.zeros(len(found))
    for index in np.flatnonzero(((boxes[:, 2:] > low) & (boxes[:, :2] < high)).all(axis=1)):
        first, last = np.maximum(boxes[index, :2], low), np.minimum(boxes[index, 2:], high)
        here, there, size = first - low, first - boxes[index, :2], last - first
        part = found.masks[index][there[0] : there[0] + size[0], there[1] : there[1] + size[1]]
        shares[index] = pixels[here[0] : here[0] + size[0], here[1] : here[1] + size[1]][part].sum()
    return shares / pixels.sum()


def count(scene: Scene, found: Detections, label: str) -> Count:
    """Match detections and sources one to one, and count."""
    sources = scene.sources
    shapes = np.array([mask.shape for mask in found.masks]).reshape(-1, 2)
    boxes = np.concatenate([found.origins, found.origins + shapes], axis=1)
    merit = np.zeros((len(sources), len(found)))
    pairs = mask_pairs(scene.masks, scene.origins, found.masks, found.origins)
    merit[pairs.first, pairs.second] = np.where(pairs.iou > 0.3, pairs.iou, 0.0)
    height, width = scene.images.shape[1:]
    on_image = (np.abs(sources["x"] - 0.5 * (width - 1)) < 0.5 * width) & (
        np.abs(sources["y"] - 0.5 * (height - 1)) < 0.5 * height
    )
    bright = np.flatnonzero((sources["mag"] < 18.0) & (sources["area"] > 0))
    shares = {}
    for truth in bright:
        shares[truth] = flux_shares(scene, truth, found, boxes)
        y, x = int(round(float(sources["y"][truth]))), int(round(float(sources["x"][truth])))
        has_centre = np.zeros(len(found), dtype=bool)
        for index in np.flatnonzero(
            (boxes[:, 0] <= y) & (y < boxes[:, 2]) & (boxes[:, 1] <= x) & (x < boxes[:, 3])
        ):
            has_centre[index] = found.masks[index][y - boxes[index, 0], x - boxes[index, 1]]
        allowed = has_centre & ((merit[truth] > 0) | (shares[truth] > 0.5))
        merit[truth] = np.where(allowed, np.maximum(merit[truth], 0.3 + 0.2 * shares[truth]), 0.0)
    rows, columns = linear_sum_assignment(-merit)
    real = merit[rows, columns] > 0
    rows, columns = rows[real], columns[real]
    owner = np.full(len(found), -1)
    owner[columns] = rows
    hit = np.zeros(len(sources), dtype=bool)
    hit[rows] = True
    asked = (sources["area"] >= 12) & (sources["peak_share"] >= 0.05) & ~sources["flag_masked"]
    if scene.config.noise:
        asked &= np.max([sources[f"peak_snr_{band}"] for band in scene.bands], axis=0) >= 5.0
    result = Count(
        asked=int(asked.sum()),
        hit=int((asked & hit).sum()),
        detections=len(found),
        false=int((owner < 0).sum()),
    )
    for truth in bright:
        if not on_image[truth] or sources["flag_masked"][truth] or sources["peak_share"][truth] < 0.05:
            continue
        pieces = (shares[truth] > 0.1) & ((owner < 0) | (owner == truth))
        shredded = int(np.count_nonzero(pieces) >= 2)
        result.bright += 1
        result.found += int(hit[truth])
        result.shredded += shredded
        if shredded or not hit[truth]:
            kind = "star" if sources["is_star"][truth] else "galaxy"
            result.bad.append(
                f"{label}: {'shredded' if hit[truth] else 'lost'} {kind} of mag {sources['mag'][truth]:.1f}, "
                f"{sources['area'][truth]} px, at x {sources['x'][truth]:.0f}, y {sources['y'][truth]:.0f}"
            )
    return result


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="lite", help="name or file (default: %(default)s)")
    parser.add_argument("--count", type=int, default=5, help="scenes per preset (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="side of a scene, px (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7700, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--verbose", action="store_true", help="list what is lost or shredded")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    bands = model.metadata.bands or ("z", "r", "g")
    total = Count()
    titles = ("bright", "found", "shredded", "recall", "detections", "false")
    print(f"{'':24s} {{:>6s}} {{:>8s}} {{:>8s}} {{:>8s}} {{:>10s}} {{:>8s}}".format(*titles))
    for place, preset in enumerate(arguments.presets):
        counted = Count()
        for number in range(arguments.count):
            # No two presets share a sky.
            scene = simulate(preset, 100 * place + number, arguments.seed, arguments.size, bands)
            counted.add(count(scene, find(model, scene), f"{preset} {number}"))
        total.add(counted)
        print(counted.row(preset), flush=True)
    print(total.row("all"))
    if arguments.verbose:
        print(*total.bad, sep="\n")


if __name__ == "__main__":
    main()
