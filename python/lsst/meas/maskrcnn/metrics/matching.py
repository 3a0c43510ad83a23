# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which detection has found which truth.

What is ignored is decided in `match`, and nowhere else:

- A truth counts if it is of the class asked for, is not flagged as ignored,
  and its area is in the range asked for. The others of the class can be
  matched, but are neither hits nor misses.
- A detection prefers a truth that counts. If only an ignored one is left for
  it, the detection is dropped with it.
- A detection without truth is dropped if it is flagged as ignored or its area
  is outside the range; otherwise it is false.

These are the rules of COCO (Lin et al. 2014, arXiv:1405.0312, and the
``pycocotools`` that go with it), without its crowds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import BoolArray, FloatArray, IntArray
from .spans import MaskPairs, SpanMasks, mask_iou

__all__ = [
    "IOU_THRESHOLDS",
    "PSF_AREA_RANGES",
    "AreaRange",
    "ImagePairs",
    "greedy_match",
    "match",
    "psf_area",
]

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""IoU from which a detection and a truth match, as COCO has them."""


@dataclass(frozen=True)
class AreaRange:
    """Masks of some sizes."""

    name: str
    """For tables and legends."""
    low: float = 0.0
    high: float = float("inf")
    """Smallest and largest area, both included, in the unit of `ImagePairs.areas`."""

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"The area range {self.name!r} goes from {self.low} down to {self.high}.")

    def holds(self, areas: FloatArray) -> BoolArray:
        """Say which areas are in the range, bool, (N,).

        Parameters
        ----------
        areas : `numpy.ndarray`
            Areas, (N,).
        """
        return (areas >= self.low) & (areas <= self.high)


PSF_AREA_RANGES = (
    AreaRange("unresolved", 0.0, 8.0),
    AreaRange("small", 8.0, 32.0),
    AreaRange("large", 32.0, float("inf")),
)
"""Area ranges in units of `psf_area`.

