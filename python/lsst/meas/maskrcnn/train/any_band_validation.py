# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Figures of an `~..network.any_band.AnyBandNetwork` on scenes with truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..images.classes import STAR
from ..metrics.average_precision import average_precision
from ..metrics.calibration import threshold_at_purity
from ..metrics.matching import greedy_match
from ..metrics.spans import SpanMasks, mask_iou
from ..network.any_band import AnyBandNetwork
from ..network.any_band_detect import detect_bands
from ..network.detections import Detections
from .any_band_loss import STAR_WEIGHT
from .band_scenes import BandScene, draw_crop
from .calibrate import CalibrationCases
from .validation import ComparedScene

_SEED = 5
"""With the number of a scene, decides its noise."""

PURITY = 0.97
"""Share of what is found by default that is a source of S/N 3 or more."""


def validate_any_band(network: AnyBandNetwork, scenes: Iterable[BandScene]) -> dict[str, float]:
    """Compare what a network in evaluation mode finds in whole scenes with their truth.

    Returns ``ap50_star``, ``ap50_galaxy`` and their mean ``ap50``; ``score_97``, the smallest score at
    which 97 % of the detections are sources of S/N 3 or more, and at that score:
    ``completeness`` of sources of S/N of at least 5, the same by S/N
    (``completeness_5``: 5 to 10) and by the distance of the nearest other source in
    FWHM (``near_0.5``: 0.5 to 0.75), and ``star_recall_10``, ``star_purity_10`` and
    so on of stars by S/N.
    """
    parts = []
    for number, scene in enumerate(scenes):
        image, target = draw_crop(scene, np.random.default_rng([_SEED, number]), 4096, plain=True)
        (found,) = detect_bands(network, [image], float(target["fwhm"]))
        parts.append(_compare(found, target))
    of_all = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    figures: dict[str, float] = {}
    for label, name in ((1, "star"), (2, "galaxy")):
        score, hit = of_all[f"score_{label}"].astype(np.float32), of_all[f"hit_{label}"]
        figures[f"ap50_{name}"] = average_precision(score, hit, int((of_all["label"] == label).sum()))
    known = [value for value in figures.values() if math.isfinite(value)]
    figures["ap50"] = float(np.mean(known)) if known else math.nan
    figures["score_97"] = cut = threshold_at_purity(of_all["score"], of_all["real"], PURITY)
    snr, near, star = of_all["snr"], of_all["near"], of_all["label"] == STAR
    is_found, called = of_all["best"] >= cut, of_all["p_star"] > 0.5
    figures["completeness"] = float(is_found.mean())
    for low, high in ((5, 10), (10, 20), (20, 1e9)):
        figures[f"completeness_{low}"] = _share(is_found, (snr >= low) & (snr < high))
    for closest, farthest in ((0.5, 0.75), (0.75, 1.25), (1.25, 2.0)):
        figures[f"near_{closest:g}"] = _share(is_found, (snr >= 10) & (near >= closest) & (near < farthest))
    for low, high in ((10, 20), (20, 50)):
        chosen = is_found & (snr >= low) & (snr < high)
        figures[f"star_recall_{low}"] = _share(called, chosen & star)
        figures[f"star_purity_{low}"] = _share(star, chosen & called)
    return figures


def _share(hit: np.ndarray, among: np.ndarray) -> float:
    return float(hit[among].mean()) if among.any() else math.nan


@dataclass(frozen=True)
class BandSceneValidator:
    """Computes the figures of `validate_any_band` on some scenes, and finds the sources of the first.

    ``scene`` takes the number of a scene, of which there are ``count``, and returns it.
    """

    scene: Callable[[int], BandScene]
    count: int

    def __call__(self, network: AnyBandNetwork) -> dict[str, float]:
        """Compute the figures of a network."""
        return validate_any_band(network, map(self.scene, range(self.count)))

    def first(self, network: AnyBandNetwork) -> ComparedScene:
        """Find the sources of the first scene."""
        scene = self.scene(0)
        image, target = draw_crop(scene, np.random.default_rng([_SEED, 0]), 4096, plain=True)
        (found,) = detect_bands(network, [image], float(target["fwhm"]))
        masks, origins = _truth_masks(target)
        redward = np.argsort(-scene.wavelength)
        sigma = scene.sigma[redward].astype(np.float64)
        flux = image.numpy()[redward] * sigma[:, None, None]
        star = target["labels"].numpy() == STAR
        return ComparedScene(flux, sigma, found, star, masks, origins, np.ones(len(star), bool))


