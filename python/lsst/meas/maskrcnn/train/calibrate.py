# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fit of a model's calibration to simulated scenes whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..deblend.image import MultibandImage
from ..images.classes import GALAXY, STAR
from ..metrics.arrays import BoolArray, FloatArray, IntArray
from ..metrics.matching import ImagePairs, match
from ..metrics.spans import SpanMasks
from ..network.calibration import Calibration, calibrate, fit_curve
from ..network.detections import Detections
from ..network.model_file import ModelMetadata
from .training_scene import TrainingScene
from .validation import asked_sources, realize_scene

_MASKED = 0.5
"""Detections with more of their mask on unusable pixels are left out."""

_CLASS_IOU = 0.25
"""Smallest IoU for a detection to lie on a source. The network draws the mask
of the class that it holds for more likely. A star with the mask of a galaxy
often has an IoU below 0.5; if it were left out, the calibration of P(star)
would not count stars that are classified as galaxies."""

_NOISE_SEED = 770


@dataclass(frozen=True, eq=False)
class CalibrationCases:
    """Detections with what is true of them."""

    # Score, P(star) and P(blend), (case,); the last is NaN for networks that do not give it.
    score: FloatArray
    p_star: FloatArray
    p_blend: FloatArray
    counts: BoolArray  # whether it is right or wrong, and not ignored, (case,)
    true: BoolArray  # whether it is right, (case,)
    on_source: BoolArray  # whether it lies on a source, though perhaps not well enough to be right, (case,)
    is_star: BoolArray  # whether that source is a star, (case,); `False` without one
    is_blend: BoolArray  # whether it is blended with another, (case,); `False` without one
    # S/N of the source, (case,): of its brightest pixel in its best band, or of all its light for networks
    # that take any bands. NaN without a source.
    snr: FloatArray
    depth: FloatArray  # noise of a pixel in the image, (case,), nJy; 0 in an image without noise
    image: IntArray  # number of the image, (case,)

    def __len__(self) -> int:
        return len(self.score)

    def select(self, chosen: ArrayLike) -> CalibrationCases:
        """Take some of the cases, by index or a bool for each."""
        index: Any = np.asarray(chosen)
        return CalibrationCases(*(getattr(self, part.name)[index] for part in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[CalibrationCases]) -> CalibrationCases:
        """Put the cases of images together."""
        return cls(*(np.concatenate([getattr(one, part.name) for one in parts]) for part in fields(cls)))

    def scores(self) -> tuple[FloatArray, BoolArray]:
        """Return the scores of what counts, float64, and whether each is right, bool, (N,)."""
        return self.score[self.counts], self.true[self.counts]

    def classes(self) -> tuple[FloatArray, BoolArray]:
        """Return P(star) of what lies on a source, float64, and whether each is a star, bool, (N,)."""
        return self.p_star[self.on_source], self.is_star[self.on_source]

    def blends(self) -> tuple[FloatArray, BoolArray]:
        """Return P(blend) of what lies on a source, where known, and whether each is a blend, bool, (N,)."""
        known = self.on_source & np.isfinite(self.p_blend)
        return self.p_blend[known], self.is_blend[known]


def collect_cases(
    find: Callable[[MultibandImage], Detections],
    scenes: Iterable[TrainingScene],
    metadata: ModelMetadata,
    *,
    iou: float = 0.5,
    min_area: int = 12,
    min_peak_snr: float = 3.0,
) -> CalibrationCases:
    """Detect sources in scenes in the bands of a model, and compare them with the truth.

    A detection is right if its mask and that of its source have at least ``iou``.
    Sources of fewer than ``min_area`` pixels, or with a fainter peak than
    ``min_peak_snr`` times the noise, are ignored.
    """
    parts = []
    for number, scene in enumerate(scenes):
        if len(scene.variance) != len(metadata.bands):
            raise ValueError(
                f"Scene {number} has {len(scene.variance)} bands, the model wants {metadata.bands}; give "
                "scenes in these bands."
            )
        flux, variance, sky_sigma = realize_scene(scene, np.random.default_rng([_NOISE_SEED, number]))
        image = MultibandImage(
            flux, metadata.bands, metadata.pixel_scale, variance, usable=scene.valid, psf_fwhm=scene.psf_fwhm
        )
        asked = asked_sources(scene, sky_sigma, min_area, min_peak_snr)
        parts.append(calibration_cases(find(image), scene, asked, sky_sigma, iou, number))
    return CalibrationCases.concatenate(parts)


def calibration_cases(
    found: Detections,
    scene: TrainingScene,
    asked: BoolArray,
    sky_sigma: FloatArray,
    iou: float = 0.5,
    number: int = 0,
) -> CalibrationCases:
    """Compare the detections of a scene, with the scores as the network gives them, with its truth.

    What matches a source that is not ``asked`` for, bool, (source,), is ignored.
    ``sky_sigma`` is the noise of an empty pixel, (band,), nJy. Classes need not
    agree for a detection to be right: P(star) tells how likely they do.
    """
    masks = SpanMasks.from_masks(found.masks, found.origins)
    pairs = ImagePairs.from_spans(
        masks,
        found.scores,
        np.where(found.p_star > 0.5, STAR, GALAXY),
        SpanMasks.from_masks(scene.masks, scene.origins),
        scene.labels,
        ignored=masks.share_in(~scene.valid) > _MASKED,
        truth_ignored=~asked,
    )
    matches = match(pairs, [iou, _CLASS_IOU])
    truth, on_source = matches.truth[1], matches.hit[1]
    counts = ~matches.ignored[0]
    snr = (scene.peak_flux / sky_sigma).max(axis=1) if len(scene.labels) else np.zeros(0)
    # A truth of -1 reads the last element here, which does not count then.
    cases = CalibrationCases(
        score=np.asarray(found.scores, dtype=np.float64),
        p_star=np.asarray(found.p_star, dtype=np.float64),
        p_blend=np.asarray(found.p_blend, dtype=np.float64),
        counts=counts,
        true=matches.hit[0],
        on_source=on_source,
        is_star=on_source & (np.append(scene.labels, 0)[truth] == STAR),
        is_blend=np.zeros(len(found), bool),
        snr=np.where(on_source, np.append(snr, np.nan)[truth], np.nan),
        depth=np.full(len(found), float(np.median(sky_sigma)) if scene.noisy else 0.0),
        image=np.full(len(found), number, dtype=np.int64),
    )
    return cases.select(counts | on_source)


def fit_calibration(cases: CalibrationCases, provenance: dict[str, Any] | None = None) -> Calibration:
    """Fit the curves from scores, P(star) and P(blend) to probabilities.

    That of the score is fitted to what is right or wrong, those of P(star)
    and P(blend) to what lies on a source. The cases must be of images that the model was not trained on.
    """
    p_blend, is_blend = cases.blends()
    return Calibration(
        score=fit_curve(*cases.scores()),
        p_star=fit_curve(*cases.classes()),
        p_blend=fit_curve(p_blend, is_blend) if len(p_blend) else None,
        provenance=provenance or {},
    )


def cross_calibrate(cases: CalibrationCases, n_folds: int = 5) -> CalibrationCases:
    """Calibrate each case by a fit to other images, so that their reliability is that on new images."""
    images = np.unique(cases.image)
    if not 2 <= n_folds <= len(images):
        raise ValueError(f"{len(images)} images cannot be divided by {n_folds} fits; give more images.")
    fold = np.searchsorted(images, cases.image) % n_folds
    after: dict[Literal["score", "p_star", "p_blend"], FloatArray] = {
        "score": cases.score.copy(),
        "p_star": cases.p_star.copy(),
        "p_blend": cases.p_blend.copy(),
    }
    for number in range(n_folds):
        out = fold == number
        fitted = fit_calibration(cases.select(~out))
        for name, values in after.items():
            values[out] = calibrate(values[out], fitted, name)
    return replace(cases, score=after["score"], p_star=after["p_star"], p_blend=after["p_blend"])