A Gaussian star's mask down to 0.005 of the peak has 7.6 such units.
"""


def psf_area(fwhm: float) -> float:
    """Compute the area of the disc whose diameter is the width of the PSF, in px (arcsec^2).

    Parameters
    ----------
    fwhm : `float`
        Full width at half maximum (px, or arcsec).
    """
    return float(np.pi / 4 * fwhm**2)


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """The detections and truths of an image, and which of them overlap.

    Masks are not kept, so that an image needs little memory and every figure,
    at every threshold, comes from this. Make one with `ImagePairs.from_spans`.
    `ValueError` is raised if the lengths do not fit or a score is NaN.
    """

    name: str
    """Of the image or patch; pairs up the images of two runs."""
    pairs: MaskPairs
    """Detections (first) and truths (second) that overlap."""
    scores: FloatArray
    class_scores: FloatArray
    """Score of each detection, and that within its class, float64, (detection,)."""
    labels: IntArray
    """Its class, int64, (detection,)."""
    areas: FloatArray
    """Its area, px times ``pixel_area``, float64, (detection,)."""
    ignored: BoolArray
    """Detections that are not false if they have no truth, bool, (detection,)."""
    order: IntArray
    """Place of each among those of equal score and IoU, int64, (detection,)."""
    truth_labels: IntArray
    truth_areas: FloatArray
    """Class and area of each truth, (truth,)."""
    truth_ignored: BoolArray
    """Truths that are neither hits nor misses, bool, (truth,)."""
    truth_order: IntArray
    """Place of each among those of equal IoU, int64, (truth,)."""

    def __post_init__(self) -> None:
        for wanted, names in (
            (len(self.scores), ("scores", "class_scores", "labels", "areas", "ignored", "order")),
            (len(self.truth_labels), ("truth_labels", "truth_areas", "truth_ignored", "truth_order")),
        ):
            for name in names:
                if getattr(self, name).shape != (wanted,):
                    raise ValueError(
                        f"{name} of image {self.name!r} has the shape {getattr(self, name).shape}; "
                        f"it must be ({wanted},)."
                    )
        for name in ("scores", "class_scores"):
            number = int(np.isnan(getattr(self, name)).sum())
            if number:
                raise ValueError(
                    f"{number} of {len(self.scores)} {name} of image {self.name!r} are NaN; "
                    "drop those detections or give them a score."
                )

    @classmethod
    def from_spans(
        cls,
        detections: SpanMasks,
        scores: npt.ArrayLike,
        labels: npt.ArrayLike,
        truths: SpanMasks,
        truth_labels: npt.ArrayLike,
        *,
        name: str = "",
        class_scores: npt.ArrayLike | None = None,
        ignored: npt.ArrayLike | None = None,
        truth_ignored: npt.ArrayLike | None = None,
        pixel_area: float = 1.0,
    ) -> ImagePairs:
        """Compare the masks of an image.

        Parameters
        ----------
        detections : `SpanMasks`
            Masks of the detections.
        scores, labels : `numpy.ndarray`
            Score of each and class, an integer, (detection,).
        truths : `SpanMasks`
            Masks of the truths, in the same pixels.
        truth_labels : `numpy.ndarray`
            Class of each, an integer, (truth,).
        name : `str`
            Of the image or patch.
        class_scores : `numpy.ndarray`, optional
            Scores that rank the detections of a class, such as the score times
            the probability of the class, (detection,); by default ``scores``.
        ignored : `numpy.ndarray`, optional
            Detections that are not false if they have no truth, such as those
            in masked pixels (see `SpanMasks.share_in`), bool, (detection,).
        truth_ignored : `numpy.ndarray`, optional
            Truths that are neither hits nor misses, such as those too faint,
            bool, (truth,).
        pixel_area : `float`
            Area of a pixel in the unit of area ranges: 1 for px, 1 /
            `psf_area` for areas of the PSF.
        """
        score = np.asarray(scores, dtype=np.float64)
        class_score = score if class_scores is None else np.asarray(class_scores, dtype=np.float64)
        label = np.asarray(labels, dtype=np.int64).reshape(-1)
        truth_label = np.asarray(truth_labels, dtype=np.int64).reshape(-1)
        spared, faint = _flags(ignored, len(detections)), _flags(truth_ignored, len(truths))
        return cls(
            name=name,
            pairs=mask_iou(detections, truths),
            scores=score,
            class_scores=class_score,
            labels=label,
            areas=detections.areas.astype(np.float64) * pixel_area,
            ignored=spared,
            order=_order(detections, label, score, class_score, spared),
            truth_labels=truth_label,
            truth_areas=truths.areas.astype(np.float64) * pixel_area,
            truth_ignored=faint,
            truth_order=_order(truths, truth_label, faint),
        )

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections of an image against its truths, at T thresholds."""

    thresholds: FloatArray  # smallest IoU of a match, (T,)
    scores: FloatArray  # what ranked the detections, (detection,)
    truth: IntArray  # index of the truth of each detection, or -1, (T, detection)
    # Detections that are neither hits nor false, those of other classes than the one asked for among them,
    # (T, detection).
    ignored: BoolArray
    counted: BoolArray  # truths that are either hits or misses, (truth,)

    @property
    def hit(self) -> BoolArray:
        """Detections with a truth that counts, bool, (T, detection)."""
        return (self.truth >= 0) & ~self.ignored

    @property
    def false(self) -> BoolArray:
        """Detections that count and have no truth, bool, (T, detection)."""
        return (self.truth < 0) & ~self.ignored


