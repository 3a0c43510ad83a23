# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which detection has found which truth.

What is ignored is decided in `counted_truths` and `match`, and nowhere else:

- A truth counts if it is of the class asked for, is not flagged as ignored or
  as a crowd, and its area is in the range asked for. The others of the class
  are there, but are neither hits nor misses.
- A detection prefers a truth that counts. If only an ignored one is left for
  it, the detection is dropped with it. An ignored truth takes one detection,
  as any truth does; a crowd takes any number.
- A detection without truth is dropped if it is flagged as ignored or its area
  is outside the range; otherwise it is false.

These are the rules of COCO (Lin et al. 2014, arXiv:1405.0312, and the
``pycocotools`` that go with it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .spans import MaskPairs, SpanMasks, mask_iou

__all__ = [
    "ANY_CLASS",
    "IOU_THRESHOLDS",
    "PSF_AREA_RANGES",
    "AreaRange",
    "ImagePairs",
    "Matches",
    "Method",
    "counted_truths",
    "greedy_match",
    "match",
    "psf_area",
]

Method = Literal["greedy", "optimal"]

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""IoU from which a detection and a truth match, as COCO has them."""

ANY_CLASS = -1
"""Class of an ignored truth that takes detections of every class."""


@dataclass(frozen=True)
class AreaRange:
    """Masks of some sizes.

    Parameters
    ----------
    name : `str`
        For tables and legends.
    low, high : `float`
        Smallest and largest area, both included, in the unit of
        `ImagePairs.areas`.
    """

    name: str
    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"The area range {self.name!r} goes from {self.low} down to {self.high}.")

    def holds(self, areas: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Say which areas are in the range.

        Parameters
        ----------
        areas : `numpy.ndarray`
            Areas, (N,).

        Returns
        -------
        inside : `numpy.ndarray`
            Bool, (N,).
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
    """Compute the area of the disc whose diameter is the width of the PSF.

    Parameters
    ----------
    fwhm : `float`
        Full width at half maximum (px, or arcsec).

    Returns
    -------
    area : `float`
        In px (arcsec^2).
    """
    return float(np.pi / 4 * fwhm**2)


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """The detections and truths of an image, and which of them overlap.

    Masks are not kept, so that an image needs little memory and every figure,
    at every threshold, comes from this. Make one with `ImagePairs.from_spans`.

    Parameters
    ----------
    name : `str`
        Of the image or patch; pairs up the images of two runs.
    pairs : `MaskPairs`
        Detections (first) and truths (second) that overlap. ``iou`` with a
        crowd is the part of the detection that lies in it.
    scores : `numpy.ndarray`
        Score of each detection, float64, (detection,).
    class_scores : `numpy.ndarray`
        Score of each detection within its class, float64, (detection,).
    labels : `numpy.ndarray`
        Class of each detection, int64, (detection,).
    areas : `numpy.ndarray`
        Of the detections, float64, (detection,), px times ``pixel_area``.
    ignored : `numpy.ndarray`
        Detections that are not false if they have no truth, bool,
        (detection,).
    order : `numpy.ndarray`
        Place of each detection among those of equal score and IoU, int64,
        (detection,).
    truth_labels : `numpy.ndarray`
        Class of each truth, int64, (truth,); `ANY_CLASS` is for ignored ones.
    truth_areas : `numpy.ndarray`
        Of the truths, float64, (truth,).
    truth_ignored : `numpy.ndarray`
        Truths that are neither hits nor misses, bool, (truth,).
    truth_crowd : `numpy.ndarray`
        Ignored truths that stand for many sources, bool, (truth,).
    truth_order : `numpy.ndarray`
        As ``order``, int64, (truth,).

    Raises
    ------
    ValueError
        Raised if the lengths do not fit, a score is NaN, or a truth that
        counts has no class.
    """

    name: str
    pairs: MaskPairs
    scores: npt.NDArray[np.float64]
    class_scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]
    truth_labels: npt.NDArray[np.int64]
    truth_areas: npt.NDArray[np.float64]
    truth_ignored: npt.NDArray[np.bool_]
    truth_crowd: npt.NDArray[np.bool_]
    truth_order: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for wanted, names in (
            (len(self.scores), ("scores", "class_scores", "labels", "areas", "ignored", "order")),
            (
                len(self.truth_labels),
                ("truth_labels", "truth_areas", "truth_ignored", "truth_crowd", "truth_order"),
            ),
        ):
            for name in names:
                if getattr(self, name).shape != (wanted,):
                    raise ValueError(
                        f"{name} of image {self.name!r} has the shape {getattr(self, name).shape}; "
                        f"it must be ({wanted},)."
                    )
        for name in ("scores", "class_scores"):
            if np.isnan(getattr(self, name)).any():
                number = int(np.isnan(getattr(self, name)).sum())
                raise ValueError(
                    f"{number} of {len(self.scores)} {name} of image {self.name!r} are NaN; "
                    "drop those detections or give them a score."
                )
        lost = (self.truth_labels == ANY_CLASS) & ~self.truth_ignored & ~self.truth_crowd
        if lost.any():
            raise ValueError(
                f"{int(lost.sum())} truths of image {self.name!r} have no class (label {ANY_CLASS}) and are "
                "not ignored; give them a class or flag them as ignored."
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
        truth_crowd: npt.ArrayLike | None = None,
        pixel_area: float = 1.0,
        min_iou: float = 0.0,
    ) -> ImagePairs:
        """Compare the masks of an image.

        Parameters
        ----------
        detections : `SpanMasks`
            Masks of the detections.
        scores : `numpy.ndarray`
            Score of each, (detection,).
        labels : `numpy.ndarray`
            Class of each, integers, (detection,).
        truths : `SpanMasks`
            Masks of the truths, in the same pixels.
        truth_labels : `numpy.ndarray`
            Class of each, integers, (truth,).
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
        truth_crowd : `numpy.ndarray`, optional
            Ignored truths that stand for many sources, bool, (truth,).
        pixel_area : `float`
            Area of a pixel in the unit in which area ranges are given: 1 for
            px, the square of the pixel scale for arcsec^2, 1 / `psf_area` for
            areas of the PSF.
        min_iou : `float`
            Pairs of a smaller IoU are forgotten. Nothing below the lowest
            threshold is needed to match; crowded fields have many such pairs.

        Returns
        -------
        image : `ImagePairs`
            What every figure is computed from.
        """
        n_found, n_truth = len(detections), len(truths)
        score = np.asarray(scores, dtype=np.float64)
        crowd = _flags(truth_crowd, n_truth)
        class_score = score if class_scores is None else np.asarray(class_scores, dtype=np.float64)
        label = np.asarray(labels, dtype=np.int64).reshape(-1)
        truth_label = np.asarray(truth_labels, dtype=np.int64).reshape(-1)
        spared, faint = _flags(ignored, n_found), _flags(truth_ignored, n_truth)
        areas = detections.areas
        pairs = mask_iou(detections, truths)
        if crowd.any():
            share = np.where(crowd[pairs.second], pairs.intersection / areas[pairs.first], pairs.iou)
            pairs = MaskPairs(pairs.first, pairs.second, pairs.intersection, share)
        if min_iou > 0:
            pairs = pairs.select(pairs.iou >= min_iou)
        return cls(
            name=name,
            pairs=pairs,
            scores=score,
            class_scores=class_score,
            labels=label,
            areas=areas.astype(np.float64) * pixel_area,
            ignored=spared,
            order=_order(detections, label, score, class_score, spared),
            truth_labels=truth_label,
            truth_areas=truths.areas.astype(np.float64) * pixel_area,
            truth_ignored=faint,
            truth_crowd=crowd,
            truth_order=_order(truths, truth_label, faint, crowd),
        )

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections of an image against its truths, at T thresholds.

    Parameters
    ----------
    thresholds : `numpy.ndarray`
        Smallest IoU of a match, float64, (T,).
    selected : `numpy.ndarray`
        Detections of the class asked for, bool, (detection,).
    scores : `numpy.ndarray`
        What ranked them, float64, (detection,).
    truth : `numpy.ndarray`
        Index of the truth of each detection, or -1, int64, (T, detection).
    ignored : `numpy.ndarray`
        Detections that are neither hits nor false, those not selected among
        them, bool, (T, detection).
    counted : `numpy.ndarray`
        Truths that are either hits or misses, bool, (truth,).
    """

    thresholds: npt.NDArray[np.float64]
    selected: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]
    truth: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]

    @property
    def hit(self) -> npt.NDArray[np.bool_]:
        """Detections with a truth that counts, bool, (T, detection)."""
        return (self.truth >= 0) & ~self.ignored

    @property
    def false(self) -> npt.NDArray[np.bool_]:
        """Detections that count and have no truth, bool, (T, detection)."""
        return (self.truth < 0) & ~self.ignored

    @property
    def detection(self) -> npt.NDArray[np.int64]:
        """Index of the detection of each truth that counts, or -1, int64, (T, truth)."""
        found = np.full((len(self.thresholds), len(self.counted)), -1, dtype=np.int64)
        step, index = np.nonzero(self.hit)
        found[step, self.truth[step, index]] = index
        return found


