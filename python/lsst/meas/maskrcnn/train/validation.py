# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision of a network in training, on images that it is not trained
on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torchvision.models.detection import MaskRCNN

from ..images.classes import CLASS_NAMES, STAR
from ..images.normalize import LuptonSettings, ZScoreSettings, normalize
from ..metrics.arrays import BoolArray, Float32Array, FloatArray, IntArray
from ..metrics.average_precision import average_precision
from ..metrics.matching import greedy_match
from ..metrics.spans import SpanMasks, mask_iou
from ..network.detections import Detections
from ..network.inference import DetectionSettings, detect
from .augment import AugmentSettings, draw_realization, realize
from .scene_sources import SceneSource
from .training_scene import TrainingScene

LOWEST_SCORE = 0.05
"""Detections of lower scores do not count; they change the area under the
curve by little and take most of the time (`float`)."""


@dataclass(frozen=True, eq=False)
class ValidationImage:
    """A normalised image and the sources in it."""

    image: Float32Array  # normalised image, (band, y, x)
    valid: BoolArray  # usable pixels, (y, x)
    labels: IntArray  # classes, (source,): 1 is a star, 2 a galaxy
    masks: list[BoolArray]  # truth masks, (y, x) each
    origins: npt.NDArray[np.int32]  # (y0, x0) of each mask, (source, 2), px
    asked: BoolArray  # sources that count in the figures, (source,); the others are neither hits nor misses
    # Widths of the PSF as `~lsst.meas.maskrcnn.network.psf.add_psf_planes` takes them, (band,), px.
    psf_fwhm: Float32Array | None = None


def validation_precision(
    network: MaskRCNN, images: Iterable[ValidationImage], settings: DetectionSettings | None = None
) -> dict[str, float]:
    """Compute the average precision of each class from an IoU of 0.5 on, pooled over images.

    Returns ``ap50_star`` and ``ap50_galaxy`` and their mean ``ap50`` over the classes
    that there are, NaN without truths, and the numbers ``n_star`` and ``n_galaxy`` of
    truths that count and ``n_detections`` of all detections. Each module of the network
    is put back into the mode that it was in.

    Detections are ranked by the probability of their class. Those without a
    truth of their class that lie on a source that is not counted, of
    whatever class, are passed over.
    """
    settings = settings or DetectionSettings(score_threshold=LOWEST_SCORE)
    rows: dict[int, list[tuple[Float32Array, BoolArray]]] = {1: [], 2: []}
    n_truth = {1: 0, 2: 0}
    n_detections = 0
    # A training may have frozen some modules, which train() would not know.
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        for item in images:
            found = detect(network, item.image, item.valid, settings, psf_fwhm=item.psf_fwhm)
            n_detections += len(found)
            for label in rows:
                rows[label].append(_outcomes(found, item, label))
                n_truth[label] += int(np.count_nonzero(item.asked & (item.labels == label)))
    finally:
        for module, training in modes:
            module.training = training
    figures: dict[str, float] = {}
    for label, outcomes in rows.items():
        scores = np.concatenate([row[0] for row in outcomes]) if outcomes else np.zeros(0, np.float32)
        hits = np.concatenate([row[1] for row in outcomes]) if outcomes else np.zeros(0, bool)
        figures[f"ap50_{CLASS_NAMES[label - 1]}"] = average_precision(scores, hits, n_truth[label])
    known = [value for value in figures.values() if np.isfinite(value)]
    figures["ap50"] = float(np.mean(known)) if known else float("nan")
    figures.update({f"n_{CLASS_NAMES[label - 1]}": float(n) for label, n in n_truth.items()})
    figures["n_detections"] = float(n_detections)
    return figures


def validation_image(
    scene: TrainingScene,
    normalization: LuptonSettings | ZScoreSettings,
    rng: np.random.Generator,
    *,
    min_area: int = 12,
    min_peak_snr: float = 5.0,
) -> ValidationImage:
    """Normalise a scene as it is, without any augmentation, with random noise if it has none of its own.

    Sources that the scene ignores, have fewer pixels in their mask, or a fainter
    peak in every band in units of the noise of an empty pixel, are not asked for.
    """
    flux, variance, sky_sigma = realize_scene(scene, rng)
    result = normalize(normalization, flux, variance, scene.valid, overwrite=True)
    return ValidationImage(
        image=result.image,
        valid=result.valid,
        labels=scene.labels,
        masks=scene.masks,
        origins=scene.origins,
        asked=asked_sources(scene, sky_sigma, min_area, min_peak_snr),
        psf_fwhm=scene.psf_fwhm,
    )


