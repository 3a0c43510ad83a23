# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small evaluations, made up without a simulator, for the tests of what is done with evaluations."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from astropy.table import Table

from lsst.daf.butler import Butler, CollectionType, DatasetType
from lsst.meas.maskrcnn.metrics import blends, cutouts
from lsst.meas.maskrcnn.metrics.binned_figures import precision_recall_table
from lsst.meas.maskrcnn.metrics.evaluation_metrics import (
    EvaluationGallery,
    EvaluationMetrics,
    PatchSummary,
    outcomes_table,
)
from lsst.meas.maskrcnn.metrics.match_table import MatchedSources, make_match_table
from lsst.meas.maskrcnn.metrics.matching import ImagePairs, match
from lsst.meas.maskrcnn.metrics.run_comparison import EvaluatedRun
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.metrics.summary import blend_figures, source_figures, summarize_precision
from lsst.meas.maskrcnn.report.gallery import draw_entry

N_SAMPLES = 60
PIXEL_SCALE = 0.168


class Sample(NamedTuple):
    """An evaluation."""

    run: EvaluatedRun
    curves: np.ndarray
    gallery: EvaluationGallery


def make_sample(
    name: str = "u/someone/run",
    n_patches: int = 4,
    quality: float = 0.9,
    seed: int = 1,
    skymap: str = "maskRcnnSim-test",
    first_patch: int = 0,
    with_gallery: bool = True,
    config: dict | None = None,
) -> Sample:
    """Evaluate discs that are found with some probability."""
    bands = ("g", "r")
    images, tables, groups, patches, entries = [], [], [], [], []
    for k in range(n_patches):
        number = first_patch + k
        # The truth of a patch is the same in all samples.
        sky, eye = np.random.default_rng(1000 + number), np.random.default_rng((seed, number))
        truth, masks, origins = _truth(sky)
        found, found_masks, found_origins = _detections(eye, truth, masks, origins, quality)
        patch_name = f"0,{number}"
        true_spans, spans = (
            SpanMasks.from_masks(masks, origins),
            SpanMasks.from_masks(found_masks, found_origins),
        )
        pairs = ImagePairs.from_spans(
            spans,
            found["score"],
            np.where(found["is_star"], 1, 2),
            true_spans,
            np.where(truth["is_star"], 1, 2),
            name=patch_name,
            truth_ignored=truth["ignored"],
        )
        matches = match(pairs, (0.5,))
        partner, ignored = matches.truth[0], matches.ignored[0]
        iou = np.full(len(partner), np.nan)
        known = partner[pairs.pairs.first] == pairs.pairs.second
        iou[pairs.pairs.first[known]] = pairs.pairs.iou[known]
        links = blends.overlap_links(
            pairs.pairs.second, pairs.pairs.first, pairs.pairs.iou, true_spans.areas, spans.areas
        )
        group = blends.friends_of_friends(
            len(masks), len(found_masks), links, ignored_truth=truth["ignored"], ignored_detection=ignored
        )
        kinds = blends.classify_groups(group, partner)
        truth_outcome, outcome = blends.source_outcomes(group, partner)
        tables.append(
            make_match_table(
                truth,
                {**found, "ignored": ignored},
                partner,
                iou=iou,
                image=k,
                pixel_scale=PIXEL_SCALE,
                bands=bands,
                truth_outcome=truth_outcome,
                detection_outcome=outcome,
            )
        )
        rows = np.zeros(group.n_groups, dtype=blends.BLEND_DTYPE)
        rows["image"], rows["kind"] = k, kinds
        rows["n_truth"], rows["n_detection"] = group.n_truth, group.n_detection
        rows["quality"] = blends.group_quality(group, partner, np.nan_to_num(iou))
        groups.append(rows)
        images.append(pairs)
        patches.append(
            PatchSummary(
                tract=0,
                patch=number,
                n_truth=int(np.sum(~truth["ignored"])),
                n_truth_ignored=int(np.sum(truth["ignored"])),
                n_detections=len(partner),
                seconds=1.5 + 0.1 * k,
                megapixels=0.04,
            )
        )
        if with_gallery and k < 2:
            pixels = sky.normal(size=(3, 160, 220)).astype(np.float32) * 3.0
            for mask, (y0, x0) in zip(masks, origins):
                pixels[:, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] += 40.0 * mask
            # A square of 66 px at (52, 32), all of which is on the image.
            cutout = cutouts.BlendCutout(
                image=pixels[:, 32:98, 52:118],
                noise=np.full(3, 3.0),
                residual=pixels[1, 32:98, 52:118] / 3.0 if k else None,
                corner=(52, 32),
                truth_masks=masks,
                truth_origins=origins - (32, 52),
                truth_is_star=truth["is_star"],
                detection_masks=found_masks,
                detection_origins=found_origins - (32, 52),
                detection_is_star=found["is_star"],
                caption="2 true\n1 found <b>",
            )
            cutout = dataclasses.replace(
                cutout,
                model=0.9 * cutout.image,
                children=[("1: star\n5 ± 1\ntrue 6", cutout.image), ("2: <b>galaxy</b>", cutout.image)],
                sky=(150.1, -2.2),
            )
            entries += [
                draw_entry(cutout, kind=kind, patch=(0, number), quality=0.25)
                for kind in ("worst", "best", "busiest", "failure")
            ]
    classes = ("all", "star", "galaxy")
    precision = summarize_precision(images, classes)
    names = tuple(image.name for image in images)
    table = np.concatenate(tables)
    sources = MatchedSources(table, names, classes, None, "r", bands)
    figures = [*precision.groups, *source_figures(sources), *blend_figures(np.concatenate(groups), names)]
    metrics = EvaluationMetrics(
        package_version="0.1.0",
        software={"python": "3.11", "numpy": np.__version__},
        name="maskRcnnEvaluation",
        catalog="deepCoadd_maskRcnnCatalog",
        runs=[f"{name}/run"],
        models=["lite"],
        config=config or {"band": "r"},
        skymap=skymap,
        patches=patches,
        n_truth={key: precision.outcomes[key].n_truth.tolist() for key in classes},
        iou_thresholds=precision.outcomes["all"].thresholds.tolist(),
        level=0.6827,
        n_samples=N_SAMPLES,
        values=[value for group in figures for value in group.with_errors(N_SAMPLES, 1)],
    )
    gallery = EvaluationGallery(bands=["z", "r", "g"], pixel_scale=PIXEL_SCALE, entries=entries)
    run = EvaluatedRun(name, metrics, table, outcomes_table(precision.outcomes.values()))
    return Sample(run, precision_recall_table(precision.results), gallery)


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + radius