def counted_truths(
    image: ImagePairs, label: int | None = None, area: AreaRange | None = None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Say which truths of an image take part, and which of these count.

    Parameters
    ----------
    image : `ImagePairs`
        The image.
    label : `int`, optional
        The class; by default all classes as one.
    area : `AreaRange`, optional
        The sizes that count; by default all.

    Returns
    -------
    present : `numpy.ndarray`
        Truths that a detection can match, bool, (truth,).
    counted : `numpy.ndarray`
        Those of them that are hits or misses, bool, (truth,).
    """
    present = np.ones(len(image.truth_labels), dtype=bool)
    if label is not None:
        present = (image.truth_labels == label) | (image.truth_labels == ANY_CLASS)
    counted = present & ~image.truth_ignored & ~image.truth_crowd
    if area is not None:
        counted &= area.holds(image.truth_areas)
    return present, counted


def match(
    image: ImagePairs,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    label: int | None = None,
    area: AreaRange | None = None,
    method: Method = "greedy",
    max_detections: int | None = None,
) -> Matches:
    """Match the detections of an image with its truths.

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
    method : `str`
        ``"greedy"``: each detection, by descending score, takes the free truth
        of the largest IoU. ``"optimal"``: as many truths as can be are matched
        and, of these ways, the one of the largest sum of IoU is taken,
        whatever the scores.
    max_detections : `int`, optional
        Only so many detections, those of the highest scores.

    Returns
    -------
    matches : `Matches`
        What became of each detection.

    Notes
    -----
    The result does not depend on the order of the input: among equal scores
    the pair of the larger IoU goes first, then the detection and the truth
    that come first by position (`SpanMasks.order`).
    """
    steps = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if not len(steps) or not ((steps > 0) & (steps <= 1)).all():
        raise ValueError(f"thresholds are {thresholds!r}; they must be above 0 and at most 1.")
    if method not in ("greedy", "optimal"):
        raise ValueError(f"method is {method!r}; it must be 'greedy' or 'optimal'.")
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 1, or None for all.")
    present, counted = counted_truths(image, label, area)
    selected = np.ones(len(image), dtype=bool) if label is None else image.labels == label
    scores = image.scores if label is None else image.class_scores
    if max_detections is not None:
        indices = np.flatnonzero(selected)
        ranked = indices[np.lexsort((image.order[indices], -scores[indices]))]
        selected[ranked[max_detections:]] = False

    pairs = image.pairs
    usable = selected[pairs.first] & present[pairs.second] & (pairs.iou >= steps.min())
    pairs = pairs.select(usable)
    position = image.truth_order[pairs.second], image.order[pairs.first]
    if method == "greedy":
        # The last key counts first.
        rank = -pairs.iou, ~counted[pairs.second], -scores[pairs.first]
        pairs = pairs.select(np.lexsort((*position, *rank)))
        truth = _greedy(pairs, steps, len(image), image.truth_crowd)
    else:
        pairs = pairs.select(np.lexsort(position))
        truth = np.stack([_optimal(pairs, step, len(image), counted, image.truth_crowd) for step in steps])

    alone = truth < 0
    spared = image.ignored.copy()
    if area is not None:
        spared |= ~area.holds(image.areas)
    # A truth of -1 reads the last element here, which the other term then overrules.
    absorbed = ~np.append(counted, False)[truth] & ~alone
    ignored = ~selected | absorbed | (alone & spared)
    return Matches(steps, selected, scores, truth, ignored, counted)


def greedy_match(
    pairs: MaskPairs, scores: npt.ArrayLike, n_truth: int, threshold: float = 0.5
) -> npt.NDArray[np.int64]:
    """Give each detection, by descending score, its best free truth.

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

    Returns
    -------
    match : `numpy.ndarray`
        Index of the truth of each detection, or -1, int64, (detection,).
        Among equal scores the pair of the larger IoU goes first; only pairs
        equal in both depend on the order of the input. `match` knows how to
        ignore truths, and does not depend on the order at all.
    """
    score = np.asarray(scores, dtype=np.float64)
    ranked = pairs.select(np.lexsort((-pairs.iou, -score[pairs.first])))
    return _greedy(ranked, np.array([threshold]), len(score), np.zeros(n_truth, dtype=bool))[0]


def _flags(given: npt.ArrayLike | None, number: int) -> npt.NDArray[np.bool_]:
    if given is None:
        return np.zeros(number, dtype=bool)
    return np.asarray(given, dtype=bool).reshape(-1)


def _order(masks: SpanMasks, *more: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rank by position, and equal masks by all else that is known of them."""
    order = np.zeros(len(masks), dtype=np.int64)
    if all(part.shape == order.shape for part in more):
        order[np.lexsort((*more[::-1], masks.order()))] = np.arange(len(masks))
    return order


def _greedy(
    pairs: MaskPairs, steps: npt.NDArray[np.float64], n_found: int, shared: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Match pairs that are sorted by precedence, at all the thresholds at once.

    A pair that comes first for its detection and for its truth is what the
    loop over the pairs would take, whenever it came by; so all such pairs are
    taken together, what they exclude is struck out, and so on. ``shared``
    truths take any number of detections.
    """
    n_truth = len(shared)
    matched = np.full(len(steps) * n_found, -1, dtype=np.int64)
    step, pair = np.nonzero(pairs.iou >= steps[:, None])
    found = pairs.first[pair] + step * n_found
    truth = pairs.second[pair] + step * n_truth
    many = shared[pairs.second[pair]]
    best_found = np.zeros(len(matched), dtype=np.int64)
    best_truth = np.zeros(len(steps) * n_truth, dtype=np.int64)
    while len(found):
        places = np.arange(len(found))
        # Of several assignments the last one stays, which is that of the first pair.
        best_found[found[::-1]] = places[::-1]
        best_truth[truth[::-1]] = places[::-1]
        taken = (best_found[found] == places) & ((best_truth[truth] == places) | many)
        matched[found[taken]] = truth[taken] % n_truth
        gone = np.zeros(len(best_truth), dtype=bool)
        gone[truth[taken & ~many]] = True
        left = (matched[found] < 0) & ~gone[truth]
        found, truth, many = found[left], truth[left], many[left]
    return matched.reshape(len(steps), n_found)


def _optimal(
    pairs: MaskPairs,
    threshold: float,
    n_found: int,
    counted: npt.NDArray[np.bool_],
    shared: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """Match at one threshold: truths that count, then ignored ones, then crowds."""
    matched = np.full(n_found, -1, dtype=np.int64)
    good = pairs.select(pairs.iou >= threshold)
    for truths in (counted, ~counted & ~shared):
        left = good.select(truths[good.second] & (matched[good.first] < 0))
        found, truth = _assign(left, n_found, len(counted))
        matched[found] = truth
    left = good.select(shared[good.second] & (matched[good.first] < 0))
    left = left.select(np.argsort(left.iou, kind="stable"))
    matched[left.first] = left.second
    return matched


def _assign(
    pairs: MaskPairs, n_found: int, n_truth: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Solve the assignment problem within each group of masks that hang together."""
    if not len(pairs):
        return pairs.first, pairs.second
    size = n_found + n_truth
    graph = coo_array((np.ones(len(pairs)), (pairs.first, n_found + pairs.second)), shape=(size, size))
    group = connected_components(graph, directed=False)[1][pairs.first]
    by_group = np.argsort(group, kind="stable")
    begins = np.flatnonzero(np.append(True, np.diff(group[by_group]) != 0))
    ends = np.append(begins[1:], len(by_group))
    single = by_group[begins[ends - begins == 1]]
    rows, columns = [pairs.first[single]], [pairs.second[single]]
    for begin, end in zip(begins, ends):
        if end - begin == 1:
            continue
        members = by_group[begin:end]
        first, row = _places(pairs.first[members])
        second, column = _places(pairs.second[members])
        gain = np.zeros((len(first), len(second)))
        # One match more is worth more than all the IoU that could be lost by it.
        gain[row, column] = 1.0 + pairs.iou[members] / (min(gain.shape) + 1.0)
        i, j = linear_sum_assignment(gain, maximize=True)
        real = gain[i, j] > 0
        rows.append(first[i[real]])
        columns.append(second[j[real]])
    return np.concatenate(rows), np.concatenate(columns)


def _places(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give the distinct values in order of appearance, and the place of each value among them."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return distinct[order], rank[inverse]