def realize_scene(
    scene: TrainingScene, rng: np.random.Generator
) -> tuple[Float32Array, Float32Array, FloatArray]:
    """Make the pixels of a scene as it is, without any augmentation.

    Returns fluxes and variances, float32, (band, y, x), nJy and nJy^2, and the noise
    of an empty pixel, (band,), nJy.
    """
    known = scene.valid if scene.valid.any() else np.ones_like(scene.valid)
    sky_sigma = np.sqrt([float(np.median(plane[known])) for plane in scene.variance])
    realization = draw_realization(AugmentSettings(), rng, scene)
    flux, variance = realize(scene, sky_sigma, realization, (0, 0, *scene.valid.shape), rng)
    return flux, variance, sky_sigma


def asked_sources(
    scene: TrainingScene, sky_sigma: FloatArray, min_area: int, min_peak_snr: float
) -> BoolArray:
    """Choose the sources of a scene that must be found, bool, (source,), as in `validation_image`."""
    asked = np.array([np.count_nonzero(mask) >= min_area for mask in scene.masks], dtype=bool)
    if scene.noisy and len(asked):
        asked &= (scene.peak_flux >= min_peak_snr * sky_sigma).any(axis=1)
    if scene.ignore is not None:
        asked &= ~scene.ignore
    return asked


@dataclass(frozen=True, eq=False)
class ComparedScene:
    """Sources found in a scene, and the true ones."""

    flux: npt.NDArray[np.floating]
    """(band, y, x)."""
    noise: npt.NDArray[np.floating]
    """Of an empty pixel, (band,), in the unit of the flux."""
    found: Detections
    is_star: BoolArray
    masks: list[BoolArray]
    origins: npt.NDArray[np.integer]
    asked: BoolArray
    """Whether the source is to be found, (source,)."""


@dataclass(frozen=True)
class SceneValidator:
    """Computes the average precision of a network on scenes, with settings as in `validation_precision`.

    The scenes are read anew each time. Noise that a scene does not hold is the same each time.
    """

    scenes: SceneSource
    normalization: LuptonSettings | ZScoreSettings
    settings: DetectionSettings | None = None

    def __call__(self, network: MaskRCNN) -> dict[str, float]:
        """Compute the figures of `validation_precision` of a network."""
        images = (
            validation_image(
                self.scenes.scene(number), self.normalization, np.random.default_rng([0, number])
            )
            for number in range(len(self.scenes))
        )
        return validation_precision(network, images, self.settings)

    def first(self, network: MaskRCNN) -> ComparedScene:
        """Find the sources of the first scene."""
        scene = self.scenes.scene(0)
        flux, _, sigma = realize_scene(scene, np.random.default_rng([0, 0]))
        item = validation_image(scene, self.normalization, np.random.default_rng([0, 0]))
        found = detect(network, item.image, item.valid, self.settings, psf_fwhm=item.psf_fwhm)
        return ComparedScene(flux, sigma, found, item.labels == STAR, item.masks, item.origins, item.asked)


def _outcomes(found: Detections, item: ValidationImage, label: int) -> tuple[Float32Array, BoolArray]:
    """Scores of the detections of a class, and whether each has a truth."""
    spans = SpanMasks.from_masks(found.masks, found.origins)
    truths = SpanMasks.from_masks(item.masks, item.origins)

    def matched(chosen: IntArray, truth: IntArray, score: Float32Array) -> BoolArray:
        pairs = mask_iou(spans.select(chosen), truths.select(truth))
        return greedy_match(pairs, score, len(truth)) >= 0

    chosen = np.flatnonzero((found.p_star > 0.5) == (label == 1))
    chance = found.p_star if label == 1 else 1.0 - found.p_star
    score = (found.scores * chance)[chosen].astype(np.float32)
    hit = matched(chosen, np.flatnonzero(item.asked & (item.labels == label)), score)
    spare = np.zeros(len(chosen), dtype=bool)
    spare[~hit] = matched(chosen[~hit], np.flatnonzero(~item.asked), score[~hit])
    return score[~spare], hit[~spare]