def match(
    image: ImagePairs,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    label: int | None = None,
    area: AreaRange | None = None,
) -> Matches:
    """Match the detections of an image with its truths.

    Each detection, by descending score, takes the free truth of the largest
    IoU.

    Parameters
    ----------
    image : `ImagePairs`
        The image.
    thresholds : `~collections.abc.Sequence` [`float`]
        Smallest IoU of a match, above 0.
    label : `int`, optional
        Match the detections and truths of this class; by default all, whatever
        their class.
    area : `AreaRange`, optional
        The sizes that count; by default all.

    Notes
    -----
    The result does not depend on the order of the input: among equal scores
    the pair of the larger IoU goes first, then the detection and the truth
    that come first by position (`SpanMasks.order`).
    """
    steps = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if not len(steps) or not ((steps > 0) & (steps <= 1)).all():
        raise ValueError(f"thresholds are {thresholds!r}; they must be above 0 and at most 1.")
    selected, present = np.ones(len(image), dtype=bool), np.ones(len(image.truth_labels), dtype=bool)
    scores = image.scores
    if label is not None:
        selected, present = image.labels == label, image.truth_labels == label
        scores = image.class_scores
    counted = present & ~image.truth_ignored
    spared = image.ignored
    if area is not None:
        counted &= area.holds(image.truth_areas)
        spared = spared | ~area.holds(image.areas)

    pairs = image.pairs
    pairs = pairs.select(selected[pairs.first] & present[pairs.second] & (pairs.iou >= steps.min()))
    position = image.truth_order[pairs.second], image.order[pairs.first]
    # The last key counts first.
    rank = -pairs.iou, ~counted[pairs.second], -scores[pairs.first]
    truth = _greedy(pairs.select(np.lexsort((*position, *rank))), steps, len(image), len(counted))

    alone = truth < 0
    # A truth of -1 reads the last element here, which the other term then overrules.
    on_ignored = ~np.append(counted, False)[truth] & ~alone
    return Matches(steps, scores, truth, ~selected | on_ignored | (alone & spared), counted)


def greedy_match(pairs: MaskPairs, scores: npt.ArrayLike, n_truth: int, threshold: float = 0.5) -> IntArray:
    """Give each detection, by descending score, the index of its best free truth, or -1, int64, (detection,).

    Among equal scores the pair of the larger IoU goes first; only pairs equal in
    both depend on the order of the input. `match` knows how to ignore truths, and
    does not depend on the order at all.

    Parameters
    ----------
    pairs : `MaskPairs`
        Pairs of detections (first) and truths (second).
    scores : `numpy.ndarray`
        Scores of the detections, (detection,).
    n_truth : `int`
        Number of truths.
    threshold : `float`
        Smallest IoU of a match.
    """
    score = np.asarray(scores, dtype=np.float64)
    ranked = pairs.select(np.lexsort((-pairs.iou, -score[pairs.first])))
    return _greedy(ranked, np.array([threshold]), len(score), n_truth)[0]


def _flags(given: npt.ArrayLike | None, number: int) -> BoolArray:
    if given is None:
        return np.zeros(number, dtype=bool)
    return np.asarray(given, dtype=bool).reshape(-1)


def _order(masks: SpanMasks, *more: npt.NDArray[Any]) -> IntArray:
    """Rank by position, and equal masks by all else that is known of them."""
    order = np.zeros(len(masks), dtype=np.int64)
    if all(part.shape == order.shape for part in more):
        order[np.lexsort((*more[::-1], masks.order()))] = np.arange(len(masks))
    return order


def _greedy(pairs: MaskPairs, steps: FloatArray, n_found: int, n_truth: int) -> IntArray:
    """Match pairs that are sorted by precedence, at all the thresholds at once.

    A pair that comes first for its detection and for its truth is what the
    loop over the pairs would take, whenever it came by; so all such pairs are
    taken together, what they exclude is struck out, and so on.
    """
    matched = np.full(len(steps) * n_found, -1, dtype=np.int64)
    step, pair = np.nonzero(pairs.iou >= steps[:, None])
    found = pairs.first[pair] + step * n_found
    truth = pairs.second[pair] + step * n_truth
    best_found = np.zeros(len(matched), dtype=np.int64)
    best_truth = np.zeros(len(steps) * n_truth, dtype=np.int64)
    while len(found):
        places = np.arange(len(found))
        # Of several assignments the last one stays, which is that of the first pair.
        best_found[found[::-1]] = places[::-1]
        best_truth[truth[::-1]] = places[::-1]
        taken = (best_found[found] == places) & (best_truth[truth] == places)
        matched[found[taken]] = truth[taken] % n_truth
        gone = np.zeros(len(best_truth), dtype=bool)
        gone[truth[taken]] = True
        left = (matched[found] < 0) & ~gone[truth]
        found, truth = found[left], truth[left]
    return matched.reshape(len(steps), n_found)
