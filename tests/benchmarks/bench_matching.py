# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time and memory of mask overlaps, matching, average precision and bootstrap.

Run as ``python tests/benchmarks/bench_matching.py [--number 10000]``. Masks are
ellipses of about 100 px, up to 10,000 px and more, on 3400 x 3400 px; the
detections are the truths moved, some twice, some not at all.
"""

from __future__ import annotations

import argparse
import resource
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from lsst.meas.maskrcnn.metrics.average_precision import ap_statistic, collect_outcomes, compute_ap
from lsst.meas.maskrcnn.metrics.bootstrap import ImageStatistic, bootstrap, paired_bootstrap
from lsst.meas.maskrcnn.metrics.matching import PSF_AREA_RANGES, ImagePairs, match, psf_area
from lsst.meas.maskrcnn.metrics.spans import SpanMasks, mask_iou


def measure(label: str, function: Callable[..., Any], *args: Any, memory: bool = True, **kwargs: Any) -> Any:
    """Print the wall time of a call and the memory that it takes; give its result."""
    started = time.perf_counter()
    result = function(*args, **kwargs)
    seconds = time.perf_counter() - started
    peak = ""
    if memory:
        tracemalloc.start()
        function(*args, **kwargs)
        peak = f"{tracemalloc.get_traced_memory()[1] / 1e6:8.0f} MB beside the input"
        tracemalloc.stop()
    print(f"{label:58s} {seconds:7.2f} s  {peak}", flush=True)
    return result


def ellipses(rng: np.random.Generator, number: int, size: int, scatter: float) -> tuple[list, np.ndarray]:
    """Draw masks with a lognormal distribution of radii around 5.2 px, and where they are."""
    radius = np.clip(rng.lognormal(np.log(5.2), scatter, number), 1.5, 90.0)
    masks, origins = [], rng.integers(0, size, (number, 2))
    for r in radius:
        y, x = np.mgrid[: int(2 * r) + 1, : int(2 * r) + 1] - r
        masks.append(x**2 + (y / rng.uniform(0.5, 1.0)) ** 2 < r**2)
    return masks, origins


def perturbed(
    rng: np.random.Generator, masks: list, origins: np.ndarray, size: int
) -> tuple[list, np.ndarray, np.ndarray]:
    """Make detections of truths; the index of the truth of each, -1 for false ones."""
    copies = rng.choice([0, 1, 2], len(masks), p=[0.15, 0.75, 0.1])
    truth = np.repeat(np.arange(len(masks)), copies)
    more, places = ellipses(rng, len(masks) // 10, size, 0.3)
    moved = origins[truth] + rng.integers(-1, 2, (len(truth), 2))
    source = np.append(truth, np.full(len(more), -1))
    return [masks[i] for i in truth] + more, np.concatenate([moved, places]), source


def image(rng: np.random.Generator, name: str, number: int, size: int) -> ImagePairs:
    """Make an image with truths and detections of two classes."""
    masks, origins = ellipses(rng, number, size, 0.5)
    found, places, source = perturbed(rng, masks, origins, size)
    labels = rng.choice([1, 2], number)
    found_labels = np.where(
        (source >= 0) & (rng.random(len(source)) < 0.9), labels[source], rng.choice([1, 2], len(source))
    )
    scores = np.where(source >= 0, rng.beta(5, 2, len(source)), rng.beta(2, 4, len(source)))
    return ImagePairs.from_spans(
        SpanMasks.from_masks(found, places),
        scores,
        found_labels,
        SpanMasks.from_masks(masks, origins),
        labels,
        name=name,
        truth_ignored=rng.random(number) < 0.2,
        pixel_area=1 / psf_area(4.0),
    )


def everything(images: list[ImagePairs]) -> list[Any]:
    """Compute what an evaluation prints: classes, sizes and definitions."""
    results: list[Any] = []
    for label in (None, 1, 2):
        for area in (None, *PSF_AREA_RANGES):
            outcomes = collect_outcomes(images, label, area=area)
            results += [compute_ap(outcomes, definition) for definition in ("pooled", "coco", "perImage")]
    return results


def errors(images: list[ImagePairs], n_samples: int) -> Any:
    """Bootstrap the AP of both classes and of all, at ten thresholds."""
    rng = np.random.default_rng(0)
    return [
        bootstrap(ap_statistic(collect_outcomes(images, label), definition), rng, n_samples)
        for label in (None, 1, 2)
        for definition in ("pooled", "coco", "perImage")
    ]


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--number", type=int, default=10_000, help="masks of each side (default: %(default)s)"
    )
    parser.add_argument("--patches", type=int, default=20, help="patches of 5000 (default: %(default)s)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)

    for label, size, scatter in (("a patch", 3400, 0.5), ("large masks", 3400, 1.0), ("crowded", 900, 0.8)):
        masks, origins = ellipses(rng, arguments.number, size, scatter)
        found, places, _ = perturbed(rng, masks, origins, size)
        truths = measure(f"{label}: {len(masks)} masks to spans", SpanMasks.from_masks, masks, origins)
        detections = SpanMasks.from_masks(found, places)
        pairs = measure(f"{label}: IoU of {len(found)} x {len(masks)}", mask_iou, detections, truths)
        areas = truths.areas
        print(
            f"    areas {np.median(areas):.0f} (median), {areas.mean():.0f} (mean), {areas.max()} (max) px; "
            f"{len(detections.y)} and {len(truths.y)} spans; {len(pairs)} pairs"
        )
        compared = ImagePairs.from_spans(
            detections, rng.random(len(found)), np.ones(len(found)), truths, np.ones(len(masks))
        )
        measure(f"{label}: greedy match at ten thresholds", match, compared)
        del masks, found, truths, detections, pairs, compared

    small = [image(rng, str(k), 300, 512) for k in range(14)]
    measure("14 images of 300: AP, 3 kinds, 3 classes, 4 sizes", everything, small)
    measure(
        "14 images of 300: 1000 samples of pooled AP, 10 IoU",
        bootstrap,
        ap_statistic(collect_outcomes(small)),
        rng,
        1000,
    )
    measure("14 images of 300: 1000 samples, 3 kinds, 3 classes", errors, small, 1000, memory=False)
    statistics = [ap_statistic(collect_outcomes(part)) for part in (small, small[::-1])]
    statistics[1] = ImageStatistic(statistics[0].names, statistics[1].function)
    measure("14 images of 300: 1000 paired samples", paired_bootstrap, *statistics, rng, memory=False)

    large = [image(rng, str(k), 5000, 3400) for k in range(arguments.patches)]
    stored = sum(
        part.nbytes
        for one in large
        for part in (*vars(one.pairs).values(), *vars(one).values())
        if isinstance(part, np.ndarray)
    )
    print(f"{len(large)} patches of 5000 take {stored / 1e6:.0f} MB")
    measure(f"{len(large)} patches: AP, 3 kinds, 3 classes, 4 sizes", everything, large, memory=False)
    outcomes = collect_outcomes(large)
    exact, rough = compute_ap(outcomes, "pooled").ap, ap_statistic(outcomes).value
    print(f"    5000 steps shift AP by {np.abs(exact - rough).max():.1e}")
    measure(f"{len(large)} patches: 1000 samples, 3 kinds, 3 classes", errors, large, 1000, memory=False)
    print(f"largest resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