def _truth(sky: np.random.Generator) -> tuple[dict, list, np.ndarray]:
    n = 60
    radius = sky.integers(3, 9, n)
    masks = [_disc(int(r)) for r in radius]
    size = 2 * radius + 1
    origins = np.stack([sky.integers(0, 160 - size), sky.integers(0, 220 - size)], axis=1)
    mag = 26.0 - 0.5 * radius + sky.normal(size=n) * 0.3
    flux = 10 ** (-0.4 * (mag - 31.4))
    truth = {
        "id": np.arange(n) + 1,
        "x": origins[:, 1] + radius.astype(float),
        "y": origins[:, 0] + radius.astype(float),
        "is_star": sky.random(n) < 0.3,
        "mag": mag,
        "snr": flux / 20.0,
        "flux": flux,
        "flux_g": 0.5 * flux,
        "flux_r": flux,
        "blendedness": sky.random(n) ** 2,
        "neighbor_distance": sky.random(n) * 5.0 + 0.5,
        "ignored": sky.random(n) < 0.1,
    }
    return truth, masks, origins


def _detections(
    eye: np.random.Generator, truth: dict, masks: list, origins: np.ndarray, quality: float
) -> tuple[dict, list, np.ndarray]:
    n = len(masks)
    chosen = np.flatnonzero(eye.random(n) < quality)
    shift = eye.integers(-1, 2, (len(chosen), 2))
    n_false = 4
    found_masks = [masks[i] for i in chosen] + [_disc(3)] * n_false
    corners = np.stack([eye.integers(0, 150, n_false), eye.integers(0, 210, n_false)], axis=1)
    found_origins = np.concatenate([np.maximum(origins[chosen] + shift, 0), corners])
    star = np.concatenate(
        [truth["is_star"][chosen] ^ (eye.random(len(chosen)) > quality), np.zeros(n_false, bool)]
    )
    m = len(found_masks)
    radius = np.array([mask.shape[0] // 2 for mask in found_masks])
    flux = np.concatenate(
        [truth["flux"][chosen] * (1 + 0.1 * eye.normal(size=len(chosen))), np.full(n_false, 200.0)]
    )
    found = {
        "id": np.arange(m) + 1,
        "x": found_origins[:, 1] + radius + 0.2 * eye.normal(size=m),
        "y": found_origins[:, 0] + radius + 0.2 * eye.normal(size=m),
        "is_star": star,
        "score": np.concatenate([eye.beta(8, 2, len(chosen)), eye.beta(2, 3, n_false)]),
        "p_star": np.where(star, 0.5 + 0.5 * eye.random(m), 0.5 * eye.random(m)),
        "flux": flux,
        "flux_g": 0.5 * flux,
        "flux_r": flux,
        "model": 0.95 * flux,
    }
    return found, found_masks, found_origins


def put_sample(butler: Butler, made: Sample, name: str, skymap: str = "maskRcnnSim-test") -> None:
    """Put an evaluation into a repository, as a chain of one run."""
    butler.registry.syncDimensionData(
        "skymap",
        {"name": skymap, "hash": skymap.encode(), "tract_max": 1, "patch_nx_max": 10, "patch_ny_max": 10},
    )
    butler.collections.register(f"{name}/run", CollectionType.RUN)
    butler.collections.register(name, CollectionType.CHAINED)
    butler.collections.redefine_chain(name, [f"{name}/run"])
    for part, kind, dataset in (
        ("metrics", "MaskRcnnMetrics", made.run.metrics),
        ("matches", "ArrowAstropy", Table(made.run.matches)),
        ("outcomes", "ArrowAstropy", Table(made.run.outcomes)),
        ("precisionRecall", "ArrowAstropy", Table(made.curves)),
        ("gallery", "MaskRcnnGallery", made.gallery),
    ):
        dataset_type = DatasetType(
            f"maskRcnnEvaluation_{part}", ("skymap",), kind, universe=butler.dimensions
        )
        butler.registry.registerDatasetType(dataset_type)
        butler.put(dataset, dataset_type, skymap=skymap, run=f"{name}/run")