def collect_band_cases(
    network: AnyBandNetwork, scenes: Iterable[BandScene], least: float
) -> CalibrationCases:
    """Detect sources in whole scenes, and compare the detections with the truth.

    Bands, depths, noise and missing pixels are drawn as in training. Right are the
    detections within a FWHM of a source of S/N 3 or more, one for each; on a source
    those of S/N 5 or more. Scores below ``least`` are left out. P(star) is brought to
    the part of stars in the scenes, from that of the loss (`STAR_WEIGHT`).
    """
    parts = []
    for number, scene in enumerate(scenes):
        image, target = draw_crop(scene, np.random.default_rng([_SEED, number]), max(scene.pixels.shape[1:]))
        (found,) = detect_bands(network, [image], float(target["fwhm"]), least=least, masks=False)
        truth = _match_target(found, target)
        count, known = len(target["labels"]), np.append(target["labels"].numpy() == STAR, False)
        on_source = (truth >= 0) & (truth < count)
        index = np.where(on_source, truth, count)
        p_star = np.asarray(found.p_star, dtype=np.float64)
        parts.append(
            CalibrationCases(
                score=np.asarray(found.scores, dtype=np.float64),
                p_star=p_star / (p_star + STAR_WEIGHT * (1.0 - p_star)),
                p_blend=np.asarray(found.p_blend, dtype=np.float64),
                counts=np.ones(len(truth), bool),
                true=truth >= 0,
                on_source=on_source,
                is_star=known[index],
                is_blend=np.append(target["blended"].numpy(), False)[index],
                snr=np.append(target["snr"].numpy().astype(np.float64), np.nan)[index],
                depth=np.full(len(truth), float(np.median(scene.sigma))),
                image=np.full(len(truth), number, dtype=np.int64),
            )
        )
    return CalibrationCases.concatenate(parts)


def match_places(places: np.ndarray, truths: np.ndarray, radius: float) -> np.ndarray:
    """Match detections to truths by their places, one to one, the first detection first.

    Positions are (detection, 2) and (truth, 2); returns the number of the nearest truth
    within ``radius`` that is free, or -1, int64, (detection,).
    """
    distance = _distance(places, truths)
    match, taken = np.full(len(distance), -1), np.zeros(len(truths), bool)
    for index, row in enumerate(distance):
        free = np.where(taken, np.inf, row)
        if len(free) and free.min() < radius:
            match[index] = free.argmin()
            taken[match[index]] = True
    return match


def _match_target(found: Detections, target: dict[str, torch.Tensor]) -> np.ndarray:
    """Number of the source of each detection, -1 without; those that are ignored come last."""
    places = np.concatenate([target["centres"].numpy(), target["ignore_centres"].numpy()])
    return match_places(found.positions[:, ::-1], places, float(target["fwhm"]))


def _truth_masks(target: dict[str, torch.Tensor]) -> tuple[list[np.ndarray], np.ndarray]:
    """Masks of the true sources, and their corners (y0, x0)."""
    boxes = target["boxes"].numpy().astype(int)
    masks = target["masks"].numpy().astype(bool)
    cutouts = [mask[y0:y1, x0:x1] for mask, (x0, y0, x1, y1) in zip(masks, boxes)]
    return cutouts, boxes[:, [1, 0]].astype(np.int32)


def _compare(found: Detections, target: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Match the detections and the truths of a scene, by masks and by places."""
    fwhm = float(target["fwhm"])
    labels = target["labels"].numpy()
    spans = SpanMasks.from_masks(found.masks, found.origins)
    truths = SpanMasks.from_masks(*_truth_masks(target))
    result: dict[str, np.ndarray] = {}
    ignored = target["ignore_centres"].numpy()
    for label in (1, 2):
        chosen = np.flatnonzero((found.p_star > 0.5) == (label == 1))
        score = found.scores[chosen] * (found.p_star if label == 1 else 1 - found.p_star)[chosen]
        truth = np.flatnonzero(labels == label)
        hit = greedy_match(mask_iou(spans.select(chosen), truths.select(truth)), score, len(truth)) >= 0
        near = _distance(found.positions[chosen, ::-1], ignored).min(axis=1, initial=np.inf) < 0.7 * fwhm
        counts = hit | ~near
        result |= {f"score_{label}": score[counts], f"hit_{label}": hit[counts]}
    centres = target["centres"].numpy()
    at = _match_target(found, target)
    best, p_star = (np.full(len(centres) + len(ignored), value) for value in (-1.0, 0.0))
    best[at[at >= 0]], p_star[at[at >= 0]] = found.scores[at >= 0], found.p_star[at >= 0]
    count = len(centres)
    apart = _distance(centres, centres) / fwhm
    np.fill_diagonal(apart, np.inf)
    return result | {
        "score": found.scores,
        "real": at >= 0,
        "best": best[:count],
        "p_star": p_star[:count],
        "snr": target["snr"].numpy(),
        "near": apart.min(axis=1, initial=np.inf),
        "label": labels,
    }


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.hypot(*(one[:, None] - other[None]).transpose(2, 0, 1))
