# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time and memory of an evaluation, without the reading of files.

Run as ``python tests/benchmarks/bench_evaluate.py [--patches 14] [--size 512]
[--sources 120] [--samples 1000]``; the large case is ``--patches 100 --size
3400 --sources 5000 --distinct 4``. Masks are ellipses of about 100 px; the detections are
the truths moved by a pixel or two, some of them missing, some false.
"""

from __future__ import annotations

import argparse
import logging
import resource
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import lsst.geom as geom
from lsst.afw.detection import Footprint
from lsst.afw.geom import SpanSet
from lsst.afw.image import ExposureF, MaskX, PhotoCalib
from lsst.afw.table import SourceCatalog
from lsst.meas.maskrcnn.catalogs.evaluation import EvaluationPatch
from lsst.meas.maskrcnn.catalogs.schema import make_schema
from lsst.meas.maskrcnn.catalogs.truth import make_truth_schema
from lsst.meas.maskrcnn.ingest.exposures import gaussian_psf
from lsst.meas.maskrcnn.tasks.evaluate import MaskRcnnEvaluateTask

BANDS = ("g", "r", "z")


def ellipse(rng: np.random.Generator) -> np.ndarray:
    """A mask with a lognormal distribution of radii around 5.2 px."""
    r = float(np.clip(rng.lognormal(np.log(5.2), 0.5), 1.5, 90.0))
    y, x = np.mgrid[: int(2 * r) + 1, : int(2 * r) + 1] - r
    return x**2 + (y / rng.uniform(0.5, 1.0)) ** 2 < r**2


def footprint(mask: np.ndarray, x0: int, y0: int, box: geom.Box2I) -> Footprint:
    plane = MaskX(geom.Box2I(geom.Point2I(x0, y0), geom.Extent2I(mask.shape[1], mask.shape[0])))
    plane.array[:] = mask
    one = Footprint(SpanSet.fromMask(plane), box)
    one.clipTo(box)
    one.addPeak(x0 + mask.shape[1] / 2, y0 + mask.shape[0] / 2, 1.0)
    return one


def make_patch(number: int, size: int, n_sources: int, exposures: dict[str, ExposureF]) -> EvaluationPatch:
    rng = np.random.default_rng(number)
    box = exposures["r"].getBBox()
    truth, catalog = SourceCatalog(make_truth_schema(BANDS)), SourceCatalog(make_schema())
    truth.resize(n_sources)
    places = rng.integers(0, size - 4, (n_sources, 2)) + (box.getMinX(), box.getMinY())
    star = rng.random(n_sources) < 0.2
    mag = 26.0 - rng.exponential(1.5, n_sources)
    truth["truth_centroid_x"], truth["truth_centroid_y"] = places.T.astype(float)
    truth["coord_ra"], truth["coord_dec"] = np.radians(0.2 / 3600 * (places.T - places.mean(axis=0)[:, None]))
    truth["truth_isStar"] = star
    truth["truth_blendedness"] = rng.random(n_sources).astype(np.float32)
    truth["truth_neighborDistance"] = rng.exponential(3.0, n_sources)
    truth["truth_flag_faint"] = mag > 25.5
    for band in BANDS:
        truth[f"truth_{band}_mag"] = mag
        truth[f"truth_{band}_flux"] = 10 ** (0.4 * (31.4 - mag))
        truth[f"truth_{band}_snr"] = 10 ** (0.4 * (27.0 - mag))
    for record, (x, y), is_star in zip(truth, places.tolist(), star.tolist()):
        mask = ellipse(rng)
        record.setFootprint(footprint(mask, x, y, box))
        if rng.random() < 0.15:
            x, y = (int(v) for v in rng.integers(0, size - 4, 2) + (box.getMinX(), box.getMinY()))
        detected = catalog.addNew()
        dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
        one = footprint(mask, max(x + dx, box.getMinX()), max(y + dy, box.getMinY()), box)
        detected.setFootprint(one)
        is_star ^= rng.random() < 0.1
        detected["maskrcnn_star"], detected["maskrcnn_galaxy"] = is_star, not is_star
        detected["maskrcnn_score"] = rng.uniform(0.3, 1.0)
        detected["maskrcnn_pStar"] = rng.uniform(0.5, 1.0) if is_star else rng.uniform(0.0, 0.5)
        detected["maskrcnn_centroid_x"], detected["maskrcnn_centroid_y"] = float(x + dx), float(y + dy)
    return EvaluationPatch(0, number, truth, catalog, exposures=exposures, seconds=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=14)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--sources", type=int, default=120)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--distinct", type=int, help="make only so many patches, and use them in turn")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    box = geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(arguments.size, arguments.size))
    exposures = {}
    for band in BANDS:
        exposures[band] = ExposureF(box)
        exposures[band].image.array[:] = np.random.default_rng(1).normal(size=(arguments.size,) * 2)
        exposures[band].variance.array[:] = 1.0
        exposures[band].setPhotoCalib(PhotoCalib(1.0))
        exposures[band].setPsf(gaussian_psf(4.0))
    spent = 0.0
    made: dict[int, EvaluationPatch] = {}

    def patches() -> Iterator[EvaluationPatch]:
        nonlocal spent
        for number in range(arguments.patches):
            started = time.perf_counter()
            which = number % (arguments.distinct or arguments.patches)
            if which not in made:
                made[which] = make_patch(which, arguments.size, arguments.sources, exposures)
            patch = replace(made[which] if arguments.distinct else made.pop(which), patch=number)
            spent += time.perf_counter() - started
            yield patch

    task = MaskRcnnEvaluateTask()
    task.config.n_samples = arguments.samples
    # A mask may leave the image.
    task.config.skip_without_footprint = True
    started = time.perf_counter()
    outputs = task.run(patches=patches(), n_patches=arguments.patches)
    seconds = time.perf_counter() - started - spent
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{arguments.patches} patches of {arguments.size} px with {arguments.sources} sources: "
        f"{seconds:.1f} s ({spent:.1f} s more to make them), {len(outputs.metrics.values)} figures, "
        f"{memory:.2f} GB at most"
    )


if __name__ == "__main__":
    main()
